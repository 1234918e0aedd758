"""Outlines of organs and lesions by a judge that learned from the real training images' masks: where they are enough to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from synthorax.data.masks import INSIDE
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP, MIN_PATIENTS_PER_GROUP, RealImages
from synthorax.judges.fitting import ImageArray
from synthorax.judges.segmenter import Segmenter, SegmenterConfig, dice, train_segmenter
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet, Masks

SIDE_PX = 64
MIN_DICE = 0.7
"""overlap with human outlines on held-out images below which the judge of an organ says nothing"""
QUICK = SegmenterConfig(updates=400, batch_size=16, width=16, input_size=SIDE_PX)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationModel:
    """A segmenter of the real side's masks, and how well it does on images of other patients."""

    judge: Segmenter
    held_out_dice: Mapping[str, float]
    """class -> mean Dice with human outlines on held-out images; a class without such images is not in it"""
    learned_from: Mapping[str, int]
    """class -> training images with an outline"""

    def __call__(self, images: ImageArray) -> dict[str, NDArray[np.bool_]]:
        """Class -> outlines of images [N, S, S] on a grid of at most 64 px, [N, P, P]."""
        found = self.judge.outline(downsample(images))
        return {name: found[:, column] for column, name in enumerate(self.judge.classes)}


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedSegmenter:
    """The outliner, or None, and why classes have none."""

    segmenter: SegmentationModel | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    """class -> reason"""


def downsample(images: ImageArray) -> ImageArray:
    """Images [N, S, S] averaged down to 64 px; smaller ones as they are."""
    if images.shape[1] <= SIDE_PX:
        return images
    chunks = (torch.from_numpy(images[start : start + 64].astype(np.float32))[:, None] for start in range(0, len(images), 64))
    parts = [functional.interpolate(chunk, (SIDE_PX, SIDE_PX), mode="area") for chunk in chunks]
    return cast(ImageArray, torch.cat(parts)[:, 0].round().numpy().astype(images.dtype))


def drawn_masks(images: ImageSet, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Drawn outlines of one class on at most 64 px [N, P, P], which images have one [N], and which are stated to show nothing [N].

    A box is no outline. An outline smaller than a pixel keeps its most covered one.
    """
    side = min(images.pixels.shape[1], SIDE_PX)
    drawn, has, nothing = np.zeros((len(images), side, side), dtype=np.bool_), np.zeros(len(images), dtype=np.bool_), None
    if images.masks is None or name not in images.masks.names:
        return drawn, has, has.copy()
    index = images.masks.index[:, images.masks.names.index(name)]
    nothing = index == Masks.NOTHING_THERE
    for row in np.flatnonzero(index >= 0):
        pixels = images.masks.pixels[index[row]]
        if pixels.max() < INSIDE and set(np.unique(pixels)) <= {0, 128}:
            continue
        cover = downsample(pixels[None])[0]
        drawn[row] = cover >= min(128, max(1, int(cover.max())))
        has[row] = True
    return drawn, has, nothing


def fit_segmenter(real: RealImages, classes: Sequence[str], *, seed: int, config: SegmenterConfig = QUICK,
                  progress: Progress = quiet) -> FittedSegmenter:
    """Learn the classes of which the training images have at least 20 outlines of 10 patients; the others get a reason."""
    reasons: dict[str, str] = {}
    drawn, stated, learned_from = [], [], {}
    patients = real.train.patients()
    for name in classes:
        outlines, has, nothing = drawn_masks(real.train, name)
        if has.sum() < MIN_IMAGES_PER_GROUP or len(set(patients[has])) < MIN_PATIENTS_PER_GROUP:
            reasons[name] = (f"no judge could learn it: {int(has.sum())} real training images have an outline of '{name}', "
                             f"at least {MIN_IMAGES_PER_GROUP} images of {MIN_PATIENTS_PER_GROUP} patients are needed")
            continue
        learned_from[name] = int(has.sum())
        few_absent = np.flatnonzero(nothing)[: 2 * int(has.sum())]
        known = has.copy()
        known[few_absent] = True
        drawn.append(outlines)
        stated.append(known)
    if not drawn:
        return FittedSegmenter(segmenter=None, reasons=reasons)
    rows = np.flatnonzero(np.any(stated, axis=0))
    judge = train_segmenter(downsample(real.train.pixels[rows]), np.stack(drawn, axis=1)[rows], classes=list(learned_from), config=config,
                            seed=seed, stated=np.stack(stated, axis=1)[rows], patients=patients[rows], progress=progress)
    agreement = {}
    for column, name in enumerate(judge.classes):
        outlines, has, _ = drawn_masks(real.held_out, name)
        if has.sum() >= 2:
            found = judge.outline(downsample(real.held_out.pixels[has]))[:, column]
            agreement[name] = float(dice(outlines[has], found).mean())
    return FittedSegmenter(segmenter=SegmentationModel(judge=judge, held_out_dice=agreement, learned_from=learned_from), reasons=reasons)


def describe_segmenter(fitted_segmenter: FittedSegmenter) -> dict[str, Any]:
    """JSON-ready: what the judge learned from, its overlap on held-out images, and why classes are missing."""
    facts: dict[str, Any] = {"no_judge": dict(fitted_segmenter.reasons)} if fitted_segmenter.reasons else {}
    if fitted_segmenter.segmenter is not None:
        facts["outlines_learned_from"] = dict(fitted_segmenter.segmenter.learned_from)
        facts["held_out_dice"] = dict(fitted_segmenter.segmenter.held_out_dice)
    return facts
