"""A lesion as a volume: how much more it attenuates than the lung around it, in mm of water per mm, turned and resampled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from synthorax.errors import UsageError

Rotation = NDArray[np.floating[Any]]
"""[3, 3], proper: it turns axes (depth, rows, columns) without mirroring them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionVolume:
    """A lesion in cubic voxels. Axes are those of a frontal image: depth along the beam, rows downwards, columns to the right."""

    water: NDArray[np.float32]
    """[D, H, W]: excess attenuation over the surrounding lung, in mm of water per mm of path, 0.85 for soft tissue; 0 outside the lesion,
    but for voxels of which it fills less than half"""
    mask: NDArray[np.bool_]
    """[D, H, W]: voxels of the lesion"""
    spacing_mm: float
    """side of a voxel"""

    def __post_init__(self) -> None:
        """Refuse what is no lesion."""
        if self.water.ndim != 3 or self.water.shape != self.mask.shape or self.mask.dtype != np.bool_:
            raise UsageError(f"a lesion has water and a bool mask of one shape [D, H, W], not {self.water.shape} and {self.mask.shape} of "
                             f"{self.mask.dtype}")
        if not math.isfinite(self.spacing_mm) or self.spacing_mm <= 0:
            raise UsageError(f"voxels of {self.spacing_mm:g} mm cannot be; give their side in mm, above 0")
        if not np.isfinite(self.water).all():
            raise UsageError("the attenuation of the lesion has values that are not finite numbers")
        if not self.mask.any():
            raise UsageError("the mask of the lesion is empty")

    @property
    def volume_mm3(self) -> float:
        """Volume of the mask."""
        return float(self.mask.sum()) * self.spacing_mm**3

    @property
    def diameter_mm(self) -> float:
        """Diameter of the sphere that has the volume of the mask."""
        return float(np.cbrt(6 * self.volume_mm3 / math.pi))


def resampled(lesion: LesionVolume, *, rotation: Rotation | None = None, scale: float = 1.0,
              spacing_mm: float | None = None) -> LesionVolume:
    """The lesion turned about its centre, made `scale` times as large, in voxels of `spacing_mm` (its own, if not given).

    Water and mask are interpolated linearly, and averaged where the new voxels are larger than the old; the new mask is where a half or
    more of a voxel is inside. A larger lesion has the same attenuation per mm, so its line integrals grow with it. The new volume is just
    large enough. Raises UsageError for a matrix that is no rotation (a mirror image is none), and where the voxels are so large that
    nothing is left.

    >>> small = LesionVolume(water=np.ones((4, 4, 4), np.float32), mask=np.ones((4, 4, 4), bool), spacing_mm=1.0)
    >>> round(resampled(small, scale=2).volume_mm3 / small.volume_mm3)
    8
    """
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
    if turn.shape != (3, 3) or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6) or np.linalg.det(turn) < 0:
        raise UsageError("the rotation is not a matrix [3, 3] that turns without mirroring")
    spacing = lesion.spacing_mm if spacing_mm is None else spacing_mm
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(spacing) and spacing > 0):
        raise UsageError(f"a scale of {scale:g} and voxels of {spacing:g} mm cannot be; both must be above 0")
    where = np.argwhere(lesion.mask)
    low, high = where.min(0), where.max(0)
    centre = (low + high) / 2  # in voxels
    corners = np.stack(np.meshgrid(*np.stack([low - 0.5, high + 0.5], axis=1) - centre[:, None], indexing="ij"), axis=-1).reshape(-1, 3)
    reach = np.abs(corners @ turn.T).max(0) * lesion.spacing_mm * scale / spacing
    shape = tuple(int(side) for side in np.ceil(2 * reach - 1e-6) + 2)  # one voxel of margin on each side
    parts = max(1, math.ceil(spacing / (lesion.spacing_mm * scale) - 1e-6))  # samples a side of a new voxel
    fine = tuple(side * parts for side in shape)
    matrix = turn.T * (spacing / parts / (lesion.spacing_mm * scale))  # from new samples to old voxels
    offset = centre - matrix @ ((np.array(fine) - 1) / 2)

    def sampled(values: NDArray[Any]) -> NDArray[np.float64]:
        found = affine_transform(values.astype(np.float64), matrix, offset, output_shape=fine, order=1, mode="grid-constant")
        return np.asarray(found.reshape(shape[0], parts, shape[1], parts, shape[2], parts).mean((1, 3, 5)))

    water, mask = sampled(lesion.water), sampled(lesion.mask) >= 0.5 - 1e-9
    if not mask.any():
        raise UsageError(f"nothing of the lesion is left in voxels of {spacing:g} mm; use smaller ones")
    return LesionVolume(water=water.astype(np.float32), mask=mask, spacing_mm=spacing)


def random_rotation(rng: np.random.Generator) -> Rotation:
    """A rotation [3, 3] from the uniform distribution over all of them (from a random unit quaternion, Shoemake 1992)."""
    w, x, y, z = (part := rng.standard_normal(4)) / np.linalg.norm(part)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def from_hounsfield(units: NDArray[Any], mask: NDArray[np.bool_], *, spacing_mm: float, lung: float) -> LesionVolume:
    """The lesion of a CT: Hounsfield units [D, H, W] of it and its surroundings, where the lung around it has `lung`.

    Water attenuates 1 mm per mm and has 0 units, air 0 and -1000; so the excess is (units - lung) / 1000 mm of water per mm. What is
    less dense than the lung counts as lung.
    """
    excess = np.clip((np.asarray(units, dtype=np.float64) - lung) / 1000, 0, None)
    return LesionVolume(water=np.where(mask, excess, 0).astype(np.float32), mask=mask, spacing_mm=spacing_mm)
