"""Residual blocks of the judges that are trained here, and how their weights begin."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016), [B, `before`, H, W] -> [B, `after`, H / stride, W / stride]."""

    def __init__(self, before: int, after: int, *, shortcut: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(before, after, stride=stride), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = convolution(after, after), nn.BatchNorm2d(after)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


def convolution(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the sides, or divides them by `stride`; without a bias."""
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def initialise(network: nn.Module, *, head: nn.Linear | nn.Conv2d, bias: float, generator: torch.Generator) -> None:
    """Weights from `generator` alone: each block starts as its shortcut (Goyal et al. 2017, Sec. 5.1), and each logit near `bias`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm2.weight)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.constant_(head.bias, bias)  # type: ignore[arg-type]
