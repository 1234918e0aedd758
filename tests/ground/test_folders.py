"""Folders: a verb writes only to what is empty or its own, and nothing of anybody else's is deleted, replaced or lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from synthorax.errors import InputError, SynthoraxError
from synthorax.folders import CLAIM_NAME, WORK_NAME, claimed, file_stamp, stamps, write_once
from trainings import in_new_process

INPUTS = {"images": "a1", "seed": 0}


def work(out: Path, *, seed: int = 0, names: tuple[str, ...] = ("images/0.png", "metadata.csv")) -> bool:
    """What a verb does: its result in a folder, unless that is there; whether it was."""
    with claimed(out, kind="a test", inputs=INPUTS | {"seed": seed}) as folder:
        if not folder.done:
            for name in names:
                (folder.work / name).parent.mkdir(exist_ok=True)
                (folder.work / name).write_text(str(seed))
            folder.deliver(last=["metadata.csv"])
        return folder.done


def listed(folder: Path) -> list[str]:
    """Every file below, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def hang(out: Path, seed: int = 0) -> None:
    """Begin, and never end."""
    with claimed(out, kind="a test", inputs=INPUTS | {"seed": seed}) as folder:
        (folder.work / "scratch").write_text("half")
        signal.pause()


def killed_in_work(out: Path) -> None:
    """A call that was killed while it worked."""
    process = in_new_process(hang, out)
    while not (out / WORK_NAME / "scratch").exists():
        process.join(0.02)
        assert process.is_alive()
    process.kill()
    process.join()


def test_absent_and_empty_folders_are_filled_and_the_result_is_found_again(tmp_path: Path) -> None:
    assert not work(tmp_path / "new" / "out")
    assert work(tmp_path / "new" / "out")
    (tmp_path / "empty" / "lost+found").mkdir(parents=True)  # as a fresh disk has it
    (tmp_path / "empty" / "images").mkdir()
    assert not work(tmp_path / "empty")
    assert listed(tmp_path / "empty") == ["images/0.png", "metadata.csv", CLAIM_NAME]


def test_links_and_mount_points_are_as_good_as_any_folder(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for out in (tmp_path / "link", small_disk):
        assert not work(out)
        assert work(out)
        assert out.is_symlink() or os.path.ismount(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "elsewhere", "link"], "nothing is left beside the folder"


@pytest.mark.parametrize("what", ["foreign files", "a foreign hidden folder", "another claim", "a foreign synthorax.json"])
def test_what_is_not_ours_is_refused_and_stays_as_it_is(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / WORK_NAME).mkdir(parents=True)
    if what == "another claim":
        work(out := tmp_path / "other", seed=1)
    elif what == "a foreign synthorax.json":
        (out / CLAIM_NAME).write_text('{"mine": 1}')
    else:
        (out / (WORK_NAME if what == "a foreign hidden folder" else "") / "scan.dcm").write_text("mine")
    before = {name: (out / name).read_bytes() for name in listed(out)}
    with pytest.raises(InputError, match="holds a test with other seed" if what == "another claim" else "is not empty") as refused:
        work(out)
    assert "--out" in refused.value.remedy
    assert {name: (out / name).read_bytes() for name in listed(out)} == before


def test_what_can_be_no_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name, said in (("file", "is a file"), ("file/out", "lies below .*file"), ("link", "link to nothing"),
                      ("x" * 300, "too long")):
        out = tmp_path / name
        with pytest.raises(InputError, match=said):
            work(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_second_process_is_refused_and_damages_nothing(tmp_path: Path) -> None:
    process = in_new_process(hang, tmp_path / "out")
    try:
        while not (tmp_path / "out" / WORK_NAME / "scratch").exists():
            process.join(0.02)
            assert process.is_alive()
        for seed in (0, 1):
            with pytest.raises(SynthoraxError, match="in use by another process"):
                work(tmp_path / "out", seed=seed)
        assert (tmp_path / "out" / WORK_NAME / "scratch").exists()
    finally:
        process.kill()
        process.join()


def test_what_a_killed_call_left_is_gone_after_the_next_whatever_its_inputs(tmp_path: Path) -> None:
    for seed in (0, 1):
        killed_in_work(tmp_path / str(seed))
        assert not work(tmp_path / str(seed), seed=seed), "nothing was delivered, so nothing binds"
        assert WORK_NAME not in [path.name for path in (tmp_path / str(seed)).iterdir()]


def test_a_killed_delivery_is_finished_by_the_next_call(tmp_path: Path) -> None:
    killed_in_work(tmp_path)
    (tmp_path / WORK_NAME / "scratch").rename(tmp_path / "scratch")
    (tmp_path / WORK_NAME / "metadata.csv").write_text("0")
    claim = (tmp_path / CLAIM_NAME).read_text().rstrip().removesuffix("}") + ', "delivering": ["scratch", "metadata.csv"]}'
    (tmp_path / CLAIM_NAME).write_text(claim)
    assert work(tmp_path)
    assert listed(tmp_path) == ["metadata.csv", "scratch", CLAIM_NAME]


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), OSError("disk full")])
def test_failed_work_leaves_no_trace(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "mine"):
        with pytest.raises(type(error)), claimed(out, kind="a test", inputs=INPUTS) as folder:
            (folder.work / "half").write_text("half")
            raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_files_that_come_while_a_verb_works_are_kept(tmp_path: Path) -> None:
    with claimed(tmp_path, kind="a test", inputs=INPUTS) as folder:
        (folder.work / "metadata.csv").write_text("ours")
        (tmp_path / "notes.txt").write_text("mine")
        folder.deliver()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    out = tmp_path / "again"
    with pytest.raises(InputError, match=r"'metadata\.csv' has come to be there"), claimed(out, kind="a test", inputs=INPUTS) as folder:
        (folder.work / "metadata.csv").write_text("ours")
        (out / "metadata.csv").write_text("mine")
        folder.deliver()
    assert (out / "metadata.csv").read_text() == "mine"


def test_parts_are_remembered_with_their_inputs(tmp_path: Path) -> None:
    with claimed(tmp_path, kind="a report", inputs=INPUTS) as folder:
        assert not folder.has("fidelity", {"features": "a"})
        (tmp_path / "report.json").write_text("{}")
        folder.add("fidelity", {"features": "a"})
        assert folder.has("fidelity", {"features": "a"})
        with pytest.raises(InputError, match="holds fidelity with other features"):
            folder.has("fidelity", {"features": "b"})


def test_drafts_bind_nobody_and_known_work_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(InputError, match="is not empty"), claimed(tmp_path, kind="a test", inputs=INPUTS, drafts=("config.toml",)):
        pass
    with claimed(tmp_path, kind="a test", inputs=INPUTS, take_over=True):
        pass
    with claimed(tmp_path, kind="a test", inputs=INPUTS | {"seed": 1}, drafts=("config.toml",)) as folder:
        assert not folder.again
    (tmp_path / "weights").write_text("x")
    with pytest.raises(InputError, match="other seed"), claimed(tmp_path, kind="a test", inputs=INPUTS, drafts=("config.toml",)):
        pass


def test_a_file_is_written_once(tmp_path: Path) -> None:
    write_once(tmp_path / "new" / "plan.csv", b"a")
    write_once(tmp_path / "new" / "plan.csv", b"a")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for path in (tmp_path / "new" / "plan.csv", tmp_path / "link.csv", tmp_path / "new", tmp_path / "new" / "plan.csv" / "x"):
        with pytest.raises(InputError, match=r"another content|is a folder|which is a file|is a file"):
            write_once(path, b"b")
    assert (tmp_path / "new" / "plan.csv").read_bytes() == b"a"


def test_a_folder_shows_that_a_label_or_an_image_was_changed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"a")
    (tmp_path / "images" / "labels.csv").write_text("Mass")
    first = stamps(tmp_path / "images", without=tmp_path / "images" / "out")
    work(tmp_path / "images" / "out")
    os.utime(tmp_path / "images" / "labels.csv", (0, 0))
    assert stamps(tmp_path / "images", without=tmp_path / "images" / "out") == first
    (tmp_path / "images" / "labels.csv").write_text("Fine")
    changed = stamps(tmp_path / "images", without=tmp_path / "images" / "out")
    assert changed["labels"] != first["labels"] and changed["images"] == first["images"]
    os.utime(tmp_path / "images" / "0.png", (0, 0))
    assert file_stamp(tmp_path / "images" / "0.png") == "1 0"
