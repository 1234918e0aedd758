"""Outlines that a model drew, held against outlines of other patients: size, place and form of each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from synthorax.data.layouts import Shape
from synthorax.errors import InputError

PROPERTIES = ("size", "x", "y", "elongation", "solidity", "roughness")
"""those of `layouts.Shape` that are compared; elongation and roughness by their logarithm, because they have long tails"""
LOGARITHMS = ("elongation", "roughness")
FEWEST = 5
DRAWS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutDistance:
    """How far apart the distributions of one property are, with a 95 % interval, and how far apart those of real outlines are."""

    property: str
    value: float
    """first Wasserstein distance in standard deviations of the held-back outlines; 0 for equal distributions"""
    low: float
    high: float
    floor: float
    """the same between as many training outlines and the held-back ones: the mean of several choices"""
    n_real: int
    n_made: int


def layout_distances(held_back: Sequence[Shape], made: Sequence[Shape], train: Sequence[Shape], *, images: Sequence[str],
                     seed: int = 0) -> list[LayoutDistance]:
    """One distance a property, for outlines of one finding; `images` name the image of each held-back outline.

    The interval is that of the bootstrap: images drawn with replacement, all outlines of an image together, and samples one by one. Finite
    samples have a distance above 0 even where nothing differs, which is what the floor is for. Raises InputError for fewer than `FEWEST`.
    """
    if min(len(held_back), len(made), len(train)) < FEWEST:
        raise InputError(f"{len(held_back)} held-back, {len(made)} drawn and {len(train)} training outlines",
                         remedy=f"take at least {FEWEST} of each")
    rng = np.random.default_rng([seed, 31])
    names, owner = np.unique(np.asarray(images), return_inverse=True)
    rows_of = [np.flatnonzero(owner == number) for number in range(len(names))]
    drawn = [(np.concatenate([rows_of[number] for number in rng.integers(len(names), size=len(names))]),
              rng.integers(len(made), size=len(made))) for _ in range(DRAWS)]
    chosen = [rng.choice(len(train), size=min(len(train), len(made)), replace=False) for _ in range(20)]
    real, other, known = (_columns(shapes) for shapes in (held_back, made, train))
    distances = []
    for name in PROPERTIES:
        unit = max(float(real[name].std()), 1e-9)
        value = wasserstein_distance(real[name], other[name]) / unit
        low, high = np.quantile([wasserstein_distance(real[name][one], other[name][two]) for one, two in drawn], [0.025, 0.975]) / unit
        floor = float(np.mean([wasserstein_distance(real[name], known[name][rows]) for rows in chosen])) / unit
        distances.append(LayoutDistance(property=name, value=float(value), low=float(low), high=float(high), floor=floor,
                                        n_real=len(held_back), n_made=len(made)))
    return distances


def _columns(shapes: Sequence[Shape]) -> Mapping[str, NDArray[np.float64]]:
    values = {name: np.array([getattr(shape, name) for shape in shapes], dtype=np.float64) for name in PROPERTIES}
    return {name: np.log(column) if name in LOGARITHMS else column for name, column in values.items()}
