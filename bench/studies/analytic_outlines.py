"""Outlines of findings by a formula, in one lung or around the heart: those of the arm "template" of `lesion_proof.py`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

Mask = NDArray[np.bool_]


def region(finding: str, lungs: Mask, rng: np.random.Generator) -> Mask:
    """A plausible region in one lung, or around the heart, in coordinates of the lungs."""
    parts, count = label(lungs)
    largest = sorted(range(1, count + 1), key=lambda part: -(parts == part).sum())[:2]
    right, left = (parts == part for part in sorted(largest, key=lambda part: np.nonzero(parts == part)[1].mean()))
    own, side = ((right, 0), (left, 1))[int(rng.integers(2))]
    rows, columns = np.nonzero(own)
    down, across = (grid for grid in np.mgrid[:lungs.shape[0], :lungs.shape[1]].astype(float))
    v, u = (down - rows.min()) / np.ptp(rows), (across - columns.min()) / np.ptp(columns)
    lateral, wall, width = (u if side else 1 - u), distance_transform_edt(own), np.ptp(columns)
    if finding == "Effusion":
        return np.asarray(own & (v > rng.uniform(0.6, 0.85) - 0.22 * lateral**2))
    if finding == "Pneumothorax":
        crescent = wall < width * rng.uniform(0.12, 0.25) * (1 - 0.75 * np.clip(v, 0, 1))
        return np.asarray(own & crescent & (lateral > np.where(v < 0.2, 0, 0.3)) & (v < 0.75))
    if finding == "Pleural_Thickening":
        return np.asarray(own & (wall < 0.08 * width) & (lateral > 0.6) & (v > 0.3) & (v < 0.9))
    if finding == "Cardiomegaly":
        at = np.cumsum(lungs, axis=1)
        heart = (at > 0) & (at < at[:, -1:]) & ~lungs & (v > 0.4) & (v < 0.97)
        reach = np.where(left, 0.3, 0.08) * width * np.exp(-(((v - 0.75) / 0.22) ** 2))
        return np.asarray((distance_transform_edt(~heart) < reach) & (lungs | heart))
    if finding == "Emphysema":
        return np.asarray(own & (v < 0.55))
    centre, half = (rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.75)), ((0.2, 0.11) if finding == "Mass" else (0.3, 0.18))
    bumps = gaussian_filter(rng.standard_normal(lungs.shape), len(lungs) / 40)
    return np.asarray(own & (((u - centre[0]) / half[0]) ** 2 + ((v - centre[1]) / half[1]) ** 2 + 0.25 * bumps / bumps.std() < 1))
