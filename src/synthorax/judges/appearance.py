"""Nine statistics of how an image looks, whatever it shows: grey level, contrast, noise, detail at several scales. No network."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.judges.fitting import ImageArray, check_images

SCALES_PX = (0.0, 0.7, 1.4, 2.8, 5.6)
NAMES = ("grey level", "contrast", "percentile 5", "percentile 95", "noise",
         *(f"detail {fine:g} to {coarse:g} px" for fine, coarse in itertools.pairwise(SCALES_PX)))
DIGEST = hashlib.sha256(repr(("look/1", SCALES_PX, NAMES)).encode()).hexdigest()
LAPLACIAN_DIFFERENCE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float64)


def appearance_statistics(images: ImageArray) -> NDArray[np.float64]:
    """Nine numbers an image, [N, S, S] -> [N, 9], in the order of `NAMES`; noise and detail are logarithms.

    Detail is the standard deviation between two Gaussian blurs, for each pair of neighbouring scales.

    >>> appearance_statistics(np.full((1, 32, 32), 255, np.uint8))[0, :2].tolist()
    [1.0, 0.0]
    """
    check_images(images)
    rows = []
    for image in images:
        grey = image.astype(np.float64) / np.iinfo(images.dtype).max
        blurred = [ndimage.gaussian_filter(grey, scale) if scale else grey for scale in SCALES_PX]
        detail = [float(np.log10(1e-6 + (fine - coarse).std())) for fine, coarse in itertools.pairwise(blurred)]
        rows.append([grey.mean(), grey.std(), *np.percentile(grey, [5, 95]), float(np.log10(1e-6 + noise_level(grey))), *detail])
    return np.array(rows, dtype=np.float64)


def noise_level(grey: NDArray[np.float64]) -> float:
    """Standard deviation of the noise in one image [S, S], which smooth structure and straight edges do not raise.

    The mask of Immerkaer 1996 (Eq. 1 to 3) is blind to both; here its median absolute value is taken, so that corners count little.
    """
    response = ndimage.convolve(grey, LAPLACIAN_DIFFERENCE, mode="reflect")[1:-1, 1:-1]
    return float(np.median(np.abs(response)) / (0.6745 * 6))  # the mask's weights have the norm 6
