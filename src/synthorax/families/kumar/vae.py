"""Kumar's variational autoencoder: 32,674,945 parameters at 128 px (Kumar and Triana Martinez, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative, Side, Width
from synthorax.errors import UsageError
from synthorax.losses.divergence import kl_standard_normal
from synthorax.losses.likelihood import squared_error
from synthorax.nets.kumar import Decoder, Encoder
from synthorax.nets.kumar_mixture import equalised
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarVaeConfig:
    """Shape of the autoencoder."""

    image_size: Side = 128
    """side of the square images in pixels, a multiple of 32; the printed parameter counts hold at 128"""
    latent_size: Width = 1024
    """size of the latent"""
    equalise: bool = False
    """learn images with equalised histograms, as Kumar et al. did; generated images have them too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarVaeObjectiveConfig:
    """Weights of the evidence lower bound."""

    beta: NotNegative = 0.1
    """weight of the KL term beside the squared error summed over pixels; Kumar et al. tried 1, 0.1 and 0.002, and show 0.1"""


class KumarVaeModel(nn.Module):
    """Encoder, two linear heads and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, KumarVaeConfig(**spec.config)
        size, latent = self.config.image_size, self.config.latent_size
        if size % 32:
            raise UsageError(f"model.image_size {size} is not a multiple of 32, which five halvings need")
        flat = 512 * (size // 32) ** 2
        self.encoder = Encoder()
        self.mean = nn.Linear(flat, latent)
        self.log_variance = nn.Linear(flat, latent)
        self.decoder = Decoder(latent_size=latent, image_size=size)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, [B, 1, S, S] -> two of [B, Z]."""
        features = self.encoder(images)
        return self.mean(features).float(), self.log_variance(features).float()

    def decode(self, latent: Tensor) -> Tensor:
        """The image of a latent, [B, Z] -> [B, 1, S, S] in (-1, 1)."""
        image: Tensor = self.decoder(latent).float()
        return image

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode standard normal latents, one image a seed; the family is unconditional and ignores `condition`."""
        latent = Draws(seeds, device=self.mean.weight.device).normal(self.config.latent_size)
        with torch.inference_mode():
            return self.decode(latent)


class KumarVaeObjective(Objective[KumarVaeModel]):
    """Squared error plus beta times the KL divergence (Kumar et al., Sec. 3; sums over pixels and latents, which they leave open)."""

    phases = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)

    def __init__(self, model: KumarVaeModel, config: KumarVaeObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.players = nn.ModuleDict({"model": model})
        self.model = model

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        images = equalised(batch.images) if model.config.equalise else batch.images
        mean, log_variance = model.encode(images)
        latent = mean + (0.5 * log_variance).exp() * batch.draws.normal(model.config.latent_size)
        return {"reconstruction": squared_error(model.decode(latent), images),
                "kl": self.config.beta * kl_standard_normal(mean, log_variance)}


FAMILY = Family(model_config=KumarVaeConfig, objective_config=KumarVaeObjectiveConfig, build_model=KumarVaeModel,
                build_objective=KumarVaeObjective)
