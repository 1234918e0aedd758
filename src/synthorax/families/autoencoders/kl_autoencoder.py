"""A compressor of images with a weakly regularised Gaussian latent: the first stage of latent diffusion (Sec. 3.1, Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative
from synthorax.families.autoencoders.first_stage import AUTOENCODE, DISCRIMINATE, FirstStageConfig, FirstStageObjective, needs
from synthorax.losses.divergence import kl_standard_normal
from synthorax.nets.autoencoder import AutoencoderConfig, Decoder, Encoder, LatentScale, checked
from synthorax.protocols import Batch, Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class KlAutoencoderObjectiveConfig(FirstStageConfig):
    """Weights of the losses."""

    kl: NotNegative = 1e-6
    """weight of the divergence of the latent from a standard normal one, in nats a pixel; so small that it only bounds the latent"""


START = -9.0
"""Log-variance of the latent before training: a standard deviation of 0.011, so that noise does not hide the image."""


class KlAutoencoderModel(nn.Module):
    """Encoder to the mean and variance of a latent, and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, AutoencoderConfig(**spec.config)
        shape = checked(self.config)
        self.channels, self.factor = shape.latent_channels, shape.factor
        self.encoder = Encoder(shape, outputs=2 * self.channels)
        self.decoder = Decoder(shape)
        self.scale = LatentScale(self.channels)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, [B, 1, S, S] -> two of [B, C, S / factor, S / factor]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, (log_variance + START).clamp(-30, 20)

    def encode(self, images: Tensor) -> Tensor:
        """The mean latent, without chance, [B, 1, S, S] in [-1, 1] -> [B, C, S / factor, S / factor] of any scale."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The image of a latent, [B, C, S / factor, S / factor] -> [B, 1, S, S] in [-1, 1]."""
        image: Tensor = self.decoder(latents).float().clamp(-1, 1)
        return image

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode random latents, one image a seed, [B, 1, S, S] in [-1, 1]; `condition` is ignored.

        This is a compressor and no generator: the latents have the mean and standard deviation of each channel as measured in training, but
        no structure, and so have the images. A diffusion on its latents makes images.
        """
        side = self.config.image_size // self.factor
        latents = self.scale.restore(Draws(seeds, device=self.scale.mean.device).normal(self.channels, side, side))
        with torch.inference_mode():
            return self.decode(latents)


class KlAutoencoderObjective(FirstStageObjective[KlAutoencoderModel]):
    """Reconstruction of images from noisy latents, the bound on the latents, and a discriminator if there is one."""

    def __init__(self, model: KlAutoencoderModel, config: KlAutoencoderObjectiveConfig) -> None:
        super().__init__(model, config)
        self.config = config

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, discriminator = self.model, self.discriminator
        with torch.set_grad_enabled(phase == AUTOENCODE.name and torch.is_grad_enabled()):
            mean, log_variance = model.posterior(batch.images)
            made = model.decoder(mean + (0.5 * log_variance).exp() * batch.draws.normal(*mean.shape[1:])).float()
        if discriminator is not None and phase == DISCRIMINATE.name:
            return discriminator.losses(batch.images, made)
        if self.training and bool(mean.isfinite().all()):
            model.scale.follow(mean)
        terms = self.terms(made, batch.images, last=model.decoder.last.weight)
        divergence = kl_standard_normal(mean.flatten(1), log_variance.flatten(1))
        return {**terms, "kl": self.config.kl * divergence / batch.images[0].numel()}


FAMILY = Family(model_config=AutoencoderConfig, objective_config=KlAutoencoderObjectiveConfig, build_model=KlAutoencoderModel,
                build_objective=KlAutoencoderObjective, needs=needs)
