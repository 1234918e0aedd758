"""Classifiers by name, each with the settings that suit it: what `benefit` can be asked to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import UsageError, nearest
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.config import SCREENS as SCREENS
from synthorax.judges.fitting import ImageArray
from synthorax.progress import Progress, quiet
from synthorax.registry import lookup

CLASSIFIERS = {
    "small": "synthorax.judges.classifier:train_classifier",
    "densenet121": "synthorax.judges.classifier:train_classifier",
    "resnet50": "synthorax.judges.classifier:train_classifier",
    "efficientnet": "synthorax.judges.classifier:train_classifier",
    "vgg16": "synthorax.judges.classifier:train_classifier",
    "linear-probe": "synthorax.judges.linear_probe:LinearProbeTraining",
}
"""name -> function that trains it, or class whose instances do"""
USUAL = {
    "small": ClassifierConfig(),
    "densenet121": ClassifierConfig(network="densenet121", input_size=224, learning_rate=3e-4),
    "resnet50": ClassifierConfig(network="resnet50", input_size=224, learning_rate=3e-4),
    "efficientnet": ClassifierConfig(network="efficientnet", input_size=224, learning_rate=1e-3),
    "vgg16": ClassifierConfig(network="vgg16", input_size=224, learning_rate=1e-4),
    "linear-probe": ClassifierConfig(network="linear-probe", updates=1),
}
"""name -> settings to begin with"""


class TrainedClassifier(Protocol):
    """What every classifier can be asked, whatever it is."""

    @property
    def name(self) -> str:
        """Short name that reports carry."""

    @property
    def digest(self) -> str:
        """SHA-256 of what was learned."""

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""

    def predict(self, images: ImageArray) -> NDArray[np.float64]:
        """Probability of each finding, [N, S, S] -> [N, K]."""


class Train(Protocol):
    """How a classifier is trained; see `classifier.train_classifier`."""

    def __call__(
        self, images: ImageArray, labels: NDArray[np.floating], *, findings: Sequence[str], config: ClassifierConfig, seed: int,
        image_weights: NDArray[np.floating] | None = None, class_weights: NDArray[np.floating] | None = None,
        start: TrainedClassifier | None = None, progress: Progress = quiet,
    ) -> TrainedClassifier:
        """Train on images [N, S, S] with labels [N, K] in {0, 1, NaN}."""


def usual_classifier(name: str) -> ClassifierConfig:
    """Settings of the classifier called `name`; an unknown name is an error that lists the choices.

    >>> usual_classifier("densenet121").input_size
    224
    """
    if name not in USUAL:
        raise UsageError(f"unknown classifier '{name}'; {nearest(name, USUAL)}")
    return USUAL[name]


def training_of(config: ClassifierConfig) -> Train:
    """The function that trains the classifier of this config."""
    found = lookup(CLASSIFIERS, config.network, kind="classifier")
    return cast(Train, found() if isinstance(found, type) else found)
