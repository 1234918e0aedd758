"""A compact StyleGAN2 (Karras et al. 2020a): mapping, modulated convolutions with noise, skips to the image, a residual discriminator.

Left out: mixing of styles, and filters longer than bilinear interpolation and 2 x 2 means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.convolutional_gan import SMALLEST_PX, widths
from synthorax.nets.layers import halved

SLOW = 0.01
"""learning rate of the mapping in units of the others' (Appendix C, Karras et al. 2019)"""


def rectified(x: Tensor) -> Tensor:
    """Leaky rectifier that keeps the variance of normal numbers."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ScaledLinear(nn.Module):
    """A linear layer whose weights have unit variance and are scaled as they are used (Sec. 4.1, Karras et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class ScaledConvolution(nn.Module):
    """A convolution that keeps the sides, scaled like `ScaledLinear`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class ModulatedConvolution(nn.Module):
    """A convolution whose input channels each image's style scales, x [B, C, H, W], style [B, W] (Eq. 1-3, Karras et al. 2020a).

    Scaling the input and, to demodulate, the output is the same as scaling the weights, and leaves one convolution for all images.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, style_size: int, demodulate: bool = True) -> None:
        super().__init__()
        self.style = ScaledLinear(style_size, inputs, bias=1.0)
        self.convolution = ScaledConvolution(inputs, outputs, kernel, bias=False)
        self.demodulate = demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scales = self.style(style)  # [B, C]
        made: Tensor = self.convolution(x * scales[:, :, None, None])
        if not self.demodulate:
            return made
        weight = self.convolution.weight * self.convolution.scale
        norm = (scales.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()  # [B, outputs]
        demodulated: Tensor = made * norm[:, :, None, None]
        return demodulated


class _StyledLayer(nn.Module):
    """A modulated convolution, optionally enlarged, noise, bias and rectifier; enlarging last costs a quarter."""

    def __init__(self, inputs: int, outputs: int, *, style_size: int, enlarge: bool) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, 3, style_size=style_size)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.enlarge = enlarge

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        x = self.convolution(x, style)
        if self.enlarge:
            x = enlarged(x)
        return rectified(x + self.strength * noise + self.bias[:, None, None])


def enlarged(x: Tensor) -> Tensor:
    """Twice the sides, bilinear, which is the filter [1, 3, 3, 1]."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Mapping(nn.Module):
    """Latent [B, Z] and embedded condition [B, E] -> style [B, W], and the running mean of styles in training."""

    mean: Tensor

    def __init__(self, *, latent_size: int, embedding: int, style_size: int, depth: int) -> None:
        super().__init__()
        sizes = [latent_size + embedding, *[style_size] * depth]
        self.layers = nn.ModuleList(ScaledLinear(one, other, rate=SLOW) for one, other in pairwise(sizes))
        self.register_buffer("mean", torch.zeros(style_size))

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([unit_moment(latent), unit_moment(condition)], dim=1)
        for layer in self.layers:
            x = rectified(layer(x))
        if self.training:
            self.mean.lerp_(x.detach().float().mean(0), 0.005)
        return x


def unit_moment(x: Tensor) -> Tensor:
    """Rows with a mean square of 1, rows of 0 excepted."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt() if x.shape[1] else x


class Synthesis(nn.Module):
    """Styles [B, L, W] and one noise a layer, [B, 1, s, s], -> image [B, 1, S, S] of any range."""

    def __init__(self, *, image_size: int, channels: int, style_size: int) -> None:
        super().__init__()
        steps = widths(image_size, channels)
        self.constant = nn.Parameter(torch.randn(steps[0], SMALLEST_PX, SMALLEST_PX))
        layers = [_StyledLayer(steps[0], steps[0], style_size=style_size, enlarge=False)]
        self.noise_sides = [SMALLEST_PX]
        for level, (inputs, outputs) in enumerate(pairwise(steps), start=1):
            layers += [_StyledLayer(inputs, outputs, style_size=style_size, enlarge=True),
                       _StyledLayer(outputs, outputs, style_size=style_size, enlarge=False)]
            self.noise_sides += [SMALLEST_PX * 2**level] * 2
        self.layers = nn.ModuleList(layers)
        self.to_image = nn.ModuleList(ModulatedConvolution(width, 1, 1, style_size=style_size, demodulate=False) for width in steps)
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, styles: Tensor, noises: Sequence[Tensor]) -> Tensor:
        x = self.constant.expand(len(styles), *self.constant.shape)
        image: Tensor | None = None
        for number, (layer, noise) in enumerate(zip(self.layers, noises, strict=True)):
            x = layer(x, styles[:, number], noise)
            if number % 2 == 0:  # the last layer of a resolution: skip to the image (Fig. 7b, Karras et al. 2020a)
                added = self.to_image[number // 2](x, styles[:, number])
                image = added if image is None else enlarged(image) + added
        assert image is not None
        return image + self.offset


class _DiscriminatorBlock(nn.Module):
    """Two convolutions and a halving, added to the halved input (Fig. 7c there)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = ScaledConvolution(inputs, inputs, 3), ScaledConvolution(inputs, outputs, 3)
        self.skip = ScaledConvolution(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = rectified(self.second(halved(rectified(self.first(x)))))
        made: Tensor = (inner + self.skip(halved(x))) / math.sqrt(2)
        return made


class BatchSpread(nn.Module):
    """Adds a channel with the batch's mean standard deviation (Sec. 3, Karras et al. 2018); in evaluation mode that of training."""

    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread
        if self.training:
            spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
            with torch.no_grad():
                self.spread.lerp_(spread.float(), 0.01)
        return torch.cat([x, spread.to(x).expand(len(x), 1, *x.shape[2:])], dim=1)


class StyleDiscriminator(nn.Module):
    """Residual blocks down to 4 px, the batch's standard deviation, and a linear layer, [B, C, S, S] -> features [B, F]."""

    def __init__(self, *, image_size: int, inputs: int, channels: int) -> None:
        super().__init__()
        steps = widths(image_size, channels)[::-1]
        self.first = ScaledConvolution(inputs, steps[0], 1)
        self.blocks = nn.Sequential(*(_DiscriminatorBlock(one, other) for one, other in pairwise(steps)))
        self.spread = BatchSpread()
        self.last = ScaledConvolution(steps[-1] + 1, steps[-1], 3)
        self.linear = ScaledLinear(steps[-1] * SMALLEST_PX**2, steps[-1])
        self.features = steps[-1]

    def forward(self, images: Tensor) -> Tensor:
        x = self.spread(self.blocks(rectified(self.first(images))))
        return rectified(self.linear(rectified(self.last(x)).flatten(1)))
