"""An image changed inside a region alone, through its latent: along a direction, or as a generator makes it under another condition.

What the latent does not explain of the image is added back, so that a change of nothing is the image itself; outside the region no bit
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.capabilities import LatentGenerator
from synthorax.config import AtLeastOne, Fraction, NotNegative, WholeNotNegative
from synthorax.editing.directions import move
from synthorax.editing.inversion import Inversion, InversionConfig, check_images, check_latents, invert
from synthorax.editing.lesion_refinement import ramp_of
from synthorax.errors import UsageError
from synthorax.losses.perceptual import perceptual_distance
from synthorax.protocols import Condition

Region = Tensor | tuple[float, float, float, float]
"""mask [B, 1, S, S] or [1, 1, S, S] of bool, or x, y, width and height of a box in parts of the image's"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionEditConfig:
    """How the change is held to its region, and the patient's identity within."""

    steps: WholeNotNegative = 60
    """steps of Adam in which the moved latent is bent back, across the direction alone, until the image beside the region is as it was"""
    learning_rate: NotNegative = 0.03
    """their size at the start; it falls to 0 along a cosine"""
    outside: NotNegative = 1.0
    """weight of the mean squared change of a pixel outside the region"""
    coarse: NotNegative = 0.1
    """weight of the mean squared change inside of the image shrunk `coarse_px`-fold, which keeps the patient's anatomy"""
    coarse_px: AtLeastOne = 8
    """pixels of a side that make one of the shrunk image"""
    features: NotNegative = 0.0
    """weight of the distance of perceptual features inside and out; needs `features`"""
    blend: Fraction = 0.25
    """part of the region's thickness, at each border, over which the change rises"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edited:
    """Changed images, and what became of their latents."""

    images: Tensor
    """[B, 1, S, S] in [-1, 1]"""
    weight: Tensor
    """[B, 1, S, S] in [0, 1]: how much of the change counts; 0 outside the region"""
    latents: tuple[Tensor, ...]
    """each [B, *size]: latents whose images the change was taken from"""


def edit_region(model: LatentGenerator, images: Tensor, region: Region, *, seeds: Sequence[int], direction: Tensor | None = None,
                amount: float | Tensor = 1.0, condition: Condition | None = None, wanted: Condition | None = None,
                found: Inversion | None = None, search: InversionConfig | None = None, config: RegionEditConfig | None = None,
                features: Callable[[Tensor], Sequence[Tensor]] | None = None) -> Edited:
    """Change images [B, 1, S, S] in [-1, 1] inside `region`, along `direction` by `amount`, or from `condition` to `wanted`, or both.

    The change is what the generator makes of the moved latent less what it makes of the image's latent, which is looked for unless it is
    given as `found`. It counts nothing at the border of the region and everything beyond the blend; where the region ends with the image
    it counts up to the edge. Raises UsageError for a region outside the image, and for what the model does not know.

    >>> edit_region(editable(model), images, (0.1, 0.6, 0.3, 0.3), seeds=[0], direction=known.of("Effusion"), amount=2)  # doctest: +SKIP
    """
    config = config or RegionEditConfig()
    check_images(model, images)
    if direction is None and wanted is None:
        raise UsageError("give a direction, or a condition that is wanted of the image")
    if wanted is not None and not model.follows_condition:
        raise UsageError("images of these latents follow no condition, so none can be wanted; give a direction")
    if config.features and features is None:
        raise UsageError("config.features needs features to keep; give some, or set it to 0")
    weight = blend_into(_mask(region, images), blend=config.blend).to(images)
    if not bool((weight > 0).flatten(1).any(1).all()):
        raise UsageError("the region is so thin that it is all border, where a change counts nothing; make it three pixels wide at least")
    if found is None:
        found = invert(model, images, seeds=seeds, condition=condition, config=search)
    before = check_latents(model, found.latents, size=len(images))
    after = list(before if direction is None else move(before, direction, amount))
    asked = condition if wanted is None else wanted
    with torch.no_grad():
        old = model.decode_latents(before, condition)
        same = (model.decode_latents(after, asked) == old).flatten(1).all(1)
    bent = _bent(model, after, old, weight, direction=direction, asked=asked, config=config, features=features)
    after[0] = torch.where(same.reshape(-1, *[1] * (bent.ndim - 1)), after[0], bent)  # where nothing is asked for nothing is bent
    with torch.no_grad():
        change = model.decode_latents(after, asked) - old
    new = (images + weight * change).clamp(-1, 1)
    return Edited(images=torch.where(weight > 0, new, images), weight=weight, latents=tuple(after))


def blend_into(mask: Tensor, *, blend: float) -> Tensor:
    """How much a change counts inside a mask [B, 1, S, S] of bool, in [0, 1]: 0 in its outermost pixels, 1 beyond the blend.

    Distances are those of a king on a chessboard, so that the sides of a square are blended as those of a patch in `refine`.
    """
    distance, left = torch.zeros(mask.shape, device=mask.device), mask.float()
    for _ in range(max(mask.shape[2:])):
        inner = -F.max_pool2d(-left, 3, stride=1, padding=1)  # pixels whose neighbours are all inside; beyond the image there are none
        distance += inner
        if torch.equal(inner, left):
            break
        left = inner
    thickness = 2 * (distance.flatten(1).amax(1) + 1)
    blend_px = (blend * thickness).round()
    weight = torch.stack([ramp_of(row, blend_px=px.item()) for row, px in zip(distance, blend_px, strict=True)])
    whole = mask.flatten(1).all(1).reshape(-1, 1, 1, 1)  # a region that is the image has no border
    return torch.where(whole, 1.0, torch.where(mask, weight, 0.0))


def _mask(region: Region, images: Tensor) -> Tensor:
    """The region as a mask an image, [B, 1, S, S] of bool."""
    size = images.shape[2]
    if isinstance(region, Tensor):
        if region.dtype != torch.bool or region.shape[1:] != images.shape[1:] or len(region) not in (1, len(images)):
            raise UsageError(f"a region for images of shape {tuple(images.shape)} is a bool for every pixel; this is {region.dtype} "
                             f"of "
                             f"{tuple(region.shape)}")
        mask = region.to(images.device).expand(images.shape)
    else:
        x, y, width, height = region
        if min(x, y) < 0 or min(width, height) <= 0 or max(x + width, y + height) > 1:
            raise UsageError(f"the box {region} (x, y, width, height in parts of the image) does not lie in the image")
        mask = torch.zeros(images.shape, dtype=torch.bool, device=images.device)
        mask[:, :, round(y * size):round((y + height) * size), round(x * size):round((x + width) * size)] = True
    if not bool(mask.flatten(1).any(1).all()):
        raise UsageError("the region holds no pixel of an image, so there is nothing to change")
    return mask


def _bent(model: LatentGenerator, after: Sequence[Tensor], old: Tensor, weight: Tensor, *, direction: Tensor | None,
          asked: Condition | None, config: RegionEditConfig, features: Callable[[Tensor], Sequence[Tensor]] | None) -> Tensor:
    """The moved first latent [B, *size], bent across the direction so that little but the region changes."""
    moved, *noises = after
    bend = torch.zeros_like(moved, requires_grad=True)
    unit = None if direction is None or not direction.any() else (direction / direction.norm()).to(moved)
    optimizer = torch.optim.Adam([bend], lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    beside = (1 - weight).flatten(1).sum(1).clamp(min=1)
    inside = F.avg_pool2d(weight, config.coarse_px, ceil_mode=True)
    with torch.enable_grad():
        for _ in range(config.steps):
            image = model.decode_latents([moved + bend, *noises], asked)
            change = image - old
            loss = config.outside * (change.square() * (1 - weight)).flatten(1).sum(1) / beside
            coarse = F.avg_pool2d(change * weight, config.coarse_px, ceil_mode=True).square()
            loss = loss + config.coarse * coarse.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
            if features is not None and config.features:
                loss = loss + config.features * perceptual_distance(image, old, features=features)
            (bend.grad,) = torch.autograd.grad(loss.sum(), [bend])
            optimizer.step()
            cosine.step()
            if unit is not None:  # the change that was asked for stays
                with torch.no_grad():
                    along = (bend * unit).flatten(1).sum(1)
                    bend -= along.reshape(-1, *[1] * unit.ndim) * unit
    return (moved + bend).detach()
