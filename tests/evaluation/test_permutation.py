"""Resampled, permuted and planned: counts against rows, the permutation against its definition, power against simulation."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.bootstrap import counted_auprc, counted_auroc, counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.calibration import (
    calibration_error,
    counted_brier,
    counted_f1,
    counted_sensitivity,
    counted_specificity,
    even_bins,
)
from synthorax.evaluation.statistics.permutation import paired_permutation, power_of
from synthorax.evaluation.statistics.roc import auprc, auroc, delong

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "studies" / "statistics_check.py"))


def pair(seed, *, n=120, prevalence=0.3, gain=0.0, decimals=8):
    """Labels and two readings of one severity; the second is clearer by `gain`."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < prevalence * n).astype(int)
    latent = rng.normal(size=n) + 1.2 * labels
    a, b = latent + 0.7 * rng.normal(size=(2, n)) + np.array([[0.0], [gain]]) * labels
    return labels, np.round(a, decimals), np.round(b, decimals)


def plain_bootstrap(labels, scores, patients, statistic, *, num):
    """The 95 % percentile interval over patients, row by row."""
    rng, names, draws = np.random.default_rng(0), np.unique(patients), []
    while len(draws) < num:
        rows = np.concatenate([np.flatnonzero(np.equal(patients, name)) for name in rng.choice(names, len(names))])
        if 0 < labels[rows].sum() < len(rows):
            draws.append(statistic(labels[rows], scores[rows]))
    return np.quantile(draws, [0.025, 0.975])


@pytest.mark.parametrize("decimals", [0, 8])
def test_a_count_is_as_many_rows(decimals):
    labels, a, b = pair(0, decimals=decimals)
    counts = np.random.default_rng(1).integers(0, 4, size=(5, len(labels))).astype(float)
    shown = labels == 1
    for draw, area, precision, gain in zip(counts, counted_auroc(shown, a, counts), counted_auprc(shown, a, counts),
                                           counted_gain(shown, np.stack([a, b], axis=1), counts), strict=True):
        rows = np.repeat(np.arange(len(labels)), draw.astype(int))
        assert area == pytest.approx(auroc(labels[rows], a[rows]), abs=1e-12)
        assert precision == pytest.approx(auprc(labels[rows], a[rows]), abs=1e-12)
        assert gain == pytest.approx(auroc(labels[rows], b[rows]) - auroc(labels[rows], a[rows]), abs=1e-12)


def test_counted_and_plain_bootstrap_mean_the_same():
    labels, a, b = pair(2, n=300, gain=0.3)
    patients, scores = np.arange(300) // 2, np.stack([a, b], axis=1)
    counted = counted_bootstrap(labels, scores, patients, counted_gain, num=1000)
    plain = plain_bootstrap(labels, scores, patients, lambda y, s: auroc(y, s[:, 1]) - auroc(y, s[:, 0]), num=400)
    assert counted.high - counted.low == pytest.approx(plain[1] - plain[0], rel=0.15)
    again = counted_bootstrap(labels, scores, patients, counted_gain, num=1000)
    assert again == counted != counted_bootstrap(labels, scores, patients, counted_gain, num=1000, seed=1)


def test_few_patients_make_the_interval_wider_than_percentiles():
    """Of eight patients the percentiles alone are too narrow; the interval reaches further out than 95 of 100 draws."""
    labels, a, _ = pair(3, n=16, prevalence=0.5)
    wide = counted_bootstrap(labels, a, range(16), counted_auroc, num=2000)
    low, high = plain_bootstrap(labels, a, range(16), auroc, num=1000)
    assert wide.high - wide.low > 1.08 * (high - low)


def test_trainings_that_differ_widen_the_interval():
    labels, a, _ = pair(4, n=200)
    lucky = np.stack([a, a, a + 5 * np.random.default_rng(1).normal(size=200)], axis=1)
    fixed = counted_bootstrap(labels, lucky.mean(axis=1), range(200), counted_auroc, num=300)
    drawn = counted_bootstrap(labels, lucky, range(200), counted_auroc, num=300, over_runs=True)
    assert drawn.value == fixed.value and drawn.high - drawn.low > 1.3 * (fixed.high - fixed.low)


def test_permutation_follows_its_definition():
    """Every one of the 2^8 exchanges of eight patients, written out, against the signed sum and its p-value."""
    labels, a, b = pair(5, n=16, gain=1.0, prevalence=0.5)
    patients = np.arange(16) % 8
    ranks = [np.argsort(np.argsort(scores)) for scores in (a, b)]
    far = []
    for code in range(256):
        swapped = np.array([(code >> patient) & 1 for patient in patients], dtype=bool)
        far.append(auroc(labels, np.where(swapped, ranks[0], ranks[1])) - auroc(labels, np.where(swapped, ranks[1], ranks[0])))
    observed = auroc(labels, b) - auroc(labels, a)
    exact = np.mean(np.abs(far) >= abs(observed) - 1e-12)
    result = paired_permutation(labels, a, b, patients, num=20_000)
    assert result.difference == pytest.approx(observed) and far[0] == pytest.approx(observed)
    assert result.p == pytest.approx(exact, abs=0.015)


def test_permutation_sees_a_gain_and_not_a_change_of_scale():
    labels, a, b = pair(6, n=400, gain=0.8)
    assert paired_permutation(labels, a, b, range(400)).p < 0.01 and delong(labels, a, b).p < 0.01
    assert paired_permutation(labels, a, np.exp(3 * a), range(400)).p == 1.0
    with pytest.raises(InputError, match="two images of each class"):
        paired_permutation([0, 0, 1], [1, 2, 3], [1, 2, 3], range(3))


def test_power_is_what_a_study_of_that_size_has():
    """Plan from one set, then draw sets of the planned size: about 80 of 100 see the gain."""
    labels, a, b = pair(7, n=4000, gain=0.25)
    spread = math.sqrt(2 * (1 + 0.7**2))
    gain = norm.cdf(1.45 / spread) - norm.cdf(1.2 / spread)  # the true one
    plan = power_of(labels, a, b, range(4000), gain=gain)
    assert plan.n_patients == plan.n_images and plan.n_positive == pytest.approx(0.3 * plan.n_images, abs=1)
    found = [delong(*pair(100 + number, n=plan.n_images, gain=0.25)).p < 0.05 for number in range(200)]
    assert 0.68 < np.mean(found) < 0.92
    assert power_of(labels, a, b, range(4000), gain=plan.smallest_gain).power_now == pytest.approx(0.8, abs=0.001)


def test_power_needs_more_patients_for_less_gain_and_for_images_that_repeat():
    labels, a, b = pair(8, n=400)
    one, half, repeated = (power_of(labels, a, b, range(400), gain=gain, design_effect=effect)
                           for gain, effect in ((0.02, 1), (0.01, 1), (0.02, 3)))
    assert half.n_patients == pytest.approx(4 * one.n_patients, rel=0.01)
    assert repeated.n_patients == pytest.approx(3 * one.n_patients, rel=0.01)
    alike = power_of(labels, a, np.exp(a), range(400))
    assert alike.n_patients is None and alike.smallest_gain == 0
    with pytest.raises(UsageError, match="gain of 0"):
        power_of(labels, a, b, range(400), gain=0)


def test_calibration_in_closed_form():
    labels, one = np.array([1, 1, 0, 0]) == 1, np.ones((1, 4))
    assert counted_brier(labels, np.array([1.0, 1, 0, 0]), one) == 0 and counted_brier(labels, np.full(4, 0.5), one) == 0.25
    error = calibration_error(np.array([0.5]))
    assert error(labels, np.array([0.9, 0.9, 0.2, 0.2]), one) == pytest.approx(0.15)  # 0.1 above and 0.2 below the edge
    assert error(labels, np.array([0.9, 0.9, 0.2, 0.2]), np.array([[1.0, 1, 0, 0]])) == pytest.approx(0.1)


def test_calibration_error_of_a_calibrated_classifier_is_near_zero_and_of_a_bold_one_is_not():
    rng = np.random.default_rng(9)
    said = rng.beta(1, 3, size=2000)
    truth = rng.random(2000) < said
    honest = counted_bootstrap(truth, said, range(2000), calibration_error(even_bins(said)), num=200, corrected=True)
    bold = np.clip(2 * said - 0.2, 0, 1)
    off = counted_bootstrap(truth, bold, range(2000), calibration_error(even_bins(bold)), num=200, corrected=True)
    assert honest.value < 0.02 and honest.low < 0.01
    assert off.low > 0.05 and off.low <= off.value <= off.high


def test_rates_at_a_threshold():
    labels, a, _ = pair(10)
    called, one = (a > 1.0).astype(float), np.ones((1, len(a)))
    assert counted_f1(labels == 1, called, one)[0] == pytest.approx(f1_score(labels, called))
    assert counted_sensitivity(labels == 1, called, one)[0] == pytest.approx(called[labels == 1].mean())
    assert counted_specificity(labels == 1, called, one)[0] == pytest.approx(1 - called[labels == 0].mean())


def test_the_check_of_the_statistics_in_small():
    """The table of docs/studies/statistics.md with few runs: no rate may be far from what it should be."""
    rows = {name: rate for name, rate, _ in CHECK["error_rates"](80, draws=200, positives=40, negatives=120)}
    assert len(rows) == 15
    for name, rate in rows.items():
        if "DeLong, 3 images" in name:
            assert rate > 0.12  # why the bootstrap decides where a patient has several images
        else:
            due = 0.05 if name.startswith("type-I") else 0.95
            assert abs(rate - due) < 4.5 * math.sqrt(0.05 * 0.95 / 80), name


def test_the_truths_of_the_check_are_true():
    """Its known values against a million images."""
    rng = np.random.default_rng(0)
    labels, a, _ = CHECK["_readings"](rng, 20_000, 80_000)
    gap, spread = CHECK["GAP"], CHECK["SPREAD"]
    assert auroc(labels, a) == pytest.approx(norm.cdf(gap / spread / math.sqrt(2)), abs=0.005)
    assert auprc(labels, a) == pytest.approx(CHECK["_true_auprc"](0.2), abs=0.01)
    said = CHECK["_probability"](a, 0.2)
    truth = rng.random(len(said)) < said
    assert ((said - truth) ** 2).mean() == pytest.approx(CHECK["_true_brier"](0.2), abs=0.003)
    bold = CHECK["_probability"](2.0 * a - gap / 2, 0.2)
    assert calibration_error(even_bins(bold))(truth, bold, np.ones((1, len(a))))[0] == pytest.approx(CHECK["_true_error"](0.2), abs=0.004)
