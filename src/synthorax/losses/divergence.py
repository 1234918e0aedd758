"""Divergences between a posterior and its prior, one number a film."""

from __future__ import annotations

from torch import Tensor


def kl_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) || N(0, I)) in nats, [B, Z] -> [B] (Appendix B, Kingma and Welling 2014)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
