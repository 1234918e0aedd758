"""Insertion in the main job: how many lesions of each finding, into which training images, and what the report says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from synthorax.data.dataset import Dataset
from synthorax.data.derived import derived_rows
from synthorax.data.prepared import Prepared
from synthorax.evaluation.report.record import Report
from synthorax.rng import derive
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import choose, find_hosts
from synthorax.steps.insertion.lesions import lesion_maker
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, Plan, deficits
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Stated
from synthorax.verbs import synthesis

Mode = Literal["generate", "insert", "both"]
MODES = ("generate", "insert", "both")


def check_findings(findings: Sequence[str]) -> None:
    """Refuse, before any work, findings that nothing inserts. Raises UsageError that names those that can be."""
    for finding in findings:
        lesion_maker(finding, InsertConfig())


def numbers_of(mode: Mode, prepared: Prepared, findings: Sequence[str], *, num: int | None) -> dict[str, int]:
    """How many images of each finding are to be inserted: all that are wanted, or half of them where the others are generated."""
    wanted = dict.fromkeys(findings, num) if num is not None else deficits(prepared.images("train"), findings)
    share = 1 if mode == "insert" else 2
    return {finding: max(1, MIN_IMAGES_PER_FINDING if num is None else 0, (count or 0) // share) for finding, count in wanted.items()}


def insertion_plan(prepared: Prepared, numbers: dict[str, int], *, seed: int) -> Plan:
    """One row for each image, with the host that was drawn for it and the person on it."""
    rows = []
    for finding, num in numbers.items():
        own = derive(seed, "insert", finding)
        for number, host in enumerate(choose(find_hosts(prepared, finding), num=num, seed=own)):
            rows.append(PlanRow(seed=derive(own, "insert", number), labels={finding: Stated.PRESENT}, view=host.study.view,
                                sex=host.study.sex, age_years=host.study.age_years, method="insert", pair_of=host.reference))
    return Plan(rows=tuple(rows))


def inserted(prepared: Prepared, numbers: dict[str, int], *, out: Path, seed: int, **computing: Any) -> list[Dataset]:
    """The inserted images, a dataset folder for each finding below `out`."""
    return [synthesis.insert(prepared, finding=finding, out=out / finding, config=InsertConfig(num=num), **computing,
                             seed=derive(seed, "insert", finding)).dataset for finding, num in numbers.items()]


def with_counts(report: Report, synthetic: Dataset) -> Report:
    """The report with how many images of each kind it is about."""
    derived = len(derived_rows(synthetic.studies))
    side = {**report.inputs["synthetic"], "generated": len(synthetic) - derived, "inserted": derived}
    note = (f"{derived} of the {len(synthetic)} synthetic images are training images of patients with an inserted lesion. The patients can "
            "be recognised in them: they may only train, and stay in house.")
    return replace(report, inputs={**report.inputs, "synthetic": side}, notes=(*report.notes, note))
