"""Distances between outlines: small where nothing differs, and large in the property in which a planted fault lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthorax.data.layouts import Shape
from synthorax.errors import InputError
from synthorax.evaluation.metrics.layouts import PROPERTIES, layout_distances


def shapes(num: int, seed: int) -> list[Shape]:
    rng = np.random.default_rng(seed)
    return [Shape(size=float(rng.uniform(0.2, 0.6)), x=float(rng.normal(0.5, 0.1)), y=float(rng.normal(0.7, 0.1)),
                  elongation=float(np.exp(abs(rng.normal(0.3, 0.2)))), solidity=float(rng.uniform(0.7, 1)),
                  roughness=float(np.exp(rng.uniform(0.1, 0.6)))) for _ in range(num)]


def distances_to(made: list[Shape]) -> dict[str, tuple[float, float, float]]:
    found = layout_distances(shapes(80, 1), made, shapes(200, 2), images=[str(number // 2) for number in range(80)])
    return {one.property: (one.value, one.low, one.floor) for one in found}


def test_equal_distributions_are_as_far_apart_as_real_ones() -> None:
    assert all(value < 2.5 * floor and low < 2.5 * floor for value, low, floor in distances_to(shapes(80, 3)).values())


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_planted_fault_is_seen_in_its_property_alone(name: str) -> None:
    faulty = [replace(shape, **{name: getattr(shape, name) * 1.6}) for shape in shapes(80, 3)]
    for other, (value, low, floor) in distances_to(faulty).items():
        assert (low > 2.5 * floor) if other == name else (value < 2.5 * floor), other


def test_too_few_outlines_are_refused() -> None:
    with pytest.raises(InputError, match="3 drawn"):
        layout_distances(shapes(9, 0), shapes(3, 0), shapes(9, 0), images=list("abcdefghi"))
