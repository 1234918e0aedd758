"""Outlines laid into the chest of a patient: drawn by a model or from a bank, fitted to the lungs of an image, and held to rules.

A drawn outline that breaks the rules of its finding is shifted a little, or else drawn again with another seed, and after `TRIES` an error
says what was wrong:

| finding | where it must lie |
|---|---|
| nodule, mass | inside one lung |
| effusion | not at the apex, unless it covers more than a third of the lung; down to the base and out to the wall: fluid sinks |
| pneumothorax | along the chest wall or the apex, between the lung and the wall: air rises from the hilum outwards |
| pleural thickening | at the border of the lung |
| cardiomegaly | between the lungs, over the heart |
| others | inside one lung, for the most part |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.capabilities import LayoutMaker
from synthorax.data.layout_bank import LayoutBank, unknown_finding
from synthorax.data.layouts import Box, Frame, Layout, frame_of, in_image
from synthorax.data.lesions import UNSIDED
from synthorax.editing.insertion.outlines import largest_parts
from synthorax.errors import InputError, UsageError
from synthorax.judges.lungs import LungMasks
from synthorax.protocols import LESION_PROPERTIES, Condition, Model, SampleSettings
from synthorax.rng import derive

TRIES = 20
"""draws of an outline before an error says that none fits"""
INSIDE = {"Nodule": 0.9, "Mass": 0.8}
"""least part of an outline that lies in the lung before it is cut to it; `MOSTLY_INSIDE` for other findings"""
MOSTLY_INSIDE = 0.5
RIM = {"Effusion": 0.02, "Pneumothorax": 0.02, "Pleural_Thickening": 0.04, "Cardiomegaly": 0.08}
"""how far an outline may lie outside the lungs, or the heart, in parts of the height of the lung's box"""
LEAST_PX = 9
"""pixels of the smallest mask"""
APEX, BASE = 0.3, 0.7
"""of the lung's height from the top: where an effusion may not begin, and where it must reach"""
LARGE_EFFUSION = 1 / 3
"""of the lung's area, above which an effusion may reach the apex"""
TOUCHING = 0.05
"""of the width of the lung's box: how near the border an outline must come"""
AT_BORDER = {"Pneumothorax": "the chest wall or the apex", "Pleural_Thickening": "the lung's border"}
"""what outlines of these findings must touch"""
ALONG_WALL = 20
"""degrees around the hilum that a pneumothorax takes up at least"""
HILUM = (0.0, 0.5)
"""of a lung, x from the mediastinum and y from the apex, in parts of its box"""
STEPS = (-0.1, -0.05, 0.0, 0.05, 0.1)
SHIFTS = tuple(sorted(((across, down) for across in STEPS for down in STEPS), key=lambda shift: math.hypot(*shift)))
"""in parts of the lung's box, the smallest first"""
HEART_COVERED = 0.6
"""least part of the heart under a large heart"""


class MisplacedError(InputError):
    """An outline does not fit the chest: the message says which rule it breaks."""


def draw_layouts(maker: LayoutMaker | LayoutBank, findings: Sequence[str], sides: Sequence[str], sizes: Sequence[float],
                 seeds: Sequence[int], *, settings: SampleSettings | None = None) -> list[Layout]:
    """One outline a row, from a model or a bank: of a finding, on the patient's left or right (empty: either), and of a size.

    `sizes` are square roots of the outline's area in parts of the lung's box, as `layouts.Shape` measures them, or NaN for any. Row i
    depends on `seeds[i]` and what is asked of it alone. Raises UsageError for a finding that the model or bank does not know, naming those
    that it does.

    >>> draw_layouts(sx.load_model("layout"), ["Effusion"], ["left"], [0.4], [7])[0].mask.any()  # doctest: +SKIP
    True
    """
    findings, sides, sizes, seeds = list(findings), list(sides), list(sizes), list(seeds)
    if not len(findings) == len(sides) == len(sizes) == len(seeds):
        raise UsageError(f"{len(findings)} findings, {len(sides)} sides, {len(sizes)} sizes and {len(seeds)} seeds are not one a row")
    for side, size in zip(sides, sizes, strict=True):
        if side not in ("", "left", "right"):
            raise UsageError(f"the side '{side}' is neither left nor right, which are the patient's, nor empty")
        if not (math.isnan(size) or 0 < size <= 1):
            raise UsageError(f"the size {size:g} of an outline is not above 0 and at most 1")
    if isinstance(maker, LayoutBank):
        return maker.draw(findings, sides, sizes, seeds)
    known = maker.spec.findings
    for finding in findings:
        if finding not in known:
            raise unknown_finding(finding, among=known, what="this model of layouts")
    sides = [side if side or finding in UNSIDED else ("left", "right")[derive(seed, "side") % 2]
             for finding, side, seed in zip(findings, sides, seeds, strict=True)]
    return _sample_layouts(maker, findings, sides, sizes, seeds, settings)


def _sample_layouts(maker: LayoutMaker, findings: Sequence[str], sides: Sequence[str], sizes: Sequence[float], seeds: Sequence[int],
           settings: SampleSettings | None) -> list[Layout]:
    model: Model = maker  # type: ignore[assignment]  # what draws outlines samples their maps
    made: dict[int, Layout] = {}
    for attempt in range(TRIES):  # an outline may be empty
        rows = [row for row in range(len(findings)) if row not in made]
        if not rows:
            break
        asked = layout_condition(maker, [findings[row] for row in rows], [sides[row] for row in rows], [sizes[row] for row in rows])
        maps = model.sample(asked, [derive(seeds[row], "layout", attempt) for row in rows], settings)
        for row, one in zip(rows, maps, strict=True):
            if bool((one > 0).any()):
                made[row] = Layout(finding=findings[row], side="" if findings[row] in UNSIDED else sides[row],
                                   grid=one[0].float().cpu().numpy(), source=f"seed {seeds[row]}")
    if len(made) < len(findings):
        row = next(row for row in range(len(findings)) if row not in made)
        raise MisplacedError(f"the model drew no outline of {findings[row]} of size {sizes[row]:g} in {TRIES} tries",
                             remedy="ask for a larger one")
    return [made[row] for row in range(len(findings))]


def layout_condition(maker: LayoutMaker, findings: Sequence[str], sides: Sequence[str], sizes: Sequence[float]) -> Condition:
    """The condition of outlines of one finding each, others absent; an empty side and a size of NaN are not stated."""
    known = maker.spec.findings
    condition = Condition.unstated(len(findings), num_labels=len(known), num_sites=len(maker.spec.sites))
    lesions = torch.full((len(findings), len(known), len(LESION_PROPERTIES)), math.nan)
    for row, (finding, side, size) in enumerate(zip(findings, sides, sizes, strict=True)):
        column = known.index(finding)
        condition.labels[row] = 0.0
        condition.labels[row, column] = 1.0
        if side and finding not in UNSIDED:
            lesions[row, column, LESION_PROPERTIES.index("left")] = float(side == "left")
        lesions[row, column, LESION_PROPERTIES.index("size")] = size
    return replace(condition, lesions=lesions)


def place_layout(layout: Layout, lungs: LungMasks, *, image: int = 0) -> NDArray[np.bool_]:
    """The outline as a mask [H, W] of image number `image` of `lungs`: scaled to its lungs, cut to where the finding can be, and checked.

    Lungs differ in shape, not in size alone, so an outline that does not fit is shifted by up to a tenth of the lung's box, the smallest
    shift that fits. Raises MisplacedError where a lung was not found, or where the outline breaks a rule of its finding wherever it is
    shifted.
    """
    host = _host(layout, lungs, image=image)
    reasons = []
    for shift in SHIFTS:
        mask, reason = _fitted(layout, host, shift)
        if not reason:
            return mask
        reasons.append(reason)
    raise MisplacedError(f"the outline of {layout.finding} {reasons[0]}", remedy="draw another one")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Host:
    """What the rules ask of one chest, [H, W] each."""

    frame: Frame
    lung: NDArray[np.bool_]
    heart: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    """where the finding may be"""
    border: NDArray[np.bool_]
    """what it must touch; empty for findings without such a rule"""


def _host(layout: Layout, lungs: LungMasks, *, image: int) -> _Host:
    right, left, heart = (np.asarray(part[image], dtype=np.bool_) for part in (lungs.right, lungs.left, lungs.heart))
    frame = _frame(layout, right, left)
    lung = right | left if layout.finding in UNSIDED else left if layout.side == "left" else right
    allowed = heart | lung if layout.finding in UNSIDED else lung
    border = np.zeros_like(lung)
    if layout.finding in AT_BORDER:
        border = lung & ~ndimage.binary_erosion(lung)
        if layout.finding == "Pneumothorax":
            border &= ~_mediastinal(border, frame)
        border = _grown(border, max(1.0, TOUCHING * (frame.box[2] - frame.box[0])))
    return _Host(frame=frame, lung=lung, heart=heart, border=border,
                 allowed=_grown(allowed, RIM.get(layout.finding, 0.0) * (frame.box[3] - frame.box[1])))


def _fitted(layout: Layout, host: _Host, shift: tuple[float, float]) -> tuple[NDArray[np.bool_], str]:
    """The outline shifted by parts of the box and cut to where it may be, and which rule it breaks; empty where none."""
    left, top, right, bottom = host.frame.box
    dx, dy = shift[0] * (right - left), shift[1] * (bottom - top)
    mask = in_image(layout, replace(host.frame, box=(left + dx, top + dy, right + dx, bottom + dy)), host.lung.shape)
    kept = largest_parts(mask & host.allowed, parts=1)
    part = kept.sum() / max(1, mask.sum())
    if part < INSIDE.get(layout.finding, MOSTLY_INSIDE):
        where = f"the {layout.side} lung" if layout.side else "the lungs and the heart"
        return kept, f"lies in {where} with only {part:.0%} of its area"
    if kept.sum() < LEAST_PX:
        return kept, f"has {kept.sum()} pixels, and {LEAST_PX} are the least"
    reason = _broken_rule(layout, kept, host)
    return (kept, reason) if reason else (_settled(layout, kept, host), "")


def draw_placed(maker: LayoutMaker | LayoutBank, finding: str, lungs: LungMasks, *, side: str = "", size: float = math.nan, seed: int,
                image: int = 0, tries: int = TRIES, settings: SampleSettings | None = None) -> tuple[Layout, NDArray[np.bool_]]:
    """An outline that fits image number `image`, and its mask [H, W]; drawn again with other seeds, derived from `seed`, until one fits.

    Raises MisplacedError with the last reason after `tries`.
    """
    last: MisplacedError | None = None
    for attempt in range(tries):
        layout, = draw_layouts(maker, [finding], [side], [size], [derive(seed, "placed", attempt)], settings=settings)
        try:
            return layout, place_layout(layout, lungs, image=image)
        except MisplacedError as error:
            last = error
    raise MisplacedError(f"no outline of {finding} in {tries} fits these lungs; the last one: {last}",
                    remedy="ask for another size or side, or take another image")


def size_in_lung(size: float, *, finding: str, side: str, lungs: LungMasks, image: int = 0) -> float:
    """The `size` of a lesion in an image (`types.Lesion`) as that of an outline in these lungs; NaN stays NaN.

    Raises MisplacedError for a lesion that is larger than the lung's box.
    """
    right, left = (np.asarray(part[image], dtype=np.bool_) for part in (lungs.right, lungs.left))
    frame = _frame(Layout(finding=finding, side=side, grid=np.zeros((1, 1), dtype=np.float32)), right, left)
    of_lung = size / 2 * math.sqrt(right.size / frame.area)
    if of_lung > 1:
        raise MisplacedError(f"{finding} of size {size:g} is larger than the lung", remedy="ask for a smaller one")
    return of_lung


def _frame(layout: Layout, right: NDArray[np.bool_], left: NDArray[np.bool_]) -> Frame:
    needed = {"right": right, "left": left} if layout.finding in UNSIDED else {layout.side: left if layout.side == "left" else right}
    for side, lung in needed.items():
        if not lung.any():
            raise MisplacedError(f"no {side} lung was found on the image", remedy="take another image, or give its lung mask")
    return frame_of(layout.finding, layout.side, right=_box(right), left=_box(left))


def _settled(layout: Layout, mask: NDArray[np.bool_], host: _Host) -> NDArray[np.bool_]:
    """Where the fluid or air of an outline is in a chest that stands upright, [H, W]; other findings stay as they were drawn."""
    if layout.finding == "Effusion":
        return _sunk(mask, host)
    return _between_lung_and_wall(mask, host) if layout.finding == "Pneumothorax" else mask


def _sunk(mask: NDArray[np.bool_], host: _Host) -> NDArray[np.bool_]:
    """All of the lung below the outline's upper border, which towards the wall stays as high as it gets: a meniscus."""
    height = len(mask)
    columns = np.flatnonzero(mask.any(0))
    level = np.full(mask.shape[1], height)
    level[columns] = mask[:, columns].argmax(0)
    outwards = -1 if host.frame.mirrored else 1
    level = np.minimum.accumulate(level[::outwards])  # from the mediastinum to the wall
    inner = mask[:, columns[::outwards][0]]
    level[:np.flatnonzero(level < height)[0]] = np.flatnonzero(inner)[-1]  # and towards the mediastinum as low as its inner end
    return mask | (host.allowed & (np.arange(height)[:, None] >= level[::outwards][None]))


def _between_lung_and_wall(mask: NDArray[np.bool_], host: _Host) -> NDArray[np.bool_]:
    """The outline moved out to the wall as seen from the hilum, as thick as it was drawn in each direction."""
    rows, columns = np.nonzero(host.allowed)
    hilum = host.frame.to_image(np.array([HILUM]))[0]
    distance = np.hypot(columns + 0.5 - hilum[0], rows + 0.5 - hilum[1])
    direction = _directions(rows, columns, host.frame)
    inside = mask[rows, columns]
    nearest, farthest, wall = np.full(360, np.inf), np.zeros(360), np.zeros(360)
    np.minimum.at(nearest, direction[inside], distance[inside])
    np.maximum.at(farthest, direction[inside], distance[inside])
    np.maximum.at(wall, direction, distance)
    settled = np.zeros_like(mask)
    settled[rows, columns] = distance >= wall[direction] - (farthest - nearest)[direction]
    closed = ndimage.binary_closing(np.pad(settled, 2), iterations=2)[2:-2, 2:-2]
    return largest_parts(np.asarray(closed & host.allowed), parts=1)


def _directions(rows: NDArray[np.intp], columns: NDArray[np.intp], frame: Frame) -> NDArray[np.intp]:
    """In which whole degree around the hilum pixels lie, [K] from 0 to 359."""
    hilum = frame.to_image(np.array([HILUM]))[0]
    angle = np.degrees(np.arctan2(rows + 0.5 - hilum[1], columns + 0.5 - hilum[0]))
    return np.asarray(angle % 360, dtype=np.intp) % 360


def _broken_rule(layout: Layout, mask: NDArray[np.bool_], host: _Host) -> str:
    """Which rule of its finding a mask breaks, in words; empty where it breaks none."""
    rows, columns = np.nonzero(mask)
    places = host.frame.to_frame(np.stack([columns + 0.5, rows + 0.5], axis=1))
    top, bottom = float(places[:, 1].min()), float(places[:, 1].max())
    if layout.finding == "Effusion":
        if bottom < BASE:
            return "does not reach the base of the lung"
        if top < APEX and mask.sum() < LARGE_EFFUSION * host.lung.sum():
            return "reaches the apex and covers less than a third of the lung"
    if layout.finding in AT_BORDER and not (mask & host.border).any():
        return f"does not touch {AT_BORDER[layout.finding]}"
    if layout.finding == "Pneumothorax" and (degrees := len(set(_directions(rows, columns, host.frame).tolist()))) < ALONG_WALL:
        return f"follows the wall for {degrees} degrees around the hilum only"
    if layout.finding in UNSIDED:
        if not 0.3 < float(places[:, 0].mean()) < 0.7:
            return "does not lie between the lungs"
        if host.heart.any() and (mask & host.heart).sum() < HEART_COVERED * host.heart.sum():
            return "does not lie over the heart"
        if top < 0.1 or mask.sum() > 0.6 * host.frame.area:
            return "is no heart: it reaches the apices"
    return ""


def _mediastinal(border: NDArray[np.bool_], frame: Frame) -> NDArray[np.bool_]:
    """Points of a lung's border that face the mediastinum or the diaphragm, [H, W]: the inner third below the apex, and the base."""
    rows, columns = np.nonzero(border)
    places = frame.to_frame(np.stack([columns + 0.5, rows + 0.5], axis=1))
    facing = np.zeros_like(border)
    facing[rows, columns] = ((places[:, 0] < 1 / 3) & (places[:, 1] > 0.15)) | (places[:, 1] > 0.9)
    return facing


def _grown(mask: NDArray[np.bool_], distance_px: float) -> NDArray[np.bool_]:
    """Pixels at most so far from the mask, [H, W]."""
    if distance_px <= 0 or not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= distance_px)


def _box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
