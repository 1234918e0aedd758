"""Priors of the latent, each with the posterior that goes with it and the divergence of the two.

A prior says how many numbers the encoder must output for a latent of Z numbers, draws a latent from them, and measures the divergence of
the posterior from itself. `decoder_input` is a change of variables that leaves the divergence as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.losses.divergence import (
    kl_cauchy_each,
    kl_dirichlet,
    kl_mixture_draw,
    kl_standard_normal_each,
)
from synthorax.registry import lookup
from synthorax.rng import Draws

SMALLEST_CONCENTRATION = 0.01  # below, all but one of a Dirichlet's parts are 0 in float32
TINY = 1e-30


class Prior(Protocol):
    """The prior of a latent of Z numbers, and the posterior that goes with it."""

    numbers: int
    """numbers that the encoder outputs for an image"""

    def draw(self, raw: Tensor, draws: Draws) -> Tensor:
        """A latent from the posterior, [B, numbers] -> [B, Z]."""

    def centre(self, raw: Tensor) -> Tensor:
        """The centre of the posterior, without noise, [B, numbers] -> [B, Z]."""

    def divergence(self, raw: Tensor, latent: Tensor) -> Tensor:
        """Of the posterior from the prior in nats, [B, numbers] and a latent drawn from it -> [B, Z]; [B, 1] where the latent's numbers
        depend on one another."""

    def sample(self, draws: Draws) -> Tensor:
        """Latents from the prior, [B, Z]."""

    def decoder_input(self, latent: Tensor) -> Tensor:
        """The latent as the decoder gets it, [B, Z] -> [B, Z]."""


class Normal(nn.Module, Prior):
    """Independent standard normal numbers; the posterior is normal with its own mean and variance (Kingma and Welling 2014)."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size, self.numbers = latent_size, 2 * latent_size

    def draw(self, raw: Tensor, draws: Draws) -> Tensor:
        return _normal_draw(raw, draws)

    def centre(self, raw: Tensor) -> Tensor:
        return moments(raw)[0]

    def divergence(self, raw: Tensor, latent: Tensor) -> Tensor:
        return kl_standard_normal_each(*moments(raw))

    def sample(self, draws: Draws) -> Tensor:
        return draws.normal(self.latent_size)

    def decoder_input(self, latent: Tensor) -> Tensor:
        return latent


class Mixture(nn.Module, Prior):
    """A mixture of learned Gaussians of learned weights; the posterior is one Gaussian (Dilokthanakul et al. 2016)."""

    def __init__(self, latent_size: int, *, components: int) -> None:
        super().__init__()
        self.latent_size, self.numbers = latent_size, 2 * latent_size
        self.means = nn.Parameter(torch.randn(components, latent_size))
        self.log_variances = nn.Parameter(torch.zeros(components, latent_size))
        self.logits = nn.Parameter(torch.zeros(components))

    def draw(self, raw: Tensor, draws: Draws) -> Tensor:
        return _normal_draw(raw, draws)

    def centre(self, raw: Tensor) -> Tensor:
        return moments(raw)[0]

    def divergence(self, raw: Tensor, latent: Tensor) -> Tensor:
        mean, log_variance = moments(raw)
        return kl_mixture_draw(latent, mean, log_variance, means=self.means, log_variances=self.log_variances,
                               log_weights=self.logits.log_softmax(0))[:, None]

    def sample(self, draws: Draws) -> Tensor:
        shares = self.logits.softmax(0).cumsum(0)
        chosen = torch.searchsorted(shares, draws.uniform(1)).squeeze(1).clamp_max(len(shares) - 1)  # [B]
        return self.means[chosen] + (0.5 * self.log_variances[chosen]).exp() * draws.normal(self.latent_size)

    def decoder_input(self, latent: Tensor) -> Tensor:
        return latent


class Dirichlet(nn.Module, Prior):
    """Proportions that add up to 1, such as of topics in a text; the posterior is a Dirichlet too, so the divergence is exact.

    Normalised gamma numbers are Dirichlet, and their gradients by the shape are exact too (Figurnov et al. 2018): neither the softmax
    approximation nor the inverse of an approximated distribution function (Joo et al. 2020) is needed.
    """

    prior: Tensor

    def __init__(self, latent_size: int, *, concentration: float) -> None:
        super().__init__()
        if latent_size < 2 or concentration <= 0:
            raise UsageError("model.prior=dirichlet needs model.latent_size of at least 2 and model.concentration above 0, "
                             f"not {latent_size} and {concentration}")
        self.latent_size, self.numbers = latent_size, latent_size
        self.register_buffer("prior", torch.full((latent_size,), concentration), persistent=False)

    def draw(self, raw: Tensor, draws: Draws) -> Tensor:
        return _parts(draws.gamma(_concentration(raw)))

    def centre(self, raw: Tensor) -> Tensor:
        return _parts(_concentration(raw))

    def divergence(self, raw: Tensor, latent: Tensor) -> Tensor:
        return kl_dirichlet(_concentration(raw), self.prior)[:, None]

    def sample(self, draws: Draws) -> Tensor:
        return _parts(draws.gamma(self.prior.expand(len(draws), -1)))

    def decoder_input(self, latent: Tensor) -> Tensor:
        return latent * self.latent_size  # a mean of 1, whatever the number of parts


class Cauchy(nn.Module, Prior):
    """Independent numbers with tails so heavy that they have no mean; the posterior is Cauchy too, so the divergence is exact."""

    def __init__(self, latent_size: int, *, scale: float) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"model.prior=cauchy needs model.concentration, here its scale, above 0, not {scale}")
        self.latent_size, self.numbers, self.scale = latent_size, 2 * latent_size, scale

    def draw(self, raw: Tensor, draws: Draws) -> Tensor:
        place, log_scale = moments(raw)
        return place + log_scale.exp() * _standard_cauchy(draws, self.latent_size)

    def centre(self, raw: Tensor) -> Tensor:
        return moments(raw)[0]

    def divergence(self, raw: Tensor, latent: Tensor) -> Tensor:
        return kl_cauchy_each(*moments(raw), prior_scale=self.scale)

    def sample(self, draws: Draws) -> Tensor:
        return self.scale * _standard_cauchy(draws, self.latent_size)

    def decoder_input(self, latent: Tensor) -> Tensor:
        return latent.asinh()  # one to one, and the rare huge number does not drown the others


PRIORS = {"normal": "synthorax.families.autoencoders.priors:Normal", "mixture": "synthorax.families.autoencoders.priors:Mixture",
          "dirichlet": "synthorax.families.autoencoders.priors:Dirichlet", "cauchy": "synthorax.families.autoencoders.priors:Cauchy",
          "geometric": "synthorax.families.autoencoders.geometric:Geometric"}


def build_prior(name: str, *, latent_size: int, components: int, concentration: float, remembered: int) -> Prior:
    """The prior of that name; `components` are those of a mixture, `concentration` is a Dirichlet's, or the scale of a Cauchy.

    `remembered` posteriors make the metric of a geometric one.
    """
    kind: Callable[..., Prior] = lookup(PRIORS, name, kind="prior")
    given: dict[str, dict[str, Any]] = {"mixture": {"components": components}, "dirichlet": {"concentration": concentration},
                                        "cauchy": {"scale": concentration}, "geometric": {"remembered": remembered}}
    return kind(latent_size, **given.get(name, {}))


def moments(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, or location and log-scale, as the encoder outputs them, [B, 2 Z] -> two of [B, Z]."""
    mean, log_variance = raw.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 10)


def _normal_draw(raw: Tensor, draws: Draws) -> Tensor:
    mean, log_variance = moments(raw)
    return mean + (0.5 * log_variance).exp() * draws.normal(mean.shape[1])


def _standard_cauchy(draws: Draws, size: int) -> Tensor:
    return torch.tan(math.pi * (draws.uniform(size).clamp(1e-6, 1 - 1e-6) - 0.5))


def _concentration(raw: Tensor) -> Tensor:
    return F.softplus(raw.float()) + SMALLEST_CONCENTRATION


def _parts(amounts: Tensor) -> Tensor:
    amounts = amounts + TINY
    return amounts / amounts.sum(1, keepdim=True)
