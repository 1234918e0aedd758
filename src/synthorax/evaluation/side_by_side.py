"""The same measures of every generator that is compared: made films against held-out ones, each number with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.diversity import ms_ssim_scores, neighbour_scores
from synthorax.evaluation.fidelity import fid_score, kid_score
from synthorax.evaluation.over_seeds import number
from synthorax.evaluation.requests import controllability
from synthorax.evaluation.resampling import counted_bootstrap, counted_gain
from synthorax.evaluation.sampling import Z_95
from synthorax.evaluation.sheets import eight_bit
from synthorax.evaluation.sides import RealFilms, Seen, Vectors
from synthorax.evaluation.statistics import auroc
from synthorax.judges.classifier import ClassifierConfig, train_classifier
from synthorax.judges.features import FeatureSpace
from synthorax.privacy.copies import CopyDetector, FalseAlarms
from synthorax.types import Films, Score

TELLS_FROM = 0.6
"""AUROC on real held-out films from which on the judge of a finding is believed"""
WITHIN, REQUEST, VIEW = "MS-SSIM within", "request AUROC", "view obeyed"
DISTRIBUTION = ("FID", "KID", "precision", "recall", "density", "coverage")
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Yardstick:
    """What all generators are held against: the real films, looked at once."""

    real: RealFilms
    space: FeatureSpace
    train: Vectors
    held_out: Vectors

    @classmethod
    def of(cls, real: RealFilms, space: FeatureSpace) -> Yardstick:
        """The real films as one feature space sees them."""
        return cls(real=real, space=space, train=space(real.train.images), held_out=space(real.held_out.images))


def measured(yardstick: Yardstick, made: Films) -> Record:
    """Distances, neighbours, similarity of pairs and obedience of made films; what cannot be measured is `skipped` with the reason.

    A measure is `value` and `error`, the standard error of its sampling. The made films carry the labels that were asked for.
    """
    vectors = yardstick.space(made.images)
    record: Record = {name: number(score) for name, score in zip(DISTRIBUTION, _distribution(yardstick, vectors), strict=True)}
    pairs = {score.metric: score for score in
             ms_ssim_scores(yardstick.real.held_out.images, made.images, floor_sets=None, seed=0)}
    record[WITHIN] = number(pairs["ms_ssim_within_synthetic"])
    record["MS-SSIM within real"] = number(pairs["ms_ssim_within_real"])
    return record | obeyed(yardstick, made, vectors)


def obeyed(yardstick: Yardstick, made: Films, vectors: Vectors) -> Record:
    """Whether judges that learned from real training films see the findings and the view that were asked for.

    The mean AUROC is over findings whose judge is believed (`TELLS_FROM`). Its error is the mean of the findings' errors, as if these were
    one film's luck: that is never too small.
    """
    if np.isnan(made.labels).all() and not any(study.view for study in made.studies):
        return {name: {"skipped": "cannot be asked"} for name in (REQUEST, VIEW)}
    seen = Seen(space=yardstick.space, train=yardstick.train, held_out=yardstick.held_out, synthetic=vectors)
    dimension, _ = controllability(yardstick.real, made, seen)
    asked = [score for score in dimension.scores if score.metric == "requested finding auroc"]
    believed = [score for score in asked if (score.floor or 0) >= TELLS_FROM]
    views = [score for score in dimension.scores if score.metric == "view agreement"]
    record: Record = {REQUEST: {"skipped": dimension.reason or f"no judge reaches {TELLS_FROM} on real films"},
                      VIEW: {"skipped": "too few films of each view asked for"}}
    if believed:
        numbers = [number(score) for score in believed]
        record[REQUEST] = {name: float(np.mean([one[name] for one in numbers])) for name in ("value", "error")}
        record[REQUEST]["findings"] = {score.group: round(score.value, 4) for score in believed}
    if views:
        record[VIEW] = number(views[0])
    return record


def real_reference(yardstick: Yardstick, *, num: int) -> Record:
    """What real films get: training films, as many as are made, in the place of made ones; judges are asked about held-out films."""
    real = yardstick.real
    rows = np.random.default_rng(0).permutation(len(real.train))[:num]
    record: Record = {name: number(score)
                      for name, score in zip(DISTRIBUTION, _distribution(yardstick, yardstick.train[rows]), strict=True)}
    pairs = {score.metric: score for score in
             ms_ssim_scores(real.held_out.images, real.train.images[rows], floor_sets=None, seed=0)}
    return record | {WITHIN: number(pairs["ms_ssim_within_real"])} | obeyed(yardstick, real.held_out, yardstick.held_out)


def near_copies(detector: CopyDetector, alarms: FalseAlarms, images: NDArray[np.uint8] | NDArray[np.uint16]) -> dict[str, int]:
    """How many made films [N, S, S] are called copies of training films, and how many real films of other patients were."""
    return {"called": int(detector.check(images).is_copy.sum()), "of": len(images), "alarms": round(alarms.rate * alarms.num_films),
            "alarms_of": alarms.num_films}


def downstream(learned: Films, made: Films | None, test: Films, *, finding: str, config: ClassifierConfig, seed: int) -> Record:
    """What a classifier gains on real films of unseen patients when made films join the real ones that the generator had.

    Both classifiers take equally many updates. The interval is over patients drawn anew. `made` is None for a generator that cannot be
    asked for the finding.
    """
    if made is None:
        return {"skipped": "cannot be asked, so its films have no labels"}
    known = ~np.isnan(test.column(finding))
    said = []
    for parts in ((learned,), (learned, made)):
        classifier = train_classifier(np.concatenate([eight_bit(part.images) for part in parts]),
                                      np.concatenate([part.column(finding) for part in parts])[:, None],
                                      findings=[finding], config=config, seed=seed)
        said.append(classifier.predict(eight_bit(test.images[known]))[:, 0])
    labels = test.column(finding)[known].astype(int)
    try:
        gain = counted_bootstrap(labels, np.stack(said, axis=1), test.patients()[known], counted_gain)
    except InputError as error:
        return {"skipped": str(error)}
    return {"value": gain.value, "error": (gain.high - gain.low) / (2 * Z_95), "real alone": auroc(labels, said[0]),
            "with made films": auroc(labels, said[1])}


def _distribution(yardstick: Yardstick, vectors: Vectors) -> Sequence[Score]:
    """The scores of `DISTRIBUTION`, in its order."""
    patients, name = yardstick.real.held_out.patients(), yardstick.space.name
    real = yardstick.held_out
    return (fid_score(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients),
            kid_score(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients),
            *neighbour_scores(real, vectors, floor_sets=None, features_name=name, seed=0, real_patients=patients))
