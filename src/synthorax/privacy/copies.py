"""Near copies of training films among synthetic ones, with a threshold that real films of other patients set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthorax.errors import InputError
from synthorax.judges.features import FeatureSpace

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

GRID_PX = 32
MAX_SHIFT_PX = 2  # on the grid: 6 % of the film's side
CONTRAST_SIGMA_PX = 4.0
CONTRAST_FLOOR = 0.02  # of the full range; a region flatter than this is not blown up to full contrast
MIN_HELD_OUT = 10
CHUNK_FILMS = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CopyCheck:
    """What the detector says of each film, row by row."""

    nearest_index: NDArray[np.intp]
    """the training film that it resembles most, [N]"""
    similarity: NDArray[np.float64]
    """pixel similarity to that film, [N] in [0, 1]"""
    is_copy: NDArray[np.bool_]
    """nearer to a training film than real films of other patients are, [N]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseAlarms:
    """Share of real films that are no copies and were called copies, with Wilson's 95 % interval."""

    rate: float
    low: float
    high: float
    num_films: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CopyDetector:
    """Calls a film a copy where it resembles one training film more than films of unseen patients ever resemble any.

    Similarity is the zero-mean cross-correlation of local contrast on a 32 px grid, at its best over shifts of up to 2 px
    and both exposures (dark or bright bone). Films are never flipped: left-right matters. Where a feature space is
    given, closeness there is a second way to be caught and each way gets half of the false alarms.
    """

    threshold: float
    """pixel similarity above which a film is a copy"""
    feature_threshold: float
    """the same in the feature space; infinite without one"""
    calibration: FalseAlarms
    """on the held-out films that set the threshold; `false_alarms` measures it on others"""
    num_train: int
    _grids: Tensor
    _feature_space: FeatureSpace | None
    _train_features: NDArray[np.float32] | None
    _feature_centre: NDArray[np.float32] | None

    @classmethod
    def fit(cls, train: Pixels, held_out: Pixels, *, features: FeatureSpace | None = None,
            false_alarm_rate: float = 0.01) -> CopyDetector:
        """Learn from training films [N, S, S] what to look for, and from real films of other patients when to call it.

        The threshold is the conformal quantile: of a new real film, exchangeable with the M held-out ones, at most
        `false_alarm_rate` are called copies, or 1 / (M + 1) where M is too small for that (99 are enough for 1 %).
        Raises `InputError` for fewer than 10 held-out films.

        >>> films = np.random.default_rng(0).integers(0, 256, (30, 64, 64), dtype=np.uint8)
        >>> CopyDetector.fit(films[:20], films[20:]).check(films[:5]).is_copy.all()
        np.True_
        """
        if len(train) == 0 or len(held_out) < MIN_HELD_OUT:
            raise InputError(f"{len(train)} training and {len(held_out)} held-out films cannot set a threshold",
                             remedy=f"hold out at least {MIN_HELD_OUT} real films of other patients, better 100")
        grids = local_contrast(train)
        similarity = _best_match(local_contrast(held_out), grids)[1]
        rate = false_alarm_rate / (1 if features is None else 2)
        threshold, feature_threshold = conformal_threshold(similarity, rate), np.inf
        called = similarity > threshold
        train_features = centre = None
        if features is not None:
            train_features = features(train)
            centre = train_features.mean(axis=0)
            train_features = _unit(train_features - centre)
            closeness = _closeness(features(held_out), train_features, centre)[1]
            feature_threshold = conformal_threshold(closeness, rate)
            called |= closeness > feature_threshold
        return cls(threshold=threshold, feature_threshold=float(feature_threshold), calibration=_false_alarms(called),
                   num_train=len(train), _grids=grids, _feature_space=features, _train_features=train_features,
                   _feature_centre=centre)

    def check(self, images: Pixels) -> CopyCheck:
        """Compare films [N, S, S] of any size with every training film."""
        nearest, similarity = _best_match(local_contrast(images), self._grids)
        is_copy = similarity > self.threshold
        if self._feature_space is not None and self._train_features is not None and self._feature_centre is not None:
            by_features, closeness = _closeness(self._feature_space(images), self._train_features, self._feature_centre)
            nearest = np.where(~is_copy & (closeness > self.feature_threshold), by_features, nearest)
            is_copy = is_copy | (closeness > self.feature_threshold)
        return CopyCheck(nearest_index=nearest, similarity=similarity, is_copy=is_copy)

    def false_alarms(self, images: Pixels) -> FalseAlarms:
        """Measure the rate on real films of patients that were neither trained on nor used for the threshold."""
        return _false_alarms(self.check(images).is_copy)


def conformal_threshold(similarity: NDArray[np.float64], false_alarm_rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest of n similarities, or the largest where n is too small for the rate.

    A further film of the same kind lies above it with a chance of at most the rate (Vovk et al. 2005, ch. 2).

    >>> conformal_threshold(np.arange(1.0, 100.0), 0.05)
    95.0
    """
    rank = int(np.ceil((len(similarity) + 1) * (1 - false_alarm_rate) - 1e-9))
    return float(np.sort(similarity)[min(rank, len(similarity)) - 1])


def local_contrast(images: Pixels) -> Tensor:
    """Films [N, S, S] on a 32 px grid, brightness and contrast of each neighbourhood taken out: float32 [N, 32, 32]."""
    if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16):
        raise InputError(f"films must be [N, S, S] of uint8 or uint16, got {images.dtype} {images.shape}")
    grids = []
    for start in range(0, len(images), CHUNK_FILMS):
        part = images[start:start + CHUNK_FILMS]
        grey = torch.from_numpy(part.astype(np.float32) / np.iinfo(part.dtype).max)[:, None]
        small = functional.interpolate(grey, (GRID_PX, GRID_PX), mode="bilinear", antialias=True, align_corners=False)
        detail = small - _blur(small)
        spread = _blur(detail.square()).sqrt()
        grids.append((detail / (spread + CONTRAST_FLOOR))[:, 0])
    return torch.cat(grids) if grids else torch.empty(0, GRID_PX, GRID_PX)


def _blur(images: Tensor) -> Tensor:
    """Gaussian means of [N, 1, S, S]; the edge is mirrored."""
    reach = int(2 * CONTRAST_SIGMA_PX)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    window = torch.exp(-(offsets**2) / (2 * CONTRAST_SIGMA_PX**2))
    window = (window / window.sum())[None, None, None]
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(functional.conv2d(padded, window), window.transpose(2, 3))


def _best_match(queries: Tensor, train: Tensor) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Index [N] and similarity [N] of the training film that each query resembles most.

    The inner part of a query is laid over every position of the training film; each position is one matrix product.
    """
    inner = GRID_PX - 2 * MAX_SHIFT_PX
    middle = slice(MAX_SHIFT_PX, MAX_SHIFT_PX + inner)
    centred = _standard(queries[:, middle, middle])
    best, index = torch.full((len(queries),), -1.0), torch.zeros(len(queries), dtype=torch.long)
    for start in range(0, len(train), CHUNK_FILMS):
        part = train[start:start + CHUNK_FILMS]
        similarity = torch.zeros(len(queries), len(part))
        for down in range(2 * MAX_SHIFT_PX + 1):
            for right in range(2 * MAX_SHIFT_PX + 1):
                window = _standard(part[:, down:down + inner, right:right + inner])
                # The sign of the correlation is the exposure: an inverted film has the opposite one.
                similarity = torch.maximum(similarity, (centred @ window.T).abs())
        value, row = similarity.max(dim=1)
        index = torch.where(value > best, row + start, index)
        best = torch.maximum(value, best)
    return index.numpy().astype(np.intp), best.numpy().astype(np.float64)


def _standard(grids: Tensor) -> Tensor:
    """Grids as rows of mean 0 and length 1, so that a product is a correlation; a flat grid becomes noughts."""
    rows = grids.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return cast(Tensor, rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6))


def _closeness(features: NDArray[np.float32], train_features: NDArray[np.float32], centre: NDArray[np.float32],
               ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Nearest training film [N] by the cosine of features around the training mean, and that cosine."""
    cosine = _unit(features - centre) @ train_features.T
    return cosine.argmax(axis=1), cosine.max(axis=1).astype(np.float64)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt(np.sum(features**2, axis=1, keepdims=True))
    return np.asarray(features / np.maximum(length, np.float32(1e-6)), dtype=np.float32)


def _false_alarms(called: NDArray[np.bool_]) -> FalseAlarms:
    if len(called) == 0:
        raise InputError("a false-alarm rate needs at least one real film")
    share = scipy.stats.binomtest(int(called.sum()), len(called)).proportion_ci(method="wilson")
    return FalseAlarms(rate=float(called.mean()), low=float(share.low), high=float(share.high), num_films=len(called))
