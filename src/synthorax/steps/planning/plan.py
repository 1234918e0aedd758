"""The plan: which images will be made, decided and written down before any of them exists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError, UsageError, nearest
from synthorax.progress import Progress, quiet
from synthorax.protocols import Condition, ModelSpec
from synthorax.rng import derive
from synthorax.steps.planning.condition import STATED_ONLY, DrawnMasks, check_row, condition_of_rows, draw_masks, restricted_to
from synthorax.steps.planning.row import PlanRow
from synthorax.steps.planning.table import columns_of, read_rows, write_rows
from synthorax.types import ImageSet, Stated

__all__ = ["MIN_IMAGES_PER_FINDING", "MAX_PLAN_ROWS", "STATED_ONLY", "Plan", "PlanRow", "balancing_plan", "check_counts", "check_num",
           "deficits", "missing",
           "plan_like", "read_plan", "repeated", "row_like", "simple_plan", "sites_of"]

MIN_IMAGES_PER_FINDING = 5
MAX_PLAN_ROWS = 1_000_000
"""images of one plan, and of one call of generate"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows to generate, in order."""

    rows: tuple[PlanRow, ...]
    file: Path | None = field(default=None, compare=False)
    """the table that it was read from"""

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.counts().most_common())
        ways = Counter(row.method or "generate" for row in self.rows)
        how = f" ({', '.join(f'{number} to {way}' for way, number in sorted(ways.items()))})" if ways["insert"] else ""
        return f"plan of {len(self)} image{'' if len(self) == 1 else 's'}{how}: {counts or 'no findings asked for'}"

    def counts(self) -> Counter[str]:
        """How many rows ask for each finding."""
        return Counter(name for row in self.rows for name, stated in row.labels.items() if stated is Stated.PRESENT)

    def to_dict(self) -> dict[str, Any]:
        """Size and counts, JSON-ready."""
        return {"rows": len(self), "counts": dict(self.counts())}

    def to_pandas(self) -> Any:
        """The plan as a pandas table (needs the extra `tables`)."""
        import pandas

        return pandas.DataFrame([row.cells() for row in self.rows], columns=list(columns_of(self.rows)))

    def write(self, path: Path) -> None:
        """Write plan.csv, whole or not at all."""
        write_rows(path, self.rows)

    def made_by(self, method: str) -> Plan:
        """The rows of one method, `generate` or `insert`."""
        return replace(self, rows=tuple(row for row in self.rows if (row.method or "generate") == method))

    def check(self, spec: ModelSpec, *, progress: Progress = quiet) -> None:
        """Refuse what cannot be or what the model is not conditioned on; reads every mask, one row at a time.

        Raises UsageError, or InputError with file and row for a plan that was read from a table.
        """
        if others := self.made_by("insert").rows:
            raise InputError(f"{len(others)} rows are to be inserted into radiographs, and a model generates whole images", file=self.file,
                             row=others[0].number, remedy="use synthorax insert, or delete these rows")
        for number, row in enumerate(self.rows, start=1):
            check_row(row, spec, file=self.file)
            draw_masks(row, size=spec.image_size, file=self.file)
            progress(number / len(self.rows), f"checked {number} of {len(self.rows)} rows")

    def condition(self, spec: ModelSpec, *, masks: Sequence[DrawnMasks] | None = None) -> Condition:
        """The rows as the condition of a model; what a row does not state is NaN or empty, and parts that no row states are None.

        `masks` are those of the rows, where they have been read already. Raises the errors of `check`.
        """
        for row in self.rows:
            check_row(row, spec, file=self.file)
        return condition_of_rows(self.rows, spec, file=self.file, masks=masks)

    def restricted_to(self, spec: ModelSpec) -> Plan:
        """The plan without the parts that the model is not conditioned on: what a sheet of any family can show of real images'
        statements.
        """
        return replace(self, rows=tuple(restricted_to(row, spec) for row in self.rows))


def read_plan(path: Path, *, allow: Sequence[str] = ()) -> Plan:
    """Read plan.csv; every bad cell is an InputError with its row."""
    return Plan(rows=read_rows(path, allow=allow), file=path)


def balancing_plan(train: ImageSet, *, balance: Sequence[str] = (), count: Mapping[str, int] | None = None,
                   companions: float = 1.0, seed: int = 0, progress: Progress = quiet) -> Plan:
    """Ask for as many images of each finding in `balance` as the most frequent finding has, and for `count` more of others.

    The labels of a row are those of a real training image that shows the finding, so that findings keep occurring together as
    they do; view, sex and age come from another such image. For every row, `companions` rows ask for a random training image's
    labels *without* the finding: otherwise "synthetic" and "positive" would be the same thing to a classifier. A row keeps the site of
    the image whose labels it has, where the images come from several sites. Raises InputError for a finding with fewer than five images,
    where all findings to balance are the most frequent one already, and UsageError for more than `MAX_PLAN_ROWS`.
    """
    wanted_of = deficits(train, balance) | dict(count or {})
    for finding in wanted_of:
        _check_finding(train, finding)
    check_counts(wanted_of, companions=companions)
    if wanted_of and not any(wanted_of.values()):
        shown = {name: int((train.column(name) == 1).sum()) for name in wanted_of}
        most_frequent = ", ".join(f"'{name}' ({number:,} training images show it)" for name, number in shown.items())
        raise InputError(f"there is nothing to balance: no finding is more frequent than {most_frequent}",
                         remedy=f"ask for a number instead, such as --count {next(iter(shown))}=100, or balance a rarer finding")
    rng = np.random.default_rng(derive(seed, "plan"))
    rows: list[PlanRow] = []
    totals: Counter[str] = Counter()
    every = max(1.0, (1 + companions) * sum(wanted_of.values()))
    for finding, wanted in sorted(wanted_of.items(), key=lambda item: item[1]):
        shows = np.flatnonzero(train.column(finding) == 1)
        lacks = np.flatnonzero(train.column(finding) == 0)
        while totals[finding] < wanted:
            chosen = _row(train, shows, seed=derive(seed, "image", len(rows)), rng=rng)
            totals.update(name for name, stated in chosen.labels.items() if stated is Stated.PRESENT)
            rows.append(chosen)
            whole, part = divmod(companions, 1)
            for _ in range(int(whole) + int(rng.random() < part) if len(lacks) else 0):
                rows.append(_row(train, lacks, seed=derive(seed, "image", len(rows)), rng=rng))
            progress(min(1.0, len(rows) / every), f"{len(rows)} rows")
    progress(1.0, f"{len(rows)} rows")
    return _plan_of(rows, train)


def plan_like(images: ImageSet, *, num: int, seed: int = 0) -> Plan:
    """`num` rows with the labels, view, sex and age of images drawn at random: an unconditional sample of what was trained on."""
    rng = np.random.default_rng(derive(seed, "plan like"))
    donors = np.arange(len(images))
    return _plan_of([_row(images, donors, seed=derive(seed, "image", number), rng=rng) for number in range(num)], images)


def _plan_of(rows: Sequence[PlanRow], train: ImageSet) -> Plan:
    """The rows as a plan, without the site where all images come from one: no model is conditioned on it then."""
    return Plan(rows=tuple(rows) if sites_of(train) else tuple(replace(row, site="") for row in rows))


def check_counts(count: Mapping[str, int], *, companions: float = 1.0) -> None:
    """Refuse numbers of images by finding that are no numbers of images, or more in all than one plan holds. Raises UsageError."""
    for finding, number in count.items():
        if number < 0:
            raise UsageError(f"count {finding}={number}: a number of images is not below 0")
        if finding == NO_FINDING:
            raise UsageError(f"'{NO_FINDING}' is no finding to ask for by number: every image with a finding gets companions without it "
                             "(--companions); images of normal chests alone are made by generate --without")
    total = sum(count.values()) * (1 + companions)
    if total > MAX_PLAN_ROWS:
        raise UsageError(f"that would be {total:,.0f} images, companions included, and one plan holds at most {MAX_PLAN_ROWS:,}; split it "
                         "into several plans with different seeds (--seed), and generate each into a folder of its own")


def deficits(train: ImageSet, balance: Sequence[str]) -> dict[str, int]:
    """How many images of each finding in `balance` are missing to the most frequent finding; `["all"]` are all that can be learned."""
    findings = [name for name in train.findings if name != NO_FINDING]
    have = {name: int((train.column(name) == 1).sum()) for name in findings}
    wanted = findings if list(balance) == ["all"] else list(balance)
    for name in wanted:
        if name not in findings:
            raise UsageError(f"no image of the training split states '{name}'; {nearest(name, findings)}")
    most = max(have.values(), default=0)
    return {name: most - have[name] for name in wanted if have[name] >= MIN_IMAGES_PER_FINDING or list(balance) != ["all"]}


def missing(train: ImageSet, findings: Sequence[str]) -> dict[str, int]:
    """How many images of each finding balance the training images: its deficit to the most frequent finding.

    Where the findings are the most frequent themselves, normal images are the class to balance against: those with no finding at all.
    """
    found = deficits(train, findings)
    if any(found.values()):
        return found
    named = [name for name in train.findings if name != NO_FINDING]
    normal = int((np.stack([train.column(name) for name in named]) == 0).all(axis=0).sum())
    return {name: max(0, normal - int((train.column(name) == 1).sum())) for name in found}


def _check_finding(train: ImageSet, finding: str) -> None:
    if finding not in train.findings:
        raise UsageError(f"no image of the training split states '{finding}'; {nearest(finding, train.findings)}")
    images = int((train.column(finding) == 1).sum())
    if images < MIN_IMAGES_PER_FINDING:
        raise InputError(f"only {images} training images show '{finding}'; nothing can be learned from fewer than {MIN_IMAGES_PER_FINDING}",
                         remedy="add images, or balance another finding")


def _row(train: ImageSet, donors: np.ndarray[Any, np.dtype[np.intp]], *, seed: int, rng: np.random.Generator) -> PlanRow:
    """Labels of one real image among `donors`, view, sex and age of another; ages within five years of the donor's."""
    image, person = (int(rng.choice(donors)) for _ in range(2))
    return row_like(train, image=image, person=person, seed=seed, rng=rng)


def row_like(train: ImageSet, *, image: int, person: int, seed: int, rng: np.random.Generator) -> PlanRow:
    """A row with the labels of one training image and its site, and view, sex and nearly the age of another (or the same).

    The site goes with the labels, because how often a finding is seen differs from place to place.
    """
    meaning = {1.0: Stated.PRESENT, 0.0: Stated.ABSENT}
    labels = {name: meaning[float(value)] for name, value in zip(train.findings, train.labels[image], strict=True)
              if name != NO_FINDING and float(value) in meaning}
    donor = train.studies[person]
    age = round(float(np.clip(donor.age_years + rng.integers(-5, 6), 0, 100))) if donor.age_years == donor.age_years else math.nan
    return PlanRow(seed=seed, labels=labels, view=donor.view, sex=donor.sex, age_years=age, site=train.studies[image].site)


def sites_of(images: ImageSet) -> tuple[str, ...]:
    """The sites that the images come from; none where there is only one, which then says nothing."""
    sites = sorted({study.site for study in images.studies if study.site})
    return tuple(sites) if len(sites) > 1 else ()


def check_num(num: int) -> None:
    """Refuse a number of images that is none, or more than one call makes."""
    if num < 1:
        raise UsageError(f"num {num}: make at least one image")
    if num > MAX_PLAN_ROWS:
        raise UsageError(f"num {num:,}: one call makes at most {MAX_PLAN_ROWS:,} images; split it into several calls with different seeds "
                         "(--seed), each into a folder of its own")


def simple_plan(*, num: int, present: Sequence[str] = (), absent: Sequence[str] = (), view: str = "", sex: str = "",
                age_years: float = math.nan, seed: int = 0) -> Plan:
    """`num` rows that all ask for the same and differ by their seeds."""
    labels = dict.fromkeys(present, Stated.PRESENT) | dict.fromkeys(absent, Stated.ABSENT)
    return repeated(PlanRow(seed=seed, labels=labels, view=view, sex=sex, age_years=age_years), num=num, seed=seed)


def repeated(row: PlanRow, *, num: int, seed: int = 0) -> Plan:
    """`num` times the same request, each with a seed of its own. Raises UsageError for none, or for more than `MAX_PLAN_ROWS`."""
    check_num(num)
    return Plan(rows=tuple(replace(row, seed=derive(seed, "image", number)) for number in range(num)))
