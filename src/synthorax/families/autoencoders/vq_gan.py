"""A compressor of images into codes of a learned codebook (van den Oord et al. 2017), sharpened by a discriminator (Esser et al.
2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import AtLeastOne, NotNegative, WholeNotNegative
from synthorax.families.autoencoders.first_stage import AUTOENCODE, FirstStageConfig, FirstStageObjective, needs
from synthorax.nets.autoencoder import AutoencoderConfig, Decoder, Encoder, checked
from synthorax.nets.quantizer import Quantizer
from synthorax.protocols import Batch, Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class VqGanConfig(AutoencoderConfig):
    """Shape of the compressor and of its codebook; images shrink by `patch` times 2 for each level after the first."""

    codes: AtLeastOne = 1024
    """vectors in the codebook"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VqGanObjectiveConfig(FirstStageConfig):
    """Weights of the losses."""

    commitment: NotNegative = 0.25
    """weight of the squared distance of the encoder's vectors from their codes"""
    adversarial: NotNegative = 0.5
    """weight of the adversarial loss, once its gradient is as long as that of the reconstruction;
    0 trains without a discriminator"""
    adversarial_after: WholeNotNegative = 1000
    """steps before the discriminator is used"""


class VqGanModel(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, VqGanConfig(**spec.config)
        self.quantizer = Quantizer(num_codes=self.config.codes, channels=self.config.latent_channels)
        shape = checked(self.config)
        self.channels, self.factor = shape.latent_channels, shape.factor
        self.encoder = Encoder(shape, outputs=self.channels)
        self.decoder = Decoder(shape)

    def encode(self, images: Tensor) -> Tensor:
        """The vectors of the chosen codes, [B, 1, S, S] in [-1, 1] -> [B, C, S / factor, S / factor] of any scale."""
        return self.quantizer.look_up(self.quantizer.indices(self.encoder(images).float()))

    def decode(self, latents: Tensor) -> Tensor:
        """The image of vectors, which are first replaced by the nearest codes, [B, C, S / factor, S / factor] -> [B, 1, S, S]."""
        image: Tensor = self.decoder(self.quantizer(latents.float())).float().clamp(-1, 1)
        return image

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode random codes, one image a seed, [B, 1, S, S] in [-1, 1]; `condition` is ignored.

        This is a compressor and no generator: codes are drawn one by one, as often as they were used in training, and know
        nothing of their neighbours. A diffusion on its codes makes images.
        """
        draws = Draws(seeds, device=self.quantizer.codes.device)
        with torch.inference_mode():
            return self.decode(self.quantizer.draw(self.config.image_size // self.factor, draws=draws))


class VqGanObjective(FirstStageObjective[VqGanModel]):
    """Reconstruction of images from codes, the encoder's commitment to them, and a discriminator (Eq. 6, Esser et al. 2021)."""

    def __init__(self, model: VqGanModel, config: VqGanObjectiveConfig) -> None:
        super().__init__(model, config)
        self.config = config

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, discriminator = self.model, self.discriminator
        autoencode = phase == AUTOENCODE.name
        with torch.set_grad_enabled(autoencode and torch.is_grad_enabled()):
            latents = model.encoder(batch.images).float()
            if self.training and autoencode and bool(latents.isfinite().all()):
                model.quantizer.learn(latents)
            codes = model.quantizer(latents)
            made = model.decoder(codes).float()
        if discriminator is not None and not autoencode:
            return discriminator.losses(batch.images, made)
        terms = self.terms(made, batch.images, last=model.decoder.last.weight)
        distance = (latents - codes.detach()).square().flatten(1).mean(1)
        return {**terms, "commitment": self.config.commitment * distance}


FAMILY = Family(model_config=VqGanConfig, objective_config=VqGanObjectiveConfig, build_model=VqGanModel,
                build_objective=VqGanObjective, needs=needs)
