"""Samplers: plain functions that walk from noise to an image with nothing but `denoise(x, sigma)`.

`denoise` takes x [B, C, H, W] and sigma [B] and returns the expected clean image. All of them solve
dx/dsigma = (x - D(x; sigma)) / sigma (Eq. 1, Karras et al. 2022) over the falling levels `sigmas` [N + 1], which end in 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Denoise, Tensor, Tensor], Tensor]

SAMPLERS: dict[str, str] = {
    "euler": "synthorax.diffusion.samplers:euler",
    "heun": "synthorax.diffusion.samplers:heun",
    "dpmpp-2m": "synthorax.diffusion.samplers:dpmpp_2m",
}


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """First-order steps; one call of `denoise` a level. `x` is noise of standard deviation `sigmas[0]`."""
    for sigma, following in _pairs(sigmas):
        slope = (x - denoise(x, _level(sigma, x))) / sigma
        x = x + (following - sigma) * slope
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Second-order steps, deterministic (Algorithm 1, Karras et al. 2022); two calls a level except the last."""
    for sigma, following in _pairs(sigmas):
        slope = (x - denoise(x, _level(sigma, x))) / sigma
        proposal = x + (following - sigma) * slope
        if following > 0:
            second = (proposal - denoise(proposal, _level(following, x))) / following
            proposal = x + (following - sigma) * (slope + second) / 2
        x = proposal
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M), deterministic multistep (Algorithm 2, Lu et al. 2022, "DPM-Solver++"); one call a level.

    In the sigma parameterisation alpha is 1 and lambda = -ln sigma. The last step goes to sigma 0 and is first order.
    """
    previous: Tensor | None = None
    previous_h = 0.0
    for sigma, following in _pairs(sigmas):
        clean = denoise(x, _level(sigma, x))
        if following == 0:
            return clean
        h = float((sigma / following).log())
        ahead = clean
        if previous is not None:
            ratio = previous_h / h
            ahead = clean + (clean - previous) / (2 * ratio)
        x = (following / sigma) * x + (1 - following / sigma) * ahead
        previous, previous_h = clean, h
    return x


def _pairs(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(pairwise(sigmas))


def _level(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x).expand(len(x))
