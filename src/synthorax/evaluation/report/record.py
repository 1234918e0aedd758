"""The report: every dimension, measured or with the reason why not, as `report.json` (the truth) and `report.html` (a page)."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.report.page import Figure, render, show, verdict
from synthorax.files import write_atomic
from synthorax.former_names import with_present_facts, with_present_metrics
from synthorax.metric_table import keep_unknown, metric_of
from synthorax.types import Score, Status

SCHEMA = "synthorax.report/1"
"""the form of `report.json`, which tools of others may ask for"""
REVISION = 2
"""of the names in it: since 2, metrics go by the identifiers of `metric_table`; a report without a revision is of the first"""
DIMENSIONS: Mapping[str, str] = {
    "fidelity": "Do the synthetic images, as a set, look like real ones?",
    "lesion_preservation": "Is the requested finding really there, and where it belongs?",
    "controllability": "Does an image show what was asked for, and only that?",
    "diversity": "Do they vary as much as real images, or repeat one another?",
    "balance": "Does the augmented training set have the intended mix?",
    "benefit": "Does training with them improve results on unseen real patients?",
    "clinical_acceptability": "Do readers accept them?",
    "robustness": "Are the images as close to real ones at every site, and how far do distances move when images are corrupted?",
    "privacy": "Do they reveal who was trained on?",
}
"""name -> the question that it answers, in the order of the page; every report has them all"""
NOT_ASKED_FOR = "not asked for in this run"
VERDICTS = ("helps", "no evidence", "hurts")
TABLE_COLUMNS = ("metric", "name", "dimension", "group", "value", "low", "high", "better", "unit", "floor", "n_real", "n_synthetic",
                 "features", "note", "arm")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension: what was measured, or why nothing was. Silence is never a pass: what is not measured has a reason."""

    status: Status
    scores: tuple[Score, ...] = ()
    reason: str = ""
    findings: tuple[Mapping[str, Any], ...] = ()
    """one entry a finding, in the form that spec `report.json` gives for `benefit`"""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """further facts, JSON-ready; they stand beside the scores in `report.json`"""

    def __post_init__(self) -> None:
        """Refuse what could mislead: numbers that are not finite, an interval that misses its value, silence."""
        if self.status not in ("measured", "not_applicable", "skipped", "failed"):
            raise UsageError(f"unknown status '{self.status}'")
        if self.status == "measured" and not (self.scores or self.findings):
            raise UsageError("a measured dimension needs scores")
        if self.status != "measured" and not self.reason:
            raise UsageError(f"a dimension that is {self.status} needs a reason")
        if clash := set(self.extra) & {"status", "scores", "reason", "findings"}:
            raise UsageError(f"extra must not be called {sorted(clash)}")
        for score in self.scores:
            _refuse_unsound(score)
        _set(self, scores=tuple(self.scores), findings=tuple(_plain(entry, "findings") for entry in self.findings),
             extra=_plain(self.extra, "extra"))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `report.json`; empty parts are left out."""
        scores = [_plain(score.to_dict(), score.metric) for score in self.scores]
        parts = {"status": self.status, "reason": self.reason, "scores": scores, "findings": list(self.findings),
                 **self.extra}
        return {key: value for key, value in parts.items() if value or key in self.extra}


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceRow:
    """How many training images show one finding before and after the synthetic ones came in."""

    finding: str
    before: int
    after: int
    total_before: int
    """training images for which the finding is stated, present or absent"""
    total_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything measured of one synthetic set, compared with one real set.

    Dimensions that are not given are `skipped`. Figures are PNG bytes or SVG text by name; those called `real: X` and
    `synthetic: X` are shown side by side as sheets of finding X. Raises UsageError when a number is not finite or a
    required part is missing.

    >>> sides = {"real": {"digest": "a1"}, "synthetic": {"digest": "b2"}}
    >>> Report(inputs=sides).dimensions["privacy"].status
    'skipped'
    """

    inputs: Mapping[str, Mapping[str, Any]]
    """`real` and `synthetic`: each with its `digest`, and with counts and whatever else describes it"""
    judges: tuple[Mapping[str, Any], ...] = ()
    """each with `name` and `digest`: the networks whose opinion went into the numbers"""
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    balance: tuple[BalanceRow, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """remarks for the top of the page, for instance that the images are drawings"""
    warnings: tuple[str, ...] = ()
    """what a reader must know before any number, for instance that the training was too short; they stand above all else"""
    command: str = ""
    """the command lines that make this report again, one a line; empty for a report made from Python"""
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    version: str = field(default_factory=lambda: importlib.metadata.version("synthorax"))

    def __post_init__(self) -> None:
        """Fill in the dimensions that were not given, and refuse what is missing or unsound."""
        for name in self.dimensions:
            if name not in DIMENSIONS:
                raise UsageError(f"unknown dimension '{name}'; {nearest(name, DIMENSIONS)}")
        for side in ("real", "synthetic"):
            if not self.inputs.get(side, {}).get("digest"):
                raise UsageError(f"the report needs the digest of its {side} images")
        for judge in self.judges:
            if not (judge.get("name") and judge.get("digest")):
                raise UsageError(f"a judge needs a name and a digest: {dict(judge)}")
        for name, figure in self.figures.items():
            if isinstance(figure, bytes) and not figure.startswith(b"\x89PNG"):
                raise UsageError(f"figure '{name}' is neither PNG bytes nor SVG text")
        absent = Dimension("skipped", reason=NOT_ASKED_FOR)
        complete = {name: self.dimensions.get(name, absent) for name in DIMENSIONS}
        for entry in complete["benefit"].findings:
            if not entry.get("finding") or entry.get("verdict") not in VERDICTS:
                raise UsageError(f"a benefit entry needs a finding and a verdict: {entry.get('verdict')!r}; "
                                 f"choose from: {', '.join(VERDICTS)}")
        _set(self, dimensions=complete, inputs=_plain(self.inputs, "inputs"), figures=dict(self.figures),
             judges=tuple(_plain(judge, "judges") for judge in self.judges), balance=tuple(self.balance),
             notes=tuple(self.notes), warnings=tuple(self.warnings))

    def with_dimension(self, name: str, dimension: Dimension, *, judges: Iterable[Mapping[str, Any]] = (),
                       figures: Mapping[str, Figure] | None = None) -> Report:
        """A new report in which one dimension is replaced, and its judges and figures are added."""
        new = [judge for judge in judges if judge not in self.judges]
        return replace(self, dimensions={**self.dimensions, name: dimension}, judges=(*self.judges, *new),
                       figures={**self.figures, **(figures or {})})

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` holds it; figures are given by the file that holds them."""
        rows = [{name: getattr(row, name) for name in BalanceRow.__slots__} for row in self.balance]
        return {"schema": SCHEMA, "revision": REVISION, "created": self.created, "version": self.version, "command": self.command,
                "inputs": self.inputs, "judges": list(self.judges),
                "dimensions": {name: part.to_dict() for name, part in self.dimensions.items()},
                "plan": {"balance": _plain(rows, "balance")}, "notes": list(self.notes), "warnings": list(self.warnings),
                "figures": {name: _figure_file(name, figure) for name, figure in self.figures.items()}}

    def to_pandas(self) -> Any:
        """One row a score, the arms of `benefit` included, as a pandas DataFrame with `TABLE_COLUMNS`; UsageError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError("tables need pandas; pip install 'synthorax[tables]'") from error
        rows = [{"dimension": name, **score.to_dict()} for name, part in self.dimensions.items() for score in part.scores]
        rows += [{"dimension": "benefit", "metric": "auroc", "group": entry["finding"],
                  "arm": arm["arm"], "value": arm["auroc"], "low": arm.get("low"), "high": arm.get("high")}
                 for entry in self.dimensions["benefit"].findings for arm in entry.get("arms", ()) if "auroc" in arm]
        for row in rows:
            known = metric_of(row["metric"])
            row |= {"name": known.name, "better": known.better, "unit": known.unit}
        return pandas.DataFrame(rows, columns=list(TABLE_COLUMNS))

    def __str__(self) -> str:
        """The warnings, the verdict and one line a dimension, for a terminal."""
        lines = [f"Synthorax report, {self.created}", "", *(line for warning in self.warnings for line in (f"Warning: {warning}", ""))]
        for entry in self.dimensions["benefit"].findings:
            lines += [*filter(None, verdict(entry).values()), ""]
        for name, part in self.dimensions.items():
            items = [f"{_score_name(score, part)} {show(score.value)} [{show(score.low)}, {show(score.high)}]" for score in part.scores]
            items = [*items[:3], f"{len(items) - 3} more"] if len(items) > 3 else items
            items += [f"{entry.get('finding')}: {entry.get('verdict', 'see the page')}" for entry in part.findings]
            status = part.status.replace("_", " ")
            lines.append(f"{name.replace('_', ' '):<24}{status:<16}{'; '.join(items) or part.reason}")
        return "\n".join(lines)

    def write(self, out_dir: str | Path) -> Path:
        """Write `report.json`, `report.html` and `figures/`, each file whole or not at all; returns the page's path."""
        out = Path(out_dir)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        page = render(self, questions=DIMENSIONS)
        for name, figure in self.figures.items():
            write_atomic(out / _figure_file(name, figure), figure)
        write_atomic(out / "report.json", text)
        write_atomic(out / "report.html", page)
        return out / "report.html"

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a `report.json`, or the folder that holds it, also of an earlier revision.

        Raises InputError for anything that is no such report, and for one of a revision that this version does not know.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            revision = record.get("revision", 1)
            if record.get("schema") != SCHEMA or type(revision) is not int or revision not in range(1, REVISION + 1):
                raise InputError(f"its schema is {record.get('schema')!r}, revision {revision!r}; this version of Synthorax reads "
                                 f"{SCHEMA!r} "
                                 f"up to revision {REVISION}", file=path, remedy="read it with the version that wrote it, or a later one")
            record = record if revision == REVISION else with_present_facts(with_present_metrics(record))
            figures = {name: path.parent / file for name, file in record.get("figures", {}).items()}
            inside = {name: file for name, file in figures.items()
                      if file.resolve().is_relative_to(path.parent.resolve()) and file.is_file()}
            lost = [f"Figure '{name}' was not beside report.json when it was read." for name in figures
                    if name not in inside]
            return cls(
                inputs=record["inputs"], judges=tuple(record["judges"]), created=record["created"],
                dimensions={name: _dimension(part) for name, part in record["dimensions"].items()},
                version=record.get("version", ""), command=record.get("command", ""),
                balance=tuple(BalanceRow(**row) for row in record.get("plan", {}).get("balance", ())),
                figures={name: file.read_bytes() if file.suffix == ".png" else file.read_text(encoding="utf-8")
                         for name, file in inside.items()},
                notes=(*record.get("notes", ()), *lost), warnings=tuple(record.get("warnings", ())))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise InputError(f"not a readable report ({error})", file=path,
                             remedy="make it again with `synthorax evaluate`") from error


def _figure_file(name: str, figure: Figure) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    ending = "png" if isinstance(figure, bytes) else "svg"
    return f"figures/{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}.{ending}"


def _dimension(record: Mapping[str, Any]) -> Dimension:
    known = {"status", "scores", "reason", "findings"}
    return Dimension(record["status"], scores=tuple(_score(score) for score in record.get("scores", ())), reason=record.get("reason", ""),
                     findings=tuple(record.get("findings", ())),
                     extra={key: value for key, value in record.items() if key not in known})


def _score(record: Mapping[str, Any]) -> Score:
    names = {part.name for part in fields(Score)}
    keep_unknown(record["metric"], better=record.get("better", "higher"))
    score = Score(**{key: value for key, value in record.items() if key in names})
    if record.get("better", score.better) != score.better:
        raise UsageError(f"{score.metric}: {record['better']} is better there, and {score.better} in this version")
    return score


def _refuse_unsound(score: Score) -> None:
    numbers = [score.value, score.low, score.high, *([] if score.floor is None else [score.floor])]
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{score.metric} ({score.group}) has a number that is not finite: {numbers}")
    if not score.low <= score.value <= score.high:
        raise UsageError(f"{score.metric} ({score.group}): {score.value} lies outside [{score.low}, {score.high}]")


def _plain(value: Any, where: str) -> Any:
    """The same value made of dict, list, str, int, float, bool and None only; refuses NaN, infinity and all else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(part, where) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} holds a number that is not finite: {value}")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise UsageError(f"{where} holds a {type(value).__name__}, which JSON cannot hold")


def _score_name(score: Score, part: Dimension) -> str:
    """The metric, with what tells the score from others of the same metric in this dimension: its group, its feature space."""
    of = [] if score.group == "all" else [score.group]
    if score.features and sum(other.metric == score.metric and other.group == score.group for other in part.scores) > 1:
        of.append(f"by {score.features}")
    return ", ".join((metric_of(score.metric).name, *of))


def _set(record: Any, **parts: Any) -> None:
    """Complete a frozen record while it is being built."""
    for name, value in parts.items():
        object.__setattr__(record, name, value)
