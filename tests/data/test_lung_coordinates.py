"""Outlines in coordinates of the lungs: round trips, sides, sizes, shapes against closed forms, and variation that is no copy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthorax.data.layouts import (
    Frame,
    Layout,
    frame_of,
    in_image,
    layout_of_mask,
    layout_of_polygon,
    outline_mask,
    overlap,
    scaled,
    shape_of,
    varied,
)
from synthorax.errors import InputError, UsageError
from synthorax.outline_grid import MARGIN, soft_outline

RIGHT, LEFT = (10.0, 20.0, 50.0, 100.0), (70.0, 20.0, 110.0, 100.0)
SHAPE = (128, 120)


def ellipse(x: float, y: float, across: float, down: float) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 100, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("side", ["right", "left"])
def test_points_come_back_and_the_chest_wall_is_at_1_on_both_sides(side: str) -> None:
    frame = frame_of("Effusion", side, right=RIGHT, left=LEFT)
    points = np.random.default_rng(0).uniform(0, 120, (50, 2))
    np.testing.assert_allclose(frame.to_image(frame.to_frame(points)), points, atol=1e-9)
    wall = {"right": RIGHT[0], "left": LEFT[2]}[side]
    mediastinum = {"right": RIGHT[2], "left": LEFT[0]}[side]
    np.testing.assert_allclose(frame.to_frame(np.array([[wall, 20.0], [mediastinum, 100.0]])), [[1, 0], [0, 1]], atol=1e-12)


def test_findings_of_the_middle_have_one_frame_over_both_lungs_that_is_not_mirrored() -> None:
    frame = frame_of("Cardiomegaly", "", right=RIGHT, left=LEFT)
    assert frame.box == (10.0, 20.0, 110.0, 100.0) and not frame.mirrored
    with pytest.raises(UsageError, match="neither left nor right"):
        frame_of("Effusion", "", right=RIGHT, left=LEFT)
    with pytest.raises(UsageError, match="no area"):
        frame_of("Effusion", "left", right=RIGHT, left=(math.nan,) * 4)


@pytest.mark.parametrize(("finding", "side", "centre"), [("Mass", "right", (30, 60)), ("Mass", "left", (90, 60)),
                                                         ("Cardiomegaly", "", (62, 70))])
def test_an_outline_comes_back_to_where_it_was(finding: str, side: str, centre: tuple[float, float]) -> None:
    frame = frame_of(finding, side, right=RIGHT, left=LEFT)
    points = ellipse(*centre, 9, 14) + np.array([[2, 0]]) * (np.arange(100) < 25)[:, None]  # not symmetric
    layout = layout_of_polygon(points, frame, shape=SHAPE, finding=finding, side=side)
    drawn = outline_mask(points, shape=SHAPE)
    assert dice(in_image(layout, frame, SHAPE), drawn) > 0.93
    assert overlap(layout_of_mask(drawn, frame, finding=finding, side=side), layout) > 0.93


def test_an_outline_lies_at_the_same_place_of_other_lungs() -> None:
    """From a right lung to a smaller one, and to the left lung, where near the wall stays near the wall."""
    frame = frame_of("Mass", "right", right=RIGHT, left=LEFT)
    layout = layout_of_polygon(ellipse(18, 40, 5, 8), frame, shape=SHAPE, finding="Mass", side="right")
    for box, mirrored in (((4.0, 10.0, 24.0, 50.0), True), (LEFT, False)):
        there = in_image(layout, Frame(box=box, mirrored=mirrored), SHAPE)
        place = Frame(box=box, mirrored=mirrored).to_frame(np.argwhere(there)[:, ::-1] + 0.5).mean(axis=0)
        np.testing.assert_allclose(place, [0.8, 0.25], atol=0.02)


def test_a_strip_thinner_than_a_cell_survives() -> None:
    frame = Frame(box=(100.0, 100.0, 740.0, 740.0))  # a cell is 14 pixels
    strip = np.array([[200, 300], [600, 300], [600, 311], [200, 311]], dtype=float)
    layout = layout_of_polygon(strip, frame, shape=(840, 840), finding="Pneumothorax", side="left")
    found = in_image(layout, frame, (840, 840))
    columns = np.flatnonzero(found.any(0))
    assert len(columns) > 350 and dice(found, outline_mask(strip, shape=(840, 840))) > 0.6


@pytest.mark.parametrize(("across", "down"), [(20, 20), (10, 30)])
def test_sizes_places_and_shapes_are_those_of_ellipses(across: float, down: float) -> None:
    layout = layout_of_polygon(ellipse(40, 60, across, down), Frame(box=(0, 0, 100, 100)), shape=(100, 100), finding="Mass", side="left")
    shape = shape_of(layout)
    assert shape.size == pytest.approx(math.sqrt(math.pi * across * down) / 100, rel=0.03)
    assert (shape.x, shape.y) == (pytest.approx(0.4, abs=0.01), pytest.approx(0.6, abs=0.01))
    assert shape.elongation == pytest.approx(max(across, down) / min(across, down), rel=0.04)
    assert shape.solidity > 0.96
    h = ((across - down) / (across + down)) ** 2  # Ramanujan's perimeter of an ellipse
    perimeter = math.pi * (across + down) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
    assert shape.roughness == pytest.approx(perimeter**2 / (4 * math.pi * math.pi * across * down), rel=0.06)


def test_a_notch_is_less_solid_and_rougher() -> None:
    whole = np.zeros((64, 64), dtype=bool)
    whole[16:48, 16:48] = True
    notched = whole.copy()
    notched[28:36, 16:40] = False
    one, other = (shape_of(Layout(finding="Mass", side="left", grid=soft_outline(mask, cells=64))) for mask in (whole, notched))
    assert one.solidity > 0.95 > 0.85 > other.solidity and other.roughness > 1.5 * one.roughness
    with pytest.raises(UsageError, match="empty"):
        shape_of(Layout(finding="Mass", side="left", grid=np.full((64, 64), -1, dtype=np.float32)))


def test_what_is_no_outline_is_refused() -> None:
    frame = Frame(box=(0, 0, 100, 100))
    for points, said in (([[1, 1], [2, 2]], "three points"), ([[1, 1], [2, 2], [3, math.nan]], "three points"),
                         ([[1, 1], [200, 2], [3, 9]], "leaves its image of 100 x 100"), ([[-3, 1], [9, 2], [3, 9]], "leaves its image")):
        with pytest.raises(InputError, match=said):
            layout_of_polygon(points, frame, shape=(100, 100), finding="Mass", side="left")
    far = np.zeros((100, 100), dtype=bool)
    far[90:, 90:] = True
    with pytest.raises(InputError, match="outside the lung"):
        layout_of_mask(far, Frame(box=(0, 0, 20, 20)), finding="Mass", side="left")


def test_variation_changes_an_outline_by_its_seed_and_keeps_the_size_that_is_asked_for() -> None:
    layout = layout_of_polygon(ellipse(50, 50, 18, 12), Frame(box=(0, 0, 100, 100)), shape=(100, 100), finding="Mass", side="left")
    made = [varied(layout, np.random.default_rng(seed), size=0.35) for seed in range(20)]
    assert all(shape_of(one).size == pytest.approx(0.35, rel=0.03) for one in made)
    alike = [overlap(layout, one) for one in made]
    assert 0.4 < np.median(alike) < 0.9
    assert np.array_equal(varied(layout, np.random.default_rng(3), size=0.35).grid, made[3].grid)
    assert shape_of(scaled(layout, size=0.1)).size == pytest.approx(0.1, rel=0.05)
    centre = shape_of(scaled(layout, size=0.5))
    assert (centre.x, centre.y) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02)) and MARGIN > 0
