"""What chance does to a metric: its 95 % interval, and its floor, the value between two sets of real images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError

Matrix = NDArray[np.float64]
FloorSets = tuple[NDArray[np.floating], NDArray[np.floating]]
"""two sets of real features (or images) without a common patient: one plays the real set, one the synthetic"""

Z_95 = 1.959963984540054
FLOOR_DRAWS = 4


def checked_features(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, at_least: int = 3,
                     ) -> tuple[Matrix, Matrix]:
    """Both sets as float64 [N, F] and [M, F]; raises `InputError` for other shapes, too few rows, NaN and infinity."""
    for name, features in (("real", real), ("synthetic", synthetic)):
        if features.ndim != 2 or features.shape[1] != real.shape[-1]:
            raise InputError(f"{name} features must be [N, {real.shape[-1]}], got {features.shape}")
        if len(features) < at_least:
            raise InputError(f"{len(features)} {name} images are too few", remedy=f"give at least {at_least}")
        if not np.isfinite(features).all():
            raise InputError(f"{name} features hold NaN or infinity")
    return real.astype(np.float64), synthetic.astype(np.float64)


def standard_error(influences: Matrix, patients: NDArray[np.str_] | None = None) -> float:
    """Standard error of a statistic from the influence [N] of each image (infinitesimal jackknife; Efron 1982, ch. 6).

    The influence is the derivative of the statistic by the image's weight, times N. With `patients` [N] the images of one
    person count as one draw, because they resemble one another.
    """
    draw = np.arange(len(influences)) if patients is None else np.unique(patients, return_inverse=True)[1]
    num_draws = int(draw.max()) + 1
    if num_draws < 2:
        raise InputError("an interval needs images of at least two patients")
    by_draw = np.bincount(draw, weights=influences - influences.mean())
    return float(np.sqrt(num_draws / (num_draws - 1) * np.sum(by_draw**2)) / len(influences))


def normal_interval(value: float, error: float, *, lowest: float = -np.inf, highest: float = np.inf,
                    ) -> tuple[float, float]:
    """95 % interval, value +- 1.96 errors, cut at the ends of the metric's range; always holds the value."""
    return max(value - Z_95 * error, min(lowest, value)), min(value + Z_95 * error, max(highest, value))


def real_floor(measure: Callable[[NDArray[np.floating], NDArray[np.floating]], Matrix | float],
               floor_sets: FloorSets | None, *, n_real: int, n_synthetic: int, seed: int) -> tuple[Matrix | None, str]:
    """`measure` between two real sets of the sizes that the score had, and a note where they were too small for that.

    Larger sets are drawn down at random, several times, and the mean is taken: FID, recall and coverage depend on the
    sizes, so only equal sizes compare. Without sets there is no floor and the note says so.
    """
    if floor_sets is None:
        return None, "no floor: no second set of real images"
    first, second = floor_sets
    sizes = min(n_real, len(first)), min(n_synthetic, len(second))
    rng = np.random.default_rng(seed)
    draws = 1 if sizes == (len(first), len(second)) else FLOOR_DRAWS
    values = [np.atleast_1d(measure(first[rng.permutation(len(first))[:sizes[0]]],
                                    second[rng.permutation(len(second))[:sizes[1]]])) for _ in range(draws)]
    short = sizes != (n_real, n_synthetic)
    return np.mean(values, axis=0), f"floor from {sizes[0]} and {sizes[1]} images: no more real images" if short else ""
