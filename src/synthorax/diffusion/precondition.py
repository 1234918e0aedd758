"""EDM preconditioning: one network call becomes one estimate of the clean image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scalings:
    """Coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), each [B, 1, 1, 1] except c_noise [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """Scalings that keep input and target of the network at unit variance (Table 1, Karras et al. 2022). `sigma` is [B]."""
    level = sigma.reshape(-1, 1, 1, 1)
    total = level**2 + sigma_data**2
    return Scalings(c_skip=sigma_data**2 / total, c_out=level * sigma_data / total.sqrt(), c_in=total.rsqrt(),
                    c_noise=sigma.log() / 4)


def edm_weight(sigma: Tensor, *, sigma_data: float) -> Tensor:
    """Loss weight 1 / c_out^2 that makes every noise level count alike (Table 1, Karras et al. 2022), shape of `sigma`."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
