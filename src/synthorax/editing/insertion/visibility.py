"""Whether a nodule can be seen: how far it stands out from what else is in the lungs, for an observer that looks for bright blobs.

The observer is a difference of Gaussians of about the lesion's size, the untrained blob filter. Its largest response near the place,
over the spread of its responses in the lungs of the same image, is what the lesion shows against the host's own vessels and ribs, whatever
the image's contrast. Nodules that no radiologist could find would still be labelled present, so `LEAST_VISIBLE` is asked of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SCALES = (0.45, 0.6, 0.8)
"""standard deviation of the narrower Gaussian, in radii of the lesion"""
RATIO = 1.6
"""of the wider Gaussian to the narrower"""
NEAR, FAR = 0.4, 2.5
"""how near to the place the response counts, and how far from it the clutter does, in radii"""
FINE_PX = 6.0
"""radius in pixels to which larger lesions are shrunk first"""
LEAST_VISIBLE = 1.3
"""standard deviations of the clutter: the least conspicuous of the five nodules and masses with a radiologist's box among 1,489 open NIH
images has 1.3, the others 1.4, 1.8, 3.0 and 4.9 (`bench/studies/nodule_visibility.py`)"""
LEAST_OWN = 0.5
"""part of `LEAST_VISIBLE` by which the lesion raises the response of its place at least, so that it is not a rib that is seen"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """How much a lesion stands out, in standard deviations of the response in the lungs."""

    after: float
    """at the place of the lesion"""
    before: float
    """at the same place of the host"""

    @property
    def enough(self) -> bool:
        """Whether it is seen, and is what is seen."""
        return self.margin >= 1

    @property
    def margin(self) -> float:
        """The smaller of what is seen and of what the lesion has of it, in parts of what is asked for; 1 is just enough."""
        return min(self.after, (self.after - self.before) / LEAST_OWN) / LEAST_VISIBLE


def visibility(host: NDArray[Any], result: NDArray[Any], lungs: NDArray[np.bool_], *, place: tuple[float, float],
               radius_px: float) -> Visibility:
    """How visible a lesion of a radius is at a place, in parts of width and height, of a result [H, W], and what was there in the host."""
    after, before = (conspicuity(image, lungs, place=place, radius_px=radius_px) for image in (result, host))
    return Visibility(after=after, before=before)


def conspicuity(image: NDArray[Any], lungs: NDArray[np.bool_], *, place: tuple[float, float], radius_px: float) -> float:
    """The largest response near a place, above the median of that in the lungs [H, W], in its standard deviations; 0 without clutter."""
    step = max(1, int(radius_px / FINE_PX))
    grey, inside, radius = _shrunk(image, step), _shrunk(lungs, step) > 0.5, radius_px / step
    rows, columns = (np.arange(side) + 0.5 for side in grey.shape)
    distance = np.hypot(rows[:, None] - place[1] * image.shape[0] / step, columns - place[0] * image.shape[1] / step)
    near, far = distance <= max(1.0, NEAR * radius), inside & (distance > FAR * radius)
    if not near.any() or far.sum() < 16:
        return 0.0
    found = []
    for scale in SCALES:
        response = gaussian_filter(grey, scale * radius) - gaussian_filter(grey, RATIO * scale * radius)
        spread = float(response[far].std())
        found.append((float(response[near].max()) - float(np.median(response[far]))) / spread if spread > 0 else 0.0)
    return max(found)


def _shrunk(values: NDArray[Any], step: int) -> NDArray[np.float64]:
    """Means over squares of `step` pixels; what is left over at the right and at the bottom is cut off."""
    height, width = (side // step * step for side in values.shape)
    return np.asarray(values[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3), dtype=np.float64))
