"""Adversarial losses on critic score maps, one number a film."""

from __future__ import annotations

from torch import Tensor


def least_squares(scores: Tensor, *, target: float) -> Tensor:
    """(score - target)^2 / 2, averaged over the score map, [B, ...] -> [B] (Eq. 9, Mao et al. 2017, with a = 0, b = c = 1)."""
    return 0.5 * (scores - target).square().flatten(1).mean(1)
