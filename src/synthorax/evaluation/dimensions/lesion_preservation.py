"""Is the requested lesion there, where its mask says, and does it look like a real one? For images that were asked for with masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from synthorax.data.masks import is_organ
from synthorax.errors import InputError
from synthorax.evaluation.metrics.anatomy import distribution_score
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.metrics.lesion_control import contrast, mask_agreement, measure_lesions, share_inside, side_agreement
from synthorax.evaluation.metrics.lesion_places import MIN_REQUESTED_PLACES, observed_places, requested_places
from synthorax.evaluation.metrics.same_patient_bands import nearest_distances
from synthorax.evaluation.metrics.segmentation import SIDE_PX, FittedSegmenter, SegmentationModel, downsample, drawn_masks
from synthorax.evaluation.metrics.ssim import ssim
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.judges.features import FeatureSpace
from synthorax.types import ImageSet, Score

MIN_REQUESTED_MASKS, MIN_REAL_LESIONS, MAX_LESIONS = 5, 5, 60
CROP_PX = 32


def requested_classes(synthetic: ImageSet) -> tuple[str, ...]:
    """Mask classes that at least `MIN_REQUESTED_MASKS` synthetic images were asked for with."""
    if synthetic.masks is None:
        return ()
    stated = (synthetic.masks.index >= 0).sum(axis=0)
    return tuple(name for name, count in zip(synthetic.masks.names, stated, strict=True) if count >= MIN_REQUESTED_MASKS)


def lesion_preservation(real: RealImages, synthetic: ImageSet, fitted_segmenter: FittedSegmenter, *, space: FeatureSpace,
                        seed: int) -> Dimension:
    """The dimension: agreement with the requested masks by a judge, and the lesions' contrast and looks against real lesions."""
    classes = requested_classes(synthetic)
    placed = [name for name in dict.fromkeys((*classes, *synthetic.findings)) if not is_organ(name)
              and len(requested_places(synthetic, name).image) >= MIN_REQUESTED_PLACES]
    if not classes and not placed:
        return Dimension("skipped", reason=f"fewer than {MIN_REQUESTED_MASKS} of these images were requested with a mask, so there is "
                                           "no lesion region to compare")
    scores: list[Score] = []
    missing: dict[str, str] = {}
    found = None if fitted_segmenter.segmenter is None else fitted_segmenter.segmenter(synthetic.pixels)
    for name in classes:
        if found is not None and name in found and fitted_segmenter.segmenter is not None:
            scores += _agreement(real, synthetic, found[name], name, segmenter=fitted_segmenter.segmenter)
        else:
            missing[f"{name}: agreement"] = fitted_segmenter.reasons.get(name, "no judge learned it")
        if not is_organ(name):
            try:
                scores += lesion_looks(real, synthetic, name, space=space, seed=seed)
            except InputError as error:
                missing[f"{name}: looks"] = str(error)
    observers = []
    for name in placed:
        try:
            score, observer = observed_places(real, synthetic, name)
            scores.append(score)
            observers.append({"name": observer.name, "digest": observer.digest})
        except InputError as error:
            missing[f"{name}: places"] = str(error)
    if not scores:
        return Dimension("skipped", reason="; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    extra: dict[str, Any] = ({"not_measured": missing} if missing else {}) | ({"observers": observers} if observers else {})
    return Dimension("measured", scores=tuple(scores), extra=extra)


def _agreement(real: RealImages, synthetic: ImageSet, found: NDArray[np.bool_], name: str, *, segmenter: SegmentationModel) -> list[Score]:
    """IoU and side of what the judge sees against what was asked; floor: the judge against human outlines on real held-out images."""
    judge = segmenter.judge.name
    asked, has, _ = drawn_masks(synthetic, name)
    boxes, boxed = _boxes(synthetic, name)
    scores: list[Score] = []
    if has.sum() >= MIN_REQUESTED_MASKS:
        truth, known, _ = drawn_masks(real.held_out, name)
        floor = None
        if known.sum() >= 2:
            floor = mask_agreement(truth[known], segmenter(real.held_out.pixels[known])[name]).value
        score = mask_agreement(asked[has], found[has], group=name, judge=judge, metric="requested_mask_iou")
        note = ("the judge's own errors lower this number" if floor is None else
                f"the same judge on {int(known.sum())} real held-out images: {floor:.2f}")
        scores.append(replace(score, floor=floor, note="; ".join(filter(None, (score.note, note)))))
        if not is_organ(name):
            images = downsample(synthetic.pixels[has])
            seen = measure_lesions(images, found[has].astype(np.float64), found[has], finding=name)
            side = asked.shape[-1]
            centre = asked[has].sum(axis=1) @ ((np.arange(side) + 0.5) / side) / asked[has].sum(axis=(1, 2))
            scores.append(side_agreement((centre > 0.5).astype(np.float64), seen, group=name, judge=judge))
    if boxed.sum() >= MIN_REQUESTED_MASKS:
        inside = share_inside(boxes[boxed], found[boxed])
        low, high = normal_interval(float(inside.mean()), standard_error(inside - inside.mean()), lowest=0.0, highest=1.0)
        scores.append(Score(metric="lesion_inside_box", value=float(inside.mean()), low=low, high=high, n_real=0,
                            n_synthetic=int(boxed.sum()), group=name, features=judge))
    return scores


def _boxes(images: ImageSet, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Boxes asked for [N, P, P], and which images have a box and no outline [N]."""
    side = min(images.pixels.shape[1], SIDE_PX)
    boxes, has = np.zeros((len(images), side, side), dtype=np.bool_), np.zeros(len(images), dtype=np.bool_)
    masks = images.masks
    assert masks is not None
    outlined = drawn_masks(images, name)[1]
    index = masks.index[:, masks.names.index(name)]
    for row in np.flatnonzero((index >= 0) & ~outlined):
        boxes[row] = downsample(masks.pixels[index[row]][None])[0] >= 64
        has[row] = bool(boxes[row].any())
    return boxes, has


def lesion_looks(real: RealImages, synthetic: ImageSet, name: str, *, space: FeatureSpace, seed: int) -> list[Score]:
    """Contrast of lesions against real ones (Wasserstein-1), and SSIM and feature distance of each to the most similar real lesion."""
    made = _lesions(synthetic, name, seed=seed)
    known, other = _lesions(real.train, name, seed=seed), _lesions(real.held_out, name, seed=seed)
    if len(known[0]) < MIN_REAL_LESIONS or len(made[0]) < MIN_REQUESTED_MASKS:
        raise InputError(f"{len(known[0])} real training images and {len(made[0])} synthetic ones have an outline of '{name}'; at least "
                         f"{MIN_REAL_LESIONS} are needed")
    has_floor = len(other[0]) >= MIN_REAL_LESIONS
    scores = [distribution_score("lesion_contrast", known[1], made[1], floor_sets=(known[1], other[1]) if has_floor else None, judge="",
                                 seed=seed, group=name)]
    nearest = {"lesion_ssim": (_best_ssim(made[0], known[0]), _best_ssim(other[0], known[0]) if has_floor else None)}
    crops = [_as_images(part, synthetic.pixels.dtype) for part in (made[0], known[0], other[0])]
    vectors = [space(part) if len(part) else np.zeros((0, space.num_features), np.float32) for part in crops]
    nearest["lesion_perceptual_distance"] = (nearest_distances(vectors[0], vectors[1]),
                                             nearest_distances(vectors[2], vectors[1]) if has_floor else None)
    for metric, (values, floor) in nearest.items():
        mean, likeness = float(values.mean()), metric == "lesion_ssim"
        ends = (-1.0, 1.0) if likeness else (0.0, np.inf)
        low, high = normal_interval(mean, standard_error(values - mean), lowest=ends[0], highest=ends[1])
        scores.append(Score(metric=metric, value=mean, low=low, high=high,
                            n_real=len(known[0]), n_synthetic=len(values), group=name, features="" if likeness else space.name,
                            floor=None if floor is None else float(floor.mean()),
                            note="to the most similar real lesion" + ("" if has_floor else "; no floor: too few held-out lesions")))
    return scores


def _lesions(images: ImageSet, name: str, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Crops [L, 32, 32] in [0, 1] around outlines, with half their size as margin, and the lesions' contrasts [L]."""
    outlines, has, _ = drawn_masks(images, name)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(has))[:MAX_LESIONS]
    if not len(rows):
        return np.zeros((0, CROP_PX, CROP_PX), np.float32), np.zeros(0)
    masks, side = images.masks, images.pixels.shape[1]
    assert masks is not None
    column = masks.names.index(name)
    crops = np.empty((len(rows), CROP_PX, CROP_PX), dtype=np.float32)
    for number, row in enumerate(rows):
        inside = np.argwhere(masks.pixels[masks.index[row, column]] > 0)
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        half = max(4, round(0.75 * float((high - low).max())))
        middle = ((low + high) // 2).clip(half, max(half, side - half))
        top, left = (int(max(0, value - half)) for value in middle)
        part = images.pixels[row, top : top + 2 * half, left : left + 2 * half].astype(np.float32) / np.iinfo(images.pixels.dtype).max
        crops[number] = functional.interpolate(torch.from_numpy(part)[None, None], (CROP_PX, CROP_PX), mode="bilinear",
                                               antialias=True)[0, 0].numpy()
    return crops, contrast(downsample(images.pixels[rows]), outlines[rows])


def _best_ssim(lesions: NDArray[np.float32], among: NDArray[np.float32]) -> NDArray[np.float64]:
    """SSIM of each crop [L, 32, 32] with the most similar of `among`, [L]."""
    others = torch.from_numpy(among)[:, None]
    return np.array([float(ssim(torch.from_numpy(lesion)[None, None].expand_as(others), others).max()) for lesion in lesions])


def _as_images(crops: NDArray[np.float32], kind: Any) -> NDArray[Any]:
    return np.asarray((crops.clip(0, 1) * np.iinfo(kind).max).round().astype(kind))
