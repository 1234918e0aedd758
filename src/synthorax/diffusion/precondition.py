"""Parameterisations: what the network estimates, and how that becomes one estimate of the clean image.

Whatever the network's output, D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) is the expected clean image, for x = x0 + sigma n.

| name | network sees | network gives | c_noise |
|---|---|---|---|
| edm | x at unit variance | what the skip connection leaves, at unit variance (Table 1, Karras et al. 2022) | ln(sigma) / 4 |
| eps | variance-preserving state | the noise n (Ho et al. 2020) | timestep / 1000 |
| x0 | variance-preserving state | the clean image | timestep / 1000 |
| v | variance-preserving state | sqrt(alpha_bar) n - sqrt(1 - alpha_bar) x0 (App. D, Salimans and Ho 2022) | timestep / 1000 |
| flow | (1 - t) x0 + t n | the velocity n - x0 (Lipman et al. 2023) | t |

The timestep is that of the continuous cosine noise schedule without its offset, alpha_bar = cos^2(pi/2 timestep/1000), whichever levels are
trained: a smooth function of sigma that needs no table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PARAMETERISATIONS: dict[str, str] = {
    "edm": "synthorax.diffusion.precondition:edm_scalings",
    "eps": "synthorax.diffusion.precondition:eps_scalings",
    "x0": "synthorax.diffusion.precondition:x0_scalings",
    "v": "synthorax.diffusion.precondition:v_scalings",
    "flow": "synthorax.diffusion.precondition:flow_scalings",
}
"""Each `(sigma [B], *, sigma_data)` -> `Scalings` in the dtype of sigma; all but "edm" ignore `sigma_data`."""


@dataclass(frozen=True, slots=True)
class Scalings:
    """Coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), each [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor

    def like(self, x: Tensor) -> Scalings:
        """The same, shaped to multiply x [B, C, *S] in two or three dimensions; `c_noise` stays [B]."""
        shape = (-1, *[1] * (x.ndim - 1))
        return Scalings(self.c_skip.reshape(shape), self.c_out.reshape(shape), self.c_in.reshape(shape), self.c_noise)


def denoised_from_output(output: Tensor, x: Tensor, scalings: Scalings) -> Tensor:
    """The clean image that the network's `output` stands for at x, both [B, C, *S]."""
    s = scalings.like(x)
    return s.c_skip * x + s.c_out * output


def output_from_denoised(denoised: Tensor, x: Tensor, scalings: Scalings) -> Tensor:
    """What the network has to give out at x for the clean image `clean`: its training target, and the inverse of `clean_from_output`."""
    s = scalings.like(x)
    return (denoised - s.c_skip * x) / s.c_out


def output_weight(scalings: Scalings) -> Tensor:
    """1 / c_out^2, [B]: turns the squared error of the clean image into that of the network's own output.

    So "eps" gives the plain loss on the noise (Eq. 14, Ho et al. 2020) and "edm" the weight of Table 1, Karras et al. 2022.
    """
    return scalings.c_out.flatten() ** -2


def edm_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """Scalings that keep input and target of the network at unit variance (Table 1, Karras et al. 2022). `sigma` is [B]."""
    total = sigma**2 + sigma_data**2
    return Scalings(c_skip=sigma_data**2 / total, c_out=sigma * sigma_data / total.sqrt(), c_in=total.rsqrt(),
                    c_noise=sigma.log() / 4)


def eps_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """The network gives the noise: x0 = x - sigma n. `sigma` is [B]."""
    return Scalings(c_skip=torch.ones_like(sigma), c_out=-sigma, c_in=(1 + sigma**2).rsqrt(), c_noise=_fraction_of_schedule(sigma))


def x0_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """The network gives the clean image. `sigma` is [B]."""
    return Scalings(c_skip=torch.zeros_like(sigma), c_out=torch.ones_like(sigma), c_in=(1 + sigma**2).rsqrt(),
                    c_noise=_fraction_of_schedule(sigma))


def v_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """The network gives v: x0 = sqrt(alpha_bar) state - sqrt(1 - alpha_bar) v (App. D, Salimans and Ho 2022). `sigma` is [B]."""
    c_in = (1 + sigma**2).rsqrt()  # sqrt(alpha_bar), and sigma c_in is sqrt(1 - alpha_bar)
    return Scalings(c_skip=c_in**2, c_out=-sigma * c_in, c_in=c_in, c_noise=_fraction_of_schedule(sigma))


def flow_scalings(sigma: Tensor, *, sigma_data: float) -> Scalings:
    """The network gives the velocity: x0 = state - t velocity (Lipman et al. 2023; t is 1 at noise). `sigma` is [B]."""
    left = 1 / (1 + sigma)  # 1 - t
    return Scalings(c_skip=left, c_out=-sigma * left, c_in=left, c_noise=sigma * left)


def _fraction_of_schedule(sigma: Tensor) -> Tensor:
    """timestep / 1000 in (0, 1), [B]: alpha_bar = 1 / (1 + sigma^2) = cos^2(pi/2 part) solved for the part."""
    return sigma.atan() * (2 / math.pi)
