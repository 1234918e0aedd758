"""Does an arm's score stand for view or site instead of the finding? Images of one group against all images, and scores given the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.benefit.comparison import ArmPredictions, Record
from synthorax.evaluation.benefit.design import stated_labels, too_few_patients
from synthorax.evaluation.benefit.protocol import LEVEL, BenefitConfig
from synthorax.evaluation.benefit.subgroups import ARMS, Mask, Vector, bootstrap_record, pair_of, tested_groups
from synthorax.evaluation.metrics.feature_sets import groups_of
from synthorax.evaluation.statistics.bootstrap import CountedStatistic, counted_auroc, counted_bootstrap, counted_pairs
from synthorax.multiple_testing import holm
from synthorax.rng import derive

ATTRIBUTES = ("view", "site")
Resampled = Callable[[Vector, CountedStatistic, Sequence[Mask]], Record]


def shortcuts(found: ArmPredictions, finding: str, config: BenefitConfig) -> Record:
    """For view and site and both arms: how much of the AUROC is lost when only images of one group are compared with one another.

    `pooled` is the AUROC over all images that state the attribute; `within` counts only pairs of images of one group (the
    covariate-adjusted area of Janes and Pepe 2009). A score that tells groups apart given the label wins pairs between groups of different
    prevalence for nothing: the `excess` of `pooled` is then above 0, and flagged as `shortcut` if p is below 0.05 after Holm. `association`
    is, for each group, how much more often its images score above those of other groups with the same label than below (-1 to 1), mean over
    both labels; it shows reliance on the group also where the groups show the finding equally often, and nothing is gained by it.
    """
    checked, skipped = [], []
    for attribute in ATTRIBUTES:
        if reason := _unusable(found, finding, attribute, config):
            skipped.append({"attribute": attribute, "reason": reason})
        else:
            checked.append(_shortcut_record(found, finding, attribute, config))
    arms = [arm for record in checked for arm in record["arms"]]
    for arm, p in zip(arms, holm([arm["excess"]["p"] for arm in arms]), strict=True):
        arm["excess"]["p_holm"] = p
        arm["shortcut"] = bool(p < LEVEL and arm["excess"]["low"] > 0)
    return {"checked": checked, "skipped": skipped}


def _levels(found: ArmPredictions, finding: str, attribute: str) -> NDArray[np.str_]:
    """Group of each image that states the finding, [N]; empty where the attribute is not stated."""
    words = np.full(len(found.test), "", dtype=object)
    for name, (kind, rows) in groups_of(found.test).items():
        if kind == attribute:
            words[rows] = name
    return words[stated_labels(found.test, finding)[0]].astype(np.str_)


def _unusable(found: ArmPredictions, finding: str, attribute: str, config: BenefitConfig) -> str:
    levels, patients = _levels(found, finding, attribute), found.test.patients()[stated_labels(found.test, finding)[0]]
    large = [name for name in set(levels.tolist()) - {""} if len(np.unique(patients[levels == name])) >= config.min_patients]
    if len(large) < 2:
        return f"the tested images name fewer than two groups of {config.min_patients} patients"
    if not tested_groups(found, finding, attribute, config)[0]:
        return f"no group has {config.min_patients} tested patients with and without the finding, so it stands for the label itself"
    return ""


def _shortcut_record(found: ArmPredictions, finding: str, attribute: str, config: BenefitConfig) -> Record:
    known, labels = stated_labels(found.test, finding)
    levels = _levels(found, finding, attribute)
    here = levels != ""
    levels, labels, patients, pair = levels[here], labels[here], found.test.patients()[known][here], pair_of(found, finding)[here]
    masks = {name: levels == name for name in sorted(set(levels.tolist()))}
    large = {name: mask[here] for name, mask in tested_groups(found, finding, attribute, config)[0].items()}

    def excess(positive: Mask, scores: Vector, counts: Vector) -> Vector:
        parts = [counted_pairs(positive[mask], scores[mask], counts[:, mask]) for mask in masks.values()
                 if positive[mask].any() and not positive[mask].all()]
        return np.asarray(counted_auroc(positive, scores, counts) - sum(won for won, _ in parts) / sum(pairs for _, pairs in parts))

    def resampled(values: Vector, statistic: CountedStatistic, groups: Sequence[Mask]) -> Record:
        return bootstrap_record(counted_bootstrap(labels, values, patients, statistic, num=config.resamples, over_runs=True, groups=groups,
                                      seed=derive(config.seed, "shortcut", attribute)))

    arms = []
    for place, arm in enumerate(ARMS):
        once = np.ones((1, len(labels)))
        pooled, lost = (float(statistic(labels == 1, pair[:, place].mean(axis=-1), once)[0]) for statistic in (counted_auroc, excess))
        arms.append({"arm": arm, "pooled": pooled, "within": pooled - lost,
                     "excess": resampled(pair[:, place], excess, list(large.values())),
                     "association": _associations(masks, labels, patients, pair[:, place], resampled, config)})
    change = resampled(pair, lambda positive, scores, counts: (excess(positive, scores[:, 1], counts)
                                                               - excess(positive, scores[:, 0], counts)), list(large.values()))
    return {"attribute": attribute, "n": len(labels), "arms": arms, "change": change}


def _associations(masks: dict[str, Mask], labels: NDArray[np.int_], patients: NDArray[np.str_], scores: Vector,
                  resampled: Resampled, config: BenefitConfig) -> list[Record]:
    found = []
    for name, mask in masks.items():
        if any(too_few_patients(labels[side], patients[side], config) for side in (mask, ~mask)):
            continue

        def above(positive: Mask, values: Vector, counts: Vector, mask: Mask = mask) -> Vector:
            won = [counted_auroc(mask[side], values[side], counts[:, side]) for side in (positive, ~positive)]
            return np.asarray(won[0] + won[1] - 1)

        drawn = resampled(scores, above, (mask, ~mask))
        found.append({"group": name, **{key: drawn[key] for key in ("value", "low", "high")}})
    return found
