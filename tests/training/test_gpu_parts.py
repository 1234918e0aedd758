"""Images and trainings in parts: the same bytes come back, damage is noticed, and a training goes on there as it would have here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import synthorax as sx
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.run import Run
from trainings import digests

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench" / "release"
TINY = ["model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.batch_size=2", "train.checkpoint_every=2", "train.log_every=1", "train.sample_every=0",
        "train.precision=fp32", "train.ema_snapshots=2", "train.steps=3"]
NEEDED = ("pillow", "safetensors", "filelock", "pydantic", "tomli-w")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_parts

    return gpu_parts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    return sx.prepare(write_phantom_dataset(folder / "phantom", num=30, size=32, seed=0), size=32, out=folder / "prepared")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_come_back_bit_for_bit(parts: ModuleType, dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (5, 12, 12), dtype=dtype, endpoint=True)
    np.save(tmp_path / "images.npy", images)
    content = (tmp_path / "images.npy").read_bytes()
    assert parts.images_back(parts.images_packed(content)) == content


def test_a_folder_comes_back_bit_for_bit_in_any_parts(parts: ModuleType, prepared: Prepared, tmp_path: Path) -> None:
    for part_bytes in (1000, 7919, 10**9):
        told = parts.pack(prepared.path, tmp_path / "parts", part_bytes=part_bytes)
        sizes = [path.stat().st_size for path in (tmp_path / "parts").iterdir()]
        assert len(sizes) == told["parts"] == told["written"] and max(sizes) <= part_bytes
        parts.join(tmp_path / "parts", tmp_path / "back")
        assert digests(tmp_path / "back") == digests(prepared.path)
    assert Prepared.load(tmp_path / "back").digest == prepared.digest


def test_groups_together_are_the_whole_and_one_alone_is_refused(parts: ModuleType, prepared: Prepared, tmp_path: Path) -> None:
    parts.pack(prepared.path, tmp_path / "whole", part_bytes=9000)
    total, groups = len(list((tmp_path / "whole").iterdir())), 0
    while groups * 2 < total:
        groups += 1
        parts.pack(prepared.path, tmp_path / "out", part_bytes=9000, wanted=slice(2 * groups - 2, 2 * groups))
        assert 1 <= len(list((tmp_path / "out").iterdir())) <= 2
        (tmp_path / "here").mkdir(exist_ok=True)
        if groups == 2:
            with pytest.raises(SystemExit, match="missing part-002"):
                parts.join(tmp_path / "here", tmp_path / "back")
        for path in (tmp_path / "out").iterdir():
            (tmp_path / "here" / path.name).write_bytes(path.read_bytes())
    assert groups > 1 and digests(tmp_path / "here") == digests(tmp_path / "whole")
    parts.join(tmp_path / "here", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(prepared.path)


def test_damaged_and_missing_parts_are_refused_and_the_folder_stays(parts: ModuleType, prepared: Prepared, tmp_path: Path) -> None:
    parts.pack(prepared.path, tmp_path / "parts", part_bytes=9000)
    (tmp_path / "back").mkdir()
    (tmp_path / "back/mine.txt").write_text("mine")
    first = min((tmp_path / "parts").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SystemExit, match="damaged"):
        parts.join(tmp_path / "parts", tmp_path / "back")
    with pytest.raises(SystemExit, match="or none"):
        parts.join(tmp_path / "back", tmp_path / "elsewhere")
    assert (tmp_path / "back/mine.txt").read_text() == "mine"


def test_a_training_that_travels_ends_like_one_that_stays(parts: ModuleType, prepared: Prepared, tmp_path: Path) -> None:
    """Trained on in a Python that may import only what gpu_train.sh carries."""
    sx.train("edm-64", prepared, out=tmp_path / "stays/a", overrides=TINY, seed=0, device="cpu", threads=1)
    program = f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
sys.modules |= dict.fromkeys(("scipy", "sklearn", "pydicom", "pylibjpeg", "typer", "rich", "matplotlib", "tensorboard", "pandas"))
import stages, gpu_parts
stages.STAGES = (stages.Stage(name="a", recipe="edm-64", share=1.0, overrides=tuple({TINY!r})),)
sys.exit(gpu_parts.main(sys.argv[1:]))
"""
    home = tmp_path
    for call in range(3):
        away = tmp_path / f"away-{call}"
        parts.pack(prepared.path, away / "images", part_bytes=20_000)
        parts.join(away / "images", away / "prepared")
        if call:
            parts.pack(home / "a", away / "state", part_bytes=50_000)
            parts.join(away / "state", away / "a")
        done = subprocess.run([sys.executable, "-c", program, "train", "a", "--prepared", away / "prepared", "--run", away / "a",
                               "--hours", "1", "--minutes", "0"], capture_output=True, text=True,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
        assert done.returncode == (75, 75, 0)[call], done.stderr
        assert "tensorboard is not installed" in done.stderr
        home = away
    for pattern in ("model.safetensors", "snapshot-*.safetensors"):  # checkpoints hold the clock besides
        assert digests(home / "a", pattern) == digests(tmp_path / "stays/a", pattern) != {}
    assert Run(path=home / "a").finished


def test_of_a_training_only_what_it_goes_on_from_travels(parts: ModuleType, prepared: Prepared, tmp_path: Path) -> None:
    sx.train("edm-64", prepared, out=tmp_path / "a", overrides=[*TINY, "train.steps=4"], seed=0, device="cpu", threads=1)
    assert len(list((tmp_path / "a/checkpoints").glob("*.safetensors"))) == 2 and (tmp_path / "a/tensorboard").exists()
    parts.pack(tmp_path / "a", tmp_path / "parts", part_bytes=10**8)
    parts.join(tmp_path / "parts", tmp_path / "b")
    assert [path.name for path in (tmp_path / "b/checkpoints").glob("*.safetensors")] == ["checkpoint-00000004.safetensors"]
    assert not (tmp_path / "b/tensorboard").exists() and (tmp_path / "b/metrics.jsonl").exists()


def test_the_script_says_what_it_needs_and_how_it_is_called(tmp_path: Path) -> None:
    script = (BENCH / "gpu_train.sh").read_text()
    listed = set(re.search(r"packages=\((.*)\)", script)[1].split())  # type: ignore[index]
    assert set(NEEDED) <= listed
    shown = subprocess.run(["bash", str(BENCH / "gpu_train.sh")], capture_output=True, text=True)
    assert shown.returncode == 2
    for command in ("wheels", "send", "train", "more", "receive"):
        assert f"gpu_train.sh {command}" in shown.stderr


def test_the_script_sends_and_receives(prepared: Prepared, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    (copy / "bench" / "release").mkdir(parents=True)
    for name in ("gpu_train.sh", "gpu_parts.py"):
        (copy / "bench" / "release" / name).write_bytes((BENCH / name).read_bytes())
    base = tmp_path / "base"
    base.mkdir()
    (base / "prepared").symlink_to(prepared.path)
    sx.train("edm-64", prepared, out=base / "a", overrides=[*TINY, "train.steps=2"], seed=0, device="cpu", threads=1)
    before = digests(base / "a", "*.safetensors")
    environment = {**os.environ, "PYTHON": sys.executable, "IMAGES_MIB": "0.01", "STATE_MIB": "0.05"}
    command = ["bash", str(copy / "bench/release/gpu_train.sh")]
    subprocess.run([*command, "send", str(base), "a"], env=environment, check=True, capture_output=True)
    assert len(list((copy / ".gpu/images").iterdir())) > 1 and len(list((copy / ".gpu/state").iterdir())) > 1
    halves = [tmp_path / "first", tmp_path / "second"]
    for number, path in enumerate(sorted((copy / ".gpu/state").iterdir())):
        halves[number % 2].mkdir(exist_ok=True)
        path.rename(halves[number % 2] / path.name)
    (base / "a/model.safetensors").unlink()
    subprocess.run([*command, "receive", *map(str, halves), str(base), "a"], env=environment, check=True, capture_output=True)
    assert digests(base / "a", "*.safetensors") == before
