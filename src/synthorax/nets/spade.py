"""Masks to images: a generator whose every normalisation is conditioned on the mask (SPADE, Park et al. 2019), and a segmenter.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.convolutional_gan import SMALLEST_PX, widths
from synthorax.nets.layers import halved


def mask_channels(mask: Tensor | None, *, masks: int, size: int, side: int, device: torch.device) -> Tensor:
    """A mask [B, M, H, W] in [0, 1] or NaN as (stated, 2 value - 1 or 0) for each class, [B, 2 M, H, W]; None states nothing."""
    if mask is None:
        return torch.zeros(size, 2 * masks, side, side, device=device)
    stated = ~mask.isnan()
    return torch.cat([stated.to(mask), torch.where(stated, 2 * mask - 1, 0.0)], dim=1).to(device)


class MaskNorm(nn.Module):
    """Normalisation whose gain and offset at each position depend on the mask (Eq. 1, Park et al. 2019)."""

    def __init__(self, channels: int, *, kind: Literal["batch", "group"], inputs: int, hidden: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, affine=False)
        if kind == "group":
            self.norm = nn.GroupNorm(max(1, channels // 8), channels, affine=False)
        self.shared = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.change = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        """x [B, C, h, w] with the mask planes [B, I, H, W], which are averaged to the size of x."""
        shared_features = F.relu(self.shared(F.adaptive_avg_pool2d(planes, (x.shape[2], x.shape[3]))))
        gain, offset = self.change(shared_features).chunk(2, dim=1)
        changed: Tensor = self.norm(x) * (1 + gain) + offset
        return changed


class _Block(nn.Module):
    """Two normalised convolutions at twice the sides, added to the enlarged input."""

    def __init__(self, inputs: int, outputs: int, *, kind: Literal["batch", "group"], planes: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(MaskNorm(width, kind=kind, inputs=planes, hidden=hidden) for width in (inputs, outputs))
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2)
        inner = self.first(F.leaky_relu(self.norms[0](x, planes), 0.2))
        changed: Tensor = self.second(F.leaky_relu(self.norms[1](inner, planes), 0.2)) + self.skip(x)
        return changed


class SpadeGenerator(nn.Module):
    """Latent [B, Z], embedded condition [B, E] and mask channels [B, 2 M, S, S] -> image [B, 1, S, S] in (-1, 1)."""

    def __init__(self, *, image_size: int, latent_size: int, channels: int, embedding: int, masks: int, hidden: int,
                 norm: Literal["batch", "group"]) -> None:
        super().__init__()
        steps = widths(image_size, channels)
        self.start = nn.Linear(latent_size + embedding, steps[0] * SMALLEST_PX**2)
        self.blocks = nn.ModuleList(_Block(one, other, kind=norm, planes=2 * masks, hidden=hidden) for one, other in pairwise(steps))
        self.last = nn.Conv2d(steps[-1], 1, 3, padding=1)

    def forward(self, latent: Tensor, condition: Tensor, planes: Tensor) -> Tensor:
        x = self.start(torch.cat([latent, condition], dim=1)).unflatten(1, (-1, SMALLEST_PX, SMALLEST_PX))
        for block in self.blocks:
            x = block(x, planes)
        image: Tensor = self.last(F.leaky_relu(x, 0.2)).tanh()
        return image


class MaskReader(nn.Module):
    """A small U-Net that finds masks in images, [B, 1, S, S] -> logits [B, M, S, S]; S is a multiple of 8."""

    def __init__(self, *, masks: int, channels: int) -> None:
        super().__init__()
        down = [1, channels, 2 * channels, 4 * channels, 4 * channels]
        self.down = nn.ModuleList(_convolved(one, other) for one, other in pairwise(down))
        self.up = nn.ModuleList(_convolved(below + skip, skip) for below, skip in zip(down[:1:-1], down[-2:0:-1], strict=True))
        self.last = nn.Conv2d(channels, masks, 1)

    def forward(self, images: Tensor) -> Tensor:
        skips = [self.down[0](images)]
        for block in self.down[1:]:
            skips.append(block(halved(skips[-1])))
        x = skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1))
        logits: Tensor = self.last(x)
        return logits


def _convolved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(1, outputs), nn.ReLU())
