"""How many planted copies the detector catches, and how many real images of other patients it accuses.

    python bench/studies/planted_copies.py prepared/ --size 64 --num 300

Validation images set the thresholds, test images are the real ones. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from synthorax.data.prepared import Prepared
from synthorax.evaluation.statistics.roc import wilson
from synthorax.privacy.copies import CopyDetector
from synthorax.privacy.planted import WAYS, plant


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num", type=int, default=100)
    arguments = parser.parse_args()
    prepared = Prepared.load(arguments.prepared)
    train, calibration, test = (prepared.images(split, size=arguments.size).pixels for split in ("train", "val", "test"))
    detector = CopyDetector.fit(train, calibration)
    rows = np.random.default_rng(0).permutation(len(train))[:arguments.num]
    print("| images | called copies | interval |\n|---|---|---|", flush=True)
    for name in ("real, other patients", *WAYS):
        called = detector.check(plant(train[rows], how=name) if name in WAYS else test).is_copy
        low, high = wilson(int(called.sum()), len(called))
        print(f"| {name} | {called.sum()} of {len(called)} | {low:.3f} to {high:.3f} |", flush=True)


if __name__ == "__main__":
    main()
