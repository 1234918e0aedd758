import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthorax.data.attributes import parse_age_years, parse_sex, parse_view
from synthorax.data.dataset import digest_of, read_dataset, write_dataset, write_facts, write_table
from synthorax.data.pixels import write_png
from synthorax.data.tables import read_table, table_bytes
from synthorax.data.vocabulary import label_matrix
from synthorax.errors import InputError
from synthorax.types import Stated, Study

IMAGES = Path(__file__).parents[3] / "shared" / "data"
needs_images = pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside the checkout")

TABLE = "file_name,patient_id,view,sex,age_years,findings,text\na.png,p1,PA,F,57,Mass|Edema?,Größe normal\nb.png,p2,AP,M,,,\n"


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        write_png(tmp_path / name, np.full((8, 8), 10 * number, np.uint8))
    (tmp_path / "metadata.csv").write_text(TABLE, encoding="utf-8")
    return tmp_path


def put(folder, text, encoding="utf-8"):
    (folder / "metadata.csv").write_bytes(text.encode(encoding))


@pytest.mark.parametrize("text", [
    TABLE, "\ufeff" + TABLE, TABLE.replace(",", ";"), TABLE.replace(",", "\t"), TABLE.replace("\n", "\r\n"),
    TABLE.replace("\n", "\r"), "\ufeff" + TABLE.replace(",", ";").replace("\n", "\r\n"),
    TABLE.replace("a.png", "./a.png"), TABLE.replace("file_name,", '"file_name",'), TABLE + "\n,,,,,,\n",
    TABLE.replace("b.png,p2,AP,M,,,", "b.png,p2,AP,M"), ",".join(["", *TABLE.split(",")]).replace("\na", "\n,a").replace("\nb", "\n,b"),
])
def test_a_table_reads_the_same_however_it_was_saved(folder, text):
    expected = read_dataset(folder)
    put(folder, text)
    assert read_dataset(folder).studies == expected.studies
    assert expected.studies[0].text == "Größe normal"
    assert expected.studies[0].labels == {"Mass": Stated.PRESENT, "Edema": Stated.UNCERTAIN}


def test_utf16_is_read_and_an_unmarked_encoding_is_refused_with_its_row(folder):
    expected = read_dataset(folder).studies
    put(folder, TABLE, "utf-16")
    assert read_dataset(folder).studies == expected
    put(folder, TABLE, "latin-1")
    with pytest.raises(InputError, match=r"metadata.csv row 2: the text is not UTF-8; save the table as 'CSV UTF-8'"):
        read_dataset(folder)


@pytest.mark.parametrize(("text", "message"), [
    ("", "the table is empty"),
    ("file_name,findings\n", "a header but no rows"),
    ("image,findings\na.png,Mass\n", "row 1: there is no column file_name; its columns are image, findings"),
    ("file_name,findings\na.png,Efusion\n", "row 2: unknown finding 'Efusion'; did you mean 'Effusion'"),
    ("file_name,findings\na.png,Mass\n\nb.png,No Finding|Mass\n", "row 4: 'No Finding' stands beside 'Mass'"),
    ("file_name,findings\na.png,Mass\n./a.png,Mass\n", "row 3: 'a.png' is already in row 2"),
    ("file_name,findings\nc.png,Mass\n", "row 2: image 'c.png' is missing"),
    ("file_name,findings\n,Mass\n", "row 2: the file name is empty"),
    ("file_name,findings\n../a.png,Mass\n", "row 2: '../a.png' leaves the folder"),
    ("file_name,findings\n..\\a.png,Mass\n", "leaves the folder"),
    ("file_name,findings\n/etc/passwd,Mass\n", "leaves the folder"),
    ("file_name,findings\nC:\\films\\a.png,Mass\n", "leaves the folder"),
    ("file_name,findings,lesion_mask\na.png,Mass,../m.png\n", "leaves the folder"),
    ("file_name,findings,lesion_mask\na.png,Mass,b.png|m.png\n", "row 2: lesion_mask 'm.png' is missing"),
    ("file_name,lesion_label,lesion_mask\na.png,Mass,a.png|b.png\n", "row 2: lesion_mask has 2 items and lesion_label 1 name"),
    ("file_name,lesion_label,lesion_size\na.png,Mass,0.5\nb.png,Mass,12 mm\n", "row 3: lesion_size '12 mm' cannot be; write a number"),
    ("file_name,findings\na.png,Mass,Edema\n", "row 2: 3 cells under 2 columns"),
    ("file_name,findings,text\na.png,Mass", "the last row has 2 of 3 cells and no line end"),
    ('file_name,findings\na.png,"Mass\n', "row 2: the row cannot be read"),
    ("file_name,findings,findings\na.png,Mass,\n", "two columns are named 'findings'"),
    ("file_name,\na.png,Mass\n", "column 2 has content but no name"),
    ("file_name,sex\na.png,1\n", "row 2: sex '1' is not known; write M or F"),
    ("file_name,split\na.png,holdout\n", "split 'holdout' is not known"),
    ("file_name,origin\na.png,fake\n", "origin 'fake' is not known"),
    ("file_name,origin,split\na.png,synthetic,test\n", "a synthetic image is in the split 'test'"),
    ("file_name,patient_id,split\na.png,p,train\nb.png,p,test\n", "row 3: this patient is in the split 'test' here and in 'train'"),
    ("file_name\0\na.png\n", "not a text file"),
])
def test_what_is_ambiguous_is_refused(folder, text, message):
    put(folder, text)
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_missing_folders_tables_and_damaged_facts_are_refused(folder):
    with pytest.raises(InputError, match="no such folder"):
        read_dataset(folder / "nowhere")
    (folder / "dataset.json").write_text('{"labels": "Mass"}')
    with pytest.raises(InputError, match=r"dataset.json: .*labels"):
        read_dataset(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_dataset(folder)
    (folder / "dataset.json").unlink()
    (folder / "metadata.csv").unlink()
    with pytest.raises(InputError, match="`synthorax ingest` makes one"):
        read_dataset(folder)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_that_leaves_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    write_png(outside, np.zeros((8, 8), np.uint8))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(outside)
    with pytest.raises(InputError, match=r"row 2: 'a.png' is a link that leaves the folder"):
        read_dataset(folder)


def test_another_label_table_takes_the_place_of_metadata_csv(folder):
    other = folder / "labels.csv"
    other.write_text("file_name,findings\nb.png,Hernia\n")
    assert [study.labels for study in read_dataset(folder, label_table=other).studies] == [{"Hernia": Stated.PRESENT}]


def test_the_names_of_a_data_set_are_those_it_declares(folder):
    put(folder, "file_name,findings\na.png,Viral Pneumonia|Pneumonia\nb.png,No Finding\n")
    with pytest.raises(InputError, match="'Viral Pneumonia'"):
        read_dataset(folder)
    assert "Viral Pneumonia" in read_dataset(folder, allow=["Viral Pneumonia"]).findings
    (folder / "dataset.json").write_text(json.dumps({"labels": ["Viral Pneumonia", "Pleural Effusion", "Unlabelled"]}))
    assert read_dataset(folder).findings == ("Viral Pneumonia", "Effusion", "No Finding", "Pneumonia")


@pytest.mark.parametrize(("cell", "age_years"), [
    ("57", 57), ("57,5", 57.5), ("058Y", 58), ("006M", 0.5), ("", None), ("nan", None), ("NA", None), ("120", 120),
])
def test_ages_are_read(cell, age_years):
    age, note = parse_age_years(cell)
    assert note == ""
    assert math.isnan(age) if age_years is None else age == age_years


@pytest.mark.parametrize("cell", ["148", "411", "-3", "old", "1e9", "-inf"])
def test_an_impossible_age_is_not_stated_and_reported(folder, cell):
    put(folder, f"file_name,age_years\na.png,{cell}\nb.png,5\n")
    dataset = read_dataset(folder)
    assert math.isnan(dataset.studies[0].age_years)
    assert [(note.row, note.file_name) for note in dataset.notes] == [(2, "a.png")]
    assert cell in dataset.notes[0].reason


def test_views_and_sexes_are_understood():
    views = {"Frontal PA": "PA", "pa": "PA", "AP_SUPINE": "AP", "Lateral": "LATERAL", "LL": "LATERAL", "L": "LATERAL", "": ""}
    assert {cell: parse_view(cell)[0] for cell in views} == views
    assert parse_view("LLD") == ("", "view 'LLD' is none of PA, AP, LATERAL: not stated")  # lying on the side, not lateral
    assert [parse_sex(cell, file="t", row=2) for cell in ("Male", "f", "Unknown", "O")] == ["M", "F", "", ""]


def test_a_view_as_stated_is_not_lost(folder):
    put(folder, "file_name,view\na.png,AP_SUPINE\nb.png,PA\n")
    studies = read_dataset(folder).studies
    assert [(study.view, study.extra) for study in studies] == [("AP", {"view_as_stated": "AP_SUPINE"}), ("PA", {})]
    write_table(folder, studies)
    assert read_dataset(folder).studies[0] == replace(studies[0], extra={"view_as_stated": "AP_SUPINE"})


def test_images_without_a_patient_become_patients_only_on_request(folder):
    put(folder, "file_name,patient_id,origin\na.png,,real\nb.png,,synthetic\n")
    assert [study.patient_id for study in read_dataset(folder).studies] == ["", ""]
    assert [study.patient_id for study in read_dataset(folder, patient_per_image=True).studies] == ["image:a.png", ""]


FULL = Study(
    file_name="a.png", study_id="s", patient_id="p", site="x", view="PA", sex="F", age_years=57.25, origin="synthetic",
    labels={"Mass": Stated.PRESENT, "Edema": Stated.UNCERTAIN, "Hernia": Stated.ABSENT}, text="=1+1 \"a\", 'b'\nzwei; drei",
    masks={"lesion_mask": ("a.png", "b.png")}, lesion_label="Mass|Mass", split="train",
    extra={"seed": "-7", "condition": '{"labels": {"Mass": 1}}', "remark": "'=quoted", "mail": "@home"},
)


def test_everything_in_a_study_survives_writing_and_reading(folder):
    write_table(folder, [FULL, Study(file_name="b.png")])
    write_facts(folder, name="set", studies=[FULL, Study(file_name="b.png")], synthetic=False,
                extra={"licence": "CC0", "labels": ["Nodule"]})
    dataset = read_dataset(folder)
    assert dataset.studies[0] == FULL
    assert (dataset.name, dataset.facts["licence"], dataset.facts["num_images"]) == ("set", "CC0", 2)
    assert dataset.findings == ("Edema", "Hernia", "Mass", "Nodule")
    assert dataset.facts["digest"] == digest_of(dataset)


def test_a_lesion_without_a_mask_keeps_the_others_in_their_place(folder):
    studies = [Study(file_name="a.png", masks={"lesion_mask": ("", "b.png")}, lesion_label="Mass|Nodule", extra={"lesion_box": "0,0,1,1|"}),
               Study(file_name="b.png", lesion_label="Ground_Glass_Opacities")]
    write_table(folder, studies)
    dataset = read_dataset(folder)
    assert [replace(study, extra={}) for study in dataset.studies] == [replace(study, extra={}) for study in studies]
    assert dataset.studies[0].extra == studies[0].extra and len(digest_of(dataset)) == 64


def test_no_cell_runs_as_a_formula_and_numbers_stay_numbers(folder):
    write_table(folder, [FULL])
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as handle:
        header, row = csv.reader(handle)
    cells = dict(zip(header, row, strict=True))
    assert header[0] == "file_name"
    assert (cells["text"][:3], cells["mail"], cells["seed"], cells["remark"]) == ("'=1", "'@home", "-7", "''=quoted")
    assert not [cell for cell in row if cell.startswith(("=", "+", "@"))]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12))
def test_any_text_comes_back_from_a_table(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(table_bytes(("key", "text"), [{"key": "1", "text": text}]))
    assert read_table(path).rows[0].cells["text"] == text.strip()


def test_a_refused_write_leaves_the_old_table(folder):
    before = (folder / "metadata.csv").read_bytes()
    with pytest.raises(InputError, match=r"row 3: '=b.png' would be a formula"):
        write_table(folder, [Study(file_name="a.png"), Study(file_name="=b.png")])
    assert (folder / "metadata.csv").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "metadata.csv"]


def test_a_synthetic_set_marks_its_rows_unless_they_say_otherwise(folder):
    (folder / "dataset.json").write_text('{"synthetic": true}')
    assert {study.origin for study in read_dataset(folder).studies} == {"synthetic"}


def test_the_digest_follows_labels_and_pixels_but_not_the_way_of_saving(folder):
    digest = digest_of(read_dataset(folder))
    put(folder, TABLE.replace(",", ";"))
    assert digest_of(read_dataset(folder)) == digest
    put(folder, TABLE.replace("Edema?", "Edema"))
    relabelled = digest_of(read_dataset(folder))
    put(folder, TABLE)
    write_png(folder / "b.png", np.full((8, 8), 11, np.uint8))
    assert len({digest, relabelled, digest_of(read_dataset(folder))}) == 3


@pytest.mark.images
@needs_images
@pytest.mark.parametrize(("name", "size", "patients", "finding", "positive"), [
    ("open/nih", 1489, 1120, "Pneumothorax", 69), ("open/kermany", 441, 429, "Viral Pneumonia", 153),
    ("open/hannover", 212, 61, "COVID-19", 212), ("research/jsrt", 204, 204, "Nodule", 127),
    ("research/cohen", 471, 262, "COVID-19", 317),
])
def test_the_real_sets_read_and_come_back_from_a_table(tmp_path, name, size, patients, finding, positive):
    dataset = read_dataset(IMAGES / name)
    labels = label_matrix(dataset.studies, dataset.findings)
    assert (len(dataset), len({study.patient_id for study in dataset.studies})) == (size, patients)
    assert np.nansum(labels[:, dataset.findings.index(finding)]) == positive
    stated = np.array([bool(study.labels) for study in dataset.studies])
    assert np.isnan(labels[~stated]).all()
    write_table(tmp_path, dataset.studies)
    assert read_dataset(IMAGES / name, label_table=tmp_path / "metadata.csv").studies == dataset.studies


def test_a_dataset_folder_is_written_from_another_one(folder, tmp_path_factory):
    dataset, out, calls = read_dataset(folder, allow=["Mass", "Edema"]), tmp_path_factory.mktemp("copy"), []
    rows = write_dataset(out, dataset.studies[:1], name="copy", synthetic=False, source=folder, facts={"labels": ["Mass", "Hernia"]},
                         progress=lambda fraction, text: calls.append(fraction))
    again = read_dataset(out)
    assert again.studies == rows == dataset.studies[:1] and again.name == "copy" and again.facts["num_images"] == 1
    assert set(again.findings) >= {"Mass", "Hernia"} and calls == [1.0]
    assert again.facts["digest"] == digest_of(again)


def test_a_dataset_folder_that_was_not_finished_has_no_table(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("copy")
    with pytest.raises(InputError, match="does not exist"):
        write_dataset(out, [Study(file_name="c.png")], name="copy", synthetic=False, source=folder)
    (folder / "a.png").rename(folder / "=a.png")
    with pytest.raises(InputError, match="formula"):
        write_dataset(out, [Study(file_name="=a.png")], name="copy", synthetic=False, source=folder)
    assert not (out / "metadata.csv").exists()
