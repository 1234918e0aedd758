"""Kumar's least-squares GAN: 6,402,880 parameters at 128 px (Kumar and Triana Martinez, Sec. 3; Mao et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import Side, Width
from synthorax.errors import UsageError
from synthorax.losses.adversarial import least_squares
from synthorax.nets.kumar import Discriminator, Generator
from synthorax.nets.kumar_mixture import equalised
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarGanConfig:
    """Shape of the generator."""

    image_size: Side = 128
    """side of the square images in pixels, a multiple of 64; the printed parameter counts hold at 128"""
    latent_size: Width = 100
    """size of the latent"""
    equalise: bool = False
    """learn images with equalised histograms, as Kumar et al. did; generated images have them too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarGanObjectiveConfig:
    """Kumar et al. leave nothing to choose here."""


class KumarGanModel(nn.Module):
    """The generator, which is what ships."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, KumarGanConfig(**spec.config)
        if self.config.image_size % 64:
            raise UsageError(f"model.image_size {self.config.image_size} is not a multiple of 64, which the discriminator needs")
        self.generator = Generator(latent_size=self.config.latent_size, image_size=self.config.image_size)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, S, S] in (-1, 1); the family is unconditional and ignores `condition`."""
        latent = Draws(seeds, device=next(self.parameters()).device).normal(self.config.latent_size)
        with torch.inference_mode():
            image: Tensor = self.generator(latent).float()
        return image


class KumarGanObjective(Objective[KumarGanModel]):
    """Generator towards score 1; discriminator towards 1 on real images and 0 on its own, averaged over its 2 x 2 score map."""

    phases = (Phase(name="generator", updates=("generator",), repeats=3, sees_patients=False, betas=(0.5, 0.999)),
              Phase(name="discriminator", updates=("discriminator",), betas=(0.5, 0.999)))

    def __init__(self, model: KumarGanModel, config: KumarGanObjectiveConfig) -> None:
        super().__init__()
        self.latent_size = model.config.latent_size
        self.players = nn.ModuleDict({"generator": model, "discriminator": Discriminator()})
        self.model = model

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        discriminator = self.players["discriminator"]
        made = self.model.generator(batch.draws.normal(self.latent_size))
        if phase == "generator":
            return {"generator": least_squares(discriminator(made).float(), target=1)}
        images = equalised(batch.images) if self.model.config.equalise else batch.images
        return {"real": least_squares(discriminator(images).float(), target=1),
                "made": least_squares(discriminator(made.detach()).float(), target=0)}


FAMILY = Family(model_config=KumarGanConfig, objective_config=KumarGanObjectiveConfig, build_model=KumarGanModel,
                build_objective=KumarGanObjective)
