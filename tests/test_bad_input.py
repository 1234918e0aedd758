"""Bad input is refused with file, row and remedy, exit code 3, and nothing half-written, all through the command line."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthorax import cli

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; returns exit code and stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["synthorax", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def films(folder: Path, *, num: int = 12, header: str = "file_name,patient_id,findings", rows: list[str] | None = None,
          encoding: str = "utf-8") -> Path:
    """A dataset folder of noise films, one patient each; every third shows a mass."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(num):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"images/{number}.png")
    default = [f"images/{number}.png,p{number},{'Mass' if number % 3 == 0 else 'No Finding'}" for number in range(num)]
    (folder / "metadata.csv").write_text("\n".join([header, *(default if rows is None else rows)]) + "\n", encoding=encoding)
    return folder


def prepare(run: Run, folder: Path, *more: object) -> tuple[int, str]:
    code, text = run("prepare", folder, "--size", 32, "--out", folder.parent / "prepared", *more)
    if code:
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        assert not left, f"half-written: {left}"
    return code, text


def bomb(path: Path, *, side: int = 10_000) -> None:
    """A small PNG that unpacks to side x side grey pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = zlib.compress(bytes((side + 1) * side), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
                     + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def test_good_films_pass(run: Run, tmp_path: Path) -> None:
    assert prepare(run, films(tmp_path / "films")) == (0, "")


def test_unknown_finding_names_row_and_the_nearest_name(run: Run, tmp_path: Path) -> None:
    rows = ["images/0.png,p0,Mass", "images/1.png,p1,Efusion"]
    code, text = prepare(run, films(tmp_path / "films", rows=rows))
    assert code == 3
    assert "metadata.csv row 3" in text and "'Efusion'" in text and "did you mean 'Effusion'?" in text


def test_own_finding_is_accepted_when_allowed(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Silicosis' if n % 2 else 'No Finding'}" for n in range(12)]
    folder = films(tmp_path / "films", rows=rows)
    assert prepare(run, folder)[0] == 3
    assert prepare(run, folder, "--allow", "Silicosis")[0] == 0


def test_missing_image_names_the_row(run: Run, tmp_path: Path) -> None:
    folder = films(tmp_path / "films")
    (folder / "images/4.png").unlink()
    code, text = prepare(run, folder)
    assert code == 3 and "row 6" in text and "images/4.png" in text


def test_duplicate_row_is_refused(run: Run, tmp_path: Path) -> None:
    rows = ["images/0.png,p0,Mass", "images/0.png,p0,Mass"]
    code, text = prepare(run, films(tmp_path / "films", rows=rows))
    assert code == 3 and "row 3" in text and "images/0.png" in text


def test_no_patient_column_needs_an_explicit_word(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{'Mass' if n % 3 == 0 else 'No Finding'}" for n in range(12)]
    folder = films(tmp_path / "films", header="file_name,findings", rows=rows)
    code, text = prepare(run, folder)
    assert code == 3 and "patient" in text
    assert prepare(run, folder, "--patient-per-film")[0] == 0


@pytest.mark.parametrize("path", ["../outside.png", "/etc/passwd", "images/../../outside.png"])
def test_path_that_leaves_the_folder_is_refused(run: Run, tmp_path: Path, path: str) -> None:
    code, text = prepare(run, films(tmp_path / "films", rows=[f"{path},p0,Mass"]))
    assert code == 3 and "row 2" in text


def test_bom_and_semicolons_are_read(run: Run, tmp_path: Path) -> None:
    folder = films(tmp_path / "films")
    table = (folder / "metadata.csv").read_text().replace(",", ";")
    (folder / "metadata.csv").write_text(table, encoding="utf-8-sig")
    assert prepare(run, folder)[0] == 0


def test_unreadable_films_are_recorded_with_their_reason(run: Run, tmp_path: Path) -> None:
    folder = films(tmp_path / "films")
    whole = (folder / "images/1.png").read_bytes()
    (folder / "images/1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/2.png").write_bytes(b"")
    (folder / "images/4.png").write_bytes(b"this is no image")
    bomb(folder / "images/5.png")
    assert (folder / "images/5.png").stat().st_size < 120_000
    assert prepare(run, folder)[0] == 0
    rejects = (tmp_path / "prepared/rejects.csv").read_text()
    for number in (1, 2, 4, 5):
        assert f"images/{number}.png,{number + 2}," in rejects


def test_nan_age_is_not_stated_and_noted(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Mass' if n % 3 == 0 else 'No Finding'},{'nan' if n == 1 else 411 if n == 2 else 50}" for n in range(12)]
    folder = films(tmp_path / "films", header="file_name,patient_id,findings,age_years", rows=rows)
    assert prepare(run, folder)[0] == 0
    assert "411" in (tmp_path / "prepared/fingerprint.json").read_text()


def test_rare_or_one_sided_findings_are_refused_by_augment(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Mass' if n < 3 else 'No Finding'}" for n in range(12)]
    folder = films(tmp_path / "few", rows=rows)
    code, text = run("augment", folder, "--finding", "Mass", "--out", tmp_path / "a")
    assert code == 3 and "Mass" in text and "5" in text
    everyone = films(tmp_path / "all", num=30, rows=[f"images/{n}.png,p{n},Mass" for n in range(30)])
    code, text = run("augment", everyone, "--finding", "Mass", "--out", tmp_path / "b")
    assert code == 3 and "lack 'Mass'" in text


def test_no_folder_and_wrong_usage(run: Run, tmp_path: Path) -> None:
    code, text = run("prepare", tmp_path / "nothing", "--out", tmp_path / "p")
    assert code == 3 and "nothing" in text
    assert run("prepare", films(tmp_path / "films"), "--split", "1,1,1", "--out", tmp_path / "p")[0] == 2
    assert run("train", "emd-64", "--data", tmp_path, "--out", tmp_path / "r")[0] in (2, 3)
    assert run("no-such-verb")[0] == 2


def test_a_refused_augmentation_leaves_nothing(run: Run, tmp_path: Path) -> None:
    folder = films(tmp_path / "films", rows=[f"images/{n}.png,p{n},{'Mass' if n < 3 else 'No Finding'}" for n in range(12)])
    assert run("augment", folder, "--finding", "Mass", "--out", tmp_path / "out")[0] == 3
    assert run("augment", folder, "--finding", "Efusion", "--out", tmp_path / "out")[0] == 3
    assert run("augment", tmp_path / "nowhere", "--finding", "Mass", "--out", tmp_path / "out")[0] == 3
    assert not (tmp_path / "out").exists()
