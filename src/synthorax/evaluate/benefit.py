"""Does training with the synthetic films help on real patients never seen? Arms that differ in their training films only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluate.report import Dimension
from synthorax.evaluate.statistics import (
    Bootstrap,
    PairedAuroc,
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
LEVEL = 0.05
ROC_POINTS = 200
DECLARED, PLAIN = "real+synthetic", "real"


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
    """further ratios, reported as arms of their own without a verdict"""
    synthetic_only: bool = True
    """also train on the synthetic films alone"""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """its `augment` is set by the arm"""
    resamples: int = 2000
    """draws of the patient bootstrap"""
    min_films: int = 5
    """fewest test films with, and without, a finding for which it is tested"""
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
        if self.min_films < 2 or self.resamples < 100:
            raise UsageError("min_films must be at least 2 and resamples at least 100")

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

    `real_val` only sets the threshold at which sensitivity and specificity are given. `progress(done, total, text)` counts updates.
    A finding with too few test films is skipped with the reason. Raises InputError when a synthetic film stands among the real
    ones, a patient is on two sides, a test film has no patient or a synthetic film is a test film; UsageError when sizes or columns
    do not fit.

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
    trained = _train_arms(real_train, real_test, synthetic, real_val, tested, config, progress or (lambda done, total, text: None))
    comparisons = {finding: _compare(trained, real_test, finding, against=PLAIN, config=config) for finding in tested}
    adjusted = _adjust(list(comparisons.values()))
    others = _others(trained, real_test, [name for name in real_train.findings if name not in targets], config)
    probe = origin_probe(real_train, synthetic, config=config) if config.probe else None
    return BenefitResult(skipped=skipped, shortcut_probe=probe, findings=tuple(
        _entry(finding, comparison, others, trained, (real_train, real_test, synthetic, real_val), config)
        for finding, comparison in zip(tested, adjusted, strict=True)))


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
    """Probabilities of every arm on the real films that nobody trained on."""

    test: Mapping[str, Scores]
    """arm -> [N, K, seeds]"""
    val: Mapping[str, Scores]
    ratios: Mapping[str, float]
    """arm -> synthetic films for each real one, as used"""
    classifier: Classifier
    """one of them, for its name"""


def _train_arms(real_train: Films, real_test: Films, synthetic: Films, real_val: Films | None, targets: Sequence[str],
                config: BenefitConfig, progress: Progress) -> _Trained:
    arms = config.arms()
    total, done = len(arms) * config.seeds * config.classifier.updates, 0
    mixed = np.random.default_rng(derive(config.seed, "mix")).permutation(len(synthetic))
    test: dict[str, list[Scores]] = {name: [] for name in arms}
    val: dict[str, list[Scores]] = {name: [] for name in arms}
    ratios: dict[str, float] = {}
    for run in range(config.seeds):
        for name, arm in arms.items():
            used = mixed if arm.ratio is None else mixed[: round(arm.ratio * len(real_train))]
            real_rows = np.arange(len(real_train)) if arm.real else np.arange(0)
            weights = _oversampling(real_train, synthetic.take(mixed if config.ratio is None else mixed[
                : round(config.ratio * len(real_train))]), targets) if arm.oversample else None
            classifier = train_classifier(
                np.concatenate([real_train.images[real_rows], synthetic.images[used]]),
                np.concatenate([real_train.labels[real_rows], synthetic.labels[used]]),
                findings=real_train.findings, config=replace(config.classifier, augment=arm.augment),
                seed=derive(config.seed, "training", run), film_weights=weights,
                progress=lambda now, _, start=done, text=f"{name}, training {run + 1} of {config.seeds}":  # type: ignore[misc]
                    progress(start + now, total, text))
            done += config.classifier.updates
            ratios[name] = len(used) / len(real_train)
            test[name].append(classifier.predict(real_test.images))
            if real_val is not None:
                val[name].append(classifier.predict(real_val.images))
    return _Trained(test={name: np.stack(runs, axis=-1) for name, runs in test.items()}, ratios=ratios, classifier=classifier,
                    val={name: np.stack(runs, axis=-1) for name, runs in val.items() if runs})
