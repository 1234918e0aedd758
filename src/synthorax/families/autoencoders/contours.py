"""Outlines as contours: where the two tips are, and how the two edges run from one to the other.

The tips of an outline are its two farthest points. They part it into an outer and an inner edge, which are read at equal parts of their
lengths (a model of point distributions, Cootes et al. 1995). What lies midway between the edges says how an outline is bent; half of what
lies between them says how thick it is along its way. So a crescent along the chest wall stays a crescent at any resolution. Coordinates
are parts of the grid of `outline_grid`, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from synthorax.outline_grid import MARGIN, SUPERSAMPLING, inside_of, size_of, soft_outline

POSE = ("log size", "x", "y", "log length", "angle")
"""x and y of the centre; length between the tips in parts of the square root of the area; angle of the line between the tips to the
direction around `CENTRE`, from -pi/2 to pi/2, so that tips come in the order in which they lie around it"""
CURVES = ("bend along", "bend across", "thickness along", "thickness across")
"""of a form, along and across the line between the tips: what lies midway between the edges, in parts of the length, less the line itself;
and half of what lies between them, in parts of the mean thickness"""
CENTRE = (0.1, 3.0)
"""far below the mediastinum; hardly an outline of any finding points to it and away from it, so that nearly all have an order of tips"""
BEND = 0.1
"""unit of bends, so that they are of order 1"""
ROUNDS, CLOSE = 8, 0.01
"""corrections of the area of a drawn outline at most, and the part of its size that is close enough"""
WHOLE_GRID = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
"""what counts as the outline of a map without an inside"""

Points = NDArray[np.float64]
"""(x, y) [K, 2]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contour:
    """An outline parted into pose and form."""

    pose: NDArray[np.float64]
    """[P] as in `POSE`"""
    form: NDArray[np.float64]
    """[4, N] as in `CURVES`, at N places between the tips"""


def contour_of(grid: NDArray[np.float32], *, points: int) -> Contour:
    """The largest outline on a map [S, S], positive inside, read at `points` places between its tips."""
    outline = _longest_line(grid)
    area, centre = _area_and_centre(outline)
    first, second = _tips(outline)
    line = outline[second] - outline[first]
    around = _around(centre)
    if line @ around < 0:
        first, second, line = second, first, -line
    edges = [_resampled(outline, first, second, points + 2), _resampled(outline, second, first, points + 2)[::-1]]
    length = max(float(np.hypot(*line)), 1e-6)
    local = [_turned(edge - (outline[first] + outline[second]) / 2, line, back=True) / length for edge in edges]
    middle, half = (local[0] + local[1]) / 2, (local[0] - local[1]) / 2
    middle[:, 0] -= np.linspace(-0.5, 0.5, points + 2)
    form = np.concatenate([middle.T / BEND, half.T * length**2 / area])[:, 1:-1]
    pose = np.array([math.log(math.sqrt(area) * (1 + 2 * MARGIN)), *centre, math.log(length / math.sqrt(area)),
                     math.atan2(float(around[0] * line[1] - around[1] * line[0]), float(around @ line))])
    return Contour(pose=pose, form=form)


def laid_out(contour: Contour, *, cells: int) -> NDArray[np.float32]:
    """A map [S, S] of an outline, one connected part without holes, with the area and the centre of the pose where that fits the grid."""
    edges, centre = _edges(contour), contour.pose[1:3]
    asked = min(math.exp(contour.pose[0]), 0.98 * (1 + 2 * MARGIN))
    best, error, factor = np.full((cells, cells), -1.0, dtype=np.float32), math.inf, 1.0
    smallest, largest, points = 0.0, math.inf, cells * SUPERSAMPLING
    for _ in range(ROUNDS):  # edges may cross, the grid cuts off, and small outlines are measured coarsely
        enlarged = _enlarged(edges, factor)
        low, high = enlarged.min((0, 1)), enlarged.max((0, 1))
        middle = enlarged.mean((0, 1))
        for _ in range(2):  # the second time with the centre of what is filled
            inside = _one_part(_filled(enlarged + _inside_grid(centre - middle, low, high), points=points))
            rows, columns = np.nonzero(inside)
            middle = (np.array([columns.mean(), rows.mean()]) + 0.5) / points - _inside_grid(centre - middle, low, high)
        made = soft_outline(inside, cells=cells)
        made = np.where(_one_part(made > 0), np.maximum(np.abs(made), 1e-3), -np.abs(made))  # what is thinner than a cell may part
        change = asked / size_of(inside_of(made)) if (made > 0).any() else 1.5
        if (made > 0).any() and abs(change - 1) < error:
            best, error = made, abs(change - 1)
        if error < CLOSE:
            break
        smallest, largest = (max(smallest, factor), largest) if change > 1 else (smallest, min(largest, factor))
        factor = factor * change if smallest < factor * change < largest else math.sqrt(smallest * largest)
    return best


def _longest_line(grid: NDArray[np.float32]) -> Points:
    """The outline that encloses most, clockwise as one sees it; that of the whole grid where the map has no inside."""
    cells = len(grid)
    lines = contour_generator(z=np.pad(grid, 1, constant_values=-1.0)).lines(0.0)
    closed = [np.clip((np.asarray(line[:-1]) - 0.5) / cells, 0.0, 1.0) for line in lines if len(line) > 3]
    best = max(closed, key=lambda line: abs(_area_and_centre(line)[0]), default=np.array(WHOLE_GRID))
    area = _area_and_centre(best)[0]
    if abs(area) < 1e-8:
        return np.array(WHOLE_GRID)
    return best if area > 0 else best[::-1]


def _area_and_centre(outline: Points) -> tuple[float, Points]:
    """Signed area of a polygon, positive for clockwise as one sees it, and its centre of mass."""
    x, y = (outline - outline[0]).T
    parts = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = float(parts.sum()) / 2
    if abs(area) < 1e-12:
        return area, outline.mean(0)
    return area, outline[0] + np.array([((one + np.roll(one, -1)) * parts).sum() for one in (x, y)]) / (6 * area)


def _tips(outline: Points) -> tuple[int, int]:
    """The two farthest points."""
    apart = ((outline[:, None] - outline[None]) ** 2).sum(-1)
    first, second = np.unravel_index(int(apart.argmax()), apart.shape)
    return int(first), int(second)


def _resampled(outline: Points, first: int, second: int, points: int) -> Points:
    """From one point of a closed outline on to another, at equal parts of the length."""
    number = len(outline)
    path = outline[(first + np.arange((second - first) % number + 1)) % number]
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    places = np.linspace(0, along[-1], points)
    return np.stack([np.interp(places, along, path[:, axis]) for axis in (0, 1)], axis=1)


def _around(place: Points) -> Points:
    """The direction around `CENTRE` at a place."""
    return _across(place - CENTRE)


def _across(vector: Points) -> Points:
    """A vector turned by a right angle, from x to y."""
    return np.array([-vector[1], vector[0]])


def _turned(points: Points, line: Points, *, back: bool = False) -> Points:
    """Points turned as the x axis is to lie along a line, or back."""
    unit = line / max(float(np.hypot(*line)), 1e-9)
    turn = np.array([unit, _across(unit)])
    turned: Points = points @ (turn.T if back else turn)
    return turned


def _edges(contour: Contour) -> NDArray[np.float64]:
    """Both edges around the middle of the line between the tips, in parts of the grid, [2, N + 2, 2]."""
    log_size, x, y, log_length, angle = contour.pose.tolist()
    ends = np.pad(contour.form, ((0, 0), (1, 1)))  # tips lie on the line, and have no thickness
    middle, half = ends[:2].T * BEND, ends[2:].T * math.exp(-2 * log_length)
    middle[:, 0] += np.linspace(-0.5, 0.5, len(middle))
    around = _around(np.array([x, y]))
    direction = math.atan2(around[1], around[0]) + angle
    line = np.array([math.cos(direction), math.sin(direction)])
    length = math.exp(log_size + log_length) / (1 + 2 * MARGIN)
    return np.stack([_turned(edge, line) * length for edge in (middle + half, middle - half)])


def _enlarged(edges: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Both edges with factor**2 of their area, no wider nor higher than the grid: what does not fit one way grows the other, or thicker."""
    longest = 0.995 / np.maximum(np.ptp(edges, axis=(0, 1)), 1e-9)
    across = min(factor, longest[0])
    down = min(factor**2 / across, longest[1])
    stretch = np.array([min(factor**2 / down, longest[0]), down])
    middle = edges.mean(0)
    return np.asarray(stretch * (middle + (edges - middle) * factor**2 / stretch.prod()))


def _inside_grid(middle: Points, low: Points, high: Points) -> Points:
    """The nearest place of the middle at which nothing from `low` to `high` around it leaves the grid."""
    return np.clip(middle, -low, np.maximum(-low, 1 - high))


def _filled(edges: NDArray[np.float64], *, points: int) -> NDArray[np.bool_]:
    """All that lies between two edges [2, K, 2], on a grid of so many points a side.

    Where the edges cross, half of the thickness on either side of the middle is filled all the same, so that the outline stays one part.
    """
    image = Image.new("1", (points, points))
    draw = ImageDraw.Draw(image)
    middle, half = edges.mean(0), (edges[0] - edges[1]) / 2
    inner = np.stack([middle + half / 2, middle - half / 2])
    rungs = [np.concatenate([inner[0, number:number + 2], inner[1, number:number + 2][::-1]]) for number in range(len(middle) - 1)]
    for polygon in (np.concatenate([edges[0], edges[1][::-1]]), *rungs):
        draw.polygon([(float(x), float(y)) for x, y in np.clip(polygon * points - 0.5, 0, points - 1)], fill=1, outline=1)
    return np.asarray(image, dtype=np.bool_)


def _one_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask, its holes filled; what touches by a corner is connected, or thin tips would be lost."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count > 1:
        mask = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=np.bool_)
