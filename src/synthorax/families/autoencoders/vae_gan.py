"""Autoencoders whose images must convince a discriminator: VAE-GAN (Larsen et al. 2016) and alpha-GAN (Rosca et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import Depth, Fraction, NotNegative, Width
from synthorax.errors import UsageError
from synthorax.families.autoencoders.discriminators import ImageDiscriminator, LatentDiscriminator
from synthorax.families.autoencoders.vae import check_mixture_data, condition_dropout, encoder_alone, prior_given
from synthorax.families.autoencoders.vae_model import VaeConfig, VaeModel
from synthorax.losses.likelihood import expected_image, squared_error
from synthorax.protocols import Batch, Family, Objective, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeGanObjectiveConfig:
    """Weights of the losses."""

    beta: NotNegative = 1.0
    """weight of the divergence of latents from their prior, in nats an image"""
    features: NotNegative = 4.0
    """weight of the squared error of the discriminator's features, summed over them"""
    pixels: NotNegative = 2.0
    """weight of the squared error summed over pixels; the paper has 0, and without any a patch discriminator lets intensities drift"""
    adversarial: NotNegative = 100.0
    """weight of the adversarial loss of reconstructions and of images of the prior's latents"""
    latent_adversarial: NotNegative = 0.0
    """weight of a discriminator of latents, which with `beta` 0 takes the place of the divergence (alpha-GAN); 0 for none"""
    latent_discriminator_width: Width = 256
    """width of the two hidden layers of the discriminator of latents"""
    discriminator_channels: Width = 32
    """feature maps of the discriminator's first layer"""
    discriminator_layers: Depth = 3
    """halvings in the discriminator; its features are what it scores"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label, attribute and mask class"""


class VaeGanObjective(Objective[VaeModel]):
    """Algorithm 1 of Larsen et al. 2016: the divergence and the features teach the encoder, the features and the discriminator the decoder.

    With `latent_adversarial`, a second discriminator teaches the encoder to give latents like those of the prior: Algorithm 1 of Rosca et
    al. 2017 where `beta` and `features` are 0, with squared errors of pixels in place of absolute ones.

    The discriminator never reaches the encoder, and judges reconstructions and images of the prior's latents alike. Its loss is the hinge.
    In all phases it is shown images clamped to [-1, 1]: a decoder that is scored on intensities beyond, which the discriminator never
    learns about, is rewarded for going there.
    """

    def __init__(self, model: VaeModel, config: VaeGanObjectiveConfig) -> None:
        super().__init__()
        encoder_alone(model, family="vae-gan")
        if model.config.likelihood != "mse":
            raise UsageError(f"model.likelihood={model.config.likelihood}: the family vae-gan has the likelihood of a discriminator's "
                             f"features; "
                             "take mse, with which the decoder outputs the image itself")
        if model.config.prior == "geometric":
            raise UsageError("model.prior=geometric belongs to the family vae: vae-gan samples in every step of its training")
        self.config, self.model = config, model
        self.discriminator = ImageDiscriminator(channels=config.discriminator_channels, layers=config.discriminator_layers)
        self.latent_discriminator: LatentDiscriminator | None = None
        self.players = nn.ModuleDict({"model": model, "discriminator": self.discriminator})
        discriminators: tuple[str, ...] = ("discriminator",)
        if config.latent_adversarial:
            prior_given(model)
            self.players["latent_discriminator"] = self.latent_discriminator = LatentDiscriminator(model.config.latent_size,
                                                                                                   width=config.latent_discriminator_width)
            discriminators = ("discriminator", "latent_discriminator")
        self.phases = (Phase(name="autoencode", updates=("model",), betas=(0.5, 0.999)),
                       Phase(name="discriminate", updates=discriminators, betas=(0.5, 0.999)))

    def check_data(self, *, num_images: int) -> None:
        """See `check_mixture_data`."""
        check_mixture_data(self.model, num_images=num_images)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, discriminator, latent_discriminator, config = self.model, self.discriminator, self.latent_discriminator, self.config
        condition = condition_dropout(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        learning = phase == "autoencode" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learning):
            raw = model.posterior(batch.images, condition)
            latent = model.prior.draw(raw, batch.draws)
            invented = model.prior.sample(batch.draws)
            rebuilt, free = (model.decode(z, condition) for z in (latent.detach(), invented))  # detached: nothing reaches the encoder
        if phase == "discriminate":
            discriminator_loss = discriminator.discriminator_loss(batch.images, [rebuilt, free])
            if latent_discriminator is not None:
                discriminator_loss |= latent_discriminator.discriminator_loss(model.prior.decoder_input(invented),
                                                                              model.prior.decoder_input(latent))
            return discriminator_loss
        again = model.explain(latent, condition)
        terms = {"pixels": config.pixels * squared_error(again, batch.images),
                 "adversarial": config.adversarial * discriminator.generator_loss([rebuilt, free])}
        if config.features:
            with torch.no_grad():
                wanted = discriminator.features(batch.images)
            seen = discriminator.features(expected_image(again, likelihood="mse"))
            terms["features"] = config.features * squared_error(seen, wanted)
        if config.beta:
            terms["divergence"] = config.beta * model.prior.divergence(raw, latent).sum(1)
        if latent_discriminator is not None:
            terms["codes"] = config.latent_adversarial * latent_discriminator.generator_loss(model.prior.decoder_input(latent))
        return terms


FAMILY = Family(model_config=VaeConfig, objective_config=VaeGanObjectiveConfig, build_model=VaeModel, build_objective=VaeGanObjective,
                conditions=lambda config: tuple(config.parts), can=(HasConditionInputs, HasDiagnostics))
