"""The whole job at tiny size: everything that an example in `--help` or in a document takes, under the names that these give it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

import synthorax as sx
from nodules import write_bank
from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.image_files import read_image
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from trainings import FEW, SMALL_DIFFUSION, SMALL_SUPER_RESOLUTION, SMALL_VAE

SIZE_PX = 32
PREVALENCE = {"Pneumothorax": 0.3, "Effusion": 0.3, "Nodule": 0.3, "Cardiomegaly": 0.2}
TINY = [text for text in SMALL_DIFFUSION if "image_size" not in text] + ["model.image_size=16", *FEW]
"""settings of `controlled-64` that make it as small as it can be, with every condition part"""
EDM = ("image_size=16", "channels=8", "multipliers=[1, 2]", "attention=[false, true]", "embedding=16", "patch=2")
"""settings of the model of `edm-64` that make it small"""


def settings(*texts: str) -> tuple[str, ...]:
    """`--set` for each."""
    return tuple(word for text in texts for word in ("--set", text))



THINGS = {
    "images": "images", "CXR14": "CXR14", "cxr14": "drawn", "nih": "drawn", "small.toml": "run/config.toml", "plan.csv": "plan.csv",
    "nodules.npz": "nodules.npz", "nodules": "nodules",
    "prepared": "prepared", "prepared-256": "prepared", "nih-prepared": "prepared", "base/prepared": "prepared", "2024": "prepared",
    "2025": "prepared", "other": "elsewhere",
    "runs": "run", "runs/a": "run", "runs/a-after-two-minutes": "run", "runs/base": "run", "runs/base-64": "run", "runs/c": "run",
    "runs/cvae": "vae", "runs/super": "super", "runs/super-256": "super",
    "synthetic": "made", "kept": "made", "rounds/synthetic": "made", "base/images": "made",
}
"""name in an example -> what was made for it"""


def things_of(words: Iterable[str]) -> list[str]:
    """The things that a command names, but where it writes."""
    words = list(words)
    out = words[words.index("--out") + 1] if "--out" in words else ""
    return [name for name in (word.rstrip("/") for word in words) if name in THINGS and name != out.rstrip("/")]


def tiny_job(folder: Path) -> Path:
    """The folder with every thing in it, made once for all processes that run these tests."""
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "plan.csv").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
    return folder


def lay_out(things: Path, names: Iterable[str], folder: Path) -> None:
    """Put copies of the things of these names into `folder`; they are small."""
    for name in names:
        source, target = things / THINGS[name], folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)


def _make(folder: Path) -> None:
    drawn = write_phantom_dataset(folder / "drawn", num=110, size=SIZE_PX, seed=0, prevalence=PREVALENCE)
    _as_plain_folder(drawn, folder / "images")
    _as_the_nih_does(drawn, folder / "CXR14")
    others = write_phantom_dataset(folder / "others", num=20, size=SIZE_PX, seed=1, prevalence=PREVALENCE)
    _as_synthetic(others, folder / "made")
    other = write_phantom_dataset(folder / "other", num=40, size=SIZE_PX, seed=2, prevalence=PREVALENCE)
    write_table(other.path, [replace(study, patient_id=f"other-{study.patient_id}", site="elsewhere") for study in other.studies])
    prepared = sx.prepare(drawn, size=SIZE_PX, out=folder / "prepared", split=(0.5, 0.2, 0.3))
    _train(prepared, "controlled-64", TINY, folder / "run")
    _train(prepared, SMALL_SUPER_RESOLUTION[0], [*SMALL_SUPER_RESOLUTION[1:], "model.image_size=32", *FEW], folder / "super")
    _train(prepared, "cvae-64", [*SMALL_VAE, *FEW], folder / "vae")
    sx.prepare(other.path, size=SIZE_PX, out=folder / "elsewhere", split=(0.5, 0.2, 0.3))
    sx.prepare_nodules(write_bank(folder / "nodules.npz"), side=8, out=folder / "nodules")
    sx.plan(prepared, count={"Pneumothorax": 3}, out=folder / "plan.csv")


def _train(prepared: Prepared, recipe: str, overrides: Iterable[str], out: Path) -> None:
    sx.train(recipe, prepared, out=out, overrides=[*overrides, "train.steps=2"], device="cpu", threads=1)


def _as_plain_folder(drawn: Dataset, out: Path) -> None:
    """PNG files and a table of labels, as a clinic would hand them over."""
    rows = []
    for study in drawn.studies:
        name = Path(study.file_name).name
        write_png(out / name, read_image(drawn.path / study.file_name))
        rows.append((name, study.patient_id, "|".join(study.labels), study.view, study.sex, f"{study.age_years:.0f}"))
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("Image Index", "Patient ID", "Finding Labels", "View Position", "Sex", "Age"), *rows])


def _as_the_nih_does(drawn: Dataset, out: Path) -> None:
    """The layout of ChestX-ray14."""
    rows = []
    for number, study in enumerate(drawn.studies):
        name = f"{number:08d}_000.png"
        write_png(out / "images_001" / "images" / name, read_image(drawn.path / study.file_name))
        rows.append((name, "|".join(study.labels), 0, int(study.patient_id.lstrip("phantom-")), f"{study.age_years:.0f}", study.sex,
                     study.view, 2500, 2048, 0.168, 0.168))
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
              "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
    with (out / "Data_Entry_2017.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([header, *rows])


def _as_synthetic(drawn: Dataset, out: Path) -> None:
    """The same drawings, as the work of a generator that does as it is told."""
    studies = []
    for number, study in enumerate(drawn.studies):
        name = f"images/synthetic-{number:06d}.png"
        write_png(out / name, read_image(drawn.path / study.file_name))
        studies.append(replace(study, file_name=name, patient_id="", study_id="", masks={}, extra={}, origin="synthetic", split=""))
    write_table(out, studies)
    write_facts(out, name="made", studies=studies, synthetic=True, extra={"labels": list(drawn.findings)})
    read_dataset(out)
