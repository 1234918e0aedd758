"""Lesion refinement: the patches around lesions are sampled again, and no other pixel of the image changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synthorax.capabilities import Resampler
from synthorax.config import Fraction, NotNegative
from synthorax.errors import UsageError
from synthorax.protocols import Condition, SampleSettings
from synthorax.rng import derive
from synthorax.types import Lesion

Patch = tuple[int, int, int]
"""first row, first column and side in pixels"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """How large the patches are, and how much they may change."""

    level: NotNegative = 0.2
    """noise level from which a patch is sampled again, in units of half the intensity range; a higher one changes more"""
    margin: NotNegative = 0.5
    """what a patch shows beyond the lesion on each side, in parts of the lesion's side"""
    least_px: int = 64
    """smallest side of a patch"""
    blend: Fraction = 0.25
    """part of a patch's side, at each border, over which it passes into the image"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refined:
    """Images with new patches, and where these are."""

    images: Tensor
    """[B, 1, S, S] in [-1, 1]"""
    patches: tuple[tuple[Patch, ...], ...]
    """of each image, one a lesion"""


def refine(model: Resampler, images: Tensor, lesions: Sequence[Sequence[Lesion]], *, seeds: Sequence[int],
           condition: Condition | None = None, settings: SampleSettings | None = None, config: RefineConfig | None = None) -> Refined:
    """Sample a square around each lesion again, as the image shows it at low resolution, and blend it in.

    `images` [B, 1, S, S] in [-1, 1] stay as they are, to the bit, outside the patches; inside, the new patch counts nothing at the border
    and everything beyond the blend, so there is no seam. `condition` has a row an image, with masks of the images' size; its lesions and
    text are not used. What becomes of an image depends on itself and its seed alone. Raises UsageError for a lesion without a box or a
    centre, and for a model that is not conditioned on the part image.

    >>> refine(load_model("runs/super-256"), images, [[Lesion(finding="Nodule", box=(0.6, 0.3, 0.1, 0.1))]], seeds=[0])  # doctest: +SKIP
    """
    config = config or RefineConfig()
    if "image" not in model.spec.conditions:
        raise UsageError("refining needs a model conditioned on the part image, such as one of the recipe super-256")
    if not len(images) == len(lesions) == len(seeds):
        raise UsageError(f"{len(images)} images, lesions of {len(lesions)} images and {len(seeds)} seeds; give one of each for every image")
    size, result, patches = images.shape[2], images.clone(), []
    for row, seed in enumerate(seeds):
        patches.append(tuple(lesion_patch(lesion, size=size, multiple=model.size_multiple, config=config) for lesion in lesions[row]))
        asked = Condition.unstated(1, num_labels=len(model.spec.findings), num_sites=len(model.spec.sites)) if condition is None \
            else condition[row:row + 1].only(("attributes", "labels", "mask"))
        for number, (top, left, side) in enumerate(patches[-1]):
            rows, columns = slice(top, top + side), slice(left, left + side)
            old = result[row:row + 1, :, rows, columns].clone()
            mask = None if asked.mask is None else asked.mask[:, :, rows, columns]
            new = model.resample(old, replace(asked, image=old, mask=mask), [derive(seed, "refine", number)], settings, level=config.level)
            weight = blend_weight((top, left, side), size=size, blend_px=round(config.blend * side)).to(old)
            result[row:row + 1, :, rows, columns] = old + weight * (new.to(old) - old)
    return Refined(images=result, patches=tuple(patches))


def lesion_patch(lesion: Lesion, *, size: int, multiple: int, config: RefineConfig) -> Patch:
    """The square around a lesion in an image of `size` pixels, on the grid of `multiple` pixels; at the image's edge it is moved inwards.

    The lesion is that of its box, or lies around its centre with its size, or the smallest patch's where it has none. Without either:
    UsageError.

    >>> lesion_patch(Lesion(finding="Nodule", box=(0.45, 0.45, 0.1, 0.1)), size=256, multiple=32, config=RefineConfig())
    (96, 96, 64)
    """
    if lesion.box is not None:
        x, y = lesion.box[0] + lesion.box[2] / 2, lesion.box[1] + lesion.box[3] / 2
        extent = max(lesion.box[2:])
    elif not (math.isnan(lesion.x) or math.isnan(lesion.y)):
        x, y, extent = lesion.x, lesion.y, 0.0 if math.isnan(lesion.size) else lesion.size / 2  # of a square of that area
    else:
        raise UsageError(f"a lesion of '{lesion.finding}' has neither a box nor a centre, so nobody can say where to refine")
    wanted = max(config.least_px, extent * (1 + 2 * config.margin) * size)
    side = min(math.ceil(wanted / multiple), size // multiple) * multiple
    if side == 0:
        raise UsageError(f"images of {size} px are smaller than the smallest patch of this model, {multiple} px")
    top, left = (min(max(round((centre * size - side / 2) / multiple), 0), (size - side) // multiple) * multiple for centre in (y, x))
    return top, left, side


def blend_weight(patch: Patch, *, size: int, blend_px: int) -> Tensor:
    """How much the new patch counts, [side, side] in [0, 1]: 0 in the outermost pixels, 1 from `blend_px` on, half a cosine in between.

    Where the patch ends with the image there is nothing to pass into, and it counts up to the edge.
    """
    top, left, side = patch
    distance = torch.arange(side, dtype=torch.float32)
    ramp = ramp_of(distance, blend_px=blend_px)

    def along(start: int) -> Tensor:
        rising = torch.ones(side) if start == 0 else ramp
        falling = torch.ones(side) if start + side == size else ramp.flip(0)
        return torch.minimum(rising, falling)

    return along(top)[:, None] * along(left)[None, :]


def ramp_of(distance: Tensor, *, blend_px: float) -> Tensor:
    """Half a cosine from 0 at the border to 1 at `blend_px` pixels from it, for distances of any shape."""
    return torch.sin(math.pi / 2 * (distance / max(blend_px, 1)).clamp(max=1)) ** 2
