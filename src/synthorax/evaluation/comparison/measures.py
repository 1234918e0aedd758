"""The same metrics for every generator of a comparison: synthetic images against held-out ones, each number with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.dimensions.controllability import controllability
from synthorax.evaluation.metrics.distances import fid_score, kid_score
from synthorax.evaluation.metrics.feature_sets import RealImages, SetFeatures, Vectors
from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.metrics.neighbours import neighbour_scores
from synthorax.evaluation.report.contact_sheets import eight_bit
from synthorax.evaluation.statistics.bootstrap import counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.intervals import Z_95
from synthorax.evaluation.statistics.over_seeds import number
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.classifier import ClassifierConfig, train_classifier
from synthorax.judges.features import FeatureSpace
from synthorax.privacy.copies import CopyDetector, FalseAlarms
from synthorax.types import ImageSet, Score

MIN_JUDGE_AUROC = 0.6
"""AUROC on real held-out images from which on the judge of a finding is believed"""
WITHIN, REQUEST, VIEW = "ms_ssim_within_synthetic", "requested_finding_auroc", "view_agreement"
DISTRIBUTION = ("fid", "kid", "precision", "recall", "density", "coverage")
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealReference:
    """What all generators are held against: the real images, looked at once."""

    real: RealImages
    space: FeatureSpace
    train: Vectors
    held_out: Vectors

    @classmethod
    def of(cls, real: RealImages, space: FeatureSpace) -> RealReference:
        """The real images as one feature space sees them."""
        return cls(real=real, space=space, train=space(real.train.pixels), held_out=space(real.held_out.pixels))


def quality_record(reference: RealReference, made: ImageSet) -> Record:
    """Distances, neighbours, similarity of pairs and adherence to the condition; what cannot be measured has its reason.

    A metric is `value` and `error`, the standard error of its sampling. The synthetic images carry the labels that were requested.
    """
    vectors = reference.space(made.pixels)
    record: Record = {name: number(score) for name, score in zip(DISTRIBUTION, _distribution(reference, vectors), strict=True)}
    pairs = {score.metric: score for score in
             ms_ssim_scores(reference.real.held_out.pixels, made.pixels, floor_sets=None, seed=0)}
    for name in (WITHIN, "ms_ssim_within_real"):
        record[name] = number(pairs[name])
    return record | condition_adherence(reference, made, vectors)


def condition_adherence(reference: RealReference, made: ImageSet, vectors: Vectors) -> Record:
    """Whether judges that learned from real training images see the requested findings and view.

    The mean AUROC is over findings whose judge reaches `MIN_JUDGE_AUROC` on real images. Its error is the mean of the findings' errors,
    as if these were fully correlated: that is never too small.
    """
    if np.isnan(made.labels).all() and not any(study.view for study in made.studies):
        return {name: {"skipped": "cannot be asked"} for name in (REQUEST, VIEW)}
    seen = SetFeatures(space=reference.space, train=reference.train, held_out=reference.held_out, synthetic=vectors)
    dimension, _ = controllability(reference.real, made, seen)
    asked = [score for score in dimension.scores if score.metric == REQUEST]
    believed = [score for score in asked if (score.floor or 0) >= MIN_JUDGE_AUROC]
    views = [score for score in dimension.scores if score.metric == VIEW]
    record: Record = {REQUEST: {"skipped": dimension.reason or f"no judge reaches {MIN_JUDGE_AUROC} on real images"},
                      VIEW: {"skipped": "too few images of each view asked for"}}
    if believed:
        numbers = [number(score) for score in believed]
        record[REQUEST] = {name: float(np.mean([one[name] for one in numbers])) for name in ("value", "error")}
        record[REQUEST]["findings"] = {score.group: round(score.value, 4) for score in believed}
    if views:
        record[VIEW] = number(views[0])
    return record


def reference_record(reference: RealReference, *, num: int) -> Record:
    """What real images get: training images, as many as are made, in the place of made ones; judges are asked about held-out images."""
    real = reference.real
    rows = np.random.default_rng(0).permutation(len(real.train))[:num]
    record: Record = {name: number(score)
                      for name, score in zip(DISTRIBUTION, _distribution(reference, reference.train[rows]), strict=True)}
    pairs = {score.metric: score for score in
             ms_ssim_scores(real.held_out.pixels, real.train.pixels[rows], floor_sets=None, seed=0)}
    return record | {WITHIN: number(pairs["ms_ssim_within_real"])} | condition_adherence(reference, real.held_out,
                                                                                         reference.held_out)


def near_copies(detector: CopyDetector, alarms: FalseAlarms, images: NDArray[np.uint8] | NDArray[np.uint16]) -> dict[str, int]:
    """How many made images [N, S, S] are called copies of training images, and how many real images of other patients were."""
    return {"called": int(detector.check(images).is_copy.sum()), "of": len(images), "alarms": round(alarms.rate * alarms.num_images),
            "alarms_of": alarms.num_images}


def downstream(learned: ImageSet, made: ImageSet | None, test: ImageSet, *, finding: str, config: ClassifierConfig, seed: int) -> Record:
    """What a classifier gains on real images of unseen patients when made images join the real ones that the generator had.

    Both classifiers take equally many updates. The interval is over patients drawn anew. `made` is None for a generator that cannot be
    asked for the finding.
    """
    if made is None:
        return {"skipped": "cannot be asked, so its images have no labels"}
    known = ~np.isnan(test.column(finding))
    predictions = []
    for parts in ((learned,), (learned, made)):
        classifier = train_classifier(np.concatenate([eight_bit(part.pixels) for part in parts]),
                                      np.concatenate([part.column(finding) for part in parts])[:, None],
                                      findings=[finding], config=config, seed=seed)
        predictions.append(classifier.predict(eight_bit(test.pixels[known]))[:, 0])
    labels = test.column(finding)[known].astype(int)
    try:
        gain = counted_bootstrap(labels, np.stack(predictions, axis=1), test.patients()[known], counted_gain)
    except InputError as error:
        return {"skipped": str(error)}
    return {"value": gain.value, "error": (gain.high - gain.low) / (2 * Z_95), "auroc_without": auroc(labels, predictions[0]),
            "auroc_with": auroc(labels, predictions[1])}


def _distribution(reference: RealReference, vectors: Vectors) -> Sequence[Score]:
    """The scores of `DISTRIBUTION`, in its order."""
    patients, name = reference.real.held_out.patients(), reference.space.name
    real = reference.held_out
    return (fid_score(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients),
            kid_score(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients),
            *neighbour_scores(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients))
