"""Hosts of insertion: their spacing and age, files that are dropped, generated ones, and seeds by finding."""

from __future__ import annotations

import math
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dicom_files import dicom
from inserting import NORMAL, SIZE_PX, host_set, insert
from synthorax.data.dataset import as_formerly, read_dataset
from synthorax.data.derived import GENERATED_TEXT, TEXT_KEY, read_manifest
from synthorax.data.image_files import read_image
from synthorax.data.tables import read_table
from synthorax.errors import InputError
from synthorax.judges.lungs import LungMasks
from synthorax.rng import derive
from synthorax.steps.export.images import export_dataset
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import Host, find_hosts
from synthorax.steps.insertion.insert import insert_images
from synthorax.steps.insertion.lesions import lesion_maker, lesion_seed
from synthorax.steps.insertion.spacing import estimated, spacing_of
from synthorax.types import Stated, Study
from thorax import thorax

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


@pytest.mark.parametrize(("cell", "given", "problem"), [
    ("", 32.0, "--spacing 32 mm cannot be: the longer side of 128 pixels would be 410 cm"),
    ("", 0.32, "--spacing 0.32 mm cannot be: the longer side of 128 pixels would be 4.1 cm"),
    ("0.32", math.nan, "spacing_mm 0.32 cannot be: the longer side of 128 pixels would be 4.1 cm")])
def test_a_spacing_that_no_chest_has_is_refused_with_what_is_likely_meant(cell: str, given: float, problem: str) -> None:
    study = Study(file_name="a.png", extra={"spacing_mm": cell} if cell else {})
    host = Host(path=Path("a.png"), study=study, row=2, reference="a.png")
    with pytest.raises(InputError, match=re.escape(problem) + ", and radiographs of a chest are 15 to 50 cm; .*such as 3.2"):
        spacing_of(host, (SIZE_PX, SIZE_PX), given=given)
    assert spacing_of(host, (SIZE_PX, 1280), given=0.32) == (0.32, "stated" if cell else "given", ""), "the longer side counts"


def test_a_wrong_tag_of_a_dicom_file_is_said_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pacs").mkdir()
    drawn = thorax(SIZE_PX, seed=0)
    for number, tag in enumerate(({"PixelSpacing": [0.32, 0.32]}, {"ImagerPixelSpacing": [32, 32]}, {"PixelSpacing": [3.2, 3.2]})):
        dicom(tmp_path / "pacs" / f"{number}.dcm", (drawn.pixels.astype(np.uint16) * 16), bits=12, ViewPosition="PA", **tag)
    right, left = drawn.lungs.copy(), drawn.lungs.copy()
    right[:, SIZE_PX // 2 :] = left[:, : SIZE_PX // 2] = False
    lungs = LungMasks(right=right[None], left=left[None], heart=np.zeros_like(drawn.lungs)[None])
    made = insert_images(find_hosts(tmp_path / "pacs", "Nodule", assume_absent=True),
                         lesion_maker("Nodule", InsertConfig(diameter_mm=25), model="template"), out=tmp_path / "out", seed=1,
                         find_lungs=lambda pixels: lungs)
    assert [study.extra["spacing_from"] for study in made.dataset.studies] == ["estimated", "estimated", "stated"]
    notes = [study.extra["host_note"] for study in made.dataset.studies]
    assert "the file states spacing_mm 0.32 cannot be" in notes[0] and "32 cannot be: the longer side" in notes[1] and not notes[2]
    assert all(2 < float(study.extra["spacing_mm"]) < 4 for study in made.dataset.studies)
    assert "the pixel spacing that 2 images state was not used; the first: not used, as it cannot be right" in capsys.readouterr().err


def test_children_are_measured_as_children_and_who_states_no_age_is_said_to_be_taken_for_an_adult() -> None:
    lungs = np.zeros((200, 200), bool)
    lungs[20:140, 20:180] = True  # 120 x 160

    def of(**study: object) -> tuple[float | None, str]:
        return estimated(lungs, Host(path=Path("a.png"), study=Study(file_name="a.png", **study), row=2, reference="a.png"))  # type: ignore[arg-type]

    child, note = of(age_years=3.0)
    assert child == pytest.approx(170 / math.sqrt(120 * 160)) and note == "lungs taken for those of a child of 3 years"
    assert of(site="kermany") == (child, "lungs taken for those of a child of 3 years, as its site is kermany")
    assert of(age_years=50.0, site="kermany") == (None, ""), "an age that is stated counts"
    assert of() == (None, "no age is stated: lungs taken for an adult's")
    older = [of(age_years=age)[0] for age in (0.0, 1, 5, 9, 13, 17.9)]
    assert older == sorted(older) and child < 0.7 * 300 / 160, "as an adult's, every lesion in a small child was half again too small"  # type: ignore[type-var]


def test_findings_have_seeds_of_their_own_and_nodules_keep_theirs() -> None:
    assert lesion_seed(1, "Nodule", 3) == derive(1, "insert", 3)
    seeds = {lesion_seed(1, finding, number) for finding in ("Nodule", "Mass", "Effusion", "Pneumothorax") for number in range(4)}
    assert len(seeds) == 16, "else one seed gives every finding the same side"
    for finding in ("Nodule", "Mass"):
        maker = lesion_maker(finding, InsertConfig())
        maker.prepare(1, 2)
        assert lesion_seed(1, finding, 2) in maker.volumes, "volumes are sampled for the seeds that will ask for them"


def test_dicom_files_that_are_dropped_are_named_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    stored = (thorax(SIZE_PX, seed=0).pixels.astype(np.uint16) * 16).astype(np.uint16)
    dicom(tmp_path / "pacs" / "CANARY-0.dcm", stored, bits=12, PixelSpacing=[2.5, 2.5], ViewPosition="PA")
    dicom(tmp_path / "pacs" / "CANARY-1.dcm", stored, bits=12, ViewPosition="LL")
    (tmp_path / "pacs" / "CANARY-2.dcm").write_bytes((tmp_path / "pacs" / "CANARY-0.dcm").read_bytes()[:5000])
    drawn = thorax(SIZE_PX, seed=0).lungs
    half = np.arange(SIZE_PX) < SIZE_PX // 2
    lungs = LungMasks(right=(drawn & half)[None], left=(drawn & ~half)[None], heart=np.zeros_like(drawn)[None])
    made = insert_images(find_hosts(tmp_path / "pacs", "Nodule", assume_absent=True),
                         lesion_maker("Nodule", InsertConfig(diameter_mm=25), model="template"), out=tmp_path / "out", seed=1,
                         find_lungs=lambda pixels: lungs)
    assert "CANARY" not in (made.dataset.path / "dropped.csv").read_text(), "names of DICOM files are often identifiers"
    named = made.dataset.path / "private_dropped.csv"
    assert stat.S_IMODE(named.stat().st_mode) == 0o600 and "private_dropped.csv names the files" in str(made)
    rows = {Path(row.cells["file"]).name: row.cells for row in read_table(named).rows}
    assert set(rows) == {"CANARY-1.dcm", "CANARY-2.dcm"} and rows["CANARY-1.dcm"]["reason"] == "is a lateral image"
    assert rows["CANARY-1.dcm"]["host"] == "host:000001"
    (tmp_path / "pacs" / "CANARY-2.dcm").unlink()
    with pytest.raises(InputError, match=r"CANARY-0\.dcm: no image can take a Nodule: 'host:000000' does not state"):
        find_hosts(tmp_path / "pacs", "Nodule")


def test_generated_hosts_stay_of_no_patient_and_the_files_say_how_both_parts_were_made(tmp_path: Path) -> None:
    made_by = {"model": "cxr-256", "model_digest": "abc", "seed": "7", "condition": '{"view": "PA"}'}
    rows = [Study(file_name="images/0.png", labels={"Nodule": Stated.ABSENT}, origin="synthetic", view="PA", extra=made_by)]
    host_set(tmp_path / "hosts", rows)
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=25)
    study = made.studies[0]
    assert study.origin == "synthetic" and not study.derived_from_patient and not study.patient_id
    assert "num_derived_from_patients" not in made.facts and study.extra["pair_of"] == "images/0.png"
    assert {name: study.extra[f"host_{name}"] for name in made_by} == made_by
    assert study.extra["method"] and study.extra["model"] != "cxr-256" and study.extra["seed"] != "7"
    for format, name in (("png", "synthetic-inserted-000000.png"), ("dicom", "synthetic-inserted-000000.dcm")):
        folder = export_dataset(made, format=format, out=tmp_path / format) / "images" / name  # type: ignore[arg-type]
        if format == "png":
            with Image.open(folder) as image:
                assert image.info[TEXT_KEY] == GENERATED_TEXT and image.info["host_seed"] == "7" and image.info["model"] != "cxr-256"
        else:
            header = pydicom.dcmread(folder)
            assert "host_model: cxr-256" in header.ImageComments and "not an image of a patient" in header.DerivationDescription
    real = [replace(rows[0], file_name="images/1.png", origin="real", patient_id="a", extra={}), rows[0]]
    assert [host.reference for host in find_hosts(host_set(tmp_path / "mixed", real), "Nodule").usable] == ["images/1.png"]


def test_an_image_that_was_stored_inverted_is_exported_inverted(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=1, kind="dicom")
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=30)
    assert made.studies[0].extra["photometric"] == "MONOCHROME1"
    folder = export_dataset(made, format="dicom", out=tmp_path / "dicom", allow_derived=True)
    (file,) = (folder / "images").glob("*.dcm")
    header, shown = pydicom.dcmread(file), read_image(made.path / made.studies[0].file_name)
    assert header.PhotometricInterpretation == "MONOCHROME1" and np.array_equal(header.pixel_array, np.iinfo(shown.dtype).max - shown)
    assert np.array_equal(read_image(file), shown), "and looks the same"


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the open images are not beside this checkout")
def test_a_real_radiograph_stored_inverted_keeps_every_stored_value_outside_the_lesion(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    image = read_image(NIH / "images" / "00000002_000.png")
    dicom(tmp_path / "pacs" / "a.dcm", 255 - image, bits=8, PhotometricInterpretation="MONOCHROME1", ViewPosition="PA", PatientAge="080Y",
          ImagerPixelSpacing=[1.67, 1.67], Modality="DX")
    made = insert(tmp_path / "pacs", tmp_path / "out", assume_absent=True)
    folder = export_dataset(made, format="dicom", out=tmp_path / "dicom", allow_derived=True)
    header = pydicom.dcmread(next((folder / "images").glob("*.dcm")))
    assert header.PhotometricInterpretation == "MONOCHROME1" and header.SyntheticData == "YES" and "PixelSpacing" not in header
    mask = read_image(made.path / made.studies[0].masks["lesion_mask"][0]) > 0
    outside = distance_transform_edt(~mask) > int(made.studies[0].extra["rim_px"])
    assert np.array_equal(header.pixel_array[outside], (255 - image)[outside]) and (header.pixel_array != 255 - image)[mask].any()
    assert header.pixel_array[mask].mean() < (255 - image)[mask].mean(), "dense is stored low"
    assert made.studies[0].extra["spacing_from"] == "stated" and made.studies[0].extra["host_note"] == ""


def test_a_call_that_was_interrupted_says_so_and_goes_on(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=8)
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell starts background jobs deaf to Ctrl-C
    program = f"import runpy, signal; {heeded}; runpy.run_module('synthorax', run_name='__main__')"
    words = [sys.executable, "-c", program, "insert", str(tmp_path / "hosts"), "--finding", "Nodule", "--seed", "1", "--out",
             str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and len(list((tmp_path / "out").glob("images/*.png"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = "".join(process.communicate())
    assert process.returncode == 130 and "Traceback" not in told, told
    lines = read_manifest(tmp_path / "out")
    assert 1 <= len(lines) < 8 and not (tmp_path / "out" / "metadata.csv").exists()
    done = {line["file_name"]: (tmp_path / "out" / line["file_name"]).stat().st_mtime_ns for line in lines}
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    made = read_dataset(tmp_path / "out")
    assert len(made) == 8 and "8 images with an inserted Nodule" in again.stdout
    assert all((made.path / name).stat().st_mtime_ns == moment for name, moment in done.items()), "what was made stays"


def test_what_an_earlier_version_called_an_image_without_a_patient_is_still_known(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", [Study(file_name="images/0.png", patient_id="film:images/0.png", labels=NORMAL)])
    hosts = find_hosts(tmp_path / "hosts", "Nodule")
    assert hosts.usable[0].study.patient_id == "film:images/0.png" and any("1 of 1 image names no patient" in note for note in hosts.notes)
    unnamed = find_hosts(host_set(tmp_path / "other", [Study(file_name="images/0.png", labels=NORMAL)]), "Nodule").usable[0]
    assert unnamed.study.patient_id == "image:images/0.png" and as_formerly(unnamed.study).patient_id == "film:images/0.png"
