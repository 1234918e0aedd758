"""Embeddings of noise level and condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Sines and cosines of a noise level, [B] -> [B, channels] (Sec. 3.5, Vaswani et al. 2017)."""

    frequencies: Tensor

    def __init__(self, channels: int, *, highest: float = 1000.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, math.log10(highest), channels // 2), persistent=False)

    def forward(self, level: Tensor) -> Tensor:  # noqa: D102
        angle = level[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class StatementEmbedding(nn.Module):
    """Statements in [0, 1] or NaN, [B, K] -> [B, channels]: stated-absent and not-stated are different inputs, both learned."""

    def __init__(self, num_statements: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * num_statements, channels, bias=False)

    def forward(self, statements: Tensor) -> Tensor:  # noqa: D102
        stated = ~statements.isnan()
        value = torch.where(stated, statements * 2 - 1, 0.0)
        embedded: Tensor = self.linear(torch.cat([stated.to(value), value], dim=1))
        return embedded
