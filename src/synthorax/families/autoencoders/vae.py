"""What trains a variational autoencoder: the evidence lower bound, with a weight, free bits, and condition dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import Depth, Fraction, NotNegative, WholeNotNegative, Width
from synthorax.errors import UsageError
from synthorax.families.autoencoders.discriminators import ImageDiscriminator
from synthorax.families.autoencoders.geometric import Geometric
from synthorax.families.autoencoders.vae_model import CONDITION_PARTS, VaeConfig, VaeModel
from synthorax.families.growth import Growth, growing
from synthorax.losses.divergence import free_bits
from synthorax.losses.likelihood import negative_log_likelihood
from synthorax.protocols import Batch, Condition, Family, Objective, Phase
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeObjectiveConfig:
    """Weights of the bound."""

    beta: NotNegative = 1.0
    """weight of the divergence; 1 is the evidence lower bound, more for disentangled latents (Higgins et al. 2017)"""
    beta_warmup: WholeNotNegative = 0
    """steps over which the weight rises from 0 (Bowman et al. 2016)"""
    growth_images: WholeNotNegative = 0
    """images at each resolution, and again so many in which the next one fades in, for the network progressive; 0: all at once"""
    free_bits: NotNegative = 0.0
    """nats of each number of the latent that cost the same used or not, so that it pays to use them; of the whole latent where its numbers
    depend on one another (mixture, dirichlet, hamiltonian)"""
    sigma: NotNegative = 0.1
    """standard deviation of the likelihood gaussian, for images in [-1, 1]"""
    discriminative: NotNegative = 0.0
    """weight of a discriminator's loss on rebuilt images and on images of the prior's latents, beside the bound in nats an image; 0 for
    no discriminator
    """
    discriminator_channels: Width = 32
    """feature maps of that discriminator's first layer"""
    discriminator_layers: Depth = 3
    """halvings in that discriminator"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label, attribute and mask class"""


class VaeObjective(Objective[VaeModel]):
    """Minus the evidence lower bound, in nats an image (Eq. 10, Kingma and Welling 2014).

    With the posterior hamiltonian, minus log p(x, z_K) - |rho_K|^2 / 2 - log q(z_0 | x) + |gamma_0|^2 / 2 (Caterini et al. 2018). With
    `discriminative`, a discriminator of images makes the decoder, and never the encoder, pay beside the bound (after Kebaili et al. 2024).
    """

    steps: Tensor

    def __init__(self, model: VaeModel, config: VaeObjectiveConfig) -> None:
        super().__init__()
        if model.config.likelihood == "gaussian" and config.sigma <= 0:
            raise UsageError(f"objective.sigma={config.sigma}: the likelihood gaussian needs a standard deviation above 0")
        if model.flow is not None:
            model.flow.sigma.fill_(config.sigma)
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model, **({"clock": Clock()} if config.beta_warmup else {})})
        if config.growth_images:
            if model.config.network != "progressive":
                raise UsageError("objective.growth_images needs networks that grow: model.network=progressive")
            self.players["growth"] = Growth(config.growth_images)
        self.phases: tuple[Phase, ...] = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)
        self.discriminator: ImageDiscriminator | None = None
        if config.discriminative:
            if model.config.prior == "geometric":
                raise UsageError("objective.discriminative: its discriminator sees images of the prior's latents, and the prior geometric "
                                 "has none "
                                 "in training; take another prior")
            self.players["discriminator"] = self.discriminator = ImageDiscriminator(channels=config.discriminator_channels,
                                                                                    layers=config.discriminator_layers)
            self.phases += (Phase(name="discriminate", updates=("discriminator",), betas=(0.5, 0.999)),)

    def check_data(self, *, num_images: int) -> None:
        """Refuse more Gaussians than images."""
        check_mixture_data(self.model, num_images=num_images)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, config, discriminator = self.model, self.config, self.discriminator
        condition = condition_dropout(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        if self.training and phase == "elbo" and "growth" in self.players:
            cast(Growth, self.players["growth"]).grow(growing(model), images=len(batch))
        with torch.set_grad_enabled(phase == "elbo" and torch.is_grad_enabled()):
            raw = model.posterior(batch.images, condition)
            if self.training and isinstance(model.prior, Geometric):
                model.prior.remember(raw)
            latent, cost = model.latents(batch.images, condition, raw, batch.draws)
            generated = [] if discriminator is None else \
                [model.decode(z, condition) for z in (latent.detach(), model.prior.sample(batch.draws))]
        if discriminator is not None and phase == "discriminate":
            return discriminator.discriminator_loss(batch.images, generated)
        divergence = free_bits(cost, nats=config.free_bits * self._grouped, over_batch=self.training)
        reconstruction = negative_log_likelihood(model.explain(latent, condition), batch.images, likelihood=model.config.likelihood,
                                                 sigma=config.sigma)
        terms = {"reconstruction": reconstruction, "divergence": self._beta() * divergence}
        if discriminator is not None:
            terms["discriminative"] = config.discriminative * discriminator.generator_loss(generated)
        return terms

    @property
    def uses_all(self) -> bool:
        return super().uses_all and "growth" not in self.players

    @property
    def _grouped(self) -> int:
        """Numbers of the latent whose divergence is only known together."""
        together = self.model.config.prior in ("mixture", "dirichlet") or self.model.flow is not None
        return self.model.config.latent_size if together else 1

    def _beta(self) -> float:
        if "clock" not in self.players:
            return self.config.beta
        clock = self.players["clock"]
        assert isinstance(clock, Clock)
        if self.training:
            clock.steps += 1
        return self.config.beta * min(1.0, int(clock.steps) / self.config.beta_warmup)


class Clock(nn.Module):
    """Counts the steps of a warm-up; saved with the players, so that a continued run goes on counting."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))


def check_mixture_data(model: VaeModel, *, num_images: int) -> None:
    """UsageError where the prior of an autoencoder has more Gaussians than there are images."""
    if model.config.prior == "mixture" and model.config.components > num_images:
        raise UsageError(f"model.components={model.config.components} is more than the {num_images} images to learn from")


def encoder_alone(model: VaeModel, *, family: str) -> None:
    """UsageError where a family that draws latents from the encoder is asked for another posterior."""
    if model.flow is not None:
        raise UsageError(f"model.posterior={model.config.posterior} belongs to the family vae: {family} draws latents from the encoder "
                         f"alone")


def prior_given(model: VaeModel) -> None:
    """UsageError where a discriminator is to hold latents against a prior that is learned, or that does not sample in training."""
    if model.config.prior in ("mixture", "geometric"):
        raise UsageError(f"model.prior={model.config.prior}: a discriminator of latents needs a prior that is given, not learned: normal, "
                         f"dirichlet "
                         "or cauchy")


def condition_dropout(condition: Condition, draws: Draws, *, part: float, statement: float) -> Condition:
    """The condition with whole parts and single statements dropped at random; what an autoencoder is not conditioned on stays."""
    changed: dict[str, Any] = {}
    for name in CONDITION_PARTS:
        value = getattr(condition, name)
        if value is None:
            continue
        gone = (draws.uniform(value.shape[1]) < statement) | (draws.uniform(1) < part)  # [B, statements]
        changed[name] = value.masked_fill(gone[..., None, None] if name == "mask" else gone, math.nan)
    return replace(condition, **changed)


FAMILY = Family(model_config=VaeConfig, objective_config=VaeObjectiveConfig, build_model=VaeModel, build_objective=VaeObjective,
                conditions=lambda config: tuple(config.parts), can=(HasConditionInputs, HasDiagnostics))
