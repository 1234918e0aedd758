"""Geometric sampling for few images: latents are drawn where posteriors are (Chadebec and Allassonniere 2022).

Training is that of the standard normal prior. The last posterior of every image makes a Riemannian metric, and latents are drawn uniformly
in it, so that holes between images are avoided.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthorax.families.autoencoders.priors import Normal, moments
from synthorax.rng import Draws

FLOOR = 1e-2
"""lambda: the metric far from all images"""
ROUNDS, LEAPS, LEAP = 50, 10, 0.1
"""of Hamiltonian Monte Carlo: proposals, leaps of each, and their length in mean standard deviations of the posteriors"""


class Geometric(Normal):
    """A standard normal prior in training, and the metric of the last posteriors in sampling.

    Latents of training images are part of the model: whoever has it can decode them. Untrained, it samples the standard normal.
    """

    means: Tensor
    log_variances: Tensor
    seen: Tensor

    def __init__(self, latent_size: int, *, remembered: int) -> None:
        super().__init__(latent_size)
        self.register_buffer("means", torch.zeros(remembered, latent_size))
        self.register_buffer("log_variances", torch.zeros(remembered, latent_size))
        self.register_buffer("seen", torch.tensor(0))

    @torch.no_grad()
    def remember(self, raw: Tensor) -> None:
        """Keep the posteriors of a batch, [B, 2 Z], in the place of the oldest."""
        mean, log_variance = moments(raw[-len(self.means):])
        rows = (int(self.seen) + torch.arange(len(mean), device=mean.device)) % len(self.means)
        self.means[rows], self.log_variances[rows] = mean, log_variance
        self.seen += len(mean)

    def sample(self, draws: Draws) -> Tensor:
        """Latents drawn with a density of sqrt det G, [B, Z]."""
        known = min(int(self.seen), len(self.means))
        if not known:
            return super().sample(draws)
        return riemannian_latents(self.means[:known], self.log_variances[:known], draws)


def riemannian_latents(means: Tensor, log_variances: Tensor, draws: Draws, *, rounds: int = ROUNDS, leaps: int = LEAPS,
                     leap: float = LEAP, width: Tensor | None = None) -> Tensor:
    """Latents with density sqrt det G(z), by Hamiltonian Monte Carlo that starts at random posteriors' means, [N, Z] twice -> [B, Z].

    Chadebec and Allassonniere 2022, with leapfrog steps scaled by the mean standard deviation of each number. `width` is rho^2, usually
    `reach`.
    """
    precisions = (-log_variances).exp()
    width = reach(means, log_variances) if width is None else width
    scale = (0.5 * log_variances).exp().mean(0)  # [Z]
    start = (draws.uniform(1)[:, 0] * len(means)).long()
    z = means[start]
    density, slope = log_volume(z, means, precisions, width=width)
    for _ in range(rounds):
        momentum = draws.normal(means.shape[1])
        energy = 0.5 * momentum.square().sum(1) - density
        moved, moved_density, moved_slope = z, density, slope
        for _ in range(leaps):
            momentum = momentum + 0.5 * leap * scale * moved_slope
            moved = moved + leap * scale * momentum
            moved_density, moved_slope = log_volume(moved, means, precisions, width=width)
            momentum = momentum + 0.5 * leap * scale * moved_slope
        change = 0.5 * momentum.square().sum(1) - moved_density - energy
        accepted = draws.uniform(1) < (-change).exp()[:, None]
        z, slope = torch.where(accepted, moved, z), torch.where(accepted, moved_slope, slope)
        density = torch.where(accepted[:, 0], moved_density, density)
    return z


def log_volume(z: Tensor, means: Tensor, precisions: Tensor, *, width: Tensor) -> tuple[Tensor, Tensor]:
    """log sqrt det G(z) and its gradient, [B, Z] -> [B] and [B, Z].

    G(z) = sum_i P_i exp(-(z - m_i)' P_i (z - m_i) / width) + lambda exp(-|z|^2 / Z), diagonal (Chadebec and Allassonniere 2022, with
    tau = 1 / Z, so that far from all images the density falls like the standard normal one).
    """
    size = z.shape[1]
    away = z[:, None] - means  # [B, N, Z]
    pulled = precisions * away
    near = (-(pulled * away).sum(2) / width).exp()  # [B, N]
    far = FLOOR * (-z.square().sum(1, keepdim=True) / size).exp()  # [B, 1]
    # Sums and no matrix products: those would be rounded to bfloat16 where sampling is.
    metric = (near[:, :, None] * precisions).sum(1) + far  # [B, Z]
    weight = near * (precisions / metric[:, None]).sum(2)  # [B, N]
    slope = -(weight[:, :, None] * pulled).sum(1) / width - far * metric.reciprocal().sum(1, keepdim=True) * z / size
    return 0.5 * metric.log().sum(1), slope


def reach(means: Tensor, log_variances: Tensor) -> Tensor:
    """rho^2: the largest squared distance of a posterior from its nearest neighbour, in its own standard deviations; Z where there is one
    only.
    """
    if len(means) < 2:
        return means.new_tensor(float(means.shape[1]))
    away = (means[:, None] - means).square()  # [N, N, Z]
    distances = (away * (-log_variances).exp()[:, None]).sum(2)
    distances.fill_diagonal_(float("inf"))
    return distances.min(1).values.max().clamp_min(1e-6)
