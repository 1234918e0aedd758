"""Measures of a lesion's shape and attenuation on a grid of cubic voxels, the same for real and for generated ones.

A shape is its signed distance: how far each voxel is from the surface, above 0 inside. It is smooth, so areas and volumes are finer than
voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import UsageError

Array = NDArray[np.float64]
SOLID_HU = -160
"""Hounsfield units above which a part of a nodule is solid (the higher threshold of Lee et al. 2018, PLoS ONE 13(10): e0205490)"""
_CORNERS = np.array([(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)])
_TETRAHEDRA = ((0, 1, 3, 7), (0, 1, 5, 7), (0, 2, 3, 7), (0, 2, 6, 7), (0, 4, 5, 7), (0, 4, 6, 7))  # of a cube, around its diagonal


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionMeasures:
    """What is measured of a lesion."""

    volume_mm3: float
    diameter_mm: float
    """of the sphere of that volume"""
    sphericity: float
    """surface of that sphere in parts of the lesion's own, 1 for a sphere (Wadell 1935); spicules and lobes lower it"""
    roughness: float
    """mean distance between the surface and itself smoothed over an eighth of the diameter, in parts of the diameter"""
    mean_water: float
    """mean excess attenuation inside, mm of water per mm"""
    peak_water: float
    """95th percentile of it"""
    solid_share: float
    """part of the volume above `SOLID_HU`"""


def measure(distance: NDArray[np.floating], water: NDArray[np.floating], *, spacing_mm: float, lung_hu: float) -> LesionMeasures:
    """Measure a lesion: signed distance in voxels and excess attenuation over a lung of `lung_hu`, both [D, H, W].

    Raises UsageError where nothing is inside.
    """
    inside = distance > 0
    if not inside.any():
        raise UsageError("the lesion is empty")
    volume = volume_of(distance)
    diameter = diameter_of(volume)
    values = np.asarray(water, dtype=np.float64)[inside]
    return LesionMeasures(volume_mm3=volume * spacing_mm**3, diameter_mm=diameter * spacing_mm, sphericity=sphericity(distance),
                          roughness=roughness(distance, diameter=diameter), mean_water=float(values.mean()),
                          peak_water=float(np.quantile(values, 0.95)),
                          solid_share=float((values > (SOLID_HU - lung_hu) / 1000).mean()))


def signed_distance(mask: NDArray[np.bool_], *, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Array:
    """How far each voxel's centre is from the surface of the mask, [D, H, W] in mm, above 0 inside."""
    from scipy import ndimage  # here, because training on borrowed machines has no SciPy

    half = float(np.mean(spacing_mm)) / 2  # the surface lies between two voxels
    inner = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    outer = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return np.where(mask, inner - half, half - outer)


def volume_of(distance: NDArray[np.floating]) -> float:
    """Volume of a shape in voxels: parts of voxels at the surface count as parts."""
    slope = np.maximum(_slope(distance), 1e-6)
    return float(np.clip(0.5 + np.asarray(distance, dtype=np.float64) / slope, 0, 1).sum())


def surface_of(distance: NDArray[np.floating]) -> float:
    """Surface of a shape in voxel faces: the area of the triangles that marching tetrahedra make of it (Doi and Koide 1991)."""
    values = np.asarray(distance, dtype=np.float64)
    low = np.moveaxis(np.indices([side - 1 for side in values.shape]), 0, -1)
    corners = np.stack([_at(values, corner) for corner in _CORNERS], axis=-1)  # [D - 1, H - 1, W - 1, 8]
    crossed = (corners > 0).any(-1) & (corners <= 0).any(-1)
    corners, low = corners[crossed], low[crossed]
    total = 0.0
    for tetrahedron in _TETRAHEDRA:
        heights = corners[:, tetrahedron]
        order = np.argsort(-heights, axis=1)  # inside first
        heights = np.take_along_axis(heights, order, axis=1)
        points = low[:, None] + _CORNERS[np.asarray(tetrahedron)[order]]  # [N, 4, 3]
        count = (heights > 0).sum(1)

        def cut(one: int, other: int, rows: NDArray[np.bool_], heights: Array = heights, points: NDArray[np.int_] = points) -> Array:
            part = heights[rows, one] / (heights[rows, one] - heights[rows, other])
            return np.asarray(points[rows, one] + part[:, None] * (points[rows, other] - points[rows, one]))

        for number, edges in ((1, ((0, 1), (0, 2), (0, 3))), (3, ((0, 3), (1, 3), (2, 3))), (2, ((0, 2), (0, 3), (1, 3), (1, 2)))):
            rows = count == number
            around = [cut(*edge, rows) for edge in edges]
            for second, third in pairwise(around[1:]):
                total += float(np.linalg.norm(np.cross(second - around[0], third - around[0]), axis=1).sum()) / 2
    return total


def diameter_of(volume: float) -> float:
    """Diameter of the sphere of this volume."""
    return float(np.cbrt(6 * volume / math.pi))


def sphericity(distance: NDArray[np.floating]) -> float:
    """Surface of the sphere of the same volume in parts of the shape's own: 1 for a sphere, (pi / 6)^(1/3) = 0.806 for a cube."""
    return math.pi * diameter_of(volume_of(distance)) ** 2 / surface_of(distance)


def roughness(distance: NDArray[np.floating], *, diameter: float) -> float:
    """Mean distance between the surface and the surface of the smoothed shape, in parts of the diameter."""
    from scipy import ndimage  # here, because training on borrowed machines has no SciPy

    filled = np.clip(0.5 + np.asarray(distance, dtype=np.float64), 0, 1)
    smooth = ndimage.gaussian_filter(filled, diameter / 8)
    level = np.sort(smooth, axis=None)[::-1][max(0, round(filled.sum()) - 1)]  # of the same volume
    moved = np.abs((smooth - level) / np.maximum(_slope(smooth), 1e-3) - distance)
    near = np.abs(np.asarray(distance)) < 1
    return float(np.minimum(moved[near], diameter).mean() / diameter) if near.any() else 0.0


def main_body(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part, by faces, with its holes filled."""
    from scipy import ndimage  # here, because training on borrowed machines has no SciPy

    parts, count = ndimage.label(inside)
    if count > 1:
        inside = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(inside))


def _at(values: Array, corner: NDArray[np.int_]) -> Array:
    return values[tuple(slice(int(step), side - 1 + int(step)) for step, side in zip(corner, values.shape, strict=True))]


def _slope(distance: NDArray[np.floating]) -> Array:
    """Length of the gradient, a voxel."""
    return np.asarray(np.sqrt(sum(part**2 for part in np.gradient(np.asarray(distance, dtype=np.float64)))))
