"""The grey curve: found again in images of a known one, refused where there is none, and never beyond white."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthorax.errors import InputError
from synthorax.physics.grey_curve import UNCERTAINTY, GreyCurve, estimate_grey_curve, estimate_spacing_mm, heart_edge_mm, noise_of
from thorax import thorax

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("slope", [0.7, 1.1])
def test_a_known_curve_is_found_again(bits: int, slope: float) -> None:
    made = thorax(levels_per_mm=slope, bits=bits)
    curve = estimate_grey_curve(made.pixels, made.lungs, spacing_mm=made.spacing_mm)
    assert curve.levels_per_mm == pytest.approx(made.levels_per_mm, rel=0.2), curve.note
    assert "estimated" in curve.note and f"{UNCERTAINTY:.0%}" in curve.note
    assert curve.noise == pytest.approx(1.5 * (257 if bits == 16 else 1), rel=0.15)
    given = estimate_grey_curve(made.pixels, made.lungs, levels_per_mm=3.0)
    assert given.levels_per_mm == 3 and "given" in given.note


def test_the_edge_of_the_heart_is_an_ellipse() -> None:
    depth = np.linspace(-45, 45, 100_001)
    inside = (depth / 45) ** 2 + (55 / 65) ** 2 <= 1
    assert heart_edge_mm() == pytest.approx(inside.mean() * 90 * 0.74, rel=1e-3)


def test_a_saturated_heart_is_said() -> None:
    made = thorax(white_mm=65)
    assert "saturated" in estimate_grey_curve(made.pixels, made.lungs).note
    assert "saturated" not in estimate_grey_curve(thorax().pixels, thorax().lungs).note


def test_grey_levels_rise_in_proportion_and_stop_at_white() -> None:
    curve = GreyCurve(levels_per_mm=2.0, noise=1.0, black=0.0, white=200.0)
    assert curve.add(np.array([50.0]), np.array([10.0])).item() == 70
    assert curve.add(np.array([50.0]), np.array([-10.0])).item() == 30
    water = np.linspace(0, 500, 2000)
    risen, fallen = curve.add(np.full(2000, 50.0), water), curve.add(np.full(2000, 50.0), -water)
    assert risen.max() <= 200 and fallen.min() >= 0 and (np.diff(risen) >= 0).all() and (np.diff(fallen) <= 0).all()
    assert np.diff(risen).max() <= 2.0 * water[1] * (1 + 1e-9), "no jump at the shoulder"
    halves = curve.add(curve.add(np.full(2000, 50.0), water / 2), water / 2)
    np.testing.assert_allclose(halves, risen, atol=1e-9)
    beyond = np.array([0.0, 250.0])
    assert (curve.add(beyond, np.array([0.0, 5.0])) == beyond).all(), "what is beyond white stays"


def test_spacing_is_estimated_and_said() -> None:
    made = thorax()
    spacing, note = estimate_spacing_mm(made.lungs)
    assert spacing == pytest.approx(made.spacing_mm, rel=0.03) and "estimated" in note


def test_noise_is_that_of_pixels() -> None:
    rng = np.random.default_rng(0)
    plane = np.add.outer(np.arange(100.0), 2 * np.arange(100.0))
    region = np.ones((100, 100), bool)
    assert noise_of(plane + 3 * rng.standard_normal((100, 100)), region) == pytest.approx(3, rel=0.05)
    assert noise_of(plane[1:-1, 1:-1], np.pad(region[4:-4, 4:-4], 3)) == pytest.approx(0, abs=1e-9)


def test_images_that_have_no_curve_are_refused() -> None:
    made = thorax()
    for pixels, lungs, message in ((np.full_like(made.pixels, 90), made.lungs, "no contrast"),
                                   (255 - made.pixels, made.lungs, "MONOCHROME1"),
                                   (np.random.default_rng(0).integers(0, 255, (256, 256)), made.lungs, "no contrast|differ"),
                                   (made.pixels, np.zeros_like(made.lungs), "empty"), (made.pixels, made.lungs[:9], "do not fit"),
                                   (np.where(made.lungs, np.nan, 5.0), made.lungs, "finite"),
                                   (made.pixels, made.lungs & (np.arange(256) < 128), "nothing as wide|give masks")):
        with pytest.raises(InputError, match=message):
            estimate_grey_curve(pixels, lungs)
    with pytest.raises(InputError, match="cannot be"):
        estimate_grey_curve(made.pixels, made.lungs, levels_per_mm=-1)


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="no shared data beside the checkout")
def test_real_images_have_curves_and_spacings_in_the_stated_range() -> None:
    """Slopes of open NIH images around 1.1 levels of 255 per mm of water; spacings against those that the NIH states."""
    with (NIH / "metadata.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["pseudo_lung_mask"] and row["findings"] == "No Finding"][::12]
    slopes, ratios = [], []
    for row in rows:
        pixels, lungs = (np.asarray(Image.open(NIH / row[name])) for name in ("file_name", "pseudo_lung_mask"))
        facts = json.loads(row["extra"])
        ratios.append(estimate_spacing_mm(lungs > 127)[0] * 256 / (facts["pixel_spacing"] * max(facts["orig_w"], facts["orig_h"])))
        slopes.append(estimate_grey_curve(pixels, lungs > 127).levels_per_mm)
    assert len(rows) > 30 and 0.7 < np.median(slopes) < 1.6
    assert np.median(ratios) == pytest.approx(1, abs=0.07) and np.std(ratios) < 0.15
