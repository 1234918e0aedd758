"""Anatomy: sizes from outlines, and distances between their distributions."""

import numpy as np
import pytest
import scipy.stats

from synthorax.errors import InputError
from synthorax.evaluation.metrics.anatomy import distribution_score, measure_anatomy, wasserstein


def box(top, bottom, left, right, side=20):
    outline = np.zeros((1, side, side), dtype=bool)
    outline[0, top:bottom, left:right] = True
    return outline


def test_boxes_have_the_sizes_of_boxes():
    lungs = box(4, 14, 2, 8) | box(4, 14, 12, 18)
    sizes = {name: float(values[0]) for name, values in measure_anatomy(lungs, box(8, 14, 6, 14)).items()}
    assert sizes == pytest.approx({"lung_area": 120 / 400, "lung_width": 16 / 20, "lung_height": 10 / 20, "right_lung_share": 0.5,
                                   "heart_width": 8 / 20, "cardiothoracic_ratio": 8 / 16})
    one = measure_anatomy(box(4, 14, 2, 8) | box(4, 9, 12, 18))
    assert one["right_lung_share"][0] == pytest.approx(2 / 3)  # the right lung is in the left half of the image


def test_what_is_not_found_is_not_zero():
    sizes = measure_anatomy(np.zeros((2, 20, 20), dtype=bool), np.zeros((2, 20, 20), dtype=bool))
    assert all(np.isnan(values).all() for values in sizes.values())
    with pytest.raises(InputError, match="too few"):
        distribution_score("lung_area", sizes["lung_area"], np.ones(5), floor_sets=None, judge="", seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=13).round(1), rng.normal(size=29).round(1)  # rounded, so that there are ties
    assert wasserstein(first, second) == pytest.approx(scipy.stats.wasserstein_distance(first, second))


def test_a_shift_is_its_own_distance_and_the_interval_fits_new_draws():
    def sample_score(seed):
        rng = np.random.default_rng(seed)
        return distribution_score("lung_area", rng.normal(size=150), 0.8 + rng.normal(size=120), floor_sets=None, judge="", seed=0)
    scores = [sample_score(seed) for seed in range(80)]
    assert np.mean([score.value for score in scores]) == pytest.approx(0.8, abs=0.05)
    assert np.mean([score.low <= 0.8 <= score.high for score in scores]) > 0.85
    told = np.mean([(score.high - score.low) / 3.92 for score in scores])
    assert told / np.std([score.value for score in scores]) == pytest.approx(1.0, abs=0.35)
