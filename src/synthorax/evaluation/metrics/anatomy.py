"""Anatomy: are the lungs and hearts of synthetic images as large as those of real ones? Distances between distributions of sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.statistics.intervals import Matrix, normal_interval, real_floor, standard_error
from synthorax.judges.anatomy import MIN_ORGAN_AREA as MIN_ORGAN_AREA
from synthorax.judges.anatomy import measure_anatomy as measure_anatomy
from synthorax.types import Score

MEASURES = ("lung_area", "lung_width", "lung_height", "right_lung_share", "heart_width", "cardiothoracic_ratio")


def wasserstein(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Wasserstein-1 distance between two samples of one number, [N] and [M]: the area between their distribution functions.

    >>> wasserstein(np.array([0.0, 1.0]), np.array([0.5, 1.5]))
    0.5
    """
    return _wasserstein_and_influences(first.astype(np.float64), second.astype(np.float64))[0]


def _wasserstein_and_influences(first: Matrix, second: Matrix) -> tuple[float, Matrix, Matrix]:
    """The distance, and the influence of each image: the derivative of the area by its weight, [N] and [M]."""
    grid = np.sort(np.concatenate([first, second]))
    steps, at = np.diff(grid), grid[:-1]
    shares = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (first, second)]
    gap = shares[0] - shares[1]
    influences = []
    for values, share, sign in ((first, shares[0], 1.0), (second, shares[1], -1.0)):
        weight = sign * np.sign(gap) * steps
        after = np.concatenate([np.cumsum(weight[::-1])[::-1], [0.0]])  # from an image's own value on, it counts as below
        influences.append(after[np.searchsorted(at, values, side="left")] - float(weight @ share))
    return float(np.abs(gap) @ steps), influences[0], influences[1]


def distribution_score(metric: str, real: Matrix, synthetic: Matrix, *, floor_sets: tuple[Matrix, Matrix] | None, judge: str,
                       seed: int, group: str = "all", real_patients: NDArray[np.str_] | None = None) -> Score:
    """Wasserstein-1 distance of one number over images, its interval (infinitesimal jackknife) and floor; NaN is left out and counted."""
    known, made = np.isfinite(real), np.isfinite(synthetic)
    if min(known.sum(), made.sum()) < 3:
        raise InputError(f"{metric} was found on {int(known.sum())} real and {int(made.sum())} synthetic images, too few")
    value, by_real, by_synthetic = _wasserstein_and_influences(real[known], synthetic[made])
    owners = None if real_patients is None else real_patients[known]
    error = float(np.hypot(standard_error(by_real, owners), standard_error(by_synthetic)))
    low, high = normal_interval(value, error, lowest=0.0)
    sets = None if floor_sets is None else tuple(values[np.isfinite(values)] for values in floor_sets)
    usable = None if sets is None or min(map(len, sets)) < 3 else (sets[0], sets[1])
    floor, note = real_floor(wasserstein, usable, n_real=int(known.sum()), n_synthetic=int(made.sum()), seed=seed)
    middle = f"median {np.median(real[known]):.3g} on real and {np.median(synthetic[made]):.3g} on synthetic images"
    absent = int((~known).sum()), int((~made).sum())
    missing = f"not found on {absent[0]} real and {absent[1]} synthetic images" if any(absent) else ""
    return Score(metric=metric, value=value, low=low, high=high, n_real=int(known.sum()), n_synthetic=int(made.sum()),
                 group=group, features=judge, floor=None if floor is None else float(np.asarray(floor)[0]),
                 note="; ".join(filter(None, (middle, missing, note))))


def anatomy_scores(real: Mapping[str, Matrix], synthetic: Mapping[str, Matrix], second_real: Mapping[str, Matrix], *, judge: str,
                   seed: int, real_patients: NDArray[np.str_] | None = None) -> tuple[Score, ...]:
    """One score a measure that both sides have: the distance between its distributions."""
    return tuple(distribution_score(name, real[name], synthetic[name], floor_sets=(real[name], second_real[name]), judge=judge, seed=seed,
                                    real_patients=real_patients) for name in MEASURES if name in real and name in synthetic)
