"""Input as people have it: byte-order marks, Excel's first line, results among the sources, odd windows; and what verbs tell of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_files import FULL12, RAMP12
from dicom_files import dicom as dicom_file
from synthorax import progress as progress_module
from synthorax.cli.app import app
from synthorax.data.adapters import dicom, folder
from synthorax.data.dataset import read_dataset
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.data.prepared import SIZES_PX
from synthorax.data.tables import read_table
from synthorax.errors import InputError
from synthorax.steps.models.recipe import load_recipe
from synthorax.verbs import data, synthesis
from trainings import smallest, train_here


def class_folders(root: Path, num: int = 6) -> Path:
    for number in range(num):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        write_png(root / ("Effusion", "No Finding")[number % 2] / f"{number}.png", pixels)
    return root


# ---- files

@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("line", "delimiter"), [("sep=,", ","), ("sep=;", ";"), ('"sep=;"', ";"), ("SEP=\t", "\t"), ("sep=|", "|"),
                                                 ("sep=,,,", ",")])
def test_the_first_line_that_excel_understands_says_the_delimiter(tmp_path: Path, mark: str, line: str, delimiter: str) -> None:
    rows = [delimiter.join(cells) for cells in (("file_name", "findings"), ("a.png", "Mass"))]
    (tmp_path / "t.csv").write_text(mark + "\r\n".join([line, *rows]) + "\r\n", encoding="utf-8")
    table = read_table(tmp_path / "t.csv")
    assert table.columns == ("file_name", "findings") and table.rows[0].number == 2
    assert dict(table.rows[0].cells) == {"file_name": "a.png", "findings": "Mass"}


def test_a_recipe_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    plain = load_recipe("edm-32").to_toml()
    (tmp_path / "mine.toml").write_text(plain, encoding="utf-8-sig")
    assert load_recipe(tmp_path / "mine.toml").to_toml() == plain


@pytest.mark.parametrize("value", ['"false"', '"true"', "0", "null", "[]"])
def test_a_switch_of_dataset_json_is_true_or_false_and_nothing_else(tmp_path: Path, value: str) -> None:
    write_png(tmp_path / "a.png", np.eye(8, dtype=np.uint8))
    (tmp_path / "metadata.csv").write_text("file_name,findings\na.png,Mass\n")
    (tmp_path / "dataset.json").write_text(f'{{"synthetic": {value}}}')
    with pytest.raises(InputError, match=r"dataset\.json: synthetic is .*; write true or false, without quotation marks"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"synthetic": false}')
    assert read_dataset(tmp_path).studies[0].origin == "real"


# ---- sources that hold earlier results

def test_earlier_results_among_the_sources_are_passed_over_with_a_note(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "images")
    first = folder.ingest(source, source / "Effusion/ds")
    assert len(first) == 6
    (source / "Effusion/ds/synthorax.json").unlink()  # made before folders were claimed
    folder.ingest(source, source / "set")
    made = folder.ingest(source, tmp_path / "out")
    assert len(made) == 6
    notes = (made.path / "notes.csv").read_text()
    assert "the folder 'Effusion/ds' holds a result of Synthorax" in notes and "the folder 'set' holds a result" in notes
    assert len(folder.ingest(source, source / "set")) == 6  # the same command again finds its result


def test_a_folder_of_nothing_but_results_says_so(tmp_path: Path) -> None:
    folder.ingest(class_folders(tmp_path / "images"), tmp_path / "sets/a")
    for adapter in ("", "folder"):
        with pytest.raises(InputError, match="the folder 'a' holds a result of Synthorax and was passed over; name that folder itself"):
            data.ingest(tmp_path / "sets", adapter=adapter, out=tmp_path / "out")


def test_a_dataset_folder_of_someone_else_is_a_source(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "images")
    (source / "Effusion/dataset.json").write_text('{"name": "mine"}')
    assert len(folder.ingest(source, tmp_path / "out")) == 6


# ---- DICOM

def test_images_with_unusable_windows_are_taken_over_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    for name, header in (("a", {}), ("b", {"WindowCenter": 0, "WindowWidth": 0}), ("c", FULL12)):
        dicom_file(tmp_path / "pacs" / name, RAMP12, bits=12, SOPInstanceUID=f"2.25.{ord(name)}", **header)
    made = dicom.ingest(tmp_path / "pacs", tmp_path / "out", patient_per_image=True)
    assert len(made) == 3
    assert (made.path / "notes.csv").read_text() == (
        "row,file_name,reason\n2,,shown by percentiles 0.5 to 99.5; unusable: the window 0/0 LINEAR\n")


def test_a_dicom_file_called_png_and_other_bad_files_never_end_an_ingest(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "images", num=12)
    dicom_file(source / "Effusion/0.png", RAMP12, bits=12, **FULL12)
    (source / "Effusion/2.png").write_bytes(b"")
    (source / "Effusion/4.png").write_bytes((source / "Effusion/6.png").read_bytes()[:50])
    (source / "Effusion/8.png").unlink()
    (source / "Effusion/8.png").mkdir()
    made = folder.ingest(source, tmp_path / "out")
    assert len(made) == 9 and (made.path / "rejects.csv").read_text().count("\n") == 3
    shown = [study for study in made.studies if study.file_name.endswith("_0.png")]
    assert read_image(made.path / shown[0].file_name).dtype == np.uint16


@pytest.mark.parametrize(("age", "told"), [("89", 89), ("90", 90), ("97", 90), ("103Y", 90), ("0.5", 0.5)])
def test_ages_above_89_are_written_as_90(tmp_path: Path, age: str, told: float) -> None:
    write_png(tmp_path / "images/a.png", np.eye(8, dtype=np.uint8))
    (tmp_path / "images/metadata.csv").write_text(f"file_name,findings,age\na.png,Mass,{age}\n")
    made = folder.ingest(tmp_path / "images", tmp_path / "out")
    assert made.studies[0].age_years == read_dataset(tmp_path / "out").studies[0].age_years == told


# ---- what is told

def test_ingest_and_export_tell_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    times = iter(range(0, 10_000, 20))  # every look at the clock is 20 seconds later
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    made = data.ingest(class_folders(tmp_path / "images"), out=tmp_path / "out")
    assert "ingest: 50%" in capsys.readouterr().err
    synthesis.export(made, format="png", out=tmp_path / "png")
    assert "export: 50%" in capsys.readouterr().err


def test_the_sizes_that_help_states_are_those_that_prepare_takes() -> None:
    for size, usable in ((SIZES_PX[0] - 1, False), (SIZES_PX[0], True), (SIZES_PX[1], True), (SIZES_PX[1] + 1, False)):
        done = CliRunner().invoke(app, ["prepare", "nothing", "--size", str(size), "--out", "out"])
        assert (isinstance(done.exception, InputError), done.exit_code) == ((True, 1) if usable else (False, 2))


def test_a_run_does_not_tell_the_name_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ward-3.hospital.example")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.1700000000.ward-3.hospital.example.7.0").write_bytes(b"")
    train_here(smallest("diffusion", "train.steps=1"), tmp_path)
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2 and not any("hospital" in name for name in names), names
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] >= 0
