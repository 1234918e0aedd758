"""Kernels and neighbours in blocks: the same numbers as in one piece, whatever the block, in double and in single precision."""

import numpy as np
import pytest
import torch

from synthorax.evaluation.metrics import kernels
from synthorax.evaluation.metrics.distances import energy_score
from synthorax.evaluation.metrics.kernels import (
    as_tensors,
    gaussian,
    gaussian_matrix,
    kernel_sums,
    median_distance,
    mmd_and_influences,
    mmd_from_matrix,
    negative_distance,
    polynomial,
)
from synthorax.evaluation.metrics.prdc import prdc


def sets(num_x=37, num_y=23, dims=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_x, dims)), rng.normal(size=(num_y, dims)) + 0.5


def whole(kernel, x, y):
    first, second = as_tensors(x, y)
    return kernel(first @ second.T, first.square().sum(1)[:, None], second.square().sum(1)[None]).numpy()


KERNELS = pytest.mark.parametrize("kernel", [polynomial(5), gaussian(1.3), negative_distance], ids=["polynomial", "gaussian", "distance"])


@KERNELS
@pytest.mark.parametrize("block", [1, 60, 2**20])
def test_sums_do_not_depend_on_the_block(kernel, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", block)
    x, y = as_tensors(*sets())
    assert np.allclose(kernel_sums(x, y, kernel)[0], whole(kernel, *sets()).sum(1), rtol=1e-10)
    assert np.allclose(kernel_sums(x, y, kernel)[1], whole(kernel, *sets()).sum(0), rtol=1e-10)
    own = whole(kernel, sets()[0], sets()[0])
    assert np.allclose(kernel_sums(x, x, kernel)[0], own.sum(1), rtol=1e-6)


def test_kernels_are_their_formulas():
    x, y = sets()
    distance = np.linalg.norm(x[:, None] - y[None], axis=2)
    assert np.allclose(whole(gaussian(1.3), x, y), np.exp(-distance**2 / (2 * 1.3**2)))
    assert np.allclose(whole(negative_distance, x, y), -distance)
    assert np.allclose(whole(polynomial(5), x, y), (x @ y.T / 5 + 1) ** 3)
    pairs = np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(len(x), 1)]
    assert median_distance(x) == pytest.approx(np.median(pairs), rel=0.01)


@KERNELS
def test_single_precision_gives_the_same_score(kernel, monkeypatch):
    exact = mmd_and_influences(*sets(400, 300), kernel, centre=False)
    monkeypatch.setattr(kernels, "EXACT_IMAGES", 10)
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", 10_000)
    single = mmd_and_influences(*sets(400, 300), kernel, centre=False)
    assert single[0] == pytest.approx(exact[0], rel=1e-4)
    assert np.allclose(single[1], exact[1], atol=1e-4)


def test_the_influences_are_the_derivative_by_weight():
    """An image counted a little more: the score moves by its influence / N."""
    x, y = sets(20, 20)
    value, by_real, _ = mmd_and_influences(x, y, gaussian(1.0))
    own, across = whole(gaussian(1.0), x, x), whole(gaussian(1.0), x, y)
    constant = value - (own.sum() - np.trace(own)) / (20 * 19) + 2 * across.mean()
    step, weight = 1e-5, np.full(20, 1 / 20)
    weight[3] += step
    weight /= weight.sum()
    off = own - np.diag(np.diag(own))
    moved = weight @ off @ weight * 20 / 19 - 2 * weight @ across.mean(1) + constant
    assert (moved - value) / step == pytest.approx(by_real[3] - by_real.mean(), rel=1e-2)


@pytest.mark.parametrize("single", [False, True])
def test_neighbours_left_out_are_left_out(single, monkeypatch):
    """With a part left out, the four are what they are of the images that stay."""
    if single:
        monkeypatch.setattr(kernels, "EXACT_IMAGES", 10)
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", 500)
    x, y = sets(60, 50)
    parts = np.arange(60) % 4, np.arange(50) % 3
    measured = prdc(x, y, k=3, real_part=parts[0], synthetic_part=parts[1])
    assert np.allclose(measured.whole, prdc(x, y, k=3).whole)
    for number in range(4):
        assert np.allclose(measured.without_real[number], prdc(x[parts[0] != number], y, k=3).whole)
    for number in range(3):
        assert np.allclose(measured.without_synthetic[number], prdc(x, y[parts[1] != number], k=3).whole)


def test_copies_have_balls_without_extent_in_single_precision(monkeypatch):
    monkeypatch.setattr(kernels, "EXACT_IMAGES", 10)
    x, y = sets(60, 50)
    collapsed = prdc(100 + x, 100 + np.repeat(y[:1], 50, axis=0), k=3).whole
    assert collapsed[1] == 0.0  # nobody lies in a ball of radius nought


def test_energy_distance_of_two_points_is_twice_their_distance():
    x, y = np.zeros((5, 2)), np.full((6, 2), [3.0, 4.0])
    score = energy_score(x, y, floor_sets=None, features_name="", seed=0)
    assert (score.metric, score.value) == ("energy_distance", pytest.approx(10.0))
    assert torch.get_default_dtype() == torch.float32


def test_the_discrepancy_from_a_kernel_matrix_is_the_same():
    features = np.random.default_rng(3).normal(size=(60, 5))
    rows = np.arange(25), np.arange(25, 60)
    from_matrix = mmd_from_matrix(gaussian_matrix(features, bandwidth=1.7), *rows)
    assert from_matrix == pytest.approx(mmd_and_influences(features[:25], features[25:], gaussian(1.7))[0], rel=1e-9)
