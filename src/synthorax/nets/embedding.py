"""Embeddings of noise level and condition."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from synthorax.protocols import LESION_PROPERTIES


class NoiseEmbedding(nn.Module):
    """Sines and cosines of a noise level, [B] -> [B, channels] (Sec. 3.5, Vaswani et al. 2017)."""

    frequencies: Tensor

    def __init__(self, channels: int, *, highest: float = 1000.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, math.log10(highest), channels // 2), persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class StatementEmbedding(nn.Module):
    """Statements in [0, 1] or NaN, [B, K] -> [B, channels]: absent, uncertain (0.5), present and not stated are four different inputs.

    Each statement is used as (stated, value): (1, -1), (1, 0), (1, 1) and (0, 0).
    """

    def __init__(self, num_statements: int, channels: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element")  # images may have no findings at all
            self.linear = nn.Linear(2 * num_statements, channels, bias=False)

    def forward(self, statements: Tensor) -> Tensor:
        stated = ~statements.isnan()
        value = torch.where(stated, statements * 2 - 1, 0.0)
        embedded: Tensor = self.linear(torch.cat([stated.to(value), value], dim=1))
        return embedded

    def zero_unvaried_inputs(self, which: Tensor) -> None:
        """Set to 0 the weights of some statements, [K] of bool; see `HasConditionInputs`."""
        with torch.no_grad():
            self.linear.weight[:, which.repeat(2)] = 0.0


class PlaceEmbedding(nn.Module):
    """Place, size and severity of each finding, [B, K, P] in [0, 1] or NaN -> [B, channels]; exactly 0 where nothing is stated.

    Each number v is used as whether it is stated, 2 v - 1, and the sines and cosines of 2^j pi v for the first `octaves` j, so that
    a linear layer can tell near values apart (Eq. 4, Mildenhall et al. 2020).
    """

    angular: Tensor

    def __init__(self, num_findings: int, channels: int, *, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("angular", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        features = len(LESION_PROPERTIES) * (2 + 2 * octaves)
        self.linear = nn.Linear(num_findings * features, channels, bias=False)
        # An image has a lesion or two, so the weights begin as large as if there were only one finding.
        nn.init.uniform_(self.linear.weight, -(features**-0.5), features**-0.5)

    def forward(self, lesions: Tensor) -> Tensor:
        stated = ~lesions.isnan()[..., None]  # [B, K, P, 1]
        value = lesions.nan_to_num(0.0)[..., None]
        angle = value * self.angular  # [B, K, P, octaves]
        features = torch.cat([torch.ones_like(value), 2 * value - 1, angle.sin(), angle.cos()], dim=-1)
        embedded: Tensor = self.linear(torch.where(stated, features, 0.0).flatten(1))
        return embedded

    def zero_unvaried_inputs(self, which: Tensor) -> None:
        """Set to 0 the weights of some properties, [K, P] of bool; see `HasConditionInputs`."""
        with torch.no_grad():
            self.linear.weight[:, which.flatten().repeat_interleave(2 + 2 * len(self.angular))] = 0.0
