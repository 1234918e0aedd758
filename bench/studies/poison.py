"""How much planted poison is noticed in real images, and how many clean ones are accused.

  python bench/studies/poison.py prepared/ --out poison.json --finding Effusion

Half of the patients are trusted, the images of the others are suspects, one twentieth of which is poisoned: by gradient noise of 4/255 made
with a classifier trained on the suspects (`fgsm`, `pgd`) or with the judge's own (`fgsm, judge known`), by a patch of 4 px in one
twentieth of the images with one finding, and by stating that finding the other way round. Each attack stands alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from synthorax.data.prepared import Prepared
from synthorax.evaluation.monitoring.attacks import with_flipped, with_gradient_noise, with_patch
from synthorax.evaluation.monitoring.poison import find_poisoned
from synthorax.evaluation.statistics.roc import delong_interval, wilson
from synthorax.files import write_json
from synthorax.judges.classifier import ClassifierConfig, train_classifier
from synthorax.judges.cross_fit import cross_fit, patient_folds
from synthorax.types import ImageSet

PART = 0.05


def main() -> None:
    """Measure every attack and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--finding", default="Effusion")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    images = Prepared.load(given.prepared).images()
    half = patient_folds(images.patients(), folds=2, seed=given.seed)
    trusted, suspects = (images.take(np.flatnonzero(half == part)) for part in (0, 1))
    config = ClassifierConfig(updates=given.updates, width=given.width, augment="classic")
    judge = cross_fit(trusted, config=config, seed=given.seed)
    print(f"{len(trusted)} trusted and {len(suspects)} suspect images", file=sys.stderr, flush=True)
    attacker = train_classifier(suspects.pixels, suspects.labels, findings=images.findings, config=config, seed=given.seed + 1)
    column, rng = images.findings.index(given.finding), np.random.default_rng(given.seed)
    some = rng.permutation(len(suspects))[: round(PART * len(suspects))]
    shown = rng.permutation(np.flatnonzero(suspects.labels[:, column] == 1))
    stated = rng.permutation(np.flatnonzero(~np.isnan(suspects.labels[:, column])))
    marked, flipped = shown[: max(2, round(PART * len(shown)))], stated[: round(PART * len(stated))]
    corner = (suspects.pixels.shape[1] - 8,) * 2

    def noisy(**how: int) -> Callable[[], ImageSet]:
        return lambda: _with(suspects, some, with_gradient_noise(suspects.take(some), attacker, **how))

    attacks = {
        "none": ("", some[:0], lambda: suspects),
        "fgsm": ("adversarial", some, noisy()),
        "fgsm, judge known": ("adversarial", some,
                              lambda: _with(suspects, some, with_gradient_noise(suspects.take(some), judge.classifiers[0]))),
        "pgd": ("adversarial", some, noisy(steps=10)),
        "patch": ("trigger", marked, lambda: _with(suspects, marked, with_patch(suspects.pixels[marked], corner=corner))),
        "flipped": ("label", flipped, lambda: replace(suspects, labels=with_flipped(suspects.labels, flipped, column))),
    }
    told = {}
    for name, (detector, rows, poison) in attacks.items():
        found = find_poisoned(poison(), trusted, judge=judge)
        bad = np.isin(np.arange(len(suspects)), rows)
        false = int(found.flagged[~bad].sum())
        told[name] = {"poisoned": len(rows), "false_alarms": _rate(false, int((~bad).sum())), "detector": detector}
        if detector:
            area = delong_interval(bad.astype(int), found.scores[detector])
            told[name] |= {"auroc": {"value": area.auc, "low": area.low, "high": area.high},
                           "found": _rate(int(found.flagged[bad].sum()), len(rows))}
        print(name, told[name], flush=True)
    write_json(given.out, {"images": {"trusted": len(trusted), "suspects": len(suspects)}, "finding": given.finding,
                           "classifier": {"updates": given.updates, "width": given.width}, "attacks": told})


def _with(suspects: ImageSet, rows: np.ndarray, images: np.ndarray) -> ImageSet:
    changed = suspects.pixels.copy()
    changed[rows] = images
    return replace(suspects, pixels=changed)


def _rate(count: int, total: int) -> dict[str, float]:
    low, high = wilson(count, total)
    return {"value": count / total, "low": low, "high": high, "images": total}


if __name__ == "__main__":
    main()
