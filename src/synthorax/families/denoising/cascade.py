"""Cascade: a model of small images and diffusion models for super-resolution, one after the other (Ho et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from synthorax.capabilities import Cascade, Change
from synthorax.diffusion.guidance import autoguided
from synthorax.errors import UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import ATTRIBUTES, Condition, ModelSpec, SampleSettings
from synthorax.rng import derive


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeConfig:
    """Stages of a cascade and how they are sampled; filled in when it is packed."""

    image_size: int
    """side of the images of the last stage in pixels"""
    stages: tuple[Mapping[str, Any], ...]
    """specs of the stages, the one that makes small images first"""
    settings: tuple[Mapping[str, Any], ...]
    """how each stage after the first is sampled: fields of `SampleSettings`"""
    guide: Mapping[str, Any] | None = None
    """spec of a weaker model of what the first stage makes, which guides it (Karras et al. 2024, "Guiding a diffusion model with a bad
    version of itself")"""


class CascadeModel(nn.Module, Cascade):
    """Stages that each enlarge the image of the one before; all are conditioned on what they know of the request by name."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        config = CascadeConfig(**spec.config)
        specs = [ModelSpec.from_dict(record) for record in config.stages]
        guide = None if config.guide is None else ModelSpec.from_dict(config.guide)
        check_stages(specs, guide=guide)
        if len(config.settings) != len(specs) - 1:
            raise UsageError(f"a cascade of {len(specs)} stages has settings for {len(config.settings)} super-resolution stages")
        self.spec = spec
        self.stages = nn.ModuleList([DiffusionModel(own) for own in specs])
        self.guide = None if guide is None else DiffusionModel(guide)
        self.settings = [SampleSettings(**own) for own in config.settings]

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, H, W] in [-1, 1], of the size of the last stage.

        `settings` are those of the first stage, its guide included; of the others they replace the number of steps, where
        `super_resolution_steps` is set, and the noise in the images that they enlarge, where `conditioning_noise` is. Masks may have the
        size of any stage.
        """
        settings = settings or SampleSettings()
        base, *enlarging = (cast(DiffusionModel, stage) for stage in self.stages)
        if condition is None:
            condition = Condition.unstated(len(seeds), num_labels=len(base.spec.findings), num_sites=len(base.spec.sites))
        images = base.sample(condition, seeds, settings, change=self._away_from_guide(condition, seeds, settings))
        for number, (stage, own) in enumerate(zip(enlarging, self.settings, strict=True), start=1):
            asked = replace(_translated(condition.to(images.device), base.spec, stage.spec), image=images)
            noise = own.conditioning_noise if settings.conditioning_noise is None else settings.conditioning_noise
            chosen = replace(own, steps=settings.super_resolution_steps or own.steps, conditioning_noise=noise)
            images = stage.sample(asked, [derive(seed, "stage", number) for seed in seeds], chosen)
        return images

    def _away_from_guide(self, condition: Condition, seeds: Sequence[int], settings: SampleSettings) -> Change | None:
        """The change that autoguidance makes to the first stage's denoiser; None without it."""
        if self.guide is None or settings.autoguidance == 1:
            return None
        asked = _translated(condition, cast(DiffusionModel, self.stages[0]).spec, self.guide.spec)
        weak, _ = self.guide.guided(asked, len(seeds), replace(settings, guidance=1.0, part_guidance={}), seeds=seeds)
        return lambda denoise: autoguided(denoise, weak, weight=settings.autoguidance)


def build_cascade(spec: ModelSpec) -> CascadeModel:
    """The cascade that a spec describes, with fresh weights."""
    return CascadeModel(spec)


def cascade_spec(specs: Sequence[ModelSpec], settings: Sequence[Mapping[str, Any]], *, guide: ModelSpec | None = None) -> ModelSpec:
    """The spec of a cascade of stages with these specs, and of a guide. Raises UsageError as `check_stages`."""
    check_stages(specs, guide=guide)
    base, size = specs[0], specs[-1].image_size
    return ModelSpec(family="cascade", image_size=size, findings=base.findings, conditions=base.conditions, sites=base.sites,
                     masks=base.masks, config={"image_size": size, "stages": [asdict(own) for own in specs],
                                                         "settings": [dict(own) for own in settings],
                                                         **({} if guide is None else {"guide": asdict(guide)})})


def check_stages(specs: Sequence[ModelSpec], *, guide: ModelSpec | None = None) -> None:
    """Raise UsageError where a stage cannot follow the one before, or the guide cannot go with the first."""
    if len(specs) < 2 and guide is None:
        raise UsageError(f"a cascade needs a model that makes small images and at least one that enlarges them, and {len(specs)} is given")
    for spec in (*specs, *([guide] if guide is not None else [])):
        if spec.family != "diffusion":
            raise UsageError(f"the stages of a cascade are diffusion models, and one is of family '{spec.family}'; give runs of "
                             "diffusion recipes, such as base-64 and super-256")
    if specs[0].config.get("centred"):
        raise UsageError("the first stage enlarges images; begin with a model that makes them")
    if guide is not None:
        for key in ("image_size", "compressor"):
            own, other = specs[0].config.get(key), guide.config.get(key)
            if own != other:
                raise UsageError(f"the guide has {key} {other} and the first stage {own}; both must denoise the same latents")
        if "image" in guide.conditions:
            raise UsageError("the guide enlarges images; take a weaker model of what the first stage makes")
    for before, spec in pairwise(specs):
        if "image" not in spec.conditions:
            raise UsageError(f"the stage of {spec.image_size} px is not conditioned on the part image, so it cannot enlarge images; "
                             "after the first one, give models that enlarge (recipes super-256 to super-1024)")
        wanted = spec.image_size // int(spec.config["reduction"])
        if wanted != before.image_size:
            raise UsageError(f"the stage of {spec.image_size} px enlarges images of {wanted} px, and the one before makes images of "
                             f"{before.image_size} px; give a model before it that makes images of {wanted} px")


def unknown_to(spec: ModelSpec, first: ModelSpec) -> tuple[str, ...]:
    """Findings, sites and masks that the first stage can be asked for and a later one cannot, though it is conditioned on that part."""
    kinds = (("findings", ("labels", "lesions")), ("sites", ("attributes",)), ("masks", ("mask",)))
    return tuple(name for kind, parts in kinds if set(parts) & set(spec.conditions)
                 for name in getattr(first, kind) if name not in getattr(spec, kind))


def _translated(condition: Condition, theirs: ModelSpec, own: ModelSpec) -> Condition:
    """The condition with its findings, sites and masks in the order of another stage; names that one of them lacks are not stated."""
    attributes = condition.attributes
    split = [attributes[:, : len(ATTRIBUTES)], _named(attributes[:, len(ATTRIBUTES):], theirs.sites, own.sites)]
    return replace(condition, labels=_named(condition.labels, theirs.findings, own.findings), attributes=torch.cat(split, dim=1),
                   lesions=None if condition.lesions is None else _named(condition.lesions, theirs.findings, own.findings),
                   mask=None if condition.mask is None else _named(condition.mask, theirs.masks, own.masks))


def _named(values: Tensor, have: Sequence[str], want: Sequence[str]) -> Tensor:
    """[B, len(have), ...] -> [B, len(want), ...] by name."""
    chosen = values.new_full((len(values), len(want), *values.shape[2:]), math.nan)
    for column, name in enumerate(want):
        if name in have:
            chosen[:, column] = values[:, have.index(name)]
    return chosen
