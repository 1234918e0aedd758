"""A compressor without weights: lossless, orthonormal Haar wavelet packets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError


class WaveletPacking(nn.Module):
    """Splits an image into 4 ** `levels` bands of equal size and puts it together again (Coifman and Wickerhauser 1992).

    Each level replaces every band by four of half its side: the mean, the difference of columns, the difference of rows, and
    that of the diagonals, each over 2 x 2 pixels with factor 1/2, so that the sum of squares stays what it was. In contrast to
    the wavelet transform, difference bands are split again as well, so that all channels have one size. Channel 4 i + j of a
    level is band j of channel i of the level before; the first channel is the mean of 2 ** levels pixels a side, times
    2 ** levels, and holds nearly all of the image's energy. Diffusion therefore needs the channels at equal variance
    (`autoencoder.LatentScale`).

    >>> packing = WaveletPacking(levels=2)
    >>> packing.encode(torch.ones(1, 1, 8, 8))[0, :2, 0, 0]
    tensor([4., 0.])
    """

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        if levels < 1:
            raise UsageError(f"a wavelet packing has at least one level, not {levels}")
        self.levels, self.channels, self.factor = levels, 4**levels, 2**levels

    def encode(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, 4 ** levels, H / 2 ** levels, W / 2 ** levels]."""
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise UsageError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels cannot be packed: both sides must be "
                             f"multiples of {self.factor}")
        for _ in range(self.levels):
            images = split(images)
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`: up to the rounding of float32, and exactly for images of 8 or 16 bits once they are rounded."""
        for _ in range(self.levels):
            latents = merge(latents)
        return latents


def split(x: Tensor) -> Tensor:
    """One level of Haar analysis of every channel, [B, C, H, W] -> [B, 4 C, H / 2, W / 2]."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.stack(_butterfly(a, b, c, d), dim=2).flatten(1, 2)  # [B, C, 4, H / 2, W / 2] -> [B, 4 C, H / 2, W / 2]


def merge(x: Tensor) -> Tensor:
    """The inverse of `split`, [B, 4 C, H, W] -> [B, C, 2 H, 2 W]."""
    batch, channels, height, width = x.shape
    a, b, c, d = _butterfly(*x.reshape(batch, channels // 4, 4, height, width).unbind(2))  # four of [B, C, H, W]
    rows = torch.stack([torch.stack([a, b], dim=-1), torch.stack([c, d], dim=-1)], dim=-3)  # [B, C, H, 2, W, 2]
    return rows.flatten(-2).flatten(-3, -2)


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Orthonormal, symmetric and so its own inverse: mean, difference of columns, of rows, and of diagonals of [[a, b], [c, d]]."""
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
