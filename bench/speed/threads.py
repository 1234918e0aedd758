"""Training steps by number of threads and way of waiting, alone and beside busy processes, in turn.

  python bench/speed/threads.py --busy 0 1 4 --rounds 4 --steps 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from synthorax.engine import started
from synthorax.protocols import Condition
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.threads import WAITING, Pace

WAYS: dict[str, tuple[dict[str, str], int | None]] = {
    "two threads, as OpenMP comes": ({}, 2), "two threads, OMP_WAIT_POLICY=PASSIVE": ({"OMP_WAIT_POLICY": "PASSIVE"}, 2),
    "two threads, GOMP_SPINCOUNT=0": ({"GOMP_SPINCOUNT": "0"}, 2), "two threads, GOMP_SPINCOUNT=1000": (WAITING, 2), "one thread": ({}, 1),
    "measured, GOMP_SPINCOUNT=1000": (WAITING, None)}
"""What is set before torch is loaded, and the number of threads; None: as a training chooses it."""
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 4], help="busy processes beside")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="of each way in each round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work or None, batch=options.batch)
        return
    print("| beside | way | mean, ms | median, ms | longest, ms | processor, ms |\n|---|---|---|---|---|---|")
    for busy in options.busy:
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        workers = {name: worker(variables, threads, batch=options.batch) for name, (variables, threads) in WAYS.items()}
        took: dict[str, list[float]] = {name: [] for name in WAYS}
        spent: dict[str, float] = dict.fromkeys(WAYS, 0.0)
        for _ in range(options.rounds):
            for name, process in workers.items():
                seconds, processor = run_steps(process, options.steps)
                took[name] += seconds
                spent[name] += processor
        for name, seconds in took.items():
            numbers = (statistics.mean(seconds), statistics.median(seconds), max(seconds), spent[name] / len(seconds))
            print(f"| {busy} | {name} | {' | '.join(f'{1e3 * number:.0f}' for number in numbers)} |", flush=True)
        for process in [*workers.values(), *others]:
            process.kill()
            process.wait()


def worker(variables: dict[str, str], threads: int | None, *, batch: int) -> subprocess.Popen[str]:
    """A process that is ready to take steps; one that measures has chosen its threads."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    free |= variables or {"GOMP_SPINCOUNT": "300000"}  # what OpenMP of GCC does where nothing is set
    process = subprocess.Popen([sys.executable, __file__, "--work", str(threads or 0), "--batch", str(batch)], env=free, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    run_steps(process, 1)
    return process


def run_steps(process: subprocess.Popen[str], steps: int) -> tuple[list[float], float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    seconds, processor = json.loads(process.stdout.readline())
    return seconds, processor


def work(threads: int | None, *, batch: int) -> None:
    """Take training steps of edm-64 on noise, as many as each line of the input says."""
    with started(device="cpu", precision="fp32", threads=threads or 2):
        model = build_objective(load_recipe("edm-64"), findings=("Mass",)).players["model"]
        optimiser = torch.optim.Adam(model.parameters(), fused=True)
        images, levels = torch.randn(batch, 1, 64, 64), torch.ones(batch)
        condition = Condition.unstated(batch, num_labels=1)

        def step() -> float:
            start = time.perf_counter()
            optimiser.zero_grad()
            (model.denoise(images, levels, condition) - images).square().mean().backward()
            optimiser.step()
            return time.perf_counter() - start

        step()
        pace = Pace(2, apply=torch.set_num_threads) if threads is None else None
        while pace is not None and pace.trying:
            pace.step_took(step())
        for line in sys.stdin:
            before = time.process_time()
            seconds = [step() for _ in range(int(line))]
            print(json.dumps([seconds, time.process_time() - before]), flush=True)


if __name__ == "__main__":
    main()
