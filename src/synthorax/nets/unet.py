"""The U-Net denoiser: residual blocks conditioned on the noise level and the condition, attention at low resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.attention import Context, CrossAttention, SelfAttention, prepared_context
from synthorax.nets.embedding import NoiseEmbedding
from synthorax.nets.group_norm import normalised
from synthorax.nets.layers import (
    Modulation,
    channels_to_patches,
    convolution,
    coordinates_like,
    first_layer,
    for_convolutions,
    halved,
    normalisation,
    patches_to_channels,
    require_sides,
    zeroed,
)
from synthorax.nets.lora import LowRank
from synthorax.nets.transformer import TransformerConfig
from synthorax.nets.upsampling import convolved_at_double


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """Shape of a U-Net."""

    channels: int = 96
    """feature maps at the highest resolution"""
    multipliers: tuple[int, ...] = (1, 2, 3)
    """feature maps of each level, in units of `channels`; each level halves the resolution"""
    blocks: int = 2
    """residual blocks a level on the way down; one more on the way up"""
    attention: tuple[bool, ...] = (False, False, True)
    """whether the blocks of each level are followed by attention"""
    patch: int = 2
    """pixels of a side folded into channels before the first convolution"""
    dropout: float = 0.0
    """probability of dropping a feature inside each residual block"""
    embedding: int = 256
    """width of the noise and condition embedding"""
    dims: int = 2
    """2 for images, 3 for volumes"""
    context: int = 0
    """width of the context tokens; 0 for none"""
    resample: Literal["average", "strided"] = "average"
    """how a level is halved: by averaging before a convolution, or by the stride of the convolution itself"""
    coordinates: bool = False
    """whether x and y (and z) are input channels too (Liu et al. 2018): they help to find a place that is given in numbers"""
    middle_attention: bool = True
    """whether the two blocks between the way down and the way up have attention between them"""


class UNet(nn.Module):
    """Maps a noisy image and its condition to an image of the same sides (Ho et al. 2020; Dhariwal and Nichol 2021).

    x [B, `inputs`, *S], noise level [B], condition embedding [B, `embedding`], and optionally context tokens [B, T, `context`] with
    those that are stated [B, T] of bool (None: all) -> [B, `outputs`, *S]. S must be multiples of `smallest_multiple`.
    Where x are crops, `place` says of which part of an image, as in `coordinates_like`. The last `maps` of the inputs are masks and images
    of the condition; where all of them are 0 they may be left out, which gives the same image, to the bit, sooner.
    """

    def __init__(self, config: UNetConfig, *, inputs: int = 1, outputs: int = 1, maps: int = 0) -> None:
        super().__init__()
        if len(config.multipliers) != len(config.attention):
            raise UsageError("multipliers and attention of a U-Net must have the same length")
        self.config, self.multiple = config, smallest_multiple(config)
        width, dims = config.embedding, config.dims
        self.noise = nn.Sequential(NoiseEmbedding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        levels = [config.channels * m for m in config.multipliers]

        def block(entering: int, leaving: int, attention: bool) -> Block:
            return Block(entering, leaving, config=config, attention=attention)

        self.maps = slice((inputs - maps) * config.patch**dims, inputs * config.patch**dims)  # of the channels of `first`
        self.first = convolution(self.maps.stop + dims * config.coordinates, levels[0], 3, dims=dims)
        self.down = nn.ModuleList()
        skips = [levels[0]]
        for level, channels in enumerate(levels):
            for _ in range(config.blocks):
                self.down.append(block(skips[-1], channels, config.attention[level]))
                skips.append(channels)
            if level < len(levels) - 1:
                self.down.append(Downsample(channels, dims=dims, resample=config.resample))
                skips.append(channels)
        self.middle = nn.ModuleList([block(levels[-1], levels[-1], config.middle_attention), block(levels[-1], levels[-1], False)])
        self.up = nn.ModuleList()
        channels = levels[-1]
        for level, leaving in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                self.up.append(block(channels + skips.pop(), leaving, config.attention[level]))
                channels = leaving
            if level > 0:
                self.up.append(Upsample(channels, dims=dims))
        self.last = nn.Sequential(normalisation(channels), nn.SiLU(),
                                  zeroed(convolution(channels, outputs * config.patch**dims, 3, dims=dims)))

    def forward(self, x: Tensor, noise_level: Tensor, embedding: Tensor, context: Tensor | None = None,
                context_stated: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        require_sides(x, dims=self.config.dims, multiple=self.multiple)
        tokens = prepared_context(context, context_stated, width=self.config.context)
        embedding = F.silu(self.noise(noise_level) + embedding)  # [B, E]
        x = patches_to_channels(x, self.config.patch)  # [B, inputs p^dims, *(S / p)]
        x, maps = x[:, :self.maps.start], x[:, self.maps.start:]
        x = torch.cat([x, coordinates_like(x, place)], dim=1) if self.config.coordinates else x
        x = first_layer(self.first, for_convolutions(x), for_convolutions(maps), where=self.maps)
        x = for_convolutions(x)  # the memory format of an input with a single channel is ambiguous
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding, tokens) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding, tokens)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding, tokens) if isinstance(layer, Block) else layer(x)
        norm, _, last = self.last
        assert isinstance(norm, nn.GroupNorm)
        return channels_to_patches(last(normalised(x, norm, silu=True)), self.config.patch)


class Block(nn.Module):
    """Residual block; the embedding scales and shifts its normalised features, [B, C_in, *S] -> [B, C_out, *S]."""

    def __init__(self, inputs: int, outputs: int, *, config: UNetConfig, attention: bool) -> None:
        super().__init__()
        dims = config.dims
        self.norm_in = normalisation(inputs)
        self.conv_in = convolution(inputs, outputs, 3, dims=dims)
        self.affine = Modulation(config.embedding, 2 * outputs)
        self.norm_out = normalisation(outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = zeroed(convolution(outputs, outputs, 3, dims=dims))
        self.skip = convolution(inputs, outputs, 1, dims=dims) if inputs != outputs else nn.Identity()
        self.attention = SelfAttention(outputs, dims=dims) if attention else nn.Identity()
        self.cross = CrossAttention(outputs, context=config.context) if attention and config.context else None

    def forward(self, x: Tensor, embedding: Tensor, context: Context | None) -> Tensor:
        h = self.conv_in(normalised(x, self.norm_in, silu=True))
        scale, shift = self.affine(embedding).chunk(2, dim=1)  # each [B, C_out]
        h = normalised(h, self.norm_out, scale=scale, shift=shift, silu=True)
        attended: Tensor = self.attention(self.conv_out(self.dropout(h)) + self.skip(x))
        if self.cross is not None and context is not None:
            attended = self.cross(attended.flatten(2).transpose(1, 2), context).transpose(1, 2).reshape(h.shape)
        return attended


class Downsample(nn.Module):
    """Halve the resolution and convolve, [B, C, *S] -> [B, C, *(S / 2)]."""

    def __init__(self, channels: int, *, dims: int, resample: Literal["average", "strided"]) -> None:
        super().__init__()
        self.average = resample == "average"
        self.conv = convolution(channels, channels, 3, dims=dims, stride=1 if self.average else 2)

    def forward(self, x: Tensor) -> Tensor:
        reduced: Tensor = self.conv(halved(x) if self.average else x)
        return reduced


class Upsample(nn.Module):
    """Double the resolution by repetition, and convolve, [B, C, *S] -> [B, C, *(2 S)]."""

    def __init__(self, channels: int, *, dims: int) -> None:
        super().__init__()
        self.conv: nn.Module = convolution(channels, channels, 3, dims=dims)

    def forward(self, x: Tensor) -> Tensor:
        def enlarged(conv: nn.Module) -> Tensor:
            if isinstance(conv, nn.Conv2d):
                return convolved_at_double(x, conv)
            volume: Tensor = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            return volume

        return self.conv.through(enlarged) if isinstance(self.conv, LowRank) else enlarged(self.conv)


def smallest_multiple(config: UNetConfig | TransformerConfig) -> int:
    """Image sides must be multiples of this many pixels.

    >>> smallest_multiple(UNetConfig(patch=2, multipliers=(1, 2, 3), attention=(False, False, True)))
    8
    """
    return config.patch if isinstance(config, TransformerConfig) else int(config.patch * 2 ** (len(config.multipliers) - 1))
