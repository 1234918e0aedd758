"""Convolving at double the sides: the same numbers and gradients as repeating every pixel first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthorax.nets.unet import Upsample
from synthorax.nets.upsampling import convolved_at_double


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_convolution_of_the_repeated_image(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    gradients = []
    for made in (convolved_at_double(x, conv), conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))):
        assert made.shape == (2, 5, 8, 12)
        weight = torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view_as(made)
        gradients.append((made.detach(), *torch.autograd.grad((made * weight).sum(), [x, *conv.parameters()])))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_layers_of_images_use_it_and_layers_of_volumes_do_without() -> None:
    torch.manual_seed(0)
    for dims in (2, 3):
        layer, x = Upsample(4, dims=dims), torch.randn(1, 4, *[4] * dims)
        torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), rtol=1e-4, atol=1e-5)
    layer = Upsample(8, dims=2)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 8, 4, 4)
        torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), rtol=0.05, atol=0.02)
