"""Insertion: files whose pixels are the host's outside the lesion, hosts that are refused, marks, and a call that was killed."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

import synthorax as sx
from dicom_files import dicom
from inserting import NORMAL, SIZE_PX, host_set, insert
from synthorax.data.dataset import TABLE_NAME, write_dataset
from synthorax.data.derived import DERIVED_TEXT, MANIFEST, TEXT_KEY, read_manifest
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.editing.insertion.insertion import Insertion, box_of
from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.judges.lungs import LungMasks, load_lung_model
from synthorax.rng import derive
from synthorax.steps.export.images import export_dataset
from synthorax.steps.insertion.acceptance import check_place, check_side, refusal
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import choose, find_hosts
from synthorax.steps.insertion.insert import insert_images
from synthorax.steps.insertion.lesions import lesion_maker, template_volume
from synthorax.types import Stated, Study
from thorax import thorax
from trainings import in_new_process, killed_when

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "formats"


@pytest.mark.parametrize("kind", ["png8", "png16", "jpeg", "dicom"])
def test_outside_the_mask_and_its_rim_every_pixel_of_the_file_is_the_hosts(tmp_path: Path, kind: str) -> None:
    hosts = host_set(tmp_path / "hosts", kind=kind, num=1)
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=30)
    (study,) = made.studies
    host, result = read_image(hosts.path / hosts.studies[0].file_name), read_image(made.path / study.file_name)
    with Image.open(made.path / study.file_name) as file:
        assert file.format == "PNG" and file.info[TEXT_KEY] == DERIVED_TEXT
    assert result.dtype == host.dtype and result.shape == host.shape and (host.dtype == np.uint16) == (kind in ("png16", "dicom"))
    mask = read_image(made.path / study.masks["lesion_mask"][0]) > 0
    changed = result != host
    assert changed.any() and mask.any() and not (changed & (distance_transform_edt(~mask) > int(study.extra["rim_px"]))).any()
    inside = (result.astype(float) - host)[mask]
    assert inside.mean() > 0.01 * np.iinfo(host.dtype).max, "a nodule is dense, so bright, also in a host that was stored inverted"


def test_a_row_says_all_that_is_known(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts")
    made = insert(tmp_path / "hosts", tmp_path / "out", side="left", severity=0.8, diameter_mm=25)
    study = made.studies[0]
    assert study.derived_from_patient and study.origin == "synthetic" and study.split == "train"
    assert study.extra["pair_of"] == "images/0.png" and study.patient_id == "p0"
    assert (study.view, study.sex, study.age_years) == ("PA", "M", 50)
    assert study.labels == {"Nodule": Stated.PRESENT, "Effusion": Stated.ABSENT}, "a normal host lacks all that its set knows"
    assert study.extra["lesion_side"] == "left" and float(study.extra["lesion_x"]) > 0.5, "the patient's left is on the right of the image"
    assert study.extra["spacing_from"] == "estimated" and math.isclose(float(study.extra["diameter_mm"]), 25)
    assert json.loads(study.extra["condition"]) == {"diameter_mm": 25.0, "labels": {"Nodule": 1}, "severity": 0.8, "side": "left"}
    assert made.facts["num_derived_from_patients"] == 2 and made.facts["licence"] == "none" and made.facts["inserted"] == "Nodule"
    assert {"lung_mask", "lesion_mask"} <= set(study.masks)
    lines = read_manifest(made.path)
    assert stat.S_IMODE((made.path / MANIFEST).stat().st_mode) == 0o600
    assert Path(lines[0]["host"]) == (hosts.path / "images/0.png").resolve() and len(lines[0]["host_sha256"]) == 64
    assert lines[0]["record"]["seed"] == int(study.extra["seed"])
    public = (made.path / "synthorax.json").read_text() + (made.path / "dataset.json").read_text()
    assert str(hosts.path) not in public and "images/0.png" not in public, "what may be given away names no host"


def test_the_same_call_gives_the_same_bytes_and_a_row_depends_on_its_own_seed_alone(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=3)
    first, again = (insert(tmp_path / "hosts", tmp_path / name) for name in ("first", "again"))
    other = insert(tmp_path / "hosts", tmp_path / "other", seed=2)
    for number, study in enumerate(first.studies):
        own, same, another = ((made.path / study.file_name).read_bytes() for made in (first, again, other))
        assert own == same and own != another, number
    with pytest.raises(InputError, match="holds an insertion with other seed"):
        insert(tmp_path / "hosts", tmp_path / "first", seed=2)
    with pytest.raises(InputError, match="holds an insertion with other settings"):
        insert(tmp_path / "hosts", tmp_path / "first", severity=0.9)


def _work(hosts: Path, out: Path) -> None:
    insert(hosts, out)


def test_a_call_that_was_killed_goes_on(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=8)
    whole = insert(tmp_path / "hosts", tmp_path / "whole")
    process = in_new_process(_work, tmp_path / "hosts", tmp_path / "out")
    assert killed_when(process, lambda: len(list((tmp_path / "out").glob("images/*.png"))) >= 2)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").glob("*.png")}
    assert not (tmp_path / "out" / TABLE_NAME).exists()
    with (tmp_path / "out" / MANIFEST).open("a") as file:
        file.write('{"number": 7, "pai')  # as a kill may leave it
    made = insert(tmp_path / "hosts", tmp_path / "out")
    assert made.studies == whole.studies and (made.path / TABLE_NAME).read_bytes() == (whole.path / TABLE_NAME).read_bytes()
    for study in whole.studies:
        assert (made.path / study.file_name).read_bytes() == (whole.path / study.file_name).read_bytes()
    kept = sum(path.stat().st_mtime_ns == time for path, time in done.items())
    assert kept >= len(done) - 1, "at most the one whose line was not written is made again"


ROWS = {
    "shows Nodule already": Study(file_name="images/0.png", patient_id="a", labels={"Nodule": Stated.PRESENT}),
    r"may show Nodule \('Nodule\?'\)": Study(file_name="images/0.png", patient_id="a", labels={"Nodule": Stated.UNCERTAIN}),
    "does not state whether it shows Nodule": Study(file_name="images/0.png", patient_id="a", labels={"Effusion": Stated.PRESENT}),
    "is in the split 'test'": Study(file_name="images/0.png", patient_id="a", labels=NORMAL, split="test"),
    "is a lateral image": Study(file_name="images/0.png", patient_id="a", labels=NORMAL, view="LATERAL"),
    "is synthetic, and its row names a patient": Study(file_name="images/0.png", patient_id="a", labels=NORMAL, origin="synthetic"),
    "is derived from a patient's image already": Study(file_name="images/0.png", patient_id="a", labels=NORMAL, origin="synthetic",
                                                       extra={"derived_from_patient": "yes"}),
}


@pytest.mark.parametrize("reason", ROWS)
def test_images_that_cannot_take_a_lesion_are_refused_with_file_row_and_remedy(tmp_path: Path, reason: str) -> None:
    host_set(tmp_path / "hosts", [ROWS[reason]])
    with pytest.raises(InputError, match=rf"{TABLE_NAME} row 2: no image can take a Nodule: 'images/0.png' {reason}; \w"):
        insert(tmp_path / "hosts", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_those_that_can_are_used_and_the_others_listed(tmp_path: Path) -> None:
    rows = [*ROWS.values(), Study(file_name="images/0.png", patient_id="b", labels=NORMAL),
            Study(file_name="images/0.png", patient_id="a", labels={"Nodule": Stated.ABSENT}, split="train")]
    rows = [replace(study, file_name=f"images/{number}.png", patient_id=study.patient_id and f"{study.patient_id}{number}")
            for number, study in enumerate(rows)]
    rows.append(replace(rows[-1], file_name="images/again.png", patient_id=rows[0].patient_id))
    host_set(tmp_path / "hosts", rows)
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=25)
    assert [study.extra["pair_of"] for study in made.studies] == ["images/7.png", "images/8.png"]
    dropped = (made.path / "dropped.csv").read_text().splitlines()
    assert len(dropped) == 1 + 8 and "is of a patient who has Nodule on another image" in dropped[-1]
    assert dropped[1].startswith("images/0.png,2,shows Nodule already,")
    told = find_hosts(tmp_path / "hosts", "Nodule", assume_absent=True)
    assert len(told.usable) == 3, "what is not stated counts as absent only where the user says so"


def test_a_prepared_folder_gives_its_training_images_at_their_own_size(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=12)
    prepared = sx.prepare(tmp_path / "hosts", size=32, out=tmp_path / "prepared", split=(0.5, 0.2, 0.3))
    made = insert(tmp_path / "prepared", tmp_path / "out", num=2, diameter_mm=25)
    train = {study.file_name for study in prepared.studies if study.split == "train"}
    assert all(study.extra["pair_of"] in train for study in made.studies)
    assert read_image(made.path / made.studies[0].file_name).shape == (SIZE_PX, SIZE_PX)


def test_hosts_are_matched_to_the_patients_who_have_the_finding(tmp_path: Path) -> None:
    rows = [Study(file_name=f"images/{number}.png", patient_id=f"p{number}", labels=NORMAL, view="PA" if number % 2 else "AP",
                  sex="M" if number % 3 else "F", age_years=20 + 5.0 * number) for number in range(12)]
    rows += [Study(file_name="images/ill.png", patient_id="ill", labels={"Nodule": Stated.PRESENT}, view="AP", sex="F", age_years=52)]
    hosts = find_hosts(host_set(tmp_path / "hosts", rows), "Nodule")
    first, second, *_ = choose(hosts, num=8, seed=0)
    assert first.study.view == second.study.view == "AP" and first.study.sex == second.study.sex == "F"
    assert first.study.age_years == 50, "the nearest age among them"
    assert len({host.reference for host in choose(hosts, num=12, seed=0)}) == 12, "no host comes again before all have come"
    assert len(choose(hosts, num=15, seed=0)) == 15


def test_a_lesion_larger_than_the_lung_is_refused(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts")
    with pytest.raises(InputError, match=r"row 2: nothing could be inserted into any of the 2 images; .* larger than the lung.*smaller"):
        insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=290)


@pytest.mark.parametrize(("box", "problem"), [((0, 8, 0, 8), "100% of the mask lies outside the chest"),
                                              ((0, 0, 0, 0), "the mask is empty")])
def test_masks_that_cannot_be_are_refused(tmp_path: Path, box: tuple[int, int, int, int], problem: str) -> None:
    host_set(tmp_path / "hosts", num=1)
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[box[0]:box[1], box[2]:box[3]] = 255
    write_png(tmp_path / "mask.png", mask)
    with pytest.raises(InputError, match=problem):
        insert(tmp_path / "hosts", tmp_path / "out", mask=tmp_path / "mask.png")


def test_a_mask_of_another_size_is_refused_and_one_that_fits_says_place_and_size(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=1)
    write_png(tmp_path / "small.png", np.full((64, 64), 255, np.uint8))
    with pytest.raises(InputError, match="the mask is 64 x 64 pixels and the image 128 x 128"):
        insert(tmp_path / "hosts", tmp_path / "out", mask=tmp_path / "small.png")
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
    write_png(tmp_path / "mask.png", np.where((y - 60) ** 2 + (x - 34) ** 2 < 8**2, np.uint8(255), np.uint8(0)))
    study = insert(tmp_path / "hosts", tmp_path / "out", mask=tmp_path / "mask.png").studies[0]
    assert abs(float(study.extra["lesion_x"]) * SIZE_PX - 34) < 3 and abs(float(study.extra["lesion_y"]) * SIZE_PX - 60) < 3
    assert study.extra["lesion_side"] == "right", "the patient's right is on the left of the image"
    assert 0.5 < float(study.extra["lesion_size"]) / (2 * math.sqrt(math.pi * 8**2 / SIZE_PX**2)) < 1.5


def test_spacing_is_stated_given_or_estimated_and_the_row_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Study(file_name=f"images/{number}.png", patient_id=f"p{number}", labels=NORMAL, extra={"spacing_mm": cell})
            for number, cell in enumerate(["3.2", "", "3.2|1.6", "wide"])]
    host_set(tmp_path / "hosts", rows)
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=25)
    assert [study.extra["spacing_from"] for study in made.studies] == ["stated", "estimated"]
    assert capsys.readouterr().err.count("the pixel spacing of 1 image is not stated and was estimated") == 1
    dropped = (made.path / "dropped.csv").read_text()
    assert "its pixels are 3.2|1.6 mm, not square" in dropped and "spacing_mm 'wide' cannot be" in dropped
    given = insert(tmp_path / "hosts", tmp_path / "given", diameter_mm=25, spacing_mm=3.3)
    assert [study.extra["spacing_from"] for study in given.studies] == ["stated", "given"]
    assert [study.extra["spacing_mm"] for study in given.studies] == ["3.2", "3.3"]


def test_colour_becomes_luminance_and_the_row_says_so(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", num=1)
    path = hosts.path / "images/0.png"
    Image.fromarray(np.repeat(read_image(path)[..., None], 3, axis=2)).save(path)
    made = insert(tmp_path / "hosts", tmp_path / "out", diameter_mm=25)
    assert made.studies[0].extra["host_note"] == "colour: its luminance is used"


def test_findings_that_nothing_inserts_and_empty_folders_are_refused(tmp_path: Path) -> None:
    host_set(tmp_path / "hosts", num=1)
    with pytest.raises(InputError, match="did you mean 'Nodule'"):
        insert(tmp_path / "hosts", tmp_path / "out", finding="Nodul")
    with pytest.raises(UsageError, match=r"nothing inserts 'Hernia'.*Mass, Nodule"):
        insert(tmp_path / "hosts", tmp_path / "out", finding="Hernia")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no PNG, JPEG or DICOM image"):
        insert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        insert(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(UsageError, match="side: 'up' is neither left nor right"):
        insert(tmp_path / "hosts", tmp_path / "out", side="up")


def _lower_lung(size: int = SIZE_PX) -> np.ndarray:
    """The base of the patient's left lung, which is on the right of the image."""
    lungs = thorax(size, seed=0).lungs.copy()
    lungs[:, : size // 2] = False
    lungs[: int(0.6 * size)] = False
    return lungs.astype(np.uint8) * 255


def test_other_findings_are_made_inside_a_mask_by_their_template(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", num=1)
    write_png(tmp_path / "mask.png", _lower_lung())
    study = insert(hosts, tmp_path / "out", finding="Effusion", mask=tmp_path / "mask.png", severity=1.0).studies[0]
    assert study.labels["Effusion"] is Stated.PRESENT and study.extra["lesion_side"] == "left" and study.extra["model"] == "template"
    host, result = read_image(hosts.path / "images/0.png"), read_image(tmp_path / "out" / study.file_name)
    mask = read_image(tmp_path / "out" / study.masks["lesion_mask"][0]) > 0
    assert not ((result != host) & (distance_transform_edt(~mask) > int(study.extra["rim_px"]))).any()
    assert (result.astype(float) - host)[mask].mean() > 5, "fluid is dense"
    with pytest.raises(UsageError, match="a diameter is of a nodule or mass"):
        insert(hosts, tmp_path / "other", finding="Effusion", diameter_mm=20)


def test_outlines_come_from_a_bank_of_ones_own(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", num=2)
    ill = [Study(file_name=f"images/{number}.png", patient_id=f"ill{number}", labels={"Effusion": Stated.PRESENT}, lesion_label="Effusion")
           for number in range(2)]
    bank = host_set(tmp_path / "bank", ill)
    write_png(bank.path / "masks/effusion.png", _lower_lung())
    marked = [replace(study, masks={**study.masks, "lesion_mask": ("masks/effusion.png",)}) for study in bank.studies]
    write_dataset(bank.path, marked, name="bank", synthetic=False)
    made = insert(hosts, tmp_path / "out", finding="Effusion", layouts=bank.path)
    assert len(made) and all(study.extra["lesion_side"] == "left" for study in made.studies), "the bank has one side alone"
    assert all(float(study.extra["lesion_y"]) > 0.5 for study in made.studies), "an effusion lies at the base"
    with pytest.raises(UsageError, match="knows no outline of 'Pneumothorax'"):
        insert(hosts, tmp_path / "other", finding="Pneumothorax", layouts=bank.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: the folder of outlines is empty; give a data set with lesion masks"):
        insert(hosts, tmp_path / "third", finding="Effusion", layouts=tmp_path / "empty")


def test_an_outline_too_small_to_be_seen_is_refused_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", num=1)
    bank = host_set(tmp_path / "bank", num=1)
    inside = distance_transform_edt(_lower_lung() > 0)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    speck = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    speck[row - 1 : row + 2, column - 1 : column + 2] = 255
    write_png(bank.path / "masks/speck.png", speck)
    ill = [replace(study, labels={"Consolidation": Stated.PRESENT}, lesion_label="Consolidation",
                   masks={**study.masks, "lesion_mask": ("masks/speck.png",)}) for study in bank.studies]
    write_dataset(bank.path, ill, name="bank", synthetic=False)
    with pytest.raises(InputError, match=r"outline that was drawn covers 0\.\d\d% of the lungs, and 0\.5% is the least; ask for a"):
        insert(hosts, tmp_path / "out", finding="Consolidation", layouts=bank.path)
    assert len(insert(hosts, tmp_path / "small", finding="Consolidation", layouts=bank.path, size=0.05))


def test_a_nodule_that_cannot_be_seen_goes_elsewhere_or_is_enlarged_or_the_host_is_refused() -> None:
    made = thorax(256, noise=1.5)
    right, left = made.lungs.copy(), made.lungs.copy()
    right[:, 128:] = left[:, :128] = False
    lungs = LungMasks(right=right[None], left=left[None], heart=np.zeros_like(right)[None])
    y, x = np.mgrid[:256, :256]
    busy = np.clip(made.pixels + 30 * np.sin(x / 2.6) * np.sin(y / 2.6) * right, 0, 255).astype(np.uint8)  # as if of nodules itself
    maker = lesion_maker("Nodule", InsertConfig(), model="template")
    records = [maker.insert(busy, lungs, spacing_mm=None, mask=None, seed=seed).record for seed in range(6)]
    assert all(record["visibility"] >= record["least_visible"] for record in records)
    assert any(record["places"] > 1 for record in records), "some had to be placed again, and the record says so"
    assert all(10 <= record["diameter_mm"] <= 30 for record in records), "within the range of nodules"
    faint = lesion_maker("Nodule", InsertConfig(diameter_mm=5, severity=0.0, side="right"), model="template")
    with pytest.raises(InputError, match=r"nodule could not be seen: at best it stands out by .* are asked for; ask for a larger"):
        faint.insert(busy, lungs, spacing_mm=None, mask=None, seed=1)


def test_volumes_sampled_in_groups_make_the_images_that_they_make_alone() -> None:
    made = thorax(SIZE_PX, noise=1.0)
    right, left = made.lungs.copy(), made.lungs.copy()
    right[:, SIZE_PX // 2 :] = left[:, : SIZE_PX // 2] = False
    lungs = LungMasks(right=right[None], left=left[None], heart=np.zeros_like(right)[None])
    grouped, alone = (lesion_maker("Nodule", InsertConfig(diameter_mm=28, severity=1.0), model="nodule-3d") for _ in range(2))
    for number in (0, 2):
        own = derive(1, "insert", number)
        grouped.prepare(1, number)
        assert own in grouped.volumes and len(grouped.volumes) == 4
        one, other = (maker.insert(made.pixels, lungs, spacing_mm=None, mask=None, seed=own) for maker in (grouped, alone))
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.mask, other.mask)


def test_fewer_images_than_asked_for_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = host_set(tmp_path / "hosts", num=2)
    write_png(hosts.path / "images/1.png", np.zeros((SIZE_PX, SIZE_PX), np.uint8))
    assert len(insert(hosts, tmp_path / "out")) == 1
    assert "note: 1 of 2 images could not be made, see dropped.csv; 'images/1.png': " in capsys.readouterr().err


def test_a_mask_in_the_other_lung_than_the_side_asked_for_is_refused(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", num=1)
    write_png(tmp_path / "mask.png", _lower_lung())
    with pytest.raises(InputError, match="the mask lies in the patient's left lung, and --side asks for the right one; leave out --side"):
        insert(hosts, tmp_path / "out", finding="Effusion", mask=tmp_path / "mask.png", side="right")
    drawn = thorax(SIZE_PX, seed=0).lungs
    right, left = drawn.copy(), drawn.copy()
    right[:, SIZE_PX // 2 :] = left[:, : SIZE_PX // 2] = False
    lungs = LungMasks(right=right[None], left=left[None], heart=np.zeros_like(drawn)[None])
    for side in ("left", ""):
        check_side(_lower_lung() > 0, lungs, side)


def test_a_folder_of_dicom_files_names_no_patient(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    for number in range(2):
        stored = (thorax(SIZE_PX, seed=number).pixels.astype(np.uint16) * 16).astype(np.uint16)
        dicom(tmp_path / "pacs" / f"CANARY-{number}.dcm", stored, bits=12, PixelSpacing=[2.5, 2.5], Modality="DX", ViewPosition="PA")
    with pytest.raises(InputError, match=r"'host:000000' does not state whether it shows Nodule.*--assume-absent"):
        find_hosts(tmp_path / "pacs", "Nodule")
    hosts = find_hosts(tmp_path / "pacs", "Nodule", assume_absent=True)
    assert [host.reference for host in hosts.usable] == ["host:000000", "host:000001"]
    assert {host.study.patient_id for host in hosts.usable} == {"patient-000000"}, "both files are of one patient"
    assert hosts.usable[0].study.extra == {"spacing_mm": "2.5", "modality": "DX"} and hosts.usable[0].study.view == "PA"


def test_an_image_that_is_exported_may_not_leave_and_other_lesions_of_the_host_stay(tmp_path: Path) -> None:
    hosts = host_set(tmp_path / "hosts", [Study(file_name="images/0.png", patient_id="a", labels={"Nodule": Stated.ABSENT,
                                                                                                  "Effusion": Stated.PRESENT},
                                                lesion_label="Effusion", extra={"lesion_side": "left"})])
    made = insert(hosts, tmp_path / "out", diameter_mm=25)
    assert made.studies[0].lesion_label == "Effusion|Nodule" and made.studies[0].labels["Effusion"] is Stated.PRESENT
    assert made.studies[0].masks["lesion_mask"][0] == "" and made.studies[0].masks["lesion_mask"][1]
    with pytest.raises(InputError, match="is derived from a patient's image"):
        export_dataset(made, format="png", out=tmp_path / "exported")
    assert sx.ingest(made.path, out=tmp_path / "again").studies == made.studies


def _insertion(host: np.ndarray, result: np.ndarray, mask: np.ndarray, **record: object) -> Insertion:
    return Insertion(pixels=result, mask=mask, box=box_of(mask), record=record)


def test_an_insertion_is_refused_for_what_it_changed() -> None:
    host, mask = np.full((32, 32), 90, np.uint8), np.zeros((32, 32), np.uint8)
    host[0, 0], mask[8:16, 8:16] = 0, 255
    good = np.where(mask > 0, np.uint8(120), host)
    assert not refusal(host, _insertion(host, good, mask))
    stray = good.copy()
    stray[30, 30] += 1
    assert refusal(host, _insertion(host, stray, mask, rim_px=2)) == "1 pixels outside the mask and its rim were changed"
    rim = good.copy()
    rim[16, 10] += 1
    assert refusal(host, _insertion(host, rim, mask)) and not refusal(host, _insertion(host, rim, mask, rim_px=1))
    assert "changes no pixel" in refusal(host, _insertion(host, host.copy(), mask))
    assert "a seam shows" in refusal(host, _insertion(host, good, mask, seam=2.0))
    assert "uint16" in refusal(host, _insertion(host, good.astype(np.uint16), mask))


def test_an_image_whose_anatomy_is_not_kept_is_made_again_and_then_given_up(tmp_path: Path) -> None:
    hosts = find_hosts(host_set(tmp_path / "hosts", num=1), "Nodule")
    maker, asked = lesion_maker("Nodule", InsertConfig(diameter_mm=25, tries=2), model="template"), list[int]()

    def guard(before: np.ndarray, after: np.ndarray, region: np.ndarray) -> str:
        assert np.array_equal(before[~region], after[~region])
        asked.append(int((before != after).sum()))
        return "two hearts" if len(asked) < 3 else ""

    call = {"seed": 1, "find_lungs": no_lungs, "guard": guard}
    with pytest.raises(InputError, match=r"the anatomy is not kept: two hearts \(2 attempts\); raise --tries"):
        insert_images(hosts, maker, out=tmp_path / "out", **call)
    assert len(asked) == 2 and not (tmp_path / "out").exists()
    made = insert_images(hosts, maker, out=tmp_path / "out", **call)
    assert made.dataset.studies[0].extra["anatomy"] == "kept"


def no_lungs(pixels: np.ndarray) -> LungMasks:
    """In the place of the lung model, where rows name masks of their lungs."""
    raise AssertionError("the row says where the lungs are")


def test_a_place_outside_the_chest_is_refused() -> None:
    lung = np.zeros((1, 64, 64), bool)
    lung[:, 20:50, 10:28] = True
    lungs = LungMasks(right=lung, left=lung[:, :, ::-1], heart=np.zeros_like(lung))
    inside, outside = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    inside[30:34, 12:16] = outside[:4, :4] = True
    check_place(inside, lungs)
    with pytest.raises(InputError, match="outside the chest"):
        check_place(outside, lungs)


def test_the_template_has_the_diameter_that_is_asked_for_and_differs_by_seed() -> None:
    one, again, other = (template_volume(20.0, seed=seed) for seed in (1, 1, 2))
    assert math.isclose(one.diameter_mm, 20, rel_tol=1e-6) and np.array_equal(one.water, again.water)
    assert not np.array_equal(one.mask, other.mask) and 0.5 < one.water[one.mask].mean() < 0.8


def test_a_lesion_that_reaches_out_of_the_chest_is_refused() -> None:
    lung = np.zeros((1, 64, 64), bool)
    lung[:, 20:50, 12:28] = True
    lungs = LungMasks(right=lung, left=lung[:, :, ::-1], heart=np.zeros_like(lung))
    host, inside, outside = np.full((64, 64), 90, np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    host[0, 0] = 0
    inside[30:40, 10:20] = outside[30:40, 4:14] = 255
    for mask, refused in ((inside, False), (outside, True)):
        made = _insertion(host, np.where(mask > 0, np.uint8(99), host), mask)
        assert ("away from lungs and heart" in refusal(host, made, lungs)) == refused and not refusal(host, made)


@pytest.mark.images
@pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside this checkout")
def test_real_files_of_a_scanner_and_one_that_shows_the_negative(tmp_path: Path) -> None:
    try:
        load_lung_model()
    except SynthoraxError as error:
        pytest.skip(str(error))
    (tmp_path / "pacs").mkdir()
    for pattern in ("rsna_1.2*.dcm", "rsna_Fake*.dcm"):  # the same stored values, the second wrongly labelled MONOCHROME1
        file = next(IMAGES.glob(pattern))
        (tmp_path / "pacs" / file.name).write_bytes(file.read_bytes())
    made = insert(tmp_path / "pacs", tmp_path / "out", assume_absent=True)
    (study,) = made.studies
    assert study.extra["spacing_mm"] == "0.168" and study.extra["spacing_from"] == "stated" and study.extra["modality"] == "CR"
    assert study.view == "PA" and study.age_years == 62 and read_image(made.path / study.file_name).shape == (1024, 1024)
    assert "the image looks inverted" in (made.path / "dropped.csv").read_text()
