"""What is concatenated to the noisy image: the parts of a condition that have a place in it, in which order, and what each channel means.

The number of input channels, the maps themselves, the weights that start at 0 and those that are matched by name all come from this list.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.families.denoising.conditioning_augmentation import LEVEL_UNIT, resized
from synthorax.nets.lesion_maps import MAPS, lesion_maps
from synthorax.protocols import LESION_PROPERTIES, Condition, ModelSpec


class ConditionMaps(Protocol):
    """Channels of one part of a condition."""

    part: str
    """one of `PARTS`"""
    names: tuple[str, ...]
    """meaning of each channel; models of other findings or masks match their weights by these names"""

    def planes(self, condition: Condition, x: Tensor) -> Tensor:
        """The channels at the resolution of the noisy latents x [B, C, h, w], [B, names, h, w]; 0 where the part is not stated."""

    def unvaried(self, varied: Condition) -> Tensor:
        """Channels in which training images do not differ, [names] of bool; see `HasConditionInputs`."""


class LesionMaps(ConditionMaps):
    """Lesions as soft spots at their places."""

    part = "lesions"

    def __init__(self, spec: ModelSpec) -> None:
        self.findings = len(spec.findings)
        self.names = tuple(f"map {number} {name}" for number in range(MAPS) for name in spec.findings)

    def planes(self, condition: Condition, x: Tensor) -> Tensor:
        unstated = x.new_full((len(x), self.findings, len(LESION_PROPERTIES)), math.nan)
        return lesion_maps(unstated if condition.lesions is None else condition.lesions.to(x), (x.shape[2], x.shape[3]))

    def unvaried(self, varied: Condition) -> Tensor:
        assert varied.lesions is not None
        places = [LESION_PROPERTIES.index(name) for name in ("left", "x", "y")]
        return varied.lesions[0][:, places].isnan().all(1).repeat(MAPS)


class MaskMaps(ConditionMaps):
    """The value of each mask class, then a plane for each that says whether it is stated."""

    part = "mask"

    def __init__(self, spec: ModelSpec) -> None:
        self.names = tuple(f"mask {half} {name}" for half in ("value", "stated") for name in spec.masks)

    def planes(self, condition: Condition, x: Tensor) -> Tensor:
        sides = (x.shape[2], x.shape[3])
        if condition.mask is None or not self.names:
            return x.new_zeros(len(x), len(self.names), *sides)
        unstated = condition.mask.isnan().flatten(2).any(2)[:, :, None, None]
        small = F.adaptive_avg_pool2d(condition.mask.nan_to_num(0.0).to(x), sides)
        return torch.cat([small * ~unstated, (~unstated).to(x).expand_as(small)], dim=1)

    def unvaried(self, varied: Condition) -> Tensor:
        assert varied.mask is not None
        return varied.mask[0].isnan().flatten(1).all(1).repeat(2)


class ImageMaps(ConditionMaps):
    """An image at low resolution, a plane that says whether it is stated, and its noise level."""

    part = "image"
    names = ("image value", "image stated", "image noise")

    def planes(self, condition: Condition, x: Tensor) -> Tensor:
        sides = (x.shape[2], x.shape[3])
        if condition.image is None:
            return x.new_zeros(len(x), len(self.names), *sides)
        stated = condition.stated("image")[:, None, None, None].to(x)
        enlarged = resized(condition.image.nan_to_num(0.0).to(x), sides)
        image, level = enlarged[:, :1], enlarged[:, 1:2]
        level = level if level.shape[1] else torch.zeros_like(image)  # an image without a level has no noise
        return stated * torch.cat([image, torch.ones_like(image), level / LEVEL_UNIT], dim=1)

    def unvaried(self, varied: Condition) -> Tensor:
        """None: every training image has one."""
        return torch.zeros(len(self.names), dtype=torch.bool)


def condition_maps(parts: Collection[str], spec: ModelSpec) -> tuple[ConditionMaps, ...]:
    """The maps of a model that is conditioned on `parts`, in the order of its input channels, which follow those of the noisy latents."""
    return tuple(maps for maps in (LesionMaps(spec), MaskMaps(spec), ImageMaps()) if maps.part in parts)
