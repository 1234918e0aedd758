"""Reconstruction losses, one number an image."""

from __future__ import annotations

from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over pixels, [B, ...] -> [B]: up to a constant, minus the log-likelihood of a unit Gaussian times 2."""
    return (prediction - target).square().flatten(1).sum(1)
