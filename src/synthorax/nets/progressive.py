"""Progressive growing (Karras et al. 2018): networks begin with images of 4 px, and each doubling of the sides fades in.

A level says how many doublings are in use; its fraction is how far the next one has faded in. Images are of full size at any level:
what a generator has not reached yet are repeated pixels, and a discriminator takes the mean of the pixels that it has not reached.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.convolutional_gan import SMALLEST_PX, widths
from synthorax.nets.layers import halved
from synthorax.nets.stylegan2 import BatchSpread, ScaledConvolution, ScaledLinear, rectified


class Growing(nn.Module):
    """A network with a level, which is part of its state: the highest until another is set."""

    level: Tensor

    def __init__(self, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        self.register_buffer("level", torch.tensor(float(doublings)))

    @property
    def side_px(self) -> int:
        """Side of images at this level; one that is fading in counts."""
        return int(SMALLEST_PX * 2 ** math.ceil(self.level.item()))

    def _used(self) -> tuple[int, float]:
        """Doublings in full use, and how far one more has faded in."""
        done, fade = divmod(self.level.item(), 1)
        return int(done), fade


class _Double(nn.Module):
    """Twice the sides by repeated pixels, then two 3 x 3 convolutions, each with its features scaled to unit length at every pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ScaledConvolution(inputs, outputs, 3), ScaledConvolution(outputs, outputs, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2)
        for layer in self.layers:
            x = unit_pixels(rectified(layer(x)))
        return x


def unit_pixels(x: Tensor) -> Tensor:
    """Features [B, C, H, W] with a mean square of 1 at every pixel (Sec. 4.2 there)."""
    scale: Tensor = (x.float().square().mean(1, keepdim=True) + 1e-8).rsqrt()
    return x * scale.to(x)


class GrowingGenerator(Growing):
    """Latent [B, Z] and embedded condition [B, E] -> image [B, outputs, S, S] of any range (Table 2 there)."""

    def __init__(self, *, image_size: int, latent_size: int, channels: int, embedding: int, outputs: int = 1) -> None:
        steps = widths(image_size, channels)
        super().__init__(len(steps) - 1)
        self.image_size = image_size
        self.start = ScaledLinear(latent_size + embedding, steps[0] * SMALLEST_PX**2)
        self.first = ScaledConvolution(steps[0], steps[0], 3)
        self.blocks = nn.ModuleList(_Double(one, other) for one, other in pairwise(steps))
        self.to_image = nn.ModuleList(ScaledConvolution(width, outputs, 1) for width in steps)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        done, fade = self._used()
        x = self.start(torch.cat([latent, condition], dim=1)).unflatten(1, (-1, SMALLEST_PX, SMALLEST_PX))
        x = unit_pixels(rectified(self.first(unit_pixels(rectified(x)))))
        for block in self.blocks[:done]:
            x = block(x)
        image: Tensor = self.to_image[done](x)
        if fade:
            finer = self.to_image[done + 1](self.blocks[done](x))
            image = F.interpolate(image, scale_factor=2).lerp(finer, fade)
        return F.interpolate(image, size=self.image_size)


class _Halve(nn.Module):
    """Two 3 x 3 convolutions and half the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = ScaledConvolution(inputs, inputs, 3), ScaledConvolution(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = halved(rectified(self.second(rectified(self.first(x)))))
        return made


class GrowingDiscriminator(Growing):
    """Blocks to 4 px, with `spread` the batch's standard deviation, a linear layer, [B, C, S, S] -> features [B, F] (Table 2 there)."""

    def __init__(self, *, image_size: int, inputs: int, channels: int, spread: bool = True) -> None:
        steps = widths(image_size, channels)
        super().__init__(len(steps) - 1)
        self.from_image = nn.ModuleList(ScaledConvolution(inputs, width, 1) for width in steps)
        self.blocks = nn.ModuleList(_Halve(other, one) for one, other in pairwise(steps))
        self.spread = BatchSpread() if spread else nn.Identity()
        self.last = ScaledConvolution(steps[0] + spread, steps[0], 3)
        self.linear = ScaledLinear(steps[0] * SMALLEST_PX**2, steps[0])
        self.features = steps[0]

    def forward(self, images: Tensor) -> Tensor:
        done, fade = self._used()
        coarse = F.adaptive_avg_pool2d(images, SMALLEST_PX * 2**done)
        x = rectified(self.from_image[done](coarse))
        if fade:
            finer = F.interpolate(coarse, scale_factor=2).lerp(F.adaptive_avg_pool2d(images, SMALLEST_PX * 2 ** (done + 1)), fade)
            x = x.lerp(self.blocks[done](rectified(self.from_image[done + 1](finer))), fade)
        for block in reversed(self.blocks[:done]):
            x = block(x)
        features: Tensor = rectified(self.linear(rectified(self.last(self.spread(x))).flatten(1)))
        return features


class GrowingEncoder(nn.Module):
    """A discriminator's blocks without `spread`, images [B, 1, S, S] and an embedded condition [B, E] -> numbers [B, outputs]."""

    def __init__(self, *, image_size: int, channels: int, embedding: int, outputs: int) -> None:
        super().__init__()
        self.trunk = GrowingDiscriminator(image_size=image_size, inputs=1, channels=channels, spread=False)
        self.last = ScaledLinear(self.trunk.features + embedding, outputs)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        numbers: Tensor = self.last(torch.cat([self.trunk(images), condition], dim=1))
        return numbers
