"""The adversarial autoencoder: a discriminator on latents takes the place of the divergence (Makhzani et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import Fraction, NotNegative, Width
from synthorax.errors import UsageError
from synthorax.families.autoencoders.discriminators import LatentDiscriminator
from synthorax.families.autoencoders.vae import check_mixture_data, condition_dropout, encoder_alone, prior_given
from synthorax.families.autoencoders.vae_model import VaeConfig, VaeModel
from synthorax.losses.likelihood import negative_log_likelihood
from synthorax.protocols import Batch, Family, Objective, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class AaeObjectiveConfig:
    """Weights of the losses."""

    adversarial: NotNegative = 100.0
    """weight of the adversarial loss of latents, beside the reconstruction in nats an image"""
    discriminator_width: Width = 256
    """width of the discriminator's two hidden layers"""
    sigma: NotNegative = 0.1
    """standard deviation of the likelihood gaussian, for images in [-1, 1]"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label, attribute and mask class"""


class AaeObjective(Objective[VaeModel]):
    """The autoencoder pays for its reconstruction and for latents that the discriminator tells from the prior's.

    The encoder is a Gaussian, or what the prior asks for, and not a point: the paper's second choice (Sec. 2).
    """

    phases = (Phase(name="autoencode", updates=("model",), betas=(0.5, 0.999)),
              Phase(name="discriminate", updates=("discriminator",), betas=(0.5, 0.999)))

    def __init__(self, model: VaeModel, config: AaeObjectiveConfig) -> None:
        super().__init__()
        encoder_alone(model, family="aae")
        prior_given(model)
        if model.config.likelihood == "gaussian" and config.sigma <= 0:
            raise UsageError(f"objective.sigma={config.sigma}: the likelihood gaussian needs a standard deviation above 0")
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model, "discriminator": LatentDiscriminator(model.config.latent_size,
                                                                                           width=config.discriminator_width)})

    def check_data(self, *, num_images: int) -> None:
        """See `check_mixture_data`."""
        check_mixture_data(self.model, num_images=num_images)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, discriminator, config = self.model, self.players["discriminator"], self.config
        assert isinstance(discriminator, LatentDiscriminator)
        condition = condition_dropout(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        with torch.set_grad_enabled(phase == "autoencode" and torch.is_grad_enabled()):
            latent = model.prior.draw(model.posterior(batch.images, condition), batch.draws)
        if phase == "discriminate":
            return discriminator.discriminator_loss(model.prior.decoder_input(model.prior.sample(batch.draws)),
                                                    model.prior.decoder_input(latent))
        return {"reconstruction": negative_log_likelihood(model.explain(latent, condition), batch.images,
                                                          likelihood=model.config.likelihood, sigma=config.sigma),
                "adversarial": config.adversarial * discriminator.generator_loss(model.prior.decoder_input(latent))}


FAMILY = Family(model_config=VaeConfig, objective_config=AaeObjectiveConfig, build_model=VaeModel, build_objective=AaeObjective,
                conditions=lambda config: tuple(config.parts), can=(HasConditionInputs, HasDiagnostics))
