"""Noise conditioning augmentation: the part `image` is reduced, made noisy and blurred, and enlarged again.

A super-resolution network that learns from perfectly reduced images trusts every pixel of its input, the artefacts of a generator included.
So training adds noise of a random level, on which the network is conditioned (Sec. 4.2, Ho et al. 2022, "Cascaded diffusion models"), and
blurs a little, because generated images are softer than reduced real ones. Sampling adds a little noise too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVEL_UNIT = 0.1
"""noise level at which its input plane is 1"""
_REACH_PX = 4  # of the blur on each side; four standard deviations of one pixel


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Images [B, C, h, w] at other sides, [B, C, *sides]: by averaging down, by cubic interpolation up."""
    if tuple(images.shape[2:]) == sides:
        return images
    if images.shape[2] >= sides[0] and images.shape[3] >= sides[1]:
        return F.adaptive_avg_pool2d(images, sides)
    # Without antialias PyTorch's cubic has a = -0.75, which turns even ramps into steps; with it a = -0.5 (Keys 1981), which does not.
    return F.interpolate(images, size=sides, mode="bicubic", align_corners=False, antialias=True)


def blurred(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Each image [B, 1, h, w] under a Gaussian of its own standard deviation `sigma_px` [B], between 0 and 1 pixel."""
    offsets = torch.arange(-_REACH_PX, _REACH_PX + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [B, 9]
    x = F.pad(images.transpose(0, 1), [_REACH_PX] * 4, mode="replicate")  # [1, B, h + 8, w + 8]
    for kernel in (weights[:, None, :, None], weights[:, None, None, :]):
        x = F.conv2d(x, kernel, groups=len(images))
    return x.transpose(0, 1)


def with_noise(images: Tensor, *, level: Tensor, noise: Tensor) -> Tensor:
    """Images [B, 1, h, w] with noise of standard deviation `level` [B], and that level as a second channel, [B, 2, h, w].

    An image of NaN, which is not stated, has no level either.
    """
    plane = level[:, None, None, None].expand_as(images).masked_fill(images.isnan(), math.nan)
    return torch.cat([images + plane * noise, plane], dim=1)


def crop_at(maps: Tensor, corners: Tensor, side: int) -> Tensor:
    """The square of `side` pixels of each of [B, C, H, W] whose upper left pixel is `corners` [B, 2], row first, [B, C, side, side]."""
    places = corners.tolist()
    return torch.stack([one[:, top:top + side, left:left + side] for one, (top, left) in zip(maps, places, strict=True)])
