"""Kill a training and a generation with SIGKILL at random moments, go on each time, and compare the end bit for bit.

  python bench/studies/kills.py --kills 100 --family edm

Half of the kills of a training wait a random time, the other half wait for a file that is being written. The last line is JSON with
the counts. Exit code 1 if the killed work does not end exactly like the uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from synthorax.run import WEIGHTS_NAME
from trainings import (
    SMALLEST,
    after,
    digests,
    during_write,
    finished,
    generate_to,
    in_new_process,
    killed_when,
    train_to_weights,
)

Start = Callable[[Path], BaseProcess]


def main() -> int:
    """Run both parts and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of each part")
    parser.add_argument("--family", choices=sorted(SMALLEST), default="diffusion")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--limit-minutes", type=float, default=10.0, help="stop killing after this long, for each part")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        training = kill_training(Path(folder), options, rng)
        generation = kill_generation(Path(folder), options, rng)
    print(json.dumps({"family": options.family, "training": training, "generation": generation}))
    return 0 if training["identical"] and generation["identical"] else 1


def kill_training(folder: Path, options: argparse.Namespace, rng: random.Random) -> dict[str, object]:
    """The same training twice: in one go, and killed again and again. Dropout is on, so that random states matter."""
    num_steps = options.kills * (12 if options.family == "diffusion" else 3)
    dropout = ["model.dropout=0.1"] if options.family == "diffusion" else []
    settings = [f"train.steps={num_steps}", "train.checkpoint_every=2", *dropout]

    def start(place: Path) -> BaseProcess:
        return in_new_process(train_to_weights, options.family, settings, place)

    straight, killed = folder / "training", folder / "training-killed"
    checkpoints = killed / "checkpoints"
    counts = killed_again_and_again(start, straight, killed, checkpoints, options, rng, done=lambda: (killed / WEIGHTS_NAME).exists())
    return {**counts, "steps": num_steps, "compared": [WEIGHTS_NAME],
            "identical": digests(killed, WEIGHTS_NAME) == digests(straight, WEIGHTS_NAME)}


def kill_generation(folder: Path, options: argparse.Namespace, rng: random.Random) -> dict[str, object]:
    """The same generation twice; every image and the table are compared."""
    num = 60 * options.kills

    def start(place: Path) -> BaseProcess:
        return in_new_process(generate_to, place, num)

    straight, killed = folder / "generation", folder / "generation-killed"
    counts = killed_again_and_again(start, straight, killed, killed / "images", options, rng, done=(killed / "metadata.csv").exists)
    same = digests(killed, "*.png") == digests(straight, "*.png") and digests(killed, "*.csv") == digests(straight, "*.csv")
    return {**counts, "images": num, "compared": [f"{len(digests(killed, '*.png'))} images", "metadata.csv"], "identical": same}


def killed_again_and_again(start: Start, straight: Path, killed: Path, writes: Path, options: argparse.Namespace, rng: random.Random, *,
                           done: Callable[[], bool]) -> dict[str, object]:
    """Do the work in one go in `straight`; in `killed` go on after every kill. Returns the counts."""
    begin = time.monotonic()
    finished(start(straight), limit_seconds=3600)
    longest = min(1.0, time.monotonic() - begin)
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    while counts["kills"] < options.kills and not done() and time.monotonic() - begin < 60 * options.limit_minutes:
        left = set(writes.glob(".*.tmp"))
        kind = rng.choice(["random moment", "write seen"])
        moment = after(rng.uniform(0, longest)) if kind == "random moment" else during_write(writes)
        if not killed_when(start(killed), moment):
            continue  # it ended before the moment came
        counts["kills"] += 1
        counts[f"kills at a {kind}"] += 1
        counts["kills that left half a file"] += bool(set(writes.glob(".*.tmp")) - left)
        if counts["kills"] % 20 == 0:
            print(f"{killed.name}: {dict(counts)}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    finished(start(killed), limit_seconds=3600)
    return {**counts, "seconds": round(time.monotonic() - begin)}


if __name__ == "__main__":
    sys.exit(main())
