"""A chest feature space: what the last layer of a small classifier sees that learned the findings of the real training images."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from synthorax.errors import InputError
from synthorax.judges.classifier import Classifier, ClassifierConfig, train_classifier
from synthorax.types import ImageSet

QUICK = ClassifierConfig(updates=500, batch_size=32, width=16, augment="classic")


class ChestFeatures:
    """Penultimate features of a classifier trained on real training images alone, which no generator's image was shown to.

    Input contract: as `FeatureSpace`, at the size of the images that it was trained on. Two reports compare only where its digest is the
    same: it is trained anew from the images, the seed and its settings.
    """

    def __init__(self, classifier: Classifier) -> None:
        """From a trained classifier."""
        self.name, self.digest = f"chest-{classifier.name}", classifier.digest
        self.num_features = cast(nn.Linear, classifier.network.head).in_features
        self._classifier = classifier

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Features [N, F] of images [N, S, S]."""
        if len(images) == 0:
            return np.zeros((0, self.num_features), dtype=np.float32)
        return self._classifier.features(images).astype(np.float32)


def fit_chest_features(train: ImageSet, *, seed: int, config: ClassifierConfig = QUICK) -> ChestFeatures:
    """Train the classifier on all findings that at least 10 images show and 10 do not; InputError where there is none."""
    kept = [k for k in range(len(train.findings)) if min((train.labels[:, k] == 1).sum(), (train.labels[:, k] == 0).sum()) >= 10]
    if not kept:
        raise InputError("no finding is stated present and absent in 10 real training images each, so no chest classifier can be trained",
                         remedy="leave out --features chest")
    labels = train.labels[:, kept]
    return ChestFeatures(train_classifier(train.pixels, labels, findings=[train.findings[k] for k in kept], config=config, seed=seed))
