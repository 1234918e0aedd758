"""Lesions of a bank on one grid: shape apart from size, and attenuation apart from the vessels and the chest wall around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthorax.data.lesion_shape import LesionMeasures, diameter_of, main_body, measure, signed_distance, volume_of
from synthorax.data.nodule_bank import CtLesion

Array = NDArray[np.float64]
BOX_DIAMETERS = 2.0
"""side of the grid in diameters of the lesion"""
MAX_WATER = 2.4
"""excess attenuation at which values are cut off: that of calcium at about 1500 HU"""
MIN_VOXELS = 20
"""lesions of fewer voxels of the CT have no shape to learn from"""
MIN_MAIN_SHARE = 0.5
"""a mask whose largest part has less of the volume is no single lesion"""
LUNG_HU = (-990.0, -600.0)
"""what counts as lung around a lesion"""
LUNG_FROM_MM, LUNG_TO_MM = 2.0, 6.0
MIN_LUNG_VOXELS = 20
RIM_MM = (0.0, 0.5, 1.5, 2.5)
"""distances outside the mask at which the rim is measured; at the last one nothing is left"""
_EDGE_BLUR = 0.5  # voxels of the CT: takes the stairs of a voxel mask away


@dataclass(frozen=True, kw_only=True, slots=True)
class GriddedLesion:
    """A lesion on a grid of side `BOX_DIAMETERS` diameters, centred, axes as in the CT."""

    distance: NDArray[np.float32]
    """[S, S, S]: signed distance to the surface in voxels of the grid, above 0 inside"""
    water: NDArray[np.float32]
    """[S, S, S]: excess attenuation over the lung, mm of water per mm, with its rim; 0 elsewhere"""
    diameter_mm: float
    lung_hu: float
    """median of the lung around it"""

    @property
    def spacing_mm(self) -> float:
        """Side of a voxel."""
        return BOX_DIAMETERS * self.diameter_mm / len(self.water)

    def measures(self) -> LesionMeasures:
        """What `lesion_shape.measure` says of it."""
        return measure(self.distance, self.water, spacing_mm=self.spacing_mm, lung_hu=self.lung_hu)


class UnusableError(Exception):
    """A lesion that cannot be used; the message says why."""


def lung_around(lesion: CtLesion) -> float:
    """Median Hounsfield units of the lung 2 to 6 mm from a lesion. Raises `UnusableError` where there is none."""
    away = -signed_distance(lesion.mask, spacing_mm=lesion.spacing_mm)
    units = lesion.hounsfield[(away > LUNG_FROM_MM) & (away <= LUNG_TO_MM)]
    units = units[(units > LUNG_HU[0]) & (units < LUNG_HU[1])]
    if len(units) < MIN_LUNG_VOXELS:
        raise UnusableError("has no lung around it to compare with")
    return float(np.median(units))


def body_of(lesion: CtLesion) -> NDArray[np.bool_]:
    """The mask's largest connected part without holes. Raises `UnusableError` where it is no lesion to learn from."""
    if not lesion.mask.any():
        raise UnusableError("has an empty mask")
    body = main_body(lesion.mask)
    if body.sum() < MIN_MAIN_SHARE * lesion.mask.sum():
        raise UnusableError("has a mask of many parts")
    if body.sum() < MIN_VOXELS:
        raise UnusableError(f"has fewer than {MIN_VOXELS} voxels")
    return body


def measured_rim(lesions: Iterable[CtLesion]) -> tuple[float, ...]:
    """The soft rim that partial volume leaves outside a mask: excess attenuation at `RIM_MM` in parts of that inside.

    At each distance the median over a lesion's voxels, which vessels and the chest wall, being the smaller part of what surrounds a nodule,
    do not move; then the upper quartile over lesions. At 0 mm the mean of both sides of the surface.
    """
    found: list[list[float]] = []
    for lesion in lesions:
        try:
            body, lung = body_of(lesion), lung_around(lesion)
        except UnusableError:
            continue
        distance = signed_distance(body, spacing_mm=lesion.spacing_mm)
        excess = (lesion.hounsfield - lung) / 1000
        core = float(np.median(excess[body]))
        shells = [float(np.median(excess[(distance > -at - 0.5) & (distance <= -at + 0.5)])) / core for at in RIM_MM[1:3]]
        inside = float(np.median(excess[(distance > 0) & (distance <= 1)])) / core
        found.append([(inside + shells[0]) / 2, *shells])
    return (*np.clip(np.quantile(found, 0.75, axis=0), 0, 1).round(3).tolist(), 0.0)


def gridded(lesion: CtLesion, *, side: int, rim: tuple[float, ...]) -> GriddedLesion:
    """A lesion on a grid of `side` voxels. Raises `UnusableError` with the reason.

    What is outside the mask counts as the lesion's only as far as `rim` (see `measured_rim`) allows, so that neither vessels nor the chest
    wall come along. The surface is shifted until the volume is that of the mask.
    """
    from scipy import ndimage  # here, because training on borrowed machines has no SciPy

    body, lung = body_of(lesion), lung_around(lesion)
    voxel = float(np.prod(lesion.spacing_mm))
    diameter = diameter_of(float(body.sum()) * voxel)
    spacing = BOX_DIAMETERS * diameter / side
    centre = np.array(ndimage.center_of_mass(body))
    places = (np.arange(side) - (side - 1) / 2) * spacing
    where = np.stack(np.meshgrid(*(centre[axis] + places / lesion.spacing_mm[axis] for axis in range(3)), indexing="ij"))
    reach = np.argwhere(body)
    if (np.abs(reach - centre) * lesion.spacing_mm + np.array(lesion.spacing_mm) / 2).max() > BOX_DIAMETERS * diameter / 2:
        raise UnusableError(f"reaches farther than {BOX_DIAMETERS / 2:g} diameters from its centre")
    pad = 1 + int(np.ceil(BOX_DIAMETERS * diameter / min(lesion.spacing_mm) / 2))  # so that the distance goes on outside the crop
    smooth = ndimage.gaussian_filter(signed_distance(np.pad(body, pad), spacing_mm=lesion.spacing_mm), _EDGE_BLUR)
    distance = ndimage.map_coordinates(smooth, where + pad, order=1, mode="nearest") / spacing
    distance -= _level_of_volume(distance, float(body.sum()) * voxel / spacing**3)
    excess = ndimage.map_coordinates((lesion.hounsfield - lung) / 1000.0, where, order=1, mode="nearest")
    core = float(np.median(excess[distance > 0]))
    allowed = np.interp(-distance * spacing, RIM_MM, rim) * core
    water = np.where(distance > 0, excess, np.minimum(excess, allowed))
    return GriddedLesion(distance=distance.astype(np.float32), water=np.clip(water, 0, MAX_WATER).astype(np.float32),
                         diameter_mm=diameter, lung_hu=lung)


def _level_of_volume(distance: Array, volume: float) -> float:
    """How far the surface has to move inwards, in voxels, for the shape to have this volume."""
    low, high = -3.0, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if volume_of(distance - middle) > volume else (low, middle)
    return (low + high) / 2
