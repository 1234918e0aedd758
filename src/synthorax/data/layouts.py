"""Outlines of findings in coordinates of the lungs, so that the outline of one patient can be laid into the chest of another.

A layout is a square grid over the box of one lung, widened by `MARGIN` on every side. Columns run from the mediastinum to the chest wall
on both sides, so that right and left lungs share their coordinates (the images are never flipped: the side is kept beside the grid). For
findings in the middle of the chest (`UNSIDED`) the box is that around both lungs, and columns run as in the image, from the patient's right
to left.

Values of the grid are those of `outline_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

from synthorax.data.lesions import UNSIDED
from synthorax.errors import InputError, UsageError
from synthorax.outline_grid import MARGIN, SUPERSAMPLING, inside_of, size_of, soft_outline

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of an image"""
CELLS = 128
"""cells of a side of a layout's grid"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The coordinates of a layout in an image: u from 0 to 1 across `box`, v from 0 to 1 down it."""

    box: Box
    mirrored: bool = False
    """whether u runs against the image's columns, as it does in the patient's right lung"""

    def __post_init__(self) -> None:
        """Refuse a box without area or with numbers that are none."""
        left, top, right, bottom = self.box
        if not (right - left > 0 and bottom - top > 0 and all(math.isfinite(number) for number in self.box)):
            raise UsageError(f"the box {self.box} of a lung has no area; no lung was found there")

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def to_frame(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (x, y) [N, 2] in pixels as (u, v)."""
        left, top, right, bottom = self.box
        u = (points[:, 0] - left) / (right - left)
        return np.stack([1 - u if self.mirrored else u, (points[:, 1] - top) / (bottom - top)], axis=1)

    def to_image(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (u, v) [N, 2] as (x, y) in pixels."""
        left, top, right, bottom = self.box
        u = 1 - points[:, 0] if self.mirrored else points[:, 0]
        return np.stack([left + u * (right - left), top + points[:, 1] * (bottom - top)], axis=1)


def frame_of(finding: str, side: str, *, right: Box, left: Box) -> Frame:
    """The frame of a finding on one side, from the boxes of the patient's right and left lungs.

    >>> frame_of("Effusion", "right", right=(0, 0, 4, 8), left=(6, 0, 10, 8))
    Frame(box=(0, 0, 4, 8), mirrored=True)
    >>> frame_of("Cardiomegaly", "", right=(0, 1, 4, 8), left=(6, 0, 10, 8)).box
    (0, 0, 10, 8)
    """
    if finding in UNSIDED:
        return Frame(box=(right[0], min(right[1], left[1]), left[2], max(right[3], left[3])))
    if side not in ("left", "right"):
        raise UsageError(f"{finding} lies in one lung, and the side '{side}' is neither left nor right")
    return Frame(box=right, mirrored=True) if side == "right" else Frame(box=left)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """One outline in coordinates of the lungs."""

    finding: str
    side: str
    """the patient's left or right; empty for findings of the middle"""
    grid: NDArray[np.float32]
    """[S, S] in [-1, 1], positive inside"""
    source: str = ""
    """what it comes from: a model and seed, or a row of a bank"""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Cells whose centre is inside, [S, S]."""
        return self.grid > 0


def outline_mask(points: NDArray[np.float64], *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The polygon (x, y) [N, 2] filled, [H, W]; its own line is inside. Pixel [0, 0] reaches from 0 to 1."""
    image = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in points], fill=1, outline=1)
    return np.asarray(image, dtype=np.bool_)


def layout_of_polygon(points: Sequence[Sequence[float]], frame: Frame, *, shape: tuple[int, int], finding: str, side: str,
                      source: str = "") -> Layout:
    """The layout of a polygon (x, y) in pixels of an image of `shape`, height and width.

    Raises InputError for fewer than three points, and for a polygon that leaves the image.
    """
    outline = np.asarray(points, dtype=np.float64)
    if outline.ndim != 2 or outline.shape[1:] != (2,) or len(outline) < 3 or not np.isfinite(outline).all():
        raise InputError(f"an outline of {finding} {source} is no polygon of at least three points (x, y)",
                         remedy="draw it again, or leave it out")
    if (outline < 0).any() or (outline > (shape[1], shape[0])).any():
        raise InputError(f"an outline of {finding} {source} leaves its image of {shape[1]} x {shape[0]} pixels",
                         remedy="give it in pixels of this very image")
    fine = CELLS * SUPERSAMPLING
    inside = outline_mask((frame.to_frame(outline) + MARGIN) / (1 + 2 * MARGIN) * fine, shape=(fine, fine))
    return Layout(finding=finding, side=side, grid=soft_outline(inside, cells=CELLS), source=source)


def layout_of_mask(mask: NDArray[np.bool_], frame: Frame, *, finding: str, side: str, source: str = "") -> Layout:
    """The layout of a mask [H, W] of the image that `frame` belongs to. Raises InputError for a mask without a pixel inside the grid."""
    fine = CELLS * SUPERSAMPLING
    places = ((np.arange(fine) + 0.5) / fine * (1 + 2 * MARGIN) - MARGIN).astype(np.float64)
    points = frame.to_image(np.stack([np.tile(places, fine), np.repeat(places, fine)], axis=1))
    values = ndimage.map_coordinates(mask.astype(np.float32), [points[:, 1] - 0.5, points[:, 0] - 0.5], order=1, cval=0.0)
    inside = values.reshape(fine, fine) >= 0.5
    if not inside.any():
        raise InputError(f"the mask of {finding} {source} lies outside the lung's surroundings", remedy="check its side and the lung mask")
    return Layout(finding=finding, side=side, grid=soft_outline(inside, cells=CELLS), source=source)


def in_image(layout: Layout, frame: Frame, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The layout as a mask of an image of `shape`, [H, W]; the grid is interpolated, so edges are smooth at any resolution."""
    cells = len(layout.grid)
    columns = frame.to_frame(np.stack([np.arange(shape[1]) + 0.5, np.zeros(shape[1])], axis=1))[:, 0]
    rows = frame.to_frame(np.stack([np.zeros(shape[0]), np.arange(shape[0]) + 0.5], axis=1))[:, 1]
    u, v = ((places + MARGIN) / (1 + 2 * MARGIN) * cells - 0.5 for places in (columns, rows))
    across, down = (np.flatnonzero((places > -0.5) & (places < cells - 0.5)) for places in (u, v))
    mask = np.zeros(shape, dtype=np.bool_)
    if len(across) and len(down):
        places = np.meshgrid(v[down], u[across], indexing="ij")
        mask[np.ix_(down, across)] = ndimage.map_coordinates(layout.grid, places, order=1, mode="nearest") > 0
    return mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Size, place and form of a layout."""

    size: float
    """square root of its area in parts of the box's area, at most 1; the model's condition `size`"""
    x: float
    """centre across, 0 at the mediastinum and 1 at the chest wall (of both lungs: from the patient's right to left)"""
    y: float
    """centre, 0 at the apex and 1 at the base"""
    elongation: float
    """ratio of the standard deviations along the two principal axes, at least 1"""
    solidity: float
    """area in parts of the convex hull's"""
    roughness: float
    """perimeter^2 / (4 pi area): 1 for a disc"""


def shape_of(layout: Layout, *, points: int = 3) -> Shape:
    """Size, place and form, measured on a grid `points` times finer (odd, so that no centre of a cell is missed).

    Raises UsageError for a layout without an inside.
    """
    fine = inside_of(layout.grid, points=points)
    if not fine.any():
        raise UsageError(f"the layout of {layout.finding} {layout.source} is empty")
    cells = len(fine)
    rows, columns = (axis + 0.5 for axis in np.nonzero(fine))
    spread = np.cov(np.stack([columns, rows]), bias=True) + np.eye(2) / 12  # a pixel has a width of its own
    low, high = np.sqrt(np.linalg.eigvalsh(np.atleast_2d(spread)))
    area, unit = float(fine.sum()), (1 + 2 * MARGIN) / cells
    return Shape(size=size_of(fine), x=float(columns.mean()) * unit - MARGIN, y=float(rows.mean()) * unit - MARGIN,
                 elongation=float(high / low), solidity=min(1.0, area / _hull_area(fine)),
                 roughness=_perimeter(fine) ** 2 / (4 * math.pi * area))


def _hull_area(inside: NDArray[np.bool_]) -> float:
    rows, columns = np.nonzero(inside)
    corners = np.concatenate([np.stack([columns + dx, rows + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    return float(ConvexHull(corners).volume)  # of points in a plane, the volume is the area


def _perimeter(inside: NDArray[np.bool_]) -> float:
    """Length of the outline in pixels, by Crofton's formula in four directions (Serra 1982), so that diagonal edges count as they are."""
    padded = np.pad(inside, 1).astype(np.int8)
    straight = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    diagonal = np.abs(padded[1:, 1:] - padded[:-1, :-1]).sum() + np.abs(padded[1:, :-1] - padded[:-1, 1:]).sum()
    return float(math.pi / 8 * (straight + diagonal / math.sqrt(2)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """How far an outline is varied: standard deviations of normal numbers, all independent."""

    shift: float = 0.06
    """in parts of the box's sides, across and down apart"""
    zoom: float = 0.15
    """of the logarithm of the size, across and down apart"""
    turn_degrees: float = 10.0
    bend: float = 0.03
    """of a smooth field that moves the outline, in parts of the box's sides; it changes over about a quarter of the grid"""


def varied(layout: Layout, rng: np.random.Generator, *, size: float = math.nan, variation: Variation | None = None) -> Layout:
    """The layout moved, scaled, turned and bent at random, so that it is no copy; then of this size, if one is asked for.

    `size` is that of `Shape`. Raises UsageError for a layout without an inside.
    """
    variation = variation or Variation()
    cells = len(layout.grid)
    cell = 1 / (1 + 2 * MARGIN) * cells  # of a side of the box
    angle, scales = math.radians(variation.turn_degrees) * rng.normal(), np.exp(variation.zoom * rng.normal(size=2))
    step = variation.shift * cell * rng.normal(size=2)
    field = [ndimage.gaussian_filter(rng.normal(size=(cells, cells)), cells / 8, mode="reflect") for _ in range(2)]
    bends = [variation.bend * cell * one / one.std() for one in field]
    moved = _moved(layout, angle=angle, scales=(float(scales[0]), float(scales[1])), step=(float(step[0]), float(step[1])), bends=bends)
    return moved if math.isnan(size) or not moved.mask.any() else scaled(moved, size=size)


def scaled(layout: Layout, *, size: float, rounds: int = 3) -> Layout:
    """The layout enlarged or shrunk around its centre to a size as in `Shape`; what leaves the grid is cut off."""
    for _ in range(rounds):  # the grid cuts off, and small outlines are measured coarsely
        factor = size / shape_of(layout).size
        if abs(factor - 1) < 0.01:
            break
        changed = _moved(layout, scales=(factor, factor))
        if not changed.mask.any():
            break
        layout = changed
    return layout


def _moved(layout: Layout, *, angle: float = 0.0, scales: tuple[float, float] = (1.0, 1.0), step: tuple[float, float] = (0.0, 0.0),
           bends: Sequence[NDArray[np.float64]] = ()) -> Layout:
    """The layout turned and scaled around its centre, shifted and bent, in cells."""
    cells = len(layout.grid)
    rows, columns = np.nonzero(layout.mask)
    if not len(rows):
        raise UsageError(f"the layout of {layout.finding} {layout.source} is empty")
    y, x = np.mgrid[0:cells, 0:cells].astype(np.float64)
    dx, dy = x - columns.mean() - step[0], y - rows.mean() - step[1]
    from_x = columns.mean() + (math.cos(angle) * dx + math.sin(angle) * dy) / scales[0]
    from_y = rows.mean() + (-math.sin(angle) * dx + math.cos(angle) * dy) / scales[1]
    if bends:
        from_x, from_y = from_x + bends[0], from_y + bends[1]
    grid = ndimage.map_coordinates(layout.grid, [from_y, from_x], order=1, mode="nearest")
    return replace(layout, grid=grid.astype(np.float32))


def overlap(first: Layout, second: Layout) -> float:
    """Dice coefficient of two layouts' masks, 0 to 1."""
    total = int(first.mask.sum()) + int(second.mask.sum())
    return 2 * int((first.mask & second.mask).sum()) / total if total else 1.0
