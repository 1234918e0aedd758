"""DDIM inversion: the noise from which deterministic sampling gives back an image."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from synthorax.diffusion.samplers import Denoise
from synthorax.errors import UsageError


def invert(denoise: Denoise, x0: Tensor, sigmas: Tensor, *, refinements: int = 0) -> Tensor:
    """Walk from images x0 [B, C, *S] up to level `sigmas[0]`, the reverse of `ddim` with eta 0 over the falling `sigmas` [N + 1].

    With 0 refinements each step takes the slope at its lower end (Sec. 4.3, Song et al. 2021a). ddim takes the slope at the upper end,
    which is known only once the step is made; each refinement makes the step again with the slope found there: the fixed-point
    iteration of AIDI (Pan et al. 2023) and ReNoise (Garibi et al. 2024). N (1 + refinements) calls of `denoise`, none at sigma 0.
    """
    if refinements < 0:
        raise UsageError(f"{refinements} refinements: choose 0 or more")
    levels = sigmas.double().flip(0).tolist()
    x = x0
    for sigma, sigma_next in pairwise(levels):
        # At sigma 0 there is no slope; the network takes the image for one that holds the least noise it knows.
        slope = _slope(denoise, x, sigma or sigma_next)
        for _ in range(refinements):
            slope = _slope(denoise, x + (sigma_next - sigma) * slope, sigma_next)
        x = x + (sigma_next - sigma) * slope
    return x


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma (Eq. 1, Karras et al. 2022)."""
    return (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
