"""Two more questions to a pair of scores: would chance alone do it (permutation), and how many patients would show it (power)?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.roc import check_scores, delong

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """How often chance alone moves two AUROCs as far apart as they are."""

    difference: float
    p: float
    """two-sided; never below 1 / (num + 1)"""
    num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """What a test of these sizes can see, and what size would see a gain that matters."""

    gain: float
    """the gain in AUROC that is to be seen"""
    power: float
    """how surely"""
    n_positive: int | None
    """test images with the finding that this would take, at the share of them that the test has now; None: both scores rank alike"""
    n_images: int | None
    n_patients: int | None
    power_now: float | None
    """how surely the test as it is would see that gain"""
    smallest_gain: float
    """gain that the test as it is sees as surely as `power` says"""


def paired_permutation(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, patients: ArrayLike, *, num: int = 10_000,
                       seed: int = 0) -> Permutation:
    """Exchange the two scores patient by patient, at random (Bandos, Rockette and Gur 2005), all images of a patient together.

    Scores are replaced by their ranks among all images first, so that two scales can be exchanged. The difference of the AUROCs
    after any exchange is then a signed sum of fixed contributions, one an image, so that all exchanges are one product.
    """
    positive, a = check_scores(labels, scores_a)
    _, b = check_scores(labels, scores_b)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if owner.shape != positive.shape:
        raise UsageError(f"{len(owner)} patients for {len(positive)} images")
    shares = np.bincount(owner, weights=_contributions(positive, rankdata(a), rankdata(b)), minlength=len(names))
    difference, rng = float(shares.sum()), np.random.default_rng(seed)
    reached, chunk = 0, max(1, 2_000_000 // len(names))
    for start in range(0, num, chunk):
        signs = rng.integers(0, 2, size=(min(chunk, num - start), len(names)), dtype=np.int8) * 2.0 - 1.0
        reached += int((np.abs(signs @ shares) >= abs(difference) - 1e-12).sum())
    return Permutation(difference=-difference, p=(reached + 1) / (num + 1), num=num)


def power_of(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, patients: ArrayLike, *, gain: float = 0.02, power: float = 0.8,
             level: float = 0.05, design_effect: float = 1.0) -> Power:
    """From DeLong's variance of the difference, which falls as images are added in the same mix.

    `design_effect` is how many times larger the variance is because a patient's images are not independent.

    >>> rng = np.random.default_rng(0); labels = np.arange(400) < 80
    >>> a, b = labels + rng.normal(size=(2, 400))
    >>> power_of(labels, a, b, range(400)).n_positive > 80
    True
    """
    if gain <= 0 or not 0.5 <= power < 1 or not 0 < level < 1:
        raise UsageError(f"cannot plan for a gain of {gain} with power {power} at level {level}")
    positive = np.asarray(labels).astype(bool)
    error = delong(labels, scores_a, scores_b).standard_error * math.sqrt(design_effect)
    reach = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    if error == 0:
        return Power(gain=gain, power=power, n_positive=None, n_images=None, n_patients=None, power_now=None, smallest_gain=0.0)
    times = (error * reach / gain) ** 2
    edge = float(norm.ppf(1 - level / 2))
    return Power(gain=gain, power=power, n_positive=math.ceil(times * int(positive.sum())), n_images=math.ceil(times * len(positive)),
                 n_patients=math.ceil(times * len(np.unique(np.asarray(patients)))),
                 power_now=float(norm.sf(edge - gain / error) + norm.cdf(-edge - gain / error)), smallest_gain=reach * error)


def _contributions(positive: NDArray[np.bool_], a: Vector, b: Vector) -> Vector:
    """What each image adds to AUROC(a) - AUROC(b), [N]; exchanging an image's scores turns the sign of its part."""
    if positive.sum() < 2 or (~positive).sum() < 2:
        raise InputError("a paired test needs two images of each class")
    having, lacking = (a[positive], b[positive]), (a[~positive], b[~positive])
    above = {(i, j): _beaten(having[i], lacking[j]) for i in (0, 1) for j in (0, 1)}
    below = {(i, j): _beaten(-lacking[j], -having[i]) for i in (0, 1) for j in (0, 1)}
    parts = np.empty(len(positive))
    parts[positive] = above[0, 0] - above[1, 1] + above[0, 1] - above[1, 0]
    parts[~positive] = below[0, 0] - below[1, 1] - below[0, 1] + below[1, 0]
    return parts / (2 * len(having[0]) * len(lacking[0]))


def _beaten(values: Vector, others: Vector) -> Vector:
    """How many of `others` each value lies above; ties count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")) / 2
