"""How well scores separate images, and how sure one can be of it: AUROC, DeLong, Holm, Wilson; in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from synthorax.errors import InputError, UsageError

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class AurocInterval:
    """An AUROC, its confidence interval and its standard error."""

    auc: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedAuroc:
    """Two scores of the same images compared; `difference` is `auc_b - auc_a`, so above 0 means that b is better."""

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    low: float
    high: float
    z: float
    p: float
    """two-sided"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bootstrap:
    """A number, its percentile interval over resampled patients, and the two-sided p-value of `value = 0`."""

    value: float
    low: float
    high: float
    p: float
    """meaningful for differences only; never below 2 / (num + 1)"""
    num: int


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an image with the finding scores above one without; ties count half.

    `labels` [N] in {0, 1}, `scores` [N], higher means more likely. Raises InputError if only one class is there.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positive, values = check_scores(labels, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    return float((rankdata(values)[positive].sum() - m * (m + 1) / 2) / (m * n))


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: precision at each threshold, weighted by the recall gained there; tied images share a threshold.

    Same input and errors as `auroc`. Without any skill its value is the prevalence, not 0.5.

    >>> round(auprc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    positive, values = check_scores(labels, scores)
    true_positives, false_positives = _counts_by_threshold(positive, values)
    precision = true_positives / (true_positives + false_positives)
    gained = np.diff(true_positives, prepend=0) / true_positives[-1]
    return float((precision * gained).sum())


def roc_points(labels: ArrayLike, scores: ArrayLike) -> tuple[Vector, Vector]:
    """False and true positive rate at every threshold, from (0, 0) to (1, 1); the area under the lines is `auroc`."""
    true_positives, false_positives = _counts_by_threshold(*check_scores(labels, scores))
    return (np.concatenate([[0.0], false_positives / false_positives[-1]]),
            np.concatenate([[0.0], true_positives / true_positives[-1]]))


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score from which on to call an image positive, so that sensitivity + specificity is largest (Youden 1950)."""
    positive, values = check_scores(labels, scores)
    fpr, tpr = roc_points(positive, values)
    return float(np.unique(values)[::-1][np.argmax((tpr - fpr)[1:])])


def delong(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, *, level: float = 0.95) -> PairedAuroc:
    """Compare the AUROC of two scores of the same images (DeLong et al. 1988; midranks as in Sun & Xu 2014, algorithm 2).

    Images are taken as independent: with several images of a patient the interval is too narrow, see `bootstrap.counted_bootstrap`.
    Scores that rank all images alike have standard error 0 and p = 1. Raises InputError for fewer than two images of a class.

    >>> delong([0, 0, 0, 1, 1, 1], [1, 2, 3, 2, 3, 4], [1, 2, 3, 4, 5, 6]).difference > 0
    True
    """
    areas, over_positives, over_negatives = _components(labels, scores_a, scores_b)
    difference = float(areas[1] - areas[0])
    error = math.sqrt(_variance_of_mean(over_positives[1] - over_positives[0])
                      + _variance_of_mean(over_negatives[1] - over_negatives[0]))
    z = difference / error if error > 0 else math.copysign(math.inf, difference) if difference else 0.0
    reach = float(norm.ppf(0.5 + level / 2)) * error
    return PairedAuroc(auc_a=float(areas[0]), auc_b=float(areas[1]), difference=difference, standard_error=error,
                       low=difference - reach, high=difference + reach, z=z, p=float(2 * norm.sf(abs(z))))


def delong_interval(labels: ArrayLike, scores: ArrayLike, *, level: float = 0.95) -> AurocInterval:
    """AUROC with DeLong's interval on the logit scale, which stays inside [0, 1] (Pepe 2003, section 5.2.4).

    Perfect separation has an estimated variance of 0; the interval is then Wilson's for as many successes as the smaller class
    has images, rather than a point. Raises InputError for fewer than two images of a class.
    """
    (area, *_), over_positives, over_negatives = _components(labels, scores)
    area = float(area)
    error = math.sqrt(_variance_of_mean(over_positives[0]) + _variance_of_mean(over_negatives[0]))
    if area in (0.0, 1.0):
        smaller = min(over_positives.shape[1], over_negatives.shape[1])
        low, high = wilson(round(area) * smaller, smaller, level=level)
    else:
        reach = float(norm.ppf(0.5 + level / 2)) * error / (area * (1 - area))
        low, high = float(expit(logit(area) - reach)), float(expit(logit(area) + reach))
    return AurocInterval(auc=area, low=min(low, area), high=max(high, area), standard_error=error)


def wilson(successes: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927).

    >>> [round(end, 4) for end in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= total or total == 0:
        raise UsageError(f"cannot give an interval for {successes} of {total}")
    z = float(norm.ppf(0.5 + level / 2))
    share, spread = successes / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - reach) if successes else 0.0, min(1.0, centre + reach) if successes < total else 1.0


def check_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Vector]:
    """Labels as booleans and scores as float64, or InputError if an area cannot be computed from them; for `bootstrap` too."""
    given, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if given.ndim != 1 or values.shape[:1] != given.shape:
        raise UsageError(f"labels {list(given.shape)} and scores {list(values.shape)} must have one row an image")
    if not np.isin(given, (0, 1)).all() or not np.isfinite(values).all():
        raise UsageError("labels must be 0 or 1 and scores finite; leave out the images whose label is not stated")
    positive = given.astype(bool)
    if positive.all() or not positive.any():
        raise InputError(f"both classes are needed: {int(positive.sum())} images with the finding, "
                         f"{int((~positive).sum())} without")
    return positive, values


def _counts_by_threshold(positive: NDArray[np.bool_], values: Vector) -> tuple[Vector, Vector]:
    """True and false positives at each distinct score, from the highest down."""
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.diff(values[order]) != 0, True)
    true_positives = np.cumsum(positive[order])[last_of_tie].astype(np.float64)
    return true_positives, np.flatnonzero(last_of_tie) + 1.0 - true_positives


def _components(labels: ArrayLike, *scores: ArrayLike) -> tuple[Vector, Vector, Vector]:
    """AUROC [K], and for each image its share of the other class that it beats: positives [K, m] and negatives [K, n]."""
    columns = [check_scores(labels, column) for column in scores]
    positive = columns[0][0]
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise InputError(f"DeLong's variance needs two images of each class: {m} images with the finding, {n} without")
    over_positives, over_negatives = np.empty((len(columns), m)), np.empty((len(columns), n))
    for row, (_, values) in enumerate(columns):
        overall = rankdata(values)  # midranks; Eq. 5 and 6 of Sun & Xu 2014
        over_positives[row] = (overall[positive] - rankdata(values[positive])) / n
        over_negatives[row] = 1 - (overall[~positive] - rankdata(values[~positive])) / m
    return over_positives.mean(axis=1), over_positives, over_negatives


def _variance_of_mean(values: Vector) -> float:
    return float(values.var(ddof=1) / len(values))
