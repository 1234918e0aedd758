"""Ways in which a film is spoilt, or looks like another machine's: to see what a feature space notices and what a result hangs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grey = NDArray[np.float64]
"""films [N, S, S] in [0, 1]"""


def noise(films: Grey, rng: np.random.Generator) -> Grey:
    """White noise of 5 % of the range."""
    return films + rng.normal(0, 0.05, films.shape)


def blur(films: Grey, rng: np.random.Generator) -> Grey:
    """Gaussian blur, sigma 1/128 of the film's side."""
    return np.asarray(ndimage.gaussian_filter(films, sigma=(0, films.shape[1] / 128, films.shape[2] / 128)))


def gain(films: Grey, rng: np.random.Generator) -> Grey:
    """Contrast of 0.7 to 1.3 about mid-grey and a shift of up to 10 % of the range, drawn for each film."""
    factor, shift = rng.uniform(0.7, 1.3, (len(films), 1, 1)), rng.uniform(-0.1, 0.1, (len(films), 1, 1))
    return (films - 0.5) * factor + 0.5 + shift


def crop(films: Grey, rng: np.random.Generator) -> Grey:
    """The middle 85 % of the film, enlarged to its size."""
    side = films.shape[1]
    place = (np.arange(side) + 0.5 - side / 2) * 0.85 + side / 2 - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    return np.array([ndimage.map_coordinates(film, [rows, columns], order=1, mode="nearest") for film in films])


def vendor(films: Grey, rng: np.random.Generator) -> Grey:
    """Another maker's processing, roughly: edges enhanced by unsharp masking and a steeper curve of grey levels."""
    sharp = films + 0.7 * (films - ndimage.gaussian_filter(films, sigma=(0, films.shape[1] / 64, films.shape[2] / 64)))
    return np.asarray(1 / (1 + np.exp(-6 * (sharp - 0.5))))


CORRUPTIONS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "noise": noise, "blur": blur, "gain": gain, "crop": crop, "vendor look": vendor,
}


def corrupted(images: NDArray[np.uint8] | NDArray[np.uint16], name: str, *, seed: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Films [N, S, S] after one of `CORRUPTIONS`, in the same integer type.

    >>> corrupted(np.full((1, 32, 32), 100, np.uint8), "crop", seed=0)[0, 0, 0]
    np.uint8(100)
    """
    top = np.iinfo(images.dtype).max
    changed = CORRUPTIONS[name](images.astype(np.float64) / top, np.random.default_rng(seed))
    return np.asarray((changed.clip(0, 1) * top).round().astype(images.dtype))
