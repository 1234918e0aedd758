"""The grid that outlines of findings are kept on: what the data write, what the family that draws them makes, and how large one is.

Values of the grid are tanh(d / `SOFTNESS`): d is the distance to the outline in cells, positive inside. So a strip much thinner than a cell
still has an outline, at 0, which a mask of the same grid would lose.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MARGIN = 0.2
"""of the lung's box, by which the grid is wider than the box on each side"""
SOFTNESS = 2.0
"""cells; a lower one keeps thin findings better, a higher one tells the model more of what is far from the outline"""
SUPERSAMPLING = 4
"""points of a cell's side at which distances are measured"""
FAR = 10
"""cells from the box of an outline beyond which a value counts as -1; there it is below -0.9999"""


def soft_outline(inside: NDArray[np.bool_], *, cells: int) -> NDArray[np.float32]:
    """tanh of the distance to the outline, from a mask of several points a cell, [S k, S k] -> [S, S] in (-1, 1), positive inside."""
    points = len(inside) // cells
    if not inside.any():
        return np.full((cells, cells), -1.0, dtype=np.float32)
    rows, columns = (_cells_around(np.asarray(inside.any(axis)), cells=cells) for axis in (1, 0))
    part = inside[rows.start * points:rows.stop * points, columns.start * points:columns.stop * points]
    distance = ndimage.distance_transform_edt(part) - ndimage.distance_transform_edt(~part)
    distance = np.where(part, distance - 0.5, distance + 0.5) / points
    means = distance.reshape(rows.stop - rows.start, points, columns.stop - columns.start, points).mean(axis=(1, 3))
    grid = np.full((cells, cells), -1.0, dtype=np.float32)
    grid[rows, columns] = np.tanh(means / SOFTNESS)
    return grid


def _cells_around(profile: NDArray[np.bool_], *, cells: int) -> slice:
    """The cells of a profile [S k] with an inside, and `FAR` more on either side."""
    points = len(profile) // cells
    found = np.flatnonzero(profile) // points
    return slice(max(0, int(found[0]) - FAR), min(cells, int(found[-1]) + FAR + 1))


def inside_of(grid: NDArray[np.float32], *, points: int = 3) -> NDArray[np.bool_]:
    """Where a grid [S, S] is inside, `points` times finer, [S k, S k]; odd, so that no centre of a cell is missed."""
    return np.asarray(ndimage.zoom(grid, points, order=1, grid_mode=True, mode="nearest") > 0)


def size_of(inside: NDArray[np.bool_]) -> float:
    """The square root of the area of a fine mask of the grid, [S k, S k], in parts of the lung's box; at most 1."""
    return min(1.0, math.sqrt(float(inside.sum())) * (1 + 2 * MARGIN) / len(inside))
