"""The Hamiltonian posterior: a latent from the encoder, moved by a few tempered leapfrog steps on log p(x, z) (Caterini et al. 2018).

The encoder gives the start and the decoder's own gradient the direction, so that little is left to be learned: of use where images are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synthorax.losses.divergence import normal_log_density

Slope = Callable[[Tensor], Tensor]
"""the gradient of log p(x, z) by the latent z, [B, Z] -> [B, Z]"""
FIRST_STEP, FIRST_HEAT = 0.1, 1.4
"""initial values: a step in standard deviations of the encoder's posterior, and the standard deviation of the first momentum"""


class HamiltonianFlow(nn.Module):
    """K leapfrog steps of learned length, each followed by tempering of the momentum.

    rho_0 = gamma_0 / sqrt(beta_0); after step k the momentum is multiplied by sqrt(beta_(k-1) / beta_k), with
    1 / sqrt(beta_k) = (1 - 1 / sqrt(beta_0)) k^2 / K^2 + 1 / sqrt(beta_0), the quadratic tempering of Caterini et al. 2018. The leapfrog
    keeps volumes and tempering has a known determinant, so the bound on log p(x) is exact. Each number of the latent has its own step,
    here in standard deviations of the image's posterior from the encoder, which are constants for the flow.
    """

    sigma: Tensor

    def __init__(self, latent_size: int, *, leaps: int) -> None:
        super().__init__()
        self.leaps = leaps
        self.raw_step = nn.Parameter(torch.full((latent_size,), math.log(FIRST_STEP / (1 - FIRST_STEP))))
        self.raw_heat = nn.Parameter(torch.tensor(math.log(FIRST_HEAT - 1)))
        self.register_buffer("sigma", torch.tensor(1.0))  # of the likelihood gaussian: the objective's, so that the model can go on alone

    @property
    def step(self) -> Tensor:
        """Length of a leap for each number of the latent, [Z] in (0, 1)."""
        return self.raw_step.sigmoid()

    @property
    def heats(self) -> Tensor:
        """1 / sqrt(beta_k) for k = 0 to K, [K + 1], falling to 1."""
        first = 1 + self.raw_heat.exp()
        parts = torch.arange(self.leaps + 1, device=first.device).to(first) / self.leaps
        return (1 - first) * parts.square() + first

    def forward(self, latent: Tensor, momentum: Tensor, slope: Slope, *, std: Tensor) -> tuple[Tensor, Tensor]:
        """Latent z_0 and standard normal gamma_0 -> z_K and rho_K, all [B, Z]; `std` is that of the encoder's posterior, [B, Z].
        """
        steps, heats = self.step * std, self.heats
        momentum, force = heats[0] * momentum, slope(latent)
        for number in range(1, self.leaps + 1):
            latent, momentum, force = leap(latent, momentum, force, slope, steps=steps)
            momentum = momentum * heats[number] / heats[number - 1]
        return latent, momentum


def leap(latent: Tensor, momentum: Tensor, force: Tensor, slope: Slope, *, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One leapfrog step: latent, momentum and the slope at the latent -> the same after it, all [B, Z] (Caterini et al. 2018)."""
    momentum = momentum + 0.5 * steps * force
    latent = latent + steps * momentum
    force = slope(latent)
    return latent, momentum + 0.5 * steps * force, force


def flow_divergence(*, first: Tensor, gamma: Tensor, last: Tensor, momentum: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The rest of the bound, beside the reconstruction: log q(z_0) - log p(z_K) + |rho_K|^2 / 2 - |gamma_0|^2 / 2, all [B, Z] -> [B].

    The determinant of the tempering, beta_0^(Z / 2), cancels with that of the first momentum (Caterini et al. 2018). Its mean over
    draws is no divergence of two distributions of latents, but reconstruction and this make a lower bound on log p(x), as in the paper.
    """
    kinetic = 0.5 * (momentum.square() - gamma.square()).sum(1)
    zeros = torch.zeros_like(last)
    return normal_log_density(first, mean, log_variance) - normal_log_density(last, zeros, zeros) + kinetic


def slope_of(log_density: Callable[[Tensor], Tensor]) -> Slope:
    """The gradient of a function [B, Z] -> [B], one image apart from the other; it can be differentiated again where gradients are on."""
    def slope(latent: Tensor) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            place = latent if learning and latent.requires_grad else latent.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_density(place).sum(), place, create_graph=learning)
        return gradient

    return slope
