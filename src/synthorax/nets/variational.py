"""Encoder and decoder of images through one short latent, with the condition: residual blocks as in the U-Net, and masks as maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.layers import channels_to_patches, normalisation, patches_to_channels
from synthorax.nets.unet import Block, Downsample, UNetConfig, Upsample


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCoderConfig:
    """Shape of both networks."""

    image_size: int
    """side of the square images in pixels"""
    channels: int
    """feature maps at the highest resolution"""
    multipliers: tuple[int, ...]
    """feature maps of each level, in units of `channels`; each level halves the resolution"""
    patch: int
    """pixels of a side folded into channels"""
    embedding: int
    """width of the condition's embedding"""
    maps: int = 0
    """channels of masks, and of which of them are stated"""

    @property
    def side(self) -> int:
        """Of the smallest maps."""
        return int(self.image_size // (self.patch * 2 ** (len(self.multipliers) - 1)))

    def block(self, inputs: int, outputs: int) -> Block:
        """A residual block with the embedding of the condition."""
        return Block(inputs, outputs, config=UNetConfig(embedding=self.embedding), attention=False)


def checked(config: ImageCoderConfig) -> ImageCoderConfig:
    """The config itself; `UsageError` where no such networks can be built."""
    if min(config.channels, config.patch, config.embedding, len(config.multipliers), *config.multipliers) < 1:
        raise UsageError("model.channels, multipliers, patch and embedding must each be at least 1")
    if config.image_size % (config.patch * 2 ** (len(config.multipliers) - 1)) or config.side < 1:
        multiple = config.patch * 2 ** (len(config.multipliers) - 1)
        raise UsageError(f"model.image_size {config.image_size} is not a multiple of {multiple}, which this network needs")
    return config


class ImageEncoder(nn.Module):
    """Images and the maps of their condition to numbers, [B, 1 + maps, S, S] and [B, E] -> [B, outputs]."""

    def __init__(self, config: ImageCoderConfig, *, outputs: int) -> None:
        super().__init__()
        levels = [config.channels * multiplier for multiplier in config.multipliers]
        self.patch = config.patch
        self.first = nn.Conv2d((1 + config.maps) * config.patch**2, levels[0], 3, padding=1)
        self.layers = nn.ModuleList()
        channels = levels[0]
        for level, width in enumerate(levels):
            if level > 0:
                self.layers.append(Downsample(channels, dims=2, resample="average"))
            self.layers.append(config.block(channels, width))
            channels = width
        self.norm = normalisation(channels)
        self.last = nn.Linear(channels * config.side**2, outputs)

    def forward(self, images: Tensor, embedding: Tensor) -> Tensor:
        x = self.first(patches_to_channels(images, self.patch))
        for layer in self.layers:
            x = layer(x, embedding, None) if isinstance(layer, Block) else layer(x)
        numbers: Tensor = self.last(F.silu(self.norm(x)).flatten(1))
        return numbers


class ImageDecoder(nn.Module):
    """Latents to images, [B, Z], [B, E] and, where there are maps, [B, maps, S, S] -> [B, outputs, S, S].

    Every block is conditioned on the latent and the condition, so that a strong decoder does not ignore the latent.
    """

    def __init__(self, config: ImageCoderConfig, *, latent_size: int, outputs: int) -> None:
        super().__init__()
        levels = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        self.patch, self.outputs, self.shape = config.patch, outputs, (levels[0], config.side, config.side)
        self.latent = nn.Linear(latent_size, config.embedding)
        self.first = nn.Linear(latent_size + config.embedding, levels[0] * config.side**2)
        self.layers, self.maps = nn.ModuleList(), nn.ModuleList()
        channels = levels[0]
        for level, width in enumerate(levels):
            if level > 0:
                self.layers.append(Upsample(channels, dims=2))
            if config.maps:
                self.maps.append(nn.Conv2d(config.maps, channels, 3, padding=1))
            self.layers.append(config.block(channels, width))
            channels = width
        self.norm = normalisation(channels)
        self.last = nn.Conv2d(channels, outputs * config.patch**2, 3, padding=1)

    def forward(self, latent: Tensor, embedding: Tensor, maps: Tensor | None = None) -> Tensor:
        x: Tensor = self.first(torch.cat([latent, embedding], dim=1)).unflatten(1, self.shape)
        embedded = F.silu(embedding + self.latent(latent))
        shown = iter(self.maps)
        for layer in self.layers:
            if isinstance(layer, Block):
                if maps is not None:
                    x = x + next(shown)(F.adaptive_avg_pool2d(maps, x.shape[2]))
                x = layer(x, embedded, None)
            else:
                x = layer(x)
        return channels_to_patches(self.last(F.silu(self.norm(x))), self.patch)
