"""StyleGAN2 for few films: styles, noise from the film's own seed, and a critic whose films are augmented (Karras et al. 2020a, b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synthorax.config import Depth, NotNegative, Side, Width
from synthorax.errors import UsageError
from synthorax.families.adoption import Names, adopted
from synthorax.families.adversarial import AdversarialConfig, AdversarialObjective
from synthorax.families.heard import HEARD, num_statements, statement_names, statements, varied_statements
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.stylegan2 import Mapping, Synthesis
from synthorax.protocols import Condition, Family, ModelSpec, SampleSettings
from synthorax.rng import Draws

MEASURED = 1024
"""random styles of which mean and spread are measured"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGan2Config:
    """Shape of the generator."""

    image_size: Side = 64
    """side of the square films in pixels: 8, 16, 32, 64, 128 or 256"""
    latent_size: Width = 128
    """numbers in the latent code"""
    style_size: Width = 128
    """numbers in a style"""
    mapping_depth: Depth = 2
    """layers from code to style; 2 suit few films (Sec. 4.1, Karras et al. 2020b), 8 many"""
    channels: Width = 16
    """feature maps at full resolution"""
    conditioning: Literal["none", "auxiliary", "projection"] = "none"
    """whether styles follow labels and attributes, and how the critic checks it: by guessing them, or by a projection"""
    embedding: Width = 64
    """width of the embedded condition"""
    truncation: NotNegative = 1.0
    """sampling: distance from the mean style in parts of what was drawn; less than 1 is more typical and less varied"""


class StyleGan2Model(nn.Module):
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
    def code_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one film, of the normal numbers that make it: the code, then each layer's noise."""
        return ((self.config.latent_size,), *((1, side, side) for side in self.synthesis.noise_sides))

    def styles_of(self, code: Tensor, condition: Condition | None) -> Tensor:
        """One style a layer, code [B, Z] -> [B, L, W]."""
        heard = code.new_zeros(len(code), 0)
        if self.embedding is not None:
            heard = self.embedding(statements(condition, self.spec, size=len(code), device=code.device))
        style: Tensor = self.mapping(code, heard)
        if not self.training:
            style = self.mapping.mean + self.config.truncation * (style - self.mapping.mean)
        return style[:, None].expand(-1, len(self.synthesis.layers), -1)

    def film_of(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """The film of normal numbers, each [B, *size] as `code_sizes` says, -> [B, 1, S, S] of any range."""
        code, *noises = codes
        film: Tensor = self.synthesis(self.styles_of(code, condition), noises)
        return film

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One film a seed, [B, 1, S, S] in [-1, 1]; `condition` counts where `conditioning` is not none."""
        draws = Draws(seeds, device=next(self.parameters()).device)
        with torch.inference_mode():
            return self.film_of([draws.normal(*size) for size in self.code_sizes], condition).float().clamp(-1, 1)

    def style_space(self) -> StyleSpace:
        """The same films by their styles, in units of how far random styles lie from their mean."""
        return StyleSpace(self, *self.measured_styles())

    @torch.no_grad()
    def measured_styles(self) -> tuple[Tensor, Tensor]:
        """Mean [W] of random styles that nothing is asked of, and the root of their mean variance."""
        training, device = self.training, next(self.parameters()).device
        codes = torch.randn(MEASURED, self.config.latent_size, generator=torch.Generator().manual_seed(0))
        styles = self.eval().styles_of(codes.to(device), None)[:, 0]
        self.train(training)
        return styles.mean(0), styles.var(0).mean().sqrt()

    def silence(self, varied: Condition) -> None:
        """Hear nothing of what training films do not differ in, until training teaches it."""
        if self.embedding is not None:
            self.embedding.silence(varied_statements(varied))

    def adopt(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings and sites are matched by name. UsageError otherwise."""
        if not isinstance(base, StyleGan2Model):
            raise UsageError("a model of family 'stylegan2' can only start from another one")
        self.load_state_dict(adopted(self.state_dict(), base.state_dict(), own_names=self.named_axes(), base_names=base.named_axes()))

    def named_axes(self) -> dict[str, Names]:
        """Weights that have an axis whose entries mean something by name: the axis and the names."""
        return {} if self.embedding is None else {"embedding.linear.weight": (1, statement_names(self.spec))}

    def code_weights(self) -> Tensor:
        """What first hears the styles, [rows, W]: of its directions those count most that these weights lengthen most."""
        layers: Any = self.synthesis.layers
        return torch.cat([layer.convolution.style.weight for layer in layers]).detach()


class StyleSpace:
    """Films of styles, one a layer, beside each layer's noise: films are found and moved more easily among styles than among codes.

    A code here is (style - centre) / spread, so that numbers are about as large as normal ones and 0 is the mean style. Styles hold
    the condition, so none is heard.
    """

    hears_condition = False

    def __init__(self, model: StyleGan2Model, centre: Tensor, spread: Tensor) -> None:
        self.model, self.centre, self.spread, self.spec = model, centre, spread, model.spec

    @property
    def training(self) -> bool:
        """Whether the generator is being trained."""
        return self.model.training

    @property
    def code_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one film, of the styles and of each layer's noise."""
        _, *noises = self.model.code_sizes
        return ((len(noises), self.model.config.style_size), *noises)

    def draw(self, draws: Draws, condition: Condition | None) -> list[Tensor]:
        """Codes of the styles and noises of random films, each [B, *size]."""
        code, *noises = (draws.normal(*size) for size in self.model.code_sizes)
        return [(self.model.styles_of(code, condition) - self.centre) / self.spread, *noises]

    def film_of(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Codes, each [B, *size] as `code_sizes` says, -> [B, 1, S, S] of any range."""
        styles, *noises = codes
        film: Tensor = self.model.synthesis(self.centre + self.spread * styles, noises)
        return film

    def code_weights(self) -> Tensor:
        """See `StyleGan2Model.code_weights`."""
        return self.model.code_weights()


def conditions(config: StyleGan2Config) -> tuple[str, ...]:
    """The parts of a condition that change the film."""
    return () if config.conditioning == "none" else HEARD


FAMILY = Family(model_config=StyleGan2Config, objective_config=AdversarialConfig, build_model=StyleGan2Model,
                build_objective=AdversarialObjective, conditions=conditions)
