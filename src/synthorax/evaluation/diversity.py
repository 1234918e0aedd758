"""Whether synthetic films are as varied as real ones: precision, recall, density, coverage, and MS-SSIM of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.neighbourhoods import Four, four
from synthorax.evaluation.sampling import FloorSets, Matrix, checked_features, normal_interval, real_floor, standard_error
from synthorax.evaluation.structure import Pixels, ms_ssim, to_intensity
from synthorax.types import Score

NeighbourMetric = Literal["precision", "recall", "density", "coverage"]
JACKKNIFE_GROUPS = 20
MAX_PAIRED_FILMS = 250
"""of films up to 128 px; of larger ones half, since their cost grows with their area"""
PAIRS_PER_FILM = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Four answers from nearest neighbours in feature space. A film's ball reaches to the k-th neighbour in its own set."""

    precision: float
    """share of synthetic films inside a ball of a real one: are they plausible? [0, 1]"""
    recall: float
    """share of real films inside a ball of a synthetic one: is all of the real set made? [0, 1]"""
    density: float
    """mean number of real balls around a synthetic film, over k: precision that outliers cannot lift; real films have 1"""
    coverage: float
    """share of real films with a synthetic film in their ball: recall that outliers cannot lift [0, 1]"""


def neighbours(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkäänniemi et al. 2019, Eq. 1-2), density and coverage (Naeem et al. 2020, Eq. 3-4).

    >>> neighbours(np.eye(9), np.eye(9)).coverage
    1.0
    """
    values = four(*checked_features(real, synthetic, at_least=k + 1), k=k).whole
    return Neighbours(precision=float(values[0]), recall=float(values[1]), density=float(values[2]),
                      coverage=float(values[3]))


def neighbour_scores(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
                     features_name: str, seed: int, group: str = "all", k: int = 5,
                     real_patients: NDArray[np.str_] | None = None) -> tuple[Score, ...]:
    """The four as scores. Interval: delete-a-group jackknife over both sets, never narrower than Wilson's for shares.

    Wilson alone would hold the other set fixed; on real films it was up to 2.6 times too narrow.
    """
    rng = np.random.default_rng(seed)
    parts = _left_out_together(rng, len(real), real_patients), _left_out_together(rng, len(synthetic), None)
    measured = four(*checked_features(real, synthetic, at_least=k + 1), k=k, real_part=parts[0], synthetic_part=parts[1])
    values, errors = measured.whole, _jackknife_errors(measured)
    floors, note = real_floor(lambda a, b: four(*checked_features(a, b, at_least=k + 1), k=k).whole, floor_sets,
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
        scores.append(Score(metric=metric, value=value, low=float(low), high=float(high), better="higher",
                            n_real=len(real), n_synthetic=len(synthetic), group=group, features=features_name,
                            floor=None if floors is None else float(floors[column]), note=note))
    return tuple(scores)


def _left_out_together(rng: np.random.Generator, num_films: int, patients: NDArray[np.str_] | None) -> NDArray[np.intp]:
    """The part of each film, [N]; a patient's films leave together."""
    unit = np.arange(num_films) if patients is None else np.unique(patients, return_inverse=True)[1]
    num_units = int(unit.max()) + 1
    return np.asarray((rng.permutation(num_units) % min(JACKKNIFE_GROUPS, num_units, max(1, num_films // 2)))[unit], dtype=np.intp)


def _jackknife_errors(measured: Four) -> Matrix:
    """Standard errors [4] from leaving out one part at a time, on each side."""
    variance = np.zeros(4)
    for replicates in (measured.without_real, measured.without_synthetic):
        if len(replicates) > 1:
            variance += (len(replicates) - 1) * replicates.var(axis=0)
    return np.sqrt(variance)


def ms_ssim_scores(real: Pixels, synthetic: Pixels, *, floor_sets: tuple[Pixels, Pixels] | None, seed: int,
                   group: str = "all") -> tuple[Score, ...]:
    """MS-SSIM of random pairs of films [N, S, S]: within synthetic, within real, across, and the gap of the first two.

    Odena et al. 2017 use the first to see collapse. Its aim is the value of real films, its floor: above it films are
    too alike, below it they may be noise; so the gap is what to make small.
    """
    rng = np.random.default_rng(seed)
    within_synthetic, error_synthetic = _pair_similarity(synthetic, synthetic, rng)
    within_real, error_real = _pair_similarity(real, real, rng)
    across, error_across = _pair_similarity(real, synthetic, rng)
    gap, error_gap = abs(within_synthetic - within_real), float(np.hypot(error_synthetic, error_real))
    floor_gap = floor_across = None
    note = "no floor: no second set of real films"
    if floor_sets is not None:
        first, second = floor_sets
        floor_gap = abs(_pair_similarity(first, first, rng)[0] - _pair_similarity(second, second, rng)[0])
        floor_across = _pair_similarity(first, second, rng)[0]
        note = ""

    def score(metric: str, value: float, error: float, better: Literal["higher", "lower"], floor: float | None,
              note: str, n_synthetic: int = len(synthetic)) -> Score:
        low, high = normal_interval(value, error, lowest=0.0, highest=1.0)
        return Score(metric=metric, value=value, low=low, high=high, better=better, n_real=len(real),
                     n_synthetic=n_synthetic, group=group, floor=floor, note=note)

    return (score("ms_ssim_gap", gap, error_gap, "lower", floor_gap, note),
            score("ms_ssim_within_synthetic", within_synthetic, error_synthetic, "lower", within_real,
                  "the aim is the floor: above it films are too alike, below it they may be noise"),
            score("ms_ssim_within_real", within_real, error_real, "lower", None, "reference", 0),
            score("ms_ssim_across", across, error_across, "higher", floor_across, note))


def _pair_similarity(first: Pixels, second: Pixels, rng: np.random.Generator) -> tuple[float, float]:
    """Mean MS-SSIM and its standard error over random pairs; within one set (`first is second`) no film meets itself.

    Films are shuffled and film i meets the next few, so every film is in as many pairs as any other and the pairs that
    share a film are known: the influence of film i is what its own pairs say.
    """
    if min(len(first), len(second)) < 3:
        raise InputError("MS-SSIM of pairs needs at least 3 films a set")
    within = first is second
    most = MAX_PAIRED_FILMS if first.shape[-1] <= 128 else MAX_PAIRED_FILMS // 2
    a = to_intensity(first[rng.permutation(len(first))[:most]])
    b = a if within else to_intensity(second[rng.permutation(len(second))[:most]])
    num = min(len(a), len(b))
    a, b = a[:num], b[:num]
    shifts = range(1, 1 + min(PAIRS_PER_FILM, (num - 1) // 2))
    pairs = np.stack([ms_ssim(a, b.roll(-shift, dims=0)).numpy() for shift in shifts])  # [shifts, num]
    as_first = pairs.mean(axis=0)
    as_second = np.mean([np.roll(row, shift) for row, shift in zip(pairs, shifts, strict=True)], axis=0)
    if within:
        return float(pairs.mean()), standard_error(as_first + as_second)
    return float(pairs.mean()), float(np.hypot(standard_error(as_first), standard_error(as_second)))
