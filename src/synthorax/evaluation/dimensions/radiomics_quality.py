"""The radiomics quality score: sixteen questions to a study of image features, with the points of Lambin et al. (2017), 36 at most."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthorax.errors import InputError, nearest
from synthorax.evaluation.report.record import Report

ENOUGH = 18
"""points below which a study is flagged: half of the most"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question, its answers with their points, and what none of them costs."""

    question: str
    points: Mapping[str, int]
    none: int = 0
    several: bool = False
    """answers add up; else one is given"""


def _yes(question: str, points: int = 1) -> Item:
    return Item(question=question, points={"yes": points})


ITEMS: Mapping[str, Item] = {
    "protocol": Item(question="Is the imaging protocol written down, and is it a public one?", points={"documented": 1, "public": 1},
                     several=True),
    "segmentations": _yes("Were lesions outlined several times, by readers, algorithms or with noise, and features compared?"),
    "phantom": _yes("Were differences between scanners measured on a phantom?"),
    "time_points": _yes("Were people imaged at several times, and features compared?"),
    "feature_reduction": Item(question="Were features reduced, or p-values corrected for their number?", points={"yes": 3}, none=-3),
    "other_variables": _yes("Are there other than image features in the model, such as age?"),
    "biology": _yes("Are features related to biology?"),
    "cut_off": _yes("Are risk groups formed by a cut-off that was not picked by the result, such as the median?"),
    "discrimination": Item(question="How well does the model tell apart, and was that resampled?", several=True,
                           points={"statistics": 1, "resampling": 1}),
    "calibration": Item(question="Are its probabilities calibrated, and was that resampled?", points={"statistics": 1, "resampling": 1},
                        several=True),
    "prospective": _yes("Is it a prospective study in a trial register?", 7),
    "validation": Item(question="On whose images was it validated, without training on them?", none=-5,
                       points={"same institute": 2, "other institute": 3, "two institutes": 4, "published signature": 4,
                               "three institutes": 5}),
    "gold_standard": _yes("Was it compared with the standard of today?", 2),
    "utility": _yes("Is its use for a decision shown, for instance by a decision curve?", 2),
    "cost": _yes("Was its cost-effectiveness analysed?"),
    "open": Item(question="What is open to everybody?", points={"scans": 1, "outlines": 1, "code": 1, "features": 1}, several=True),
}


def radiomics_quality(path: str | Path, report: Report | None = None) -> dict[str, Any]:
    """Score a TOML file of answers, JSON-ready; what a report's benefit dimension shows for certain may be left out of the file.

    Each key is one of `ITEMS`, its value an answer, a list of answers where they add up, or "none". Raises InputError for a question
    without an answer: not stated is not "none".
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        given = tomllib.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"the answers cannot be read ({error})", file=path, remedy="write one line an item: biology = \"none\"") from None
    for name in given:
        if name not in ITEMS:
            raise InputError(f"unknown item '{name}'", file=path, remedy=nearest(name, ITEMS))
    shown = {} if report is None else _answers_of_report(report)
    items: dict[str, Any] = {}
    for name, item in ITEMS.items():
        if name not in given and name not in shown:
            raise InputError(f"'{name}' has no answer: {item.question}", file=path, remedy=f"choose from: none, {', '.join(item.points)}")
        answers = _answers(path, name, given[name]) if name in given else shown[name]
        points = sum(item.points[answer] for answer in answers) if answers else item.none
        items[name] = {"points": points, "answer": list(answers) or "none", "by": "the file" if name in given else "the report"}
    score = sum(entry["points"] for entry in items.values())
    flag = "" if score >= ENOUGH else f"below {ENOUGH}: the study's features are not well enough founded"
    return {"digest": hashlib.sha256(content).hexdigest(), "score": score, "of": 36, "flag": flag, "items": items}


def _answers(path: Path, name: str, value: Any) -> tuple[str, ...]:
    item = ITEMS[name]
    answers = tuple(value) if isinstance(value, list) else (value,)
    if answers == ("none",) or not answers:
        return ()
    for answer in answers:
        if answer not in item.points:
            raise InputError(f"'{name}' is {answer!r}", file=path, remedy=f"choose from: none, {', '.join(item.points)}")
    if len(set(answers)) < len(answers) or (len(answers) > 1 and not item.several):
        raise InputError(f"'{name}' has {len(answers)} answers", file=path, remedy="give one, or each of several once")
    return answers


def _answers_of_report(report: Report) -> dict[str, Sequence[str]]:
    """Answers that the numbers themselves are: of every trained classifier, measures with intervals over patients drawn anew."""
    arms = [arm for entry in report.dimensions["benefit"].findings for arm in entry.get("arms", ())]
    wanted = {"discrimination": ("auroc", "auprc_low"), "calibration": ("brier", "ece")}
    return {name: ("statistics", "resampling") for name, keys in wanted.items() if arms and all(key in arm for arm in arms for key in keys)}
