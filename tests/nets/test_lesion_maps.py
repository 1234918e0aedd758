"""Lesions drawn as soft spots: the map says what the numbers say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from synthorax.nets.lesion_maps import lesion_maps
from synthorax.protocols import LESION_PROPERTIES


def maps_of(**stated: float) -> Tensor:
    """The maps of one finding, [3, 64, 64]."""
    lesions = torch.full((1, 1, len(LESION_PROPERTIES)), math.nan)
    for name, value in stated.items():
        lesions[0, 0, LESION_PROPERTIES.index(name)] = value
    return lesion_maps(lesions, (64, 64))[0]


@pytest.mark.parametrize(("x", "y", "size"), [(0.3, 0.4, 0.2), (0.7, 0.6, 0.4)])
def test_a_spot_lies_at_its_centre_and_is_as_large_as_the_lesion(x: float, y: float, size: float) -> None:
    """A Gaussian of radius r has the area 2 pi r^2, twice that of the disc; its centre of mass is the stated one."""
    place, plain, large = maps_of(x=x, y=y, size=size, severity=0.25)
    grid = (torch.arange(64) + 0.5) / 64
    assert (place.sum(0) @ grid / place.sum()).item() == pytest.approx(x, abs=0.01)
    assert (place.sum(1) @ grid / place.sum()).item() == pytest.approx(y, abs=0.01)
    assert place.mean().item() == pytest.approx(2 * (size / 2) ** 2, rel=0.02)
    torch.testing.assert_close(plain, 0.25 * place)
    torch.testing.assert_close(large, size * place)


def test_a_side_alone_is_that_half_and_nothing_stated_is_nothing() -> None:
    left = maps_of(left=1.0)[0]
    assert left[:, 40:].min() > 0.9 and left[:, :24].max() < 0.1, "the patient's left is on the right of the image"
    torch.testing.assert_close(maps_of(left=0.0)[0], left.flip(1))
    assert torch.equal(maps_of(), torch.zeros(3, 64, 64)) and torch.equal(maps_of(size=0.5, severity=1.0), torch.zeros(3, 64, 64))


def test_a_height_alone_is_a_band_and_with_a_side_half_of_it() -> None:
    low, low_left = maps_of(y=0.8)[0], maps_of(y=0.8, left=1.0)[0]
    assert low[51].min() > 0.99 and low[:20].max() < 0.01 and torch.equal(low, low.flip(1))
    assert low_left[51, 40:].min() > 0.9 and low_left[51, :24].max() < 0.1
    assert torch.equal(maps_of(x=0.3), torch.zeros(3, 64, 64)), "a distance from the left edge alone says no more than a side"


def test_findings_have_maps_of_their_own() -> None:
    lesions = torch.full((2, 3, len(LESION_PROPERTIES)), math.nan)
    lesions[1, 2] = torch.tensor([1.0, 0.3, 0.8, 0.7, 0.5])
    maps = lesion_maps(lesions, (16, 16))
    assert maps.shape == (2, 9, 16, 16) and not bool(maps[0].any())
    assert [bool(channel.any()) for channel in maps[1]] == [False, False, True] * 3
