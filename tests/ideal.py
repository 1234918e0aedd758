"""Ideal denoisers: for data whose distribution is known, the expected clean image and the end of every path are known too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthorax.diffusion.samplers import Denoise

MEAN, SPREAD = 0.3, 0.5


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Expected clean value of data N(MEAN, SPREAD^2) given x = data + sigma noise."""
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return MEAN + SPREAD**2 / (SPREAD**2 + level**2) * (x - MEAN)


def solution(x: Tensor, *, start: float, end: float) -> Tensor:
    """Where dx/dsigma = (x - D(x)) / sigma leads from sigma `start` to `end`, for the denoiser above."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


def mixture_of(centres: Tensor, *, shares: Tensor, spread: float) -> Denoise:
    """The ideal denoiser for data that is one of `centres` [K, C, *S] in `shares` [K], plus Gaussian texture of `spread`."""
    flat_centres = centres.flatten(1)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        variance = spread**2 + sigma.to(x)[:, None] ** 2  # [B, 1]
        flat = x.flatten(1)
        weights = torch.softmax(shares.log() - torch.cdist(flat, flat_centres) ** 2 / (2 * variance), dim=1)
        middle = weights @ flat_centres
        return (middle + spread**2 / variance * (flat - middle)).reshape(x.shape)

    return denoise


def start_at(sigma: float, *, num: int = 64) -> Tensor:
    """Noise of that level, [num, 1, 2, 2]."""
    return sigma * torch.randn(num, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def peak_signal_to_noise(made: Tensor, image: Tensor) -> Tensor:
    """PSNR of each image in dB, range 2, [B]."""
    return 10 * torch.log10(4 / ((made - image) ** 2).flatten(1).mean(1))
