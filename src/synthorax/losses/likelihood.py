"""Negative log-likelihoods of images given the decoder's output, summed over pixels, one number an image.

A likelihood is given by the decoder's output, [B, outputs, S, S], the expected image, and the loss on the real one.
Constants are kept where the likelihood has a scale, so that two scales can be compared.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

LIKELIHOODS = ("mse", "gaussian", "learned-gaussian", "bernoulli")
LOWEST_LOG_VARIANCE = 2 * math.log(2 / 255)
"""of learned variances: a standard deviation of one level of 8 bits, below which the density would grow without bound
"""
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def outputs_of(likelihood: str) -> int:
    """Channels of the decoder's output: one, or mean and log-variance."""
    return 2 if likelihood == "learned-gaussian" else 1


def expected_image(raw: Tensor, *, likelihood: str) -> Tensor:
    """The mean image, [B, outputs, S, S] -> [B, 1, S, S] in [-1, 1]."""
    mean = raw[:, :1].float()
    return 2 * mean.sigmoid() - 1 if likelihood == "bernoulli" else mean.clamp(-1, 1)


def negative_log_likelihood(raw: Tensor, images: Tensor, *, likelihood: str, sigma: float) -> Tensor:
    """The loss on images [B, 1, S, S] in [-1, 1], [B].

    - `mse`: the squared error, whatever `sigma`
    - `gaussian`: minus the log-density of a normal distribution of standard deviation `sigma`
    - `learned-gaussian`: the same with a variance for every pixel, with a lower bound that keeps gradients (Rybkin et al. 2021)
    - `bernoulli`: cross-entropy of intensities in [0, 1]; no density for values strictly between (Loaiza-Ganem and Cunningham
      2019), but common in early work
    """
    raw = raw.float()
    if likelihood == "bernoulli":
        each = F.binary_cross_entropy_with_logits(raw, (images + 1) / 2, reduction="none")
    elif likelihood == "mse":
        each = (raw - images).square()
    elif likelihood == "gaussian":
        each = 0.5 * ((raw - images) / sigma).square() + math.log(sigma) + _HALF_LOG_TWO_PI
    else:
        mean, log_variance = raw.chunk(2, dim=1)
        log_variance = bounded(log_variance)
        each = 0.5 * ((mean - images).square() * (-log_variance).exp() + log_variance) + _HALF_LOG_TWO_PI
    return each.flatten(1).sum(1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over pixels, [B, ...] -> [B]: up to a constant, minus the log-likelihood of a unit Gaussian times 2."""
    return (prediction - target).square().flatten(1).sum(1)


def bounded(log_variance: Tensor) -> Tensor:
    """Log-variances softly kept above `LOWEST_LOG_VARIANCE`."""
    return LOWEST_LOG_VARIANCE + F.softplus(log_variance - LOWEST_LOG_VARIANCE)
