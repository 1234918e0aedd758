"""Screening: drop synthetic images that do not look like radiographs, are near-duplicates, or lack what was asked for, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.config import read_record
from synthorax.data.dataset import Dataset, digest_of, read_dataset, write_dataset
from synthorax.data.derived import refuse_held_out_hosts
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.tables import table_bytes
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.statistics.roc import delong_interval
from synthorax.files import read_json_object, write_atomic, write_json
from synthorax.folders import claimed
from synthorax.judges.anatomy_guard import AnatomyReference, too_few
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.cross_fit import CrossFit, cross_fit
from synthorax.judges.plausible_chest import ChestJudge
from synthorax.judges.realism import RealismCheck
from synthorax.judges.segmenter import Segmenter
from synthorax.privacy.copies import CopyDetector
from synthorax.progress import Progress, portion, quiet
from synthorax.steps.planning.plan import STATED_ONLY
from synthorax.steps.screening import rejections
from synthorax.steps.screening.filters import ASK_THE_JUDGE, chosen_filters, likeness_of, other_views, unusual_images
from synthorax.steps.screening.rejections import COLUMNS, UNREALISTIC, Rejection, Rejections, count_reasons, first_of, in_words, remedy
from synthorax.types import ImageSet

SENSITIVITY = 0.8
"""part of real images with a finding that the finding check lets pass"""
SPECIFICITY = 0.95
"""part of real images without a finding that pass as images without it"""
FALSE_ALARM_RATE = 0.01
"""part of real held-out images that the copy check may call copies"""
RESULT_NAME = "screening.json"
"""what `Screened` tells, beside the images that were kept"""
AGAIN = "delete the folder and call the same command again"
MIN_IMAGES_PER_CHECK = 5
"""real images with a finding, and without it, that a check of the finding needs"""
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
    """lowest judge's probability of an image that is to show the finding"""
    absent_below: float
    """highest judge's probability of an image that is to lack it"""
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
    """those of `screening.filters.FILTERS` that were on"""
    filters_left_out: dict[str, str] = field(default_factory=dict)
    """filters that were asked for and could say nothing, and why"""

    @property
    def unrealistic_share(self) -> float:
        """Part of the images that was dropped because it is unlike the real ones."""
        return self.reasons.get(UNREALISTIC, 0) / self.num_seen

    @property
    def most_dropped(self) -> str:
        """What to do where more than half were dropped; else empty."""
        return remedy(self.reasons) if 2 * len(self.kept) < self.num_seen else ""

    def __str__(self) -> str:
        lines = [f"{check.finding} was not checked: {check.reason}" for check in self.checks if not check.used]
        lines += [f"the filter {name} was left out: {reason}" for name, reason in self.filters_left_out.items()]
        lines += [f"most were dropped: {self.most_dropped}"] if self.most_dropped else []
        return "\n  ".join([f"kept {len(self.kept)} of {self.num_seen} synthetic images ({in_words(self.reasons)})", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Counts, thresholds and judges, JSON-ready."""
        return {"kept": len(self.kept), "seen": self.num_seen, "reasons": self.reasons, "filters": list(self.filters),
                "filters_left_out": self.filters_left_out,
                "unrealistic_share": self.unrealistic_share, "most_dropped": self.most_dropped,
                "copies": self.copies, "checks": [asdict(check) for check in self.checks], "judges": list(self.judges)}

    @classmethod
    def read(cls, out: Path) -> Screened:
        """What an earlier call left in `out`."""
        record = read_json_object(out / RESULT_NAME, {"seen": int, "reasons": dict, "copies": dict, "judges": list, "filters": list},
                                remedy=AGAIN)
        checks = read_record(tuple[FindingCheck, ...], record.get("checks"), what="checks", where=out / RESULT_NAME, remedy=AGAIN)
        return cls(kept=read_dataset(out), num_seen=record["seen"], reasons=record["reasons"], copies=record["copies"], checks=checks,
                   judges=tuple(record["judges"]), filters=tuple(record["filters"]), filters_left_out=record.get("filters_left_out", {}))


def screen_images(synthetic: Dataset, prepared: Prepared, *, out: Path, findings: Sequence[str] = (),
                 filters: Sequence[str] = (), seed: int = 0, classifier: ClassifierConfig | None = None, judge: CrossFit | None = None,
                 progress: Progress = quiet) -> Screened:
    """Write the images that pass to `out`, a dataset folder with dropped.csv beside its table.

    Copies: nearest training image, threshold calibrated on real held-out ones (`privacy.copies`); an image that is derived from a patient's
    may resemble that patient's images. Realism: distance to the real images of
    training and validation (`judges.realism`). Findings: the requested ones, or only `findings`, judged by classifiers cross-fitted on the
    real training images; a check is used only where these tell real images with and without the finding apart, and its thresholds
    are quantiles of their scores on real images. Anatomy: lungs and heart as the lung model outlines them, held against the real training
    images (`judges.anatomy_guard`); too few of these, and the result says that it was left out. Duplicates: repeats of an earlier image
    that is kept. `filters` are names in `screening.filters.FILTERS`, by default the usual ones, and only the judges that they need are
    trained. `judge` is one that was cross-fitted on the same training images before. A finished result of the same inputs is returned as it
    is. Raises InputError if `out` holds anything else, or nothing passes.
    """
    chosen = chosen_filters(filters)
    inputs = {"synthetic images": digest_of(synthetic), "prepared images": prepared.digest, "findings": list(findings),
              "filters": list(chosen), "seed": seed, "classifier": classifier and asdict(classifier), "judge": judge and judge.digest}
    with claimed(out, kind="a screening", inputs=inputs) as folder:
        if not folder.done:
            screened = _screen(synthetic, prepared, out=folder.work, name=out.name, findings=findings, chosen=chosen, seed=seed,
                                 classifier=classifier, judge=judge, progress=progress)
            write_json(folder.work / RESULT_NAME, screened.to_dict())
            folder.deliver(last=("metadata.csv", "dataset.json"))
            progress(1.0, f"{len(screened.kept)} of {screened.num_seen} images kept")
        return Screened.read(out)


def _screen(synthetic: Dataset, prepared: Prepared, *, out: Path, name: str, findings: Sequence[str], chosen: Sequence[str], seed: int,
              classifier: ClassifierConfig | None, judge: CrossFit | None, progress: Progress) -> Screened:
    """Screen into the empty folder `out`."""
    refuse_held_out_hosts(synthetic.studies, {split: [study for study in prepared.studies if study.split == split]
                                              for split in ("val", "test")}, file=synthetic.path / "metadata.csv")
    size = common_size(synthetic, prepared)
    real = prepared.images("train", size=size)
    images = load_images(synthetic, size=size, findings=real.findings, policy=STATED_ONLY, progress=portion(progress, 0, 0.1))
    progress(0.1, "copies and realism")
    rejected, copies = _cheap_rejections(real, images, prepared, filters=chosen)
    unchecked: dict[str, str] = {}
    guard, limits = _anatomy_reference(real) if "anatomy" in chosen else (None, "")
    if guard is not None:
        rejected = first_of([rejected, rejections.wrong_anatomy(guard, images)])
    elif limits:
        unchecked["anatomy"] = limits
    _refuse_if_none_is_left(rejected, images, synthetic)

    requested = list(findings or _requested_findings(images)) if "finding" in chosen else []
    needed = any(_checkable(real, name) for name in requested) or not ASK_THE_JUDGE.isdisjoint(chosen)
    judge = (judge or screening_judge(real, config=classifier, seed=seed, progress=portion(progress, 0.3, 0.8))) if needed else None
    progress(0.8, "filters")
    checks = finding_checks(real, judge, requested)
    judges: list[CrossFit | Segmenter | ChestJudge] = [] if judge is None else [judge]
    judges += [] if guard is None else [guard.model, guard.judge]
    rare = [] if judge is None else unusual_images(real, judge, images, filters=chosen)
    if "view" in chosen:
        misplaced, of_views = other_views(real, images, config=classifier or USUAL_JUDGE, seed=seed)
        rare += misplaced
        judges += [of_views] if of_views is not None else []
    rejected = first_of([rejected, {} if judge is None else missed_findings(images, judge, checks), rejections.unusual(rare)])
    if "duplicate" in chosen:
        rejected |= rejections.repeats(likeness_of(images.pixels, real), images, dropped=rejected)
    _refuse_if_none_is_left(rejected, images, synthetic)
    progress(0.9, "writing")

    reasons = count_reasons(rejected)
    kept = [replace(study, split="train") for number, study in enumerate(images.studies) if number not in rejected]
    named = tuple({"name": one.name, "digest": one.digest} for one in judges)
    screening = {"seen": len(images), "kept": len(kept), "reasons": reasons, "filters": list(chosen),
                 "not_checked": {check.finding: check.reason for check in checks if not check.used}, "filters_left_out": unchecked}
    rows = [{"file_name": images.studies[number].file_name, "plan_row": images.studies[number].extra.get("plan_row", ""),
             **rejected[number].row()} for number in sorted(rejected)]
    _write(out, synthetic, kept, rows, name=name,
           extra={"judges": list(named), "screening": screening, "labels": list(synthetic.findings)},
           progress=portion(progress, 0.9, 1))
    return Screened(kept=read_dataset(out), num_seen=len(images), reasons=reasons, checks=tuple(checks), copies=copies, judges=named,
                    filters=tuple(chosen), filters_left_out=unchecked)


def _cheap_rejections(real: ImageSet, images: ImageSet, prepared: Prepared, *, filters: Sequence[str]) -> tuple[Rejections, dict[str, Any]]:
    """What the filters say that need no training, and what the record says of the copy check."""
    size, found, copies_record = real.pixels.shape[1], list[Rejections](), dict[str, Any]()
    if "copy" in filters:
        detector = CopyDetector.fit(real.pixels, _held_out(prepared, size=size), false_alarm_rate=FALSE_ALARM_RATE)
        found.append(rejections.copies(detector, images, real=real, rows=_rows(prepared, "train")))
        copies_record = {"thresholds": detector.thresholds, "held_out_images": detector.calibration.num_images,
                          "false_alarm_rate": detector.calibration.rate}
    if "realism" in filters:
        found.append(rejections.unrealistic(realism_check(prepared, size=size), images))
    return first_of(found), copies_record


def _anatomy_reference(real: ImageSet) -> tuple[AnatomyReference | None, str]:
    """How lungs and hearts of the real training images look, or why nothing can be said of them."""
    views = [study.view for study in real.studies]
    reason = too_few(views)
    return None if reason else AnatomyReference.fit(real.pixels, views=views, patients=real.patients()), reason


def realism_check(prepared: Prepared, *, size: int) -> RealismCheck:
    """How images of a prepared folder look, by those of training and validation."""
    return RealismCheck.fit(prepared.images("train", size=size), prepared.images("val", size=size))


class NonePassedError(InputError):
    """Screening dropped every image; the message says why, and what to do."""


def _refuse_if_none_is_left(rejected: Rejections, images: ImageSet, synthetic: Dataset) -> None:
    if len(rejected) == len(images):
        reasons = count_reasons(rejected)
        raise NonePassedError(f"none of the {len(images)} synthetic images passed: {in_words(reasons)}", file=synthetic.path,
                              remedy=remedy(reasons))


def screening_judge(real: ImageSet, *, config: ClassifierConfig | None = None, seed: int = 0, progress: Progress = quiet) -> CrossFit:
    """The judge of the findings, cross-fitted on real training images."""
    return cross_fit(real, config=config or USUAL_JUDGE, seed=seed, progress=progress)


def finding_checks(real: ImageSet, judge: CrossFit | None, findings: Sequence[str]) -> list[FindingCheck]:
    """One check a finding, with thresholds from the judge's out-of-fold scores on real images; no judge is asked about too few."""
    checks = []
    for finding in findings:
        column = real.findings.index(finding)
        labels = real.labels[:, column]
        if judge is None or not _checkable(real, finding):
            few = f"only {int((labels == 1).sum())} real images with it and {int((labels == 0).sum())} without"
            checks.append(FindingCheck(finding=finding, auroc=0.5, low=0, high=1, present_above=0, absent_below=1, used=False, reason=few))
            continue
        scores, stated = judge.out_of_fold[:, column], ~np.isnan(labels)
        auroc = delong_interval(labels[stated].astype(int), scores[stated])
        used = auroc.low > 0.5
        reason = "" if used else "the judge cannot tell real images with it from real images without it"
        checks.append(FindingCheck(finding=finding, auroc=auroc.auc, low=auroc.low, high=auroc.high,
                                   present_above=float(np.quantile(scores[labels == 1], 1 - SENSITIVITY)),
                                   absent_below=float(np.quantile(scores[labels == 0], SPECIFICITY)), used=used, reason=reason))
    return checks


def missed_findings(images: ImageSet, judge: CrossFit, checks: Sequence[FindingCheck]) -> Rejections:
    """Images in which the judge does not see a finding that was asked for, or sees one that was to be absent."""
    scores, rejected = judge.predict(images.pixels), Rejections()
    for check in reversed([check for check in checks if check.used]):  # the first finding's reason counts
        requested, seen = images.column(check.finding), scores[:, judge.findings.index(check.finding)]
        for value, missed, reason, threshold in (
                (1, seen < check.present_above, f"{check.finding} not visible", check.present_above),
                (0, seen > check.absent_below, f"{check.finding} visible, though not asked for", check.absent_below)):
            rejected |= {number: Rejection(reason=reason, way="judge's probability", value=float(seen[number]), threshold=threshold)
                         for number in np.flatnonzero((requested == value) & missed).tolist()}
    return rejected


def common_size(synthetic: Dataset, prepared: Prepared) -> int:
    """Side in pixels at which both sets are compared: that of the synthetic images where the real ones can be reduced to it."""
    with Image.open(synthetic.path / synthetic.studies[0].file_name) as image:
        side = max(image.size)
    return side if prepared.size % side == 0 else prepared.size


def _held_out(prepared: Prepared, *, size: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Real images that set the copy thresholds: validation, and where that is too small for 1 % also test, whose labels stay unseen."""
    validation = prepared.images("val", size=size).pixels
    if len(validation) >= 2 / FALSE_ALARM_RATE:  # two ways of looking, each with half of the false alarms
        return validation
    return np.concatenate([validation, prepared.images("test", size=size).pixels])


def _requested_findings(images: ImageSet) -> list[str]:
    return [name for name in images.findings if name != NO_FINDING and (images.column(name) == 1).any()]


def _checkable(real: ImageSet, finding: str) -> bool:
    """Whether enough real images are with and without the finding for a judge of it to be checked."""
    return min(int((real.column(finding) == value).sum()) for value in (0, 1)) >= MIN_IMAGES_PER_CHECK


def _rows(prepared: Prepared, split: str) -> list[int]:
    """Rows of a split in the prepared folder's metadata.csv, as a spreadsheet counts them."""
    return [row + 2 for row, study in enumerate(prepared.studies) if study.split == split]


def _write(out: Path, synthetic: Dataset, kept: Sequence[Any], dropped: Sequence[dict[str, str]], *, name: str,
           extra: dict[str, Any], progress: Progress) -> None:
    write_atomic(out / "dropped.csv", table_bytes(COLUMNS, dropped))
    passed_on = ("model", "model_digest", "settings", "trained_on", "not_trained_on")
    inherited = {key: synthetic.facts[key] for key in passed_on if key in synthetic.facts}
    write_dataset(out, kept, name=name, synthetic=True, source=synthetic.path, facts={**inherited, **extra}, progress=progress)
