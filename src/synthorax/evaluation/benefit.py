"""Does training with the synthetic films help on real patients never seen? Arms that differ in their training films only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.report import Dimension
from synthorax.evaluation.statistics import (
    auprc,
    auroc,
    delong,
    delong_interval,
    holm,
    patient_bootstrap,
    roc_points,
    wilson,
    youden_threshold,
)
from synthorax.judges.classifier import Classifier, ClassifierConfig, train_classifier
from synthorax.rng import derive
from synthorax.types import Films

Scores = NDArray[np.float64]
Progress = Callable[[int, int, str], None]
Record = dict[str, Any]
PLAIN, CONVENTIONAL, DECLARED = "real", ("classic", "oversampling"), "real+synthetic"
LEVEL = 0.05
ROC_POINTS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What one arm trains on; classifier, number of updates, batch size, initial weights and seeds are those of every arm."""

    real: bool = True
    ratio: float | None = 0.0
    """synthetic films for each real one, at most; None: all"""
    augment: Literal["none", "classic"] = "none"
    oversample: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BenefitConfig:
    """The protocol, fixed before any film is seen; `docs/benefit.md` gives the reasons."""

    seeds: int = 3
    """trainings of each arm, at least 3"""
    ratio: float | None = None
    """synthetic films for each real training film in the arm that is tested, at most; None: all"""
    sweep: tuple[float, ...] = ()
    """further ratios, as far as there are films, reported as arms of their own without a verdict"""
    synthetic_only: bool = True
    """also train on the synthetic films alone"""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """its `augment` is set by the arm"""
    resamples: int = 2000
    """draws of the patient bootstrap"""
    min_patients: int = 5
    """fewest test patients with, and without, a finding for which it is tested"""
    min_gain: float = 0.02
    """gain in AUROC below which the gate says that a difference, even a certain one, is too small to matter"""
    probe: bool = True
    """also measure how easily a classifier tells real from synthetic"""
    seed: int = 0
    """first seed; every random number follows from it"""

    def __post_init__(self) -> None:
        """Refuse a protocol that cannot answer the question."""
        if self.seeds < 3:
            raise UsageError(f"benefit needs at least 3 seeds, not {self.seeds}: one training may be luck")
        if any(not ratio > 0 for ratio in (*self.sweep, 1.0 if self.ratio is None else self.ratio)):
            raise UsageError("ratio and sweep must be above 0; the arm 'real' is ratio 0")
        if self.min_patients < 2 or self.resamples < 100:
            raise UsageError("min_patients must be at least 2 and resamples at least 100")

    def arms(self) -> dict[str, Arm]:
        """Arm by name, in the order of the report."""
        swept = {f"{DECLARED}, ratio {ratio:g}": Arm(ratio=ratio) for ratio in self.sweep}
        alone = {"synthetic only": Arm(real=False, ratio=None)} if self.synthetic_only else {}
        return {PLAIN: Arm(), "classic": Arm(augment="classic"), "oversampling": Arm(oversample=True),
                **swept, DECLARED: Arm(ratio=self.ratio), **alone}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenefitResult:
    """What the comparison found: an entry for each finding tested, a reason for each that could not be."""

    findings: tuple[Mapping[str, Any], ...]
    skipped: tuple[Mapping[str, str], ...]
    """`finding` and `reason`"""
    shortcut_probe: Mapping[str, Any] | None = None
    """AUROC of a classifier told to tell synthetic from real; near 1, origin can stand in for a finding"""

    def to_dimension(self) -> Dimension:
        """The `benefit` dimension of a report: measured if any finding was, else skipped with the reasons."""
        if not self.findings:
            return Dimension("skipped", reason="; ".join(f"{entry['finding']}: {entry['reason']}" for entry in self.skipped))
        extra: dict[str, Any] = {"not_tested": list(self.skipped)} if self.skipped else {}
        if self.shortcut_probe is not None:
            extra["shortcut_probe"] = self.shortcut_probe
        return Dimension("measured", findings=self.findings, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """As it stands under `dimensions.benefit` in `report.json`."""
        return self.to_dimension().to_dict()


def measure_benefit(real_train: Films, real_test: Films, synthetic: Films, *, findings: Sequence[str],
                    config: BenefitConfig | None = None, real_val: Films | None = None,
                    progress: Progress | None = None) -> BenefitResult:
    """Train every arm with every seed and compare them on `real_test`, for each of `findings`.

    `real_val` only sets the threshold at which sensitivity and specificity are given. `progress(done, total, text)` counts
    updates. A finding with too few test patients is skipped with the reason. Raises InputError when a synthetic film stands among
    the real ones, a patient is on two sides, a film has no patient or a synthetic film is a test film; UsageError when sizes
    or columns do not fit.

    >>> measure_benefit(train, test, made, findings=["Mass"]).findings[0]["verdict"]  # doctest: +SKIP
    'no evidence'
    """
    config = config or BenefitConfig()
    real_val = real_val if real_val is not None and len(real_val) else None
    _refuse_leaks(real_train, real_test, synthetic, real_val)
    _refuse_misfits(real_train, real_test, synthetic, real_val, findings)
    targets = list(dict.fromkeys(findings))
    reasons = {finding: _too_few(real_test, finding, config) for finding in targets}
    skipped = tuple({"finding": finding, "reason": reason} for finding, reason in reasons.items() if reason)
    tested = [finding for finding in targets if not reasons[finding]]
    if not tested:
        return BenefitResult(findings=(), skipped=skipped)
    trained = _train_arms(real_train, real_test, synthetic, real_val, tested, config, progress or _say_nothing)
    others = [name for name in real_train.findings if name not in targets and not _too_few(real_test, name, config)]
    shared = {"seeds": config.seeds, "updates": config.classifier.updates, "classifier": trained.classifier,
              "n_synthetic": len(synthetic), **_others(trained, real_test, others, config)}
    deltas = _adjusted([_delta(trained, real_test, finding, against=PLAIN, config=config) for finding in tested])
    best = _adjusted([_delta(trained, real_test, finding, config=config, against=_best_conventional(trained, real_test, finding))
                      for finding in tested])
    entries = []
    for finding, delta, against_best in zip(tested, deltas, best, strict=True):
        entry = _sizes(finding, real_train, real_test, synthetic) | shared
        entry |= {"arms": [_arm(name, trained, real_test, real_val, finding, config) for name in trained.test],
                  "roc": {name: _roc(trained.test[name], real_test, finding) for name in trained.test},
                  "delta": delta, "delta_best_conventional": against_best, "verdict": _verdict(delta)}
        entries.append(entry | {"gate": _gate(entry, config)})
    probe = origin_probe(real_train, synthetic, config=config) if config.probe else None
    return BenefitResult(findings=tuple(entries), skipped=skipped, shortcut_probe=probe)


def origin_probe(real: Films, synthetic: Films, *, config: BenefitConfig) -> dict[str, Any] | None:
    """How well the classifier tells synthetic from real films of patients it was not trained on; None below 20 films of a kind.

    It learns on half of the real patients and half of the synthetic films, and is asked about the other half.
    """
    if min(len(real), len(synthetic)) < 20:
        return None
    rng = np.random.default_rng(derive(config.seed, "origin probe"))
    patients = np.unique(real.patients())
    learns = np.concatenate([np.isin(real.patients(), rng.permutation(patients)[: len(patients) // 2]),
                             rng.permutation(len(synthetic)) < len(synthetic) // 2])
    images = np.concatenate([real.images, synthetic.images])
    made = np.repeat([0, 1], [len(real), len(synthetic)])
    classifier = train_classifier(images[learns], made[learns, None].astype(np.float32), findings=["synthetic"],
                                  config=config.classifier, seed=config.seed)
    found = delong_interval(made[~learns], classifier.predict(images[~learns])[:, 0])
    return {"auroc": found.auc, "low": found.low, "high": found.high, "n_real": int((made[~learns] == 0).sum()),
            "n_synthetic": int((made[~learns] == 1).sum())}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """Probabilities that each arm gives to the real films which no arm was trained on."""

    test: Mapping[str, Scores]
    """arm -> [N, K, seeds]"""
    val: Mapping[str, Scores]
    """the same for validation films; empty without them"""
    ratios: Mapping[str, float]
    """arm -> synthetic films for each real one, as used"""
    classifier: str


def _train_arms(real_train: Films, real_test: Films, synthetic: Films, real_val: Films | None, targets: Sequence[str],
                config: BenefitConfig, progress: Progress) -> _Trained:
    arms = config.arms()
    shuffled = synthetic.take(np.random.default_rng(derive(config.seed, "mix")).permutation(len(synthetic)))
    added = {name: _first(shuffled, arm.ratio, len(real_train)) for name, arm in arms.items()}
    oversampling = _oversampling(real_train, added[DECLARED], targets)
    jobs = [(name, run) for run in range(config.seeds) for name in arms]
    counter = _Counter(progress=progress, total=len(jobs) * config.classifier.updates)

    def train(name: str, run: int) -> Classifier:
        arm = arms[name]
        parts = [real_train, added[name]] if arm.real else [added[name]]
        return train_classifier(
            np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]),
            findings=real_train.findings, config=replace(config.classifier, augment=arm.augment),
            seed=derive(config.seed, "training", run), film_weights=oversampling if arm.oversample else None,
            progress=lambda done, of: counter.count(f"{name}, training {run + 1} of {config.seeds}"))

    classifiers = _in_parallel(train, jobs, counter)

    def scores(films: Films) -> dict[str, Scores]:
        return {name: np.stack([classifiers[name, run].predict(films.images) for run in range(config.seeds)], axis=-1)
                for name in arms}

    one = classifiers[jobs[0]]
    return _Trained(test=scores(real_test), val=scores(real_val) if real_val is not None else {},
                    ratios={name: round(len(films) / len(real_train), 3) for name, films in added.items()},
                    classifier=f"{one.name}, {one.num_parameters:,} parameters")


def _in_parallel(train: Callable[[str, int], Classifier], jobs: Sequence[tuple[str, int]],
                 counter: _Counter) -> dict[tuple[str, int], Classifier]:
    """Trainings side by side, one core each: as many as PyTorch was given threads. They share nothing, so order plays no part."""
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        futures = {job: pool.submit(train, *job) for job in jobs}
        try:
            return {job: future.result() for job, future in futures.items()}
        except BaseException:  # Ctrl-C among them: end the running trainings at their next update
            counter.stopped = True
            pool.shutdown(cancel_futures=True)
            raise


class _Counter:
    """Updates of all trainings, counted together from several threads."""

    def __init__(self, *, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._lock = progress, total, 0, threading.Lock()
        self.stopped = False

    def count(self, text: str) -> None:
        """One more update is done."""
        with self._lock:
            if self.stopped:
                raise CancelledError
            self._done += 1
            self._progress(self._done, self._total, text)


def _say_nothing(done: int, total: int, text: str) -> None:
    pass


def _first(shuffled: Films, ratio: float | None, num_real: int) -> Films:
    return shuffled if ratio is None else shuffled.take(np.arange(min(len(shuffled), round(ratio * num_real))))


def _oversampling(real: Films, added: Films, targets: Sequence[str]) -> NDArray[np.float64]:
    """How often to draw each real film, so that each target is as common as in the arm with synthetic films."""
    weights = np.ones(len(real))
    for finding in targets:
        shown = real.column(finding) == 1
        share = (shown.sum() + (added.column(finding) == 1).sum()) / (len(real) + len(added))
        if 0 < shown.sum() < len(real) and share < 1:
            weight = share * (~shown).sum() / (shown.sum() * (1 - share))
            weights[shown] = np.maximum(weights[shown], weight)
    return weights


def _stated(films: Films, finding: str) -> tuple[NDArray[np.bool_], NDArray[np.int_]]:
    """Which films state the finding [N], and what these state, 0 or 1."""
    labels = films.column(finding)
    stated = ~np.isnan(labels)
    return stated, labels[stated].astype(int)


def _too_few(test: Films, finding: str, config: BenefitConfig) -> str:
    """Why a finding cannot be tested, or nothing. Patients count, not films: twenty films of one patient are one story."""
    stated, labels = _stated(test, finding)
    patients = test.patients()[stated]
    with_it, without = (len(np.unique(patients[labels == value])) for value in (1, 0))
    if min(with_it, without) >= config.min_patients:
        return ""
    return (f"real films never seen show it in {with_it} patients and are without it in {without}; "
            f"{config.min_patients} of each are needed")


def _delta(trained: _Trained, test: Films, finding: str, *, against: str, config: BenefitConfig) -> Record:
    """AUROC of the declared arm minus that of `against`, by both tests; `deciding` is the one that the data allow to decide."""
    stated, labels = _stated(test, finding)
    column, patients = test.findings.index(finding), test.patients()[stated]
    pair = np.stack([trained.test[against][stated, column], trained.test[DECLARED][stated, column]], axis=1)  # [N, 2, seeds]
    parametric = delong(labels, *pair.mean(axis=-1).T)
    resampled = patient_bootstrap(labels, pair, patients, _difference, num=config.resamples, over_runs=True,
                                  seed=derive(config.seed, "bootstrap", finding))
    repeated = _repeated(patients)
    tests = {"DeLong": {"low": parametric.low, "high": parametric.high, "p": parametric.p},
             "patient bootstrap": {"low": resampled.low, "high": resampled.high, "p": resampled.p}}
    deciding = "patient bootstrap" if repeated else "DeLong"
    note = "a patient's films are not independent, as DeLong takes them to be; the bootstrap draws patients" if repeated else ""
    return {"against": against, "arm": DECLARED, "value": parametric.difference, **tests[deciding], "test": deciding,
            "tests": tests, "note": note}


def _repeated(patients: NDArray[np.str_]) -> bool:
    return len(np.unique(patients)) < len(patients)


def _difference(labels: NDArray[np.bool_], scores: Scores) -> float:
    return auroc(labels, scores[:, 1]) - auroc(labels, scores[:, 0])


def _adjusted(deltas: Sequence[Record]) -> list[Record]:
    """The same records with p-values after Holm over the findings, within each test."""
    for test in deltas[0]["tests"] if deltas else ():
        for delta, p in zip(deltas, holm([delta["tests"][test]["p"] for delta in deltas]), strict=True):
            delta["tests"][test]["p_holm"] = p
    return [delta | {"p_holm": delta["tests"][delta["test"]]["p_holm"]} for delta in deltas]


def _verdict(delta: Record) -> str:
    """`helps` or `hurts` only if both tests say so, after Holm and by their intervals; anything less is no evidence."""
    certain = all(test["p_holm"] < LEVEL for test in delta["tests"].values())
    if certain and all(test["low"] > 0 for test in delta["tests"].values()):
        return "helps"
    if certain and all(test["high"] < 0 for test in delta["tests"].values()):
        return "hurts"
    return "no evidence"


def _others(trained: _Trained, test: Films, others: Sequence[str], config: BenefitConfig) -> Record:
    """What became of the findings that the films were not made for; here the deciding test alone counts, to miss less harm."""
    deltas = _adjusted([_delta(trained, test, finding, against=PLAIN, config=config) for finding in others])
    told = [{"finding": finding, **{key: delta[key] for key in ("value", "low", "high", "p", "p_holm", "test")}}
            for finding, delta in zip(others, deltas, strict=True)]
    worse = [entry["finding"] for entry in told if entry["value"] < 0 and entry["p_holm"] < LEVEL]
    return {"others": told, "others_worse": worse}


def _gate(entry: Record, config: BenefitConfig) -> Record:
    """A gain large enough to matter, certain enough to believe, and at no other finding's cost."""
    reasons = []
    if entry["delta"]["value"] < config.min_gain:
        reasons.append(f"AUROC gain {entry['delta']['value']:+.3f} is below {config.min_gain:g}")
    if entry["verdict"] != "helps":
        reasons.append(f"verdict: {entry['verdict']}")
    if entry["others_worse"]:
        reasons.append("worse for " + ", ".join(entry["others_worse"]))
    return {"passed": not reasons, "min_gain": config.min_gain, "reasons": reasons}


def _best_conventional(trained: _Trained, test: Films, finding: str) -> str:
    """The remedy without synthetic films that did best on the test films: its luck counts against the synthetic ones."""
    stated, labels = _stated(test, finding)
    column = test.findings.index(finding)
    return max(CONVENTIONAL, key=lambda name: auroc(labels, trained.test[name][stated, column].mean(axis=-1)))


def _sizes(finding: str, train: Films, test: Films, synthetic: Films) -> Record:
    stated, labels = _stated(test, finding)
    return {"finding": finding, "n_real_train": len(train), "n_real_positive_train": int((train.column(finding) == 1).sum()),
            "n_synthetic_positive": int((synthetic.column(finding) == 1).sum()), "n_test": len(labels),
            "n_test_positive": int(labels.sum()), "n_test_patients": len(np.unique(test.patients()[stated]))}


def _arm(name: str, trained: _Trained, test: Films, val: Films | None, finding: str, config: BenefitConfig) -> Record:
    """AUROC and AUPRC of one arm with intervals over patients, of the trainings one by one, and at the validation threshold."""
    stated, labels = _stated(test, finding)
    runs = trained.test[name][stated, test.findings.index(finding)]  # [N, seeds]
    scores, patients, seed = runs.mean(axis=-1), test.patients()[stated], derive(config.seed, "arm", finding)
    num = config.resamples // 2
    area = (patient_bootstrap(labels, scores, patients, auroc, num=num, seed=seed) if _repeated(patients)
            else delong_interval(labels, scores))
    precision = patient_bootstrap(labels, scores, patients, auprc, num=num, seed=seed)
    record: Record = {"arm": name, "auroc": auroc(labels, scores), "low": area.low, "high": area.high, "auprc": precision.value,
                      "auprc_low": precision.low, "auprc_high": precision.high,
                      "auroc_seeds": [auroc(labels, run) for run in runs.T]}
    if name not in (PLAIN, *CONVENTIONAL, "synthetic only"):
        record["ratio"] = trained.ratios[name]
    if val is not None and not _too_few(val, finding, config):
        known, truth = _stated(val, finding)
        threshold = youden_threshold(truth, trained.val[name][known, val.findings.index(finding)].mean(axis=-1))
        record |= {"threshold": threshold, "sensitivity": _share(scores[labels == 1] >= threshold),
                   "specificity": _share(scores[labels == 0] < threshold)}
    return record


def _share(correct: NDArray[np.bool_]) -> dict[str, float]:
    low, high = wilson(int(correct.sum()), len(correct))
    return {"value": float(correct.mean()), "low": low, "high": high}


def _roc(runs: Scores, test: Films, finding: str) -> dict[str, list[float]]:
    stated, labels = _stated(test, finding)
    fpr, tpr = roc_points(labels, runs[stated, test.findings.index(finding)].mean(axis=-1))
    shown = np.unique(np.linspace(0, len(fpr) - 1, ROC_POINTS).round().astype(int))
    return {"fpr": [round(float(x), 4) for x in fpr[shown]], "tpr": [round(float(y), 4) for y in tpr[shown]]}


def _refuse_leaks(train: Films, test: Films, synthetic: Films, val: Films | None) -> None:
    """A verdict on films that training knew would be worthless."""
    sides = {"training": train, "test": test} | ({"validation": val} if val is not None else {})
    for side, films in sides.items():
        for study in films.studies:
            if study.origin != "real":
                raise InputError(f"'{study.origin}' film {study.file_name} stands among the real {side} films",
                                 remedy="benefit is measured on real films only; move it to the synthetic set")
            if not study.patient_id:
                raise InputError(f"{side} film {study.file_name} has no patient",
                                 remedy="fill patient_id: sides must not share a patient")
    named = {side: {study.patient_id for study in films.studies} for side, films in sides.items()}
    named["synthetic"] = {study.patient_id for study in synthetic.studies} - {""}
    for one, other in (("training", "test"), ("validation", "test"), ("training", "validation"), ("synthetic", "test")):
        if shared := named.get(one, set()) & named.get(other, set()):
            raise InputError(f"{len(shared)} patients have {one} and {other} films", remedy="split by patient")
    known = {image.tobytes(): study.file_name for image, study in zip(test.images, test.studies, strict=True)}
    for image, study in zip(synthetic.images, synthetic.studies, strict=True):
        if (twin := known.get(image.tobytes())) is not None:
            raise InputError(f"synthetic film {study.file_name} is, pixel for pixel, the test film {twin}",
                             remedy="a generator must not have seen the test films")


def _refuse_misfits(train: Films, test: Films, synthetic: Films, val: Films | None, findings: Sequence[str]) -> None:
    sides = [train, test, synthetic] + ([val] if val is not None else [])
    if any(len(films) == 0 for films in sides):
        raise InputError(f"films are needed on every side: {len(train)} training, {len(test)} test, {len(synthetic)} synthetic")
    if len({films.findings for films in sides}) > 1:
        raise UsageError("real and synthetic films must have the same columns of findings, in the same order")
    if len({(films.images.shape[1:], films.images.dtype) for films in sides}) > 1:
        raise UsageError("real and synthetic films must have the same size and number of bits")
    for finding in findings:
        if finding not in train.findings:
            raise UsageError(f"unknown finding '{finding}'; {nearest(finding, train.findings)}")
