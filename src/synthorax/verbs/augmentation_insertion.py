"""Insertion in the main job: how many lesions of each finding, into which training images, and what the report says of them."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from synthorax.data.dataset import Dataset
from synthorax.data.derived import derived_rows
from synthorax.data.prepared import Prepared
from synthorax.engine import Device, started
from synthorax.evaluation.report.record import Report
from synthorax.progress import Progress, quiet
from synthorax.rng import derive
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import choose, find_hosts
from synthorax.steps.insertion.insert import insert_images
from synthorax.steps.insertion.lesions import GROUP, lesion_maker, lesion_seed
from synthorax.steps.insertion.lungs import LungFinder, guard_of
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, Plan, missing
from synthorax.steps.planning.row import PlanRow
from synthorax.steps.training.budget import Insertion
from synthorax.types import Stated
from synthorax.verbs import synthesis

Mode = Literal["generate", "insert", "both"]
MODES = ("generate", "insert", "both")
TRIAL_INSERTIONS = GROUP + 1
"""as many as share the sampling of a group of volumes, and the first, which does not count"""


def check_findings(findings: Sequence[str]) -> None:
    """Refuse, before any work, findings that nothing inserts. Raises UsageError that names those that can be."""
    for finding in findings:
        lesion_maker(finding, InsertConfig())


def numbers_of(mode: Mode, prepared: Prepared, findings: Sequence[str], *, num: int | None) -> dict[str, int]:
    """How many images of each finding are to be inserted: all that are wanted, or half of them where the others are generated."""
    wanted = dict.fromkeys(findings, num) if num is not None else missing(prepared.images("train"), findings)
    share = 1 if mode == "insert" else 2
    return {finding: max(1, MIN_IMAGES_PER_FINDING if num is None else 0, (count or 0) // share) for finding, count in wanted.items()}


def generated_of(mode: Mode, number: int) -> int:
    """How many of a number of images of a finding a generator makes, beside those of `numbers_of`."""
    return number if mode == "generate" else max(1, number - number // 2)


def measure_insertion(prepared: Prepared, wanted: Mapping[str, int], *, exact: bool, seed: int, device: Device, threads: int | None,
                      progress: Progress = quiet) -> Insertion:
    """Insert a few lesions of each finding, which are thrown away, and say what one takes.

    The first does not count, because it loads models. Raises InputError where nothing can be inserted.
    """
    seconds, finder = dict[str, float](), LungFinder()
    for place, (finding, number) in enumerate(wanted.items()):
        moments = list[float]()
        maker = lesion_maker(finding, InsertConfig(num=TRIAL_INSERTIONS), find_lungs=finder)
        with (started(device=device, threads=threads, seed=seed), tempfile.TemporaryDirectory() as nowhere,
              contextlib.redirect_stderr(io.StringIO())):
            hosts = find_hosts(prepared, finding)
            insert_images(hosts, maker, out=Path(nowhere) / "trial", seed=derive(seed, "insert", finding), find_lungs=finder.of_host,
                          lungs_digest=finder.digest, guard=guard_of(finder, finding),
                          progress=lambda part, text, moments=moments: moments.append(time.monotonic()))  # type: ignore[misc]
        seconds[finding] = (moments[-1] - moments[0]) / (len(moments) - 1)
        progress((place + 1) / len(wanted), f"{finding}: {number} wanted")
    return Insertion(seconds=seconds, wanted=wanted, exact=exact)


def insertion_plan(prepared: Prepared, numbers: dict[str, int], *, seed: int) -> Plan:
    """One row for each image, with the host that was drawn for it and the person on it."""
    rows = []
    for finding, num in numbers.items():
        own = derive(seed, "insert", finding)
        for number, host in enumerate(choose(find_hosts(prepared, finding), num=num, seed=own)):
            rows.append(PlanRow(seed=lesion_seed(own, finding, number), labels={finding: Stated.PRESENT}, view=host.study.view,
                                sex=host.study.sex, age_years=host.study.age_years, method="insert", pair_of=host.reference))
    return Plan(rows=tuple(rows))


def joint_plan(generated: Plan, prepared: Prepared, numbers: dict[str, int], *, seed: int) -> Plan:
    """The rows of both ways of making images, each of which says its own."""
    return replace(generated, rows=(*(replace(row, method="generate") for row in generated.rows),
                                    *insertion_plan(prepared, numbers, seed=seed).rows))


def inserted(prepared: Prepared, numbers: dict[str, int], *, out: Path, seed: int, **computing: Any) -> list[Dataset]:
    """The inserted images, a dataset folder for each finding below `out`."""
    return [synthesis.insert(prepared, finding=finding, out=out / finding, config=InsertConfig(num=num), **computing,
                             seed=derive(seed, "insert", finding)).dataset for finding, num in numbers.items()]


def with_counts(report: Report, synthetic: Dataset, *, none_generated: str = "") -> Report:
    """The report with how many images of each kind it is about, and why no generated one is among them where some were made."""
    derived = len(derived_rows(synthetic.studies))
    side = {**report.inputs["synthetic"], "generated": len(synthetic) - derived, "inserted": derived}
    generated = len(synthetic) - derived
    notes = [f"Of the {len(synthetic)} synthetic images {generated} {'was' if generated == 1 else 'were'} generated, of no patient, and "
             f"{derived} {'is' if derived == 1 else 'are'} derived from patients: training images with an inserted lesion. These patients "
             "can be recognised: the images may only train, and stay in house. The table says in derived_from_patient which they are, "
             "and plan.csv under method how each row was to be made."]
    notes += [f"The generated images were left out: {none_generated}."] if none_generated else []
    return replace(report, inputs={**report.inputs, "synthetic": side}, notes=(*report.notes, *notes))
