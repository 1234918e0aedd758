"""The fidelity dimension: distances in every feature space, by group, radiomics, anatomy, pairs and the patients' band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.metrics.anatomy import anatomy_scores, measure_anatomy
from synthorax.evaluation.metrics.distances import energy_score, fid_64_score, fid_score, kid_score, mmd_score
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP, Group, RealImages, SetFeatures
from synthorax.evaluation.metrics.paired import COLUMN, MIN_PAIRED_IMAGES, paired_rows, paired_scores
from synthorax.evaluation.metrics.same_patient_bands import feature_band, nearest_distances, nearness_score, pixel_bands, same_patient_pairs
from synthorax.evaluation.metrics.segmentation import MIN_DICE, FittedSegmenter, SegmentationModel, describe_segmenter
from synthorax.evaluation.report.record import Dimension
from synthorax.judges.radiomics import RadiomicsFeatures
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet, Score

MAX_IMAGES_MEASURED_SLOWLY = 400
"""images of a set for what is slow to measure: radiomics and outlines"""
ORGANS = ("lung", "heart")


def fidelity(real: RealImages, synthetic: ImageSet, seen: Sequence[SetFeatures], groups: Sequence[Group], fitted_segmenter: FittedSegmenter,
             *,
             seed: int, progress: Progress = quiet) -> Dimension:
    """Every distance between the synthetic and the real held-out images; groups in the first feature space only."""
    scores: list[Score] = []
    extra: dict[str, Any] = {}
    missing: dict[str, str] = {}
    compared = [(space, group) for number, space in enumerate(seen) for group in groups if number == 0 or group.name == "all"]
    for done, (space, group) in enumerate(compared):
        progress(0.7 * done / len(compared), f"fidelity, {group.name}")
        scores += distances(real, space, group, seed=seed)
    progress(0.7, "fidelity, radiomics and anatomy")
    few = [_some(images, seed=seed) for images in (real.held_out, real.train, synthetic)]
    scores.append(radiomics_distance(few[0], few[1], few[2], seed=seed))
    found, reason = anatomy(few[0], few[1], few[2], fitted_segmenter, seed=seed)
    scores += found
    if reason:
        missing["anatomy"] = reason
    for name in ORGANS:
        if name in fitted_segmenter.reasons and not (name == "lung" and reason):
            missing[name] = fitted_segmenter.reasons[name]
    progress(0.9, "fidelity, images of one patient")
    every = ImageSet.join([real.train, real.held_out])  # for pairs of images of one patient
    pairs = same_patient_pairs(every, seed=seed)
    bands = pixel_bands(every, pairs)
    extra["same_patient_bands"] = {measured.metric: measured.to_dict() for measured in bands}
    for space in seen:
        measured = feature_band(every, np.concatenate([space.train, space.held_out]), pairs, space=space.space.name)
        extra["same_patient_bands"][measured.metric] = measured.to_dict()
        if measured.calibrated:
            scores.append(nearness_score(measured, nearest_distances(space.synthetic, space.train),
                                         nearest_distances(space.held_out, space.train), space=space.space.name, num_train=len(real.train)))
    rows, partners = paired_rows(synthetic, real.train, real.held_out)
    if len(rows) >= MIN_PAIRED_IMAGES:
        scores += paired_scores(partners, synthetic.pixels[rows], bands=bands)
    else:
        missing["paired_ssim, paired_psnr"] = (f"the synthetic table has no column '{COLUMN}' that names {MIN_PAIRED_IMAGES} of the real "
                                               "images")
    if fitted_segmenter.segmenter is not None:
        extra["outlines"] = describe_segmenter(fitted_segmenter)
    return Dimension("measured", scores=tuple(scores), extra=extra | ({"not_measured": missing} if missing else {}))


def distances(real: RealImages, seen: SetFeatures, group: Group, *, seed: int) -> tuple[Score, ...]:
    """FID, KID and MMD of one group in one feature space, and of all images FID in 64 directions."""
    held_out, made = seen.held_out[group.held_out], seen.synthetic[group.synthetic]
    floor = (held_out, seen.train[group.train]) if group.floor else None
    patients = real.held_out.patients()[group.held_out]
    measures = (fid_score, *((fid_64_score,) if group.name == "all" else ()), kid_score, mmd_score)
    return tuple(measure(held_out, made, floor_sets=floor, features_name=seen.space.name, seed=seed, group=group.name,
                         real_patients=patients)
                 for measure in measures)


def radiomics_distance(held_out: ImageSet, train: ImageSet, synthetic: ImageSet, *, seed: int) -> Score:
    """Energy distance of first-order and texture features, standardised by the real training images."""
    space = RadiomicsFeatures()
    known = space(train.pixels).astype(np.float64)
    mean, scale = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-6)
    first, second = ((space(images.pixels) - mean) / scale for images in (held_out, synthetic))
    floor = (first, (known - mean) / scale) if len(known) >= MIN_IMAGES_PER_GROUP else None
    return energy_score(first, second, floor_sets=floor, features_name=space.name, seed=seed, metric="radiomics_distance",
                        real_patients=held_out.patients())


def anatomy(held_out: ImageSet, train: ImageSet, synthetic: ImageSet, fitted_segmenter: FittedSegmenter, *, seed: int) -> tuple[tuple[Score,
                                                                                                                                      ...],
                                                                                                                                str]:
    """Scores of lung and heart sizes, or none and the reason."""
    judge = fitted_segmenter.segmenter
    if judge is None or "lung" not in judge.judge.classes:
        return (), fitted_segmenter.reasons.get("lung", "no real training image has a lung mask, so no judge of lungs could learn")
    if judge.held_out_dice.get("lung", 1.0) < MIN_DICE:
        return (), f"the judge of lungs agrees with held-out human outlines by a Dice of {judge.held_out_dice['lung']:.2f} only"
    try:
        sizes = [_sizes(images, judge) for images in (held_out, synthetic, train)]
        return anatomy_scores(sizes[0], sizes[1], sizes[2], judge=judge.judge.name, seed=seed, real_patients=held_out.patients()), ""
    except InputError as error:
        return (), str(error)


def _sizes(images: ImageSet, judge: SegmentationModel) -> dict[str, NDArray[np.float64]]:
    found = judge(images.pixels)
    heart = found.get("heart") if judge.held_out_dice.get("heart", 1.0) >= MIN_DICE else None
    return measure_anatomy(found["lung"], heart)


def _some(images: ImageSet, *, seed: int) -> ImageSet:
    return images.take(np.sort(np.random.default_rng(seed).permutation(len(images))[:MAX_IMAGES_MEASURED_SLOWLY]))
