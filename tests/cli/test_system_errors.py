"""A full disk, a place that cannot be written to, too many open files: one sentence with file and remedy, and the same command goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthorax as sx
from calls import calls
from synthorax.cli.calls import UNFORESEEN, told_on_stderr
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import explain_os_error
from synthorax.files import write_atomic

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and mounts of POSIX")
TINY = ("model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, false]", "model.embedding=16",
        "train.steps=2", "train.batch_size=4", "train.sample_every=0", "sample.steps=2")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, prepared, with a finished run and what that made."""
    folder = tmp_path_factory.mktemp("made")
    write_phantom_dataset(folder / "images", num=40, size=32, seed=0, prevalence={"Pneumothorax": 0.4})
    sx.prepare(folder / "images", size=32, out=folder / "prepared")
    run = sx.train("edm-64", folder / "prepared", out=folder / "run", overrides=TINY, threads=1)
    sx.generate(run, sx.Request(num=4), out=folder / "synthetic", threads=1)
    return folder


def writing(made: Path, out: Path) -> list[list[object]]:
    """A call of each verb that writes without long work before, into a folder of its own in `out`."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    return [["ingest", made / "images", "--adapter", "folder", "--label-table", made / "images/metadata.csv", "--out", out / "ingest"],
            ["prepare", made / "images", "--size", 32, "--out", out / "prepare"],
            ["train", "edm-64", "--data", made / "prepared", "--out", out / "train", "--threads", 1, *settings],
            ["plan", made / "prepared", "--count", "Pneumothorax=9", "--out", out / "plan" / "plan.csv"],
            ["generate", made / "run", "--num", 2, "--out", out / "generate", "--threads", 1],
            ["export", made / "synthetic", "--format", "png", "--out", out / "export"],
            ["export", made / "synthetic", "--format", "dicom", "--out", out / "dicom"],
            ["drift", made / "prepared", made / "prepared", "--features", "radiomics", "--out", out / "drift", "--threads", 1]]


def test_where_there_is_no_room_every_verb_says_so_and_goes_on_once_there_is(outputs: Path, tmp_path: Path) -> None:
    refused = calls(writing(outputs, tmp_path), file_limit=200)
    for words, call in zip(writing(outputs, tmp_path), refused, strict=True):
        assert call.explained and call.code == 3, (words[0], call)
        assert "larger than this disk or this account allows" in call.said and str(tmp_path) in call.said, (words[0], call)
    for words, call in zip(writing(outputs, tmp_path), calls(writing(outputs, tmp_path)), strict=True):
        assert call.code == 0, (words[0], call)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_named_and_the_same_command_goes_on_once_there_is_room(outputs: Path, mounted: Path) -> None:
    (mounted / "full").write_bytes(bytes(56 * 1024))
    cases = writing(outputs, mounted)
    refused = calls(cases)
    for words, call in zip(cases, refused, strict=True):
        assert call.explained, (words[0], call)
        assert call.code == 0 or (call.code == 3 and "no space left" in call.said and str(mounted) in call.said), (words[0], call)
    assert sum(call.code == 3 for call in refused) > 3
    subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
    assert [call.code for call in calls(cases)] == [0] * len(cases)


def test_a_disk_that_cannot_be_written_to_is_named(outputs: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    cases = writing(outputs, mounted)
    for words, call in zip(cases, calls(cases), strict=True):
        assert call.explained and call.code == 3 and "cannot be written to" in call.said, (words[0], call)


def test_an_out_that_can_be_no_folder_is_named(outputs: Path, tmp_path: Path) -> None:
    """A file, something below a file, a link to nothing: refused, and what lies there is still there."""
    cases = []
    for kind in ("file", "below", "link"):
        for number, words in enumerate(writing(outputs, tmp_path)):
            place = tmp_path / f"{kind}{number}"
            if kind == "link":
                place.symlink_to(tmp_path / "nothing" / f"at all {number}")
            else:
                place.write_text("mine")
            place = place / "below" if kind == "below" else place
            words[words.index("--out") + 1] = place / "plan.csv" if words[0] == "plan" else place
            cases.append(words)
    for words, call in zip(cases, calls(cases), strict=True):
        assert call.explained and call.code in (2, 3), (words, call)
        assert str(tmp_path) in call.said, (words, call)
    assert all(path.is_symlink() or path.read_text() == "mine" for path in tmp_path.iterdir())


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_has_a_sentence(number: int) -> None:
    told = explain_os_error(OSError(number, os.strerror(number), "runs/a/x"))
    assert told is not None and str(told).startswith("runs/a/x: ") and "; " in str(told) and "\n" not in str(told)
    assert told.exit_code == 3
    assert str(explain_os_error(OSError(number, os.strerror(number)), place="runs/a")).startswith("runs/a: ")


def test_what_numpy_says_of_a_full_disk_is_understood() -> None:
    assert "no space left" in str(explain_os_error(OSError("4096 requested and 0 written"), place="out"))
    assert explain_os_error(OSError("cannot identify image file")) is None


def test_writing_names_the_file_not_its_temporary(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError) as refusal:
        write_atomic(tmp_path / "x", "text")
    assert refusal.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_an_error_of_ours_keeps_its_traceback_and_says_how_to_report_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, told_on_stderr(["synthorax"]):
        raise KeyError("nobody foresaw this")
    said = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" in said and said.splitlines()[-1] == f"synthorax: {UNFORESEEN}"


@pytest.mark.parametrize(("error", "code", "said"), [
    (MemoryError(), 3, "not enough memory"), (KeyboardInterrupt(), 130, "call the same command again"),
    (OSError(errno.ENOSPC, "No space left on device"), 3, "runs/a: no space left")])
def test_errors_from_outside_are_one_line(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, told_on_stderr(["synthorax", "train", "--out", "runs/a"]):
        raise error
    line, = capsys.readouterr().err.splitlines()
    assert end.value.code == code and said in line


def test_a_result_that_cannot_be_printed_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([sys.executable, "-m", "synthorax", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 3 and result.stderr.splitlines()[0].startswith("synthorax: standard output: no space left")
