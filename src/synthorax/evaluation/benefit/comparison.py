"""Arms compared on the images that none was trained on: gains with their tests, each arm's numbers, the verdict and the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from synthorax.evaluation.benefit.design import Design, stated_labels, too_few
from synthorax.evaluation.benefit.protocol import CONVENTIONAL, DECLARED, LEVEL, PLAIN, BenefitConfig
from synthorax.evaluation.statistics.bootstrap import CountedStatistic, counted_auprc, counted_auroc, counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.calibration import (
    calibration_error,
    counted_brier,
    counted_f1,
    counted_sensitivity,
    counted_specificity,
    even_bins,
)
from synthorax.evaluation.statistics.permutation import paired_permutation, power_of
from synthorax.evaluation.statistics.roc import auroc, delong, delong_interval, roc_points, wilson, youden_threshold
from synthorax.multiple_testing import holm
from synthorax.rng import derive
from synthorax.types import ImageSet

Scores = NDArray[np.float64]
Record = dict[str, Any]
ROC_POINTS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmPredictions:
    """What every arm says of the tested images, and of the images that set its threshold."""

    test: ImageSet
    probabilities: Mapping[str, Scores]
    """arm -> [N, K, runs]; with cross-validation a run is one seed of one repeat"""
    scores: Mapping[str, Scores]
    """the same for ranking: in cross-validation ranks within a fold, since folds have classifiers of their own"""
    thresholds: Mapping[str, NDArray[np.float64]]
    """arm -> threshold of each image in each repeat, [N, K, repeats]; NaN where the validation images cannot set one"""
    ratios: Mapping[str, float]
    """arm -> synthetic images for each real one, as used"""


def arm_predictions(design: Design, answers: Mapping[str, Sequence[Sequence[Sequence[Scores]]]], *, ratios: Mapping[str, float],
                    config: BenefitConfig) -> ArmPredictions:
    """Bring the answers of each arm, by repeat, fold and seed, into the order of the tested images.

    A training's answers are those for its fold's validation images and, after them, its test images, [V + T, K].
    """
    test, place = design.test, {int(row): number for number, row in enumerate(design.tested)}
    shape = (len(test), len(test.findings))
    probabilities = {arm: np.full((*shape, config.runs), np.nan) for arm in answers}
    scores = {arm: np.full((*shape, config.runs), np.nan) for arm in answers}
    thresholds = {arm: np.full((*shape, len(design.parts)), np.nan) for arm in answers}
    for arm, repeats in answers.items():
        for repeat, (parts, by_fold) in enumerate(zip(design.parts, repeats, strict=True)):
            for part, by_seed in zip(parts, by_fold, strict=True):
                rows = np.array([place[int(row)] for row in part.test])
                by_run = np.stack(list(by_seed), axis=-1)  # [V + T, K, seeds]
                runs = slice(repeat * config.seeds, (repeat + 1) * config.seeds)
                tested = by_run[len(part.val) :]
                probabilities[arm][rows, :, runs] = tested
                scores[arm][rows, :, runs] = tested if len(parts) == 1 else rankdata(tested, axis=0) / len(rows)
                thresholds[arm][rows, :, repeat] = _thresholds(design.real.take(part.val), by_run[: len(part.val)].mean(axis=-1), config)
    return ArmPredictions(test=test, probabilities=probabilities, scores=scores, thresholds=thresholds, ratios=ratios)


def delta_of(found: ArmPredictions, finding: str, *, against: str, config: BenefitConfig, arm: str = DECLARED) -> Record:
    """AUROC of an arm minus that of `against`, by three tests; `test` is the one that the data allow to decide."""
    known, labels = stated_labels(found.test, finding)
    column, patients = found.test.findings.index(finding), found.test.patients()[known]
    pair = np.stack([found.scores[against][known, column], found.scores[arm][known, column]], axis=1)  # [N, 2, runs]
    one, other = pair.mean(axis=-1).T
    parametric = delong(labels, one, other)
    resampled = counted_bootstrap(labels, pair, patients, counted_gain, num=config.resamples, over_runs=True,
                                  seed=derive(config.seed, "bootstrap", finding))
    exchanged = paired_permutation(labels, one, other, patients, seed=derive(config.seed, "permutation", finding))
    tests = {"DeLong": {"low": parametric.low, "high": parametric.high, "p": parametric.p},
             "patient bootstrap": {"low": resampled.low, "high": resampled.high, "p": resampled.p},
             "permutation": {"p": exchanged.p}}
    deciding = "patient bootstrap" if _repeated(patients) else "DeLong"
    note = "a patient's images are not independent, as DeLong takes them to be; the bootstrap draws patients" if _repeated(patients) else ""
    return {"against": against, "arm": arm, "value": parametric.difference, **tests[deciding], "test": deciding,
            "tests": tests, "note": note}


def with_holm(deltas: Sequence[Record]) -> list[Record]:
    """The same records with p-values after Holm over the findings, within each test."""
    for test in deltas[0]["tests"] if deltas else ():
        for delta, p in zip(deltas, holm([delta["tests"][test]["p"] for delta in deltas]), strict=True):
            delta["tests"][test]["p_holm"] = p
    return [delta | {"p_holm": delta["tests"][delta["test"]]["p_holm"]} for delta in deltas]


def verdict_of(delta: Record) -> str:
    """`helps` or `hurts` only if all tests say so, after Holm and by their intervals; anything less is no evidence."""
    certain = all(test["p_holm"] < LEVEL for test in delta["tests"].values())
    intervals = [test for test in delta["tests"].values() if "low" in test]
    if certain and all(test["low"] > 0 for test in intervals):
        return "helps"
    if certain and all(test["high"] < 0 for test in intervals):
        return "hurts"
    return "no evidence"


def others_of(found: ArmPredictions, others: Sequence[str], config: BenefitConfig) -> Record:
    """What became of the findings that the images were not made for; here the deciding test alone counts, to miss less harm."""
    deltas = with_holm([delta_of(found, finding, against=PLAIN, config=config) for finding in others])
    entries = [{"finding": finding, **{key: delta[key] for key in ("value", "low", "high", "p", "p_holm", "test")}}
            for finding, delta in zip(others, deltas, strict=True)]
    worse = [entry["finding"] for entry in entries if entry["value"] < 0 and entry["p_holm"] < LEVEL]
    return {"others": entries, "others_worse": worse}


def gate_of(entry: Record, config: BenefitConfig) -> Record:
    """A gain large enough to matter, certain enough to believe, and at no other finding's cost."""
    reasons = []
    if entry["delta"]["value"] < config.min_gain:
        reasons.append(f"AUROC gain {entry['delta']['value']:+.3f} is below {config.min_gain:g}")
    if entry["verdict"] != "helps":
        reasons.append(f"verdict: {entry['verdict']}")
    if entry["others_worse"]:
        reasons.append("worse for " + ", ".join(entry["others_worse"]))
    if config.is_screen:
        reasons.append(f"the classifier '{config.classifier.network}' is a quick screen; a proof needs one that learns its features")
    return {"passed": not reasons, "min_gain": config.min_gain, "reasons": reasons}


def power_record(found: ArmPredictions, finding: str, delta: Record, config: BenefitConfig) -> Record:
    """What this test could see, and how many test patients would show a gain of the size that the gate asks for."""
    known, labels = stated_labels(found.test, finding)
    column, patients = found.test.findings.index(finding), found.test.patients()[known]
    one, other = (found.scores[arm][known, column].mean(axis=-1) for arm in (PLAIN, DECLARED))
    effect = 1.0
    if _repeated(patients) and (error := delong(labels, one, other).standard_error) > 0:
        drawn = delta["tests"]["patient bootstrap"]
        effect = max(1.0, ((drawn["high"] - drawn["low"]) / (2 * float(norm.ppf(0.975)) * error)) ** 2)
    return {**asdict(power_of(labels, one, other, patients, gain=config.min_gain, design_effect=effect)),
            "note": "from DeLong's variance, for one finding"}


def best_conventional(found: ArmPredictions, finding: str) -> str:
    """The remedy without synthetic images that did best on the test images: its luck counts against the synthetic ones."""
    known, labels = stated_labels(found.test, finding)
    column = found.test.findings.index(finding)
    return max((name for name in CONVENTIONAL if name in found.scores),
               key=lambda name: auroc(labels, found.scores[name][known, column].mean(axis=-1)))


def arm_record(name: str, found: ArmPredictions, finding: str, config: BenefitConfig) -> Record:
    """AUROC and AUPRC of one arm with intervals over patients, of the trainings one by one, calibration, and at the threshold."""
    known, labels = stated_labels(found.test, finding)
    column, patients = found.test.findings.index(finding), found.test.patients()[known]
    runs, probabilities = found.scores[name][known, column], found.probabilities[name][known, column].mean(axis=-1)
    scores = runs.mean(axis=-1)

    def resampled(values: Scores, statistic: CountedStatistic, *, corrected: bool = False) -> tuple[float, float, float]:
        drawn = counted_bootstrap(labels, values, patients, statistic, num=config.resamples // 2, corrected=corrected,
                                  seed=derive(config.seed, "arm", finding))
        return drawn.value, drawn.low, drawn.high

    area = resampled(scores, counted_auroc)[1:]
    if not _repeated(patients):
        by_formula = delong_interval(labels, scores)
        area = by_formula.low, by_formula.high
    value = auroc(labels, scores)
    precision = resampled(scores, counted_auprc)
    record: Record = {"arm": name, "auroc": value, "low": min(value, area[0]), "high": max(value, area[1]), "auprc": precision[0],
                      "auprc_low": precision[1], "auprc_high": precision[2],
                      "auroc_seeds": [auroc(labels, run) for run in runs.T],
                      "brier": _interval(resampled(probabilities, counted_brier)),
                      "ece": _interval(resampled(probabilities, calibration_error(even_bins(probabilities)), corrected=True))}
    if found.ratios.get(name):
        record["ratio"] = found.ratios[name]
    thresholds = found.thresholds[name][known, column]  # [N, repeats]
    if not np.isnan(thresholds).any():
        by_repeat = found.probabilities[name][known, column].reshape(len(labels), -1, config.seeds).mean(axis=-1)
        called = ((by_repeat >= thresholds).mean(axis=-1) >= 0.5).astype(np.float64)
        record |= {"threshold": float(thresholds.mean()), "f1": _interval(resampled(called, counted_f1))}
        for rate, statistic, correct in (("sensitivity", counted_sensitivity, called[labels == 1] == 1),
                                         ("specificity", counted_specificity, called[labels == 0] == 0)):
            record[rate] = (_interval(resampled(called, statistic)) if _repeated(patients) else
                            _interval((float(correct.mean()), *wilson(int(correct.sum()), len(correct)))))
    return record


def roc_of(found: ArmPredictions, arm: str, finding: str) -> dict[str, list[float]]:
    """At most 200 points of the arm's ROC curve."""
    known, labels = stated_labels(found.test, finding)
    fpr, tpr = roc_points(labels, found.scores[arm][known, found.test.findings.index(finding)].mean(axis=-1))
    shown = np.unique(np.linspace(0, len(fpr) - 1, ROC_POINTS).round().astype(int))
    return {"fpr": [round(float(x), 4) for x in fpr[shown]], "tpr": [round(float(y), 4) for y in tpr[shown]]}


def _thresholds(val: ImageSet, probabilities: Scores, config: BenefitConfig) -> NDArray[np.float64]:
    """The best threshold of each finding on the validation images (Youden), [K]; NaN where too few patients can set one."""
    found = np.full(len(val.findings), np.nan)
    for column, finding in enumerate(val.findings):
        if len(val) and not too_few(val, finding, config):
            known, labels = stated_labels(val, finding)
            found[column] = youden_threshold(labels, probabilities[known, column])
    return found


def _repeated(patients: NDArray[np.str_]) -> bool:
    return len(np.unique(patients)) < len(patients)


def _interval(numbers: tuple[float, float, float]) -> dict[str, float]:
    value, low, high = numbers
    return {"value": value, "low": min(value, low), "high": max(value, high)}
