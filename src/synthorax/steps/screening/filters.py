"""Filters of screening that ask how unusual an image is, each with a threshold that real ones set and a stated rate of false rejections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import LocalOutlierFactor

from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import UsageError, nearest
from synthorax.judges.appearance import appearance_statistics
from synthorax.judges.classifier import Classifier, ClassifierConfig
from synthorax.judges.cross_fit import CrossFit, cross_conformal, cross_fit
from synthorax.judges.fitting import ImageArray
from synthorax.judges.realism import nearest_squared_distances
from synthorax.privacy.copies import conformal_threshold
from synthorax.privacy.registration import local_contrast
from synthorax.rng import derive
from synthorax.types import ImageSet

FILTERS = {
    "copy": "near-duplicate of a training image",
    "realism": "unlike the real images, whatever it shows: noise, blur, one grey, inverted, turned",
    "duplicate": "near-duplicate of an earlier synthetic image that is kept",
    "finding": "the judge does not see what was asked for, or sees what was not",
    "view": "a judge of the view alone sees another view than asked for",
    "distance": "far from the real images that show what was asked for",
    "outlier": "in a place where real images are thin (local outlier factor)",
    "entropy": "the judge cannot make up its mind about it",
    "anatomy": "lungs or heart unlike those of real images: their number, sides, sizes, shapes, cardiothoracic ratio",
}
USUAL = ("copy", "realism", "duplicate", "finding")
"""filters that are on unless others are named: the rest also judge how well a generator draws, and may leave little of a weak one's work"""
ASK_THE_JUDGE = frozenset(FILTERS) - {"copy", "realism", "duplicate", "finding", "view", "anatomy"}
"""filters of `unusual_images`, which use the judge of the findings; `finding` needs it only for findings that can be checked"""
REJECTION_RATE = 0.02
"""part of real images that each of distance, outlier and entropy may reject"""
VIEW_RATE = 0.05
"""part of real images of each view that the view filter may reject: views are told apart almost surely, so a stricter check costs little"""
DUPLICATE_RATE = 0.01
"""part of real images of other patients that may be called duplicates"""
DUPLICATE_GRID_PX = 32
NEIGHBOURS = 5
OUTLIER_NEIGHBOURS = 20
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusual:
    """What one filter says of each image."""

    reason: str
    p: Vector
    """[M] how rarely a real image is as unusual; the image is rejected at or below `rate`"""
    rate: float = REJECTION_RATE


def chosen_filters(names: Sequence[str]) -> tuple[str, ...]:
    """The filters by name, `USUAL` if none is named and all for `all`; an unknown name is an error that lists the choices."""
    if not names:
        return USUAL
    if "all" in names:
        return tuple(FILTERS)
    for name in names:
        if name not in FILTERS:
            raise UsageError(f"unknown filter '{name}'; {nearest(name, (*FILTERS, 'all'))}")
    return tuple(name for name in FILTERS if name in names)


def asks_a_judge_of_findings(names: Sequence[str]) -> bool:
    """Whether the filters by these names may need a judge of the findings."""
    return not (ASK_THE_JUDGE | {"finding"}).isdisjoint(chosen_filters(names))


def unusual_images(real: ImageSet, judge: CrossFit, images: ImageSet, *, filters: Sequence[str]) -> list[Unusual]:
    """What those of `ASK_THE_JUDGE` that are among `filters` say of synthetic images.

    `judge` was cross-fitted on `real`, so every real image is held out for one of its classifiers. An image's p is that of cross-conformal
    prediction (Vovk 2015, Eq. 11): each real image is compared with it under the classifier that saw neither.
    """
    found = []
    if "entropy" in filters:
        new = np.stack([_entropy(classifier.predict(images.pixels)) for classifier in judge.classifiers])
        found.append(Unusual(reason="the judge is undecided", p=cross_conformal(_entropy(judge.out_of_fold), judge.part, new)))
    if not {"distance", "outlier"} & set(filters):
        return found
    look, appearance_synthetic = appearance_statistics(real.pixels), appearance_statistics(images.pixels)
    rooms = [_Room.of(real, look, judge, fold) for fold in range(len(judge.classifiers))]
    generated = [room.place(images.pixels, appearance_synthetic) for room in rooms]
    if "distance" in filters:
        found += _distances(real, judge, images, rooms, generated)
    if "outlier" in filters:
        scores, judged = np.empty(len(real)), list[Vector]()
        for fold, room in enumerate(rooms):
            lof = LocalOutlierFactor(n_neighbors=min(OUTLIER_NEIGHBOURS, len(room.others) - 1), novelty=True).fit(room.others)
            scores[judge.part == fold] = -lof.score_samples(room.own)
            judged.append(-lof.score_samples(generated[fold]))
        found.append(Unusual(reason="unlike any real image (local outlier factor)", p=cross_conformal(scores, judge.part,
                                                                                                      np.stack(judged))))
    return found


def other_views(real: ImageSet, images: ImageSet, *, config: ClassifierConfig, seed: int = 0) -> tuple[list[Unusual], CrossFit | None]:
    """What a judge that learned nothing but the view says of synthetic images, for each view that enough real images state; and that judge.

    It is cross-fitted on `real`; an image's p is that of `cross_conformal` among real images of the view that it was asked for. Without two
    views to tell apart, or where no image was asked for one, there is nothing to say and no judge.
    """
    views = sorted({study.view for study in real.studies} - {""})
    stated = real.take([number for number, study in enumerate(real.studies) if study.view])
    shown, asked = ({view: np.array([study.view == view for study in some.studies]) for view in views} for some in (stated, images))
    known = [view for view in views if asked[view].any() and (shown[view].sum() + 1) * VIEW_RATE >= 1]
    if len(views) < 2 or not known:
        return [], None
    labels = np.stack([shown[view] for view in views], axis=1).astype(np.float32)
    judge = cross_fit(replace(stated, findings=tuple(views), labels=labels), config=config, seed=derive(seed, "views"))
    answers = np.stack([classifier.predict(images.pixels) for classifier in judge.classifiers])
    found = []
    for view in known:
        column, own, requested = views.index(view), shown[view], asked[view]
        p = np.ones(len(images))
        p[requested] = cross_conformal(-judge.out_of_fold[own, column], judge.part[own], -answers[:, requested, column])
        found.append(Unusual(reason=f"does not look like {view}", p=p, rate=VIEW_RATE))
    return found, judge


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Likeness:
    """How alike synthetic images are."""

    between: Matrix
    """[M, M]: correlation of local contrast"""
    threshold: float
    """likeness above which one repeats the other"""


def likeness_of(new: ImageArray, real: ImageSet, *, rate: float = DUPLICATE_RATE) -> Likeness:
    """Correlation of local contrast among synthetic images, on a grid of 32 px, and when it is too high.

    The threshold is the likeness that a real image has to the nearest of as many images of other patients with a chance of `rate` only.
    """
    generated, known = (_contrast(images) for images in (new, real.pixels))
    patients = real.patients()
    among = np.random.default_rng(0).permutation(len(real))[: len(new)]
    likeness = known @ known[among].T
    likeness[patients[:, None] == patients[among][None]] = -1
    return Likeness(between=generated @ generated.T, threshold=conformal_threshold(likeness.max(axis=1), rate))


def _contrast(images: ImageArray) -> Vector:
    flat = local_contrast(images, grid=DUPLICATE_GRID_PX).flatten(1).double().numpy()
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """One classifier's features and the look of the image, standardised so that each of the two has half of the variance."""

    classifier: Classifier
    mean: Vector
    scale: Vector
    own: Vector
    """training images that the classifier has not seen"""
    others: Vector
    """those that it has seen"""
    rows: NDArray[np.intp]
    """of the latter among all training images"""

    @classmethod
    def of(cls, real: ImageSet, look: Vector, judge: CrossFit, fold: int) -> _Room:
        features = judge.classifiers[fold].features(real.pixels)
        raw, rest = np.concatenate([features, look], axis=1), judge.part != fold
        size = np.sqrt([features.shape[1]] * features.shape[1] + [look.shape[1]] * look.shape[1])
        mean, scale = raw[rest].mean(axis=0), (raw[rest].std(axis=0) + 1e-6) * size
        placed = (raw - mean) / scale
        return cls(classifier=judge.classifiers[fold], mean=mean, scale=scale, own=placed[~rest], others=placed[rest],
                   rows=np.flatnonzero(rest))

    def place(self, images: ImageArray, look: Vector) -> Vector:
        """Images [M, S, S] with their look [M, L], in the room's coordinates."""
        return np.asarray((np.concatenate([self.classifier.features(images), look], axis=1) - self.mean) / self.scale)


def _distances(real: ImageSet, judge: CrossFit, images: ImageSet, rooms: Sequence[_Room], generated: Sequence[Vector]) -> list[Unusual]:
    """Mean distance to the nearest real images of each requested finding; images that ask for none are held against those with none."""
    found = []
    for name, shown, asked in _kinds(real, images):
        counts = [int(shown[room.rows].sum()) for room in rooms]
        if not asked.any() or min(counts) < NEIGHBOURS or (shown.sum() + 1) * REJECTION_RATE < 1:
            continue  # so few real images set no threshold
        known, new = np.empty(int(shown.sum())), []
        for fold, room in enumerate(rooms):
            reference = room.others[shown[room.rows]]
            known[judge.part[shown] == fold] = _nearness(room.own[shown[judge.part == fold]], reference)
            new.append(_nearness(generated[fold][asked], reference))
        p = np.ones(len(images))
        p[asked] = cross_conformal(known, judge.part[shown], np.stack(new))
        found.append(Unusual(reason=f"far from real images {name}", p=p))
    return found


def _kinds(real: ImageSet, images: ImageSet) -> list[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]]:
    """What real images can show, by name: which of them do, [N], and which synthetic images were asked for it, [M]."""
    names = [name for name in real.findings if name != NO_FINDING]
    columns = [real.findings.index(name) for name in names]
    kinds = [(f"with {name}", real.column(name) == 1, images.column(name) == 1) for name in names]
    return [*kinds, ("without a finding", ~(real.labels[:, columns] == 1).any(axis=1), ~(images.labels[:, columns] == 1).any(axis=1))]


def _nearness(images: Vector, reference: Vector) -> Vector:
    return np.asarray(np.sqrt(nearest_squared_distances(images, reference, num=NEIGHBOURS)).mean(axis=1))


def _entropy(probabilities: Vector) -> Vector:
    """Sum over findings of the entropy of a judge's answers [N, K], in bits."""
    p = probabilities.clip(1e-9, 1 - 1e-9)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum(axis=1))
