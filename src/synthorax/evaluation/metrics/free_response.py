"""Free-response analysis: a detector marks places, and a mark that hits a lesion is right. FROC, sensitivity, JAFROC, comparison.

Bunch et al. 1978 (free-response ROC); Chakraborty and Berbaum 2004 (JAFROC); the bootstrap draws patients with all of their images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.bootstrap import counted_bootstrap
from synthorax.evaluation.statistics.roc import Bootstrap
from synthorax.judges.marks import LesionBoxes, Marks
from synthorax.types import Score

Vector = NDArray[np.float64]
USUAL_RATE = 0.5
"""false marks an image at which sensitivity is stated"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeResponse:
    """What a detector's marks amount to: the best mark on each lesion, and all marks that hit nothing."""

    lesion_image: NDArray[np.intp]
    """row of each lesion's image, [K]"""
    lesion_score: Vector
    """score of the best mark that hits it; minus infinity where none does, [K]"""
    false_image: NDArray[np.intp]
    """row of the image of each false mark, [F]"""
    false_score: Vector
    """[F]"""
    num_images: int
    criterion: str
    """in words: when a mark counts as a hit"""

    def has_lesion(self) -> NDArray[np.bool_]:
        """Which images have one, [N]."""
        return np.asarray(np.bincount(self.lesion_image, minlength=self.num_images) > 0)


def free_response(marks: Marks, lesions: LesionBoxes, *, radius_px: float | None = None, outlines: NDArray[np.bool_] | None = None,
                  ) -> FreeResponse:
    """Which marks hit a lesion, by one of three criteria, and which hit none.

    Inside the lesion's box (the usual one); within `radius_px` of the middle of the box; or inside `outlines` [K, S, S], one a lesion. A
    second mark on a lesion is neither a hit nor false, and a mark on two lesions finds both.

    >>> lesions = LesionBoxes(image=np.array([0]), x=np.array([8.0]), y=np.array([8.0]), width=np.array([4.0]), height=np.array([4.0]),
    ...                       outlined=np.array([True]))
    >>> found = free_response(Marks.of_image([(9, 9, 0.8), (20, 3, 0.5)]), lesions)
    >>> found.lesion_score.tolist(), found.false_score.tolist()
    ([0.8], [0.5])
    """
    if radius_px is not None and outlines is not None:
        raise UsageError("a hit is stated by a radius or by outlines, not by both")
    if len(lesions.image) and not 0 <= lesions.image.max() < marks.num_images:
        raise UsageError(f"a lesion is on image {int(lesions.image.max())}, and {marks.num_images} images were searched")
    on = marks.image[:, None] == lesions.image[None]  # [marks, lesions]
    across, down = np.abs(marks.x[:, None] - lesions.x[None]), np.abs(marks.y[:, None] - lesions.y[None])
    if outlines is not None:
        columns, rows = (np.clip(np.floor(part).astype(int), 0, outlines.shape[-1] - 1) for part in (marks.x, marks.y))
        on &= outlines[:, rows, columns].T
        criterion = "the mark lies inside the outline"
    elif radius_px is not None:
        on &= np.hypot(across, down) <= radius_px
        criterion = f"the mark lies within {radius_px:g} px of the middle of the lesion"
    else:
        on &= (across <= lesions.width[None] / 2) & (down <= lesions.height[None] / 2)
        criterion = "the mark lies inside the box of the lesion"
    best = np.where(on, marks.score[:, None], -np.inf).max(axis=0, initial=-np.inf)
    false = ~on.any(axis=1)
    return FreeResponse(lesion_image=lesions.image, lesion_score=best, false_image=marks.image[false], false_score=marks.score[false],
                        num_images=marks.num_images, criterion=criterion)


def froc_points(found: FreeResponse) -> tuple[Vector, Vector]:
    """False marks an image and sensitivity at every threshold, from none up."""
    thresholds = np.unique(np.concatenate([found.lesion_score[np.isfinite(found.lesion_score)], found.false_score]))[::-1]
    false = np.array([(found.false_score >= threshold).sum() for threshold in thresholds]) / found.num_images
    share = np.array([(found.lesion_score >= threshold).mean() for threshold in thresholds])
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], share])


def sensitivity_at(found: FreeResponse, *, rate: float = USUAL_RATE) -> float:
    """Share of the lesions found where false marks are at most `rate` an image; a lesion's mark must exceed the first one too many.

    False marks are counted on all images, with lesions or without.
    """
    return float(_sensitivity(found, np.ones((1, found.num_images)), rate=rate)[0])


def found_lesions(found: FreeResponse, *, rate: float = USUAL_RATE) -> NDArray[np.bool_]:
    """Which lesions are found at that rate of false marks, [K]."""
    return np.asarray(found.lesion_score > _thresholds(found, np.ones((1, found.num_images)), rate=rate)[0])


def jafroc(found: FreeResponse) -> float:
    """Chance that a lesion is marked higher than the highest false mark of an image without lesions; ties count half.

    Chakraborty and Berbaum 2004, Eq. 3. An image without marks and a lesion without a mark rank lowest, and are tied.
    """
    return float(_jafroc(found, np.ones((1, found.num_images)))[0])


def sensitivity_interval(found: FreeResponse | Sequence[FreeResponse], patients: Sequence[str] | NDArray[np.str_], *,
                         rate: float = USUAL_RATE, seed: int = 0, num: int = 2000) -> Bootstrap:
    """`sensitivity_at` with its 95 % interval over patients; of several trainings, their mean."""
    runs = _runs(found)
    return _bootstrap(runs[0], patients, lambda counts: _mean([_sensitivity(run, counts, rate=rate) for run in runs]), seed=seed, num=num)


def jafroc_interval(found: FreeResponse | Sequence[FreeResponse], patients: Sequence[str] | NDArray[np.str_], *, seed: int = 0,
                    num: int = 2000) -> Bootstrap:
    """`jafroc` with its 95 % interval over patients; of several trainings, their mean."""
    runs = _runs(found)
    return _bootstrap(runs[0], patients, lambda counts: _mean([_jafroc(run, counts) for run in runs]), seed=seed, num=num)


def sensitivity_difference(first: FreeResponse | Sequence[FreeResponse], second: FreeResponse | Sequence[FreeResponse],
                           patients: Sequence[str] | NDArray[np.str_], *, rate: float = USUAL_RATE, seed: int = 0,
                           num: int = 2000) -> Bootstrap:
    """Sensitivity of the second detector less that of the first, on the same lesions, in the same draws of patients.

    Raises UsageError where the two were not measured on the same lesions of the same images.
    """
    one, two = _runs(first), _runs(second)
    for run in (*one, *two):
        if run.num_images != one[0].num_images or not np.array_equal(run.lesion_image, one[0].lesion_image):
            raise UsageError("the detectors were measured on other images or lesions; mark the same images")
    return _bootstrap(one[0], patients, lambda counts: (_mean([_sensitivity(run, counts, rate=rate) for run in two])
                                                        - _mean([_sensitivity(run, counts, rate=rate) for run in one])), seed=seed, num=num)


def free_response_scores(found: FreeResponse, patients: Sequence[str] | NDArray[np.str_], *, judge: str, group: str = "all",
                         seed: int = 0) -> tuple[Score, Score]:
    """Sensitivity at half a false mark an image, and JAFROC, as scores of a report on real images."""
    measured = (("froc_sensitivity", sensitivity_interval(found, patients, seed=seed)),
                ("jafroc", jafroc_interval(found, patients, seed=seed)))
    first, second = (Score(metric=metric, value=value.value, low=value.low, high=value.high, n_real=found.num_images, n_synthetic=0,
                           group=group, features=judge, note=f"{len(found.lesion_image)} lesions; {found.criterion}")
                     for metric, value in measured)
    return first, second


def _runs(found: FreeResponse | Sequence[FreeResponse]) -> Sequence[FreeResponse]:
    runs = [found] if isinstance(found, FreeResponse) else found
    if not runs or not len(runs[0].lesion_image):
        raise InputError("free-response analysis needs images with lesions")
    return runs


def _mean(values: Sequence[Vector]) -> Vector:
    return np.asarray(np.mean(values, axis=0))


def _thresholds(found: FreeResponse, counts: Vector, *, rate: float) -> Vector:
    """The highest false mark that is one too many in each draw, [B]; minus infinity where all are allowed. `counts` [B, N]."""
    if not 0 <= rate < np.inf:
        raise UsageError(f"{rate} false marks an image cannot be")
    if not len(found.false_score):
        return np.full(len(counts), -np.inf)
    order = np.argsort(-found.false_score, kind="stable")
    so_far = np.cumsum(counts[:, found.false_image[order]], axis=1)
    over = so_far > rate * counts.sum(axis=1, keepdims=True) + 1e-9
    return np.where(over.any(axis=1), found.false_score[order][over.argmax(axis=1)], -np.inf)


def _sensitivity(found: FreeResponse, counts: Vector, *, rate: float) -> Vector:
    """Sensitivity in each draw, [B], from how often each image counts, [B, N]."""
    weights = counts[:, found.lesion_image]
    hit = found.lesion_score[None] > _thresholds(found, counts, rate=rate)[:, None]
    return np.asarray((hit * weights).sum(axis=1) / weights.sum(axis=1))


def _jafroc(found: FreeResponse, counts: Vector) -> Vector:
    normal = np.flatnonzero(~found.has_lesion())
    if not len(normal):
        raise InputError("JAFROC needs images without lesions")
    highest = np.full(found.num_images, -np.inf)
    np.maximum.at(highest, found.false_image, found.false_score)
    wins = (found.lesion_score[:, None] > highest[None, normal]) + 0.5 * (found.lesion_score[:, None] == highest[None, normal])
    lesions, normals = counts[:, found.lesion_image], counts[:, normal]
    return np.asarray(np.einsum("bk,kn,bn->b", lesions, wins, normals, optimize=True) / (lesions.sum(axis=1) * normals.sum(axis=1)))


def _bootstrap(found: FreeResponse, patients: Sequence[str] | NDArray[np.str_], statistic: Callable[[Vector], Vector], *, seed: int,
               num: int) -> Bootstrap:
    """Interval of a statistic of counts [B, N]; draws need images with lesions and images without."""
    return counted_bootstrap(found.has_lesion().astype(int), np.zeros(found.num_images), patients,
                             lambda _positive, _scores, counts: statistic(counts), num=num, seed=seed)
