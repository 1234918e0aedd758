"""Threads: a training finds the fastest number by measurement, idle threads do not spin, and what a user says counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synthorax import threads
from synthorax.engine import _bf16, started
from synthorax.errors import UsageError
from synthorax.threads import AGAIN_SECONDS, MAX_THREADS, WAITING, Pace, let_idle_threads_sleep
from synthorax.training.checkpoint import Position, load_checkpoint
from synthorax.training.loop import train
from trainings import fresh_objective, smallest, toy_images

Machine = Callable[[int], float]
"""Seconds of a step by the number of threads."""


def idle(count: int) -> float:
    return 0.4 / min(count, 8) + 0.01


def crowded(count: int) -> float:
    """Beside another busy process every barrier waits for a thread that has no core."""
    return 0.4 * (1 + (count - 1) * 3)


def run(pace: Pace, machine: Machine, *, seconds: float) -> float:
    """Train for some time; returns the part of it that went to another number of threads than the one chosen in the end."""
    spent: dict[int, float] = {}
    while sum(spent.values()) < seconds:
        took = machine(pace.threads)
        spent[pace.threads] = spent.get(pace.threads, 0.0) + took
        pace.step_took(took)
    return 1 - spent.get(pace.threads, 0.0) / sum(spent.values())


@pytest.mark.parametrize(("machine", "cores", "best"), [(idle, 8, 8), (idle, 6, 6), (idle, 64, 8), (crowded, 2, 1), (crowded, 16, 1),
                                                        (lambda count: 0.3, 4, 1), (lambda count: 30.0 / count, 2, 2)])
def test_the_fastest_number_is_found_soon(machine: Machine, cores: int, best: int) -> None:
    set_to: list[int] = []
    pace = Pace(cores, apply=set_to.append)
    assert set_to == [cores]
    run(pace, machine, seconds=150.0)
    assert pace.threads == set_to[-1] == best and not pace.trying
    before = len(set_to)
    run(pace, machine, seconds=AGAIN_SECONDS / 2)
    assert len(set_to) == before, "a machine that stays as it is is left alone"


def test_it_is_measured_again_when_steps_take_twice_as_long_and_every_ten_minutes() -> None:
    pace = Pace(4, apply=lambda count: None)
    run(pace, idle, seconds=20.0)
    assert pace.threads == 4
    run(pace, lambda count: 1.5 * idle(count), seconds=20.0)
    assert pace.threads == 4, "a little slower is no reason"
    run(pace, crowded, seconds=60.0)
    assert pace.threads == 1
    assert run(pace, idle, seconds=AGAIN_SECONDS + 60.0) > 0.5 and pace.threads == 4, "the others have left"


def test_going_on_begins_with_the_number_that_was_chosen_before() -> None:
    set_to: list[int] = []
    run(Pace(4, apply=set_to.append, threads=2), idle, seconds=20.0)
    assert set_to == [2]
    Pace(2, apply=set_to.append, threads=16)
    assert set_to == [2, 2], "another machine has no sixteen"


def test_a_training_keeps_its_choice_with_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TRIAL_SECONDS", 0.02)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = smallest("diffusion", "train.steps=10", "train.checkpoint_every=10")
    before = torch.get_num_threads()
    try:
        with started(device="cpu", precision="fp32") as engine:
            engine = replace(engine, most_threads=2)  # also where the tests run on one core
            train(fresh_objective(recipe), toy_images(recipe.model.image_size), recipe.train, engine=engine, folder=tmp_path)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        chosen = [line["threads"] for line in lines if "threads" in line]
        position, _ = load_checkpoint(tmp_path / "checkpoints", modules={}, optimizers={})
        assert chosen and position.threads == chosen[-1] == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert Position().threads == 0


@pytest.mark.parametrize(("asked", "variable", "counts"), [(3, None, 3), (None, "2", 2), (1, "2", 1), (None, "2,1", 2)])
def test_what_a_user_says_counts_and_is_not_measured(asked: int | None, variable: str | None, counts: int,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    try:
        with started(device="cpu", threads=asked) as engine:
            assert torch.get_num_threads() == counts and engine.pace(0) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "variable"), [(MAX_THREADS + 1, ""), (100_000, ""), (0, ""), (-1, ""), (None, "100000")])
def test_numbers_that_no_machine_has_use_for_are_refused(asked: int | None, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with pytest.raises(UsageError, match=f"choose from 1 to {MAX_THREADS}"), started(device="cpu", threads=asked):
        pass


def test_idle_threads_sleep_unless_the_user_has_configured_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WAITING, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    let_idle_threads_sleep()
    assert {name: os.environ.get(name) for name in WAITING} == WAITING
    for name in WAITING:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_idle_threads_sleep()
    assert not WAITING.keys() & os.environ.keys()


def test_importing_the_package_says_so_before_torch_is_loaded() -> None:
    program = "import os, sys, synthorax; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    free = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_WAIT_POLICY")}
    told = subprocess.run([sys.executable, "-c", program], env=free, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", WAITING["GOMP_SPINCOUNT"]]


@pytest.mark.parametrize(("limits", "fast"), [({}, True), ({"ONEDNN_MAX_CPU_ISA": "avx2"}, False), ({"DNNL_MAX_CPU_ISA": "AVX2"}, False),
                                              ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
                                              ({"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}, True)])
def test_bf16_is_not_used_where_its_instructions_are_switched_off(limits: dict[str, str], fast: bool,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthorax.engine._cpuinfo", lambda: "flags : avx512f avx512_bf16")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    assert _bf16(torch.device("cpu")) is fast
