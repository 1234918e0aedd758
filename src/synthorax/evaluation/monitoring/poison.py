"""Images that would poison a training: patch triggers, adversarial noise and wrong labels, flagged before anything learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import logit

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.monitoring.attacks import loss_gradient
from synthorax.evaluation.statistics.roc import wilson
from synthorax.judges.appearance import noise_level
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.cross_fit import CrossFit, cross_fit
from synthorax.judges.fitting import ImageArray
from synthorax.privacy.copies import conformal_threshold
from synthorax.progress import Progress, portion, quiet
from synthorax.types import ImageSet

FALSE_ALARM_RATE = 0.01
"""part of clean images that the three detectors together may flag"""
REASONS = {
    "trigger": "carries a small pattern that other images with its label carry in the same place",
    "adversarial": "carries noise that moves the judge's answer",
    "label": "its label contradicts the judge",
}
MIN_TRUSTED_IMAGES = 50
WINDOW_PX, STRIDE_PX = 4, 2
MIN_IMAGES_PER_GROUP, MAX_IMAGES_PER_GROUP = 20, 400
MIN_IMAGES_OUTSIDE, MAX_IMAGES_OUTSIDE = 40, 1000
ALIKE_PART = 0.03
"""part of a label's images with which an image is compared: those most alike in one place"""
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoisonCheck:
    """Scores of each detector for each image, [N], higher is more suspect, and the threshold above which it flags."""

    scores: dict[str, Vector]
    thresholds: dict[str, float]
    false_alarms: dict[str, Any]
    """share of the clean calibrating images that were flagged, with its interval and their number"""
    judges: tuple[dict[str, str], ...]

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """[N] whether any detector flags the image."""
        return np.asarray(np.any([self.scores[name] > self.thresholds[name] for name in self.scores], axis=0))

    def reasons(self, row: int) -> list[str]:
        """Names of the detectors that flag one image."""
        return [name for name in self.scores if self.scores[name][row] > self.thresholds[name]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoisonConfig:
    """How images are vetted."""

    rate: float = FALSE_ALARM_RATE
    """part of clean images that may be flagged, by all detectors together"""
    classifier: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(augment="classic"))
    """the judge, cross-fitted on trusted images"""
    seed: int = 0
    """all random numbers follow from it"""


def find_poisoned(suspects: ImageSet, trusted: ImageSet, *, config: PoisonConfig | None = None,
                  judge: CrossFit | None = None, progress: Progress = quiet) -> PoisonCheck:
    """Flag images of `suspects`; thresholds are conformal quantiles over real images that are trusted to be clean.

    Every trusted image is held out for one classifier of the judge, and calibrates that classifier's word on it. Each of the three
    detectors gets a third of the rate; where there are fewer than 3 / rate trusted images, the highest of them is the threshold. Raises
    InputError for fewer than 50 trusted images, and UsageError where sizes or findings differ.
    """
    config = config or PoisonConfig()
    if len(trusted) < MIN_TRUSTED_IMAGES:
        raise InputError(f"{len(trusted)} trusted images set no threshold", remedy=f"give at least {MIN_TRUSTED_IMAGES}, better 300")
    if suspects.pixels.shape[1:] != trusted.pixels.shape[1:] or suspects.findings != trusted.findings:
        raise UsageError("suspect and trusted images must have the same size and the same findings")
    if not any({0.0, 1.0} <= set(column[~np.isnan(column)].tolist()) for column in trusted.labels.T):
        raise InputError("trusted images state one class only, so no judge can learn from them", remedy="add images without the finding")
    judge = judge or cross_fit(trusted, config=config.classifier, seed=config.seed, progress=portion(progress, 0, 0.6))
    folds = range(len(judge.classifiers))
    known = np.empty((len(trusted), 3))
    for fold in folds:
        progress(0.6 + 0.2 * fold / len(folds), "adversarial noise")
        known[judge.part == fold] = adversarial_parts(trusted.take(np.flatnonzero(judge.part == fold)), judge, fold)
    made = np.mean([adversarial_parts(suspects, judge, fold) for fold in folds], axis=0)
    progress(0.8, "triggers")
    sizes = _group_sizes(suspects, trusted)
    clean = {"trigger": trigger_scores(trusted, sizes), "adversarial": adversarial_scores(known, known),
             "label": label_scores(trusted, judge.out_of_fold, trusted.labels, judge.out_of_fold)}
    progress(0.9, "triggers")
    scores = {"trigger": trigger_scores(suspects, sizes), "adversarial": adversarial_scores(made, known),
              "label": label_scores(trusted, judge.out_of_fold, suspects.labels, judge.predict(suspects.pixels))}
    thresholds = {name: conformal_threshold(values, config.rate / len(clean)) for name, values in clean.items()}
    checked = PoisonCheck(scores=clean, thresholds=thresholds, false_alarms={}, judges=({"name": judge.name, "digest": judge.digest},))
    called = int(checked.flagged.sum())
    progress(1.0, f"{len(suspects)} images checked")
    low, high = wilson(called, len(trusted))
    return replace(checked, scores=scores, false_alarms={"value": called / len(trusted), "low": low, "high": high, "images": len(trusted)})


def trigger_scores(images: ImageSet, sizes: Mapping[int, tuple[int, int]] | None = None) -> Vector:
    """How much an image agrees, in one place, with other images of one of its labels, [N]; 0 for images without a label held by enough
    images.

    `sizes` says of which findings, by column, how many images with it and without it are looked at, so that two sets can be compared.

    A window of 4 px of the image's detail is whitened by those of images without the label; its products with the same window of the images
    that have the label are near 0 but for a pattern that they share. The score is the mean over the most alike 3 % of these images, in the
    place where it is largest. This is the spectral signature of Tran et al. 2018 (Sec. 3), taken window by window and before any network
    has learned the pattern. A pattern that moves about is not found.
    """
    windows = _windows(images.pixels)
    scores = np.zeros(len(images))
    for number, (most_with, most_without) in (_group_sizes(images) if sizes is None else sizes).items():
        has, lacks = (np.flatnonzero(images.labels[:, number] == value) for value in (1, 0))
        rng = np.random.default_rng(0)
        chosen, lacks = rng.permutation(has)[:most_with], rng.permutation(lacks)[:most_without]
        position = {int(row): place for place, row in enumerate(chosen)}
        itself = np.array([position.get(int(row), -1) for row in has])
        most = max(2, round(ALIKE_PART * len(chosen)))
        best = np.zeros(len(has))
        for place in range(windows.shape[1]):
            without = windows[lacks, place]
            covariance = np.cov(without.T)
            shrunk = 0.9 * covariance + (0.1 * np.trace(covariance) / len(covariance) + 1e-6) * np.eye(len(covariance))
            values, vectors = np.linalg.eigh(shrunk)
            whitened = ((windows[has, place] - without.mean(axis=0)) @ vectors) / np.sqrt(values.clip(1e-6))
            whitened -= np.median(whitened, axis=0)  # what all images with the label share is the finding
            known = whitened[np.searchsorted(has, chosen)]
            alike = whitened @ known.T
            alike[np.flatnonzero(itself >= 0), itself[itself >= 0]] = -np.inf
            best = np.maximum(best, np.partition(alike, -most, axis=1)[:, -most:].mean(axis=1))
        scores[has] = np.maximum(scores[has], best)
    return scores


def _group_sizes(*sets: ImageSet) -> dict[int, tuple[int, int]]:
    """By column the images with and without a finding that every set has, for findings of which every set has enough."""
    sizes = {}
    for column in range(len(sets[0].findings)):
        counts = [[int((images.labels[:, column] == value).sum()) for images in sets] for value in (1, 0)]
        if min(counts[0]) >= MIN_IMAGES_PER_GROUP and min(counts[1]) >= MIN_IMAGES_OUTSIDE:
            sizes[column] = min(*counts[0], MAX_IMAGES_PER_GROUP), min(*counts[1], MAX_IMAGES_OUTSIDE)
    return sizes


def _windows(images: ImageArray) -> NDArray[np.float64]:
    """Windows of the detail of images [N, S, S]: [N, places, 16], less what a blur of 2 px keeps."""
    grey = images.astype(np.float64) / np.iinfo(images.dtype).max
    detail = grey - ndimage.gaussian_filter(grey, sigma=(0, 2, 2))
    seen = sliding_window_view(detail, (WINDOW_PX, WINDOW_PX), axis=(1, 2))[:, ::STRIDE_PX, ::STRIDE_PX]
    return np.asarray(seen.reshape(len(images), -1, WINDOW_PX**2))


def adversarial_parts(image_set: ImageSet, judge: CrossFit, fold: int) -> Vector:
    """Three signs of adversarial noise, by one classifier of the judge, [N, 3].

    The noise (logarithm of its level); how far the largest answer moves when the image is smoothed by a median of 3 px (feature squeezing,
    Xu et al. 2018, Sec. 4); and how much the image's detail points along the gradient of the loss, as a cosine.
    """
    classifier, top = judge.classifiers[fold], np.iinfo(image_set.pixels.dtype).max
    grey = image_set.pixels.astype(np.float64) / top
    smooth = ndimage.median_filter(grey, size=(1, 3, 3))
    smoothed = cast(ImageArray, (smooth * top).round().astype(image_set.pixels.dtype))
    before, after = (logit(classifier.predict(images).clip(1e-4, 1 - 1e-4)) for images in (image_set.pixels, smoothed))
    squeezed = np.abs(before - after).max(axis=1)
    detail, along = grey - smooth, []
    for start in range(0, len(image_set), 128):
        rows = slice(start, start + 128)
        slope = np.sign(loss_gradient(grey[rows].astype(np.float32), image_set.labels[rows], classifier))
        along.append((detail[rows] * slope).sum(axis=(1, 2)) / (np.linalg.norm(detail[rows], axis=(1,
                                                                                                   2)) * image_set.pixels.shape[1] + 1e-9))
    return np.stack([np.log10([1e-4 + noise_level(image) for image in grey]), squeezed, np.concatenate(along)], axis=1)


def adversarial_scores(parts: Vector, known: Vector) -> Vector:
    """Signs of adversarial noise [N, 3] as one number, [N]: the largest, each in units of what clean images, `known` [M, 3], rarely pass.

    A sum would let the sign that varies most among clean images hide the others.
    """
    centre = np.median(known, axis=0)
    spread = 1.4826 * np.median(np.abs(known - centre), axis=0) + 1e-6
    rarely = np.array([conformal_threshold(sign, FALSE_ALARM_RATE / 9) for sign in ((known - centre) / spread).T])
    return np.asarray(((parts - centre) / spread / np.maximum(rarely, 1)).max(axis=1))


def label_scores(trusted: ImageSet, known: Vector, labels: NDArray[np.floating], predictions: Vector) -> Vector:
    """How far an image's labels [N, K] contradict what the judge says of it, `said` [N, K]: the largest over findings, [N].

    The logarithm of how much likelier the judge's answer is on trusted images with the other label than on those with the given one,
    `known` [M, K] being its answers on these; answers are taken as normal on the logit scale. So a judge that cannot tell a finding
    accuses nobody. Confident learning (Northcutt et al. 2021, Sec. 3) counts the same contradictions by a threshold for each class.
    """
    scores = np.zeros(len(labels))
    for column, truth in enumerate(trusted.labels.T):
        if min((truth == 0).sum(), (truth == 1).sum()) < MIN_IMAGES_PER_GROUP / 4:
            continue
        answers, given = (logit(values[:, column].clip(1e-6, 1 - 1e-6)) for values in (known, predictions))
        likely = []
        for value in (0, 1):
            centre, spread = answers[truth == value].mean(), answers[truth == value].std() + 1e-3
            likely.append(-0.5 * ((given - centre) / spread) ** 2 - np.log(spread))
        against = np.where(labels[:, column] == 1, likely[0] - likely[1], np.where(labels[:, column] == 0, likely[1] - likely[0], 0))
        scores = np.maximum(scores, against)
    return scores
