"""The arms of the study of inserted lesions: which images each learns from, the judges that learn, and what they say of test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from lesion_proof_data import Cases, join
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from synthorax.evaluation.metrics.free_response import free_response
from synthorax.judges.blob_filter import BlobFilter
from synthorax.judges.channelised_observer import ObserverConfig, Places, channel_values
from synthorax.judges.lesion_detector import DetectorConfig, train_detector
from synthorax.judges.marks import Marks, strongest_places
from synthorax.rng import derive

CONVENTIONAL = ("real", "repeated", "classic", "weighted")
SYNTHETIC = ("inserted", "generated", "both", "template", "shuffled")
ARMS = (*CONVENTIONAL, *SYNTHETIC)
STEP_PX = 3
"""distance of the places at which the observer looks when it seeks a lesion"""
PLACES = 400
"""of a training image from which places without a lesion are drawn"""
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSet:
    """What one arm learns from: images with a lesion, images without, and how often each of the former counts."""

    positive: Cases
    negative: Cases
    weight: float
    """of each image with a lesion, relative to one without"""
    keys: NDArray[np.str_]
    """of each image, those with a lesion first: pool and row, by which a judge remembers what it saw"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pools:
    """All images that a part of the study may use, by kind. Rows of `classic`, `inserted` and `template` name their source in `real`."""

    real: Cases
    """patients of the study: those tested in fold f have `folds` f; training images that are never tested have -1"""
    classic: Cases
    inserted: Cases
    template: Cases
    generated: Cases
    generated_normal: Cases

    def named(self) -> Mapping[str, Cases]:
        """By kind."""
        return {name: getattr(self, name) for name in ("real", "classic", "inserted", "template", "generated", "generated_normal")}


def training_set(pools: Pools, *, arm: str, finding: str, k: int, fold: int, seed: int, num: int) -> TrainingSet | None:
    """The training images of an arm; None where the training folds have fewer than k patients with the finding.

    The same k patients and the same negatives in every arm of a seed and fold. Images made from a patient of the test fold are left out.
    """
    rng = np.random.default_rng(derive(seed, "training set", finding, fold, k))
    real = pools.real
    shown, train = real.having(finding), real.folds != fold
    people = rng.permutation(np.unique(real.patients[shown & train]))[:k]
    if len(people) < k:
        return None
    chosen = np.array([rng.permutation(np.flatnonzero(shown & train & (real.patients == person)))[0] for person in people])
    without = np.flatnonzero(train & real.having("No Finding"))
    parts, empty = [("real", chosen)], [("real", without)]
    weight = {"weighted": len(without) / k, "repeated": (k + num) / k}.get(arm, 1.0)
    if arm == "classic":
        copies = np.flatnonzero(np.isin(pools.classic.source, chosen))
        parts.append(("classic", np.resize(rng.permutation(copies), num)))
        empty.append(("classic", np.flatnonzero(np.isin(pools.classic.source, without))))
    shares = {"inserted": (("inserted", num),), "shuffled": (("inserted", num),), "template": (("template", num),),
              "generated": (("generated", num),), "both": (("inserted", num // 2), ("generated", num - num // 2))}.get(arm, ())
    for kind, count in shares:
        pool = pools.named()[kind]
        usable = np.flatnonzero(pool.having(finding) & (np.isin(pool.source, without) | (pool.source < 0)))
        parts.append((kind, np.resize(rng.permutation(usable), count)))
        if kind == "generated":  # as many generated ones without it, or the generator's look would be the finding
            empty.append(("generated_normal", np.resize(rng.permutation(len(pools.generated_normal)), count)))
    named = pools.named()
    positive, negative = (join(*(named[kind].take(rows) for kind, rows in some)) for some in (parts, empty))
    keys = np.array([f"{kind}:{row}" for some in (parts, empty) for kind, rows in some for row in rows])
    if arm == "shuffled":
        positive = _shuffled(positive, first=k, rng=rng)
    return TrainingSet(positive=positive, negative=negative, weight=weight, keys=keys)


def _shuffled(positive: Cases, *, first: int, rng: np.random.Generator) -> Cases:
    """Every synthetic lesion's label at a random place in the lungs of its image: whatever lies there, it is as likely to be labelled."""
    boxes = positive.boxes.copy()
    for row in range(first, len(positive)):
        rows, columns = np.nonzero(positive.lungs[row])
        at = int(rng.integers(len(rows)))
        boxes[row, :2] = columns[at] + 0.5 - boxes[row, 2] / 2, rows[at] + 0.5 - boxes[row, 3] / 2
    return replace(positive, boxes=boxes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a judge says of the test images of a fold."""

    scores: Vector
    """[N], of each image"""
    lesion_scores: Vector
    """[L], of the best mark on each lesion; minus infinity for none; empty for judges of whole images"""
    false_images: NDArray[np.intp]
    """[F]"""
    false_scores: Vector
    """[F]"""


def _said(marks: Marks, test: Cases, *, least_px: float) -> Said:
    found = free_response(marks, test.lesions(least_px=least_px))
    return Said(scores=np.nan_to_num(marks.image_scores(), neginf=-1e9), lesion_scores=np.nan_to_num(found.lesion_score, neginf=-1e9),
                false_images=found.false_image, false_scores=found.false_score)


@dataclass
class Observer:
    """The channelised observer with search, on values that are computed once an image; the second round learns from its false marks."""

    config: ObserverConfig = field(default_factory=ObserverConfig)
    hard: int = 1
    """strongest false places an image without a lesion, for the second round"""
    random: int = 10
    """places drawn at random in each image without a lesion"""
    most: int = 5
    _known: dict[str, tuple[Vector, Vector]] = field(default_factory=dict)

    def values(self, key: str, image: NDArray[np.uint8], places: Vector) -> Vector:
        """Channels at places [P, 2] (x, y) of one image, [P, 12]; remembered by `key` and number of places."""
        name = f"{key}/{len(places)}/{places[:1].tolist()}"
        if name not in self._known:
            where = Places(image=np.zeros(len(places), np.intp), x=places[:, 0], y=places[:, 1])
            self._known[name] = places, channel_values(image[None], where, config=self.config)
        return self._known[name][1]

    def __call__(self, learned: TrainingSet, test: Cases, *, seed: int, least_px: float, test_name: str = "test") -> Said:
        """Train, and mark the test images."""
        rng = np.random.default_rng(seed)
        k = len(learned.positive)
        middles = learned.positive.boxes[:, :2] + learned.positive.boxes[:, 2:] / 2
        here = np.concatenate([self.values(key, image, middle[None]) for key, image, middle
                               in zip(learned.keys[:k], learned.positive.images, middles, strict=True)])
        away = [self.values(key, image, _grid(lungs, at_most=PLACES)) for key, image, lungs
                in zip(learned.keys[k:], learned.negative.images, learned.negative.lungs, strict=True) if lungs.any()]
        first = np.concatenate([some[rng.integers(len(some), size=self.random)] for some in away])
        weights = discriminant(here, first, weight=learned.weight)
        hard = np.concatenate([some[np.argsort(-(some @ weights[:-1]))[: self.hard]] for some in away])
        weights = discriminant(here, np.concatenate([first, hard]), weight=learned.weight)
        return self.marked(test, lambda values: values @ weights[:-1] + weights[-1], least_px=least_px, name=test_name)

    def marked(self, test: Cases, score: Callable[[Vector], Vector], *, least_px: float, name: str) -> Said:
        """The strongest places of each test image."""
        marks = []
        for row, (image, lungs) in enumerate(zip(test.images, test.lungs, strict=True)):
            places = _grid(lungs)
            if not len(places):
                marks.append(Marks.of_image([]))
                continue
            scores = score(self.values(f"{name}:{test.patients[row]}", image, places))
            side = -(-len(image) // STEP_PX)
            grid = np.full((side, side), -np.inf)
            grid[tuple((places[:, ::-1] // STEP_PX).astype(int).T)] = scores
            marks.append(strongest_places(grid, distance_px=8, stride=STEP_PX, most=self.most, within=np.isfinite(grid)))
        return _said(Marks.join(marks), test, least_px=least_px)


def _grid(lungs: NDArray[np.bool_], *, at_most: int | None = None) -> Vector:
    """Places in the lungs, `STEP_PX` apart, [P, 2] (x, y); evenly thinned to `at_most`."""
    rows, columns = np.nonzero(lungs[STEP_PX // 2 :: STEP_PX, STEP_PX // 2 :: STEP_PX])
    places = STEP_PX * np.stack([columns, rows], axis=1) + STEP_PX // 2 + 0.5
    return places if at_most is None or len(places) <= at_most else places[np.linspace(0, len(places) - 1, at_most).astype(int)]


def discriminant(here: Vector, away: Vector, *, weight: float = 1.0) -> Vector:
    """The linear discriminant of `judges.channelised_observer`, [F + 1], the bias last; a place with a lesion counts `weight` times."""
    scale = np.maximum(np.concatenate([here - here.mean(0), away - away.mean(0)]).std(axis=0), 1e-9)
    means = here.mean(axis=0) / scale, away.mean(axis=0) / scale
    counts = np.repeat([weight, 1.0], [len(here), len(away)])
    residuals = np.concatenate([here / scale - means[0], away / scale - means[1]]) * np.sqrt(counts / counts.mean())[:, None]
    direction = np.linalg.solve(ledoit_wolf(residuals, assume_centered=True)[0], means[0] - means[1])
    return np.append(direction / scale, -float(direction @ (means[0] + means[1])) / 2)


def detect(learned: TrainingSet, test: Cases, *, seed: int, least_px: float, config: DetectorConfig) -> Said:
    """Train the detector on crops, lesions as often as they are among the images (at most half of the crops), and mark the test images."""
    k, rest = learned.weight * len(learned.positive), len(learned.negative)
    settings = replace(config, lesion_share=min(0.5, k / (k + rest)))
    images = np.concatenate([learned.positive.images, learned.negative.images])
    trained = train_detector(images, learned.positive.lesions(), finding="Nodule", trained_on="an arm", config=settings, seed=seed)
    return _said(trained.marks(test.images, within=test.lungs, most=5), test, least_px=least_px)


def untrained(test: Cases, *, least_px: float) -> Said:
    """The blob filter."""
    return _said(BlobFilter(most=5).marks(test.images, within=test.lungs), test, least_px=least_px)


def classify(learned: TrainingSet, features: Callable[[str, Cases], Vector], test: Vector, *, strength: float, arm: str, seed: int) -> Said:
    """A regularised linear head on frozen features: `features(keys, ...)` of training images, `test` [N, F] of test images."""
    k = len(learned.positive)
    x = np.concatenate([features(learned.keys[:k], learned.positive), features(learned.keys[k:], learned.negative)])
    y = np.repeat([1, 0], [k, len(x) - k])
    if arm == "shuffled":
        y = _labels_shuffled(y, keys=learned.keys, seed=seed)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    counts = np.where(y == 1, learned.weight, 1.0)
    # The solution lies in the span of the images: fitting in its coordinates is the same and takes a fraction of the time.
    left, sizes, axes = np.linalg.svd((x - mean) / scale, full_matrices=False)
    head = LogisticRegression(C=strength, max_iter=2000).fit(left * sizes, y, sample_weight=counts / counts.mean())
    scores = ((test - mean) / scale) @ axes.T @ head.coef_[0] + float(head.intercept_[0])
    return Said(scores=scores, lesion_scores=np.zeros(0), false_images=np.zeros(0, np.intp), false_scores=np.zeros(0))


def _labels_shuffled(labels: NDArray[Any], *, keys: NDArray[np.str_], seed: int) -> NDArray[Any]:
    """The labels of inserted images and of as many images without the finding, permuted; those of real positives stay."""
    made = np.flatnonzero(np.char.startswith(keys, "inserted:"))
    rng = np.random.default_rng(derive(seed, "shuffled"))
    others = rng.permutation(np.flatnonzero(labels == 0))[: len(made)]
    mixed = np.concatenate([made, others])
    changed = labels.copy()
    changed[mixed] = rng.permutation(labels[mixed])
    return changed

