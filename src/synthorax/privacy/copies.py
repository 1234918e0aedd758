"""Near-duplicates of training images among synthetic ones, found in several ways, with thresholds that real images of other patients
set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.features import FeatureSpace
from synthorax.privacy.registration import Gallery, Pixels

MIN_HELD_OUT = 10
REGISTRATION, WHITENED = "registration", "whitened pixels"
"""names of the two ways that need no network"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WayCheck:
    """What one way of looking says of each image, row by row."""

    nearest_index: NDArray[np.intp]
    """the training image nearest in this way, [N]"""
    similarity: NDArray[np.float64]
    """how near, [N]; higher is nearer, and each way has its own scale"""
    is_copy: NDArray[np.bool_]
    """[N]"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CopyCheck:
    """What the detector says of each image, row by row."""

    nearest_index: NDArray[np.intp]
    """the training image that it resembles most in the way that calls it a copy, or by registration, [N]"""
    similarity: NDArray[np.float64]
    """correlation with the nearest image by registration, [N] in [0, 1]"""
    is_copy: NDArray[np.bool_]
    """nearer to a training image, in some way, than real images of other patients are, [N]"""
    ways: dict[str, WayCheck]
    """by the name of the way"""

    def caught_by(self, number: int) -> str:
        """The first way that calls this image a copy, by name; empty where none does."""
        return next((name for name, way in self.ways.items() if way.is_copy[number]), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseAlarms:
    """Share of real images that are no copies and were called copies, with Wilson's 95 % interval."""

    rate: float
    low: float
    high: float
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CopyDetector:
    """Calls an image a copy where it resembles one training image more than images of unseen patients ever resemble any.

    Two ways always, and a third where a feature space is given; each gets an equal part of the false alarms. `registration`: the
    correlation of local contrast once the image is laid over the training image (see `Gallery`): knows copies that were moved,
    turned, mirrored, or exposed otherwise. `whitened pixels`: by how much the nearest image, in principal components of equal
    variance, stands out from the next ones: knows copies under noise and blends. The feature space: the cosine around the
    training mean.
    """

    thresholds: dict[str, float]
    """similarity above which an image is a copy, by the name of the way"""
    calibration: FalseAlarms
    """on the held-out images that set the thresholds; `false_alarms` measures it on others"""
    highest_real: float
    """the highest correlation by registration among them"""
    num_train: int
    gallery: Gallery
    _feature_space: FeatureSpace | None
    _train_features: NDArray[np.float32] | None
    _feature_centre: NDArray[np.float32] | None

    @property
    def threshold(self) -> float:
        """Correlation by registration above which an image is a copy."""
        return self.thresholds[REGISTRATION]

    @classmethod
    def fit(cls, train: Pixels, held_out: Pixels, *, features: FeatureSpace | None = None,
            false_alarm_rate: float = 0.01) -> CopyDetector:
        """Learn from training images [N, S, S] what to look for, and from real images of other patients when to call it.

        The thresholds are conformal quantiles: of a new real image, exchangeable with the M held-out ones, at most
        `false_alarm_rate` are called copies, or about 1 / (M + 1) a way where M is too small for that (300 are enough for 1 % in
        three ways). Raises `InputError` for fewer than 10 held-out images.

        >>> images = np.random.default_rng(0).integers(0, 256, (30, 64, 64), dtype=np.uint8)
        >>> CopyDetector.fit(images[:20], images[20:]).check(images[:5]).is_copy.all()
        np.True_
        """
        if len(train) == 0 or len(held_out) < MIN_HELD_OUT:
            raise InputError(f"{len(train)} training and {len(held_out)} held-out images cannot set a threshold",
                             remedy=f"hold out at least {MIN_HELD_OUT} real images of other patients, better 100")
        train_features = centre = None
        if features is not None:
            train_features = features(train)
            centre = train_features.mean(axis=0)
            train_features = _unit(train_features - centre)
        blind = cls(thresholds={}, calibration=FalseAlarms(rate=0, low=0, high=0, num_images=0), highest_real=0.0,
                    num_train=len(train), gallery=Gallery.of(train), _feature_space=features, _train_features=train_features,
                    _feature_centre=centre)
        seen = blind._similarities(held_out)
        thresholds = {way: conformal_threshold(similarity, false_alarm_rate / len(seen)) for way, (_, similarity) in seen.items()}
        called = np.any([similarity > thresholds[way] for way, (_, similarity) in seen.items()], axis=0)
        return replace(blind, thresholds=thresholds, calibration=alarm_rate(called), highest_real=float(seen[REGISTRATION][1].max()))

    def check(self, images: Pixels) -> CopyCheck:
        """Compare images [N, S, S] of any size with every training image."""
        ways = {way: WayCheck(nearest_index=index, similarity=similarity, is_copy=similarity > self.thresholds[way])
                for way, (index, similarity) in self._similarities(images).items()}
        first = ways[REGISTRATION]
        nearest, is_copy = first.nearest_index, first.is_copy
        for way in ways.values():
            nearest = np.where(~is_copy & way.is_copy, way.nearest_index, nearest)
            is_copy = is_copy | way.is_copy
        return CopyCheck(nearest_index=nearest, similarity=first.similarity, is_copy=is_copy, ways=ways)

    def false_alarms(self, images: Pixels) -> FalseAlarms:
        """Measure the rate on real images of patients that were neither trained on nor used for the threshold."""
        return alarm_rate(self.check(images).is_copy)

    def _similarities(self, images: Pixels) -> dict[str, tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """Nearest training image [N] and how near it is [N], in each way."""
        registered = self.gallery.nearest(images)
        found = {REGISTRATION: (registered.index, registered.similarity), WHITENED: (registered.whitened_index, registered.stands_out)}
        if self._feature_space is not None and self._train_features is not None and self._feature_centre is not None:
            cosine = _unit(self._feature_space(images) - self._feature_centre) @ self._train_features.T
            found[self._feature_space.name] = (cosine.argmax(axis=1), cosine.max(axis=1).astype(np.float64))
        return found


def half_calibrated(train: Pixels, held_out: Pixels, patients: NDArray[np.str_]) -> tuple[CopyDetector, FalseAlarms]:
    """A detector whose thresholds one half of the held-out patients sets, and its false alarms on images of the other half.

    `train` and `held_out` are images [N, S, S] and [M, S, S], `patients` [M] those of the latter.
    """
    half = patient_folds(patients, folds=2, seed=0)
    detector = CopyDetector.fit(train, held_out[half == 0])
    return detector, detector.false_alarms(held_out[half == 1])


def conformal_threshold(similarity: NDArray[np.float64], false_alarm_rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest of n similarities, or the largest where n is too small for the rate.

    A further image of the same kind lies above it with a chance of at most the rate (Vovk et al. 2005, ch. 2).

    >>> conformal_threshold(np.arange(1.0, 100.0), 0.05)
    95.0
    """
    rank = int(np.ceil((len(similarity) + 1) * (1 - false_alarm_rate) - 1e-9))
    return float(np.sort(similarity)[min(rank, len(similarity)) - 1])


def alarm_rate(called: NDArray[np.bool_]) -> FalseAlarms:
    """Share of true entries with Wilson's interval. Raises `InputError` where there are none."""
    if len(called) == 0:
        raise InputError("a false-alarm rate needs at least one real image")
    share = scipy.stats.binomtest(int(called.sum()), len(called)).proportion_ci(method="wilson")
    return FalseAlarms(rate=float(called.mean()), low=float(share.low), high=float(share.high), num_images=len(called))


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt(np.sum(features**2, axis=1, keepdims=True))
    return cast(NDArray[np.float32], features / np.maximum(length, np.float32(1e-6)))
