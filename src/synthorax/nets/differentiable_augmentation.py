"""Differentiable augmentation of images before a discriminator, plausible for chest radiographs: never a flip, which moves the heart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthorax.nets.affine import affine_matrix, resample
from synthorax.rng import Draws

SHIFT = 0.125
"""largest shift, in parts of the side"""
ROTATION_DEGREES = 10.0
ZOOM = 0.2
"""standard deviation of the scale's logarithm to the base 2"""
BRIGHTNESS = 0.2
CONTRAST = 0.3
"""standard deviation of the contrast's logarithm to the base 2"""
NOISE = 0.1
CUTOUT = 0.4
"""side of the square that is blanked, in parts of the image's side"""
KINDS = 7
"""shift, rotation, zoom, brightness, contrast, noise, cutout: each applied independently"""


def augmented(images: Tensor, *, probability: Tensor | float, draws: Draws) -> Tensor:
    """Each augmentation applied independently to each image, [B, 1, S, S] -> the same; `probability` 0 returns the images bit for bit.

    The changes that Karras et al. 2020b, Appendix B, call isotropic scaling, rotation, translation, brightness, contrast, noise and
    cutout, without flips and large turns.
    """
    chosen = draws.uniform(KINDS) < probability  # [B, 7]
    amount = draws.normal(5)
    place = draws.uniform(4) * 2 - 1
    noise = draws.normal(*images.shape[1:])
    if not bool(chosen.any()):
        return images
    on = chosen.to(images)
    images = _moved(images, shift=place[:, :2] * SHIFT * on[:, :1], angle=amount[:, 0].clamp(-2, 2) / 2 * ROTATION_DEGREES * on[:, 1],
                   zoom=2 ** (amount[:, 1] * ZOOM * on[:, 2]), which=chosen[:, :3].any(1))
    gain = 2 ** (amount[:, 3] * CONTRAST * on[:, 4])
    lighter = images * gain[:, None, None, None] + (amount[:, 2] * BRIGHTNESS * on[:, 3])[:, None, None, None]
    noisy = lighter + noise * (amount[:, 4].abs() * NOISE * on[:, 5])[:, None, None, None]
    return noisy * _outside_square(noisy, centre=place[:, 2:], which=chosen[:, 6])


def _moved(images: Tensor, *, shift: Tensor, angle: Tensor, zoom: Tensor, which: Tensor) -> Tensor:
    """Images shifted [B, 2] in parts of the side, turned by degrees [B] and enlarged [B]; those not in `which` stay as they are."""
    turn = angle * (math.pi / 180)
    cosine, sine = turn.cos() / zoom, turn.sin() / zoom
    moved = resample(images, affine_matrix(cosine, sine, 2 * shift), padding="reflection")
    return torch.where(which[:, None, None, None], moved, images)


def _outside_square(images: Tensor, *, centre: Tensor, which: Tensor) -> Tensor:
    """0 inside the square around `centre` [B, 2] in [-1, 1] for images in `which`, 1 elsewhere, [B, 1, S, S]."""
    side = images.shape[-1]
    axis = (torch.arange(side, device=images.device) * 2 + 1) / side - 1
    near = (axis[None] - centre.reshape(-1, 1)).abs() < CUTOUT  # [B 2, S], as parts of [-1, 1]
    x, y = near.reshape(-1, 2, side).unbind(1)
    inside = y[:, None, :, None] & x[:, None, None, :] & which[:, None, None, None]
    return (~inside).to(images)
