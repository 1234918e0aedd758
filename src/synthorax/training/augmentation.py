"""Augmentation that the model is told of: strong changes of training images, each with the numbers that describe it.

A model that knows how its image was turned, zoomed, shifted and exposed learns from the changed images what all images have in common, and
makes unchanged ones when it is told of no change (Karras et al. 2022, Appendix F.2, after Karras et al. 2020b). So changes may be strong,
and unchanged images keep the sharpness that resampling takes away. Never a flip, which would move the heart.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from synthorax.nets.affine import resample
from synthorax.protocols import AUGMENTATIONS, LESION_PROPERTIES, Condition
from synthorax.rng import Draws

CHANGED = 0.5
"""how often an image is moved, and independently of that, exposed otherwise"""
ROTATION_DEGREES, ZOOM, ASPECT, SHIFT = 10.0, 0.15, 0.08, 0.08
"""greatest rotation, ln of the zoom, ln of the ratio of width to height, and shift as part of the image's side"""
GAIN, OFFSET, GAMMA = 0.2, 0.15, 0.35
"""greatest change of the grey range's width and middle, as parts of the range, and ln of the exponent of its curve"""
MOVING, EXPOSING = ("rotation", "zoom", "aspect", "shift_x", "shift_y"), ("gain", "offset", "gamma")
BLACK = -0.999  # interpolation leaves black borders a rounding error above -1


def told_augmentation(images: Tensor, condition: Condition, lesion: Tensor | None, draws: Draws) -> tuple[Tensor, Condition, Tensor | None]:
    """Images [B, 1, S, S] in [-1, 1], half of them moved and half of them exposed otherwise, with `Condition.augmentation` that says how.

    Masks and the stated place and size of lesions move along. An image that is not changed keeps every bit.
    """
    numbers = draws.uniform(len(MOVING) + len(EXPOSING)) * 2 - 1  # [B, A - 2] in [-1, 1)
    chance = draws.uniform(2)
    moved, exposed = chance[:, 0] < CHANGED, chance[:, 1] < CHANGED
    amount = dict(zip((*MOVING, *EXPOSING), numbers.unbind(1), strict=True))
    angle = amount["rotation"] * math.radians(ROTATION_DEGREES)
    zoom, aspect = (amount["zoom"] * ZOOM).exp(), (amount["aspect"] * ASPECT / 2).exp()
    wide, high, cosine, sine = zoom * aspect, zoom / aspect, angle.cos(), angle.sin()
    shift = torch.stack([amount["shift_x"], amount["shift_y"]], dim=1) * 2 * SHIFT  # the grid spans 2
    matrix = torch.stack([torch.stack([wide * cosine, -wide * sine, shift[:, 0]], dim=1),
                          torch.stack([high * sine, high * cosine, shift[:, 1]], dim=1)], dim=1)
    changed = torch.where(moved[:, None, None, None], resample(images, matrix, padding="reflection"), images)
    changed = torch.where(exposed[:, None, None, None], _exposed(changed, amount), changed)
    told = {"moved": moved.float(), "exposed": exposed.float(), **{name: amount[name] * moved for name in MOVING},
            **{name: amount[name] * exposed for name in EXPOSING}}
    condition, lesion = carried(condition, lesion, matrix, zoom=zoom, which=moved)
    return changed, replace(condition, augmentation=torch.stack([told[name] for name in AUGMENTATIONS], dim=1)), lesion


def _exposed(images: Tensor, amount: dict[str, Tensor]) -> Tensor:
    """Images on another grey curve; black borders stay black."""
    gain, offset, gamma = (amount[name][:, None, None, None] for name in EXPOSING)
    curved = ((images + 1) / 2).clamp(0, 1) ** (gamma * GAMMA).exp()
    return ((2 * curved * (1 + gain * GAIN) + 2 * offset * OFFSET * (images > BLACK)) - 1).clamp(-1, 1)


def carried(condition: Condition, lesion: Tensor | None, matrix: Tensor, *, zoom: Tensor,
            which: Tensor | None = None) -> tuple[Condition, Tensor | None]:
    """Masks and stated lesions after images were sampled at `matrix` [B, 2, 3] times their own grid; `which` rows of [B] (None: all)."""
    def carry(masks: Tensor | None) -> Tensor | None:
        if masks is None:
            return None
        unstated = masks[:, :, :1, :1].isnan()
        moved = resample(masks.nan_to_num(), matrix, padding="zeros").masked_fill(unstated, math.nan)
        return moved if which is None else torch.where(which[:, None, None, None], moved, masks)

    lesions = None if condition.lesions is None else moved_lesions(condition.lesions, matrix, zoom)
    if lesions is not None and which is not None and condition.lesions is not None:
        lesions = torch.where(which[:, None, None], lesions, condition.lesions)
    return replace(condition, mask=carry(condition.mask), lesions=lesions), carry(lesion)


def moved_lesions(lesions: Tensor, matrix: Tensor, zoom: Tensor) -> Tensor:
    """Stated lesions [B, K, P] after the image was sampled at `matrix` [B, 2, 3] times its own grid."""
    size, place = LESION_PROPERTIES.index("size"), [LESION_PROPERTIES.index("x"), LESION_PROPERTIES.index("y")]
    moved = lesions.clone()
    centred = lesions[:, :, place] * 2 - 1 - matrix[:, None, :, 2]
    moved[:, :, place] = torch.linalg.solve(matrix[:, None, :, :2], centred[..., None])[..., 0].add(1).div(2).clamp(0, 1)
    moved[:, :, size] = (lesions[:, :, size] / zoom[:, None]).clamp(0, 1)
    return moved
