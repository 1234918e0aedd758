"""Noise levels: where along sigma training and sampling stand."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`steps` falling noise levels and a final 0, [steps + 1], float64 (Eq. 5, Karras et al. 2022).

    >>> karras_sigmas(2, sigma_min=0.5, sigma_max=2.0).round().tolist()
    [2.0, 0.0, 0.0]
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def lognormal_sigmas(normal: Tensor, *, mean: float, std: float) -> Tensor:
    """Training noise levels, ln sigma normally distributed (Table 1, Karras et al. 2022); `normal` is any shape."""
    return (mean + std * normal).exp()
