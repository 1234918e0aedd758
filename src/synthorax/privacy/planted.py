"""Planted copies: training images changed as a generator, or a person who hides a copy, might change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, shift

from synthorax.errors import UsageError
from synthorax.rng import derive

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Grey = NDArray[np.float64]

SHIFT = 4 / 256
"""of the image's side, downwards and to the right"""
DEGREES = 3.0
NOISE = 0.05
"""standard deviation, of the full range"""
BLENDS = (0.5, 0.6, 0.7, 0.8)
"""part of the image that is copied; the rest is another training image"""


def plant(images: Pixels, *, how: str, seed: int = 0) -> Pixels:
    """Copies of images [N, S, S] changed in one of the ways `WAYS`, of the same type; row i is a copy of image i.

    A blend takes its second image from the next row, so it needs two images.

    >>> plant(np.eye(8, dtype=np.uint8)[None] * 200, how="mirrored")[0, 0, -1]
    np.uint8(200)
    """
    if how not in WAYS:
        raise UsageError(f"unknown way to plant a copy '{how}'; choose from: {', '.join(WAYS)}")
    highest = np.iinfo(images.dtype).max
    changed = WAYS[how](images.astype(np.float64) / highest, np.random.default_rng(derive(seed, "planted", how)))
    levels = np.rint(np.clip(changed, 0, 1) * highest)
    return levels.astype(np.uint8) if images.dtype == np.uint8 else levels.astype(np.uint16)


def _shifted(images: Grey, rng: np.random.Generator) -> Grey:
    """By a part of a pixel where images are small; the edge is continued."""
    distance = SHIFT * images.shape[1]
    return np.asarray(shift(images, (0, distance, distance), order=1, mode="nearest"))


def _turned(images: Grey, rng: np.random.Generator) -> Grey:
    angle = np.deg2rad(DEGREES)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (images.shape[1] - 1) / 2)
    return np.stack([affine_transform(image, matrix, offset=centre - matrix @ centre, order=1, mode="nearest") for image in images])


def _contrast(images: Grey, rng: np.random.Generator) -> Grey:
    """Contrast 0.6 to 1.5 times, gamma 0.6 to 1.7, brightness by up to a tenth of the range."""
    gain, gamma, lift = (rng.uniform(low, high, (len(images), 1, 1)) for low, high in ((0.6, 1.5), (0.6, 1.7), (-0.1, 0.1)))
    return np.asarray((images**gamma - 0.5) * gain + 0.5 + lift)


def _noisy(images: Grey, rng: np.random.Generator) -> Grey:
    return images + rng.normal(0, NOISE, images.shape)


def _blend(part: float) -> Callable[[Grey, np.random.Generator], Grey]:
    return lambda images, rng: part * images + (1 - part) * np.roll(images, 1, axis=0)


WAYS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "verbatim": lambda images, rng: images,
    "shifted 4 of 256 px": _shifted,
    "rotated 3 degrees": _turned,
    "contrast changed": _contrast,
    "mirrored": lambda images, rng: images[:, :, ::-1],
    "noise 5 %": _noisy,
    **{f"blended {part:.0%}": _blend(part) for part in BLENDS},
}
"""name -> what it does to grey images [N, S, S] in [0, 1]"""
