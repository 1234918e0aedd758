"""Whom do the images help? Both arms by sex, age, view and site of the tested images, and whether the gap between groups changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.benefit.comparison import ArmPredictions, Record
from synthorax.evaluation.benefit.design import stated_labels, too_few_patients
from synthorax.evaluation.benefit.protocol import DECLARED, LEVEL, PLAIN, BenefitConfig
from synthorax.evaluation.metrics.feature_sets import groups_of
from synthorax.evaluation.statistics.bootstrap import CountedStatistic, counted_auroc, counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.roc import Bootstrap, auroc, delong_interval
from synthorax.multiple_testing import holm
from synthorax.rng import derive

ARMS = (PLAIN, DECLARED)
ATTRIBUTES = ("sex", "age", "view", "site")
Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]


def subgroup_benefit(found: ArmPredictions, finding: str, config: BenefitConfig) -> Record:
    """AUROC of `real` and of `real+synthetic` in each group of tested images, their difference, and the gaps between groups.

    A group with too few patients with or without the finding stands under `skipped` with the reason. The `gap` of an attribute is the
    largest difference between its groups; chance alone makes one, which `beyond_chance` takes away. Its `change` compares the arms on
    one pair of groups, best and worst by the mean of both arms, so that the choice favours neither. P-values are after Holm over all
    groups, and over all attributes.
    """
    known, labels = stated_labels(found.test, finding)
    patients, pair = found.test.patients()[known], pair_of(found, finding)
    rows, gaps, skipped = [], [], []
    for attribute in ATTRIBUTES:
        groups, few = tested_groups(found, finding, attribute, config)
        skipped += few
        for name, mask in groups.items():
            rows.append(_group(attribute, name, labels[mask], patients[mask], pair[mask], config))
        if len(groups) > 1:
            gaps.append(_gap(attribute, groups, labels, patients, pair, config))
    _add_holm([row["delta"] for row in rows])
    _add_holm([gap["change"] for gap in gaps])
    for gap in gaps:
        change = gap["change"]
        sure = change["p_holm"] < LEVEL and change["low"] * change["high"] > 0
        gap["verdict"] = "no evidence" if not sure else "wider" if change["value"] > 0 else "narrower"
    worse = [row["group"] for row in rows if row["delta"]["p_holm"] < LEVEL and row["delta"]["high"] < 0]
    return {"groups": rows, "gaps": gaps, "worse": worse, "skipped": skipped}


def pair_of(found: ArmPredictions, finding: str, arms: Sequence[str] = ARMS) -> Vector:
    """Scores of the arms for the images that state the finding, [N, 2, runs]."""
    known, _ = stated_labels(found.test, finding)
    return np.stack([found.scores[arm][known, found.test.findings.index(finding)] for arm in arms], axis=1)


def tested_groups(found: ArmPredictions, finding: str, attribute: str, config: BenefitConfig) -> tuple[dict[str, Mask], list[Record]]:
    """Groups of the images that state the finding, name -> mask [N], and those that are too small, with the reason."""
    known, labels = stated_labels(found.test, finding)
    patients, groups, skipped = found.test.patients()[known], {}, []
    named = {name: rows for name, (kind, rows) in groups_of(found.test).items() if kind == attribute}
    if len(named) < 2:
        return {}, [{"attribute": attribute, "group": next(iter(named), ""), "reason": "the tested images name fewer than two groups"}]
    for name, rows in named.items():
        mask = np.zeros(len(found.test), dtype=bool)
        mask[rows] = True
        mask = mask[known]
        if reason := too_few_patients(labels[mask], patients[mask], config):
            skipped.append({"attribute": attribute, "group": name, "reason": reason})
        else:
            groups[name] = mask
    return groups, skipped


def bootstrap_record(drawn: Bootstrap) -> Record:
    """Value, interval and p-value, JSON-ready."""
    return {"value": drawn.value, "low": min(drawn.low, drawn.value), "high": max(drawn.high, drawn.value), "p": drawn.p}


def area_record(arm: str, labels: NDArray[np.int_], scores: Vector, patients: NDArray[np.str_], config: BenefitConfig) -> Record:
    """AUROC of an arm's mean score [N] with its interval: DeLong's, or over patients where one has several images."""
    if len(np.unique(patients)) == len(patients):
        formula = delong_interval(labels, scores)
        return {"arm": arm, "auroc": formula.auc, "low": formula.low, "high": formula.high}
    drawn = bootstrap_record(counted_bootstrap(labels, scores, patients, counted_auroc, num=config.resamples // 2, seed=derive(config.seed,
                                                                                                                               "area")))
    return {"arm": arm, "auroc": drawn["value"], "low": drawn["low"], "high": drawn["high"]}


def _group(attribute: str, name: str, labels: NDArray[np.int_], patients: NDArray[np.str_], pair: Vector,
           config: BenefitConfig) -> Record:
    drawn = counted_bootstrap(labels, pair, patients, counted_gain, num=config.resamples, over_runs=True,
                              seed=derive(config.seed, "subgroup", name))
    return {"attribute": attribute, "group": name, "n": len(labels), "n_positive": int(labels.sum()),
            "n_patients": len(np.unique(patients)),
            "arms": [area_record(arm, labels, pair[:, place].mean(axis=-1), patients, config) for place, arm in enumerate(ARMS)],
            "delta": bootstrap_record(drawn)}


def _gap(attribute: str, groups: dict[str, Mask], labels: NDArray[np.int_], patients: NDArray[np.str_], pair: Vector,
         config: BenefitConfig) -> Record:
    names, masks = list(groups), list(groups.values())

    def areas(positive: Mask, scores: Vector, counts: Vector) -> Vector:
        return np.stack([counted_auroc(positive[mask], scores[mask], counts[:, mask]) for mask in masks])  # [groups, B]

    def resampled(values: Vector, statistic: CountedStatistic, *, corrected: bool = False) -> Bootstrap:
        return counted_bootstrap(labels, values, patients, statistic, num=config.resamples, over_runs=True, corrected=corrected,
                                 groups=masks, seed=derive(config.seed, "gap", attribute))

    by_arm = np.array([[auroc(labels[mask], pair[mask, place].mean(axis=-1)) for mask in masks] for place in range(2)])  # [2, groups]
    best, worst = int(by_arm.mean(axis=0).argmax()), int(by_arm.mean(axis=0).argmin())

    def change(positive: Mask, scores: Vector, counts: Vector) -> Vector:
        without, having = (areas(positive, scores[:, place], counts) for place in range(2))
        return np.asarray((having[best] - having[worst]) - (without[best] - without[worst]))

    arms = []
    for place, arm in enumerate(ARMS):
        drawn = bootstrap_record(resampled(pair[:, place], lambda *given: np.ptp(areas(*given), axis=0), corrected=True))
        arms.append({"arm": arm, "value": float(np.ptp(by_arm[place])), "best": names[int(by_arm[place].argmax())],
                     "worst": names[int(by_arm[place].argmin())],
                     "beyond_chance": {key: drawn[key] for key in ("value", "low", "high")}})
    return {"attribute": attribute, "arms": arms, "change": {"between": [names[best], names[worst]], **bootstrap_record(resampled(pair,
                                                                                                                                  change))}}


def _add_holm(records: Sequence[Record]) -> None:
    for record, p in zip(records, holm([record["p"] for record in records]), strict=True):
        record["p_holm"] = p
