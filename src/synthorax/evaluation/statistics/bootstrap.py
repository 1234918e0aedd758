"""Patients drawn with replacement, all draws at once: each draw is how often every image counts, and statistics take these counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.roc import Bootstrap, check_scores

Vector = NDArray[np.float64]
CountedStatistic = Callable[[NDArray[np.bool_], Vector, Vector], Vector]
"""Takes labels [N], scores [N, ...] and counts [B, N], gives a number for each of the B draws."""
CHUNK = 1_000_000
"""counts held at a time"""


def counted_bootstrap(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, statistic: CountedStatistic, *, num: int = 2000,
                      seed: int = 0, over_runs: bool = False, corrected: bool = False, level: float = 0.95,
                      groups: Sequence[NDArray[np.bool_]] = ()) -> Bootstrap:
    """Interval of `statistic(labels, scores, counts)` over patients drawn with replacement, all images of a patient together.

    `scores` [N, ...]: put two scores side by side, [N, 2], to bootstrap their difference in pairs. With `over_runs` the last axis is
    repeated trainings: they are drawn too and `statistic` gets their mean, so the interval also holds the luck of training. The draws are
    then shifted to have the value as their median: a mean in which one training counts twice ranks images a little worse than one over
    different trainings. Draws with one class only, in any of the `groups` [N] if these are given, are drawn anew. Raises InputError if
    the images, or those of a group, have one class, or are of one patient only.
    `corrected` is for distances, which a finite sample makes too large: what drawing anew adds to the value is taken from value and draws
    (Efron and Tibshirani 1993, section 10.3); never below 0.

    >>> counted_bootstrap([0, 1] * 20, [0.2, 0.8] * 20, range(40), counted_auroc, num=50).low
    1.0
    """
    values = np.asarray(scores, dtype=np.float64)
    positive, _ = check_scores(labels, values)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if owner.shape != positive.shape:
        raise UsageError(f"{len(owner)} patients for {len(positive)} images")
    if len(names) < 2:
        raise InputError("all images are of one patient; an interval over patients needs several")
    cells = [group & side for group in (groups or (np.ones(len(positive), dtype=bool),)) for side in (positive, ~positive)]
    if not all(cell.any() for cell in cells):
        raise InputError("each group needs images with the finding and without it")
    rng = np.random.default_rng(seed)
    drawn, chunk = np.empty(num), max(1, CHUNK // len(positive))
    for start in range(0, num, chunk):
        size = min(chunk, num - start)
        counts = _counts(owner, len(names), cells, size, rng)
        if over_runs:
            runs = np.sort(rng.integers(values.shape[-1], size=(size, values.shape[-1])), axis=1)
            kinds, which = np.unique(runs, axis=0, return_inverse=True)  # which training comes first does not matter
            for kind, chosen in enumerate(kinds):
                rows = np.flatnonzero(which.ravel() == kind)
                drawn[start + rows] = statistic(positive, values[..., chosen].mean(axis=-1), counts[rows])
        else:
            drawn[start : start + size] = statistic(positive, values, counts)
    value = float(statistic(positive, values.mean(axis=-1) if over_runs else values, np.ones((1, len(positive))))[0])
    if over_runs or corrected:
        added = float(np.median(drawn)) - value
        drawn -= 2 * added if corrected else added
    if corrected:
        value, drawn = max(0.0, value - added), np.maximum(0.0, drawn)
    # Expanded percentiles (Hesterberg 2015, section 4.4): draws of n patients vary by a factor (n - 1) / n too little, and n is small.
    fewer = min(len(np.unique(owner[cell])) for cell in cells)
    stretch, freedom = math.sqrt(fewer / (fewer - 1)) if fewer > 1 else math.inf, max(fewer - 1, 1)
    outside = float(norm.cdf(stretch * student.ppf(0.5 - level / 2, freedom)))
    low, high = np.quantile(drawn, [outside, 1 - outside])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = 2 * float(student.cdf(norm.ppf(min(0.5, (tail + 1) / (num + 1))) / stretch, freedom))
    return Bootstrap(value=value, low=float(low), high=float(high), p=min(1.0, p), num=num)


def counted_auroc(positive: NDArray[np.bool_], scores: Vector, counts: Vector) -> Vector:
    """AUROC of each draw, [B]; ties count half."""
    won, pairs = counted_pairs(positive, scores, counts)
    return np.asarray(won / pairs)


def counted_pairs(positive: NDArray[np.bool_], scores: Vector, counts: Vector) -> tuple[Vector, Vector]:
    """Pairs of an image with and one without the finding in each draw: those that the first one wins, and all; [B] each."""
    having, lacking = _by_score(positive, scores, counts)
    below = np.cumsum(lacking, axis=1)
    won = np.einsum("bg,bg->b", having, below) - np.einsum("bg,bg->b", having, lacking) / 2
    return won, np.asarray(having.sum(axis=1) * below[:, -1])


def counted_gain(positive: NDArray[np.bool_], scores: Vector, counts: Vector) -> Vector:
    """AUROC of the second of two scores [N, 2] minus that of the first, in each draw."""
    return counted_auroc(positive, scores[:, 1], counts) - counted_auroc(positive, scores[:, 0], counts)


def counted_auprc(positive: NDArray[np.bool_], scores: Vector, counts: Vector) -> Vector:
    """Average precision of each draw, [B]; tied images share a threshold."""
    having, lacking = (part[:, ::-1] for part in _by_score(positive, scores, counts))
    found, alarms = np.cumsum(having, axis=1), np.cumsum(lacking, axis=1)
    precision = found / np.maximum(found + alarms, 1e-300)
    return np.asarray((precision * having).sum(axis=1) / found[:, -1])


def _counts(owner: NDArray[np.intp], num_patients: int, cells: Sequence[NDArray[np.bool_]], size: int, rng: np.random.Generator) -> Vector:
    """How often each image counts in each draw, [size, N]; draws that leave one of the cells [N] empty are drawn anew."""
    counts = np.empty((size, len(owner)))
    open_rows = np.arange(size)
    while len(open_rows):
        drawn_patients = rng.integers(num_patients, size=(len(open_rows), num_patients)) + num_patients * np.arange(len(open_rows))[:, None]
        times = np.bincount(drawn_patients.ravel(), minlength=num_patients * len(open_rows)).reshape(len(open_rows), num_patients)
        counts[open_rows] = times[:, owner]
        drawn = counts[open_rows]
        open_rows = open_rows[np.any([drawn[:, cell].sum(axis=1) == 0 for cell in cells], axis=0)]
    return counts


def _by_score(positive: NDArray[np.bool_], scores: Vector, counts: Vector) -> tuple[Vector, Vector]:
    """Images with and without the finding at each distinct score, from the lowest up, in each draw: twice [B, G]."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    sorted_counts, shown = counts[:, order], positive[order]
    having = sorted_counts * shown
    if len(starts) == len(order):  # no ties
        return having, sorted_counts - having
    return np.add.reduceat(having, starts, axis=1), np.add.reduceat(sorted_counts - having, starts, axis=1)
