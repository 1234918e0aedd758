"""A compressor of films with a nearly free Gaussian code: the first stage of latent diffusion (Sec. 3.1, Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative
from synthorax.families.first_stage import AUTOENCODE, DISCRIMINATE, FirstStageConfig, FirstStageObjective
from synthorax.losses.divergence import kl_standard_normal
from synthorax.nets.autoencoder import AutoencoderConfig, Decoder, Encoder, LatentScale, checked
from synthorax.protocols import Batch, Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class KlAutoencoderObjectiveConfig(FirstStageConfig):
    """Weights of the losses."""

    kl: NotNegative = 1e-6
    """weight of the divergence of the code from a standard normal one, in nats a pixel; so small that it only bounds the code"""


START = -9.0
"""Log-variance of the code before training: a deviation of 0.011, a grey level or two, so that noise does not hide the film."""


class KlAutoencoderModel(nn.Module):
    """Encoder to the mean and variance of a code, and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, AutoencoderConfig(**spec.config)
        shape = checked(self.config)
        self.channels, self.factor = shape.latent_channels, shape.factor
        self.encoder = Encoder(shape, outputs=2 * self.channels)
        self.decoder = Decoder(shape)
        self.scale = LatentScale(self.channels)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the code, [B, 1, S, S] -> two of [B, C, S / factor, S / factor]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, (log_variance + START).clamp(-30, 20)

    def encode(self, images: Tensor) -> Tensor:
        """The mean code, without chance, [B, 1, S, S] in [-1, 1] -> [B, C, S / factor, S / factor] of any scale."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The film of a code, [B, C, S / factor, S / factor] -> [B, 1, S, S] in [-1, 1]."""
        film: Tensor = self.decoder(latents).float().clamp(-1, 1)
        return film

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode random codes, one film a seed, [B, 1, S, S] in [-1, 1]; `condition` is ignored.

        This is a compressor and no generator: the codes have the mean and deviation of each channel as measured in training, but
        no structure, and so have the films. A diffusion on its codes makes films.
        """
        side = self.config.image_size // self.factor
        codes = self.scale.restore(Draws(seeds, device=self.scale.mean.device).normal(self.channels, side, side))
        with torch.inference_mode():
            return self.decode(codes)


class KlAutoencoderObjective(FirstStageObjective):
    """Reconstruction of films from noisy codes, the bound on the codes, and a critic if one is asked for."""

    def __init__(self, model: nn.Module, config: KlAutoencoderObjectiveConfig) -> None:
        super().__init__(model, config)
        self.config = config

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, critic = self.model, self.critic
        assert isinstance(model, KlAutoencoderModel)
        with torch.set_grad_enabled(phase == AUTOENCODE.name and torch.is_grad_enabled()):
            mean, log_variance = model.posterior(batch.images)
            made = model.decoder(mean + (0.5 * log_variance).exp() * batch.draws.normal(*mean.shape[1:])).float()
        if critic is not None and phase == DISCRIMINATE.name:
            return critic.losses(batch.images, made)
        if self.training and bool(mean.isfinite().all()):
            model.scale.follow(mean)
        terms = self.terms(made, batch.images, last=model.decoder.last.weight)
        divergence = kl_standard_normal(mean.flatten(1), log_variance.flatten(1))
        return {**terms, "kl": self.config.kl * divergence / batch.images[0].numel()}


FAMILY = Family(model_config=AutoencoderConfig, objective_config=KlAutoencoderObjectiveConfig, build_model=KlAutoencoderModel,
                build_objective=KlAutoencoderObjective)
