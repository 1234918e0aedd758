"""Ways in which an image is spoilt, or looks like another machine's: to see what a feature space notices and what a result hangs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grey = NDArray[np.float64]
"""images [N, S, S] in [0, 1]"""


def noise(images: Grey, rng: np.random.Generator) -> Grey:
    """White noise of 5 % of the range."""
    return images + rng.normal(0, 0.05, images.shape)


def blur(images: Grey, rng: np.random.Generator) -> Grey:
    """Gaussian blur, sigma 1/128 of the image's side."""
    return np.asarray(ndimage.gaussian_filter(images, sigma=(0, images.shape[1] / 128, images.shape[2] / 128)))


def gain(images: Grey, rng: np.random.Generator) -> Grey:
    """Contrast of 0.7 to 1.3 about mid-grey and a shift of up to 10 % of the range, drawn for each image."""
    factor, shift = rng.uniform(0.7, 1.3, (len(images), 1, 1)), rng.uniform(-0.1, 0.1, (len(images), 1, 1))
    return (images - 0.5) * factor + 0.5 + shift


def crop(images: Grey, rng: np.random.Generator) -> Grey:
    """The middle 85 % of the image, enlarged to its size."""
    side = images.shape[1]
    place = (np.arange(side) + 0.5 - side / 2) * 0.85 + side / 2 - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    return np.array([ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest") for image in images])


def vendor(images: Grey, rng: np.random.Generator) -> Grey:
    """Another maker's processing, roughly: edges enhanced by unsharp masking and a steeper curve of grey levels."""
    sharp = images + 0.7 * (images - ndimage.gaussian_filter(images, sigma=(0, images.shape[1] / 64, images.shape[2] / 64)))
    return np.asarray(1 / (1 + np.exp(-6 * (sharp - 0.5))))


CORRUPTIONS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "noise": noise, "blur": blur, "gain": gain, "crop": crop, "vendor look": vendor,
}


def corrupt(images: NDArray[np.uint8] | NDArray[np.uint16], name: str, *, seed: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Images [N, S, S] after one of `CORRUPTIONS`, in the same integer type.

    >>> corrupt(np.full((1, 32, 32), 100, np.uint8), "crop", seed=0)[0, 0, 0]
    np.uint8(100)
    """
    top = np.iinfo(images.dtype).max
    changed = CORRUPTIONS[name](images.astype(np.float64) / top, np.random.default_rng(seed))
    return np.asarray((changed.clip(0, 1) * top).round().astype(images.dtype))
