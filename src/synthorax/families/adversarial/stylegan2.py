"""StyleGAN2 for few images: styles, noise from the image's own seed, and a discriminator whose images are augmented (Karras et al. 2020a,
b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, LatentGenerator, StartsFromBase, StyledGenerator
from synthorax.config import Depth, NotNegative, Side, Width
from synthorax.families.adversarial.label_conditioning import (
    CONDITION_PARTS,
    num_statements,
    statement_names,
    statements,
    varied_statements,
)
from synthorax.families.adversarial.objective import AdversarialConfig, AdversarialObjective
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.stylegan2 import Mapping, Synthesis
from synthorax.protocols import Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws

NUM_STYLES = 1024
"""random styles from which mean and spread are measured"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGan2Config:
    """Shape of the generator."""

    image_size: Side = 64
    """side of the square images in pixels: 8, 16, 32, 64, 128 or 256"""
    latent_size: Width = 128
    """size of the latent"""
    style_size: Width = 128
    """size of a style"""
    mapping_depth: Depth = 2
    """layers from latent to style; 2 suit few images (Sec. 4.1, Karras et al. 2020b), 8 many"""
    channels: Width = 16
    """feature maps at full resolution"""
    conditioning: Literal["none", "auxiliary", "projection"] = "none"
    """whether styles follow labels and attributes, and how the discriminator judges it: by an auxiliary classifier, or by a projection"""
    embedding: Width = 64
    """width of the embedded condition"""
    truncation: NotNegative = 1.0
    """truncation psi of sampling, distance from the mean style in units of the drawn one; below 1: more typical, less varied"""


class StyleGan2Model(nn.Module, StyledGenerator, HasConditionInputs, StartsFromBase):
    """Mapping and synthesis, which are what ships."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, StyleGan2Config(**spec.config)
        c = self.config
        self.embedding = StatementEmbedding(num_statements(spec), c.embedding) if c.conditioning != "none" else None
        self.mapping = Mapping(latent_size=c.latent_size, embedding=c.embedding if self.embedding is not None else 0,
                               style_size=c.style_size, depth=c.mapping_depth)
        self.synthesis = Synthesis(image_size=c.image_size, channels=c.channels, style_size=c.style_size)

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one image, of the latent and of each layer's noise."""
        return ((self.config.latent_size,), *((1, side, side) for side in self.synthesis.noise_sides))

    def styles_of(self, latent: Tensor, condition: Condition | None) -> Tensor:
        """One style a layer, latent [B, Z] -> [B, L, W]."""
        embedded = latent.new_zeros(len(latent), 0)
        if self.embedding is not None:
            embedded = self.embedding(statements(condition, self.spec, size=len(latent), device=latent.device))
        style: Tensor = self.mapping(latent, embedded)
        if not self.training:
            style = self.mapping.mean + self.config.truncation * (style - self.mapping.mean)
        return style[:, None].expand(-1, len(self.synthesis.layers), -1)

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """The image of latents, each [B, *size] as `latent_shapes` says, -> [B, 1, S, S] of any range."""
        latent, *noises = latents
        return self.decode_styles(self.styles_of(latent, condition), noises)

    def decode_styles(self, styles: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """The image of styles [B, L, W] and of each layer's noise, each [B, *size], -> [B, 1, S, S] of any range."""
        image: Tensor = self.synthesis(styles, noises)
        return image

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, S, S] in [-1, 1]; `condition` is ignored where `conditioning` is none."""
        draws = Draws(seeds, device=next(self.parameters()).device)
        with torch.inference_mode():
            return self.decode_latents(self.draw_latents(draws, condition), condition).float().clamp(-1, 1)

    def style_space(self) -> StyleSpace:
        """The space of styles, in units of the standard deviation of random styles."""
        return StyleSpace(self, *self.style_statistics())

    @torch.no_grad()
    def style_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [W] of random styles without a condition, and the root of their mean variance."""
        training, device = self.training, next(self.parameters()).device
        latents = torch.randn(NUM_STYLES, self.config.latent_size, generator=torch.Generator().manual_seed(0))
        styles = self.eval().styles_of(latents.to(device), None)[:, 0]
        self.train(training)
        return styles.mean(0), styles.var(0).mean().sqrt()

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        if self.embedding is not None:
            self.embedding.zero_unvaried_inputs(varied_statements(varied))

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings and sites are matched by name. UsageError otherwise."""
        load_matching(self, base, what="a model of family 'stylegan2'")

    def named_axes(self) -> dict[str, Names]:
        """Weights with an axis whose entries mean something by name: the axis and the names."""
        return {} if self.embedding is None else {"embedding.linear.weight": (1, statement_names(self.spec))}

    def latent_weights(self) -> Tensor:
        """Weights of the first layer that reads the latent, [rows, Z]; directions among styles are clearer, see `StyleSpace`."""
        first: Any = self.mapping.layers[0]
        weights: Tensor = first.weight[:, :self.config.latent_size].detach()
        return weights


class StyleSpace(LatentGenerator):
    """The space of styles, one a layer, and of each layer's noise: images are inverted and edited better here than among latents.

    A latent here is (style - centre) / spread, so that numbers are about as large as normal ones and 0 is the mean style. Styles hold
    the condition, so none is used.
    """

    def __init__(self, model: StyleGan2Model, centre: Tensor, spread: Tensor) -> None:
        self.model, self.centre, self.spread, self.spec = model, centre, spread, model.spec

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the generator is being trained."""
        return self.model.training

    @property
    def follows_condition(self) -> bool:
        """Styles hold the condition already."""
        return False

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one image, of the styles and of each layer's noise."""
        _, *noises = self.model.latent_shapes
        return ((len(noises), self.model.config.style_size), *noises)

    def draw_latents(self, draws: Draws, condition: Condition | None) -> list[Tensor]:
        """Latents of the styles and noises of random images, each [B, *size]."""
        latent, *noises = self.model.draw_latents(draws, condition)
        return [(self.model.styles_of(latent, condition) - self.centre) / self.spread, *noises]

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Latents, each [B, *size] as `latent_shapes` says, -> [B, 1, S, S] of any range."""
        styles, *noises = latents
        return self.model.decode_styles(self.centre + self.spread * styles, noises)

    def latent_weights(self) -> Tensor:
        """Weights of all layers that read a style, [rows, W]: SeFa takes the directions that they amplify most."""
        layers: Any = self.model.synthesis.layers
        return torch.cat([layer.convolution.style.weight for layer in layers]).detach()


def conditions(config: StyleGan2Config) -> tuple[str, ...]:
    """The parts of a condition that change the image."""
    return () if config.conditioning == "none" else CONDITION_PARTS


FAMILY = Family(model_config=StyleGan2Config, objective_config=AdversarialConfig, build_model=StyleGan2Model,
                build_objective=AdversarialObjective, conditions=conditions,
                can=(LatentGenerator, StyledGenerator, HasConditionInputs, StartsFromBase))
