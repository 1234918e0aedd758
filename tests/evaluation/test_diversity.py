"""Precision, recall, density, coverage and MS-SSIM of pairs: collapse, copies and noise must show where they should."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from oracles import oracle
from synthorax.errors import InputError
from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.metrics.neighbours import neighbour_scores, neighbours


def gaussian(seed, num, *, dims=8, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(num, dims))


def prdc(real, synthetic, **settings):
    found = neighbours(real, synthetic, **settings)
    return found.precision, found.recall, found.density, found.coverage


def images(seed, num, size=32):
    """Different smooth images, uint8 [num, size, size]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num, size // 8, size // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("sizes", [(80, 80), (60, 90)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_agrees_with_prdc(k, sizes, shift):
    real, synthetic = gaussian(0, sizes[0]), gaussian(1, sizes[1], mean=shift)
    with redirect_stdout(io.StringIO()):
        theirs = oracle("prdc").compute_prdc(real, synthetic, nearest_k=k)
    ours = prdc(real, synthetic, k=k)
    assert ours == pytest.approx([theirs[name] for name in ("precision", "recall", "density", "coverage")], abs=1e-4)


def test_verbatim_copies_are_perfect():
    """No generator is this good: precision, recall and coverage of 1 point to copies."""
    real = gaussian(0, 60)
    precision, recall, density, coverage = prdc(real, real[::-1])
    assert precision == recall == coverage == 1
    assert density == pytest.approx(1)


@pytest.mark.parametrize("num_modes", [1, 10])
def test_collapse_keeps_precision_and_loses_recall_and_coverage(num_modes):
    real = gaussian(0, 200)
    modes = real[np.argsort(np.linalg.norm(real, axis=1))[:num_modes]]
    precision, recall, _, coverage = prdc(real, np.repeat(modes, 200 // num_modes, axis=0))
    assert precision == 1
    assert recall == 0
    assert coverage < 0.05 * num_modes + 0.05


def test_another_place_is_zero_everywhere():
    assert prdc(gaussian(0, 60), gaussian(1, 60, mean=20.0)) == (0, 0, 0, 0)


def test_too_wide_a_set_loses_precision_and_keeps_recall():
    precision, recall, density, _ = prdc(gaussian(0, 200), gaussian(1, 200, scale=2.0))
    assert precision < 0.4 and density < 0.4
    assert recall > 0.9


def test_scores_hold_their_values_and_floors():
    real, synthetic = gaussian(0, 120), gaussian(1, 90, mean=0.4)
    scores = neighbour_scores(real, synthetic, floor_sets=(gaussian(2, 150), gaussian(3, 100)), features_name="toy", seed=0)
    assert [score.metric for score in scores] == ["precision", "recall", "density", "coverage"]
    assert [score.value for score in scores] == list(prdc(real, synthetic))
    for score in scores:
        assert score.low < score.value < score.high
        assert score.floor is not None and score.floor > score.value - 0.1
        assert (score.n_real, score.n_synthetic, score.better) == (120, 90, "higher")


@pytest.mark.parametrize("synthetic", [gaussian(0, 40), np.repeat(gaussian(1, 1), 40, axis=0), gaussian(1, 40, mean=50.0)],
                         ids=["the real images", "one image", "another place"])
def test_intervals_are_finite_at_the_extremes(synthetic):
    for score in neighbour_scores(gaussian(0, 40), synthetic, floor_sets=None, features_name="toy", seed=0):
        assert np.isfinite([score.low, score.value, score.high]).all()
        assert score.low <= score.value <= score.high


def test_interval_holds_what_new_draws_give_on_average():
    draws = [neighbour_scores(gaussian(2 * i, 60), gaussian(2 * i + 1, 60, mean=0.5), floor_sets=None, features_name="toy",
                              seed=0) for i in range(25)]
    for scores in zip(*draws, strict=True):
        expected = np.mean([score.value for score in scores])
        assert np.mean([score.low <= expected <= score.high for score in scores]) >= 0.85


def test_images_of_one_patient_leave_together():
    """Five near-equal images a person: left out one by one, an image's duplicates stay and hide the uncertainty."""
    images_of = np.repeat(gaussian(0, 30), 5, axis=0) + gaussian(1, 150, scale=0.01)
    patient = np.repeat(np.arange(30).astype(str), 5)

    def coverage_width(real_patients):
        score = neighbour_scores(images_of, gaussian(2, 60), floor_sets=None, features_name="toy", seed=0,
                                 real_patients=real_patients)[3]
        return score.high - score.low

    assert coverage_width(patient) > coverage_width(None)


def test_too_few_images_for_k_are_refused():
    with pytest.raises(InputError, match="at least 6"):
        neighbours(gaussian(0, 5), gaussian(1, 50))


# MS-SSIM of pairs


def ms_ssim_values(real, synthetic):
    return {score.metric: score for score in ms_ssim_scores(real, synthetic, floor_sets=(images(8, 30), images(9, 30)), seed=0)}


def test_collapse_shows_as_likeness_within_the_set():
    real = images(0, 40)
    good, ten, one = (ms_ssim_values(real, images(1, num)[np.arange(40) % num]) for num in (40, 10, 1))
    within = [found["ms_ssim_within_synthetic"].value for found in (good, ten, one)]
    assert within[0] < within[2] and within[2] == pytest.approx(1)
    assert good["ms_ssim_gap"].value < one["ms_ssim_gap"].value
    assert good["ms_ssim_gap"].low <= 0.02


def test_noise_is_less_similar_than_real_images_and_the_gap_says_so():
    real = np.clip(images(0, 1) * 0.8 + images(1, 40) * 0.2, 0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    found = ms_ssim_values(real, noise)
    assert found["ms_ssim_within_synthetic"].value < found["ms_ssim_within_real"].value
    assert found["ms_ssim_gap"].low > found["ms_ssim_gap"].floor


def test_ms_ssim_scores_say_what_they_are():
    found = ms_ssim_values(images(0, 20), images(1, 12))
    assert found["ms_ssim_within_synthetic"].floor == found["ms_ssim_within_real"].value
    assert found["ms_ssim_within_real"].n_synthetic == 0
    assert found["ms_ssim_across"].better == "higher"
    for score in found.values():
        assert 0 <= score.low <= score.value <= score.high <= 1
    assert found == ms_ssim_values(images(0, 20), images(1, 12))
    with pytest.raises(InputError, match="at least 3"):
        ms_ssim_values(images(0, 20), images(1, 2))
