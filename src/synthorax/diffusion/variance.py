"""The posterior between two adjacent levels, its learned variance, and the variational bound that trains it.

Everything is said for x = x0 + sigma n and a step from level `sigma` down to `sigma_next`, both [B]. Means and variances are those of
x at `sigma_next`; a variance-preserving state has them times alpha_bar of that level, and divergences are the same in both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthorax.diffusion.noise import level_below

GREY_LEVELS = 256
"""Values of an 8-bit pixel, evenly spaced in [-1, 1]: what the decoder term has to hit."""


def posterior_mean(x: Tensor, clean: Tensor, *, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Mean of q(x_following | x_sigma, x0), like x (Eq. 7, Ho et al. 2020: with alpha = 1 the weights are those of a Brownian bridge)."""
    kept = _like(sigma_next**2 / sigma**2, x)
    return kept * x + (1 - kept) * clean


def variance_bounds(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of the variance of the reverse step, beta-tilde and beta of the papers, each [B].

    The lower one is exact for data that is a single point, the upper one for data of unit variance (Sec. 3.1, Nichol and Dhariwal 2021).
    """
    gap = sigma**2 - sigma_next**2
    return sigma_next**2 * gap / sigma**2, (1 + sigma_next**2) * gap / (1 + sigma**2)


def variance_between(fraction: Tensor, *, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The learned variance between the bounds (Eq. 15, Nichol and Dhariwal 2021), shaped like `fraction` in [0, 1], dtype of `sigma`.

    At `sigma_next` 0 the lower bound is 0. There half the upper one stands for it, close to what the paper takes from the next step.
    """
    lower, upper = variance_bounds(sigma, sigma_next)
    lower = torch.where(sigma_next > 0, lower, upper / 2)
    return torch.lerp(_like(lower.log(), fraction), _like(upper.log(), fraction), fraction.to(lower)).exp()


def vlb_terms(clean: Tensor, noisy: Tensor, sigma: Tensor, estimate: Tensor, fraction: Tensor, *,
              sigma_next: Tensor | None = None) -> Tensor:
    """Each image's term of the variational bound in bits a pixel, [B] (Eq. 4 to 7, Nichol and Dhariwal 2021).

    `clean`, `noisy` at level `sigma` [B], the model's `estimate` of the clean image and its `fraction` in [0, 1] are [B, C, *S].
    `sigma_next` [B] is the next lower level, by default that of the linear noise schedule. The term is the divergence of the model's step
    from the true posterior and, where `sigma_next` is 0, the negative log likelihood of 8-bit pixels. The mean is trained, too, unless
    `estimate` is given detached, as the paper does. The bound of an image is the sum over the levels of a noise schedule and `prior_bits`.

    >>> image, level = torch.zeros(1, 1, 2, 2), torch.tensor([0.5])
    >>> vlb_terms(image, image, level, image, image, sigma_next=torch.tensor([0.25])).item()  # the exact image and the exact variance
    0.0
    """
    if sigma_next is None:
        sigma_next = level_below(sigma, kind="linear").to(sigma)
    variance = variance_between(fraction, sigma=sigma, sigma_next=sigma_next)
    truth = posterior_mean(noisy, clean, sigma=sigma, sigma_next=sigma_next)
    mean = posterior_mean(noisy, estimate, sigma=sigma, sigma_next=sigma_next)
    lower = variance_bounds(sigma, sigma_next)[0]
    last = sigma_next == 0
    true_variance = _like(torch.where(last, torch.ones_like(lower), lower), noisy)  # at the last step not used, but finite
    divergence = gaussian_divergence(truth, true_variance, mean, variance)
    bits = torch.where(_like(last, noisy), -grey_level_log_likelihood(clean, mean, variance), divergence) / math.log(2)
    return bits.flatten(1).mean(1)


def prior_bits(clean: Tensor, *, sigma_max: float) -> Tensor:
    """Divergence of x at `sigma_max` from the noise that sampling starts with, of variance 1 + sigma_max^2, in bits a pixel, [B]."""
    variance = clean.new_tensor(sigma_max**2)
    bits = gaussian_divergence(clean, variance, torch.zeros_like(clean), 1 + variance) / math.log(2)
    return bits.flatten(1).mean(1)


def gaussian_divergence(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) from N(other_mean, other_variance) in nats, elementwise."""
    ratio = variance / other_variance
    return (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance) / 2


def grey_level_log_likelihood(pixels: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """ln of the mass that N(mean, variance) has on the grey level of each pixel in [-1, 1] (Eq. 13, Ho et al. 2020), like `pixels`.

    The first and the last grey level get the tails, so that the mass over all 256 is 1.
    """
    half = 1 / (GREY_LEVELS - 1)
    std, spread = pixels - mean, variance.sqrt()
    # Both ends of the bin on the side of the mean where the distribution function is small, and its logarithm exact.
    side = torch.where(std > 0, -1.0, 1.0)
    far, near = (side * std - half) / spread, (side * std + half) / spread
    log_near = torch.special.log_ndtr(near)
    inside = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(far) - log_near))
    below, above = torch.special.log_ndtr((std + half) / spread), torch.special.log_ndtr(-(std - half) / spread)
    return torch.where(pixels < -1 + half, below, torch.where(pixels > 1 - half, above, inside))


def _like(value: Tensor, x: Tensor) -> Tensor:
    """[B] shaped to multiply x [B, C, *S]."""
    return value.reshape(-1, *[1] * (x.ndim - 1))
