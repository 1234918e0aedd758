"""Lesions as a network sees them: two quantities in [-1, 1] a voxel, and three measurements in [0, 1] a lesion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.lesion_grid import BOX_DIAMETERS, MAX_WATER
from synthorax.data.lesion_shape import LesionMeasures

QUANTITIES = ("shape", "attenuation")
"""channels of a volume: the signed distance to the surface in radii, cut off at 1, and the square root of the excess attenuation"""
MEASUREMENTS = ("diameter", "margin", "solidity")
"""what is stated of a lesion"""
DIAMETERS_MM = (3.0, 60.0)
"""diameters that become 0 and 1, on a logarithmic scale"""
LEAST_SPHERE = 0.5
"""sphericity of a margin of 1"""


def to_unit_volume(distance: NDArray[np.floating[Any]], water: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Signed distance in voxels and excess attenuation, each [..., S, S, S] -> [..., 2, S, S, S] in [-1, 1].

    The square root gives ground glass, and the noise of a CT at every density, about the same room.
    """
    radius = distance.shape[-1] / BOX_DIAMETERS / 2
    shape = np.clip(distance / radius, -1, 1)
    attenuation = 2 * np.sqrt(np.clip(water, 0, MAX_WATER) / MAX_WATER) - 1
    return np.stack([shape, attenuation], axis=-4).astype(np.float32)


def from_unit_volume(volume: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The inverse of `to_unit_volume`."""
    values = np.clip(np.asarray(volume, dtype=np.float64), -1, 1)
    shape, attenuation = np.moveaxis(values, -4, 0)
    return shape * (volume.shape[-1] / BOX_DIAMETERS / 2), MAX_WATER * ((attenuation + 1) / 2) ** 2


def diameter_unit(diameter_mm: float) -> float:
    """A diameter as its measurement in [0, 1]; NaN stays NaN.

    >>> diameter_unit(3.0), diameter_unit(60.0)
    (0.0, 1.0)
    """
    low, high = (math.log(end) for end in DIAMETERS_MM)
    return float(np.clip((math.log(diameter_mm) - low) / (high - low), 0, 1))


def margin_of(sphericity: float) -> float:
    """Margin, from 0 (smooth, a sphere) to 1 (spiculated or lobed, sphericity `LEAST_SPHERE` or less)."""
    return float(np.clip((1 - sphericity) / (1 - LEAST_SPHERE), 0, 1))


def measurements_of(measures: LesionMeasures) -> tuple[float, float, float]:
    """What `MEASUREMENTS` names, each in [0, 1]; solidity is the share of the volume above -160 HU."""
    return diameter_unit(measures.diameter_mm), margin_of(measures.sphericity), measures.solid_share
