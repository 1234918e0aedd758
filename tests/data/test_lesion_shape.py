"""Measures of shapes against closed forms, and that turning a lesion does not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthorax.data.lesion_shape import (
    diameter_of,
    main_body,
    measure,
    roughness,
    signed_distance,
    sphericity,
    surface_of,
    volume_of,
)
from synthorax.errors import UsageError
from synthorax.training.volume_feed import SYMMETRIES

GRID = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
RADIUS_OF = np.sqrt((GRID**2).sum(0))


def box(*halves: float) -> np.ndarray:
    """Signed distance of a box, exact."""
    away = np.abs(GRID) - np.array(halves)[:, None, None, None]
    return -(np.sqrt((np.maximum(away, 0) ** 2).sum(0)) + np.minimum(away.max(0), 0))


@pytest.mark.parametrize("radius", [5.0, 8.0, 10.3])
def test_a_sphere(radius: float) -> None:
    distance = radius - RADIUS_OF
    assert volume_of(distance) == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)
    assert surface_of(distance) == pytest.approx(4 * math.pi * radius**2, rel=0.015)
    assert sphericity(distance) == pytest.approx(1.0, abs=0.025)
    assert diameter_of(volume_of(distance)) == pytest.approx(2 * radius, rel=0.01)


@pytest.mark.parametrize("halves", [(8.0, 8.0, 8.0), (5.0, 7.0, 9.0)])
def test_a_box(halves: tuple[float, float, float]) -> None:
    a, b, c = (2 * half for half in halves)
    assert volume_of(box(*halves)) == pytest.approx(a * b * c, rel=0.03)
    assert surface_of(box(*halves)) == pytest.approx(2 * (a * b + b * c + a * c), rel=0.04)
    if a == b == c:
        assert sphericity(box(*halves)) == pytest.approx((math.pi / 6) ** (1 / 3), rel=0.03)


def test_signed_distance_is_that_of_the_surface_between_voxels() -> None:
    distance = signed_distance(np.abs(GRID).max(0) < 6, spacing_mm=(2.0, 2.0, 2.0))
    assert distance[16, 16, 16 + 5] == pytest.approx(1.0) and distance[16, 16, 16 + 6] == pytest.approx(-1.0)


def test_bumps_make_a_surface_rough_and_less_spherical() -> None:
    smooth = 9 - RADIUS_OF
    angle = np.arctan2(GRID[1], GRID[2])
    bumpy = smooth + 1.5 * np.cos(8 * angle) * np.sin(np.arccos(np.clip(GRID[0] / RADIUS_OF, -1, 1)))
    assert roughness(bumpy, diameter=18) > 2 * roughness(smooth, diameter=18)
    assert sphericity(bumpy) < sphericity(smooth) - 0.05


@pytest.mark.parametrize("position", range(len(SYMMETRIES)))
def test_measures_do_not_change_when_a_lesion_is_turned_or_mirrored(position: int) -> None:
    axes, flips = SYMMETRIES[position]
    distance = box(5.0, 7.0, 9.0) + 0.7 * np.sin(GRID[0] / 3)
    water = np.where(distance > 0, 0.5 + GRID[1] / 40, 0.0)
    turned = [np.flip(values.transpose(axes), [axis for axis in range(3) if flips[axis]]) for values in (distance, water)]
    plain, other = (measure(*pair, spacing_mm=0.7, lung_hu=-850) for pair in ((distance, water), turned))
    for name in plain.__slots__:
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=0.01), name


def test_attenuation_inside() -> None:
    distance = 8 - RADIUS_OF
    water = np.where(RADIUS_OF < 4, 0.9, 0.3)
    measured = measure(distance, water, spacing_mm=0.5, lung_hu=-850)
    assert measured.solid_share == pytest.approx(1 / 8, abs=0.02), "-160 HU is 0.69 mm of water per mm above a lung of -850 HU"
    assert measured.mean_water == pytest.approx(0.9 / 8 + 0.3 * 7 / 8, abs=0.02) and measured.peak_water == pytest.approx(0.9)
    assert measured.diameter_mm == pytest.approx(8.0, rel=0.01)
    with pytest.raises(UsageError, match="empty"):
        measure(distance - 20, water, spacing_mm=0.5, lung_hu=-850)


def test_the_main_body_is_the_largest_part_without_holes() -> None:
    inside = (RADIUS_OF < 8) & (RADIUS_OF > 2)
    inside[0, 0, 0] = True
    assert np.array_equal(main_body(inside), RADIUS_OF < 8)
