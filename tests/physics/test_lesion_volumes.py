"""Volumes of lesions: turning and enlarging keep what must be kept."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthorax.errors import UsageError
from synthorax.physics.volumes import LesionVolume, from_hounsfield, random_rotation, resampled


def ellipsoid(axes: tuple[float, float, float] = (9, 6, 4), spacing_mm: float = 1.0, water: float = 0.85) -> LesionVolume:
    grids = np.meshgrid(*[(np.arange(-12, 13)) * spacing_mm] * 3, indexing="ij")
    mask = sum((grid / axis) ** 2 for grid, axis in zip(grids, axes, strict=True)) <= 1
    return LesionVolume(water=np.where(mask, water, 0).astype(np.float32), mask=mask, spacing_mm=spacing_mm)


def moments(lesion: LesionVolume) -> np.ndarray:
    """Covariance of the places of the voxels in mm^2, [3, 3]."""
    return np.cov(np.argwhere(lesion.mask).T * lesion.spacing_mm)


def test_a_turned_lesion_has_its_volume_and_its_axes_turned() -> None:
    lesion, turn = ellipsoid(), random_rotation(np.random.default_rng(3))
    turned = resampled(lesion, rotation=turn, spacing_mm=0.5)
    assert turned.volume_mm3 == pytest.approx(lesion.volume_mm3, rel=0.03)
    np.testing.assert_allclose(moments(turned), turn @ moments(lesion) @ turn.T, atol=0.6)
    assert float(turned.water.sum()) * 0.5**3 == pytest.approx(float(lesion.water.sum()), rel=0.01)


def test_a_quarter_turn_exchanges_axes_to_the_bit() -> None:
    quarter = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    lesion, turned = ellipsoid(), resampled(ellipsoid(), rotation=quarter)
    old, new = (np.ptp(np.argwhere(each.mask), axis=0) for each in (lesion, turned))
    assert new.tolist() == old[[0, 2, 1]].tolist() and turned.mask.sum() == lesion.mask.sum()


def test_a_larger_lesion_is_as_dense() -> None:
    lesion = ellipsoid()
    large = resampled(lesion, scale=1.5)
    assert large.diameter_mm == pytest.approx(1.5 * lesion.diameter_mm, rel=0.02)
    assert large.water.max() == pytest.approx(lesion.water.max(), rel=1e-6)
    assert large.water.sum(0).max() == pytest.approx(1.5 * lesion.water.sum(0).max(), rel=0.06)


def test_random_rotations_are_uniform_and_proper() -> None:
    rng = np.random.default_rng(0)
    turns = np.stack([random_rotation(rng) for _ in range(4000)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    assert np.linalg.det(turns) == pytest.approx(np.ones(4000))
    assert abs(turns.mean(0)).max() < 0.04, "no direction is preferred"
    np.testing.assert_allclose((turns**2).mean(0), np.full((3, 3), 1 / 3), atol=0.02)


def test_hounsfield_units_become_water_over_the_lung() -> None:
    units = np.full((3, 3, 3), -850, np.int16)
    units[1, 1, 1], units[0, 0, 0] = 40, -990
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = mask[0, 0, 0] = True
    lesion = from_hounsfield(units, mask, spacing_mm=0.7, lung=-850)
    assert lesion.water[1, 1, 1] == pytest.approx(0.89) and lesion.water[0, 0, 0] == 0
    assert lesion.diameter_mm == pytest.approx((6 * 2 * 0.7**3 / math.pi) ** (1 / 3))


def test_what_is_no_lesion_is_refused() -> None:
    ones = np.ones((2, 2, 2), np.float32)
    for water, mask, spacing, message in ((ones, np.zeros((2, 2, 2), bool), 1.0, "empty"), (ones, ones, 1.0, "bool mask"),
                                          (ones * np.nan, ones > 0, 1.0, "finite"), (ones, ones > 0, 0.0, "0 mm")):
        with pytest.raises(UsageError, match=message):
            LesionVolume(water=water, mask=mask, spacing_mm=spacing)
    with pytest.raises(UsageError, match="mirroring"):
        resampled(ellipsoid(), rotation=np.diag([1, 1, -1]))
    with pytest.raises(UsageError, match="nothing of the lesion is left"):
        resampled(ellipsoid(axes=(1, 1, 1)), spacing_mm=50)
