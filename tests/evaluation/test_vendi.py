"""The Vendi score: closed forms, its interval, and what moves it."""

import numpy as np
import pytest

from synthorax.errors import InputError
from synthorax.evaluation.metrics.vendi import vendi, vendi_score


@pytest.mark.parametrize(("num_kinds", "copies"), [(1, 8), (3, 4), (6, 1), (2, 40)])
def test_it_counts_clusters_that_have_nothing_in_common(num_kinds, copies):
    assert vendi(np.repeat(np.eye(8)[:num_kinds], copies, axis=0)) == pytest.approx(num_kinds)


def test_two_kinds_of_unequal_number_are_the_exponential_of_their_entropy():
    images = np.repeat(np.eye(2), [3, 1], axis=0)
    assert vendi(images) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_the_short_way_and_the_long_way_agree():
    rng = np.random.default_rng(0)
    for shape in ((30, 7), (7, 30)):
        images = rng.normal(size=shape)
        unit = images / np.linalg.norm(images, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit @ unit.T / len(unit)).clip(1e-300)
        assert vendi(images) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)


def test_its_interval_is_as_wide_as_new_draws_are():
    def random_features(seed):
        return np.random.default_rng(seed).normal(size=(150, 6)) * np.array([3, 2, 1, 1, 0.5, 0.5])
    real = random_features(10_000)
    scores = [vendi_score(real, random_features(seed), features_name="x", seed=0) for seed in range(60)]
    spread = np.std([score.value for score in scores])
    told = np.mean([(score.high - score.low) / 3.92 for score in scores])
    assert 0.7 < told / spread < 1.6


def test_nan_is_refused_and_equal_sizes_are_compared():
    with pytest.raises(InputError):
        vendi(np.full((4, 2), np.nan))
    real, made = (np.random.default_rng(seed).normal(size=(num, 4)) for seed, num in ((0, 30), (1, 90)))
    score = vendi_score(real, made, features_name="x", seed=0)
    assert score.n_real == score.n_synthetic == 30
