"""Outlines of findings: one smooth body, air along the wall, fluid below a meniscus, a heart that is the patient's own but larger."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from synthorax.editing.insertion.outlines import count_parts, enlarged_heart, fluid_below, largest_parts, pleural_gap, smooth_outline
from thorax import thorax


@pytest.mark.parametrize(("size", "spacing"), [(256, 1.6), (1024, 0.4)])
def test_a_smooth_outline_has_no_specks_holes_and_spikes(size: int, spacing: float) -> None:
    y, x = np.mgrid[:size, :size] / size
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.15**2
    rough = disc.copy()
    rng = np.random.default_rng(0)
    holes = ndimage.binary_dilation(rng.random(rough.shape) < 20 / size**2, iterations=size // 128)
    rough &= ~holes
    rough |= (np.abs(y - 0.5) < 1 / size) & (x > 0.5) & (x < 0.9)  # a spike
    rough |= (x - 0.1) ** 2 + (y - 0.1) ** 2 < 0.02**2  # a speck
    made = smooth_outline(rough, spacing_mm=spacing, close_mm=4)
    assert count_parts(made) == 1 and np.array_equal(made, ndimage.binary_fill_holes(made))
    assert (made ^ disc).sum() < 0.02 * disc.sum(), "and it is the disc"
    assert count_parts(largest_parts(rough | (x > 0.95))) == 2, "two large bodies both stay, a speck does not"
    edge = np.zeros((size, size), bool)
    edge[: size // 8] = True
    assert np.array_equal(smooth_outline(edge, spacing_mm=spacing), edge), "at the border of the image nothing is eaten"
    thread = np.zeros((size, size), bool)
    thread[size // 2, size // 4 : size // 2] = True
    assert np.array_equal(smooth_outline(thread, spacing_mm=spacing), thread), "what would vanish stays as it was drawn"


def lung_of(side: str, size: int = 256) -> np.ndarray:
    """A lung of the thorax of formulas; the right one is on the left of the image."""
    lungs = thorax(size).lungs
    x = np.arange(size) < size / 2
    return np.asarray(lungs & (x if side == "right" else ~x))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_pneumothorax_is_a_gap_along_the_wall_that_narrows_at_its_ends(side: str) -> None:
    lung = lung_of(side)
    rows, _ = np.nonzero(lung)
    wedge = lung & (np.arange(256)[:, None] < rows.min() + 40)
    made = pleural_gap(wedge, lung)
    assert count_parts(made) == 1 and not (made & ~lung).any()
    assert made.sum() == pytest.approx(wedge.sum(), rel=0.05), "as large as was drawn"
    outer = ndimage.distance_transform_edt(lung)
    assert outer[made].mean() < outer[wedge].mean(), "nearer to the wall than the wedge"
    left = lung & ~made
    assert count_parts(left) == 1, "the lung that is left is one"
    along = [int(made[row].sum()) for row in range(int(np.nonzero(made.any(axis=1))[0][-1]) + 1) if made[row].any()]
    assert along[-1] < 0.3 * max(along), "it narrows downwards"
    low = lung & (np.arange(256)[:, None] > rows.max() - 6)
    assert pleural_gap(low, lung).sum() > 0 and np.array_equal(pleural_gap(~lung, lung), ~lung), "what is no gap stays as it is"


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_effusion_lies_below_a_meniscus_that_rises_to_the_wall(side: str) -> None:
    lung = lung_of(side)
    rows, _ = np.nonzero(lung)
    block = lung & (np.arange(256)[:, None] > np.quantile(rows, 0.75))
    made = fluid_below(block, lung)
    assert count_parts(made) == 1 and not (made & ~lung).any()
    assert made.sum() == pytest.approx(block.sum(), rel=0.02)
    tops = {column: int(np.argmax(made[:, column])) for column in range(256) if made[:, column].any()}
    wall, medial = (min(tops), max(tops)) if side == "right" else (max(tops), min(tops))
    inner, outer = (round(wall + part * (medial - wall)) for part in (0.85, 0.15))
    assert tops[outer] < tops[inner], "higher at the wall"
    for column, top in tops.items():
        assert not (lung[top:, column] & ~made[top:, column]).any(), "and all of the lung below is fluid"


def test_a_large_heart_holds_the_patients_own_and_grows_to_the_left() -> None:
    y, x = np.mgrid[:256, :256]
    heart = ((x - 135) / 32) ** 2 + ((y - 165) / 28) ** 2 < 1
    drawn = ((x - 128) / 48) ** 2 + ((y - 160) / 32) ** 2 < 1
    made = enlarged_heart(drawn, heart)
    assert count_parts(made) == 1 and (made & heart).sum() == heart.sum()
    assert made.sum() == pytest.approx(drawn.sum(), rel=0.03)
    columns = np.nonzero(made.any(axis=0))[0]
    own = np.nonzero(heart.any(axis=0))[0]
    assert columns[-1] - own[-1] > own[0] - columns[0] > 0, "the patient's left is on the right of the image"
    assert enlarged_heart(heart, heart).sum() >= 1.2 * heart.sum(), "a heart as it was is no large heart"
    assert np.array_equal(enlarged_heart(drawn, np.zeros_like(heart)), drawn)
