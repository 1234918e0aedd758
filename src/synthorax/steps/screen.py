"""Screen: drop synthetic films that copy a training film or do not show what was asked for, and say why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.data.dataset import Dataset, copy_files, digest_of, read_dataset, write_facts, write_table
from synthorax.data.prepared import Prepared, load_films
from synthorax.data.tables import table_bytes
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.statistics import delong_interval
from synthorax.files import write_atomic, write_json
from synthorax.folders import claimed
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.cross_fit import CrossFit, cross_fit
from synthorax.privacy.copies import CopyDetector
from synthorax.progress import Report, quiet
from synthorax.steps.plan import STATED_ONLY
from synthorax.steps.screen_filters import chosen_filters, other_views, twins, unusual_films
from synthorax.types import Films

SENSITIVITY = 0.8
"""part of real films with a finding that the finding check lets pass"""
SPECIFICITY = 0.95
"""part of real films without a finding that pass as films without it"""
FALSE_ALARM_RATE = 0.01
"""part of real held-out films that the copy check may call copies"""
RESULT_NAME = "screening.json"
"""what `Screened` tells, beside the images that were kept"""
USUAL_JUDGE = ClassifierConfig(augment="classic")
"""how the judges are built and trained unless it is said otherwise"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingCheck:
    """How one finding is checked, or why it is not."""

    finding: str
    auroc: float
    low: float
    high: float
    present_above: float
    """lowest judge's probability of a film that is to show the finding"""
    absent_below: float
    """highest judge's probability of a film that is to lack it"""
    used: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """What screening left and what it dropped."""

    kept: Dataset
    num_seen: int
    reasons: dict[str, int]
    checks: tuple[FindingCheck, ...]
    copies: dict[str, Any]
    judges: tuple[dict[str, str], ...]
    filters: tuple[str, ...] = ()
    """those of `screen_filters.FILTERS` that were on"""

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items()) or "none dropped"
        unchecked = [f"\n  {check.finding} was not checked: {check.reason}" for check in self.checks if not check.used]
        return f"kept {len(self.kept)} of {self.num_seen} synthetic films ({why})" + "".join(unchecked)

    def to_dict(self) -> dict[str, Any]:
        """Counts, thresholds and judges, JSON-ready."""
        return {"kept": len(self.kept), "seen": self.num_seen, "reasons": self.reasons, "filters": list(self.filters),
                "copies": self.copies, "checks": [asdict(check) for check in self.checks], "judges": list(self.judges)}

    @classmethod
    def read(cls, out: Path) -> Screened:
        """What an earlier call left in `out`."""
        told = json.loads((out / RESULT_NAME).read_text(encoding="utf-8"))
        return cls(kept=read_dataset(out), num_seen=told["seen"], reasons=told["reasons"], copies=told["copies"],
                   checks=tuple(FindingCheck(**check) for check in told["checks"]), judges=tuple(told["judges"]),
                   filters=tuple(told["filters"]))


def screen_films(synthetic: Dataset, prepared: Prepared, *, out: Path, findings: Sequence[str] = (),
                 filters: Sequence[str] = (), seed: int = 0, classifier: ClassifierConfig | None = None, judge: CrossFit | None = None,
                 report: Report = quiet) -> Screened:
    """Write the films that pass to `out`, a dataset folder with dropped.csv beside its table.

    Copies: nearest training film, threshold calibrated on real held-out films (`privacy.copies`). Findings: the requested ones,
    or only `findings`, judged by classifiers cross-fitted on the real training films; a check is used only where these tell real
    films with and without the finding apart, and its thresholds are quantiles of their scores on real films. `filters` are names in
    `screen_filters.FILTERS`, by default the usual ones. `judge` is one that was cross-fitted on the same training films before. A
    finished result of the same inputs is returned as it is. Raises InputError if `out` holds anything else, or nothing passes.
    """
    chosen = chosen_filters(filters)
    inputs = {"synthetic images": digest_of(synthetic), "prepared images": prepared.digest, "findings": list(findings),
              "filters": list(chosen), "seed": seed, "classifier": classifier and asdict(classifier), "judge": judge and judge.digest}
    with claimed(out, kind="a screening", inputs=inputs) as folder:
        if not folder.done:
            screened = _screened(synthetic, prepared, out=folder.work, name=out.name, findings=findings, chosen=chosen, seed=seed,
                                 classifier=classifier, judge=judge, report=report)
            write_json(folder.work / RESULT_NAME, screened.to_dict())
            folder.deliver(last=("metadata.csv", "dataset.json"))
        return Screened.read(out)


def _screened(synthetic: Dataset, prepared: Prepared, *, out: Path, name: str, findings: Sequence[str], chosen: Sequence[str], seed: int,
              classifier: ClassifierConfig | None, judge: CrossFit | None, report: Report) -> Screened:
    """Screen into the empty folder `out`."""
    size = common_size(synthetic, prepared)
    real, held_out = prepared.films("train", size=size), _held_out(prepared, size=size)
    films = load_films(synthetic, size=size, findings=real.findings, policy=STATED_ONLY)
    judge = judge or screening_judge(real, config=classifier, seed=seed, report=report)
    checks = finding_checks(real, judge, findings or _requested(films)) if "finding" in chosen else []
    detector = CopyDetector.fit(real.images, held_out, false_alarm_rate=FALSE_ALARM_RATE)
    copies = detector.check(films.images)
    scores = judge.predict(films.images)
    repeats = twins(films.images, real) if "twin" in chosen else None
    unusual = unusual_films(real, judge, films, filters=chosen)
    asked_judges = [judge]
    if "view" in chosen:
        misplaced, of_views = other_views(real, films, config=classifier or USUAL_JUDGE, seed=seed)
        unusual += misplaced
        asked_judges += [of_views] if of_views is not None else []
    report(0.9, "writing")

    rows, kept, passed = [], [], set[int]()
    for number, study in enumerate(films.studies):
        reason, value, threshold, twin = "", 0.0, 0.0, ""
        if "copy" in chosen and copies.is_copy[number]:
            reason, value, threshold = "near copy", float(copies.similarity[number]), detector.threshold
            twin = real.studies[int(copies.nearest_index[number])].file_name
        elif repeats is not None and repeats[0][number] in passed:
            reason, value, threshold = f"repeats {films.studies[repeats[0][number]].file_name}", float(repeats[1][number]), repeats[2]
        else:
            reason, value, threshold = _finding_missed(number, films, scores, checks, judge)
        if not reason and (rare := [one for one in unusual if one.p[number] <= one.rate]):
            strangest = min(rare, key=lambda one: float(one.p[number]) / one.rate)
            reason, value, threshold = strangest.reason, float(strangest.p[number]), strangest.rate
        if reason:
            rows.append({"file_name": study.file_name, "plan_row": study.extra.get("plan_row", ""), "reason": reason,
                         "value": f"{value:.4f}", "threshold": f"{threshold:.4f}", "training_film": twin})
        else:
            passed.add(number)
            kept.append(replace(study, split="train"))
    reasons = dict(Counter("repeats an earlier film" if row["reason"].startswith("repeats ") else row["reason"] for row in rows))
    if not kept:
        raise InputError(f"none of the {len(films)} synthetic films passed ({reasons})",
                         file=synthetic.path, remedy="train the generator for longer")
    judges = tuple({"name": one.name, "digest": one.digest} for one in asked_judges)
    screening = {"seen": len(films), "kept": len(kept), "reasons": reasons, "filters": list(chosen),
                 "not_checked": {check.finding: check.reason for check in checks if not check.used}}
    _write(out, synthetic, kept, rows, name=name,
           extra={"judges": list(judges), "screening": screening, "labels": list(synthetic.findings)})
    facts = {"threshold": detector.threshold, "held_out_films": detector.calibration.num_films,
             "false_alarm_rate": detector.calibration.rate}
    return Screened(kept=read_dataset(out), num_seen=len(films), reasons=reasons, checks=tuple(checks),
                    copies=facts, judges=judges, filters=tuple(chosen))


def screening_judge(real: Films, *, config: ClassifierConfig | None = None, seed: int = 0, report: Report = quiet) -> CrossFit:
    """The judge of the findings, cross-fitted on real training films."""
    return cross_fit(real, config=config or USUAL_JUDGE, seed=seed,
                     progress=lambda done, total: report(0.7 * done / total, f"judge {done} of {total}"))


def finding_checks(real: Films, judge: CrossFit, findings: Sequence[str]) -> list[FindingCheck]:
    """One check a finding, with thresholds from the judge's out-of-fold scores on real films."""
    checks = []
    for finding in findings:
        column = real.findings.index(finding)
        labels, scores = real.labels[:, column], judge.out_of_fold[:, column]
        stated = ~np.isnan(labels)
        present, absent = scores[labels == 1], scores[labels == 0]
        if len(present) < 5 or len(absent) < 5:
            checks.append(FindingCheck(finding=finding, auroc=0.5, low=0, high=1, present_above=0, absent_below=1, used=False,
                                       reason=f"only {len(present)} real films with it and {len(absent)} without"))
            continue
        auroc = delong_interval(labels[stated].astype(int), scores[stated])
        used = auroc.low > 0.5
        reason = "" if used else "the judge cannot tell real films with it from real films without it"
        checks.append(FindingCheck(finding=finding, auroc=auroc.auc, low=auroc.low, high=auroc.high,
                                   present_above=float(np.quantile(present, 1 - SENSITIVITY)),
                                   absent_below=float(np.quantile(absent, SPECIFICITY)), used=used, reason=reason))
    return checks


def common_size(synthetic: Dataset, prepared: Prepared) -> int:
    """Side in pixels at which both sets are compared: that of the synthetic films where the real ones can be reduced to it."""
    with Image.open(synthetic.path / synthetic.studies[0].file_name) as image:
        side = max(image.size)
    return side if prepared.size % side == 0 else prepared.size


def _held_out(prepared: Prepared, *, size: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Real films that set the copy thresholds: validation, and where that is too small for 1 % also test, whose labels stay unseen."""
    validation = prepared.films("val", size=size).images
    if len(validation) >= 2 / FALSE_ALARM_RATE:  # two ways of looking, each with half of the false alarms
        return validation
    return np.concatenate([validation, prepared.films("test", size=size).images])


def _requested(films: Films) -> list[str]:
    return [name for name in films.findings if name != NO_FINDING and (films.column(name) == 1).any()]


def _finding_missed(number: int, films: Films, scores: NDArray[np.float64], checks: Sequence[FindingCheck],
                    judge: CrossFit) -> tuple[str, float, float]:
    """Reason, value and threshold for one film; an empty reason if the judge sees what was asked for."""
    for check in checks:
        asked, score = films.column(check.finding)[number], float(scores[number, judge.findings.index(check.finding)])
        if check.used and asked == 1 and score < check.present_above:
            return f"{check.finding} not visible", score, check.present_above
        if check.used and asked == 0 and score > check.absent_below:
            return f"{check.finding} visible, though not asked for", score, check.absent_below
    return "", 0.0, 0.0


def _write(out: Path, synthetic: Dataset, kept: Sequence[Any], dropped: Sequence[dict[str, str]], *, name: str,
           extra: dict[str, Any]) -> None:
    kept = [copy_files(study, source=synthetic.path, out=out) for study in kept]
    columns = ("file_name", "plan_row", "reason", "value", "threshold", "training_film")
    write_atomic(out / "dropped.csv", table_bytes(columns, dropped))
    write_table(out, kept)
    told = ("model", "model_digest", "settings", "trained_on", "not_trained_on")
    inherited = {key: synthetic.facts[key] for key in told if key in synthetic.facts}
    write_facts(out, name=name, studies=kept, synthetic=True, extra={**inherited, **extra})
