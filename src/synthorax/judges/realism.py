"""Realism: whether images look like the real radiographs of a set at all, whatever they show. No network, no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.covariance import ledoit_wolf

from synthorax.errors import InputError
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.fitting import ImageArray
from synthorax.judges.image_descriptors import appearance, layout, structure
from synthorax.rng import derive
from synthorax.types import ImageSet

RATE = 0.01
"""part of real images of other patients that may be called unrealistic"""
NUM_FOLDS = 5
MIN_REAL = 10
MAX_REAL_IMAGES = 2000
"""real images that are looked at, at most"""
TAIL = 0.1
"""part of the real distances, the largest, to which the tail is fitted"""
MIN_IMAGES_IN_TAIL, MIN_IMAGES_BEYOND = 5, 3
"""real images in the tail, and beyond a threshold, for which these are counted and not fitted"""
NEIGHBOURS = 5
CHUNK_IMAGES = 64
Vector = NDArray[np.float64]
Distance = Callable[[Vector], Vector]
"""Descriptions [M, F] to distances [M] from the real images that it was made of."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Realism:
    """What the check says of each image, row by row."""

    p: Vector
    """[M] in (0, 1]: how rarely a real image is as far from the others, in the space in which this one is farthest"""
    space: tuple[str, ...]
    """name of that space"""
    distance: Vector
    """[M], in that space"""
    threshold: Vector
    """[M]: the largest distance that passes, in that space"""

    @property
    def unrealistic(self) -> NDArray[np.bool_]:
        """[M] whether the image is farther from the real ones than the threshold."""
        return self.distance > self.threshold


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealismCheck:
    """Calls an image unrealistic where it lies farther from the real images, in some space, than real images of other patients do.

    Four ways to look, each with an equal part of the false alarms: `appearance` (grey levels, power spectrum, local contrast) by the
    distance to the nearest real images and by Mahalanobis distance, `layout` (the image on a grid of 8 x 8) and `structure` (local
    contrast on such a grid); see `judges.image_descriptors`. One alone lets much pass: neighbours overlook smooth images, and the
    covariance, where a few real images are odd, noise.
    """

    rate: float
    """part of real images of other patients that may be called unrealistic"""
    num_real: int
    spaces: Mapping[str, _Space]
    """by name"""

    @classmethod
    def fit(cls, train: ImageSet, held_out: ImageSet | None = None, *, rate: float = RATE) -> RealismCheck:
        """Learn how real images look, and how far from one another those of different patients lie.

        Cross-conformal (Vovk 2015): the patients of `train` and `held_out` are divided into five parts, and each image's distance is taken
        from the images of the other parts. So the check needs no images that are only held out, and 100 in all are enough: where fewer
        than three are beyond a distance, its p is that of a power law fitted to the farthest tenth (see `_Space.p`). Raises InputError
        for fewer than 10 images or two patients.

        >>> from synthorax.types import ImageSet, Study
        >>> images = np.random.default_rng(0).integers(90, 110, (40, 32, 32), dtype=np.uint8)
        >>> studies = tuple(Study(file_name=f"{n}.png", patient_id=f"{n}") for n in range(40))
        >>> real = ImageSet(pixels=images, studies=studies, findings=(), labels=np.zeros((40, 0), np.float32), digest="")
        >>> bool(RealismCheck.fit(real).check(np.zeros((1, 32, 32), np.uint8)).unrealistic[0])
        True
        """
        real = train if held_out is None else ImageSet.join([train, held_out])
        images, patients = real.pixels, real.patients()
        chosen = np.random.default_rng(derive(0, "realism")).permutation(len(images))[:MAX_REAL_IMAGES]
        images, patients = images[chosen], patients[chosen]
        folds = min(NUM_FOLDS, len(np.unique(patients)))
        if len(images) < MIN_REAL or folds < 2:
            raise InputError(f"{len(images)} real images of {len(np.unique(patients))} patients cannot say what is unrealistic",
                             remedy=f"give at least {MIN_REAL} images of several patients, better 100")
        part = patient_folds(patients, folds=folds, seed=0)
        each = rate / len(SPACES)
        return cls(rate=rate, num_real=len(images), spaces={
            name: _Space.fit(_described(images, describe), part, describe=describe, make=make, rate=each)
            for name, (describe, make) in SPACES.items()})

    def check(self, images: ImageArray) -> Realism:
        """Judge images [M, S, S] of the same size as the real ones."""
        names = list(self.spaces)
        distances = np.stack([space.distances(images) for space in self.spaces.values()])
        p = np.stack([space.p(own) for space, own in zip(self.spaces.values(), distances, strict=True)])
        farthest, each = p.argmin(axis=0), np.arange(len(images))
        thresholds = np.array([space.threshold for space in self.spaces.values()])
        return Realism(p=np.minimum(1, len(names) * p[farthest, each]), space=tuple(names[number] for number in farthest),
                       distance=distances[farthest, each], threshold=thresholds[farthest])


def _gaussian(real: Vector) -> Distance:
    """Mahalanobis distance, over the root of the number of features; the covariance is shrunk (Ledoit and Wolf 2004)."""
    mean = real.mean(axis=0)
    covariance = ledoit_wolf(real - mean, assume_centered=True)[0]
    factor = linalg.cholesky(covariance + 1e-9 * np.eye(len(mean)), lower=True)

    def distances(rows: Vector) -> Vector:
        white = linalg.solve_triangular(factor, (rows - mean).T, lower=True)
        return np.asarray(np.sqrt((white**2).mean(axis=0)))

    return distances


def _neighbours(real: Vector) -> Distance:
    """Root of the mean squared distance to the nearest real images."""
    def distances(rows: Vector) -> Vector:
        return np.asarray(np.sqrt(nearest_squared_distances(rows, real, num=NEIGHBOURS).mean(axis=1) / real.shape[1]))

    return distances


def nearest_squared_distances(rows: Vector, among: Vector, *, num: int) -> Vector:
    """Squared distances of each of `rows` [M, F] to its `num` nearest of `among` [N, F], nearest first, [M, num]."""
    squared = (rows**2).sum(axis=1)[:, None] + (among**2).sum(axis=1) - 2 * rows @ among.T
    return np.asarray(np.sort(squared.clip(0), axis=1)[:, :num])


SPACES: Mapping[str, tuple[Callable[[ImageArray], Vector], Callable[[Vector], Distance]]] = {
    "appearance": (appearance, _neighbours), "appearance, Mahalanobis": (appearance, _gaussian), "layout": (layout, _neighbours),
    "structure": (structure, _gaussian)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Space:
    describe: Callable[[ImageArray], Vector]
    models: tuple[Distance, ...]
    """each made of all real images but those of one part of the patients"""
    known: Vector
    """[N], sorted: each real image's distance from those of other parts"""
    rate: float

    @classmethod
    def fit(cls, real: Vector, part: NDArray[np.intp], *, describe: Callable[[ImageArray], Vector], make: Callable[[Vector], Distance],
            rate: float) -> _Space:
        models = tuple(make(real[part != fold]) for fold in range(part.max() + 1))
        known = np.concatenate([model(real[part == fold]) for fold, model in enumerate(models)])
        return cls(describe=describe, models=models, known=np.sort(known), rate=rate)

    @property
    def threshold(self) -> float:
        """The largest distance whose p is above the rate."""
        above = int(np.floor(self.rate * (len(self.known) + 1) + 1e-9)) - 1
        if above >= MIN_IMAGES_BEYOND:
            return float(self.known[-1 - above])
        start, index, share = self._tail()
        return float(max(start * (share / self.rate) ** index, self.known[-MIN_IMAGES_BEYOND]))

    def distances(self, images: ImageArray) -> Vector:
        rows = _described(images, self.describe)
        return np.asarray(np.mean([model(rows) for model in self.models], axis=0))

    def p(self, distances: Vector) -> Vector:
        """Share of real images that are at least as far, the new one counted among them; by the fitted tail where these are too few."""
        at_least = len(self.known) - np.searchsorted(self.known, distances, side="left")
        counted = (1 + np.maximum(at_least, MIN_IMAGES_BEYOND)) / (1 + len(self.known))
        start, index, share = self._tail()
        fitted = share * np.maximum(distances / start, 1) ** (-1 / index)
        return np.asarray(np.where(at_least < MIN_IMAGES_BEYOND, np.minimum(fitted, counted), counted))

    def _tail(self) -> tuple[float, float, float]:
        """A power law of the farthest tenth of the real images: where it begins, its index (Hill 1975) and the part of images beyond.

        A single odd image moves it little, unlike a threshold at the farthest one (Weissman 1978). The index is taken one standard error
        larger, so that with few real images the check is lenient.
        """
        num = min(max(MIN_IMAGES_IN_TAIL, int(np.ceil(TAIL * len(self.known)))), len(self.known) - 1)
        start = max(self.known[-1 - num], 1e-9)
        top = np.maximum(self.known[-num:], start)
        return float(start), float(max(np.log(top / start).mean(), 1e-3) * (1 + 1 / np.sqrt(num))), num / len(self.known)


def _described(images: ImageArray, describe: Callable[[ImageArray], Vector]) -> Vector:
    return np.concatenate([describe(images[start : start + CHUNK_IMAGES]) for start in range(0, len(images), CHUNK_IMAGES)])
