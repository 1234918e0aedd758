"""Where the lungs and the heart are: outlines of a frontal chest radiograph, the box of each lung, and the model that finds them.

A lung here is all of it above its diaphragm, with the part behind the heart and whatever opacity lies in it, as the human outlines have
it from which the model learned. The heart is its whole shadow. Outlines of aerated lung alone are `lungs & ~heart`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from synthorax.errors import InputError, UsageError
from synthorax.judges.fitting import ImageArray, one_thread
from synthorax.judges.segmenter import Segmenter, load_segmenter
from synthorax.zoo import judge_weights

STRUCTURES = ("right lung", "left lung", "heart")
"""what the model outlines, in the order of its channels"""
MODEL_NAME = "lungs"
"""of the model that ships, in the zoo's table of judges"""
SMALLEST_PART = 0.004
"""part of the image below which a piece of lung is an error of the outline and no piece"""
BATCH = 32
Boxes = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LungFrame:
    """Boxes around the lungs, [N, 4] each: left, top, right, bottom in pixels from the image's corner; NaN where no lung was found.

    The pixel in the box's lower right corner is `[bottom - 1, right - 1]`.
    """

    right: Boxes
    """of the patient's right lung, on the left of the image"""
    left: Boxes
    both: Boxes
    """of both lungs together, or of the one that was found"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LungMasks:
    """Lungs and hearts of N images, each one piece without holes or empty, [N, H, W]. Sides are the patient's."""

    right: NDArray[np.bool_]
    """on the left of the image"""
    left: NDArray[np.bool_]
    heart: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.right)

    @property
    def both(self) -> NDArray[np.bool_]:
        """Both lungs, [N, H, W]."""
        return self.right | self.left

    def frame(self) -> LungFrame:
        """The boxes of the lungs."""
        return LungFrame(right=boxes_of(self.right), left=boxes_of(self.left), both=boxes_of(self.both))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outlines:
    """What the model says of N images at its own size, before it is cleaned: for checks that must see what is wrong."""

    lung: NDArray[np.float32]
    """[N, S, S] probability of either lung"""
    heart: NDArray[np.float32]
    """[N, S, S]"""
    side: NDArray[np.int8]
    """[N, S, S] 0 right lung, 1 left lung, by their place in the image"""
    mirrored: NDArray[np.float64]
    """[N] part of the lungs' area that shows the other lung than its place says: near 1 where an image is mirrored (or the heart is on the
    right), near 0 on others"""


@functools.lru_cache(maxsize=4)
def load_lung_model(path: str | Path | None = None) -> Segmenter:
    """The lung model that ships, or that of `path`. InputError where its file is none, or not whole."""
    chosen = judge_weights(MODEL_NAME) if path is None else Path(path)
    model = load_segmenter(chosen)
    if model.classes != STRUCTURES:
        raise InputError(f"outlines {', '.join(model.classes)}, and a lung model outlines {', '.join(STRUCTURES)}", file=chosen)
    return model


def segment_lungs(pixels: ImageArray, *, model: Segmenter | None = None) -> LungMasks:
    """Lungs and hearts of frontal images [N, H, W], 8 or 16 bits, bone bright, of any size; the outlines have the images' size.

    `model` is one of `load_lung_model`, by default the one that ships. The lung on the left of the image is called the right one, also
    where the image looks mirrored: `outline` says whether it does.

    >>> segment_lungs(np.zeros((2, 100, 80), np.uint8)).right.shape  # doctest: +SKIP
    (2, 100, 80)
    """
    model = model or load_lung_model()
    parts: list[NDArray[np.bool_]] = []
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        seen = outline(batch, model=model)
        lung_cut, heart_cut = model.thresholds[0], model.thresholds[2]
        found = np.stack([one for number in range(len(batch)) for one in
                          (_largest((seen.lung[number] >= lung_cut) & (seen.side[number] == 0)),
                           _largest((seen.lung[number] >= lung_cut) & (seen.side[number] == 1)),
                           _largest(seen.heart[number] >= heart_cut))]).reshape(len(batch), 3, *seen.lung.shape[1:])
        kept = np.stack([seen.lung, seen.lung, seen.heart], axis=1) * _widened(found)
        wide = _at_image_size(torch.from_numpy(kept), height=pixels.shape[1], width=pixels.shape[2]).numpy()
        cuts = np.array([lung_cut, lung_cut, heart_cut], dtype=np.float32)[:, None, None]
        parts.append(wide >= cuts)
    masks = np.concatenate(parts)
    masks[:, 0] &= ~masks[:, 1]  # where both were widened over the same rim
    return LungMasks(right=masks[:, 0], left=masks[:, 1], heart=masks[:, 2])


def outline(pixels: ImageArray, *, model: Segmenter | None = None) -> Outlines:
    """What the model says of images [N, H, W], at the model's size, images padded to a square."""
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16) or 0 in pixels.shape:
        raise UsageError(f"images must be uint8 or uint16 [N, H, W], not {pixels.dtype} {list(pixels.shape)}")
    model = model or load_lung_model()
    answers = []
    with one_thread(), torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            answers.append(torch.sigmoid(model.network(model_inputs(pixels[start : start + BATCH], size=model.image_size)).float()))
    right, left, heart = torch.cat(answers).unbind(dim=1)
    mirrored = _mirrored(right.numpy(), left.numpy(), cut=model.thresholds[0])
    swapped = torch.from_numpy(mirrored > 0.5)[:, None, None]
    at_left, at_right = torch.where(swapped, left, right), torch.where(swapped, right, left)  # in the image
    return Outlines(lung=torch.maximum(right, left).numpy(), heart=heart.numpy(), mirrored=mirrored,
                    side=_sides(at_left.numpy(), at_right.numpy(), cut=model.thresholds[0]))


def boxes_of(masks: NDArray[np.bool_]) -> Boxes:
    """Left, top, right and bottom edge of masks [N, H, W] in pixels, [N, 4]; NaN where a mask is empty.

    >>> mask = np.zeros((1, 4, 5), bool); mask[0, 1:3, 2:5] = True
    >>> boxes_of(mask).tolist()
    [[2.0, 1.0, 5.0, 3.0]]
    """
    across: NDArray[np.bool_] = np.asarray(masks.any(axis=1))  # [N, W]
    down: NDArray[np.bool_] = np.asarray(masks.any(axis=2))  # [N, H]
    edges = [across.argmax(axis=1), down.argmax(axis=1), across.shape[1] - across[:, ::-1].argmax(axis=1),
             down.shape[1] - down[:, ::-1].argmax(axis=1)]
    return np.where(across.any(axis=1, keepdims=True), np.stack(edges, axis=1), np.nan).astype(np.float64)


def model_inputs(pixels: ImageArray, *, size: int) -> Tensor:
    """Images [B, H, W] -> float32 [B, 1, size, size]: padded to a square with 0, averaged down or enlarged, mean 0, deviation 1."""
    height, width = pixels.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    inputs = torch.from_numpy(pixels.astype(np.float32))[:, None] / np.iinfo(pixels.dtype).max
    inputs = F.pad(inputs, (left, side - width - left, top, side - height - top))
    if side > size:
        inputs = F.interpolate(inputs, size=(size, size), mode="area")
    elif side < size:
        inputs = F.interpolate(inputs, size=(size, size), mode="bilinear", align_corners=False)
    centre, spread = inputs.mean(dim=(1, 2, 3), keepdim=True), inputs.std(dim=(1, 2, 3), keepdim=True)
    return ((inputs - centre) / spread.clamp_min(1e-5)).contiguous(memory_format=torch.channels_last)


def _at_image_size(maps: Tensor, *, height: int, width: int) -> Tensor:
    """Maps [B, C, S, S] of padded images, enlarged and without the padding, [B, C, height, width]."""
    side = max(height, width)
    wide = F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
    top, left = (side - height) // 2, (side - width) // 2
    return wide[:, :, top : top + height, left : left + width]


def _mirrored(right: NDArray[np.float32], left: NDArray[np.float32], *, cut: float) -> NDArray[np.float64]:
    """Part of the lungs' area [N, S, S] whose side is not that of its place, [N]; 0 where there is no lung."""
    there = np.maximum(right, left) >= cut
    columns = np.arange(right.shape[-1])[None, None]
    area = there.sum(axis=(1, 2))
    middle = (there * columns).sum(axis=(1, 2)) / np.maximum(area, 1)
    wrong = there & ((right > left) == (columns > middle[:, None, None]))
    return np.asarray(wrong.sum(axis=(1, 2)) / np.maximum(area, 1))


def _sides(at_left: NDArray[np.float32], at_right: NDArray[np.float32], *, cut: float) -> NDArray[np.int8]:
    """0 or 1 for each pixel, [N, S, S]: on which side of the line between the lungs it is; a piece of lung is on one side alone.

    The line is halfway between the centres of what the model calls the lung on the left and on the right of the image. A piece that
    reaches over it with a sixth of its area is two lungs that touch, and is cut there.
    """
    num, side = len(at_left), at_left.shape[-1]
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    sides = np.empty(at_left.shape, dtype=np.int8)
    for number in range(num):
        one, other = at_left[number], at_right[number]
        first, second = (one >= cut) & (one >= other), (other >= cut) & (other > one)
        beyond = x >= side / 2
        if first.any() and second.any():
            x0, y0, x1, y1 = (float(axis[lung].mean()) for lung in (first, second) for axis in (x, y))
            beyond = (x - (x0 + x1) / 2) * (x1 - x0) + (y - (y0 + y1) / 2) * (y1 - y0) >= 0
        pieces, count = ndimage.label(np.maximum(at_left[number], at_right[number]) >= cut)
        share = ndimage.mean(beyond, pieces, range(1, count + 1)) if count else []
        for piece, over in enumerate(share, start=1):
            if over < 1 / 6 or over > 5 / 6:
                beyond = np.where(pieces == piece, over > 0.5, beyond)
        sides[number] = beyond
    return sides


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece of a mask [S, S] without its holes; nothing where that is smaller than `SMALLEST_PART`."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max() < SMALLEST_PART * mask.size:
        return np.zeros_like(mask)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(pieces == 1 + sizes.argmax())
    return filled


def _widened(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks [N, C, S, S] and two pixels around, so that probabilities fall off at their rim as they do in the map."""
    wide: NDArray[np.bool_] = ndimage.binary_dilation(masks, structure=np.ones((1, 1, 5, 5), dtype=bool))
    return wide
