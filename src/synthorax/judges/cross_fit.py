"""Judges that are asked only about patients whom they were not trained on, so that what they say can be trusted to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthorax.judges.classifier import Classifier, ClassifierConfig, train_classifier
from synthorax.progress import Progress, portion, quiet
from synthorax.rng import derive
from synthorax.types import ImageSet


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossFit:
    """K classifiers, each trained on all patients but one part, and their opinions on that part."""

    classifiers: tuple[Classifier, ...]
    out_of_fold: NDArray[np.float64]
    """[N, K] probabilities for the training images, each from the classifier that did not see its patient"""
    findings: tuple[str, ...]
    part: NDArray[np.intp]
    """[N] which classifier has not seen the training image's patient"""

    @property
    def name(self) -> str:
        """Name under which reports list this judge."""
        return f"{self.classifiers[0].name} cross-fitted x{len(self.classifiers)}"

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of its classifiers."""
        return hashlib.sha256("".join(c.digest for c in self.classifiers).encode()).hexdigest()

    def predict(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float64]:
        """Mean probability over the classifiers, [N, S, S] -> [N, K], for images that none of them was trained on."""
        return np.asarray(np.mean([classifier.predict(images) for classifier in self.classifiers], axis=0))


def cross_fit(images: ImageSet, *, config: ClassifierConfig, folds: int = 3, seed: int = 0,
              progress: Progress = quiet) -> CrossFit:
    """Train `folds` classifiers on patients of the others' parts (cross-fitting; Chernozhukov et al. 2018, Sec. 3)."""
    part = patient_folds(images.patients(), folds=folds, seed=seed)
    out_of_fold = np.zeros(images.labels.shape, dtype=np.float64)
    classifiers = []
    for fold in range(folds):
        rest, own = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
        classifier = train_classifier(images.pixels[rest], images.labels[rest], findings=images.findings, config=config,
                                      seed=derive(seed, "cross-fit", fold), progress=portion(progress, fold / folds, (fold + 1) / folds))
        out_of_fold[own] = classifier.predict(images.pixels[own])
        classifiers.append(classifier)
    return CrossFit(classifiers=tuple(classifiers), out_of_fold=out_of_fold, findings=images.findings, part=part)


def patient_folds(patients: Sequence[str] | NDArray[np.str_], *, folds: int, seed: int) -> NDArray[np.intp]:
    """Part of each image, [N] in 0..folds - 1; all images of a patient share one."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    order = np.random.default_rng(derive(seed, "folds")).permutation(len(names))
    return np.asarray(order[index] % folds, dtype=np.intp)


def cross_conformal(known: NDArray[np.float64], part: NDArray[np.intp], new: NDArray[np.float64]) -> NDArray[np.float64]:
    """p of new images, [M]: the share of held-out images that are at least as unusual, the new image counted among them.

    `known` [N] are the held-out images' scores, image i by the model of its part, and `new` [folds, M] those of new images by every model.

    >>> cross_conformal(np.arange(9.0), np.zeros(9, int), np.array([[100.0, -1.0]])).tolist()
    [0.1, 1.0]
    """
    at_least = np.zeros(new.shape[1])
    for fold in range(len(new)):
        own = np.sort(known[part == fold])
        at_least += len(own) - np.searchsorted(own, new[fold], side="left")
    return np.asarray((1 + at_least) / (1 + len(known)))
