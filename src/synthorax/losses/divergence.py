"""Divergences between a posterior and its prior, in nats: one for each number of the latent, or one an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) || N(0, I)) in nats, [B, Z] -> [B] (Appendix B, Kingma and Welling 2014)."""
    return kl_standard_normal_each(mean, log_variance).sum(1)


def kl_standard_normal_each(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The same for each number of the latent, [B, Z] -> [B, Z]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def normal_log_density(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(value; mean, exp log_variance), [..., Z] -> [...]: the sum over independent numbers."""
    each = (value - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
    return -0.5 * each.sum(-1)


def mixture_log_density(value: Tensor, means: Tensor, log_variances: Tensor, log_weights: Tensor) -> Tensor:
    """log of a mixture of K diagonal Gaussians, value [B, Z], means and log-variances [K, Z], log-weights [K] -> [B]."""
    each = normal_log_density(value[:, None], means, log_variances)  # [B, K]
    return torch.logsumexp(each + log_weights, dim=1)


def kl_mixture_draw(latent: Tensor, mean: Tensor, log_variance: Tensor, *, means: Tensor, log_variances: Tensor,
                    log_weights: Tensor) -> Tensor:
    """log q(z) - log p(z) for a latent z drawn from q = N(mean, exp log_variance), [B, Z] -> [B].

    The divergence from a mixture has no closed form; its mean over draws of z is the divergence, and single values may be
    below 0 (Dilokthanakul et al. 2016).
    """
    return normal_log_density(latent, mean, log_variance) - mixture_log_density(latent, means, log_variances, log_weights)


def kl_dirichlet(concentration: Tensor, prior: Tensor) -> Tensor:
    """KL(Dirichlet(concentration) || Dirichlet(prior)), [B, Z] and [Z], all above 0 -> [B] (Penny 2001)."""
    total = concentration.sum(1)
    normalisers = torch.lgamma(total) - torch.lgamma(concentration).sum(1) - torch.lgamma(prior.sum()) + torch.lgamma(prior).sum()
    expected_logs = torch.digamma(concentration) - torch.digamma(total)[:, None]
    return normalisers + ((concentration - prior) * expected_logs).sum(1)


def kl_cauchy_each(place: Tensor, log_scale: Tensor, *, prior_scale: float) -> Tensor:
    """KL(Cauchy(place, exp log_scale) || Cauchy(0, prior_scale)) for each number, [B, Z] -> [B, Z] (Chyzak and Nielsen 2019)."""
    scale = log_scale.exp()
    squares = (scale + prior_scale).square() + place.square()
    return squares.log() - math.log(4 * prior_scale) - log_scale


def free_bits(divergence: Tensor, *, nats: float, over_batch: bool) -> Tensor:
    """The divergence of each group of a latent, [B, G], summed over the groups with the first `nats` of each free, [B].

    Appendix C.8, Kingma et al. 2016: a group whose mean over the batch is below `nats` costs that much and is not reduced further. Without
    `over_batch` each image stands for itself, so that no image's loss depends on others.
    """
    if not nats:
        return divergence.sum(1)
    judged = divergence.detach().mean(0, keepdim=True) if over_batch else divergence.detach()
    return torch.where(judged < nats, nats, divergence).sum(1)
