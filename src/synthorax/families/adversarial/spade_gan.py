"""Masks to images: a SPADE generator (Park et al. 2019) with a segmenter that reads the mask back (Red-GAN, Qasim et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, LatentGenerator, MaskConditioned, StartsFromBase
from synthorax.config import Side, Width
from synthorax.errors import UsageError
from synthorax.families.adversarial.label_conditioning import (
    CONDITION_PARTS,
    num_statements,
    statement_names,
    statements,
    twice,
    varied_statements,
)
from synthorax.families.adversarial.objective import AdversarialConfig, AdversarialObjective
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.spade import SpadeGenerator, mask_channels
from synthorax.protocols import Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class SpadeGanConfig:
    """Shape of the generator."""

    image_size: Side = 64
    """side of the square images in pixels: 8, 16, 32, 64, 128 or 256"""
    norm: Literal["batch", "group"] = "batch"
    """normalisation of features before the mask scales them; batch needs batches of two images at least"""
    latent_size: Width = 128
    """size of the latent"""
    channels: Width = 16
    """feature maps at full resolution"""
    hidden: Width = 32
    """feature maps between the mask and what it changes"""
    conditioning: Literal["none", "auxiliary", "projection"] = "projection"
    """whether images follow labels and attributes too, and how the discriminator judges it"""
    embedding: Width = 64
    """width of the embedded condition"""


class SpadeGanModel(nn.Module, LatentGenerator, MaskConditioned, HasConditionInputs, StartsFromBase):
    """The generator, which is what ships."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, SpadeGanConfig(**spec.config)
        c = self.config
        if not spec.masks:
            raise UsageError("family 'spade-gan' makes images of masks, and the training set has none; prepare a set with masks, or choose "
                             "family 'gan'")
        self.embedding = StatementEmbedding(num_statements(spec), c.embedding) if c.conditioning != "none" else None
        self.generator = SpadeGenerator(image_size=c.image_size, latent_size=c.latent_size, channels=c.channels, masks=len(spec.masks),
                                       embedding=c.embedding if self.embedding is not None else 0, hidden=c.hidden, norm=c.norm)

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the latent of one image."""
        return ((self.config.latent_size,),)

    def mask_planes(self, condition: Condition | None, *, size: int, device: torch.device) -> Tensor:
        """The mask as the networks are conditioned on it, [B, 2 M, S, S]: which classes are stated, then values in [-1, 1]."""
        return mask_channels(None if condition is None else condition.mask, masks=len(self.spec.masks), size=size,
                             side=self.config.image_size, device=device)

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """The image of latents, each [B, *size] as `latent_shapes` says, -> [B, 1, S, S] in (-1, 1)."""
        (latent,) = latents
        embedded = latent.new_zeros(len(latent), 0)
        if self.embedding is not None:
            embedded = self.embedding(statements(condition, self.spec, size=len(latent), device=latent.device))
        image: Tensor = self.generator(latent, embedded, self.mask_planes(condition, size=len(latent), device=latent.device))
        return image

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, S, S] in (-1, 1), that follows the mask of `condition`."""
        draws = Draws(seeds, device=next(self.parameters()).device)
        with torch.inference_mode():
            return self.decode_latents(self.draw_latents(draws, condition), condition).float()

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        if self.embedding is not None:
            self.embedding.zero_unvaried_inputs(varied_statements(varied))

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings, sites and mask classes are matched by name.

        Raises UsageError for another family or shape.
        """
        load_matching(self, base, what="a model of family 'spade-gan'")

    def named_axes(self) -> dict[str, Names]:
        """Weights with an axis whose entries mean something by name: the axis and the names."""
        axes: dict[str, Names] = {} if self.embedding is None else {"embedding.linear.weight": (1, statement_names(self.spec))}
        masks = twice(self.spec.masks)
        return axes | {name: (1, masks) for name in self.state_dict() if name.endswith(".shared.weight")}

    def latent_weights(self) -> Tensor:
        """Weights of the first layer that reads the latent, [rows, Z]: SeFa takes the directions that they amplify most."""
        return self.generator.start.weight[:, :self.config.latent_size].detach()


def conditions(config: SpadeGanConfig) -> tuple[str, ...]:
    """The parts of a condition that change the image."""
    return ("mask",) if config.conditioning == "none" else (*CONDITION_PARTS, "mask")


FAMILY = Family(model_config=SpadeGanConfig, objective_config=AdversarialConfig, build_model=SpadeGanModel,
                build_objective=AdversarialObjective, conditions=conditions, follows_masks=True,
                can=(LatentGenerator, MaskConditioned, HasConditionInputs, StartsFromBase))
