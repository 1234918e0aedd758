"""Samplers: plain functions that walk from noise to an image with nothing but `denoise(x, sigma)`.

`denoise` takes x [B, C, *S] and sigma [B] and returns the expected clean image, so every sampler serves every parameterisation. They
walk over the falling levels `sigmas` [N + 1], which end in 0, and x starts as noise of standard deviation `sigmas[0]`. The deterministic
ones solve dx/dsigma = (x - D(x; sigma)) / sigma (Eq. 1, Karras et al. 2022). The last step gives D(x; sigma), without noise.

| name | calls of `denoise` | order | fresh noise |
|---|---|---|---|
| ddpm | N | 1 | always |
| ddim | N | 1 | eta, usually 0 |
| euler | N | 1 | none |
| euler-a | N | 1 | eta, usually 1 |
| heun | 2 N - 1 | 2 | none |
| dpmpp-2m | N | 2 | none |
| dpmpp-2m-sde | N | 2 without its noise | always |
| unipc | N | 3 | none |

In these coordinates ddim is euler-a with another usual eta, ddim with eta 0 is euler, and with eta 1 both are ddpm. They keep their
names because papers and other programs use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from synthorax.diffusion.variance import posterior_mean, variance_between
from synthorax.errors import UsageError, nearest
from synthorax.registry import lookup

Denoise = Callable[[Tensor, Tensor], Tensor]
DenoiseWithVariance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[], Tensor]
"""Fresh standard normal numbers like x, one stream an image; called once a step that adds noise."""

SAMPLERS: dict[str, str] = {
    "ddpm": "synthorax.diffusion.samplers:ddpm",
    "ddim": "synthorax.diffusion.samplers:ddim",
    "euler": "synthorax.diffusion.samplers:euler",
    "euler-a": "synthorax.diffusion.samplers:euler_ancestral",
    "heun": "synthorax.diffusion.samplers:heun",
    "dpmpp-2m": "synthorax.diffusion.samplers:dpmpp_2m",
    "dpmpp-2m-sde": "synthorax.diffusion.samplers:dpmpp_2m_sde",
    "unipc": "synthorax.diffusion.samplers:unipc",
}
USUAL_ETA = {"ddim": 0.0, "euler-a": 1.0}
"""Samplers whose share of fresh noise can be chosen in [0, 1], and what it usually is."""
ALWAYS_NOISY = ("ddpm", "dpmpp-2m-sde")
"""Samplers that add fresh noise whatever is asked."""


def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, *, sampler: str, noise: Noise | None = None, eta: float | None = None) -> Tensor:
    """Walk from noise x [B, C, *S] of standard deviation `sigmas[0]` to images with the sampler of that name; the one entry point.

    `eta` in [0, 1] is the fresh noise in parts of what ddpm adds, for the samplers of `USUAL_ETA`; None takes what is usual.

    >>> import torch
    >>> solve(lambda x, sigma: x * 0, torch.ones(1, 1, 2, 2), torch.tensor([1.0, 0.5, 0.0]), sampler="euler").sum().item()
    0.0
    """
    method = lookup(SAMPLERS, sampler, kind="sampler")
    if len(sigmas) < 2 or not bool(sigmas.isfinite().all()) or bool((sigmas.diff() >= 0).any()) or sigmas[-1] < 0:
        raise UsageError("noise levels of sampling must be at least two, finite, falling and not below 0")
    check_sampler(sampler, eta=eta)
    if sampler in USUAL_ETA:
        eta = USUAL_ETA[sampler] if eta is None else eta
    if noise is None and (eta or sampler in ALWAYS_NOISY):
        raise UsageError(f"sampler '{sampler}' adds fresh noise, and no source of noise was given")
    images: Tensor
    if eta is not None:
        images = method(denoise, x, sigmas, noise=noise, eta=eta)
    elif sampler in ALWAYS_NOISY:
        images = method(denoise, x, sigmas, noise=noise)
    else:
        images = method(denoise, x, sigmas)
    return images


def check_sampler(sampler: str, *, eta: float | None) -> None:
    """Raises UsageError for a name that is no sampler, and for an `eta` that it has not or that is outside [0, 1]."""
    if sampler not in SAMPLERS:
        others = f" The samplers: {', '.join(SAMPLERS)}" if nearest(sampler, SAMPLERS).endswith("?") else ""
        raise UsageError(f"unknown sampler '{sampler}'; {nearest(sampler, SAMPLERS)}{others}")
    if eta is not None and sampler not in USUAL_ETA:
        raise UsageError(f"sampler '{sampler}' has no eta; those that have one: {', '.join(USUAL_ETA)}")
    if eta is not None and not 0 <= eta <= 1:
        raise UsageError(f"eta {eta} is outside 0 to 1")


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Tensor:
    """Ancestral sampling with the lower variance, beta-tilde (Algorithm 2 and Eq. 7, Ho et al. 2020), over any levels."""
    return euler_ancestral(denoise, x, sigmas, noise=noise, eta=1.0)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DDIM (Eq. 12 and 16, Song et al. 2021a), over any levels; eta 0 is deterministic and can be inverted."""
    return euler_ancestral(denoise, x, sigmas, noise=noise, eta=eta)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0) -> Tensor:
    """An Euler step to below the next level, then fresh noise up to it; `eta` is that noise in parts of ddpm's."""
    for sigma, sigma_next in _pairs(sigmas):
        x = _ancestral_step(x, denoise(x, _level(sigma, x)), sigma, sigma_next, noise=noise, eta=eta)
    return x


def ddpm_learned(denoise_with_variance: DenoiseWithVariance, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Tensor:
    """Ancestral sampling with a learned variance (Eq. 15, Nichol and Dhariwal 2021); N calls.

    `denoise_with_variance` returns the expected clean image and the exponent in [0, 1] that lies between the two bounds of the variance,
    both like x.
    """
    for sigma, sigma_next in _pairs(sigmas):
        level, below = _level(sigma, x), _level(sigma_next, x)
        denoised, fraction = denoise_with_variance(x, level)
        if sigma_next == 0:
            return denoised
        mean = posterior_mean(x, denoised, sigma=level, sigma_next=below)
        x = mean + variance_between(fraction, sigma=level, sigma_next=below).sqrt() * noise().to(x)
    return x


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """First-order steps."""
    for sigma, sigma_next in _pairs(sigmas):
        slope = (x - denoise(x, _level(sigma, x))) / sigma
        x = x + (sigma_next - sigma) * slope
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Second-order steps (Algorithm 1, Karras et al. 2022); two calls a level except the last."""
    for sigma, sigma_next in _pairs(sigmas):
        slope = (x - denoise(x, _level(sigma, x))) / sigma
        proposal = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            second = (proposal - denoise(proposal, _level(sigma_next, x))) / sigma_next
            proposal = x + (sigma_next - sigma) * (slope + second) / 2
        x = proposal
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M), multistep (Algorithm 2, Lu et al. 2022, "DPM-Solver++").

    In the sigma parameterisation alpha is 1 and lambda = -ln sigma. The last step goes to sigma 0 and is first order.
    """
    return _multistep(denoise, x, sigmas, noise=None, eta=0.0)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++"): ddpm's step with the estimate of `dpmpp_2m`."""
    return _multistep(denoise, x, sigmas, noise=noise, eta=1.0)


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """UniPC of order 2 in data prediction, B(h) = e^h - 1 (Zhao et al. 2023): the steps of `dpmpp_2m`, each corrected afterwards.

    The estimate at the end of a step, which the next step needs anyway, first improves that step: UniC-2, third order, for no further call.
    """
    base = x
    estimates: list[Tensor] = []  # at the last three levels, newest last
    widths: list[float] = []  # of the steps in lambda = -ln sigma
    for index, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        estimates = [*estimates[-2:], denoise(x, _level(sigma, x))]
        if sigma_next == 0:
            return estimates[-1]
        if index:
            kept = math.exp(-widths[-1])  # of x in the step just made
            x = kept * base + (1 - kept) * _corrected(estimates, widths)
        base, denoised_d = x, estimates[-1]
        widths = [*widths[-1:], math.log(sigma / sigma_next)]
        if index:
            denoised_d = denoised_d + (estimates[-1] - estimates[-2]) * widths[-1] / (2 * widths[-2])
        x = (sigma_next / sigma) * x + (1 - sigma_next / sigma) * denoised_d
    return x


def _corrected(estimates: list[Tensor], widths: list[float]) -> Tensor:
    """The mean estimate over a step, given those before, at its start and at its end (UniC, Sec. 3, Zhao et al. 2023)."""
    *_, start, end = estimates
    if len(estimates) == 2:
        return (start + end) / 2
    before, h = widths
    # Weights of the two differences are exact where the estimate is a quadratic of lambda.
    first = (1 - h - math.exp(-h)) / (-h * (1 - math.exp(-h)))
    second = 2 * (first / -h + 1 / (2 * (1 - math.exp(-h))))
    ratio = -before / h
    share = (first - second) / (1 - ratio)
    return start + share * (estimates[0] - start) / ratio + (first - share) * (end - start)


def _multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None, eta: float) -> Tensor:
    """Ancestral steps with the estimate extrapolated to the middle of the step, in lambda = -ln sigma."""
    previous: Tensor | None = None
    previous_width = 0.0
    for sigma, sigma_next in _pairs(sigmas):
        denoised = denoise(x, _level(sigma, x))
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        denoised_d = denoised if previous is None else denoised + (denoised - previous) * h / (2 * previous_width)
        x = _ancestral_step(x, denoised_d, sigma, sigma_next, noise=noise, eta=eta)
        previous, previous_width = denoised, h
    return x


def _ancestral_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, *, noise: Noise | None, eta: float) -> Tensor:
    """From level `sigma` to `sigma_next`: the standard deviation from `clean` shrinks to `down`, and fresh noise fills `up`."""
    up = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)  # Eq. 16, Song et al. 2021a, with alpha = 1
    down = math.sqrt(sigma_next**2 - up**2)
    x = denoised + (down / sigma) * (x - denoised)
    if up == 0:
        return x
    assert noise is not None
    return x + up * noise().to(x)


def _pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    return list(pairwise(sigmas.double().tolist()))


def _level(sigma: float, x: Tensor) -> Tensor:
    return x.new_full((len(x),), sigma)
