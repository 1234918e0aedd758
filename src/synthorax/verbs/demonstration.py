"""The demonstration: the main job on drawings with a planted need, by a fixed amount of work; beside it, radiographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.phantom import PhantomSplit, write_phantom_dataset
from synthorax.data.prepared import load_images
from synthorax.engine import Device
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.evaluation.report.contact_sheets import contact_sheet, png_bytes
from synthorax.evaluation.report.page import show
from synthorax.evaluation.report.record import Report
from synthorax.folders import claimed
from synthorax.judges.classifier import ClassifierConfig
from synthorax.progress import progress_line
from synthorax.steps.planning.plan import Plan
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Stated
from synthorax.verbs import synthesis
from synthorax.verbs.augmentation import Augmented, Work, augment

FINDING = "Pneumothorax"
BASE, SHOWN = "phantom-64", "cxr-256"
"""shipped models: the one that the generator starts from, and the one whose radiographs are shown"""
SIZE_PX = 64
OTHER_FINDINGS: Mapping[str, float] = {"Effusion": 0.20, "Cardiomegaly": 0.16, "Nodule": 0.14}
RARE, COMMON = {**OTHER_FINDINGS, FINDING: 0.05}, {**OTHER_FINDINGS, FINDING: 0.30}
POPULATION = (PhantomSplit(split="train", num=300, prevalence=RARE), PhantomSplit(split="val", num=60, prevalence=COMMON),
              PhantomSplit(split="test", num=450, prevalence=COMMON))
"""The planted need: a finding too rare among the training patients to be learned, and common among those that test."""
RADIOGRAPHS: tuple[tuple[str, str], ...] = (("", "F"), ("", "M"), ("Effusion", "F"), ("Cardiomegaly", "M"))
"""finding, if any, and sex of the radiographs that are made to be looked at"""
SMALL = ClassifierConfig(updates=300, input_size=32, autocast=False)
"""the usual classifier at half of the side: a quarter of the time, and the drawings lose nothing that counts"""
WORK = Work(steps=40, learning_rate=1e-4, augment=False, judge=replace(SMALL, augment="classic"),
            benefit=replace(BenefitConfig(classifier=SMALL).brief(), synthetic_only=False, resamples=1000))
"""The base knows these drawings, so it is adapted gently."""
PLANTED = ("The need was planted: pneumothorax is too rare among the training patients to be learned from them alone, and the generator "
           "started from a model that had seen many drawings of it. So the verdict shows that the machinery finds a gain where there is "
           "one, and nothing about patients.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """How much the demonstration draws, makes and trains: work, never time."""

    population: tuple[PhantomSplit, ...] = POPULATION
    num: int = 160
    """synthetic drawings with the finding; as many more are made without it"""
    work: Work = WORK
    radiographs: tuple[tuple[str, str], ...] = RADIOGRAPHS


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """What the demonstration leaves, and the lines that it ends with."""

    out: Path
    augmented: Augmented
    radiographs: Dataset
    report: Report

    def __str__(self) -> str:
        entry = next(iter(self.report.dimensions["benefit"].findings), None)
        lines = [f"  {name:<13}{text}" for name, text in _last_lines(entry, self)]
        rule = "─" * max(map(len, lines))
        return "\n".join([rule, *lines, rule])

    def to_dict(self) -> dict[str, Any]:
        """Paths, counts and the verdict with its interval, JSON-ready."""
        entry: Mapping[str, Any] = next(iter(self.report.dimensions["benefit"].findings), {})
        return {**self.augmented.to_dict(), "report": str(self.out / "report.html"), "radiographs": str(self.radiographs.path),
                "delta": dict(entry.get("delta") or {}), "test_patients": entry.get("n_test_patients")}


def demo(*, out: str | Path, seed: int = 0, device: Device = "auto", threads: int | None = None,
         config: DemoConfig | None = None) -> Demonstration:
    """The main job on drawings of a phantom thorax: offline, the same amount of work on every machine, and the right verdict is known.

    `out` gets phantom/ (the drawings), augmented/ (what `augment` leaves), radiographs/ (a few by the model that ships) and the report.
    Calling it again goes on where it stopped.
    """
    out, config = Path(out), config or DemoConfig()
    with claimed(out, kind="a demonstration", inputs={"seed": seed, "config": repr(config)}):
        with progress_line("draw") as progress:
            drawn = write_phantom_dataset(out / "phantom", size=SIZE_PX, seed=seed, splits=config.population, progress=progress)
        augmented = augment(drawn.path, findings=[FINDING], out=out / "augmented", num=config.num, base=BASE, seed=seed, device=device,
                            threads=threads, command=f"synthorax demo --out {out}", work=config.work)
        radiographs = _radiographs(out / "radiographs", config, seed=seed, device=device, threads=threads)
        report = _shown_beside(augmented.report, radiographs)
        report.write(out)
    return Demonstration(out=out, augmented=augmented, radiographs=radiographs, report=report)


def _radiographs(out: Path, config: DemoConfig, *, seed: int, device: Device, threads: int | None) -> Dataset:
    """A few radiographs by the model that ships, so that nobody takes its drawings for the best that it can do."""
    if (out / "dataset.json").exists():
        return read_dataset(out)
    rows = tuple(PlanRow(seed=seed + number, labels={finding: Stated.PRESENT} if finding else {}, view="PA", sex=sex, age_years=55.0,
                         site="nih")
                 for number, (finding, sex) in enumerate(config.radiographs))
    return synthesis.generate(SHOWN, Plan(rows=rows), out=out, batch_size=len(rows), seed=seed, device=device, threads=threads)


def _shown_beside(report: Report, radiographs: Dataset) -> Report:
    """The report with the sheet of radiographs before all other pictures, and with what was planted."""
    images = load_images(radiographs, size=256)
    captions = [f"{', '.join(study.labels) or 'no finding asked for'}, {study.sex}" for study in radiographs.studies]
    sheet = png_bytes(contact_sheet(images.pixels, columns=len(images), captions=captions, tile_px=192))
    name = f"Radiographs by {SHOWN}, the model that ships: synthetic, of no patient"
    return replace(report, figures={name: sheet, **report.figures}, notes=(PLANTED, *report.notes))


def _last_lines(entry: Mapping[str, Any] | None, done: Demonstration) -> list[tuple[str, str]]:
    """Name and text of the lines that the command ends with."""
    lines = [("verdict", "not measured")]
    if entry is not None and entry.get("delta"):
        delta, areas = entry["delta"], {arm["arm"]: arm.get("auroc") for arm in entry["arms"]}
        said = {"helps": "adding synthetic images helps", "no evidence": "no evidence that adding synthetic images helps",
                "hurts": "adding synthetic images hurts"}[entry["verdict"]]
        lines = [("verdict", f"{entry['finding']}: {said}"),
                 ("AUROC", f"{show(areas[delta['against']])} without them, {show(areas[delta['arm']])} with them"),
                 ("difference", f"{show(delta['value'], signed=True)}, 95 % interval {show(delta['low'], signed=True)} to "
                                f"{show(delta['high'], signed=True)}"),
                 ("tested on", f"{entry['n_test']} drawings of {entry['n_test_patients']} patients never seen in training, "
                               f"{entry['n_test_positive']} with the finding")]
    studies = done.augmented.train.studies if done.augmented.train is not None else ()
    real = sum(study.origin == "real" for study in studies)
    return [*lines, ("training set", f"{real} drawings and {len(studies) - real} synthetic images"),
            *(("warning", warning) for warning in done.report.warnings),
            ("drawings", "of a phantom, not of patients; the need was planted, so the verdict was known"),
            ("report", str((done.out / "report.html").resolve()))]
