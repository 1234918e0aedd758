"""A trained generator and an encoder that reads its codes from films: inversion in one pass (Sec. 3.2, Zhu et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative, Side, Width, build
from synthorax.errors import UsageError
from synthorax.families.stylegan2 import StyleGan2Model, StyleSpace
from synthorax.losses.perceptual import perceptual_distance, perceptual_features
from synthorax.nets.gan import ConvolutionalCritic
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings, as_model
from synthorax.registry import lookup
from synthorax.rng import Draws

GENERATORS = {
    "gan": "synthorax.families.gan:FAMILY",
    "spade-gan": "synthorax.families.spade_gan:FAMILY",
    "stylegan2": "synthorax.families.stylegan2:FAMILY",
}
"""families whose films have codes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeEncoderConfig:
    """Shape of the encoder, and of the generator whose codes it reads."""

    image_size: Side = 64
    """side of the square films in pixels: that of the generator"""
    generator: str = "gan"
    """family of the generator: gan, spade-gan or stylegan2; filled in from its run"""
    generator_config: Mapping[str, Any] = field(default_factory=dict)
    """shape of the generator; filled in from its run"""
    channels: Width = 32
    """feature maps of the encoder at full resolution"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeEncoderObjectiveConfig:
    """Weights of what the encoder learns from."""

    code: NotNegative = 1.0
    """weight of the mean squared error of a code, for made films, whose codes are known"""
    pixels: NotNegative = 10.0
    """weight of the mean squared error of a pixel, for real films through encoder and generator"""
    features: NotNegative = 1.0
    """weight of the distance of perceptual features, for the same"""
    perceptual: str = "oriented"
    """perceptual features: oriented, vgg16, or a TorchScript file"""
    typical: NotNegative = 0.01
    """pull of the codes of real films towards 0, the mean code"""


class CodeEncoderModel(nn.Module):
    """The frozen generator and its encoder, which both ship: it samples as the generator does, and reads codes of films.

    Codes are styles where the generator has some, the same in all layers, or else what it makes films of; noises are read as 0.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, CodeEncoderConfig(**spec.config)
        family, shape = _generator(self.config)
        if shape.image_size != spec.image_size:
            raise UsageError(f"model.image_size {spec.image_size}: the generator makes films of {shape.image_size} px")
        inner = family.build_model(replace(spec, family=self.config.generator, config=asdict(shape)))
        self.generator: Any = inner.requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("spread", torch.ones(()))
        self._measure()
        self.trunk = ConvolutionalCritic(image_size=spec.image_size, inputs=1, channels=self.config.channels, norm="layer")
        self.last = nn.Linear(self.trunk.features, self.space.code_sizes[0][-1])

    @property
    def space(self) -> Any:
        """The generator as what makes films of codes: itself, or its space of styles."""
        return StyleSpace(self.generator, self.centre, self.spread) if isinstance(self.generator, StyleGan2Model) else self.generator

    @property
    def hears_condition(self) -> bool:
        """Whether films of codes follow a condition too."""
        return bool(self.spec.conditions) and not isinstance(self.generator, StyleGan2Model)

    @property
    def code_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one film, of what makes it; the encoder reads the first."""
        sizes: tuple[tuple[int, ...], ...] = self.space.code_sizes
        return sizes

    def train(self, mode: bool = True) -> CodeEncoderModel:
        """The generator stays as it was trained."""
        super().train(mode)
        self.generator.eval()
        return self

    def adopt_generator(self, base: nn.Module) -> None:
        """Take the weights of a trained generator. UsageError for a statement that it does not know, or another shape."""
        own, theirs = self.spec, as_model(base).spec
        for kind, names, known in (("finding", own.findings, theirs.findings), ("site", own.sites, theirs.sites),
                                   ("mask", own.masks if "mask" in own.conditions else (), theirs.masks)):
            new = [name for name in names if name not in known]
            if new and own.conditions:
                raise UsageError(f"the generator knows no {kind} '{new[0]}', so films cannot be asked of it by that; give films that "
                                 f"state {', '.join(known) or f'no {kind}'}")
        self.generator.adopt(base)
        self._measure()

    def encoded(self, films: Tensor) -> Tensor:
        """What the encoder reads, [B, 1, S, S] in [-1, 1] -> [B, numbers of a code]."""
        code: Tensor = self.last(self.trunk(films)).float()
        return code

    def codes_with(self, code: Tensor) -> list[Tensor]:
        """Everything that makes a film, of the part that the encoder reads, each [B, *size]; noises are 0."""
        first, *noises = self.code_sizes
        spread = code[:, None].expand(-1, *first) if len(first) == 2 else code
        return [spread, *(code.new_zeros(len(code), *size) for size in noises)]

    def codes_of(self, films: Tensor) -> list[Tensor]:
        """Codes of films [B, 1, S, S] in [-1, 1] in one pass, each [B, *size]."""
        with torch.inference_mode():
            return self.codes_with(self.encoded(films))

    def draw(self, draws: Draws, condition: Condition | None) -> list[Tensor]:
        """Codes of random films, each [B, *size]."""
        space = self.space
        return space.draw(draws, condition) if hasattr(space, "draw") else [draws.normal(*size) for size in space.code_sizes]

    def film_of(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Codes, each [B, *size], -> [B, 1, S, S]."""
        film: Tensor = self.space.film_of(codes, condition)
        return film

    def code_weights(self) -> Tensor:
        """What first hears the codes, [rows, numbers of a code]; see the generator's."""
        weights: Tensor = self.generator.code_weights()
        return weights

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One film of the generator a seed, [B, 1, S, S] in [-1, 1]."""
        return as_model(self.generator).sample(condition, seeds, settings)

    def _measure(self) -> None:
        if isinstance(self.generator, StyleGan2Model):
            self.centre, self.spread = self.generator.measured_styles()


class CodeEncoderObjective(Objective):
    """The encoder learns codes of made films, and to give real films back through the generator, which never moves."""

    phases = (Phase(name="encode", updates=("model",)),)

    def __init__(self, model: nn.Module, config: CodeEncoderObjectiveConfig) -> None:
        super().__init__()
        self.model: CodeEncoderModel = cast(CodeEncoderModel, model)
        self.players = nn.ModuleDict({"model": model})
        self.config, self.features = config, perceptual_features(config.perceptual)

    def begin(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Take `base` for the generator."""
        self.model.adopt_generator(base)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, config = self.model, self.config
        with torch.no_grad():
            codes = model.draw(batch.draws, batch.condition)
            made = model.film_of(codes, batch.condition).float().clamp(-1, 1)
            wanted = codes[0].mean(1) if codes[0].ndim == 3 else codes[0]
        read = model.encoded(torch.cat([made, batch.images]))  # one pass for both halves
        guessed, code = read.chunk(2)
        again = model.film_of(model.codes_with(code), batch.condition).float()
        terms = {"code": config.code * (guessed - wanted).square().mean(1),
                 "pixels": config.pixels * (again - batch.images).square().flatten(1).mean(1),
                 "typical": config.typical * code.square().mean(1)}
        if config.features:
            terms["features"] = config.features * perceptual_distance(again, batch.images, features=self.features)
        return terms


def _generator(config: CodeEncoderConfig) -> tuple[Family, Any]:
    """Family and config of the generator; without a shape of its own it has the usual one at the films' size."""
    family: Family = lookup(GENERATORS, config.generator, kind="generator")
    table = {"image_size": config.image_size, **config.generator_config}
    return family, build(family.model_config, table, where="model.generator_config", prefix="model.generator_config")


def conditions(config: CodeEncoderConfig) -> tuple[str, ...]:
    """The parts of a condition that change the generator's films."""
    family, shape = _generator(config)
    return family.conditions(shape)


FAMILY = Family(model_config=CodeEncoderConfig, objective_config=CodeEncoderObjectiveConfig, build_model=CodeEncoderModel,
                build_objective=CodeEncoderObjective, conditions=conditions)
