"""How the gain depends on the number of real positive images: nested subsets of patients, with and without the synthetic images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthorax.evaluation.benefit.comparison import Record, arm_predictions, arm_record, delta_of
from synthorax.evaluation.benefit.design import Design, Fraction, Rows
from synthorax.evaluation.benefit.protocol import DECLARED, PLAIN, Arm, BenefitConfig
from synthorax.evaluation.benefit.training import Answers, Job, take_ratio
from synthorax.rng import derive
from synthorax.types import ImageSet

NOTE = ("The generator learned from all real training images, so at small numbers the synthetic images know of more positives than the "
        "real "
        "arm does: the curve says what the images add, not what a generator trained on so few would add.")


def fewer_positives(real: ImageSet, rows: Rows, finding: str, count: int, *, seed: int) -> Rows:
    """The rows with only `count` images that show the finding, and of its other patients none at all.

    The patients who show it stand in an order that follows from the seed, and are taken in turn: smaller subsets are parts of larger
    ones. Of the last patient only as many of the positive images are taken as are missing.
    """
    patients, shown = real.patients()[rows], real.column(finding)[rows] == 1
    having = np.unique(patients[shown])
    kept, left = ~np.isin(patients, having), count
    for patient in np.random.default_rng(derive(seed, "curve", finding)).permutation(having):
        if left == 0:
            break
        own = patients == patient
        kept |= own & ~shown
        positive = np.flatnonzero(own & shown)[:left]
        kept[positive] = True
        left -= len(positive)
    return rows[kept]


def curve_jobs(design: Design, targets: Sequence[str], config: BenefitConfig) -> list[Job]:
    """The trainings of all points: each with the real images alone and with the synthetic ones, with every seed."""
    (part,), = design.parts
    jobs = []
    for finding in targets:
        for count in _feasible_counts(design, part, finding, config)[0]:
            rows = fewer_positives(design.real, part.train, finding, count, seed=config.seed)
            jobs += [Job(name=_name(finding, count, arm, run), arm=Arm(ratio=0.0 if arm == PLAIN else config.ratio), train=rows,
                         asked=np.concatenate([part.val, part.test]), targets=(finding,), seed=derive(config.seed, "training", run))
                     for arm in (PLAIN, DECLARED) for run in range(config.seeds)]
    return jobs


def learning_curve(design: Design, answers: dict[str, Answers], synthetic: ImageSet, finding: str, config: BenefitConfig) -> Record:
    """The points of one finding: AUROC of both arms and their difference, each with its interval, by number of real positives."""
    (part,), = design.parts
    counts, left_out = _feasible_counts(design, part, finding, config)
    points = []
    for count in counts:
        own = {arm: [[[answers[_name(finding, count, arm, run)].probabilities for run in range(config.seeds)]]]
               for arm in (PLAIN, DECLARED)}
        rows = fewer_positives(design.real, part.train, finding, count, seed=config.seed)
        ratio = len(take_ratio(synthetic, config.ratio, len(rows))) / len(rows)
        found = arm_predictions(design, own, ratios={PLAIN: 0.0, DECLARED: round(ratio, 3)}, config=config)
        delta = delta_of(found, finding, against=PLAIN, config=config)
        arms = {arm: arm_record(arm, found, finding, config) for arm in (PLAIN, DECLARED)}
        points.append({"n_real_positive_train": count, "n_real_train": len(rows),
                       "arms": [{key: told[key] for key in ("arm", "auroc", "low", "high", "auprc", "auprc_low", "auprc_high", "ratio")
                                 if key in told} for told in arms.values()],
                       "delta": {key: delta[key] for key in ("value", "low", "high", "p", "test")}})
    return {"finding": finding, "points": points, "left_out": left_out, "seeds": config.seeds, "note": NOTE}


def _feasible_counts(design: Design, part: Fraction, finding: str, config: BenefitConfig) -> tuple[list[int], list[Record]]:
    """The points for which there are images, and those left out, with the reason."""
    there = int((design.real.column(finding)[part.train] == 1).sum())
    counts = sorted(config.positives)
    return ([count for count in counts if count <= there],
            [{"n_real_positive_train": count, "reason": f"only {there} real training images show it"} for count in counts if count > there])


def _name(finding: str, count: int, arm: str, run: int) -> str:
    return f"{arm} on {count} real images with {finding}, training {run + 1}"
