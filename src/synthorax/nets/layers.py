"""Layers that work on images [B, C, H, W] and on volumes [B, C, D, H, W] alike."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from synthorax.errors import UsageError

L = TypeVar("L", bound=nn.Conv2d | nn.Conv3d | nn.Linear)


def convolution(inputs: int, outputs: int, kernel: int, *, dims: int, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
    """Convolution of images (2) or volumes (3) that keeps the sides, or divides them by `stride`; `kernel` is odd."""
    if dims not in (2, 3):
        raise UsageError(f"a network works in 2 or 3 dimensions, not in {dims}")
    layer = nn.Conv2d if dims == 2 else VolumeConvolution
    return layer(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


class VolumeConvolution(nn.Conv3d):
    """A convolution of volumes that leaves bfloat16 where the processor's kernels are wrong.

    oneDNN, as PyTorch 2.13 uses it, leaves weight gradients of bfloat16 convolutions uninitialised, often NaN, where volumes have one
    slice fewer than the kernel. Such volumes are small, so float32 costs little.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.shape[2] >= self.kernel_size[0]:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


def for_convolutions(x: Tensor) -> Tensor:
    """The same images, with channels last in memory for sampling on a CPU, whose convolutions are faster so; later layers keep the format.

    In training the gain of convolutions is lost between them. Volumes, and images on other devices, stay as they are too.
    """
    sampling = x.device.type == "cpu" and x.ndim == 4 and not torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.channels_last) if sampling else x


def normalisation(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels."""
    groups = next(groups for groups in range(min(32, max(1, channels // 4)), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


class Modulation(nn.Linear):
    """Scales and shifts of normalised features, and gates, from the embedding of noise level and condition, [B, E] -> [B, n C]."""


def zeroed(layer: L) -> L:
    """Start at zero, so that the branch which ends in this layer adds nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def halved(x: Tensor) -> Tensor:
    """Mean of 2 x 2 or 2 x 2 x 2 neighbours, [B, C, *S] -> [B, C, *(S / 2)]."""
    return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool3d(x, 2)


def patches_to_channels(x: Tensor, patch: int) -> Tensor:
    """[B, C, *S] -> [B, C patch^dims, *(S / patch)], the channels in the order of `torch.nn.functional.pixel_unshuffle`."""
    batch, channels, *sides = x.shape
    dims = len(sides)
    split = x.reshape(batch, channels, *(size for side in sides for size in (side // patch, patch)))  # [B, C, H / p, p, W / p, p]
    ordered = split.permute(0, 1, *range(3, 2 * dims + 2, 2), *range(2, 2 * dims + 2, 2))  # [B, C, p, p, H / p, W / p]
    return ordered.reshape(batch, channels * patch**dims, *(side // patch for side in sides))


def first_layer(layer: nn.Module, image: Tensor, maps: Tensor, *, where: slice) -> Tensor:
    """What a convolution or linear layer makes of `image` together with `maps` of a condition, which are its input channels `where`.

    The maps are weighted apart and added: with values or weights of 0 they add exactly 0 on every processor, also beside rows that do state
    something. One sum over all channels would round differently, because the number of channels selects the kernel. Maps without channels
    are 0, and cost nothing.
    """
    axis = -1 if isinstance(layer, nn.Linear) else 1  # of the channels
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor = layer.bias  # type: ignore[assignment]
    rest = torch.cat([weight[:, :where.start], weight[:, where.stop:]], dim=1)

    def applied(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        if type(layer) is nn.Conv2d:  # `convolution` of stride 1: the same bits, in a form that PyTorch can trace
            return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        made: Tensor = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return made

    made = applied(rest, bias, image)
    return made + applied(weight[:, where], torch.zeros_like(bias), maps) if maps.shape[axis] else made


def channels_to_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of `patches_to_channels`, [B, C patch^dims, *S] -> [B, C, *(S patch)]."""
    batch, folded, *sides = x.shape
    dims = len(sides)
    split = x.reshape(batch, folded // patch**dims, *[patch] * dims, *sides)  # [B, C, p, p, H, W]
    ordered = split.permute(0, 1, *(axis for pair in zip(range(2 + dims, 2 + 2 * dims), range(2, 2 + dims), strict=True) for axis in pair))
    return ordered.reshape(batch, folded // patch**dims, *(side * patch for side in sides))  # from [B, C, H, p, W, p]


def coordinates_like(x: Tensor, place: Tensor | None = None) -> Tensor:
    """Where each pixel of x [B, C, *S] is, x first: [B, dims, *S], from -1 at the left (top, front) edge to 1 at the other.

    These are centres of pixels, so that a place means the same at every resolution: x = 2 * (part of the width) - 1. Where x are crops of
    images, `place` [B, dims, 2] says where each begins and how long it is, in parts of the image, along the axes of S.
    """
    sides = x.shape[2:]
    if place is not None:
        each = [place[:, axis, :1] + place[:, axis, 1:] * (torch.arange(side, device=x.device) + 0.5) / side
                for axis, side in enumerate(sides)]  # [B, side] along each axis
        shaped = [(2 * one - 1).reshape(len(x), *(side if axis == number else 1 for number, side in enumerate(sides))).expand(-1, *sides)
                  for axis, one in enumerate(each)]
        return torch.stack(shaped[::-1], dim=1).to(x)
    axes = [(torch.arange(side, device=x.device, dtype=torch.float32) * 2 + 1) / side - 1 for side in sides]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1]).to(x)  # [dims, *S]
    return grid.expand(x.shape[0], *grid.shape)


def require_sides(x: Tensor, *, dims: int, multiple: int) -> None:
    """Refuse an image that the network cannot halve or cut into patches."""
    sides = tuple(x.shape[2:])
    if len(sides) != dims or any(side % multiple for side in sides):
        raise UsageError(f"this network needs {dims} sides that are multiples of {multiple}, not {' x '.join(map(str, sides))}")
