"""Drawn images in memory, and a maker of images that draws what a plan asks for, in the place of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.phantom import LesionSpec, PhantomSpec, draw_phantom
from synthorax.data.pixels import write_png
from synthorax.data.vocabulary import label_matrix
from synthorax.progress import Progress, quiet
from synthorax.rng import derive
from synthorax.steps.planning.plan import Plan
from synthorax.steps.planning.row import PlanRow
from synthorax.types import ImageSet, Stated, Study

FINDINGS = ("Effusion", "No Finding")


def study_and_image(name: str, *, patient: str, seed: int, side: str = "", size: float = 0.6, px: int = 32) -> tuple[Study, Any]:
    """A drawn image with an effusion on one side, or without any if `side` is empty."""
    rng = np.random.default_rng(seed)
    lesions = (LesionSpec(finding="Effusion", side="left" if side == "left" else "right", size=size, severity=1.0),) if side else ()
    spec = PhantomSpec(seed=seed % 2**31, sex="M" if rng.random() < 0.5 else "F", age_years=float(rng.integers(20, 90)), lesions=lesions)
    labels = {"Effusion": Stated.PRESENT if side else Stated.ABSENT, "No Finding": Stated.ABSENT if side else Stated.PRESENT}
    extra = {"lesion_side": side, "lesion_size": f"{size:.2f}" if side else ""}
    study = Study(file_name=name, patient_id=patient, view=spec.view, sex=spec.sex, age_years=spec.age_years, labels=labels,
                  lesion_label="Effusion" if side else "", extra=extra)
    return study, draw_phantom(spec, size=px).image


def phantom_images(num: int, *, seed: int, px: int = 32, size: float = 0.6) -> ImageSet:
    """One image a patient; every second one has an effusion, on either side."""
    sides = ["", "left", "", "right"]
    drawn = [study_and_image(f"{row}.png", patient=f"{seed}-{row}", seed=derive(seed, row), side=sides[row % 4], size=size, px=px)
             for row in range(num)]
    studies = tuple(study for study, _ in drawn)
    return ImageSet(pixels=np.stack([image for _, image in drawn]), studies=studies, findings=FINDINGS, labels=label_matrix(studies,
                                                                                                                            FINDINGS),
                 digest=f"phantom {seed}")


def write_drawn(out: Path, drawn: Sequence[tuple[Study, Any]], *, synthetic: bool = False) -> Dataset:
    """A dataset folder of drawn images."""
    for study, image in drawn:
        write_png(out / study.file_name, image)
    studies = [study for study, _ in drawn]
    write_table(out, studies)
    write_facts(out, name="drawn", studies=studies, synthetic=synthetic, extra={"labels": list(FINDINGS)})
    return read_dataset(out)


def drawing(plan: Plan, out: Path, progress: Progress = quiet) -> Dataset:
    """Draw what a plan asks for: a generator that does as it is told."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    return write_drawn(out, [_as_asked(row, number) for number, row in enumerate(plan.rows)], synthetic=True)


def _as_asked(row: PlanRow, number: int) -> tuple[Study, Any]:
    has = row.labels.get("Effusion") is Stated.PRESENT
    asked = row.lesions[0].side if row.lesions else ""
    side = (asked or ("left", "right")[row.seed % 2]) if has else ""
    name = f"images/synthetic-{number:06d}.png"
    _, image = study_and_image(name, patient="", seed=row.seed, side=side)
    return row.study(name), image
