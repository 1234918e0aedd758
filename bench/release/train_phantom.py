"""Make the small model of drawn phantoms that ships for the demo: draw, train, evaluate, and put it into a zoo.

  python bench/release/train_phantom.py --out phantom-base

Kill it at any time: the same command goes on. The drawings have findings more often than the demo's, and other seeds. The last line is
JSON with the command that puts the model into the package.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import SynthoraxError
from synthorax.steps.models.ship import ship
from synthorax.steps.planning.plan import plan_like
from synthorax.steps.training.train_run import without_no_finding

NAME = "phantom-64"
DRAWN = 9000
SEED = 20261
"""of the drawn patients; the demo draws from other seeds"""
PREVALENCE = {"Pneumothorax": 0.35, "Effusion": 0.25, "Cardiomegaly": 0.2, "Nodule": 0.2}
SPLIT = (0.9, 0.05, 0.05)
LIMITS = ("Made for the demo and for tests. It knows drawings of a phantom only, no radiograph, and is of no use for any.",
          "Findings are learned last and are asked for with guidance 5; a small pneumothorax or nodule may still be missing.")


def main() -> int:
    """Go on from wherever the last call came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=DRAWN, help="drawings to learn from, a tenth of them held out")
    parser.add_argument("--images", type=int, default=200, help="synthetic images of the evaluation")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, such as train.steps=1000")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    try:
        print(json.dumps(train_stages(options)))
    except SynthoraxError as error:
        print(f"train_phantom.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_phantom.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def train_stages(options: argparse.Namespace) -> dict[str, object]:
    """Every stage; what exists already is used again."""
    out, drawn = options.out, options.out / "drawn"
    source = (read_dataset(drawn) if (drawn / "dataset.json").exists()
              else write_phantom_dataset(drawn, num=options.drawn, size=64, seed=SEED, prevalence=PREVALENCE))
    prepared = sx.prepare(source, size=64, out=out / "prepared", split=SPLIT)
    run = sx.train(NAME, prepared, out=out / "run", overrides=options.set, threads=options.threads)
    asked = plan_like(without_no_finding(prepared.images("test")), num=options.images)
    synthetic = sx.generate(run, asked, out=out / "synthetic", threads=options.threads)
    report = out / "report" / "report.json"
    if not report.exists():
        sx.evaluate(real=prepared, synthetic=synthetic, out=out / "report", quick=True, threads=options.threads)
    model = ship(run, name=NAME, folder=out / "zoo", report=report, limits=LIMITS)
    limits = " ".join(f"--limit '{limit}'" for limit in LIMITS)
    return {"weights": str(model.weights), "bytes": model.weights.stat().st_size,
            "put it into the package": f"python bench/release/ship.py {run.path} --name {NAME} --report {report} {limits}"}


if __name__ == "__main__":
    sys.exit(main())
