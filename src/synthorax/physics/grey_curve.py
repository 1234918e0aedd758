"""The grey curve of a radiograph, from the image itself: grey levels per mm of water, noise, and where it saturates; and its pixel spacing.

Nothing in a PNG says how many grey levels a mm of water makes. What is known is anatomy. A heart is about 130 mm wide and 90 mm deep; if
its cross-section is an ellipse, it is 48 mm deep 10 mm inside its border, where it takes the place of lung of density 0.26: 35 mm of water
more than just outside. The step of the grey levels across the borders of the heart, over those 35 mm, is the curve. Steps over a few
centimetres are used because a lesion is as small: local contrast enhancement lifts them above the contrast of whole organs (in open NIH
images, 1.1 levels of 255 per mm from the step, 0.6 from lungs against mediastinum).

The slope is known to about a third: hearts differ, and so do masks, scatter and tone curves. That is less than the range of densities of
lesions, and a user who knows better gives `levels_per_mm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter

from synthorax.errors import InputError

HEART_MM = (130.0, 90.0)
"""width and depth of an adult's heart"""
LUNG_DENSITY = 0.26
"""of inflated lung, in parts of water's"""
INSIDE_MM, OUTSIDE_MM = 10.0, 7.0
"""how far from the heart's border the step is taken"""
UNCERTAINTY = 0.35
"""of `levels_per_mm`, as a part of it"""
LUNGS_WIDTH_MM = 300.0
"""from the outer border of one lung to that of the other, of adults, at the detector"""
ADULT_YEARS = 18.0
CHILDRENS_LUNGS_MM = ((0.0, 95.0), (3.0, 170.0), (6.0, 225.0), (10.0, 242.0), (14.0, 260.0), (ADULT_YEARS, 290.0))
"""age in years, and the square root of width times height of both lungs at the detector, of children; see bench/studies/lungs_by_age.py"""
SHOULDER = 0.12
"""the upper and lower part of the range of grey levels in which the curve bends towards saturation"""
_RIM = 0.002
"""of the pixels: those beyond are letters, collimators and broken pixels"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GreyCurve:
    """How grey levels rise with mm of water; levels are those of the image's own type, white is high."""

    levels_per_mm: float
    """slope away from saturation"""
    noise: float
    """standard deviation of a pixel's noise in the lungs, in grey levels"""
    black: float
    """grey level towards which the curve bends below"""
    white: float
    """grey level towards which the curve bends above"""
    note: str = ""
    """how it was found, and how well it is known"""

    def add(self, pixels: NDArray[Any], water_mm: NDArray[Any]) -> NDArray[np.float64]:
        """Grey levels behind `water_mm` more, which may be negative, of any shape; not rounded.

        The slope is `levels_per_mm` up to the shoulder and falls from there in proportion to the distance from white (or black), so a
        lesion in front of a nearly white heart adds little, and nothing exceeds white.
        """
        start, water = np.asarray(pixels, dtype=np.float64), np.asarray(water_mm, dtype=np.float64)
        up = _risen(start, np.maximum(water, 0) * self.levels_per_mm, end=self.white, bend=SHOULDER * (self.white - self.black))
        down = _risen(-start, np.maximum(-water, 0) * self.levels_per_mm, end=-self.black, bend=SHOULDER * (self.white - self.black))
        return np.where(water >= 0, up, -down)


def _risen(start: NDArray[np.float64], rise: NDArray[np.float64], *, end: float, bend: float) -> NDArray[np.float64]:
    """`start + rise`, but from `end - bend` on the slope falls in proportion to the distance from `end`."""
    straight = np.minimum(rise, np.maximum(end - bend - start, 0))
    at = start + straight
    left = np.maximum(end - at, 0)
    return np.asarray(at + left * -np.expm1(-(rise - straight) / bend))


def estimate_grey_curve(pixels: NDArray[Any], lungs: NDArray[np.bool_], *, levels_per_mm: float | None = None,
                        spacing_mm: float | None = None) -> GreyCurve:
    """The grey curve of an image [H, W] of 8 or 16 bits in which white is dense, given the lungs without the heart, [H, W] of bool.

    `levels_per_mm` replaces the estimate of the slope; `spacing_mm` is estimated from the lungs if not given. Raises InputError for lungs
    that leave nothing between them, for an image without contrast, and for one whose lungs are brighter than the heart (MONOCHROME1).
    """
    image = np.asarray(pixels, dtype=np.float64)
    if image.ndim != 2 or lungs.shape != image.shape:
        raise InputError(f"an image of shape {image.shape} and lungs of shape {lungs.shape} do not fit", remedy="give both as [H, W]")
    if not np.isfinite(image).all():
        raise InputError("the image has pixels that are not finite numbers")
    black, white = (float(level) for level in np.quantile(image, (_RIM, 1 - _RIM)))
    noise = noise_of(image, lungs)
    if white - black < max(8 * noise, 8):
        raise InputError(f"the image has {white - black:.0f} grey levels and hardly more than noise, so no contrast can be measured",
                         remedy="is it a radiograph?")
    curve = GreyCurve(levels_per_mm=1.0, noise=noise, black=black, white=white)
    if levels_per_mm is not None:
        if not (math.isfinite(levels_per_mm) and levels_per_mm > 0):
            raise InputError(f"{levels_per_mm:g} grey levels per mm of water cannot be", remedy="give a number above 0")
        return replace(curve, levels_per_mm=levels_per_mm, note="levels per mm of water were given")
    step, saturated = _step_at_heart(image, lungs, spacing_mm=spacing_mm or estimate_spacing_mm(lungs)[0],
                                     saturation=white - 0.005 * (white - black))
    if step < -0.02 * (white - black):
        raise InputError("the lungs are brighter than the heart", remedy="invert the image (MONOCHROME1), or check the masks of the lungs")
    if step < max(0.02 * (white - black), 2 * noise):
        raise InputError(f"lungs and heart differ by {step:.1f} grey levels only, so the grey curve cannot be measured",
                         remedy="give levels per mm of water")
    slope = step / heart_edge_mm()
    note = f"{slope:.3g} grey levels per mm of water, +/- {UNCERTAINTY:.0%}, estimated from the steps at the borders of the heart"
    if saturated > 0.3:
        note += f"; {saturated:.0%} of their insides are saturated, so the true slope may be higher"
    return replace(curve, levels_per_mm=slope, note=note)


def heart_edge_mm() -> float:
    """mm of water by which a ray `INSIDE_MM` inside the heart's border exceeds one outside, for an ellipse that displaces lung.

    >>> round(heart_edge_mm(), 1)
    35.5
    """
    half = HEART_MM[0] / 2
    return float(HEART_MM[1] * math.sqrt(1 - ((half - INSIDE_MM) / half) ** 2) * (1 - LUNG_DENSITY))


def _step_at_heart(image: NDArray[np.float64], lungs: NDArray[np.bool_], *, spacing_mm: float, saturation: float) -> tuple[float, float]:
    """How much brighter it is inside the heart's borders, the mean of the medians of both sides, and which part inside is saturated."""
    smooth = gaussian_filter(image, 1 / spacing_mm)
    inside, outside = round(INSIDE_MM / spacing_mm), round(OUTSIDE_MM / spacing_mm)
    steps: tuple[list[float], list[float]] = ([], [])
    full, width = [], image.shape[1]
    for row, first, last in _gaps(lungs):
        if last - first < 2 * inside:
            continue  # not as wide as a heart
        for side, edge, inwards in ((0, first, 1), (1, last, -1)):
            within = smooth[row, edge + inwards * inside]
            steps[side].append(within - smooth[row, min(max(edge - inwards * outside, 0), width - 1)])
            full.append(within >= saturation)
    if not steps[0]:
        raise InputError("nothing as wide as a heart lies between the lungs, so the grey curve cannot be measured",
                         remedy="give masks of both lungs without the heart, or levels per mm of water")
    return float(np.mean([np.median(side) for side in steps])), float(np.mean(full))


def noise_of(pixels: NDArray[Any], region: NDArray[np.bool_]) -> float:
    """Standard deviation of the noise of a pixel in a region [H, W] (Immerkaer 1996): what a plane through its neighbours leaves over.

    Noise that neighbours share, as after scaling or compression, counts less.
    """
    image = np.asarray(pixels, dtype=np.float64)
    filtered = convolve(image, np.array([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]), mode="nearest")
    return float(math.sqrt(math.pi / 2) / 6 * np.abs(filtered[region]).mean()) if region.any() else 0.0


def estimate_spacing_mm(lungs: NDArray[np.bool_], *, age_years: float = math.nan) -> tuple[float, str]:
    """mm a pixel at the detector, from the lungs [H, W] of bool, and a note that says so. Who states no age is taken for an adult.

    Adults' lungs are 300 mm wide at the detector, give or take a tenth. Those of children are measured by width and height together, which
    depend less on how deeply they breathe in; give or take a tenth, and more below three years. Images that show one lung are not covered.
    """
    rows, columns = (np.nonzero(lungs.any(axis=axis))[0] for axis in (1, 0))
    if len(columns) < 2:
        raise InputError("the mask of the lungs is empty, so the pixel spacing cannot be estimated", remedy="give spacing_mm")
    width, height = float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)
    if age_years < ADULT_YEARS:
        ages, extents = zip(*CHILDRENS_LUNGS_MM, strict=True)
        extent = float(np.interp(age_years, ages, extents))
        spacing = extent / math.sqrt(width * height)
        return spacing, (f"pixels of {spacing:.3g} mm, +/- 10 %, estimated: the root of width times height of the lungs taken to be "
                         f"{extent:.0f} mm, as at {age_years:.3g} years")
    spacing = LUNGS_WIDTH_MM / width
    return spacing, f"pixels of {spacing:.3g} mm, +/- 10 %, estimated: the lungs taken to be {LUNGS_WIDTH_MM:.0f} mm wide, as an adult's"


def _gaps(lungs: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Row, first and last column of what lies between the lungs, from the middle of their height to nine tenths of it."""
    rows, columns = (np.nonzero(lungs.any(axis=axis))[0] for axis in (1, 0))
    if not len(rows):
        return []
    top, height, middle = int(rows[0]), int(rows[-1] - rows[0]) + 1, (columns[0] + columns[-1]) / 2
    gaps = []
    for row in range(top + height // 2, top + round(0.9 * height)):
        at = np.nonzero(lungs[row])[0]
        before, behind = at[at < middle], at[at >= middle]
        if len(before) and len(behind):
            gaps.append((row, int(before[-1]) + 1, int(behind[0]) - 1))
    return gaps
