"""Export: the files are complete, say what they are, survive a kill, and nothing real is ever marked as synthetic."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.errors import InputError, UsageError
from synthorax.steps.export.images import export_dataset
from synthorax.types import Stated, Study

CHECKS = Path(__file__).parents[3] / "shared" / "acceptance"


def made_up(path: Path, *, count: int = 4, size: int = 24, origin: str = "synthetic") -> Dataset:
    """A dataset folder of noise with one 16-bit image and a mask."""
    studies = []
    for number in range(count):
        dtype = np.uint16 if number == 1 else np.uint8
        image = np.random.default_rng(number).integers(0, np.iinfo(dtype).max, (size, size - 3), dtype=dtype)
        name = f"images/{number:03d}.png"
        write_png(path / name, image)
        made_by = {"model": "tiny", "model_digest": "0f" * 32, "seed": str(number), "plan_row": str(number), "sampler": "heun",
                   "steps": "9", "guidance": "1", "condition": json.dumps({"labels": {"Mass": 1}}), "nearest_real": "CANARY"}
        synthetic = origin == "synthetic"
        studies.append(Study(file_name=name, study_id=f"study-{number}", patient_id="" if synthetic else f"p{number}", view="PA",
                             age_years=50 if number else math.nan, labels={"Mass": Stated.PRESENT}, origin=origin,
                             extra=made_by if synthetic else {}))
    write_png(path / "masks" / "0.png", np.eye(size, size - 3, dtype=np.uint8) * 255)
    studies[0] = replace(studies[0], masks={"lesion_mask": ("masks/0.png",)})
    write_table(path, studies)
    facts = {"licence": "none", "created": "2026-01-31T12:00:00"}
    write_facts(path, name="made up", studies=studies, synthetic=origin == "synthetic", extra=facts)
    return read_dataset(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_png_export_is_a_dataset_folder_again(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    assert export_dataset(dataset, format="png", out=tmp_path / "out") == tmp_path / "out"
    again = read_dataset(tmp_path / "out")
    assert again.facts["licence"] == "none" and again.facts["synthetic"] is True and again.name == "made up"
    for before, after in zip(dataset.studies, again.studies, strict=True):
        assert Path(after.file_name).name.startswith("synthetic-") and replace(after, file_name="") == replace(before, file_name="")
        old, new = read_image(dataset.path / before.file_name), read_image(again.path / after.file_name)
        assert old.dtype == new.dtype and np.array_equal(old, new)
        with Image.open(again.path / after.file_name) as image:
            image.load()
            text = image.text
            assert text["seed"] == before.extra["seed"] and "synthetic" in text["Synthorax"] and "nearest_real" not in text


def test_real_images_export_as_png_unmarked(tmp_path: Path) -> None:
    export_dataset(made_up(tmp_path / "real", origin="real"), format="png", out=tmp_path / "out")
    again = read_dataset(tmp_path / "out")
    assert again.facts["synthetic"] is False and again.studies[0].file_name == "images/000.png" and again.studies[0].patient_id == "p0"
    with Image.open(again.path / "images/000.png") as image:
        image.load()
        assert image.text == {}


def test_dicom_export(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    export_dataset(dataset, format="dicom", out=tmp_path / "out")
    lines = (tmp_path / "out/index.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("file_name,sop_instance_uid")
    for line, study in zip(lines[1:], dataset.studies, strict=True):
        name, uid = line.split(",")[:2]
        image = pydicom.dcmread(tmp_path / "out" / name)
        assert name.startswith("images/synthetic-") and image.SOPInstanceUID == uid and image.SyntheticData == "YES"
        assert np.array_equal(image.pixel_array, read_image(dataset.path / study.file_name))
        assert image.StudyDate == "20260131"
    assert not any(b"CANARY" in content for content in contents(tmp_path / "out").values())


def test_a_folder_with_one_real_image_is_refused_as_dicom_before_writing(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    mixed = replace(dataset, studies=(*dataset.studies[:2], replace(dataset.studies[2], origin="real"), dataset.studies[3]))
    with pytest.raises(InputError, match=r"metadata.csv row 4: 'images/002.png' is a real image.*--format png"):
        export_dataset(mixed, format="dicom", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    for format in ("dicom", "png"):
        whole, broken = tmp_path / f"{format}-a", tmp_path / f"{format}-b"
        export_dataset(dataset, format=format, out=whole)
        export_dataset(dataset, format=format, out=broken)
        images = sorted(path for path in broken.rglob("synthetic-*"))
        kept, lost = images[:2], images[2:]
        for path in [*lost, *broken.glob("*.csv"), *broken.glob("dataset.json")]:
            path.unlink()
        times = [path.stat().st_mtime_ns for path in kept]
        export_dataset(dataset, format=format, out=broken)
        assert contents(whole) == contents(broken)
        assert [path.stat().st_mtime_ns for path in kept] == times


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_exports_end_with_the_whole_set(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn", count=60, size=400)
    export_dataset(dataset, format="dicom", out=tmp_path / "whole")
    program = ("import sys; from pathlib import Path; from synthorax.data.dataset import read_dataset; "
               "from synthorax.steps.export.images import export_dataset; "
               "export_dataset(read_dataset(sys.argv[1]), format='dicom', out=Path(sys.argv[2]))")
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", program, str(dataset.path), str(out)])
    while process.poll() is None and len(list(out.rglob("*.dcm"))) < 10:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.csv").exists() and all(pydicom.dcmread(path).pixel_array.shape == (400, 397) for path in out.rglob("*.dcm"))
    export_dataset(dataset, format="dicom", out=out)
    assert contents(out) == contents(tmp_path / "whole")


def test_folders_and_names_that_would_mix_images_up_are_refused(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    export_dataset(dataset, format="png", out=tmp_path / "out")
    with pytest.raises(InputError, match="holds an export with other format"):
        export_dataset(dataset, format="dicom", out=tmp_path / "out")
    with pytest.raises(InputError, match="not empty"):
        export_dataset(dataset, format="png", out=dataset.path)
    duplicates = replace(dataset, studies=(dataset.studies[0], replace(dataset.studies[1], file_name="images/000.jpg")))
    with pytest.raises(InputError, match="would both become"):
        export_dataset(duplicates, format="png", out=tmp_path / "twins")
    outside = replace(dataset, studies=(replace(dataset.studies[0], file_name="../secret.png"),))
    with pytest.raises(InputError, match="leaves the folder"):
        export_dataset(outside, format="png", out=tmp_path / "outside")
    with pytest.raises(UsageError, match="dicom"):
        export_dataset(dataset, format="dcm", out=tmp_path / "dcm")  # type: ignore[arg-type]


@pytest.mark.skipif(not CHECKS.exists(), reason="the acceptance programs are not beside this checkout")
def test_acceptance_programs_agree(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "syn")
    for format, check in (("dicom", ["check_dicom.py"]), ("png", ["check_dataset_folder.py", "--synthetic"])):
        out = export_dataset(dataset, format=format, out=tmp_path / format)
        told = subprocess.run([sys.executable, CHECKS / check[0], out, *check[1:]], capture_output=True, text=True)
        assert told.returncode == 0 and told.stdout.startswith("ok 4"), told.stdout
