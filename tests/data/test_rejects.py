"""What was rejected is counted where the user looks, and stops the verbs above a tenth unless it is allowed."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_files import dicom as dicom_file
from synthorax.cli.app import app
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.data.rejects import Rejected, count_reasons, stop_if_too_many
from synthorax.errors import InputError
from synthorax.verbs import data


def images(folder: Path, *, num: int = 24, unreadable: int = 0) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = ["file_name,patient_id,findings"]
    for number in range(num):
        path = folder / f"images/{number}.png"
        write_png(path, np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8))
        if number < unreadable:
            path.write_bytes(b"" if number % 4 else path.read_bytes()[:60])
        rows.append(f"images/{number}.png,p{number},{('Mass', 'No Finding')[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def run(*arguments: object) -> tuple[object, str]:
    """What the verb left, an exception or None, and its stdout."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exception, done.stdout


@pytest.mark.parametrize(("lost", "accepted", "too_many"), [(4, 2, False), (5, 45, False), (5, 44, True), (20, 4, True), (10, 90, False)])
def test_more_than_a_tenth_is_too_many_but_a_handful_never_is(lost: int, accepted: int, too_many: bool) -> None:
    assert count_reasons(["is empty"] * lost, accepted=accepted).too_many is too_many


def test_reasons_are_grouped_whatever_they_name() -> None:
    reasons = ["has the same pixels as 'a.png' in row 4, which is said to be another patient",
               "cannot be decoded as PNG (broken data); copy",
               "has the same pixels as 'b.png' in row 71, which is said to be another patient"]
    found = count_reasons(reasons, ["no such image in the folder"] * 2, accepted=1)
    assert found.reasons == {"has the same pixels as …, which is said to be another patient": 2, "cannot be decoded as PNG": 1}
    assert str(found).startswith("3 of 4 images (2: has the same pixels") and "also listed: 2 (2: no such image" in str(found)
    assert str(count_reasons([], accepted=3)) == "none"
    assert Rejected.of_folder(Path("x"), {"rejected": json.loads(json.dumps(found.to_facts()))}).reasons == found.reasons


def test_ingest_tells_on_its_last_line_and_stops_above_a_tenth(tmp_path: Path) -> None:
    source = images(tmp_path / "few", unreadable=2)
    _, out = run("ingest", source, "--adapter", "folder", "--out", tmp_path / "few-set")
    last = out.strip().splitlines()[-1]
    assert last.startswith("rejected: 2 of 24 images (") and "1: cannot be decoded as PNG" in last and "few-set/rejects.csv" in last

    source = images(tmp_path / "many", unreadable=20)
    error, _ = run("ingest", source, "--adapter", "folder", "--out", tmp_path / "set")
    assert isinstance(error, InputError) and "20 of 24 images" in str(error) and "--allow-rejects" in str(error)
    assert (tmp_path / "set/rejects.csv").read_text().count("\n") == 21
    _, out = run("ingest", source, "--adapter", "folder", "--out", tmp_path / "allowed", "--allow-rejects", "--json")
    told = json.loads(out)["rejected"]
    assert (told["images"], told["of"]) == (20, 24) and sum(told["reasons"].values()) == 20
    assert told["table"] == str(tmp_path / "allowed/rejects.csv")


def test_prepare_tells_and_stops_and_the_same_command_with_the_word_uses_what_was_prepared(tmp_path: Path) -> None:
    source, out = images(tmp_path / "images", unreadable=8), tmp_path / "prepared"
    command = ("prepare", source, "--size", 16, "--out", out)
    error, _ = run(*command)
    assert isinstance(error, InputError) and "8 of 24 images (6: is empty; 2: cannot be decoded as PNG)" in str(error)
    made = (out / "images.npy").stat().st_mtime_ns
    error, text = run(*command, "--allow-rejects")
    assert error is None and text.strip().splitlines()[-1].strip().startswith("rejected: 8 of 24 images")
    assert (out / "images.npy").stat().st_mtime_ns == made
    _, text = run(*command, "--allow-rejects", "--json")
    assert json.loads(text)["rejected"]["images"] == 8


def test_second_copies_and_images_beyond_the_cap_are_reported_but_do_not_stop(tmp_path: Path) -> None:
    source = images(tmp_path / "images")
    for number in range(1, 12):  # copies under one patient
        (source / f"images/{number}.png").write_bytes((source / "images/0.png").read_bytes())
    table = source / "metadata.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join([",".join(rows[0]), *(f"{name},{'same' if row < 12 else patient},{findings}"
                                                     for row, (name, patient, findings) in enumerate(rows[1:]))]) + "\n")
    made = data.prepare(source, size=16, out=tmp_path / "prepared")
    assert (made.rejected.images, sum(made.rejected.others.values()), made.num_rejected) == (0, 11, 11)


def test_edited_settings_of_a_prepared_folder_are_noticed_and_older_folders_still_load(tmp_path: Path) -> None:
    made = data.prepare(images(tmp_path / "images"), size=16, out=tmp_path / "prepared")
    path = made.path / "prepared.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"settings": facts["settings"] | {"size": 8}}))
    with pytest.raises(InputError, match="was edited"):
        Prepared.load(made.path)
    path.write_text(json.dumps({name: value for name, value in facts.items() if name not in ("settings_digest", "rejected")}))
    older = Prepared.load(made.path)
    assert older.digest == made.digest and str(older.rejected) == "none"


def test_reports_presentations_and_other_modalities_in_an_archive_are_no_loss(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    (tmp_path / "pacs").mkdir()
    dicom_file(tmp_path / "pacs/film", ramp, bits=12)
    for number in range(9):
        dicom_file(tmp_path / f"pacs/report{number}", ramp, bits=12, Modality="SR", Rows=None)
        dicom_file(tmp_path / f"pacs/scan{number}", ramp, bits=12, Modality="CT", NumberOfFrames=40)
        (tmp_path / f"pacs/viewer{number}.exe").write_bytes(b"MZ")
    made = data.ingest(tmp_path / "pacs", adapter="dicom", out=tmp_path / "out")
    found = Rejected.of_folder(made.path, made.facts)
    assert (len(made), found.images, sum(found.others.values())) == (1, 0, 27)
    for number in range(5):
        dicom_file(tmp_path / f"pacs/cine{number}", ramp, bits=12, Modality="DX", NumberOfFrames=40)
    with pytest.raises(InputError, match="5 of 6 images"):
        data.ingest(tmp_path / "pacs", adapter="dicom", out=tmp_path / "again")


def test_a_stop_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    many = count_reasons(["is empty"] * 20, accepted=4)
    stop_if_too_many(many, at=tmp_path, allowed=True)
    with pytest.raises(InputError, match="go on with the other 4"):
        stop_if_too_many(many, at=tmp_path, allowed=False)
