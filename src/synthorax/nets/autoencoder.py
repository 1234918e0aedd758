"""Encoder and decoder of an image compressor, and the measured scale of its latents.

A compressor is any module with `channels` (of its latents), `factor` (pixels of an image's side for each latent position),
`encode(images) -> latents` that is deterministic, and `decode(latents) -> images`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import Depth, Multipliers, Patch, Side, Width
from synthorax.errors import UsageError
from synthorax.nets.attention import SelfAttention
from synthorax.nets.layers import normalisation, zeroed


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Shape of a compressor; its `factor`, by which an image's side shrinks, is `patch` times 2 for each level after the first."""

    image_size: Side = 256
    """side of the square images in pixels"""
    channels: Width = 48
    """feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2)
    """feature maps of each level, in units of `channels`; each level after the first halves the resolution"""
    blocks: Depth = 1
    """residual blocks a level; the decoder has one more"""
    latent_channels: Width = 4
    """channels of the latents"""
    patch: Patch = 4
    """pixels of a side folded into channels before the first convolution: what makes full resolution cheap"""
    attention: bool = False
    """self-attention at the lowest resolution"""

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each latent position."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


def checked(config: AutoencoderConfig) -> AutoencoderConfig:
    """The config itself; `UsageError` where no such network can be built."""
    if min(config.patch, config.channels, config.blocks, config.latent_channels, *config.multipliers, len(config.multipliers)) < 1:
        raise UsageError("model.patch, channels, multipliers, blocks and latent_channels must each be at least 1")
    if config.image_size % config.factor:
        raise UsageError(f"model.image_size {config.image_size} is not a multiple of {config.factor}, which this compressor needs")
    return config


class Encoder(nn.Module):
    """Images to latent maps, [B, 1, S, S] -> [B, `outputs`, S / factor, S / factor] (Sec. 3.1, Rombach et al. 2022).

    The network adds to a linear compression, the lowest cosines of each block, and starts at 0: training
    begins with a usable compressor (the idea of residual autoencoding, Chen et al. 2024). Outputs beyond `latent_channels` have no
    such start.
    """

    cosines: Tensor

    def __init__(self, config: AutoencoderConfig, *, outputs: int) -> None:
        super().__init__()
        levels = [config.channels * multiplier for multiplier in config.multipliers]
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch), nn.Conv2d(config.patch**2, levels[0], 3, padding=1)]
        channels = levels[0]
        for level, width in enumerate(levels):
            if level > 0:
                layers += [nn.AvgPool2d(2), nn.Conv2d(channels, width, 3, padding=1)]
                channels = width
            layers += [ResidualBlock(width) for _ in range(config.blocks)]
        layers += [SelfAttention(channels, dims=2)] if config.attention else []
        self.layers = nn.Sequential(*layers, ResidualBlock(channels), _activated(channels),
                                    zeroed(nn.Conv2d(channels, outputs, 3, padding=1)))
        kernels = lowest_cosines(config.factor, config.latent_channels) / config.factor**2
        self.register_buffer("cosines", F.pad(kernels, (0, 0, 0, 0, 0, 0, 0, outputs - len(kernels))), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layers(images) + F.conv2d(images, self.cosines, stride=self.cosines.shape[-1])
        return maps


class Decoder(nn.Module):
    """Latent maps to images, [B, `latent_channels`, S / factor, S / factor] -> [B, 1, S, S], not clipped to [-1, 1].

    The network adds to the sum of cosines that the latents are at the start of training; see `Encoder`.
    """

    cosines: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        levels = [config.channels * multiplier for multiplier in config.multipliers]
        channels = levels[-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, channels, 3, padding=1), ResidualBlock(channels)]
        layers += [SelfAttention(channels, dims=2)] if config.attention else []
        for level, width in reversed(list(enumerate(levels))):
            if level < len(levels) - 1:
                layers += [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, width, 3, padding=1)]
                channels = width
            layers += [ResidualBlock(width) for _ in range(config.blocks + 1)]
        self.layers = nn.Sequential(*layers, _activated(channels))
        self.last = zeroed(nn.Conv2d(channels, config.patch**2, 3, padding=1))
        self.patch = config.patch
        self.register_buffer("cosines", lowest_cosines(config.factor, config.latent_channels), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        added = F.pixel_shuffle(self.last(self.layers(latents)), self.patch)  # [B, p^2, S / p, S / p] -> [B, 1, S, S]
        return added + F.conv_transpose2d(latents, self.cosines, stride=self.cosines.shape[-1])


def lowest_cosines(side: int, num: int) -> Tensor:
    """The `num` slowest two-dimensional cosines of a block, slowest first, [num, 1, side, side] of mean square 1; 0 beyond side ** 2.

    They are orthogonal (the DCT-II, Ahmed et al. 1974), so a block's best approximation is the sum of its projections on them.
    """
    steps = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(torch.pi / side * steps[:, None] * (steps + 0.5))  # [frequency, pixel]
    waves[1:] *= 2**0.5
    order = sorted(((y, x) for y in range(side) for x in range(side)), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:num]
    kernels = torch.stack([torch.outer(waves[y], waves[x]) for y, x in order])[:, None].float()
    return F.pad(kernels, (0, 0, 0, 0, 0, 0, 0, num - len(kernels)))


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions beside the identity, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_activated(channels), nn.Conv2d(channels, channels, 3, padding=1), _activated(channels),
                                    zeroed(nn.Conv2d(channels, channels, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.layers(x)
        return changed


class LatentScale(nn.Module):
    """Mean and standard deviation of each latent channel, measured on training images and saved with the weights."""

    mean: Tensor
    std: Tensor
    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("seen", torch.tensor(0))

    def fit(self, latents: Tensor) -> None:
        """Measure the latents [N, C, h, w] of training images, in float64. A channel that never varies is only centred."""
        mean, variance = _moments(latents)
        self._keep(mean, variance)

    def follow(self, latents: Tensor, *, part: float = 0.01) -> None:
        """Move the statistics towards a batch [B, C, h, w] by `part`, and faster in the first batches, where it is their average."""
        mean, variance = _moments(latents)
        weight = max(part, 1 / (int(self.seen) + 1))
        old_mean, old_variance = self.mean.double(), self.std.double().square()
        between = weight * (1 - weight) * (mean - old_mean).square()  # variance of a mixture: within its parts, and between them
        self._keep(old_mean + weight * (mean - old_mean), (1 - weight) * old_variance + weight * variance + between)

    def normalise(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> the same with mean 0 and variance 1 in each channel of what was measured."""
        return (latents - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents * self.std[:, None, None] + self.mean[:, None, None]

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        self.mean.copy_(mean)
        self.std.copy_(torch.where(variance > TINY, variance, torch.ones_like(variance)).sqrt())
        self.seen += 1


TINY = 1e-12  # a variance that is rounding


def _moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over images and positions, [N, C, h, w] -> two of [C] in float64."""
    values = latents.detach().double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, correction=0)


def _activated(channels: int) -> nn.Sequential:
    return nn.Sequential(normalisation(channels), nn.SiLU())
