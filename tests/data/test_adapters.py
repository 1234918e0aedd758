import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from synthorax.data.adapters import ADAPTERS, cxr14, detect, dicom, folder
from synthorax.data.dataset import read_dataset
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.errors import InputError
from synthorax.registry import lookup
from synthorax.types import Stated

SHARED = Path(__file__).parents[3] / "shared"
IMAGES = SHARED / "data"
needs_images = pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside the checkout")
PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN


def radiograph(seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (6, 5), dtype=dtype)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def source(tmp_path):
    """Three images below `images`, of three kinds, and a table with columns of its own."""
    root = tmp_path / "images"
    (root / "deep" / "er").mkdir(parents=True)
    write_png(root / "one.png", radiograph(1))
    write_png(root / "deep" / "two.png", radiograph(2, np.uint16))
    Image.fromarray(np.stack([radiograph(3)] * 3, axis=-1)).save(root / "deep" / "er" / "three.png")
    (root / "labels.csv").write_text(
        "\ufeffImage Index;Finding Labels;Patient ID;Gender;Age;ward\n"
        "one.png;Pleural Effusion|Mass?;7;Female;57,5;=A1\ndeep/two.png;No Finding;8;M;411;\nthree;;7;;;\n", encoding="utf-8")
    return root


def test_a_folder_with_a_foreign_table_becomes_a_dataset_folder(source, tmp_path):
    made = folder.ingest(source, tmp_path / "out")
    assert read_dataset(tmp_path / "out").studies == made.studies
    one, two, three = made.studies
    assert (one.labels, one.patient_id, one.sex, one.age_years) == ({"Effusion": PRESENT, "Mass": UNCERTAIN}, "7", "F", 57.5)
    assert one.extra == {"ward": "=A1"}
    assert (two.labels, three.labels) == ({"No Finding": PRESENT}, {})
    assert "411" in rows_of(tmp_path / "out" / "notes.csv")[0]["reason"]
    # same grey, same side up
    for study, pixels in zip(made.studies, (radiograph(1), radiograph(2, np.uint16), radiograph(3)), strict=True):
        np.testing.assert_array_equal(read_image(made.path / study.file_name), pixels)
    with Image.open(made.path / three.file_name) as image:
        assert image.mode == "L"


def test_damaged_missing_and_unlisted_images_are_rejected_with_row_and_reason(source, tmp_path):
    (source / "one.png").write_bytes((source / "one.png").read_bytes()[:60])
    (source / "deep" / "two.png").unlink()
    write_png(source / "extra.png", radiograph(9))
    made = folder.ingest(source, tmp_path / "out")
    assert [study.file_name for study in made.studies] == ["images/deep_er_three.png"]
    rejects = {row["file_name"]: (row["row"], row["reason"]) for row in rows_of(made.path / "rejects.csv")}
    assert rejects["deep/two.png"] == ("3", "no such image in the folder")
    assert rejects["extra.png"] == ("", "has no row in labels.csv")
    assert rejects["one.png"][0] == "2"
    assert "cannot be decoded" in rejects["one.png"][1]


def test_nothing_is_left_where_no_image_can_be_read(source, tmp_path):
    for path in source.rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"no image could be taken over \(3 rejected\)"):
        folder.ingest(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_wrong_label_stops_before_anything_is_written(source, tmp_path):
    table = source / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("No Finding", "No Fnding"), encoding="utf-8")
    with pytest.raises(InputError, match=r"labels.csv row 3: unknown finding 'No Fnding'; did you mean 'No Finding'\?"):
        folder.ingest(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_work_is_used_again_and_other_work_is_not_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    first = folder.ingest(source, tmp_path / "out")
    again = folder.ingest(source, tmp_path / "out", progress=lambda part, text: pytest.fail("read again"))
    assert again.studies == first.studies
    table = source / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("No Finding", "Mass"), encoding="utf-8")
    with pytest.raises(InputError, match="holds a dataset folder with other labels"):
        folder.ingest(source, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="is not empty"):
        folder.ingest(source, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "mine", "out"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_text_embedded_in_a_picture_does_not_enter_the_dataset(tmp_path):
    (tmp_path / "images" / "Mass").mkdir(parents=True)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "DOE^JANE")
    Image.fromarray(radiograph()).save(tmp_path / "images" / "Mass" / "a.png", pnginfo=text)
    made = folder.ingest(tmp_path / "images", tmp_path / "out")
    assert b"DOE^JANE" not in (made.path / made.studies[0].file_name).read_bytes()
    np.testing.assert_array_equal(read_image(made.path / made.studies[0].file_name), radiograph())


def test_class_folders_name_findings_and_splits_but_no_patient(tmp_path):
    for number, place in enumerate(("train/PNEUMONIA", "train/NORMAL", "test/NORMAL", "train/Unlabelled")):
        (tmp_path / "images" / place).mkdir(parents=True)
        write_png(tmp_path / "images" / place / "a.png", radiograph(number))
    made = folder.ingest(tmp_path / "images", tmp_path / "out")
    assert [(study.labels, study.split) for study in made.studies] == [
        ({"No Finding": PRESENT}, "test"), ({"No Finding": PRESENT}, "train"), ({"Pneumonia": PRESENT}, "train"), ({}, "train")]
    assert len({study.file_name for study in made.studies}) == 4
    assert {study.patient_id for study in made.studies} == {""}
    own = folder.ingest(tmp_path / "images", tmp_path / "own", patient_per_image=True)
    assert len({study.patient_id for study in own.studies}) == 4


def test_a_class_folder_or_a_loose_image_without_meaning_is_refused(tmp_path):
    (tmp_path / "images" / "Pneumona").mkdir(parents=True)
    write_png(tmp_path / "images" / "Pneumona" / "a.png", radiograph())
    with pytest.raises(InputError, match=r"Pneumona: unknown finding 'Pneumona'; did you mean 'Pneumonia'\?"):
        folder.ingest(tmp_path / "images", tmp_path / "out")
    (tmp_path / "images" / "Pneumona" / "a.png").rename(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"'a\.png' has neither a row in a table nor a folder that names its finding"):
        folder.ingest(tmp_path / "images", tmp_path / "out")


def test_one_column_for_each_finding_is_read_as_chexpert_writes_it(source, tmp_path):
    (source / "labels.csv").write_text(
        "Path,Patient,No Finding,Pleural Effusion,Edema,Beds\none.png,7,,1.0,-1.0,12\ntwo,8,1.0,,,3\nthree,9,,0.0,,1\n")
    made = folder.ingest(source, tmp_path / "out")
    assert [study.labels for study in made.studies] == [
        {"Effusion": PRESENT, "Edema": UNCERTAIN}, {"No Finding": PRESENT}, {"Effusion": ABSENT}]
    assert made.studies[0].extra == {"Beds": "12"}


@pytest.mark.parametrize(("table", "message"), [
    ("image,labels,Mass\none.png,Mass,1\n", "labels stand in the column 'labels' and in columns such as 'Mass'"),
    ("image,patient\none.png,7\n", "there is no column of findings"),
    ("key,labels\none.png,Mass\n", "there is no column that names the image"),
    ("image,labels\none.png,Mass\n./one.png,Mass\n", "row 3: 'one.png' is already in row 2"),
    ("image,labels\n../secret.png,Mass\n", "row 2: '../secret.png' leaves the folder"),
    ("image,labels\nsame.png,Mass\n", "row 2: 'same.png' may be 'deep/er/same.png' or 'deep/same.png'"),
])
def test_foreign_tables_that_leave_something_open_are_refused(source, tmp_path, table, message):
    write_png(source / "deep" / "same.png", radiograph(4))
    write_png(source / "deep" / "er" / "same.png", radiograph(5))
    (source / "labels.csv").write_text(table)
    with pytest.raises(InputError) as caught:
        folder.ingest(source, tmp_path / "out")
    assert message in str(caught.value)


def test_two_tables_need_a_choice(source, tmp_path):
    (source / "other.csv").write_text("image,labels\none.png,Mass\n")
    with pytest.raises(InputError, match=r"several tables: labels\.csv, other\.csv"):
        folder.ingest(source, tmp_path / "out")
    made = folder.ingest(source, tmp_path / "out", label_table=source / "other.csv")
    assert [study.labels for study in made.studies] == [{"Mass": PRESENT}]


def write_image(path, *, patient="MRN-4711", study="1.2.3.1", sop="1.2.3.1.1", seed=0, photometric="MONOCHROME2", **tags):
    stored = radiograph(seed, np.uint16) >> 4
    record = pydicom.Dataset()
    record.file_meta = FileMetaDataset()
    record.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.file_meta.MediaStorageSOPClassUID = record.SOPClassUID = SecondaryCaptureImageStorage
    record.file_meta.MediaStorageSOPInstanceUID = record.SOPInstanceUID = sop
    record.PatientID, record.PatientName, record.StudyInstanceUID, record.Modality = patient, "DOE^JANE", study, "DX"
    record.PatientSex, record.PatientAge, record.ViewPosition, record.PixelSpacing = "F", "062Y", "AP", [0.2, 0.2]
    record.Rows, record.Columns = stored.shape
    record.SamplesPerPixel, record.PhotometricInterpretation, record.PixelRepresentation = 1, photometric, 0
    record.BitsAllocated, record.BitsStored, record.HighBit = 16, 12, 11
    record.RescaleSlope, record.RescaleIntercept, record.WindowCenter, record.WindowWidth = 1, 0, 2048, 4096
    record.PixelData = stored.tobytes()
    for keyword, value in tags.items():
        setattr(record, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    record.save_as(path, enforce_file_format=True)
    return stored


@pytest.fixture
def tree(tmp_path):
    """Two images of one patient, one of them without a suffix, and one of another."""
    root = tmp_path / "DOE_JANE"
    write_image(root / "A" / "IM0001", sop="1.2.3.1.1", seed=1)
    write_image(root / "A" / "IM0002.dcm", study="1.2.3.2", sop="1.2.3.2.1", seed=2, photometric="MONOCHROME1")
    write_image(root / "B" / "1.2.840.9", patient="MRN-0815", study="1.2.3.3", sop="1.2.3.3.1", seed=3, PatientSex="M")
    (root / "readme.txt").write_text("export")
    return root


def test_a_tree_of_dicom_becomes_a_dataset_folder_without_identifiers(tree, tmp_path):
    (tree / "broken.dcm").write_bytes((tree / "A" / "IM0002.dcm").read_bytes()[:700])
    (tree / "thumb.jpg").write_bytes(b"no dicom")
    made = dicom.ingest(tree, tmp_path / "out")
    first, second, third = made.studies
    assert first.patient_id == second.patient_id != third.patient_id
    assert len({first.study_id, second.study_id, third.study_id}) == 3
    assert [(s.view, s.sex, s.age_years, s.labels, s.extra["spacing_mm"]) for s in (first, third)] == [
        ("AP", "F", 62, {}, "0.2"), ("AP", "M", 62, {}, "0.2")]
    assert [row["row"] for row in rows_of(made.path / "rejects.csv")] == ["4", "6"]  # as sorted; readme.txt is 5
    assert b"".join(path.read_bytes() for path in made.path.rglob("*") if path.is_file()).count(b"\x89PNG") == 3
    for path in made.path.rglob("*"):
        known = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        for secret in (b"MRN-", b"4711", b"DOE", b"JANE", b"IM000", b"1.2.3.", b"1.2.840"):
            assert secret not in known


def test_dicom_pixels_keep_their_side_and_show_bone_bright(tree, tmp_path):
    made = dicom.ingest(tree, tmp_path / "out")
    shown = [read_image(made.path / study.file_name).astype(float) for study in made.studies]
    stored = [(radiograph(seed, np.uint16) >> 4).astype(float) for seed in (1, 2, 3)]
    assert np.corrcoef(shown[0].ravel(), stored[0].ravel())[0, 1] > 0.999
    assert np.corrcoef(shown[1].ravel(), stored[1].ravel())[0, 1] < -0.999  # MONOCHROME1 stores bone dark
    assert {image.shape for image in shown} == {(6, 5)}


def test_codes_depend_on_the_key_and_only_on_it(tree, tmp_path):
    def patients(name, key):
        return [study.patient_id for study in dicom.ingest(tree, tmp_path / name, pseudonym_key=key).studies]

    assert patients("a", b"key") == patients("b", b"key") != patients("c", b"other")
    assert patients("d", None) != patients("e", None)


@pytest.mark.parametrize("table", [
    "SOPInstanceUID,Findings,ward\n1.2.3.2.1,Mass,x\n1.2.3.1.1,No Finding,y\n9.9,Mass,\n",
    "StudyInstanceUID,Findings\n1.2.3.2,Mass\n1.2.3.1,No Finding\n9.9,Mass\n",
    "file_name,Findings\nA/IM0002.dcm,Mass\nIM0001,No Finding\n9.dcm,Mass\n",
    "image_id,Mass,No Finding\nIM0002,1,\nIM0001,,1\nnowhere,1,\n",
])
def test_a_label_table_finds_its_dicom_files(tree, tmp_path, table):
    labels = tmp_path / "labels.csv"
    labels.write_text(table)
    made = dicom.ingest(tree, tmp_path / "out", label_table=labels)
    assert [study.labels for study in made.studies] == [{"No Finding": PRESENT}, {"Mass": PRESENT}, {}]
    assert [row["reason"] for row in rows_of(made.path / "rejects.csv")] == ["row of the label table without an image that could be read"]
    assert "ward" not in made.studies[0].extra


def test_a_table_overrules_the_header_where_it_states_something(tree, tmp_path):
    (tree / "labels.csv").write_text("file_name,findings,view,sex,age,patient\nIM0001,Mass,PA,M,30,SAME\nIM0002,Mass,,,,\n")
    made = dicom.ingest(tree, tmp_path / "out")
    assert [(s.view, s.sex, s.age_years) for s in made.studies] == [("PA", "M", 30), ("AP", "F", 62), ("AP", "M", 62)]
    assert made.studies[0].patient_id != made.studies[1].patient_id
    assert "SAME" not in (made.path / "metadata.csv").read_text()


def test_copies_and_other_modalities_are_rejected_but_a_shared_uid_alone_is_not(tree, tmp_path):
    (tree / "copy.dcm").write_bytes((tree / "A" / "IM0001").read_bytes())
    write_image(tree / "ct.dcm", sop="1.2.3.9", seed=8, Modality="CT")
    write_image(tree / "twin.dcm", sop="1.2.3.1.1", seed=9)
    made = dicom.ingest(tree, tmp_path / "out")
    assert len(made) == 4
    assert sorted(row["reason"] for row in rows_of(made.path / "rejects.csv")) == [
        "is the same image as an earlier file", "modality CT is not a radiograph"]


@pytest.fixture
def nih(tmp_path):
    root = tmp_path / "CXR8"
    (root / "images_001" / "images").mkdir(parents=True)
    for number in (0, 1):
        write_png(root / "images_001" / "images" / f"00000013_00{number}.png", radiograph(number).repeat(40, 0).repeat(40, 1)[:128, :128])
    (root / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000013_000.png,Nodule|Infiltration,0,13,060Y,M,PA,2500,2048,0.168,0.168,\n"
        "00000013_001.png,No Finding,1,13,411,M,AP,2500,2048,0.168,0.168,\n"
        "00000014_000.png,Hernia,0,14,60,F,PA,2500,2048,0.168,0.168,\n")
    (root / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000013_000.png,Nodule,512,256,64,128,,,\n"
        "00000013_000.png,Infiltrate,0,0,80,80,,,\n00000013_000.png,Nodule,0,0,8,8,,,\n00000013_000.png,Mass,1000,0,80,8,,,\n")
    return root


def test_chestxray14_is_read_as_the_nih_lays_it_out(nih, tmp_path):
    made = cxr14.ingest(nih, tmp_path / "out")
    first, second = made.studies
    assert (first.patient_id, second.patient_id, first.view, first.age_years) == ("nih_00013", "nih_00013", "PA", 60)
    assert first.labels == {"Nodule": PRESENT, "Infiltration": PRESENT}
    assert np.isnan(second.age_years)
    assert [(row["row"], row["reason"]) for row in rows_of(made.path / "rejects.csv")] == [("4", "no such image in the folder")]
    assert [row["row"] for row in rows_of(made.path / "notes.csv")] == ["3", "5"]  # the age of 411, the box outside


def test_a_mask_with_the_name_of_an_image_is_not_taken_for_it(nih, source, tmp_path):
    (nih / "masks" / "lung").mkdir(parents=True)
    write_png(nih / "masks" / "lung" / "00000013_000.png", np.zeros((128, 128), np.uint8))
    write_png(nih / "masks" / "lung" / "00000014_000.png", np.zeros((128, 128), np.uint8))
    made = cxr14.ingest(nih, tmp_path / "nih")
    assert [study.file_name for study in made.studies] == ["images/00000013_000.png", "images/00000013_001.png"]
    assert read_image(made.path / made.studies[0].file_name).any()
    write_png(nih / "images_001" / "00000013_000.png", radiograph())
    with pytest.raises(InputError, match=r"'00000013_000\.png' is there twice"):
        cxr14.ingest(nih, tmp_path / "again")
    (source / "masks").mkdir()
    (source / "one.png").rename(source / "masks" / "one.png")
    assert len(folder.ingest(source, tmp_path / "out")) == 2


def test_boxes_become_masks_at_the_scale_and_side_of_the_image(nih, tmp_path):
    made = cxr14.ingest(nih, tmp_path / "out")
    study = made.studies[0]
    assert study.lesion_label == "Infiltration|Nodule"
    infiltration, nodule = (read_image(made.path / name) for name in study.masks["lesion_mask"])
    expected = np.zeros((128, 128), np.uint8)
    expected[32:48, 64:72] = 255  # [y, x] of the box, divided by 1024 / 128 = 8
    expected[0, 0] = 255  # both nodules in one mask
    np.testing.assert_array_equal(nodule, expected)
    assert infiltration[:10, :10].all()
    assert infiltration.sum() == 100 * 255
    assert made.studies[1].masks == {}


def test_what_lies_in_a_folder_is_recognised_by_its_marks(source, tree, nih, tmp_path):
    marks = {"folder": source, "dicom": tree, "cxr14": nih}
    assert {name: detect(place) for name, place in marks.items()} == {name: name for name in ADAPTERS}, "a new adapter is known by its mark"
    made = folder.ingest(source, tmp_path / "out")
    assert detect(made.path) == "dataset"
    (made.path / "dataset.json").unlink()
    assert detect(made.path) == "dataset"
    write_png(tree / "a.png", radiograph())
    with pytest.raises(InputError, match="choose the adapter"):
        detect(tree)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no PNG, JPEG or DICOM"):
        detect(tmp_path / "empty")


def test_every_adapter_has_its_line():
    assert [lookup(ADAPTERS, name, kind="adapter") for name in ("folder", "dicom", "cxr14")] == [
        folder.ingest, dicom.ingest, cxr14.ingest]


@pytest.mark.images
@needs_images
def test_the_nihs_own_tables_agree_with_the_prepared_folder(tmp_path):
    made = cxr14.ingest(IMAGES / "open" / "nih", tmp_path / "out")
    prepared = {study.file_name: study for study in read_dataset(IMAGES / "open" / "nih").studies}
    assert len(made) == len(prepared) == 1489
    for study in made.studies:
        other = prepared[study.file_name]
        assert (study.labels, study.view, study.sex, study.age_years) == (other.labels, other.view, other.sex, other.age_years)
        assert study.lesion_label == other.lesion_label
        np.testing.assert_array_equal(read_image(made.path / study.file_name), read_image(IMAGES / "open" / "nih" / other.file_name))
        for ours, theirs in zip(study.masks.get("lesion_mask", ()), other.masks.get("lesion_mask", ()), strict=True):
            ours, theirs = read_image(made.path / ours) > 0, read_image(IMAGES / "open" / "nih" / theirs) > 0
            assert (ours & theirs).sum() / (ours | theirs).sum() > 0.85  # they differ by the rounding of the smallest boxes
    assert_accepted(made.path)


@pytest.mark.images
@needs_images
def test_real_dicom_files_and_a_set_with_many_masks_are_taken_over(tmp_path):
    (tmp_path / "pacs").mkdir()
    for path in (IMAGES / "formats").glob("*.dcm"):
        (tmp_path / "pacs" / path.name).write_bytes(path.read_bytes())
    made = dicom.ingest(tmp_path / "pacs", tmp_path / "out")
    assert [(study.view, study.sex, study.age_years) for study in made.studies] == [("PA", "M", 62)] * 2
    assert_accepted(made.path)
    cohen = folder.ingest(IMAGES / "research" / "cohen", tmp_path / "cohen")
    theirs = read_dataset(IMAGES / "research" / "cohen")
    for ours, other in zip(cohen.studies, theirs.studies, strict=True):
        np.testing.assert_array_equal(read_image(cohen.path / ours.file_name), read_image(theirs.path / other.file_name))
        for column, paths in other.masks.items():
            for mine, path in zip(ours.masks[column], paths, strict=True):
                np.testing.assert_array_equal(read_image(cohen.path / mine) > 0, read_image(theirs.path / path) > 0)
    assert_accepted(cohen.path)


def assert_accepted(path):
    check = SHARED / "acceptance" / "check_dataset_folder.py"
    if check.exists():
        result = subprocess.run([sys.executable, str(check), str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout
