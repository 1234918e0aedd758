"""The bench against other libraries at the smallest size: every line is there, and says what was timed."""

from __future__ import annotations

import importlib.util
import json
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench" / "studies"


def test_every_contender_is_timed_and_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import against_peers

    arguments = ["--out", str(tmp_path), "--size", "8", "--channels", "8", "--multipliers", "1", "2", "--batch", "2", "--steps", "2",
                 "--peer-steps", "2", "--rounds", "2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["against_peers.py", *arguments])
    assert against_peers.main() == 0
    record = json.loads((tmp_path / "peers.json").read_text())
    there = {name for name in ("diffusers", "monai") if importlib.util.find_spec(name)}
    assert set(record["parameters"]) == {"ours", *there}
    assert set(record["not_installed"]) == {"diffusers", "monai"} - there
    assert max(record["parameters"].values()) < 1.3 * min(record["parameters"].values())  # the same network
    lines = (tmp_path / "peers.md").read_text()
    for what in against_peers.WHAT:
        rows = [row for row in record["rows"] if row["what"] == what]
        assert rows[0]["library"] == "ours"
        assert rows[0]["ratio"] == [1, 1, 1]
        assert {row["library"] for row in rows} == {"ours", *there} - ({"monai"} if what == "one image" else set())
        assert all(0 < row["shortest_ms"] <= row["median_ms"] for row in rows)
    for name in record["not_installed"]:
        assert f"not installed: {name}" in lines


def test_what_takes_longer_has_the_larger_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from against_peers import Contender, timed

    ways = [Contender(what="network call", library=name, precision="fp32", layout="own", run=lambda length=length: time.sleep(length))
            for name, length in (("ours", 0.01), ("other", 0.03))]
    first, second = timed(ways, Namespace(clock="wall", rounds=3), device=torch.device("cpu"))
    assert first["ratio"][0] == 1
    assert 1.3 < second["ratio"][0] < 10
