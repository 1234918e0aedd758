"""The statistics behind every verdict: against scikit-learn, against definitions written out in full, and under the null."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.bootstrap import counted_auroc, counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.roc import auprc, auroc, delong, delong_interval, roc_points, wilson, youden_threshold
from synthorax.multiple_testing import holm


def images(seed, *, n=200, prevalence=0.3, gap=1.0, decimals=1):
    """Labels and tied scores whose means lie `gap` standard deviations apart."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(int)
    labels[:2] = 0, 1
    return labels, np.round(rng.normal(size=n) + gap * labels, decimals)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_areas_agree_with_scikit_learn_with_and_without_ties(seed, decimals):
    labels, scores = images(seed, decimals=decimals)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auprc(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    fpr, tpr = roc_points(labels, scores)
    expected_fpr, expected_tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(fpr, expected_fpr, atol=1e-12) and np.allclose(tpr, expected_tpr, atol=1e-12)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(labels, scores), abs=1e-12)


def test_closed_forms():
    labels = np.repeat([0, 1], 10)
    assert auroc(labels, labels) == auprc(labels, labels) == 1.0
    assert auroc(labels, -labels) == 0.0
    assert auroc(labels, np.ones(20)) == auprc(labels, np.ones(20)) == 0.5  # all tied: no skill; precision is the prevalence
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9]) == 0.7


def delong_written_out(labels, a, b):
    """DeLong et al. 1988, equations 1 to 5, with the double sum over all pairs."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    v10, v01 = np.zeros((2, m)), np.zeros((2, n))
    for k, scores in enumerate((a, b)):
        kernel = [[1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0 for j in negative] for i in positive]
        v10[k], v01[k] = np.mean(kernel, axis=1), np.mean(kernel, axis=0)
    covariance = np.cov(v10) / m + np.cov(v01) / n
    contrast = np.array([-1.0, 1.0])
    return v10.mean(axis=1), math.sqrt(contrast @ covariance @ contrast), math.sqrt(covariance[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_fast_delong_equals_its_definition(seed):
    labels, a = images(seed, n=80)
    b = np.round(a + np.random.default_rng(seed + 100).normal(size=80), 1)
    areas, error, error_a = delong_written_out(labels, a, b)
    result = delong(labels, a, b)
    assert (result.auc_a, result.auc_b) == pytest.approx(tuple(areas), abs=1e-12)
    assert result.standard_error == pytest.approx(error, abs=1e-12)
    assert result.z == pytest.approx((areas[1] - areas[0]) / error, abs=1e-9)
    assert result.p == pytest.approx(2 * norm.cdf(-abs(result.z)), abs=1e-12)
    assert result.high - result.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert delong_interval(labels, a).standard_error == pytest.approx(error_a, abs=1e-12)


def test_swapped_arguments_flip_the_sign_and_keep_the_p_value():
    labels, a = images(0)
    b = a + np.random.default_rng(9).normal(size=200)
    forward, backward = delong(labels, a, b), delong(labels, b, a)
    assert forward.difference < 0  # b is a with noise added
    assert backward.difference == -forward.difference and backward.z == -forward.z and backward.p == forward.p
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))


def test_equal_rankings_are_no_evidence():
    labels, a = images(1)
    result = delong(labels, a, np.exp(a))
    assert (result.difference, result.standard_error, result.z, result.p) == (0, 0, 0, 1)


def test_delong_holds_its_type_one_error():
    """Two equally noisy readings of one latent severity differ by chance alone: about 5 of 100 tests may say otherwise."""
    rejected, rng = 0, np.random.default_rng(4)
    for seed in range(500):
        labels, latent = images(seed, n=150, decimals=8)
        rejected += delong(labels, latent + rng.normal(size=150), latent + rng.normal(size=150)).p < 0.05
    assert 0.03 <= rejected / 500 <= 0.07


def test_intervals_cover_the_truth():
    truth, covered = norm.cdf(1 / math.sqrt(2)), 0  # AUROC of two normals one standard deviation apart
    for seed in range(300):
        interval = delong_interval(*images(seed, n=120, decimals=8))
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 300 <= 0.98


def test_perfect_separation_has_an_interval_and_not_a_point():
    few, many = delong_interval([0] * 50 + [1] * 5, range(55)), delong_interval([0] * 500 + [1] * 50, range(550))
    assert few.auc == few.high == 1.0
    assert few.low < many.low < 1.0
    worst = delong_interval([1] * 5 + [0] * 50, range(55))
    assert worst.low == worst.auc == 0.0 and worst.high == pytest.approx(1 - few.low)


def test_bootstrap_and_delong_agree_when_images_are_independent():
    labels, a = images(3, n=300, decimals=8)
    b = a + np.random.default_rng(7).normal(size=300)
    by_formula = delong(labels, a, b)
    resampled = counted_bootstrap(labels, np.stack([a, b], axis=1), range(300), counted_gain, num=1000, seed=1)
    assert resampled.value == pytest.approx(by_formula.difference, abs=1e-12)
    assert resampled.high - resampled.low == pytest.approx(by_formula.high - by_formula.low, rel=0.12)
    assert resampled.p == pytest.approx(by_formula.p, abs=0.05)


def test_copies_of_a_patients_image_do_not_narrow_the_interval():
    """Each image four times over: DeLong halves its interval, the patient bootstrap is not impressed."""
    labels, a = images(5, n=60, decimals=8)
    b = a + np.random.default_rng(8).normal(size=60)
    pairs, patients = np.stack([a, b], axis=1), np.arange(60)
    once = counted_bootstrap(labels, pairs, patients, counted_gain, num=500)
    again = counted_bootstrap(np.tile(labels, 4), np.tile(pairs, (4, 1)), np.tile(patients, 4), counted_gain, num=500)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.15)
    width = [r.high - r.low for r in (delong(labels, a, b), delong(np.tile(labels, 4), np.tile(a, 4), np.tile(b, 4)))]
    assert width[1] == pytest.approx(width[0] / 2, rel=0.05)


def test_bootstrap_depends_on_its_seed_alone():
    labels, a = images(2)
    first, second, other = (counted_bootstrap(labels, a, range(200), counted_auroc, num=50, seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04]) == [0.04] and holm([]) == []
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    adjusted = holm([0.001, 0.2, 0.011, 0.04])
    assert adjusted == pytest.approx([0.004, 0.2, 0.033, 0.08])
    with pytest.raises(UsageError):
        holm([0.1, math.nan])


def test_wilson():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    low, high = wilson(0, 20)
    assert low == 0.0 and high == pytest.approx(0.16113, abs=1e-4)
    assert wilson(20, 20) == pytest.approx((1 - high, 1.0))
    with pytest.raises(UsageError):
        wilson(3, 2)


@pytest.mark.parametrize("statistic", [
    auroc, auprc, delong_interval, roc_points, youden_threshold,
    lambda labels, scores: delong(labels, scores, scores),
    lambda labels, scores: counted_bootstrap(labels, scores, range(len(labels)), counted_auroc, num=5),
])
@pytest.mark.parametrize(("labels", "said"), [([0] * 6, "0 images with"), ([1] * 6, "6 images with")])
def test_one_class_is_refused_with_the_counts(statistic, labels, said):
    with pytest.raises(InputError, match=said):
        statistic(labels, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_labels_that_are_not_stated_and_lonely_images_are_refused():
    with pytest.raises(UsageError, match="not stated"):
        auroc([0, 1, math.nan], [1, 2, 3])
    with pytest.raises(UsageError, match="finite"):
        auroc([0, 1, 1], [1, math.nan, 3])
    with pytest.raises(InputError, match="two images of each class: 1 images with"):
        delong_interval([0, 0, 1], [1, 2, 3])
    with pytest.raises(InputError, match="one patient"):
        counted_bootstrap([0, 1], [1, 2], ["a", "a"], counted_auroc)
