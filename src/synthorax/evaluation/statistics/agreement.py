"""Readers and images, both drawn from many: how far readers agree, and intervals that allow for other readers and other images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.roc import wilson

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def fleiss_kappa(counts: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Agreement of several readers on categories beyond chance (Fleiss 1971), with an interval over images drawn with replacement.

    `counts` [images, categories]: how many readers put an image there. Images may differ in their number of readers; those of one reader
    are left out. Chance is the square of each category's share of the readings. Raises InputError where kappa does not exist: no image with
    two readers, or one category only.

    >>> round(fleiss_kappa([[3, 0], [0, 3], [2, 1], [1, 2]]).value, 4)
    0.3333
    """
    given = np.asarray(counts, dtype=np.float64)
    given = given[given.sum(axis=1) >= 2]
    readers = given.sum(axis=1)
    agreeing = (given * (given - 1)).sum(axis=1) / np.maximum(readers * (readers - 1), 1)  # pairs of readers that agree, of all pairs

    def kappa(times: Vector) -> Vector:
        shares = times @ given
        chance = ((shares / shares.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
        observed = times @ agreeing / times.sum(axis=1)
        return np.where(chance < 1 - 1e-12, (observed - chance) / np.maximum(1 - chance, 1e-12), np.nan)

    return _over_images(kappa, len(given), num=num, seed=seed, what="Fleiss' kappa")


def krippendorff_alpha(ratings: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Agreement on a scale beyond chance, disagreements weighted by their square (Krippendorff 2011), with an interval over images.

    `ratings` [images, readers], NaN where a reader did not rate; images with one rating are left out. 1 is agreement, 0 what chance gives.
    Raises InputError where alpha does not exist: no image with two ratings, or one rating for all.

    >>> krippendorff_alpha([[1, 1], [2, 2], [5, 5]]).value
    1.0
    """
    given = np.asarray(ratings, dtype=np.float64)
    given = given[(~np.isnan(given)).sum(axis=1) >= 2]
    of_image = (~np.isnan(given)).sum(axis=1).astype(np.float64)
    total, squares = np.nansum(given, axis=1), np.nansum(given**2, axis=1)
    # The squared differences over all ordered pairs of an image's n ratings sum to 2 (n Σx² - (Σx)²).
    within = 2 * (of_image * squares - total**2) / np.maximum(of_image - 1, 1)

    def alpha(times: Vector) -> Vector:
        n, first, second = times @ of_image, times @ total, times @ squares
        expected = 2 * (n * second - first**2) / np.maximum(n * (n - 1), 1)
        return np.where(expected > 1e-9, 1 - times @ within / np.maximum(n, 1) / np.maximum(expected, 1e-9), np.nan)

    return _over_images(alpha, len(given), num=num, seed=seed, what="Krippendorff's alpha")


def share_over_readers_and_images(right: ArrayLike, readers: ArrayLike, images: ArrayLike) -> Interval:
    """Share of readings that are right, [N] in {0, 1}, with an interval for other readers and other images of their kind.

    If all or none are right the variance is 0; the interval is then Wilson's for as many readings as there are images.
    """
    values = np.asarray(right, dtype=np.float64)
    share = float(values.mean())
    if share in (0.0, 1.0):
        distinct = len(np.unique(np.asarray(images)))
        low, high = wilson(round(share) * distinct, distinct)
        return Interval(value=share, low=low, high=high)
    reach = two_way_reach((values - share) / len(values), readers, images)
    return Interval(value=share, low=max(0.0, share - reach), high=min(1.0, share + reach))


def balanced_share(right: ArrayLike, kind: ArrayLike, readers: ArrayLike, images: ArrayLike) -> Interval:
    """Mean of the shares that are right among both kinds of images, [N] in {0, 1}: chance gives 0.5 whatever the mix of kinds."""
    values, second = np.asarray(right, dtype=np.float64), np.asarray(kind).astype(bool)
    names, seen = np.asarray(readers), np.asarray(images)
    parts = [share_over_readers_and_images(values[chosen], names[chosen], seen[chosen]) for chosen in (~second, second)]
    value = (parts[0].value + parts[1].value) / 2
    influence = np.where(second, (values - parts[1].value) / second.sum(), (values - parts[0].value) / (~second).sum()) / 2
    if not influence.any():
        return Interval(value=value, low=(parts[0].low + parts[1].low) / 2, high=(parts[0].high + parts[1].high) / 2)
    reach = two_way_reach(influence, names, seen)
    return Interval(value=value, low=max(0.0, value - reach), high=min(1.0, value + reach))


def mean_change(change: ArrayLike, readers: ArrayLike, images: ArrayLike) -> Interval:
    """Mean of the changes of paired readings, [N] in {-1, 0, 1}; without any change the interval is what Wilson's allows for none."""
    values = np.asarray(change, dtype=np.float64)
    mean = float(values.mean())
    if (values == mean).all():
        reach = wilson(0, len(np.unique(np.asarray(images))))[1]
    else:
        reach = two_way_reach((values - mean) / len(values), readers, images)
    return Interval(value=mean, low=max(-1.0, mean - reach), high=min(1.0, mean + reach))


def two_way_reach(influence: Vector, readers: ArrayLike, images: ArrayLike, *, level: float = 0.95) -> float:
    """Half the width of an interval for an estimate whose readings share readers and share images.

    Cameron, Gelbach and Miller (2011, section 2.2): the variance clustered by reader, plus that by image, less that by both, each with its
    factor G / (G - 1), and here never less than one of the first two. Student's t has the degrees of freedom of Satterthwaite (1946), which
    few readers make few where they differ. `influence` [N] is each reading's part in the estimate's error, (value - mean) / N for a mean.
    With one reader it speaks of that reader and other images.
    """
    codes = [np.unique(np.asarray(names), return_inverse=True)[1] for names in (readers, images)]
    groups = [int(code.max()) + 1 for code in codes]
    if max(groups) < 2:
        raise InputError("one reading has no interval")
    parts = [(_clustered(influence, code), size) for code, size in zip(codes, groups, strict=True) if size > 1]
    each = _clustered(influence, codes[0] * groups[1] + codes[1])
    variance = max(*(part for part, _ in parts), parts[0][0] + parts[1][0] - each if len(parts) == 2 else 0.0)
    if variance < 1e-12 * each:  # readers contradict one another exactly, so that neither readers nor images differ in their means
        variance, parts = each, [(each, len(influence))]
    freedom = variance**2 / sum(part**2 / (size - 1) for part, size in parts)
    return float(student.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)


def mcnemar(before: ArrayLike, after: ArrayLike) -> tuple[int, int, float]:
    """Pairs that only the first, and only the second got right, and the exact two-sided p of as uneven a split (McNemar 1947).

    >>> mcnemar([1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1])
    (0, 5, 0.0625)
    """
    first, second = np.asarray(before).astype(bool), np.asarray(after).astype(bool)
    if first.shape != second.shape:
        raise UsageError(f"{len(first)} readings cannot be paired with {len(second)}")
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    return lost, won, float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _clustered(influence: Vector, code: NDArray[np.intp]) -> float:
    groups = np.unique(code, return_inverse=True)[1]
    sums = np.bincount(groups, weights=influence)
    return float((sums**2).sum()) * len(sums) / (len(sums) - 1)


def _over_images(statistic: Callable[[Vector], Vector], images: int, *, num: int, seed: int, what: str) -> Interval:
    """Percentile interval over images drawn with replacement; draws in which the statistic does not exist say nothing."""
    if images < 2:
        raise InputError(f"{what} needs two images that two readers read")
    value = float(statistic(np.ones((1, images)))[0])
    if math.isnan(value):
        raise InputError(f"{what} does not exist where all readings are the same")
    times = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=num).astype(np.float64)
    drawn = statistic(times)
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (value, value)
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
