"""Whether probabilities mean what they say, and what a classifier finds once a threshold is set; for each draw of a bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.statistics.bootstrap import CountedStatistic

Vector = NDArray[np.float64]
BINS = 10


def counted_brier(positive: NDArray[np.bool_], probabilities: Vector, counts: Vector) -> Vector:
    """Mean squared distance between probability and truth (Brier 1950), [B]; 0 is best."""
    return np.asarray(counts @ (probabilities - positive) ** 2 / counts.sum(axis=1))


def calibration_error(edges: Vector) -> CountedStatistic:
    """Expected calibration error (Naeini et al. 2015) over the bins between `edges`: |probability - truth|, means over a bin's images."""

    def statistic(positive: NDArray[np.bool_], probabilities: Vector, counts: Vector) -> Vector:
        member = np.searchsorted(edges, probabilities, side="right")[:, None] == np.arange(len(edges) + 1)  # [N, bins]
        off = counts @ (member * (probabilities - positive)[:, None])  # [B, bins]: a bin's difference, times its images
        return np.asarray(np.abs(off).sum(axis=1) / counts.sum(axis=1))

    return statistic


def even_bins(probabilities: Vector) -> Vector:
    """Inner edges that put as many images into each of ten bins."""
    return np.unique(np.quantile(probabilities, np.arange(1, BINS) / BINS))


def counted_f1(positive: NDArray[np.bool_], called: Vector, counts: Vector) -> Vector:
    """F1 of images called positive (1) or not (0), [N] -> [B]: harmonic mean of precision and sensitivity."""
    found = counts @ (called * positive)
    return np.asarray(2 * found / np.maximum(counts @ (called + positive), 1e-300))


def counted_sensitivity(positive: NDArray[np.bool_], called: Vector, counts: Vector) -> Vector:
    """Part of the images with the finding that is called positive, [B]."""
    return np.asarray(counts @ (called * positive) / (counts @ positive.astype(np.float64)))


def counted_specificity(positive: NDArray[np.bool_], called: Vector, counts: Vector) -> Vector:
    """Part of the images without the finding that is not called positive, [B]."""
    return np.asarray(counts @ ((1 - called) * ~positive) / (counts @ (~positive).astype(np.float64)))
