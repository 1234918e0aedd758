"""Does an image show what was asked for: size, place, side and severity of a finding, its outline, and nothing else changed.

A judge's probabilities go in (see `judges.segmenter`), and what the judge finds is described in the units in which lesions are asked for
(`protocols.LESION_PROPERTIES`). The judge's own mistakes lower every number here: measure it on real or drawn images first and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.stats import rankdata

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.evaluation.statistics.roc import wilson
from synthorax.judges.segmenter import iou
from synthorax.types import Score

ImageSet = NDArray[np.uint8] | NDArray[np.uint16]
Outlines = NDArray[np.bool_]
Vector = NDArray[np.float64]

MIN_LESION_AREA = 1 / 1500
"""part of the image from which on an outline counts as found; 3 of 64 x 64 pixels"""
RIM_PART = 1 / 16
"""depth of the rim and of its surroundings that `contrast` compares, in parts of the image's side"""
NUM_DRAWS = 1000
FACTORS = ("score", "size", "x", "y", "contrast")
"""what `LesionMeasurements` measures of a finding, beside its side"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionMeasurements:
    """What a judge sees of one finding on N images; NaN where it is not found."""

    finding: str
    score: Vector
    """[N] in [0, 1]: the highest probability over 3 x 3 pixels"""
    found: NDArray[np.bool_]
    """[N]: the outline covers at least `MIN_LESION_AREA`"""
    size: Vector
    """[N] in [0, 1]: twice the root of the covered part of the image, at most 1, as in `types.Lesion`; 0 where not found"""
    x: Vector
    """[N]: centroid in parts of the image's width, from the left edge of the image"""
    y: Vector
    """[N]: centroid in parts of the image's height, from the top"""
    left: Vector
    """[N]: 1 where the centroid lies on the patient's left, the right half of the image, else 0"""
    contrast: Vector
    """[N] in [-1, 1], as `contrast` measures it; 0 where not found"""

    def factor(self, name: str) -> Vector:
        """One of `FACTORS` by its name, [N]."""
        if name not in FACTORS:
            raise UsageError(f"no factor '{name}'; choose from: {', '.join(FACTORS)}")
        values: Vector = getattr(self, name)
        return values


def measure_lesions(images: ImageSet, probabilities: NDArray[np.floating[Any]], outlines: Outlines, *, finding: str,
                    lungs: Outlines | None = None,
        regions: Outlines | None = None) -> LesionMeasurements:
    """Describe one finding on images [N, S, S] from a judge's probabilities and outlines of it, [N, S, S] each.

    `lungs` [N, S, S] keep the surroundings with which the lesion is compared inside the lungs. `regions` [N, S, S] are where the contrast
    is measured in place of the outline: where a mask was asked for, or where a sweep found the lesion most of the time.

    >>> image, disc = np.full((1, 32, 32), 100, np.uint8), np.zeros((1, 32, 32), bool)
    >>> disc[0, 8:16, 20:28] = True
    >>> round(float(measure_lesions(image, disc.astype(float), disc, finding="Nodule").size[0]), 2)
    0.5
    """
    if not (images.shape == probabilities.shape == outlines.shape) or images.ndim != 3:
        raise UsageError(f"images {images.shape}, probabilities {probabilities.shape} and outlines {outlines.shape} must be [N, S, S]")
    side = images.shape[-1]
    parts = outlines.mean(axis=(1, 2))
    found = parts >= MIN_LESION_AREA
    centres = (np.arange(side) + 0.5) / side
    area = np.where(found, outlines.sum(axis=(1, 2)), np.nan)
    x, y = outlines.sum(axis=1) @ centres / area, outlines.sum(axis=2) @ centres / area
    where = outlines if regions is None else regions
    return LesionMeasurements(finding=finding, score=ndimage.uniform_filter(probabilities.astype(np.float64), size=(0, 3, 3)).max(axis=(1,
                                                                                                                                        2)),
                found=found, size=np.where(found, np.minimum(1.0, 2 * np.sqrt(parts)), 0.0), x=x, y=y,
                left=np.where(found, (x > 0.5).astype(np.float64), np.nan),
                contrast=np.nan_to_num(contrast(images, where, lungs=lungs)))


def contrast(images: ImageSet, outlines: Outlines, *, lungs: Outlines | None = None) -> Vector:
    """How much brighter the rim inside an outline is than its surroundings, [N] in parts of the grey range; NaN without an outline.

    Rim and surroundings are each `RIM_PART` deep and leave out the pixels at the edge itself. The surroundings are kept inside `lungs`
    where these reach. Free air is darker than lung, so its contrast is negative.
    """
    depth = max(1, round(images.shape[-1] * RIM_PART))
    values = np.full(len(images), np.nan)
    for number, (image, outline) in enumerate(zip(images, outlines, strict=True)):
        if not outline.any():
            continue
        inner = ndimage.binary_erosion(outline, border_value=1)
        rim = inner & ~ndimage.binary_erosion(inner, iterations=depth, border_value=1)
        around = ndimage.binary_dilation(outline, iterations=depth + 1) & ~ndimage.binary_dilation(outline)
        inside = around & lungs[number] if lungs is not None else around
        inside = inside if inside.sum() >= 4 else around
        if inside.any():
            values[number] = image[rim if rim.sum() >= 3 else outline].mean() - image[inside].mean()
    return values / np.iinfo(images.dtype).max


def usual_region(outlines: Outlines) -> Outlines:
    """Where most of some outlines [V, ..., S, S] agree, the same shape: one region for all values of a sweep, [V] first.

    A faint lesion has a smaller outline or none, so its own outline would measure severity badly; the seed's other images say where it is.
    Where no half of them agrees, it is their union.
    """
    most: Outlines = outlines.mean(axis=0) >= 0.5
    empty = ~most.any(axis=(-2, -1), keepdims=True)
    agreed: Outlines = np.where(empty, outlines.any(axis=0), most)
    return np.broadcast_to(agreed, outlines.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResponse:
    """How what is seen follows one number that is asked for, over V values and several seeds."""

    requested: tuple[float, ...]
    means: tuple[float, ...]
    """mean over the seeds of what is seen at each value; NaN where no image shows the finding"""
    seen_share: float
    """part of the images with a measurement"""
    spearman: float
    """rank correlation of `means` with `requested`"""
    low: float
    """95 % interval of `spearman` over seeds drawn with replacement"""
    high: float
    per_seed: tuple[float, ...]
    """rank correlation within each seed"""

    @property
    def typical(self) -> float:
        """Mean of the correlations within one seed: how surely a single image can be steered."""
        return float(np.mean(self.per_seed))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN is None."""
        return _jsonable(asdict(self) | {"typical": self.typical})


def sweep_response(requested: ArrayLike, measured: ArrayLike, *, seed: int = 0, num: int = NUM_DRAWS) -> SweepResponse:
    """Rank correlation of `requested` [V] with `measured` [V, seeds]; NaN there is an image on which nothing was found, and is left out.

    What does not change at all has correlation 0. Raises UsageError for fewer than three values or two seeds.

    >>> sweep_response([0.1, 0.5, 0.9], [[1, 2], [3, 2], [4, 5]]).spearman
    1.0
    """
    asked, seen = np.asarray(requested, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if seen.ndim != 2 or asked.shape != seen.shape[:1] or len(asked) < 3 or seen.shape[1] < 2:
        raise UsageError(f"a sweep needs at least 3 values and 2 seeds, [V] and [V, seeds], not {asked.shape} and {seen.shape}")
    rng = np.random.default_rng(seed)
    draws = [_spearman(asked, _means(seen[:, rng.integers(seen.shape[1], size=seen.shape[1])])) for _ in range(num)]
    means = _means(seen)
    value = _spearman(asked, means)
    low, high = np.quantile(draws, [0.025, 0.975])
    return SweepResponse(requested=tuple(asked.tolist()), means=tuple(means.tolist()), seen_share=float(np.isfinite(seen).mean()),
                         spearman=value, low=min(float(low), value), high=max(float(high), value),
                         per_seed=tuple(_spearman(asked, column) for column in seen.T))


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """How much one factor changed while another one was swept."""

    factor: str
    change: float
    """largest minus smallest mean over the sweep, in parts of the factor's natural spread"""
    by_chance: float
    """what as few seeds give without any leak"""
    p: float
    """chance of a change as large where the images of each seed are shuffled over the values; never below 1 / (draws + 1)"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN is None."""
        return _jsonable(asdict(self))


def natural_spread(values: ArrayLike) -> float:
    """From the 5th to the 95th percentile of a factor over real or drawn images; NaN is left out."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        raise InputError(f"{len(known)} images show the finding, too few for a natural spread")
    low, high = np.quantile(known, [0.05, 0.95])
    return float(high - low)


def leakage(measured: Mapping[str, ArrayLike], spreads: Mapping[str, float], *, seed: int = 0, num: int = NUM_DRAWS) -> list[Leak]:
    """For each factor that was to be held, [V, seeds], its change over the sweep relative to `spreads`, and whether chance explains it."""
    leaks = []
    for number, (name, values) in enumerate(measured.items()):
        seen = np.asarray(values, dtype=np.float64)
        rng = np.random.default_rng([seed, number])
        change = _range(_means(seen))
        shuffled = np.array([_range(_means(rng.permuted(seen, axis=0))) for _ in range(num)])
        p = (1 + int((shuffled >= change - 1e-12).sum())) / (num + 1) if change > 0 else 1.0
        # A leak also spreads the shuffled images, so chance is measured on what is left of each image without its value's mean.
        rest = (seen - _means(seen)[:, None]) * np.sqrt(seen.shape[1] / max(1, seen.shape[1] - 1))
        chance = float(np.median([_range(_means(rng.permuted(rest, axis=0))) for _ in range(num)]))
        spread = spreads[name] if spreads[name] > 0 else np.nan
        leaks.append(Leak(factor=name, change=change / spread, by_chance=chance / spread, p=p))
    return leaks


def mask_agreement(requested: Outlines, found: Outlines, *, patients: Sequence[str] | None = None, group: str = "all",
                   judge: str = "", metric: str = "mask_iou") -> Score:
    """Mean intersection over union of outlines asked for and found, [N, S, S] each, with an interval over patients, or else images.

    Pairs of which both are empty are left out and counted in the note.
    """
    return mean_score(iou(requested, found), metric=metric, patients=patients, group=group, judge=judge,
                      unit="neither asked for nor found")


def lesion_agreement(requested: Outlines, found: Outlines) -> list[Vector]:
    """IoU of each lesion of an image: [N] arrays, one number for each part of the requested outline that hangs together.

    Every pixel that was found belongs to the requested lesion nearest to it, so a second lesion in the wrong place spoils the nearest one.
    """
    agreements = []
    for asked, seen in zip(requested, found, strict=True):
        parts, count = ndimage.label(asked, structure=np.ones((3, 3)))
        if count == 0:
            agreements.append(np.empty(0))
            continue
        nearest = ndimage.distance_transform_edt(parts == 0, return_distances=False, return_indices=True)
        owner = parts[tuple(nearest)]
        agreements.append(np.array([float(iou(parts == part, seen & (owner == part))) for part in range(1, count + 1)]))
    return agreements


def share_inside(boxes: Outlines, found: Outlines) -> Vector:
    """Part of each found lesion that lies in the box asked for, [N] for [N, S, S]; 0 where nothing was found, so that missing costs."""
    area = found.sum(axis=(1, 2))
    return np.where(area > 0, (boxes & found).sum(axis=(1, 2)) / np.maximum(area, 1), 0.0)


def side_agreement(left: ArrayLike, seen: LesionMeasurements, *, group: str = "all", judge: str = "") -> Score:
    """Share of images whose lesion's centroid is on the side asked for, `left` [N] in {0, 1}; not found counts as wrong."""
    right = seen.found & (seen.left == np.asarray(left, dtype=np.float64))
    missing = int((~seen.found).sum())
    return share_score(right, metric="side_agreement", group=group, judge=judge,
                       note=f"{missing} images without the finding count as wrong" if missing else "")


def share_score(right: NDArray[np.bool_], *, metric: str, group: str = "all", judge: str = "", note: str = "") -> Score:
    """Share of images [N] that are right, with Wilson's interval, which is no point where all are."""
    low, high = wilson(int(right.sum()), len(right))
    return Score(metric=metric, value=float(right.mean()), low=low, high=high, n_real=0, n_synthetic=len(right),
                 group=group, features=judge, note=note)


def mean_score(values: ArrayLike, *, metric: str, patients: Sequence[str] | None = None, group: str = "all", judge: str = "",
               unit: str = "not measured") -> Score:
    """Mean of one number in [0, 1] an image with its interval; NaN is left out and counted in the note as `unit`."""
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    if known.sum() < 2:
        raise InputError(f"{int(known.sum())} images have a value for {metric}; an interval needs two")
    mean = float(numbers[known].mean())
    owners = None if patients is None else np.asarray(patients)[known]
    low, high = normal_interval(mean, standard_error(numbers[known] - mean, owners), lowest=0.0, highest=1.0)
    skipped = int((~known).sum())
    return Score(metric=metric, value=mean, low=low, high=high, n_real=0, n_synthetic=int(known.sum()), group=group,
                 features=judge, note=f"{skipped} images skipped: {unit}" if skipped else "")


def _means(values: Vector) -> Vector:
    """Mean over the seeds of [V, seeds], without NaN; NaN for a value of which nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _range(values: Vector) -> float:
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) if len(known) else 0.0


def _spearman(first: Vector, second: Vector) -> float:
    """Rank correlation over the values that both have; 0 where one of them does not change, or fewer than three are left."""
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 3 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(rankdata(first[known]), rankdata(second[known]))[0, 1], -1, 1))


def _jsonable(record: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {name: plain(value) for name, value in record.items()}
