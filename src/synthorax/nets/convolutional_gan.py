"""Convolutional generators and discriminators: plain (Radford et al. 2016) and residual (Gulrajani et al. 2017, Miyato and Koyama 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthorax.errors import UsageError
from synthorax.nets.layers import halved

SMALLEST_PX = 4
LARGEST_PX = 256
WIDEST = 8
"""most feature maps, in units of those at full resolution"""
DiscriminatorNorm = Literal["none", "batch", "layer", "spectral"]
GeneratorNorm = Literal["batch", "group"]


def widths(image_size: int, channels: int) -> list[int]:
    """Feature maps at 4, 8, ..., `image_size` px, twice as many at each halving, up to eight times `channels`.

    >>> widths(32, 16)
    [128, 64, 32, 16]
    """
    levels = (image_size // SMALLEST_PX).bit_length() - 1
    if image_size != SMALLEST_PX * 2**levels or not 2 * SMALLEST_PX <= image_size <= LARGEST_PX:
        raise UsageError(f"model.image_size {image_size} does not fit: this family makes images of 8, 16, 32, 64, 128 or 256 px")
    return [channels * min(2**(levels - level), WIDEST) for level in range(levels + 1)]


class ConditionalNorm(nn.Module):
    """Batch or group normalisation of [B, C, H, W] whose gain and offset follow from a condition [B, E] (de Vries et al. 2017)."""

    def __init__(self, channels: int, *, kind: GeneratorNorm, embedding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(max(1, channels // 8), channels)
        self.change = nn.Linear(embedding, 2 * channels, bias=False) if embedding else None
        if self.change is not None:
            nn.init.normal_(self.change.weight, std=0.02)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = cast(Tensor, self.norm(x))
        if self.change is None:
            return x
        gain, offset = cast(Tensor, self.change(condition))[:, :, None, None].chunk(2, dim=1)
        return x * (1 + gain) + offset


class _Enlarge(nn.Module):
    """A 4 x 4 transposed convolution that doubles the sides, normalised and rectified."""

    def __init__(self, inputs: int, outputs: int, *, norm: GeneratorNorm, embedding: int) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = ConditionalNorm(outputs, kind=norm, embedding=embedding)
        nn.init.normal_(self.layer.weight, std=0.02)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return F.relu(self.norm(self.layer(x), condition))


class _ResidualEnlarge(nn.Module):
    """Two 3 x 3 convolutions around a doubling of the sides, added to the enlarged input."""

    def __init__(self, inputs: int, outputs: int, *, norm: GeneratorNorm, embedding: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(width, kind=norm, embedding=embedding) for width in (inputs, outputs))
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        inner = F.interpolate(F.relu(self.norms[0](x, condition)), scale_factor=2)
        skipped: Tensor = F.interpolate(self.skip(x), scale_factor=2)  # 1 x 1: before or after enlarging is the same
        made: Tensor = self.second(F.relu(self.norms[1](self.first(inner), condition))) + skipped
        return made


class Generator(nn.Module):
    """Latent [B, Z] and embedded condition [B, E] -> image [B, 1, S, S] in (-1, 1)."""

    def __init__(self, *, image_size: int, latent_size: int, channels: int, embedding: int, residual: bool,
                 norm: GeneratorNorm) -> None:
        super().__init__()
        steps = widths(image_size, channels)
        self.start = nn.Linear(latent_size + embedding, steps[0] * SMALLEST_PX**2, bias=residual)
        self.first = ConditionalNorm(steps[0], kind=norm, embedding=embedding)
        block = _ResidualEnlarge if residual else _Enlarge
        wide = list(pairwise(steps))
        self.blocks = nn.ModuleList(block(one, other, norm=norm, embedding=embedding) for one, other in wide)
        self.last = nn.Conv2d(steps[-1], 1, 3, padding=1)
        self.residual = residual
        self.final = ConditionalNorm(steps[-1], kind=norm, embedding=embedding) if residual else None

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        x = self.start(torch.cat([latent, condition], dim=1)).unflatten(1, (-1, SMALLEST_PX, SMALLEST_PX))
        if not self.residual:
            x = F.relu(self.first(x, condition))
        for block in self.blocks:
            x = block(x, condition)
        if self.final is not None:
            x = F.relu(self.final(x, condition))
        image: Tensor = self.last(x).tanh()
        return image


class ConvolutionalDiscriminator(nn.Module):
    """Strided 4 x 4 convolutions down to 4 px, [B, C, S, S] -> features [B, F]."""

    def __init__(self, *, image_size: int, inputs: int, channels: int, norm: DiscriminatorNorm) -> None:
        super().__init__()
        outputs = widths(image_size, channels)[:0:-1]
        layers: list[nn.Module] = []
        for level, (wide, width) in enumerate(pairwise([inputs, *outputs])):
            layer = nn.Conv2d(wide, width, 4, stride=2, padding=1)
            nn.init.normal_(layer.weight, std=0.02 if norm in ("batch", "spectral") else (2 / (16 * wide)) ** 0.5)
            layers += [spectral_norm(layer) if norm == "spectral" else layer,
                       _normalised(width, norm=norm if level else "none"), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.features = outputs[-1] * SMALLEST_PX**2

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class _ResidualHalve(nn.Module):
    """Two 3 x 3 convolutions and a halving of the sides, added to the halved input."""

    def __init__(self, inputs: int, outputs: int, *, norm: DiscriminatorNorm, first: bool) -> None:
        super().__init__()
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)]
        one, other, self.skip = (spectral_norm(layer) if norm == "spectral" else layer for layer in layers)
        before: list[nn.Module] = [] if first else [_normalised(inputs, norm=norm), nn.ReLU()]
        self.inner = nn.Sequential(*before, one, _normalised(outputs, norm=norm), nn.ReLU(), other)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = halved(self.inner(x)) + self.skip(halved(x))
        return made


class ResidualDiscriminator(nn.Module):
    """Residual blocks down to 4 px and a scaled sum over positions, [B, C, S, S] -> features [B, F]."""

    def __init__(self, *, image_size: int, inputs: int, channels: int, norm: DiscriminatorNorm) -> None:
        super().__init__()
        steps = [inputs, *widths(image_size, channels)[:0:-1]]
        self.blocks = nn.Sequential(*(_ResidualHalve(wide, width, norm=norm, first=level == 0)
                                      for level, (wide, width) in enumerate(pairwise(steps))))
        self.features = steps[-1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = F.relu(self.blocks(images)).sum((2, 3)) / SMALLEST_PX  # a sum of n numbers over the root of n: as steep as they
        return features


def _normalised(channels: int, *, norm: DiscriminatorNorm) -> nn.Module:
    """What stands between a convolution and its rectifier; spectral normalisation is in the convolution."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if norm == "layer" else nn.Identity()
