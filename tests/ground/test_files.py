"""Files are whole or absent, follow the umask, and any changed byte is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from synthorax.errors import InputError, SynthoraxError
from synthorax.files import read_with_digest, remove_temporaries, write_atomic, write_json, write_with_digest
from synthorax.folders import only_user
from synthorax.protocols import as_model
from synthorax.run import read_spec, save_model, weights_digest
from trainings import during_write, fresh_objective, in_new_process, killed_when, smallest


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_mode_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_with_digest(tmp_path / "weights", b"content")
    finally:
        os.umask(before)
    for name in ("weights", "weights.sha256"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_with_digest(path, b"seven")
    assert read_with_digest(path) == b"seven"
    for file in (path, tmp_path / "weights.sha256"):
        good = file.read_bytes()
        for position in range(len(good.strip())):
            for change in (0x01, 0x80):
                file.write_bytes(good[:position] + bytes([good[position] ^ change]) + good[position + 1:])
                with pytest.raises(InputError, match="SHA-256"):
                    read_with_digest(path)
        file.write_bytes(good)
    path.write_bytes(b"seve")
    with pytest.raises(InputError, match="SHA-256"):
        read_with_digest(path)


def test_the_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights: cannot be read"):
        read_with_digest(tmp_path / "weights")
    (tmp_path / "weights").write_bytes(b"content")
    with pytest.raises(InputError, match=r"weights\.sha256: cannot be read"):
        read_with_digest(tmp_path / "weights")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "facts.json", {"value": float("nan")})
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "facts.json", 3)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
    assert '"value": 1' in (tmp_path / "facts.json").read_text()


def rewrite_for_ever(path: Path) -> None:
    number = 0
    while True:
        number = (number + 1) % 256
        write_atomic(path, bytes([number]) * 3_000_000)


def test_a_file_is_whole_at_every_moment_and_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "big"

    def is_whole() -> bool:
        content = path.read_bytes()
        return len(content) == 3_000_000 and content == content[:1] * 3_000_000

    write_atomic(path, bytes(3_000_000))
    for _ in range(3):
        moment = during_write(tmp_path)
        writer = in_new_process(rewrite_for_ever, path)
        assert all(is_whole() for _ in range(150))
        assert killed_when(writer, moment)
        assert is_whole()
        remove_temporaries(tmp_path)
    assert [left.name for left in tmp_path.iterdir()] == ["big"]


def test_a_saved_model_is_read_back_and_refused_when_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = fresh_objective(smallest("diffusion")).model
    spec = as_model(model).spec
    save_model(path, model, spec=spec, facts={"steps": 3})
    found, facts = read_spec(path)
    assert (found.family, found.image_size, found.findings, found.conditions) == (
        "diffusion", 8, ("Effusion", "Mass"), ("attributes", "labels", "lesions", "mask", "text"))
    assert facts == {"steps": 3}
    digest = weights_digest(path)
    save_model(path, model, spec=spec, facts={"steps": 3})
    assert weights_digest(path) == digest, "the same model has the same digest"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="SHA-256"):
        read_spec(path)


@pytest.mark.parametrize(("content", "message"), [(b"no tensors here", "not a safetensors file"),
                                                  (save({"a": torch.zeros(1)}), "without a Synthorax model description")])
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_with_digest(tmp_path / "model.safetensors", content)
    with pytest.raises(InputError, match=message):
        read_spec(tmp_path / "model.safetensors")


def hold(folder: Path) -> None:
    with only_user(folder):
        (folder / "held").touch()
        while True:
            pass


def test_one_user_at_a_time_and_a_killed_user_does_not_block(tmp_path: Path) -> None:
    holder = in_new_process(hold, tmp_path)
    while not (tmp_path / "held").exists():
        pass
    with pytest.raises(SynthoraxError, match="in use by another process"), only_user(tmp_path):
        pass
    assert killed_when(holder, lambda: True)
    with only_user(tmp_path):
        pass
