"""Fixtures that several files need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from command_runner import CommandRunner, command_runner
from synthorax.engine import INFERENCE, Engine

os.environ.setdefault(INFERENCE, "torch")  # tests promise PyTorch's bits, also where OpenVINO is installed


@pytest.fixture
def engine() -> Engine:
    """One process on the CPU in float32, where results repeat to the bit."""
    return Engine(device=torch.device("cpu"), bf16=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mount point with room for one megabyte, where this user may make one."""
    yield from _mounted(tmp_path, size="1m")


@pytest.fixture
def big_disk(tmp_path: Path) -> Iterator[Path]:
    """A mount point with room enough, where this user may make one."""
    yield from _mounted(tmp_path, size="256m")


def _mounted(folder: Path, *, size: str) -> Iterator[Path]:
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with everything that examples take, see `tiny_job`; made once for all processes."""
    from tiny_job import tiny_job

    base = tmp_path_factory.getbasetemp()
    return tiny_job((base if worker_id == "master" else base.parent) / "things")


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandRunner]:
    """Runs commands as somebody with an empty home."""
    home = tmp_path_factory.mktemp("home")
    with command_runner({"HOME": str(home), "SYNTHORAX_CACHE": str(home / "cache"), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}) as one:
        yield one
