"""Low-rank adaptation: a frozen layer beside a small update that is trained, W + (alpha / r) B A (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.layers import zeroed

Layer = nn.Linear | nn.Conv2d | nn.Conv3d


class LowRank(nn.Module):
    """A frozen layer and its update: layer(x) + (alpha / r) B(A(x)) (Eq. 3, Hu et al. 2021).

    Of a convolution, A is one with the same kernel, stride and padding to r channels, and B one of a single pixel, so that B A is a
    kernel of the layer's shape and rank r. A begins as any layer does and B at 0: nothing changes at first. The two small layers are
    called, rather than their product added to the weight, so that no gradient of the frozen weight's size is ever held.
    """

    def __init__(self, layer: Layer, *, rank: int, alpha: float) -> None:
        super().__init__()
        if not 1 <= rank <= highest_rank(layer.weight.shape):
            raise UsageError(f"a weight of shape {tuple(layer.weight.shape)} has a rank of at most {highest_rank(layer.weight.shape)}, "
                             f"so an update of rank {rank} is none of low rank")
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        if isinstance(layer, nn.Linear):
            self.reduce: Any = nn.Linear(layer.in_features, rank, bias=False)
            self.expand: Any = zeroed(nn.Linear(rank, layer.out_features, bias=False))
        else:
            kind: Any = type(layer)
            if layer.groups != 1 or any(step != 1 for step in layer.dilation):
                raise UsageError("a grouped or dilated convolution has no low-rank update here")
            self.reduce = kind(layer.in_channels, rank, layer.kernel_size, stride=layer.stride, padding=layer.padding, bias=False)
            self.expand = zeroed(kind(rank, layer.out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.through(lambda layer: layer(x))

    def through(self, apply: Callable[[Any], Tensor]) -> Tensor:
        """The sum of both where layers are not simply called: `apply` is what is done with the frozen layer, and with A."""
        sum_of_both: Tensor = apply(self.layer) + self.scale * self.expand(apply(self.reduce))
        return sum_of_both

    def trained(self) -> list[Tensor]:
        """The weights of A and B."""
        return [self.reduce.weight, self.expand.weight]

    def update(self) -> Tensor:
        """(alpha / r) B A as a weight of the layer's shape, added up in float64."""
        product = self.expand.weight.detach().double().flatten(1) @ self.reduce.weight.detach().double().flatten(1)  # [out, in * kernel]
        weight: Tensor = (self.scale * product).view(self.layer.weight.shape)
        return weight

    def merged(self) -> Layer:
        """The layer itself with the update inside its weight."""
        with torch.no_grad():
            self.layer.weight.copy_(self.layer.weight.double() + self.update())
        return self.layer


def highest_rank(shape: Sequence[int]) -> int:
    """The largest rank that a weight [out, in, *kernel] can have as a matrix [out, in * kernel].

    >>> highest_rank((64, 8, 3, 3))
    64
    """
    return min(shape[0], math.prod(shape[1:]))


def add_low_rank(network: nn.Module, *, rank: int, alpha: float, chosen: Callable[[str], bool] = lambda name: True) -> None:
    """Put a `LowRank` in the place of every linear layer and convolution of `network` whose dotted name is `chosen`.

    >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> add_low_rank(network, rank=2, alpha=2.0)
    >>> sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    64
    """
    for parent_name, parent in list(network.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Layer) and chosen(f"{parent_name}.{name}".removeprefix(".")):
                setattr(parent, name, LowRank(child, rank=rank, alpha=alpha))


def merge_low_rank(network: nn.Module) -> None:
    """Undo `add_low_rank`, with every update inside the weight of its layer: names and shapes are those from before it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())
