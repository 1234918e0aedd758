"""What does an image cost beside another build, or another model? Both in turn on one processor, one thread, processor time.

  git worktree add ../before 7ff3105
  python bench/speed/against_build.py --before ../before --model cxr-256 --after-model fitted.safetensors --out bench-build [--rounds 15]
  ... --inference openvino     # this build's networks by OpenVINO (pip install "synthorax[fast]")
  ... --avx2     # the same as on a processor with AVX2 alone

Each build runs in a process of its own that lives through all rounds; in each round each of them makes the same images once, in changing
order, and tells what processor time that took (user and system, of all its threads). The table has medians and the median of the ratios of
a round, with a 95 % interval by bootstrap over rounds. A busy machine makes both slower; the ratio stands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import numpy as np
from torch import nn

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
RESAMPLES = 2000


def main() -> int:
    """Measure and write, or be one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, default=Path(), help="checkout of the other build; by default this one")
    parser.add_argument("--model", default="cxr-256", help="model of the other build")
    parser.add_argument("--after-model", help="model of this build; by default the same")
    parser.add_argument("--settings", default="{}", help='sampling settings of this build, as JSON, such as {"steps": 12}')
    parser.add_argument("--inference", choices=["torch", "openvino"], default="torch", help="what runs the networks of this build")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model, json.loads(options.settings), options.inference)
        return 0
    here = Path(__file__).resolve().parents[2]
    ways = {"before": (options.before.resolve() if options.before != Path() else here, options.model, "{}", "torch"),
            "after": (here, options.after_model or options.model, options.settings, options.inference)}
    workers = {name: Worker(*way, avx2=options.avx2) for name, way in ways.items()}
    lines = ["| images at once | before, ms an image | after, ms an image | after / before |", "|---|---|---|---|"]
    record: dict[str, object] = {"ways": {name: [str(part) for part in way] for name, way in ways.items()}, "avx2": options.avx2}
    for batch in options.batch:
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, options.rounds):  # the round before the first warms up
            for name in sorted(ways, reverse=number % 2 == 0):
                seconds = workers[name].seconds(batch, seed=max(number, 0))
                took[name] += [1000 * seconds / batch] if number >= 0 else []
        ratios = np.array(took["after"]) / np.array(took["before"])
        again = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(again, axis=1), [0.025, 0.975])
        lines.append(f"| {batch} | {np.median(took['before']):.0f} | {np.median(took['after']):.0f} | "
                     f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f}) |")
        record[str(batch)] = took
        print(lines[-1], flush=True)
    for worker in workers.values():
        worker.close()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = "avx2" if options.avx2 else "whole"
        (options.out / f"{stem}.json").write_text(json.dumps(record), encoding="utf-8")
        (options.out / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


class Worker:
    """A process that makes images with one build and one model."""

    def __init__(self, build: Path, model: str, settings: str, inference: str, *, avx2: bool) -> None:
        path = os.pathsep.join([str(build / "src"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(AVX2 if avx2 else {})}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--model", model, "--settings", settings,
                   "--inference", inference]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def seconds(self, batch: int, *, seed: int) -> float:
        """Processor time of one batch."""
        asked, told = _pipe(self.process.stdin), _pipe(self.process.stdout)
        asked.write(f"{batch} {seed}\n")
        asked.flush()
        return float(told.readline())

    def close(self) -> None:
        """Let it end."""
        _pipe(self.process.stdin).close()
        self.process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def work(name: str, settings: dict[str, object], inference: str) -> None:
    """Answer each line "batch seed" with the seconds of processor time that the batch took."""
    from time import process_time

    from synthorax.engine import started  # the packages of the build that is measured, which may be older than this file
    from synthorax.protocols import Condition
    from synthorax.steps.generate import changed_settings
    from synthorax.steps.models.trained_model import open_model

    trained = open_model(name)
    model, spec, usual = trained.network, trained.spec, changed_settings(trained.settings, settings)
    with started(threads=1) as engine, contextlib.ExitStack() as stack:
        if inference == "openvino":
            from synthorax.families.denoising.openvino_network import run_by_openvino
            from synthorax.steps.cache import cache

            stack.enter_context(run_by_openvino(cast(nn.Module, model), bf16=engine.bf16, threads=1, cache=cache() / "openvino"))
        for line in sys.stdin:
            batch, seed = map(int, line.split())
            condition = Condition.unstated(batch, num_labels=len(spec.findings), num_sites=len(spec.sites))
            labels = condition.labels.clone()
            labels[:, seed % labels.shape[1]] = 1.0
            begin = process_time()
            with engine.autocast():
                model.sample(replace(condition, labels=labels), range(batch * seed, batch * (seed + 1)), usual)
            print(process_time() - begin, flush=True)


if __name__ == "__main__":
    sys.exit(main())
