"""A trained generator and an encoder that reads its latents from images: inversion in one pass (Sec. 3.2, Zhu et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from synthorax.capabilities import LatentEncoder, LatentGenerator
from synthorax.config import NotNegative, Side, Width, build
from synthorax.errors import UsageError
from synthorax.families.adversarial.stylegan2 import StyleGan2Model, StyleSpace
from synthorax.losses.perceptual import is_scripted, perceptual_distance, perceptual_features
from synthorax.nets.convolutional_gan import ConvolutionalDiscriminator
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Needs, Objective, Phase, SampleSettings, as_model
from synthorax.registry import lookup
from synthorax.rng import Draws

GENERATORS = {
    "gan": "synthorax.families.adversarial.generator:FAMILY",
    "spade-gan": "synthorax.families.adversarial.spade_gan:FAMILY",
    "stylegan2": "synthorax.families.adversarial.stylegan2:FAMILY",
}
"""families whose images have latents"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionEncoderConfig:
    """Shape of the encoder, and of the generator whose latents it reads."""

    image_size: Side = 64
    """side of the square images in pixels: that of the generator"""
    generator: str = "gan"
    """family of the generator: gan, spade-gan or stylegan2; filled in from its run"""
    generator_config: Mapping[str, Any] = field(default_factory=dict)
    """shape of the generator; filled in from its run"""
    channels: Width = 32
    """feature maps of the encoder at full resolution"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionEncoderObjectiveConfig:
    """Weights of the losses."""

    latent: NotNegative = 1.0
    """weight of the mean squared error of a latent, for generated images, whose latents are known"""
    pixels: NotNegative = 10.0
    """weight of the mean squared error of a pixel, for real images reconstructed through encoder and generator"""
    features: NotNegative = 1.0
    """weight of the perceptual distance, for the same"""
    perceptual: str = "oriented"
    """perceptual features: oriented, vgg16, or a TorchScript file"""
    typical: NotNegative = 0.01
    """pull of the latents of real images towards 0, the mean latent"""


class InversionEncoderModel(nn.Module, LatentGenerator, LatentEncoder):
    """The frozen generator and its encoder, which both ship: it samples as the generator does, and reads latents of images.

    Latents are styles where the generator has some, the same in all layers; noises are 0.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, InversionEncoderConfig(**spec.config)
        family, shape = _generator(self.config)
        if shape.image_size != spec.image_size:
            raise UsageError(f"model.image_size {spec.image_size}: the generator makes images of {shape.image_size} px")
        inner = family.build_model(replace(spec, family=self.config.generator, config=asdict(shape)))
        self.generator: Any = inner.requires_grad_(False).eval()  # a `LatentGenerator` that starts from a base
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("spread", torch.ones(()))
        self._measure()
        self.trunk = ConvolutionalDiscriminator(image_size=spec.image_size, inputs=1, channels=self.config.channels, norm="layer")
        self.last = nn.Linear(self.trunk.features, self.space.latent_shapes[0][-1])

    @property
    def space(self) -> LatentGenerator:
        """The space of latents: the generator's own, or that of its styles."""
        if isinstance(self.generator, StyleGan2Model):
            return StyleSpace(self.generator, self.centre, self.spread)
        generator: LatentGenerator = self.generator
        return generator

    @property
    def follows_condition(self) -> bool:
        """Whether images of latents follow a condition too."""
        return self.space.follows_condition

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the latents of one image; the encoder reads the first."""
        return self.space.latent_shapes

    def train(self, mode: bool = True) -> InversionEncoderModel:
        """The generator stays as it was trained."""
        super().train(mode)
        self.generator.eval()
        return self

    def load_generator(self, base: nn.Module) -> None:
        """Take the weights of a trained generator. UsageError for a statement that it does not know, or another shape."""
        own, theirs = self.spec, as_model(base).spec
        for kind, names, known in (("finding", own.findings, theirs.findings), ("site", own.sites, theirs.sites),
                                   ("mask", own.masks if "mask" in own.conditions else (), theirs.masks)):
            new = [name for name in names if name not in known]
            if new and own.conditions:
                raise UsageError(f"the generator knows no {kind} '{new[0]}', so it cannot be conditioned on it; give images that "
                                 f"state {', '.join(known) or f'no {kind}'}")
        self.generator.load_matching(base)
        self._measure()

    def read(self, images: Tensor) -> Tensor:
        """The encoder's latent, [B, 1, S, S] in [-1, 1] -> [B, numbers of a latent]."""
        latent: Tensor = self.last(self.trunk(images)).float()
        return latent

    def latents_with(self, latent: Tensor) -> list[Tensor]:
        """All latents of images, given the one that the encoder reads, each [B, *size]; noises are 0."""
        first, *noises = self.latent_shapes
        spread = latent[:, None].expand(-1, *first) if len(first) == 2 else latent
        return [spread, *(latent.new_zeros(len(latent), *size) for size in noises)]

    def encode_latents(self, images: Tensor) -> list[Tensor]:
        """Latents of images [B, 1, S, S] in [-1, 1] in one pass, each [B, *size]."""
        with torch.inference_mode():
            return self.latents_with(self.read(images))

    def draw_latents(self, draws: Draws, condition: Condition | None) -> list[Tensor]:
        """Latents of random images, each [B, *size]."""
        return self.space.draw_latents(draws, condition)

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Latents, each [B, *size], -> [B, 1, S, S]."""
        return self.space.decode_latents(latents, condition)

    def latent_weights(self) -> Tensor:
        """Those of the generator, [rows, numbers of a latent]."""
        return self.space.latent_weights()

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image of the generator a seed, [B, 1, S, S] in [-1, 1]."""
        return as_model(self.generator).sample(condition, seeds, settings)

    def _measure(self) -> None:
        if isinstance(self.generator, StyleGan2Model):
            self.centre, self.spread = self.generator.style_statistics()


class InversionEncoderObjective(Objective[InversionEncoderModel]):
    """The encoder learns latents of generated images, and to reconstruct real images through the frozen generator."""

    phases = (Phase(name="encode", updates=("model",)),)

    def __init__(self, model: InversionEncoderModel, config: InversionEncoderObjectiveConfig) -> None:
        super().__init__()
        self.model = model
        self.players = nn.ModuleDict({"model": model})
        self.config, self.features = config, perceptual_features(config.perceptual)

    def start_from(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Take `base` for the generator."""
        self.model.load_generator(base)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, config = self.model, self.config
        with torch.no_grad():
            latents = model.draw_latents(batch.draws, batch.condition)
            made = model.decode_latents(latents, batch.condition).float().clamp(-1, 1)
            wanted = latents[0].mean(1) if latents[0].ndim == 3 else latents[0]
        latents_read = model.read(torch.cat([made, batch.images]))  # one pass for both halves
        guessed, latent = latents_read.chunk(2)
        again = model.decode_latents(model.latents_with(latent), batch.condition).float()
        terms = {"code": config.latent * (guessed - wanted).square().mean(1),
                 "pixels": config.pixels * (again - batch.images).square().flatten(1).mean(1),
                 "typical": config.typical * latent.square().mean(1)}
        if config.features:
            terms["features"] = config.features * perceptual_distance(again, batch.images, features=self.features)
        return terms


def _generator(config: InversionEncoderConfig) -> tuple[Family, Any]:
    """Family and config of the generator; without a shape of its own it has the default one at the images' size."""
    family: Family = lookup(GENERATORS, config.generator, kind="generator")
    table = {"image_size": config.image_size, **config.generator_config}
    return family, build(family.model_config, table, where="model.generator_config", prefix="model.generator_config")


def conditions(config: InversionEncoderConfig) -> tuple[str, ...]:
    """The parts of a condition that change the generator's images."""
    family, shape = _generator(config)
    return family.conditions(shape)


FAMILY = Family(model_config=InversionEncoderConfig, objective_config=InversionEncoderObjectiveConfig, build_model=InversionEncoderModel,
                build_objective=InversionEncoderObjective, conditions=conditions, can=(LatentGenerator, LatentEncoder),
                needs=lambda model, objective: Needs(own_files=is_scripted(objective.perceptual)))
