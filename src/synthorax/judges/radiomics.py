"""Radiomics: what an image's grey levels and their neighbourhoods measure, without any network; also a quick feature space of its own."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError

LEVELS = 32
DISTANCES_PX = (1, 4)
FIRST_ORDER = ("mean", "deviation", "skewness", "kurtosis", "entropy", "percentile 10", "percentile 50", "percentile 90",
               "gradient mean", "gradient standard deviation")
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
NAMES = (*FIRST_ORDER, *(f"{name} {distance} px" for distance in DISTANCES_PX for name in TEXTURE))
VERSION = "radiomics/1"


class RadiomicsFeatures:
    """Feature space of 10 first-order and 12 co-occurrence numbers an image (Haralick et al. 1973, Appendix I).

    Input contract: grey images [N, S, S], uint8 or uint16, full range of the type, bone bright. Grey levels are cut into 32 steps of the
    full range, so exposure counts; co-occurrences are taken at 1 and 4 px in four directions, summed and symmetric. Its numbers have
    units of their own: standardise them before they are compared.

    >>> RadiomicsFeatures()(np.zeros((2, 32, 32), np.uint8)).shape
    (2, 22)
    """

    name = "radiomics"
    num_features = len(NAMES)
    digest = hashlib.sha256(repr((VERSION, LEVELS, DISTANCES_PX, NAMES)).encode()).hexdigest()

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Features [N, 22] of images [N, S, S], in the order of `NAMES`."""
        if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16) or min(images.shape[1:]) <= max(DISTANCES_PX):
            raise InputError(f"radiomics needs images [N, S, S] of uint8 or uint16, at least 5 px a side, got {images.dtype} "
                             f"{images.shape}")
        return np.array([_describe(image.astype(np.float64) / np.iinfo(images.dtype).max) for image in images],
                        dtype=np.float32).reshape(len(images), self.num_features)


def _describe(image: NDArray[np.float64]) -> list[float]:
    mean, std = float(image.mean()), float(image.std())
    centred = (image - mean) / std if std > 1e-9 else np.zeros_like(image)
    levels = np.minimum((image * LEVELS).astype(np.intp), LEVELS - 1)
    steps = np.abs(np.diff(image, axis=0))[:, :-1] + np.abs(np.diff(image, axis=1))[:-1]
    numbers = [mean, std, float((centred**3).mean()), float((centred**4).mean()),
               _entropy(np.bincount(levels.ravel(), minlength=LEVELS) / levels.size),
               *(float(value) for value in np.quantile(image, [0.1, 0.5, 0.9])), float(steps.mean()), float(steps.std())]
    for distance in DISTANCES_PX:
        numbers += _texture(co_occurrence(levels, distance=distance))
    return numbers


def co_occurrence(levels: NDArray[np.intp], *, distance: int) -> NDArray[np.float64]:
    """How often two grey levels stand `distance` px apart, [L, L], symmetric, sum 1: over 0, 45, 90 and 135 degrees.

    >>> float(co_occurrence(np.zeros((8, 8), np.intp), distance=1)[0, 0])
    1.0
    """
    height, width = levels.shape
    counts = np.zeros(LEVELS * LEVELS)
    for down, right in ((0, distance), (distance, 0), (distance, distance), (distance, -distance)):
        first = levels[: height - down, max(0, -right) : width - max(0, right)]
        second = levels[down:, max(0, right) : width + min(0, right)]
        counts += np.bincount((first * LEVELS + second).ravel(), minlength=LEVELS * LEVELS)
    table = counts.reshape(LEVELS, LEVELS)
    return np.asarray((table + table.T) / (2 * counts.sum()))


def _texture(table: NDArray[np.float64]) -> list[float]:
    level = np.arange(LEVELS)
    gap = np.abs(level[:, None] - level)
    share = table.sum(axis=0)
    mean = float(share @ level)
    variance = float(share @ (level - mean) ** 2)
    correlation = float((table * np.outer(level - mean, level - mean)).sum() / variance) if variance > 1e-9 else 1.0
    return [float((table * gap**2).sum()), float((table * gap).sum()), float((table / (1 + gap**2)).sum()),
            float(np.sqrt((table**2).sum())), correlation, _entropy(table.ravel())]


def _entropy(shares: NDArray[np.float64]) -> float:
    """In bits."""
    known = shares[shares > 0]
    return float(-(known * np.log2(known)).sum())
