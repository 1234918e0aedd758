"""Linear probes: logistic regression on frozen features, the quickest judges. `fit_probe` makes one decision on given features,
`LinearProbeTraining` a classifier of images. A screen, not a proof: the features do not learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from synthorax.errors import InputError, UsageError
from synthorax.judges.classifier import CLASSIC, Classifier, ClassifierConfig
from synthorax.judges.features import FeatureSpace, load_features
from synthorax.judges.fitting import ImageArray, check_image_size, check_images, one_thread, standardise, vary
from synthorax.progress import Progress, quiet

FEATURES = "efficientnet-lite0"
STRENGTH = 1e-3
"""scikit-learn's inverse regularisation C"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Weights of one linear decision on standardised features."""

    name: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    """[F]"""
    bias: float

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers of the probe."""
        parts = (self.mean, self.scale, self.weights, np.array([self.bias]))
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-odds of the positive class, [N, F] -> [N]."""
        return np.asarray(((features - self.mean) / self.scale) @ self.weights + self.bias, dtype=np.float64)


def fit_probe(features: NDArray[np.floating], labels: NDArray[np.floating], *, name: str, strength: float = STRENGTH) -> Probe:
    """Fit on features [N, F] and labels [N] in {0, 1, NaN}; NaN rows are left out, classes count equally.

    `strength` is scikit-learn's inverse regularisation C. Raises InputError where only one class is stated.
    """
    stated = ~np.isnan(labels)
    x, y = np.asarray(features[stated], dtype=np.float64), labels[stated].astype(int)
    if len(np.unique(y)) < 2:
        raise InputError(f"the probe '{name}' needs images of both classes")
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit((x - mean) / scale, y)
    return Probe(name=name, mean=mean, scale=scale, weights=fitted.coef_[0], bias=float(fitted.intercept_[0]))


class RememberedFeatures:
    """A feature space that looks at every image once: all arms of a study see the same real images."""

    def __init__(self, space: FeatureSpace) -> None:
        self.space = space
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, images: ImageArray) -> NDArray[np.float64]:
        """Images [N, S, S] to features [N, F]."""
        names = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        new = [row for row, name in enumerate(names) if name not in self._known]
        if new:
            self._known.update({names[row]: vector for row, vector in zip(new, self.space(images[new]), strict=True)})
        return np.stack([self._known[name] for name in names]).astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """One linear decision a finding on standardised features; to those who ask, a classifier like any other."""

    name: str
    digest: str
    """SHA-256 over the digest of the features and all numbers of the probe"""
    findings: tuple[str, ...]
    image_size: int
    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    weights: NDArray[np.float64] = field(repr=False)
    """[F + 1, K]; the last row is the bias"""
    features: RememberedFeatures = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Fitted numbers."""
        return self.weights.size

    def predict(self, images: ImageArray) -> NDArray[np.float64]:
        """Probability of each finding, [N, S, S] -> [N, K]."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        x = (self.features(images) - self.mean) / self.scale
        return np.asarray(expit(x @ self.weights[:-1] + self.weights[-1]))


class LinearProbeTraining:
    """Trains probes on the features of one space."""

    def __init__(self) -> None:
        self.features = RememberedFeatures(load_features(FEATURES))

    def __call__(
        self, images: ImageArray, labels: NDArray[np.floating], *, findings: Sequence[str], config: ClassifierConfig, seed: int,
        image_weights: NDArray[np.floating] | None = None, class_weights: NDArray[np.floating] | None = None,
        start: Classifier | None = None, progress: Progress = quiet,
    ) -> LinearProbe:
        """As `train_classifier`. The fit is convex: nothing but `augment`, which adds a varied copy of every image, depends on the seed.

        Weights on images and on classes multiply. A finding of which only one class is stated gets its share of the images as the
        probability of all. Raises UsageError for a start, which a convex fit forgets.
        """
        check_images(images)
        if start is not None or config.weights:
            raise UsageError("a linear probe has one best fit, whatever it starts from; leave the start out")
        x, y = self.features(images), np.asarray(labels, dtype=np.float64)
        share = np.ones(len(x)) if image_weights is None else np.asarray(image_weights, dtype=np.float64)
        if config.augment == "classic":
            x, y, share = np.concatenate([x, self.features(_varied(images, seed=seed))]), np.tile(y, (2, 1)), np.tile(share, 2)
        mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        weights = np.zeros((x.shape[1] + 1, len(findings)))
        for column in range(len(findings)):
            stated = ~np.isnan(y[:, column]) & (share > 0)
            truth = y[stated, column].astype(int)
            amount = share[stated] if class_weights is None else share[stated] * class_weights[truth, column]
            if len(np.unique(truth)) < 2:
                weights[-1, column] = 0.0 if len(truth) == 0 else 10.0 * (2 * truth[0] - 1)
                continue
            amount = amount * len(amount) / amount.sum()
            with one_thread():
                fitted = LogisticRegression(C=STRENGTH, max_iter=2000).fit(((x - mean) / scale)[stated], truth, sample_weight=amount)
            weights[:-1, column], weights[-1, column] = fitted.coef_[0], fitted.intercept_[0]
        for update in range(1, config.updates + 1):  # whoever counts updates finds as many as of the other classifiers
            progress(update / config.updates, "linear probe")
        parts = (mean, scale, weights)
        digest = hashlib.sha256(self.features.space.digest.encode() + b"".join(part.tobytes() for part in parts)).hexdigest()
        return LinearProbe(name=f"linear-probe-{FEATURES}", digest=digest, findings=tuple(findings), image_size=images.shape[1], mean=mean,
                           scale=scale, weights=weights, features=self.features)


def _varied(images: ImageArray, *, seed: int) -> ImageArray:
    """One copy of each image, varied as classic augmentation does, with the contrast that it came with."""
    full = np.iinfo(images.dtype).max
    grey = images.astype(np.float32) / full
    centre, spread = grey.mean(axis=(1, 2), keepdims=True), grey.std(axis=(1, 2), keepdims=True)
    moved, = vary(standardise(images, size=images.shape[1]), by=CLASSIC, generator=torch.Generator().manual_seed(seed))
    varied: ImageArray = ((moved[:, 0].numpy() * spread + centre).clip(0, 1) * full).astype(images.dtype)
    return varied
