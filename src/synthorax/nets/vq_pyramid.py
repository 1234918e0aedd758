"""An autoencoder with one grid of codes, or two: a coarse grid, and a fine one that adds what the coarse one leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.autoencoder import ResidualBlock
from synthorax.nets.layers import normalisation
from synthorax.nets.quantizer import Quantizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PyramidConfig:
    """Shape of both networks and of their codebooks."""

    image_size: int
    """side of the square images in pixels"""
    levels: int
    """grids of codes, 1 or 2; the coarse one has half the side of the fine one"""
    channels: int
    """feature maps at the highest resolution"""
    multipliers: tuple[int, ...]
    """feature maps of each level down to the fine grid, in units of `channels`; each after the first halves the resolution"""
    patch: int
    """pixels of a side folded into channels before the first convolution"""
    blocks: int
    """residual blocks a level"""
    code_channels: int
    """length of a code vector"""
    codes: int
    """vectors in the codebook of each grid"""
    gradient: bool
    """whether codes move by gradients, and not by running means"""

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the grids, coarse first."""
        fine = self.image_size // (self.patch * 2 ** (len(self.multipliers) - 1))
        return (fine,) if self.levels == 1 else (fine // 2, fine)


def checked(config: PyramidConfig) -> PyramidConfig:
    """The config itself; `UsageError` where no such networks can be built."""
    if min(config.channels, config.patch, config.blocks, config.code_channels, len(config.multipliers), *config.multipliers) < 1:
        raise UsageError("model.channels, multipliers, patch, blocks and code_channels must each be at least 1")
    if config.codes < 2:
        raise UsageError(f"model.codes={config.codes}: a codebook needs at least 2 codes")
    multiple = config.patch * 2 ** (len(config.multipliers) + config.levels - 2)
    if config.image_size % multiple or config.image_size < multiple:
        raise UsageError(f"model.image_size {config.image_size} is not a multiple of {multiple}, which this network needs")
    return config


class Read(NamedTuple):
    """One grid of an image, from the encoder and from the codebook."""

    latents: Tensor
    """[B, C, s, s]"""
    codes: Tensor
    """[B, C, s, s]: the nearest codes, whose gradient goes straight through to the latents"""


class VqPyramid(nn.Module):
    """Images to grids of codes, coarse first, and back (Algorithm 1, Razavi et al. 2019; with one level, van den Oord et al. 2017).

    The fine encoder gets the coarse codes, and the decoder all codes, so that the fine ones can hold the rest.
    """

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config = checked(config)
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        width, codes = widths[-1], config.code_channels
        self.quantizers = nn.ModuleList(Quantizer(num_codes=config.codes, channels=codes, gradient=config.gradient) for _ in config.sides)
        down: list[nn.Module] = [nn.PixelUnshuffle(config.patch), nn.Conv2d(config.patch**2, widths[0], 3, padding=1)]
        up: list[nn.Module] = []
        for level, wide in enumerate(widths):
            if level > 0:
                down += [nn.AvgPool2d(2), nn.Conv2d(widths[level - 1], wide, 3, padding=1)]
                up = [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(wide, widths[level - 1], 3, padding=1), *up]
            down += _blocks(wide, config.blocks)
            up = [*_blocks(wide, config.blocks), *up]
        self.down = nn.Sequential(*down)
        both = config.levels == 2
        self.fine = _out(width * (1 + both), codes, hidden=width)
        if both:
            self.down_coarse = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, width, 3, padding=1), *_blocks(width, config.blocks),
                                             _out(width, codes, hidden=width))
            self.fine_in = _enlarged(codes, width, config.blocks)
            self.coarse_in = _enlarged(codes, width, config.blocks)
        self.codes_in = nn.Conv2d(codes, width, 3, padding=1)
        self.up = nn.Sequential(*up, normalisation(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], config.patch**2, 3, padding=1),
                                nn.PixelShuffle(config.patch))

    def read(self, images: Tensor, *, learn: bool = False) -> list[Read]:
        """The grids of images [B, 1, S, S] in [-1, 1], coarse first; with `learn` the codebooks learn from them."""
        features = self.down(images)
        if self.config.levels == 1:
            return [self._quantised(0, self.fine(features), learn=learn)]
        coarse = self._quantised(0, self.down_coarse(features), learn=learn)
        fine = self.fine(torch.cat([features, self.fine_in(coarse.codes)], dim=1))
        return [coarse, self._quantised(1, fine, learn=learn)]

    def image(self, codes: list[Tensor]) -> Tensor:
        """Images of code vectors, each [B, C, s, s] and coarse first -> [B, 1, S, S], not clipped to [-1, 1]."""
        codes_in = self.codes_in(codes[-1])
        if self.config.levels == 2:
            codes_in = codes_in + self.coarse_in(codes[0])
        image: Tensor = self.up(codes_in)
        return image.float()

    def encode(self, images: Tensor) -> list[Tensor]:
        """Numbers of the codes of images [B, 1, S, S] in [-1, 1], each grid [B, s, s], coarse first."""
        return [self.quantizer(number).indices(read.latents) for number, read in enumerate(self.read(images))]

    def decode(self, numbers: list[Tensor]) -> Tensor:
        """Images of code numbers, each grid [B, s, s] and coarse first -> [B, 1, S, S] in [-1, 1]."""
        return self.image([self.quantizer(level).look_up(grid) for level, grid in enumerate(numbers)]).clamp(-1, 1)

    def quantizer(self, level: int) -> Quantizer:
        """The codebook of a grid, 0 the coarsest."""
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def _quantised(self, level: int, latents: Tensor, *, learn: bool) -> Read:
        latents = latents.float()
        if learn and bool(latents.isfinite().all()):
            self.quantizer(level).learn(latents)
        return Read(latents, self.quantizer(level)(latents))


def _blocks(channels: int, number: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(number)]


def _out(channels: int, outputs: int, *, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), ResidualBlock(hidden),
                         normalisation(hidden), nn.SiLU(), nn.Conv2d(hidden, outputs, 1))


def _enlarged(codes: int, width: int, blocks: int) -> nn.Module:
    """Coarse codes as features of the fine grid, [B, codes, s, s] -> [B, width, 2 s, 2 s]."""
    return nn.Sequential(nn.Conv2d(codes, width, 3, padding=1), *_blocks(width, blocks), nn.Upsample(scale_factor=2.0, mode="nearest"),
                         nn.Conv2d(width, width, 3, padding=1))
