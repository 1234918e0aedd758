"""FID and KID: closed forms, other people's implementations, constructed failures, intervals and floors."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from oracles import oracle
from synthorax.errors import InputError
from synthorax.evaluation.metrics.distances import (
    fid,
    fid_64,
    fid_64_score,
    fid_extrapolated,
    fid_from_statistics,
    fid_score,
    kid,
    kid_difference,
    kid_score,
)

DISTANCES = pytest.mark.parametrize("distance", [fid, kid])
SCORES = pytest.mark.parametrize("score", [fid_score, kid_score])


def gaussian(seed, num, *, dims=24, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(num, dims)) * np.linspace(1.5, 0.2, dims)


def random_covariance(seed, dims):
    root = np.random.default_rng(seed).normal(size=(dims, dims))
    return root @ root.T / dims


def with_statistics(mean, covariance, num):
    """A set whose sample mean and sample covariance are exactly these."""
    raw = np.random.default_rng(1).normal(size=(num, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T)).T)
    return mean + white @ np.linalg.cholesky(covariance).T


# Closed forms


def test_fid_of_commuting_gaussians_is_the_closed_form():
    mean_1, mean_2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    spread_1, spread_2 = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    closed = np.sum((mean_1 - mean_2) ** 2) + np.sum((np.sqrt(spread_1) - np.sqrt(spread_2)) ** 2)
    assert fid_from_statistics(mean_1, np.diag(spread_1), mean_2, np.diag(spread_2)) == pytest.approx(closed, abs=1e-6)


def test_fid_of_any_gaussians_is_heusels_formula():
    mean_1, mean_2 = np.random.default_rng(0).normal(size=(2, 7))
    cov_1, cov_2 = random_covariance(1, 7), random_covariance(2, 7)
    root = scipy.linalg.sqrtm(cov_1 @ cov_2).real
    closed = np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1 + cov_2 - 2 * root)
    assert fid_from_statistics(mean_1, cov_1, mean_2, cov_2) == pytest.approx(closed, abs=1e-6)
    samples = with_statistics(mean_1, cov_1, 40), with_statistics(mean_2, cov_2, 60)
    assert fid(*samples) == pytest.approx(closed, abs=1e-6)


def test_fid_with_fewer_images_than_features_equals_the_textbook_route():
    x, y = gaussian(0, 15, dims=40), gaussian(1, 12, dims=40, mean=0.3)
    long_way = fid_from_statistics(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert fid(x, y) == pytest.approx(long_way, rel=1e-7)


def test_kid_is_unbiased():
    """Two sets of one kind: 0 on average, whatever their sizes."""
    draws = [kid(gaussian(2 * i, 12), gaussian(2 * i + 1, 30)) for i in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(200)


# Other people's implementations, on the same features


@pytest.fixture
def features():
    return gaussian(0, 90).astype(np.float32), gaussian(1, 90, mean=0.2, scale=1.1).astype(np.float32)


def test_agrees_with_torchmetrics(features):
    image = oracle("torchmetrics.image")
    extractor = torch.nn.Identity()
    extractor.num_features = 24
    for ours, kind, settings in ((fid, image.FrechetInceptionDistance, {}),
                                 (kid, image.KernelInceptionDistance, {"subsets": 1, "subset_size": 90})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of the memory that it needs
            metric = kind(feature=extractor, **settings)
            metric.set_dtype(torch.float64)
            metric.update(torch.from_numpy(features[0]), real=True)
            metric.update(torch.from_numpy(features[1]), real=False)
            theirs = metric.compute()
        value = float(theirs[0] if isinstance(theirs, tuple) else theirs)
        assert ours(*features) == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_agrees_with_torch_fidelity(features):
    real, synthetic = (torch.from_numpy(x).double() for x in features)
    metric_fid, metric_kid = oracle("torch_fidelity.metric_fid"), oracle("torch_fidelity.metric_kid")
    statistics = [metric_fid.fid_features_to_statistics(x) for x in (real, synthetic)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert fid(*features) == pytest.approx(theirs, rel=1e-4)
    theirs = metric_kid.kid_features_to_metric(real, synthetic, kid_subsets=1, kid_subset_size=90, verbose=False)
    assert kid(*features) == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-4, abs=1e-6)


# Constructed failures


@DISTANCES
def test_equal_sets_are_at_zero_or_below(distance):
    x = gaussian(0, 60)
    assert distance(x, x) < 1e-9


@DISTANCES
def test_failures_rank_as_they_should(distance):
    real, good = gaussian(0, 200), gaussian(1, 200)
    shifts = [distance(real, good + shift) for shift in (0.0, 0.3, 1.0)]
    assert shifts == sorted(shifts)
    spreads = [distance(real, good * spread) for spread in (1.0, 0.7, 0.2)]
    assert spreads == sorted(spreads)
    rng = np.random.default_rng(2)
    ten, one = (good[rng.integers(0, num, 200)] for num in (10, 1))
    assert distance(real, good) < distance(real, ten) < distance(real, one)


@DISTANCES
def test_memory_is_not_seen_by_fidelity(distance):
    """Verbatim copies score as well as they can: this is why diversity and copies are reported beside it."""
    real = gaussian(0, 100)
    assert distance(real, real[::-1]) < distance(real, gaussian(1, 100)) + 1e-9


# Intervals and floors


@SCORES
def test_score_holds_its_value_and_says_what_it_is(score):
    real, synthetic = gaussian(0, 80), gaussian(1, 50, mean=0.2)
    result = score(real, synthetic, floor_sets=(gaussian(2, 100), gaussian(3, 60)), features_name="toy", seed=0)
    assert result.low < result.value < result.high
    assert result.floor is not None and result.floor < result.value
    assert (result.n_real, result.n_synthetic, result.better, result.features) == (80, 50, "lower", "toy")
    assert result == score(real, synthetic, floor_sets=(gaussian(2, 100), gaussian(3, 60)), features_name="toy", seed=0)


@SCORES
@pytest.mark.parametrize("synthetic", [gaussian(0, 40), np.repeat(gaussian(1, 1), 40, axis=0), gaussian(1, 3)],
                         ids=["the real images", "one image", "three images"])
def test_intervals_are_finite_at_the_extremes(score, synthetic):
    result = score(gaussian(0, 40), synthetic, floor_sets=None, features_name="toy", seed=0)
    assert np.isfinite([result.low, result.value, result.high]).all()
    assert result.low <= result.value <= result.high
    assert result.floor is None and "no floor" in result.note


@SCORES
@pytest.mark.parametrize(("dims", "num"), [(24, 60), (80, 40)], ids=["more images than features", "fewer"])
def test_interval_holds_what_new_draws_give_on_average(score, dims, num):
    draws = [score(gaussian(2 * i, num, dims=dims), gaussian(2 * i + 1, num, dims=dims, mean=0.3), floor_sets=None,
                   features_name="toy", seed=0) for i in range(60)]
    expected = np.mean([draw.value for draw in draws])
    assert np.mean([draw.low <= expected <= draw.high for draw in draws]) >= 0.85
    width = np.mean([draw.high - draw.low for draw in draws])
    assert width < 2 * 2 * 1.96 * np.std([draw.value for draw in draws])


@SCORES
def test_images_of_one_patient_count_once(score):
    """Each real image five times: five times the images, and the interval must not shrink for it."""
    people, synthetic = gaussian(0, 40), gaussian(1, 400, mean=0.3)
    images, patient = np.repeat(people, 5, axis=0), np.repeat(np.arange(40).astype(str), 5)

    def width(real, real_patients):
        result = score(real, synthetic, floor_sets=None, features_name="toy", seed=0, real_patients=real_patients)
        return result.high - result.low

    assert width(images, patient) == pytest.approx(width(people, None), rel=0.2)
    assert width(images, None) < 0.7 * width(images, patient)


def test_floor_is_measured_at_the_sizes_of_the_score():
    """FID of one kind grows as images get fewer, so a floor from the whole real set would flatter."""
    real = gaussian(0, 400), gaussian(1, 400)
    floors = [fid_score(gaussian(2, num), gaussian(3, num), floor_sets=real, features_name="toy", seed=0).floor
              for num in (20, 60, 400)]
    assert floors[0] > 2 * floors[1] > 4 * floors[2]


def test_a_floor_from_too_few_images_says_so():
    score = fid_score(gaussian(0, 50), gaussian(1, 50), floor_sets=(gaussian(2, 50), gaussian(3, 20)),
                      features_name="toy", seed=0)
    assert "50 and 20 images" in score.note


@DISTANCES
@pytest.mark.parametrize("bad", [np.zeros((2, 24)), np.full((9, 24), np.nan), np.zeros((9, 3)), np.zeros(9)],
                         ids=["too few", "NaN", "other space", "no matrix"])
def test_unusable_features_are_refused(distance, bad):
    with pytest.raises(InputError):
        distance(gaussian(0, 9), bad)


def test_the_difference_of_two_kids_is_surer_than_either_where_images_are_pairs():
    real, made = gaussian(0, 120), gaussian(1, 120, mean=0.6)
    same = made + 0.01 * gaussian(2, 120)
    farther = made + 0.3
    value, low, high = kid_difference(real, made, same)
    assert low < 0 < high
    alone = kid_score(real, made, floor_sets=None, features_name="x", seed=0)
    assert high - low < 0.1 * (alone.high - alone.low)
    value, low, high = kid_difference(real, made, farther)
    assert value == pytest.approx(kid(real, farther) - kid(real, made)) and low > 0
    assert kid_difference(real, farther, made)[0] == pytest.approx(-value)
    with pytest.raises(InputError, match="no pairs"):
        kid_difference(real, made, farther[:-1])


def gaussians(num, *, seed, shift=0.0, features=300):
    """Features with a few strong directions, as those of images have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, features)) + shift * (np.arange(features) == 0)) / np.sqrt(1 + np.arange(features))


def test_fid_64_is_fid_where_there_are_no_more_features():
    first, second = gaussians(100, seed=1, features=20), gaussians(100, seed=2, shift=1, features=20)
    assert fid_64(first, second) == pytest.approx(fid(first, second), rel=1e-9)


def test_fid_64_has_less_of_its_bias_and_the_extrapolation_hardly_any():
    """Two sets of one kind: the true distance is 0, and that of means one apart in one direction is 1."""
    same = [(gaussians(200, seed=seed), gaussians(200, seed=seed + 50)) for seed in range(3)]
    plain, few, none = (np.mean([measure(*pair) for pair in same]) for measure in (fid, fid_64, fid_extrapolated))
    assert plain > few > 2 * abs(none)
    apart = np.mean([fid_extrapolated(gaussians(200, seed=seed), gaussians(200, seed=seed + 50, shift=1)) for seed in range(3)])
    assert apart == pytest.approx(1, abs=0.25)


def test_fid_64_states_its_ratio_to_the_floor_and_sees_another_kind():
    sets = gaussians(120, seed=1), gaussians(120, seed=2)
    good, bad = (fid_64_score(sets[0], gaussians(120, seed=3, shift=shift), floor_sets=sets, features_name="x", seed=0) for shift in (0, 2))
    assert good.metric == "fid_64" and "times the floor; extrapolated" in good.note
    assert good.value < 2 * good.floor < bad.value and good.low <= good.value <= good.high
    with pytest.raises(InputError, match="too few"):
        fid_extrapolated(sets[0][:10], sets[1])
