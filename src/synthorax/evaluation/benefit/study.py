"""Does training with the synthetic images help on real patients never seen? Arms that differ in their training images only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.data.derived import refuse_held_out_hosts
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit.comparison import (
    ArmPredictions,
    Scores,
    arm_predictions,
    arm_record,
    best_conventional,
    delta_of,
    gate_of,
    others_of,
    power_record,
    roc_of,
    verdict_of,
    with_holm,
)
from synthorax.evaluation.benefit.design import (
    Design,
    Fraction,
    cross_validation,
    one_split,
    refuse_leaks,
    refuse_misfits,
    stated_labels,
    too_few,
)
from synthorax.evaluation.benefit.learning_curve import curve_jobs, learning_curve
from synthorax.evaluation.benefit.origin_reliance import origin_reliance
from synthorax.evaluation.benefit.other_sites import external_test, fitted_external, left_out_sites, site_jobs, with_external
from synthorax.evaluation.benefit.protocol import DECLARED, PLAIN, Arm, BenefitConfig
from synthorax.evaluation.benefit.shortcuts import shortcuts
from synthorax.evaluation.benefit.subgroups import ARMS, subgroup_benefit
from synthorax.evaluation.benefit.training import Answers, Job, shuffle, take_ratio, train_jobs
from synthorax.evaluation.benefit.worst_cases import failure_sheets
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.roc import delong_interval
from synthorax.judges.classifiers import training_of, usual_classifier
from synthorax.progress import Progress, portion, quiet
from synthorax.rng import derive
from synthorax.types import ImageSet

__all__ = ["BenefitConfig", "BenefitResult", "asked_config", "gate_reasons", "measure_benefit", "origin_probe"]

TRAININGS = 0.9
"""fraction of a study's time that its trainings take, roughly; the rest compares the arms"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenefitResult:
    """What the comparison found: an entry for each finding tested, a reason for each that could not be."""

    findings: tuple[Mapping[str, Any], ...]
    skipped: tuple[Mapping[str, str], ...]
    """`finding` and `reason`"""
    shortcut_probe: Mapping[str, Any] | None = None
    """AUROC of a classifier that tells synthetic from real images, near 1 where origin could stand in for a finding; and under
    `origin_reliance` whether it does, see `origin_reliance.origin_reliance`"""
    learning_curve: tuple[Mapping[str, Any], ...] = ()
    """by finding: both arms and their difference at each number of real positive images"""
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """the gallery, if asked for: PNG by name, of images of patients"""

    def to_dimension(self) -> Dimension:
        """The `benefit` dimension of a report: measured if any finding was, else skipped with the reasons."""
        if not self.findings:
            return Dimension("skipped", reason="; ".join(f"{entry['finding']}: {entry['reason']}" for entry in self.skipped))
        extra: dict[str, Any] = {"not_tested": list(self.skipped)} if self.skipped else {}
        if self.shortcut_probe is not None:
            extra["shortcut_probe"] = self.shortcut_probe
        if self.learning_curve:
            extra["learning_curve"] = list(self.learning_curve)
        return Dimension("measured", findings=self.findings, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """As it stands under `dimensions`, `benefit`, in `report.json`."""
        return self.to_dimension().to_dict()


def measure_benefit(real_train: ImageSet, real_test: ImageSet, synthetic: ImageSet, *, findings: Sequence[str],
                    config: BenefitConfig | None = None, real_val: ImageSet | None = None, external: ImageSet | None = None,
                    train_unseen: bool = False, keep: Path | None = None, progress: Progress = quiet) -> BenefitResult:
    """Train every arm with every seed and compare them on real images that no training saw, for each of `findings`.

    With one split, `real_val` only sets the thresholds and `real_test` is tested. With `config.folds`, the patients of both are
    cross-validated; those of `real_train` are too if `train_unseen` says that the generator has not seen them, and else always
    train. `external` are images of another hospital, about which `real` and `real+synthetic` are asked too. `keep` is a folder in which
    finished trainings wait for a study that was stopped to go on. A finding with too few
    patients to be tested is skipped with the reason. Raises InputError when a synthetic image stands among the real ones, a patient is
    on two sides, an image has no patient, a synthetic image is a held-out image, an external one is not new or `keep` holds another study;
    UsageError when sizes or columns do not fit.

    >>> measure_benefit(train, test, made, findings=["Mass"]).findings[0]["verdict"]  # doctest: +SKIP
    'no evidence'
    """
    config = config or BenefitConfig()
    real_val = real_val if real_val is not None and len(real_val) else None
    refuse_leaks(real_train, real_test, synthetic, real_val)
    if config.folds and train_unseen:
        refuse_held_out_hosts(synthetic.studies, {"training": real_train.studies})  # in some fold these are tested
    refuse_misfits(real_train, real_test, synthetic, real_val, findings)
    unseen = [*([real_train] if train_unseen else []), *([real_val] if real_val is not None else []), real_test]
    pool = ImageSet.join(unseen) if config.folds else real_test
    if external is not None:
        sides = {"training": real_train, "test": real_test, "synthetic": synthetic} | ({"validation": real_val} if real_val else {})
        external = fitted_external(external, real_train, sides)
    reasons = {finding: too_few(pool, finding, config) for finding in findings}
    skipped = tuple({"finding": finding, "reason": reason} for finding, reason in reasons.items() if reason)
    tested = [finding for finding, reason in reasons.items() if not reason]
    if not tested:
        return BenefitResult(findings=(), skipped=skipped)
    design = (cross_validation(real_train.take([]) if train_unseen else real_train, pool, targets=tested, config=config) if config.folds
              else one_split(real_train, real_test, real_val))
    mix = shuffle(synthetic, seed=config.seed)
    study = BenefitStudy(config=config, arms=_arms_with_images(config, design, mix), tested=tuple(tested), synthetic=mix, external=external,
                         design=design if external is None else with_external(design, external),
                         others=tuple(name for name in pool.findings if name not in reasons and not too_few(pool, name, config)))
    answers = _train(study, keep=keep, progress=portion(progress, 0.0, TRAININGS))
    progress(TRAININGS, "comparing the arms")
    found = _compare(study, answers)
    entries = _entries(study, answers, found)
    curve = tuple(learning_curve(study.design, answers, mix, finding, config) for finding in tested) if config.positives else ()
    progress((1 + TRAININGS) / 2, "reliance on the origin of images")
    probe = origin_probe(real_train, synthetic, config=config) if config.probe else None
    if probe is not None and not config.is_screen:
        probe["origin_reliance"] = origin_reliance(real_train, real_test, synthetic, findings=tested, config=config.classifier,
                                                   seed=config.seed)
    figures = {name: sheet for finding in (tested if config.gallery else ()) for name, sheet in failure_sheets(found, finding).items()}
    progress(1.0, "measured")
    return BenefitResult(findings=entries, skipped=skipped, shortcut_probe=probe, learning_curve=curve, figures=figures)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenefitStudy:
    """What is trained and compared: the design, the arms, and the findings that the images allow to test."""

    config: BenefitConfig
    design: Design
    """with the external images, if there are any, behind all others"""
    arms: Mapping[str, Arm]
    tested: tuple[str, ...]
    """findings for which the images were made, and of which there are patients enough"""
    others: tuple[str, ...]
    """further findings that can be tested: they must not become worse"""
    synthetic: ImageSet
    """in the order in which ratios take them"""
    external: ImageSet | None

    def folds(self) -> Iterator[tuple[int, int, Fraction]]:
        """Repeat, fold and its division, in the order of the trainings."""
        for repeat, parts in enumerate(self.design.parts):
            for fold, part in enumerate(parts):
                yield repeat, fold, part

    def job_name(self, arm: str, repeat: int, fold: int, run: int) -> str:
        """Of one training, for people and for the file that keeps its answers."""
        where = f", fold {fold + 1} of {len(self.design.parts[repeat])}" if self.config.folds else ""
        where += f", repeat {repeat + 1} of {self.config.repeats}" if self.config.repeats > 1 else ""
        return f"{arm}{where}, training {run + 1} of {self.config.seeds}"


def _train(study: BenefitStudy, *, keep: Path | None, progress: Progress) -> dict[str, Answers]:
    """Every training of the study, or what is kept of it: answers by the name of the job."""
    config, design = study.config, study.design
    jobs = _jobs(study) + (curve_jobs(design, study.tested, config) if config.positives else [])
    elsewhere = site_jobs(design, study.synthetic, study.tested, config) if config.leave_site_out else []
    answers, done, total = dict[str, Answers](), 0, len(jobs) + len(elsewhere)
    for part, folder in ((jobs, keep), (elsewhere, keep and keep / "sites")):  # apart: sites may be left out later
        if part:
            own = portion(progress, done / total, (done + len(part)) / total)
            answers |= train_jobs(part, design.real, study.synthetic, config=config, keep=folder, progress=own)
            done += len(part)
    return answers


def _compare(study: BenefitStudy, answers: Mapping[str, Answers]) -> ArmPredictions:
    """The answers of all arms about the validation and test images, in the order of the tested images."""
    by_arm: dict[str, list[list[list[Scores]]]] = {arm: [[] for _ in study.design.parts] for arm in study.arms}
    for arm, repeats in by_arm.items():
        for repeat, fold, part in study.folds():
            asked = len(part.val) + len(part.test)  # after these, some arms are asked about external images
            repeats[repeat].append([answers[study.job_name(arm, repeat, fold, run)].probabilities[:asked]
                                    for run in range(study.config.seeds)])
    return arm_predictions(study.design, by_arm, ratios=_ratios(study), config=study.config)


def _entries(study: BenefitStudy, answers: Mapping[str, Answers], found: ArmPredictions) -> tuple[dict[str, Any], ...]:
    """What the report says of each tested finding."""
    config, design = study.config, study.design
    at_home = {arm: [answers[study.job_name(arm, repeat, fold, run)] for repeat, fold, _ in study.folds() for run in range(config.seeds)]
               for arm in ARMS}
    shared = {"seeds": config.seeds, "updates": config.classifier.updates, "classifier": next(iter(answers.values())).classifier,
              "n_synthetic": len(study.synthetic), "design": dict(design.facts), **others_of(found, study.others, config)}
    deltas = with_holm([delta_of(found, finding, against=PLAIN, config=config) for finding in study.tested])
    best = with_holm([delta_of(found, finding, config=config, against=best_conventional(found, finding)) for finding in study.tested])
    entries = []
    for finding, delta, against_best in zip(study.tested, deltas, best, strict=True):
        entry = _sizes(finding, design, study.synthetic) | shared
        entry |= {"arms": [arm_record(name, found, finding, config) for name in study.arms],
                  "roc": {name: roc_of(found, name, finding) for name in study.arms},
                  "delta": delta, "delta_best_conventional": against_best, "verdict": verdict_of(delta),
                  "power": power_record(found, finding, delta, config), "subgroups": subgroup_benefit(found, finding, config),
                  "shortcuts": shortcuts(found, finding, config)}
        if config.leave_site_out:
            entry["left_out_sites"] = left_out_sites(design, answers, at_home, study.synthetic, finding, config)
        if study.external is not None:
            entry["external"] = external_test(study.external, at_home, finding, config)
        entries.append(entry | {"gate": gate_of(entry, config)})
    return tuple(entries)


def asked_config(given: Mapping[str, Any], *, classifier: str, weights: Path | None, updates: int | None, positives: Sequence[int],
                 more_positives: Sequence[int] = (), seed: int) -> BenefitConfig:
    """The protocol that a command line asks for, `given` being fields of it.

    The classifier has its usual settings but for those that are given.
    """
    if more_positives and not positives:
        raise UsageError(f"'{more_positives[0]}' belongs to no option; numbers follow --positives")
    if weights is not None and not weights.is_file():
        raise InputError("there is no such file of weights", file=weights)
    own = replace(usual_classifier(classifier), weights="" if weights is None else str(weights))
    if updates is not None:
        own = replace(own, updates=updates)
    return BenefitConfig(**given, classifier=own, positives=(*positives, *more_positives), seed=seed)


def gate_reasons(dimension: Dimension) -> list[str]:
    """Why the gate is shut, nothing if it is open. What was not tested does not pass."""
    untested = [f"{entry['finding']}: not tested, {entry['reason']}" for entry in dimension.extra.get("not_tested", ())]
    shut = [f"{entry['finding']}: {reason}" for entry in dimension.findings for reason in entry["gate"]["reasons"]]
    return [*([] if dimension.findings else [dimension.reason]), *untested, *shut]


def origin_probe(real: ImageSet, synthetic: ImageSet, *, config: BenefitConfig) -> dict[str, Any] | None:
    """How well the classifier tells synthetic from real images of patients it was not trained on; None below 20 images of a kind.

    It learns on half of the real patients and half of the synthetic images, and is asked about the other half.
    """
    if min(len(real), len(synthetic)) < 20:
        return None
    rng = np.random.default_rng(derive(config.seed, "origin probe"))
    patients = np.unique(real.patients())
    learns = np.concatenate([np.isin(real.patients(), rng.permutation(patients)[: len(patients) // 2]),
                             rng.permutation(len(synthetic)) < len(synthetic) // 2])
    images = ImageSet.join([real, synthetic]).pixels
    made = np.repeat([0, 1], [len(real), len(synthetic)])
    classifier = training_of(config.classifier)(images[learns], made[learns, None].astype(np.float32), findings=["synthetic"],
                                                config=config.classifier, seed=config.seed)
    found = delong_interval(made[~learns], classifier.predict(images[~learns])[:, 0])
    return {"auroc": found.auc, "low": found.low, "high": found.high, "n_real": int((made[~learns] == 0).sum()),
            "n_synthetic": int((made[~learns] == 1).sum())}


def _arms_with_images(config: BenefitConfig, design: Design, made: ImageSet) -> dict[str, Arm]:
    """The arms, less those whose ratio the synthetic images do not reach, and those that would repeat the declared one."""
    largest = max(len(part.train) for parts in design.parts for part in parts)
    declared = len(take_ratio(made, config.ratio, largest))
    swept = {f"{DECLARED}, ratio {ratio:g}": round(ratio * largest) for ratio in config.sweep}
    return {name: arm for name, arm in config.arms().items()
            if name not in swept or (swept[name] <= len(made) and swept[name] != declared)}


def _jobs(study: BenefitStudy) -> list[Job]:
    """Every training of every arm; with one split their seeds are those of the runs alone.

    The two arms compared are also asked about the external images, which are the last of the design.
    """
    jobs, config, num_real = [], study.config, len(study.design.real)
    external = np.arange(num_real - len(study.external or ()), num_real)
    for repeat, fold, part in study.folds():
        place = (repeat, fold) if config.folds else ()
        jobs += [Job(name=study.job_name(name, repeat, fold, run), arm=arm, train=part.train,
                     asked=np.concatenate([part.val, part.test, *([external] if name in ARMS else [])]), targets=study.tested,
                     seed=derive(config.seed, "training", run, *place)) for run in range(config.seeds) for name, arm in study.arms.items()]
    return jobs


def _ratios(study: BenefitStudy) -> dict[str, float]:
    """Synthetic images for each real one, as used, by those arms that mix them; the mean over folds."""
    sizes = [len(part.train) for _, _, part in study.folds()]
    return {name: round(float(np.mean([len(take_ratio(study.synthetic, arm.ratio, size)) / size for size in sizes])), 3)
            for name, arm in study.arms.items() if arm.real and arm.ratio != 0}


def _sizes(finding: str, design: Design, synthetic: ImageSet) -> dict[str, Any]:
    """Counts; in cross-validation the training images are those of the first fold, about as many as in the others."""
    known, labels = stated_labels(design.test, finding)
    train = design.parts[0][0].train
    return {"finding": finding, "n_real_train": len(train),
            "n_real_positive_train": int((design.real.column(finding)[train] == 1).sum()),
            "n_synthetic_positive": int((synthetic.column(finding) == 1).sum()), "n_test": len(labels),
            "n_test_positive": int(labels.sum()), "n_test_patients": len(np.unique(design.test.patients()[known]))}

