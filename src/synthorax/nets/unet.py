"""The U-Net denoiser: residual blocks that all hear the noise level and the condition, attention at low resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.embedding import NoiseEmbedding


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
    """whether the blocks of each level are followed by self-attention"""
    patch: int = 2
    """pixels of a side folded into channels before the first convolution"""
    dropout: float = 0.0
    """probability of dropping a feature inside each residual block"""
    embedding: int = 256
    """width of the noise and condition embedding"""


class UNet(nn.Module):
    """Maps an image and an embedding to an image of the same shape (Ho et al. 2020; Dhariwal and Nichol 2021).

    x [B, C, H, W], noise level [B], condition embedding [B, `embedding`] -> [B, C, H, W]. H and W must be multiples of
    `patch * 2 ** (levels - 1)`.
    """

    def __init__(self, config: UNetConfig, *, image_channels: int = 1) -> None:
        super().__init__()
        self.patch = config.patch
        width = config.embedding
        self.noise = nn.Sequential(NoiseEmbedding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        folded = image_channels * config.patch**2
        levels = [config.channels * m for m in config.multipliers]

        def block(inputs: int, outputs: int, attention: bool) -> Block:
            return Block(inputs, outputs, embedding=width, attention=attention, dropout=config.dropout)

        self.first = nn.Conv2d(folded, levels[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips = [levels[0]]
        for level, channels in enumerate(levels):
            for _ in range(config.blocks):
                self.down.append(block(skips[-1], channels, config.attention[level]))
                skips.append(channels)
            if level < len(levels) - 1:
                self.down.append(Downsample(channels))
                skips.append(channels)
        self.middle = nn.ModuleList([block(levels[-1], levels[-1], True), block(levels[-1], levels[-1], False)])
        self.up = nn.ModuleList()
        channels = levels[-1]
        for level, outputs in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                self.up.append(block(channels + skips.pop(), outputs, config.attention[level]))
                channels = outputs
            if level > 0:
                self.up.append(Upsample(channels))
        self.last = nn.Sequential(nn.GroupNorm(_groups(channels), channels), nn.SiLU(),
                                  _zeroed(nn.Conv2d(channels, folded, 3, padding=1)))

    def forward(self, x: Tensor, noise_level: Tensor, condition: Tensor) -> Tensor:  # noqa: D102
        embedding = F.silu(self.noise(noise_level) + condition)  # [B, E]
        x = self.first(F.pixel_unshuffle(x, self.patch))  # [B, C p^2, H / p, W / p] -> [B, channels, H / p, W / p]
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(x if isinstance(layer, Upsample) else torch.cat([x, skips.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.last(x), self.patch)


class Block(nn.Module):
    """Residual block; the embedding scales and shifts its normalised features, [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, inputs: int, outputs: int, *, embedding: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(inputs), inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm_out = nn.GroupNorm(_groups(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # noqa: D102
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)  # each [B, C_out, 1, 1]
        h = F.silu(self.norm_out(h) * (1 + scale) + shift)
        h = self.conv_out(self.dropout(h)) + self.skip(x)
        attended: Tensor = self.attention(h)
        return attended


class Attention(nn.Module):
    """Self-attention over all positions with a residual, [B, C, H, W] -> [B, C, H, W]; heads of 64 channels or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, H W, C / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.project(mixed.transpose(-1, -2).reshape(batch, channels, height, width))
        return x + projected


class Downsample(nn.Module):
    """Halve the resolution by averaging, then convolve, [B, C, H, W] -> [B, C, H / 2, W / 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # noqa: D102
        reduced: Tensor = self.conv(F.avg_pool2d(x, 2))
        return reduced


class Upsample(nn.Module):
    """Double the resolution by repetition, then convolve, [B, C, H, W] -> [B, C, 2 H, 2 W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # noqa: D102
        enlarged: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return enlarged


def _groups(channels: int) -> int:
    return next(groups for groups in range(min(32, max(1, channels // 4)), 0, -1) if channels % groups == 0)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that each residual block begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def smallest_multiple(config: UNetConfig) -> int:
    """Image sides must be multiples of this many pixels.

    >>> smallest_multiple(UNetConfig(patch=2, multipliers=(1, 2, 3), attention=(False, False, True)))
    8
    """
    return int(config.patch * 2 ** (len(config.multipliers) - 1))
