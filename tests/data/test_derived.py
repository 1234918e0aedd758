"""Images that are derived from a patient's: marked in table and file, never taken for images of nobody, never held out."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

import synthorax as sx
from synthorax.data.dataset import Dataset, read_dataset, write_dataset
from synthorax.data.derived import (
    DERIVED_TEXT,
    MANIFEST,
    TEXT_KEY,
    derived_rows,
    read_manifest,
    refuse_held_out_hosts,
    told_apart,
    write_manifest,
)
from synthorax.data.pixels import write_png
from synthorax.data.prepared import load_images
from synthorax.data.splits import split_patients
from synthorax.errors import InputError
from synthorax.steps.export.images import export_dataset
from synthorax.types import Stated, Study

DERIVED = {"derived_from_patient": "yes", "pair_of": "images/host-0.png"}


def derived_set(folder: Path, *, derived: int = 2, generated: int = 1) -> Dataset:
    """A dataset folder of noise, the first images derived from patients p0, p1, ..."""
    studies = []
    for number in range(derived + generated):
        own = number < derived
        name = f"images/synthetic-{number}.png"
        text = {TEXT_KEY: DERIVED_TEXT} if own else {TEXT_KEY: "synthetic radiograph, of no patient; for research"}
        write_png(folder / name, np.random.default_rng(number).integers(0, 255, (24, 24), dtype=np.uint8), provenance=text)
        studies.append(Study(file_name=name, origin="synthetic", patient_id=f"p{number}" if own else "", study_id=f"s{number}",
                             labels={"Nodule": Stated.PRESENT}, view="PA", extra={**DERIVED, "seed": "7"} if own else {"seed": "7"}))
    write_dataset(folder, studies, name="made", synthetic=True)
    write_manifest(folder, [{"file_name": study.file_name, "host": "/pacs/MEIER.png"} for study in studies[:derived]])
    return read_dataset(folder)


def test_table_and_facts_count_them_and_a_round_trip_keeps_the_mark(tmp_path: Path) -> None:
    made = derived_set(tmp_path / "made")
    assert derived_rows(made.studies) == [0, 1] and made.facts["num_derived_from_patients"] == 2
    again = sx.ingest(tmp_path / "made", out=tmp_path / "again")
    assert again.studies == made.studies and again.facts["num_derived_from_patients"] == 2
    assert not (tmp_path / "again" / MANIFEST).exists(), "the source stays where it was"


@pytest.mark.parametrize("table", [True, False])
def test_files_say_it_where_the_table_is_lost(tmp_path: Path, table: bool) -> None:
    """A folder of PNG files without our table, or with a table that calls them real, as people pass images on."""
    made = derived_set(tmp_path / "made")
    folder = tmp_path / "passed_on" / "Nodule"
    folder.mkdir(parents=True)
    for study in made.studies:
        (folder / Path(study.file_name).name).write_bytes((made.path / study.file_name).read_bytes())
    if table:
        lines = ["file_name,findings,origin", *(f"Nodule/{Path(study.file_name).name},Nodule,real" for study in made.studies)]
        (folder.parent / "labels.csv").write_text("\n".join(lines))
    taken = sx.ingest(folder.parent, adapter="folder", out=tmp_path / "out")
    assert [study.origin for study in taken.studies] == ["synthetic"] * 3
    assert [study.derived_from_patient for study in taken.studies] == [True, True, False]


def test_a_mark_that_cannot_be_is_refused(tmp_path: Path) -> None:
    made = derived_set(tmp_path / "made")
    table = made.path / "metadata.csv"
    for wrong, problem in (("yes,images/host-0.png", "perhaps,images/host-0.png"),):
        table.write_text(table.read_text().replace(wrong, problem, 1))
    with pytest.raises(InputError, match="row 2: derived_from_patient 'perhaps' is not known"):
        read_dataset(made.path)
    table.write_text(table.read_text().replace("perhaps", "yes").replace("synthetic,yes", "real,yes").replace(",synthetic,", ",real,"))
    with pytest.raises(InputError, match="row 2: an image that is derived from patient says that its origin is real"):
        read_dataset(made.path)


def test_its_patient_trains_and_is_never_tested() -> None:
    real = [Study(file_name=f"{number}.png", patient_id=f"p{number}") for number in range(20)]
    derived = [Study(file_name=f"d{number}.png", patient_id=f"p{number}", origin="synthetic", extra=DERIVED) for number in range(15)]
    splits = split_patients([*real, *derived])
    assert set(splits[:15]) == {"train"} and {"val", "test"} & set(splits[15:20]), "who has a derived image is in train"
    assert set(splits[20:]) == {"train"}
    tested = [replace(real[0], split="test"), *real[1:], *derived]
    with pytest.raises(InputError, match="trains and cannot be tested"):
        split_patients(tested, file="metadata.csv")


def test_hosts_among_held_out_patients_are_refused() -> None:
    image = Study(file_name="d.png", patient_id="p1", origin="synthetic", extra=DERIVED)
    held_out = {"test": [Study(file_name="a.png", patient_id="p1")]}
    with pytest.raises(InputError, match=r"'d.png' is derived from a patient who has test images"):
        refuse_held_out_hosts([image], held_out)
    with pytest.raises(InputError, match="no patient_id says from whom"):
        refuse_held_out_hosts([replace(image, patient_id="")], held_out)
    refuse_held_out_hosts([replace(image, patient_id="p2"), Study(file_name="g.png", origin="synthetic")], held_out)


@pytest.mark.parametrize("format", ["png", "dicom"])
def test_export_refuses_them_unless_told(tmp_path: Path, format: str) -> None:
    made = derived_set(tmp_path / "made")
    with pytest.raises(InputError, match=r"metadata.csv row 2: .*is derived from a patient.s image.*--allow-derived"):
        export_dataset(made, format=format, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_dataset(made, format=format, out=tmp_path / "out", allow_derived=True)
    every = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"MEIER" not in every and b"host-0" not in every and not list((tmp_path / "out").rglob(MANIFEST))
    if format == "png":
        again = read_dataset(tmp_path / "out")
        assert [study.derived_from_patient for study in again.studies] == [True, True, False]
        assert not any(study.patient_id or study.study_id for study in again.studies[:2])
        with Image.open(again.path / again.studies[0].file_name) as image:
            assert image.info[TEXT_KEY] == DERIVED_TEXT
        return
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    derived, generated = pydicom.dcmread(files[0]), pydicom.dcmread(files[2])
    assert derived.SyntheticData == "YES" and list(derived.ImageType) == ["DERIVED", "SECONDARY"] and derived.ConversionType == "WSD"
    assert "not a patient" not in derived.SeriesDescription and "no source patient" not in derived.DeidentificationMethod
    assert "RecognizableVisualFeatures" not in derived and "SourceImageSequence" not in derived
    assert generated.ConversionType == "SYN" and "no source patient" in generated.DeidentificationMethod
    assert "yes" in (tmp_path / "out" / "index.csv").read_text()
    taken = sx.ingest(tmp_path / "out", adapter="dicom", out=tmp_path / "again")
    assert sorted(study.derived_from_patient for study in taken.studies) == [False, True, True]
    assert {study.origin for study in taken.studies} == {"synthetic"}


def test_the_manifest_is_for_its_owner_alone(tmp_path: Path) -> None:
    made = derived_set(tmp_path / "made")
    assert stat.S_IMODE((made.path / MANIFEST).stat().st_mode) == 0o600
    assert [line["host"] for line in read_manifest(made.path)] == ["/pacs/MEIER.png"] * 2
    with (made.path / MANIFEST).open("a") as file:
        file.write(json.dumps({"file_name": "x"})[:5])
    assert len(read_manifest(made.path)) == 2, "a line that a kill cut off counts for nothing"


def test_images_are_told_apart_for_privacy(tmp_path: Path) -> None:
    images = load_images(derived_set(tmp_path / "made", derived=2, generated=3), size=24)
    made, derived = told_apart(images)
    assert (len(made), len(derived)) == (3, 2)
    np.testing.assert_array_equal(derived.pixels, images.pixels[:2])
