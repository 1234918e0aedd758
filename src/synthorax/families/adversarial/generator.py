"""Convolutional generators, plain, residual or growing: DCGAN, LSGAN, WGAN-GP, AC-GAN, projection GAN, ProGAN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics, LatentGenerator, StartsFromBase
from synthorax.config import Side, Width
from synthorax.families.adversarial.label_conditioning import (
    CONDITION_PARTS,
    num_statements,
    statement_names,
    statements,
    varied_statements,
)
from synthorax.families.adversarial.objective import AdversarialConfig, AdversarialObjective
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.convolutional_gan import Generator
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.progressive import GrowingGenerator
from synthorax.protocols import Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class GanConfig:
    """Shape of the generator."""

    image_size: Side = 64
    """side of the square images in pixels: 8, 16, 32, 64, 128 or 256"""
    network: Literal["plain", "residual", "progressive"] = "plain"
    """plain transposed convolutions (DCGAN), residual blocks, or blocks that fade in while training goes on (progressive growing)"""
    norm: Literal["batch", "group"] = "batch"
    """normalisation of the generator's features, except in progressive networks; batch needs batches of two images at least"""
    latent_size: Width = 128
    """size of the latent"""
    channels: Width = 32
    """feature maps at full resolution"""
    conditioning: Literal["none", "auxiliary", "projection"] = "none"
    """whether images follow labels and attributes, and how the discriminator judges it: by an auxiliary classifier, or by a projection"""
    embedding: Width = 64
    """width of the embedded condition"""


class GanModel(nn.Module, LatentGenerator, HasConditionInputs, StartsFromBase, HasDiagnostics):
    """The generator, which is what ships."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, GanConfig(**spec.config)
        c = self.config
        self.embedding = StatementEmbedding(num_statements(spec), c.embedding) if c.conditioning != "none" else None
        size: dict[str, Any] = {"image_size": c.image_size, "latent_size": c.latent_size, "channels": c.channels,
                                "embedding": c.embedding if self.embedding is not None else 0}
        self.generator: Generator | GrowingGenerator
        if c.network == "progressive":
            self.generator = GrowingGenerator(**size)
        else:
            self.generator = Generator(**size, norm=c.norm, residual=c.network == "residual")

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the latent of one image."""
        return ((self.config.latent_size,),)

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """The image of latents, each [B, *size] as `latent_shapes` says, -> [B, 1, S, S] in (-1, 1)."""
        (latent,) = latents
        embedded = latent.new_zeros(len(latent), 0)
        if self.embedding is not None:
            embedded = self.embedding(statements(condition, self.spec, size=len(latent), device=latent.device))
        made: Tensor = self.generator(latent, embedded)
        return made.tanh() if isinstance(self.generator, GrowingGenerator) else made

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, S, S] in (-1, 1); `condition` is ignored where `conditioning` is none."""
        draws = Draws(seeds, device=next(self.parameters()).device)
        with torch.inference_mode():
            return self.decode_latents(self.draw_latents(draws, condition), condition).float()

    def diagnostics(self) -> dict[str, float]:
        """The side in pixels that a growing generator has reached, with what is fading in; nothing for others."""
        return {"side_px": self.generator.side_px} if isinstance(self.generator, GrowingGenerator) else {}

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        if self.embedding is not None:
            self.embedding.zero_unvaried_inputs(varied_statements(varied))

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings and sites are matched by name. UsageError otherwise."""
        load_matching(self, base, what="a model of family 'gan'")

    def named_axes(self) -> dict[str, Names]:
        """Weights with an axis whose entries mean something by name: the axis and the names."""
        return {} if self.embedding is None else {"embedding.linear.weight": (1, statement_names(self.spec))}

    def latent_weights(self) -> Tensor:
        """Weights of the first layer that reads the latent, [rows, Z]: SeFa takes the directions that they amplify most."""
        return self.generator.start.weight[:, :self.config.latent_size].detach()


def conditions(config: GanConfig) -> tuple[str, ...]:
    """The parts of a condition that change the image."""
    return () if config.conditioning == "none" else CONDITION_PARTS


FAMILY = Family(model_config=GanConfig, objective_config=AdversarialConfig, build_model=GanModel,
                build_objective=AdversarialObjective, conditions=conditions,
                can=(LatentGenerator, HasConditionInputs, StartsFromBase, HasDiagnostics))
