"""Fixtures that several files need."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from synthorax.engine import Engine


@pytest.fixture
def engine() -> Engine:
    """One process on the CPU in float32, where results repeat to the bit."""
    return Engine(device=torch.device("cpu"), bf16=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mount point with room for one megabyte, where this user may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    yield place
    subprocess.run(["umount", place], check=True)
