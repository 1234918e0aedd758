"""Perceptual distance: of feature maps, with features that can be exchanged and work offline."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError, nearest
from synthorax.registry import lookup

Features = Callable[[Tensor], Sequence[Tensor]]
"""Images [B, 1, H, W] in [-1, 1] -> maps [B, C_i, H_i, W_i]"""

PERCEPTUAL: dict[str, str] = {
    "oriented": "synthorax.losses.perceptual:Oriented",
    "vgg16": "synthorax.nets.imagenet:Vgg16Stages",
}
"""Features that ship. A path to a TorchScript file (.pt or .ts) is accepted as well."""

FLOOR = 0.05
"""Length of a feature vector below which it counts as noise: normalising to length 1 would give flat regions the weight of edges."""


def perceptual_distance(first: Tensor, second: Tensor, *, features: Features) -> Tensor:
    """Squared distance of features that are normalised at each position, averaged over positions, [B, 1, H, W] twice -> [B].

    Summed over the maps (Eq. 1, Zhang et al. 2018, with all weights 1).

    >>> image = torch.zeros(1, 1, 64, 64)
    >>> perceptual_distance(image, image, features=Oriented()).item()
    0.0
    """
    total = torch.zeros(len(first), device=first.device)
    for one, other in zip(features(first), features(second), strict=True):
        total = total + (_normalised(one) - _normalised(other)).square().sum(1).flatten(1).mean(1)
    return total


def is_scripted(name_or_path: str) -> bool:
    """Whether features are those of a TorchScript file and not of this module."""
    return name_or_path.endswith((".pt", ".ts"))


def perceptual_features(name_or_path: str) -> nn.Module:
    """Features by their name in `PERCEPTUAL`, or from a TorchScript file; frozen. Raises UsageError or InputError."""
    if is_scripted(name_or_path):
        return Frozen(Scripted(Path(name_or_path)))
    if name_or_path not in PERCEPTUAL:
        raise UsageError(f"unknown perceptual features '{name_or_path}'; {nearest(name_or_path, PERCEPTUAL)} "
                         f"A TorchScript file is named by its path and ends in .pt or .ts")
    return Frozen(lookup(PERCEPTUAL, name_or_path, kind="perceptual features")())


class Frozen(nn.Module):
    """Features that never train, whatever mode the objective around them is in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.inner(images)
        return maps


class Oriented(nn.Module):
    """Fixed features without weights: strength of edges and lines of each direction, and local contrast, at several scales.

    Directions are pairs of Gabor filters a quarter of a wave apart, of which the magnitude is taken, so that a small shift is a
    small change (Adelson and Bergen 1985). Images are halved between scales; a scale that is smaller than a filter is left out.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, *, scales: int = 4, directions: int = 4) -> None:
        super().__init__()
        self.scales = scales
        self.register_buffer("filters", gabor_pairs(directions), persistent=False)
        line = torch.exp(-torch.linspace(-2, 2, SIZE_PX).square() / 2)
        self.register_buffer("window", (torch.outer(line, line) / line.sum() ** 2)[None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 1, H, W] in [-1, 1] -> one map [B, directions + 1, about H / 2 ** (s + 1), W / 2 ** (s + 1)] for each scale s."""
        maps = []
        with torch.autocast(images.device.type, enabled=False):  # a variance in bfloat16 would be noise
            images = images.float()
            for scale in range(self.scales):
                if scale > 0:
                    images = F.avg_pool2d(images, 2)
                if min(images.shape[-2:]) < SIZE_PX:
                    break
                padded = F.pad(images, (SIZE_PX // 2,) * 4, mode="reflect")
                responses = F.conv2d(padded, self.filters, stride=STRIDE_PX).square()  # [B, 2 directions, h, w], even and odd in turn
                magnitude = (responses[:, ::2] + responses[:, 1::2] + TINY).sqrt()
                around = F.conv2d(torch.cat([padded, padded.square()]), self.window, stride=STRIDE_PX)  # [2 B, 1, h, w]
                mean, square = around.chunk(2)
                contrast = ((square - mean.square()).clamp_min(0) + TINY).sqrt()
                maps.append(torch.cat([magnitude, contrast], dim=1))
        return maps


SIZE_PX = 7
WAVELENGTH_PX = 4.0
STRIDE_PX = 2  # magnitudes vary slowly beside the wave itself, so every second position tells nearly all
TINY = 1e-6  # keeps the gradient of a root finite at 0; (1 / 1000) ** 2, an eighth of an 8-bit grey level


def gabor_pairs(directions: int) -> Tensor:
    """Even and odd Gabor filters of each direction, [2 directions, 1, 7, 7]: blind to brightness, each of length 1."""
    axis = torch.arange(SIZE_PX, dtype=torch.float64) - SIZE_PX // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x.square() + y.square()) / (2 * (WAVELENGTH_PX / 2.5) ** 2))
    filters = []
    for number in range(directions):
        angle = math.pi * number / directions
        phase = 2 * math.pi / WAVELENGTH_PX * (x * math.cos(angle) + y * math.sin(angle))
        even = window * phase.cos()
        even = even - window * even.sum() / window.sum()
        filters += [even / even.norm(), window * phase.sin() / (window * phase.sin()).norm()]
    return torch.stack(filters)[:, None].float()


class Scripted(nn.Module):
    """Features of any network that was saved with TorchScript: images [B, 1, H, W] in [-1, 1] to one map or a list of maps.

    Such a file is a program: load only one that you trust.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise InputError("no such file of perceptual features", file=path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have torch.export; such files exist all the same
                self.network = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise InputError("is not a TorchScript file", file=path, remedy="write it with torch.jit.save") from error

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network(images)
        return [maps] if isinstance(maps, Tensor) else list(maps)


def _normalised(maps: Tensor) -> Tensor:
    """Each position's feature vector at length 1, or shorter near `FLOOR`, [B, C, H, W]."""
    maps = maps.float()
    return maps / (maps.square().sum(1, keepdim=True) + FLOOR**2).sqrt()
