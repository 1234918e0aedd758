"""The gradient test for seams: an inserted lesion may not be steeper where it ends than the image is nearby."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt

BESIDE = (-4, -3, -2, 2, 3, 4)
"""lines beside the border, in pixels, that it is compared with"""


def seam(pixels: NDArray[Any], changed: NDArray[np.bool_]) -> float:
    """How steep an image [H, W] is across the border of a region [H, W], over the steepest of six lines beside it; 1 is no steeper.

    Lines are contours of the distance from the border; steepness is the mean difference of neighbours on its two sides. Borders that are
    those of the image do not count. 0 where the region has no border.
    """
    image = np.asarray(pixels, dtype=np.float64)
    depth = distance_transform_edt(changed) - distance_transform_edt(~changed)  # > 0 inside, and 0 nowhere
    depth = np.where(depth > 0, depth - 0.5, depth + 0.5)

    def step(shift: int) -> float:
        inside = depth > shift
        across = [np.abs(np.diff(image, axis=axis))[np.diff(inside, axis=axis)] for axis in (0, 1)]
        pairs = np.concatenate(across)
        return float(pairs.mean()) if len(pairs) else 0.0

    beside = max(step(shift) for shift in BESIDE)
    border = step(0)
    return border / beside if beside else math.inf if border else 0.0


def seam_ratio(host: NDArray[Any], result: NDArray[Any]) -> float:
    """The seam of a result along the border of what was changed, over the host's own along the same line; about 1 where none shows."""
    changed = host != result
    if not changed.any():
        return 1.0
    near = window_around(changed, margin=8)
    filled = _without_holes(changed[near])
    own = seam(host[near], filled)
    return seam(result[near], filled) / own if own else 1.0


def window_around(region: NDArray[np.bool_], *, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the box of a region [H, W] that is not empty, with `margin` pixels around it where the image has them."""
    rows, columns = (np.nonzero(region.any(axis=axis))[0] for axis in (1, 0))
    return slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin), slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin)


def _without_holes(changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The changed region with pixels that kept their grey level by chance filled in."""
    padded = np.pad(changed, 4)
    return np.asarray(binary_fill_holes(binary_closing(padded, iterations=3))[4:-4, 4:-4])
