"""Whether synthetic images are as plausible and as varied as real ones, by nearest neighbours: precision, recall, density and coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from synthorax.evaluation.metrics.prdc import PRDC, prdc
from synthorax.evaluation.statistics.intervals import FloorSets, Matrix, checked_features, normal_interval, real_floor
from synthorax.types import Score

NeighbourMetric = Literal["precision", "recall", "density", "coverage"]
JACKKNIFE_GROUPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Four answers from nearest neighbours in feature space. An image's ball reaches to the k-th neighbour in its own set."""

    precision: float
    """share of synthetic images inside a ball of a real one: are they plausible? [0, 1]"""
    recall: float
    """share of real images inside a ball of a synthetic one: is all of the real set made? [0, 1]"""
    density: float
    """mean number of real balls around a synthetic image, over k: precision that outliers cannot lift; real images have 1"""
    coverage: float
    """share of real images with a synthetic image in their ball: recall that outliers cannot lift [0, 1]"""


def neighbours(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkäänniemi et al. 2019, Eq. 1-2), density and coverage (Naeem et al. 2020, Eq. 3-4).

    >>> neighbours(np.eye(9), np.eye(9)).coverage
    1.0
    """
    values = prdc(*checked_features(real, synthetic, at_least=k + 1), k=k).whole
    return Neighbours(precision=float(values[0]), recall=float(values[1]), density=float(values[2]),
                      coverage=float(values[3]))


def neighbour_scores(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
                     features_name: str, seed: int, group: str = "all", k: int = 5,
                     real_patients: NDArray[np.str_] | None = None) -> tuple[Score, ...]:
    """The four as scores. Interval: delete-a-group jackknife over both sets, never narrower than Wilson's for shares.

    Wilson alone would hold the other set fixed; on real images it was up to 2.6 times too narrow.
    """
    rng = np.random.default_rng(seed)
    parts = _left_out_together(rng, len(real), real_patients), _left_out_together(rng, len(synthetic), None)
    measured = prdc(*checked_features(real, synthetic, at_least=k + 1), k=k, real_part=parts[0], synthetic_part=parts[1])
    values, errors = measured.whole, _jackknife_errors(measured)
    floors, note = real_floor(lambda a, b: prdc(*checked_features(a, b, at_least=k + 1), k=k).whole, floor_sets,
                              n_real=len(real), n_synthetic=len(synthetic), seed=seed)
    num_judged = {"precision": len(synthetic), "recall": len(real), "coverage": len(real)}
    scores = []
    for column, metric in enumerate(get_args(NeighbourMetric)):
        value = float(values[column])
        low, high = normal_interval(value, float(errors[column]), lowest=0.0,
                                    highest=1.0 if metric in num_judged else np.inf)
        if metric in num_judged:
            count = num_judged[metric]
            share = scipy.stats.binomtest(round(value * count), count).proportion_ci(method="wilson")
            low, high = min(low, share.low, value), max(high, share.high, value)
        scores.append(Score(metric=metric, value=value, low=float(low), high=float(high), n_real=len(real), n_synthetic=len(synthetic),
                            group=group, features=features_name,
                            floor=None if floors is None else float(floors[column]), note=note))
    return tuple(scores)


def _left_out_together(rng: np.random.Generator, num_images: int, patients: NDArray[np.str_] | None) -> NDArray[np.intp]:
    """The part of each image, [N]; a patient's images leave together."""
    unit = np.arange(num_images) if patients is None else np.unique(patients, return_inverse=True)[1]
    num_units = int(unit.max()) + 1
    return np.asarray((rng.permutation(num_units) % min(JACKKNIFE_GROUPS, num_units, max(1, num_images // 2)))[unit], dtype=np.intp)


def _jackknife_errors(measured: PRDC) -> Matrix:
    """Standard errors [4] from leaving out one part at a time, on each side."""
    variance = np.zeros(4)
    for replicates in (measured.without_real, measured.without_synthetic):
        if len(replicates) > 1:
            variance += (len(replicates) - 1) * replicates.var(axis=0)
    return np.sqrt(variance)
