"""A thorax made of formulas: mm of water, and grey levels of a known curve, for tests of physics and insertion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from synthorax.physics.grey_curve import HEART_MM, LUNG_DENSITY, LUNGS_WIDTH_MM


@dataclass(frozen=True, kw_only=True, slots=True)
class Thorax:
    """An image with its lungs; the patient's right lung is in the left half."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    lungs: NDArray[np.bool_]
    spacing_mm: float
    levels_per_mm: float


def thorax(size: int = 256, *, levels_per_mm: float = 1.1, noise: float = 1.5, bits: int = 8, white_mm: float = 1e9, seed: int = 0,
           width_px: float = 0.72) -> Thorax:
    """Two lungs, a heart and a chest wall; beyond `white_mm` of water it is saturated. `levels_per_mm` is of 8 bits; 16 have 257 times."""
    spacing = LUNGS_WIDTH_MM / (width_px * size)
    y, x = np.meshgrid(*[(np.arange(size) + 0.5 - size / 2) * spacing] * 2, indexing="ij")
    body = np.abs(x) < 190
    lungs = (((np.abs(x) - 78) / 72) ** 2 + (y / 130) ** 4 <= 1) & body
    half = HEART_MM[0] / 2
    heart = HEART_MM[1] * np.sqrt(np.clip(1 - ((x - 15) / half) ** 2, 0, None)) * (1 - LUNG_DENSITY) * ((y > -20) & (y < 125))
    inside = heart > 0
    water = np.where(body, 130.0, 0) - 90.0 * lungs  # chest wall, lungs of 120 mm
    water = np.where(inside, 40 + heart, water)
    lungs &= ~inside
    rng = np.random.default_rng(seed)
    vessels = gaussian_filter(rng.standard_normal((size, size)), 4 / spacing)
    water = gaussian_filter(water + np.where(lungs, 3 * vessels / vessels.std(), 0), 1 / spacing)
    grey = 20 + levels_per_mm * water + noise * rng.standard_normal((size, size))
    grey = np.where(body, np.clip(grey, 0, min(255.0, 20 + levels_per_mm * white_mm)), 0)
    pixels = np.rint(grey * (257 if bits == 16 else 1)).astype(np.uint16 if bits == 16 else np.uint8)
    return Thorax(pixels=pixels, lungs=lungs, spacing_mm=spacing, levels_per_mm=levels_per_mm * (257 if bits == 16 else 1))
