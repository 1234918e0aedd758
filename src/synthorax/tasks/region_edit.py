"""A film changed inside a region alone, through its code: along a direction, or as a generator makes it under another condition.

What the code does not explain of the film is added back, so that a change of nothing is the film itself; outside the region no bit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.config import AtLeastOne, NotNegative, Part, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.losses.perceptual import perceptual_distance
from synthorax.protocols import Condition
from synthorax.tasks.code_search import CodeSearchConfig, FoundCodes, Generator, check_codes, check_films, find_codes
from synthorax.tasks.directions import move
from synthorax.tasks.refine import ramp_of

Region = Tensor | tuple[float, float, float, float]
"""mask [B, 1, S, S] or [1, 1, S, S] of bool, or x, y, width and height of a box in parts of the film's"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionEditConfig:
    """How the change is held to its region, and the patient's identity within."""

    steps: WholeNotNegative = 60
    """steps of Adam in which the moved code is bent back, across the direction alone, until the film beside the region is as it was"""
    learning_rate: NotNegative = 0.03
    """their size at the start; it falls to 0 along a cosine"""
    outside: NotNegative = 1.0
    """weight of the mean squared change of a pixel outside the region"""
    coarse: NotNegative = 0.1
    """weight of the mean squared change inside of the film shrunk `coarse_px`-fold, which keeps the patient's build"""
    coarse_px: AtLeastOne = 8
    """pixels of a side that make one of the shrunk film"""
    features: NotNegative = 0.0
    """weight of the distance of perceptual features inside and out; needs `features`"""
    blend: Part = 0.25
    """part of the region's thickness, at each border, over which the change rises"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edited:
    """Changed films, and what became of their codes."""

    films: Tensor
    """[B, 1, S, S] in [-1, 1]"""
    weight: Tensor
    """[B, 1, S, S] in [0, 1]: how much of the change counts; 0 outside the region"""
    codes: tuple[Tensor, ...]
    """each [B, *size]: codes whose films the change was taken from"""


def edit_region(model: Generator, films: Tensor, region: Region, *, seeds: Sequence[int], direction: Tensor | None = None,
                amount: float | Tensor = 1.0, condition: Condition | None = None, wanted: Condition | None = None,
                found: FoundCodes | None = None, search: CodeSearchConfig | None = None, config: RegionEditConfig | None = None,
                features: Callable[[Tensor], Sequence[Tensor]] | None = None) -> Edited:
    """Change films [B, 1, S, S] in [-1, 1] inside `region`, along `direction` by `amount`, or from `condition` to `wanted`, or both.

    The change is what the generator makes of the moved code less what it makes of the film's code, which is looked for unless it is
    given as `found`. It counts nothing at the border of the region and everything beyond the blend; where the region ends with the film
    it counts up to the edge. Raises UsageError for a region outside the film, and for what the model does not know.

    >>> edit_region(editable(model), films, (0.1, 0.6, 0.3, 0.3), seeds=[0], direction=known.of("Effusion"), amount=2)  # doctest: +SKIP
    """
    config = config or RegionEditConfig()
    check_films(model, films)
    if direction is None and wanted is None:
        raise UsageError("say what is to change: a direction, or what is wanted of the film")
    if wanted is not None and not getattr(model, "hears_condition", bool(model.spec.conditions)):
        raise UsageError("films of these codes follow no condition, so nothing can be wanted of them; give a direction")
    if config.features and features is None:
        raise UsageError("config.features needs features to keep; give some, or set it to 0")
    weight = blend_into(_mask(region, films), blend=config.blend).to(films)
    if not bool((weight > 0).flatten(1).any(1).all()):
        raise UsageError("the region is so thin that it is all border, where a change counts nothing; make it three pixels wide at least")
    if found is None:
        found = find_codes(model, films, seeds=seeds, condition=condition, config=search)
    before = check_codes(model, found.codes, size=len(films))
    after = list(before if direction is None else move(before, direction, amount))
    asked = condition if wanted is None else wanted
    with torch.no_grad():
        old = model.film_of(before, condition)
        same = (model.film_of(after, asked) == old).flatten(1).all(1)
    bent = _bent(model, after, old, weight, direction=direction, asked=asked, config=config, features=features)
    after[0] = torch.where(same.reshape(-1, *[1] * (bent.ndim - 1)), after[0], bent)  # where nothing is asked for nothing is bent
    with torch.no_grad():
        change = model.film_of(after, asked) - old
    new = (films + weight * change).clamp(-1, 1)
    return Edited(films=torch.where(weight > 0, new, films), weight=weight, codes=tuple(after))


def blend_into(mask: Tensor, *, blend: float) -> Tensor:
    """How much a change counts inside a mask [B, 1, S, S] of bool, in [0, 1]: 0 in its outermost pixels, 1 beyond the blend.

    Distances are those of a king on a chessboard, so that the sides of a square are blended as those of a patch in `refine`.
    """
    distance, left = torch.zeros(mask.shape, device=mask.device), mask.float()
    for _ in range(max(mask.shape[2:])):
        inner = -F.max_pool2d(-left, 3, stride=1, padding=1)  # pixels whose neighbours are all inside; beyond the film there are none
        distance += inner
        if torch.equal(inner, left):
            break
        left = inner
    thickness = 2 * (distance.flatten(1).amax(1) + 1)
    blend_px = (blend * thickness).round()
    weight = torch.stack([ramp_of(row, blend_px=px.item()) for row, px in zip(distance, blend_px, strict=True)])
    whole = mask.flatten(1).all(1).reshape(-1, 1, 1, 1)  # a region that is the film has no border
    return torch.where(whole, 1.0, torch.where(mask, weight, 0.0))


def _mask(region: Region, films: Tensor) -> Tensor:
    """The region as a mask a film, [B, 1, S, S] of bool."""
    size = films.shape[2]
    if isinstance(region, Tensor):
        if region.dtype != torch.bool or region.shape[1:] != films.shape[1:] or len(region) not in (1, len(films)):
            raise UsageError(f"a region for films of shape {tuple(films.shape)} says yes or no for every pixel; this is {region.dtype} of "
                             f"{tuple(region.shape)}")
        mask = region.to(films.device).expand(films.shape)
    else:
        x, y, width, height = region
        if min(x, y) < 0 or min(width, height) <= 0 or max(x + width, y + height) > 1:
            raise UsageError(f"the box {region} (x, y, width, height in parts of the film) does not lie in the film")
        mask = torch.zeros(films.shape, dtype=torch.bool, device=films.device)
        mask[:, :, round(y * size):round((y + height) * size), round(x * size):round((x + width) * size)] = True
    if not bool(mask.flatten(1).any(1).all()):
        raise UsageError("the region holds no pixel of a film, so there is nothing to change")
    return mask


def _bent(model: Generator, after: Sequence[Tensor], old: Tensor, weight: Tensor, *, direction: Tensor | None, asked: Condition | None,
          config: RegionEditConfig, features: Callable[[Tensor], Sequence[Tensor]] | None) -> Tensor:
    """The moved first code [B, *size], bent across the direction so that little but the region changes."""
    moved, *noises = after
    bend = torch.zeros_like(moved, requires_grad=True)
    unit = None if direction is None or not direction.any() else (direction / direction.norm()).to(moved)
    optimizer = torch.optim.Adam([bend], lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    beside = (1 - weight).flatten(1).sum(1).clamp(min=1)
    inside = F.avg_pool2d(weight, config.coarse_px, ceil_mode=True)
    with torch.enable_grad():
        for _ in range(config.steps):
            film = model.film_of([moved + bend, *noises], asked)
            change = film - old
            loss = config.outside * (change.square() * (1 - weight)).flatten(1).sum(1) / beside
            coarse = F.avg_pool2d(change * weight, config.coarse_px, ceil_mode=True).square()
            loss = loss + config.coarse * coarse.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
            if features is not None and config.features:
                loss = loss + config.features * perceptual_distance(film, old, features=features)
            (bend.grad,) = torch.autograd.grad(loss.sum(), [bend])
            optimizer.step()
            cosine.step()
            if unit is not None:  # the change that was asked for stays
                with torch.no_grad():
                    along = (bend * unit).flatten(1).sum(1)
                    bend -= along.reshape(-1, *[1] * unit.ndim) * unit
    return (moved + bend).detach()
