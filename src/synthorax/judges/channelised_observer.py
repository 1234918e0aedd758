"""A channelised Hotelling observer: does a lesion lie at a place? Twelve numbers around it and one linear discriminant.

Barrett and Myers, Foundations of Image Science, 2004, chapter 13; Gallas and Barrett 2003 (J. Opt. Soc. Am. A 20:1725); the channels are
differences of Gaussians as in Abbey and Barrett 2001 (J. Opt. Soc. Am. A 18:473, Eq. 15). It sees small lesions that frozen networks of
photographs miss, learns from tens of lesions, and takes milliseconds an image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.covariance import ledoit_wolf

from synthorax.errors import InputError, UsageError
from synthorax.files import write_json
from synthorax.judges.fitting import ImageArray, check_image_size, check_images
from synthorax.judges.marks import Marks, strongest_places

Matrix = NDArray[np.float64]
MIN_PLACES = 5
"""places of either kind from which on an observer can be trained"""
FORMAT = "synthorax-channelised-observer"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObserverConfig:
    """What the observer looks at; lengths are parts of the image's side, so that they mean the same at every image size."""

    finest: float = 1 / 256
    """standard deviation of the finest blur"""
    ratio: float = 1.6
    """each of the six channels is as many times coarser than the one before"""
    num_channels: int = 6
    """differences of Gaussians"""
    nearby: float = 4 / 256
    """how far from the place, along rows and columns, the largest response of each channel is sought"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Places on images: K rows, columns and the image that each is on."""

    image: NDArray[np.intp]
    """[K]"""
    x: Matrix
    """pixels from the left edge, the middle of the first pixel at 0.5, [K]"""
    y: Matrix
    """pixels from the top, [K]"""

    def mirrored(self, *, image_size: int) -> Places:
        """The same heights on the other side of the image: the usual places for comparison. No image is flipped."""
        return Places(image=self.image, x=image_size - self.x, y=self.y)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Places:
        """Some of the places."""
        return Places(image=self.image[rows], x=self.x[rows], y=self.y[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelisedObserver:
    """A trained observer of one finding: a judge with a name and the digest of its numbers.

    Input contract: images [N, S, S], uint8 or uint16, bone bright, of the size that it was trained on.
    """

    name: str
    digest: str
    """SHA-256 over finding, settings and all numbers"""
    finding: str
    image_size: int
    """pixels a side of the images that it accepts"""
    trained_on: str
    """real, inserted or generated lesions, in the words of whoever trained it"""
    num_lesions: int
    """places with a lesion that it learned from"""
    config: ObserverConfig
    weights: Matrix = field(repr=False)
    """[2 C + 1]; the last is the bias"""

    def scores(self, images: ImageArray, places: Places) -> Matrix:
        """How like a lesion each place looks, [K]; 0 lies half way between the two kinds of place it learned from."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        return cast(Matrix, channel_values(images, places, config=self.config) @ self.weights[:-1] + self.weights[-1])

    def maps(self, images: ImageArray) -> Matrix:
        """The score of every pixel as a place, [N, S, S]."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        weights, bias = self.weights[:-1], self.weights[-1]
        return cast(Matrix, np.stack([np.tensordot(weights, _channels(image, config=self.config), axes=1) for image in images]) + bias)

    def marks(self, images: ImageArray, *, within: NDArray[np.bool_] | None = None, distance_px: float | None = None,
              most: int = 20) -> Marks:
        """The most suspicious places of each image; `within` [N, S, S] says where to look."""
        apart = distance_px or 2 * self.config.nearby * self.image_size
        return Marks.join([strongest_places(scores, distance_px=apart, most=most, within=None if within is None else within[row])
                           for row, scores in enumerate(self.maps(images))])

    def save(self, path: Path) -> None:
        """As JSON."""
        write_json(path, _record(self) | {"format": FORMAT, "name": self.name, "digest": self.digest})

    @classmethod
    def load(cls, path: Path) -> ChannelisedObserver:
        """A saved observer; InputError for another file and for numbers that are not those of its digest."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.get("format") != FORMAT:
                raise ValueError("another kind of file")
            observer = _observer(finding=told["finding"], image_size=told["image_size"], trained_on=told["trained_on"],
                                 num_lesions=told["num_lesions"], config=ObserverConfig(**told["config"]),
                                 weights=np.array(told["weights"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"is no channelised observer ({error})", file=path) from error
        if observer.digest != told.get("digest"):
            raise InputError("the numbers are not those of the stated digest", file=path, remedy="train the observer again")
        return observer


def train_observer(images: ImageArray, lesions: Places, others: Places, *, finding: str, trained_on: str,
                   config: ObserverConfig | None = None) -> ChannelisedObserver:
    """Train on places with a lesion and places without one. Nothing is random.

    The discriminant is S^-1 (m1 - m0) with the covariance S pooled within both kinds of place and shrunk as Ledoit and Wolf 2004 say.
    Raises InputError where either kind has fewer than five places.
    """
    check_images(images)
    config = config or ObserverConfig()
    if min(len(lesions.image), len(others.image)) < MIN_PLACES:
        raise InputError(f"{len(lesions.image)} places with '{finding}' and {len(others.image)} without; an observer needs "
                         f"{MIN_PLACES} each")
    here, elsewhere = (channel_values(images, places, config=config) for places in (lesions, others))
    scale = np.maximum(np.concatenate([here - here.mean(0), elsewhere - elsewhere.mean(0)]).std(axis=0), 1e-9)
    means = here.mean(axis=0) / scale, elsewhere.mean(axis=0) / scale
    residuals = np.concatenate([here / scale - means[0], elsewhere / scale - means[1]])
    direction = np.linalg.solve(ledoit_wolf(residuals, assume_centered=True)[0], means[0] - means[1])
    bias = -float(direction @ (means[0] + means[1])) / 2
    return _observer(finding=finding, image_size=images.shape[1], trained_on=trained_on, num_lesions=len(lesions.image), config=config,
                     weights=np.append(direction / scale, bias))


def channel_values(images: ImageArray, places: Places, *, config: ObserverConfig) -> Matrix:
    """What the observer sees of each place, [K, 2 C]: every channel's value there, then every channel's largest value nearby."""
    check_images(images)
    side = images.shape[1]
    values = np.empty((len(places.image), 2 * config.num_channels))
    columns, rows = (np.clip(np.floor(part).astype(int), 0, side - 1) for part in (places.x, places.y))
    reach = _reach(side, config=config)
    for image in np.unique(places.image):
        bands = np.pad(_bands(images[image], config=config), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        for place in np.flatnonzero(places.image == image):
            around = bands[:, rows[place] : rows[place] + 2 * reach + 1, columns[place] : columns[place] + 2 * reach + 1]
            values[place] = np.concatenate([around[:, reach, reach], around.max(axis=(1, 2))])
    return values


def _bands(image: NDArray[np.uint8] | NDArray[np.uint16], *, config: ObserverConfig) -> Matrix:
    """Differences of Gaussians of one image, [C, S, S], in standard deviations of its pixels."""
    if config.num_channels < 1 or config.ratio <= 1 or config.finest <= 0:
        raise UsageError(f"these are no channels: {config}")
    grey = image.astype(np.float64)
    grey = (grey - grey.mean()) / max(float(grey.std()), 1e-9)
    blurred = [ndimage.gaussian_filter(grey, config.finest * len(image) * config.ratio**k, mode="nearest", truncate=3.0)
               for k in range(config.num_channels + 1)]
    return np.stack([fine - coarse for fine, coarse in itertools.pairwise(blurred)])


def _channels(image: NDArray[np.uint8] | NDArray[np.uint16], *, config: ObserverConfig) -> Matrix:
    """What the observer sees of every pixel as a place, [2 C, S, S]."""
    bands = _bands(image, config=config)
    window = 2 * _reach(len(image), config=config) + 1
    return np.concatenate([bands, ndimage.maximum_filter(bands, size=(1, window, window), mode="nearest")])


def _reach(side: int, *, config: ObserverConfig) -> int:
    return max(1, round(config.nearby * side))


def _record(observer: ChannelisedObserver) -> dict[str, object]:
    return {"finding": observer.finding, "image_size": observer.image_size, "trained_on": observer.trained_on,
            "num_lesions": observer.num_lesions, "config": asdict(observer.config), "weights": observer.weights.tolist()}


def _observer(*, finding: str, image_size: int, trained_on: str, num_lesions: int, config: ObserverConfig,
              weights: Matrix) -> ChannelisedObserver:
    kind = (FORMAT, finding, image_size, trained_on, num_lesions, asdict(config))
    digest = hashlib.sha256(repr(kind).encode() + np.ascontiguousarray(weights).tobytes()).hexdigest()
    return ChannelisedObserver(name=f"channelised-observer-{finding.lower()}-{image_size}px", digest=digest, finding=finding,
                               image_size=image_size, trained_on=trained_on, num_lesions=num_lesions, config=config, weights=weights)
