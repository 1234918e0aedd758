"""The plan: which images will be made, decided and written down before any of them exists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.data.attributes import MAX_AGE_YEARS, parse_sex
from synthorax.data.tables import read_table, table_bytes
from synthorax.data.vocabulary import NO_FINDING, format_findings, label_matrix, parse_findings
from synthorax.errors import InputError, UsageError, nearest
from synthorax.files import write_atomic
from synthorax.protocols import VIEWS, Condition, condition_of
from synthorax.rng import derive
from synthorax.types import Films, LabelPolicy, Stated, Study

COLUMNS = ("seed", "findings", "view", "sex", "age_years")
FEWEST_FILMS = 5
STATED_ONLY = LabelPolicy(unlisted="not stated")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One image to be made: its seed and its condition. What is empty is not asked for."""

    seed: int
    labels: Mapping[str, Stated] = field(default_factory=dict)
    view: str = ""
    sex: str = ""
    age_years: float = math.nan

    def cells(self) -> dict[str, str]:
        """The row as table cells."""
        age = "" if math.isnan(self.age_years) else f"{self.age_years:g}"
        return {"seed": str(self.seed), "findings": format_findings(self.labels), "view": self.view, "sex": self.sex,
                "age_years": age}

    def requested(self) -> dict[str, Any]:
        """The condition as JSON-ready dict: what the `condition` column of a synthetic film holds."""
        asked: dict[str, Any] = {}
        if self.labels:
            asked["labels"] = {name: int(stated is Stated.PRESENT) for name, stated in self.labels.items()
                               if stated is not Stated.UNCERTAIN}
        cells = self.cells()
        return asked | {part: cells[part] for part in ("view", "sex", "age_years") if cells[part]}

    def study(self, file_name: str) -> Study:
        """The row as a film that shows what was asked for."""
        return Study(file_name=file_name, labels=dict(self.labels), view=self.view, sex=self.sex, age_years=self.age_years,
                     origin="synthetic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows to generate, in order."""

    rows: tuple[PlanRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.counts().most_common())
        return f"plan of {len(self)} images: {counts or 'no findings asked for'}"

    def counts(self) -> Counter[str]:
        """How many rows ask for each finding."""
        return Counter(name for row in self.rows for name, stated in row.labels.items() if stated is Stated.PRESENT)

    def to_dict(self) -> dict[str, Any]:
        """Size and counts, JSON-ready."""
        return {"rows": len(self), "counts": dict(self.counts())}

    def to_pandas(self) -> Any:
        """The plan as a pandas table (needs the extra `tables`)."""
        import pandas

        return pandas.DataFrame([row.cells() for row in self.rows], columns=list(COLUMNS))

    def write(self, path: Path) -> None:
        """Write plan.csv, whole or not at all."""
        write_atomic(path, table_bytes(COLUMNS, [row.cells() for row in self.rows]))

    def condition(self, findings: Sequence[str]) -> Condition:
        """The rows as the condition of a model that knows `findings`; what a row does not state is NaN."""
        unknown = sorted({name for row in self.rows for name in row.labels} - set(findings) - {NO_FINDING})
        if unknown:
            raise UsageError(f"the model was not trained on '{unknown[0]}'; {nearest(unknown[0], findings)}")
        studies = [row.study("") for row in self.rows]
        return condition_of(studies, label_matrix(studies, findings, policy=STATED_ONLY))


def read_plan(path: Path, *, allow: Sequence[str] = ()) -> Plan:
    """Read plan.csv; every bad cell is an InputError with its row."""
    table = read_table(path)
    if "seed" not in table.columns:
        raise InputError("has no column 'seed'", file=path, row=1, remedy=f"columns are {', '.join(COLUMNS)}")
    rows = []
    for row in table.rows:
        cells = row.cells
        view = cells.get("view", "").upper()
        if view not in ("", *VIEWS):
            raise InputError(f"unknown view '{view}'", file=path, row=row.number, remedy=nearest(view, VIEWS))
        try:
            seed, age = int(cells["seed"]), float(cells.get("age_years") or "nan")
        except ValueError as error:
            raise InputError(f"not a number ({error})", file=path, row=row.number) from error
        if not 0 <= seed < 2**63:
            raise InputError(f"seed {seed} is outside 0 to 2^63 - 1", file=path, row=row.number)
        if not (math.isnan(age) or 0 <= age <= MAX_AGE_YEARS):
            raise InputError(f"age {age:g} is outside 0 to {MAX_AGE_YEARS} years", file=path, row=row.number)
        labels = parse_findings(cells.get("findings", ""), allow=allow, file=path, row=row.number)
        sex = parse_sex(cells.get("sex", ""), file=path, row=row.number)
        rows.append(PlanRow(seed=seed, labels=labels, view=view, sex=sex, age_years=age))
    return Plan(rows=tuple(rows))


def balancing_plan(train: Films, *, balance: Sequence[str] = (), count: Mapping[str, int] | None = None,
                   companions: float = 1.0, seed: int = 0) -> Plan:
    """Ask for as many films of each finding in `balance` as the most frequent finding has, and for `count` more of others.

    The labels of a row are those of a real training film that shows the finding, so that findings keep occurring together as
    they do; view, sex and age come from another such film. For every row, `companions` rows ask for a random training film's
    labels *without* the finding: otherwise "synthetic" and "positive" would be the same thing to a classifier.
    Raises InputError for a finding with fewer than five films.
    """
    deficits = _deficits(train, balance) | dict(count or {})
    for finding in deficits:
        _check_finding(train, finding)
    rng = np.random.default_rng(derive(seed, "plan"))
    rows: list[PlanRow] = []
    totals: Counter[str] = Counter()
    for finding, wanted in sorted(deficits.items(), key=lambda item: item[1]):
        shows = np.flatnonzero(train.column(finding) == 1)
        lacks = np.flatnonzero(train.column(finding) == 0)
        while totals[finding] < wanted:
            chosen = _row(train, shows, seed=derive(seed, "image", len(rows)), rng=rng)
            totals.update(name for name, stated in chosen.labels.items() if stated is Stated.PRESENT)
            rows.append(chosen)
            whole, part = divmod(companions, 1)
            for _ in range(int(whole) + int(rng.random() < part) if len(lacks) else 0):
                rows.append(_row(train, lacks, seed=derive(seed, "image", len(rows)), rng=rng))
    return Plan(rows=tuple(rows))


def plan_like(films: Films, *, num: int, seed: int = 0) -> Plan:
    """`num` rows with the labels, view, sex and age of films drawn at random: an unconditional sample of what was trained on."""
    rng = np.random.default_rng(derive(seed, "plan like"))
    donors = np.arange(len(films))
    return Plan(rows=tuple(_row(films, donors, seed=derive(seed, "image", number), rng=rng) for number in range(num)))


def _deficits(train: Films, balance: Sequence[str]) -> dict[str, int]:
    findings = [name for name in train.findings if name != NO_FINDING]
    have = {name: int((train.column(name) == 1).sum()) for name in findings}
    wanted = findings if list(balance) == ["all"] else list(balance)
    for name in wanted:
        if name not in findings:
            raise UsageError(f"no film of the training split states '{name}'; {nearest(name, findings)}")
    most = max(have.values(), default=0)
    return {name: most - have[name] for name in wanted if have[name] >= FEWEST_FILMS or list(balance) != ["all"]}


def _check_finding(train: Films, finding: str) -> None:
    if finding not in train.findings:
        raise UsageError(f"no film of the training split states '{finding}'; {nearest(finding, train.findings)}")
    films = int((train.column(finding) == 1).sum())
    if films < FEWEST_FILMS:
        raise InputError(f"only {films} training films show '{finding}'; nothing can be learned from fewer than {FEWEST_FILMS}",
                         remedy="add films, or balance another finding")


def _row(train: Films, donors: np.ndarray[Any, np.dtype[np.intp]], *, seed: int, rng: np.random.Generator) -> PlanRow:
    """Labels of one real film among `donors`, view, sex and age of another; ages within five years of the donor's."""
    film, person = (int(rng.choice(donors)) for _ in range(2))
    meaning = {1.0: Stated.PRESENT, 0.0: Stated.ABSENT}
    labels = {name: meaning[float(value)] for name, value in zip(train.findings, train.labels[film], strict=True)
              if name != NO_FINDING and float(value) in meaning}
    donor = train.studies[person]
    age = round(float(np.clip(donor.age_years + rng.integers(-5, 6), 0, 100))) if donor.age_years == donor.age_years else math.nan
    return PlanRow(seed=seed, labels=labels, view=donor.view, sex=donor.sex, age_years=age)


def simple_plan(*, num: int, present: Sequence[str] = (), absent: Sequence[str] = (), view: str = "", sex: str = "",
                age_years: float = math.nan, seed: int = 0) -> Plan:
    """`num` rows that all ask for the same and differ by their seeds."""
    labels = dict.fromkeys(present, Stated.PRESENT) | dict.fromkeys(absent, Stated.ABSENT)
    return Plan(rows=tuple(PlanRow(seed=derive(seed, "image", number), labels=labels, view=view, sex=sex, age_years=age_years)
                           for number in range(num)))
