"""How often the anatomy guard rejects real images of patients it does not know, and which constructed failures it sees.

  python bench/release/check_guard.py --sets nih/ kermany/ hannover/ jsrt/ --out guard

Of sets that trained the judge of plausible chests (--trained), only patients who trained nothing are used. Each set is held against its own
real images, in five parts by patient: each part against the other four. --out gets guard.json, guard.md, and what was measured of every
image, which a second run with another --judge reads again; with --sheets also sheets of the real images that were rejected and of planted
failures that passed.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from check_lungs import sheet
from numpy.typing import NDArray
from PIL import Image
from pseudo_lungs import is_held_out
from scipy import stats

from synthorax.files import write_atomic, write_json
from synthorax.judges.anatomy import Vector, traits_of
from synthorax.judges.anatomy_guard import ANATOMY_RATE, APPEARANCE, AnatomyReference, Strange
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.lungs import load_lung_model, segment_lungs
from synthorax.judges.planted_anatomy import FAILURES
from synthorax.judges.plausible_chest import ChestJudge, load_chest_judge
from synthorax.judges.segmenter import Segmenter

PLANTED = 40
"""images of a set of which failures are made, drawn at random of those that pass"""
PARTS = 5
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealMeasurements:
    """Real images of a set: what was measured of them, and their part."""

    traits: dict[str, Vector]
    odds: NDArray[np.float64]
    views: NDArray[np.str_]
    patients: NDArray[np.str_]
    part: NDArray[np.intp]
    model: Segmenter
    judge: ChestJudge


def read_frontal(folder: Path, *, most: int = 0) -> tuple[Images, list[str], list[str]]:
    """Frontal images of a dataset folder, their views and patients."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["view"] != "LATERAL" and row.get("frontal", "True") == "True"]
    if most:
        rows = [rows[number] for number in sorted(np.random.default_rng(0).permutation(len(rows))[:most])]
    pixels = np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("L")) for row in rows])
    return pixels, [row["view"] for row in rows], [row["patient_id"] for row in rows]


def line(name: str, view: str, what: str, rejected: NDArray[np.bool_], outlines: NDArray[np.bool_], *, patients: int) -> dict[str, Any]:
    """A share with its Wilson interval."""
    interval = stats.binomtest(int(rejected.sum()), len(rejected)).proportion_ci(method="wilson")
    return {"set": name, "view": str(view), "what": what, "n": len(rejected), "patients": patients, "rejected": int(rejected.sum()),
            "share": round(float(rejected.mean()), 4), "low": round(float(interval.low), 4), "high": round(float(interval.high), 4),
            "outlines_alone": round(float(outlines.mean()), 4)}


def check(new: dict[str, Vector], odds: NDArray[np.float64], rows: NDArray[np.intp],
          known: RealMeasurements) -> tuple[list[Strange | None], NDArray[np.bool_]]:
    """What is found of images that are, or are made of, the real images `rows`, each by the other parts; do outlines alone say it?"""
    found: list[Strange | None] = [None] * len(rows)
    outlines = np.zeros(len(rows), dtype=np.bool_)
    for part in range(PARTS):
        others, here = np.flatnonzero(known.part != part), np.flatnonzero(known.part[rows] == part)
        if len(here):
            reference = AnatomyReference.of_numbers({key: values[others] for key, values in known.traits.items()}, known.odds[others],
                                                    views=known.views[others].tolist(), patients=known.patients[others], model=known.model,
                                                    judge=known.judge)
            own, views = {key: values[here] for key, values in new.items()}, known.views[rows[here]].tolist()
            answers = reference.check_numbers(own, odds[here], views=views)
            for row, answer in zip(here.tolist(), answers, strict=True):
                found[row] = answer
            for view in sorted(set(views)):
                shown = np.flatnonzero(np.array(views) == view)
                p = reference._p(reference.groups.get(view, reference.groups[""]), {key: values[shown] for key, values in own.items()},
                                 odds[here[shown]])
                outlines[here[shown]] = p[:APPEARANCE].min(axis=0) <= ANATOMY_RATE / APPEARANCE  # half of it for each of the other ways
    return found, outlines


def numbers(pixels: Images, path: Path, *, model: Segmenter) -> dict[str, Vector]:
    """The traits of images, from `path` where an earlier run wrote them."""
    if not path.exists():
        np.savez(path, **traits_of(pixels, model=model))
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def main() -> None:
    """Measure each set and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="file of the lung model; by default the one that ships")
    parser.add_argument("--judge", type=Path, help="file of the judge of plausible chests; by default the one that ships")
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--trained", nargs="*", default=["nih", "kermany"], help="sets that trained the judge of plausible chests")
    parser.add_argument("--most", type=int, default=0, help="images of a set that are looked at, drawn at random; 0: all")
    parser.add_argument("--kinds", nargs="*", default=list(FAILURES), help="failures that are planted; by default all")
    parser.add_argument("--sheets", action="store_true", help="draw what was rejected wrongly and what passed wrongly")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, judge, lines, reasons = load_lung_model(args.weights), load_chest_judge(args.judge), [], {}
    for folder in args.sets:
        name = folder.name
        pixels, views, patients = read_frontal(folder, most=args.most)
        used = np.array([name not in args.trained or is_held_out(patient) for patient in patients])
        pixels, shown, owners = pixels[used], np.array(views)[used], np.array(patients)[used]
        real = numbers(pixels, args.out / f"{name}-real.npz", model=model)
        odds = judge.odds(pixels)
        known = RealMeasurements(traits=real, odds=odds, views=shown, patients=owners, part=patient_folds(owners, folds=PARTS, seed=1),
                                  model=model,
                      judge=judge)
        found, outlines = check(real, odds, np.arange(len(pixels)), known)
        rejected = np.array([one is not None for one in found])
        lines.append(line(name, "all", "real", rejected, outlines, patients=len(set(owners))))
        lines += [line(name, view, "real", rejected[shown == view], outlines[shown == view], patients=len(set(owners[shown == view])))
                  for view in sorted(set(shown))]
        reasons[name] = [str(one) for one in found if one is not None]
        if args.sheets and rejected.any():
            _sheet(pixels[rejected], args.out / f"rejected-{name}.png", model=model)
        good_file = args.out / f"{name}-good.npy"
        if not good_file.exists():
            np.save(good_file, np.sort(np.random.default_rng(0).permutation(np.flatnonzero(~rejected))[:PLANTED]))
        good = np.load(good_file)
        organs = segment_lungs(pixels[good], model=model)
        planted = {what: FAILURES[what](pixels[good], organs) for what in args.kinds}
        measured = [numbers(images, args.out / f"{name}-{what.replace(' ', '-')}.npz", model=model) for what, images in planted.items()]
        odds = judge.odds(np.concatenate(list(planted.values())))
        found, outlines = check({key: np.concatenate([one[key] for one in measured]) for key in real}, odds, np.tile(good, len(planted)),
                                known)
        for number, (what, images) in enumerate(planted.items()):
            own = slice(number * len(good), (number + 1) * len(good))
            rejected = np.array([one is not None for one in found[own]])
            lines.append(line(name, "all", what, rejected, outlines[own], patients=len(set(owners[good]))))
            if args.sheets and not rejected.all():
                _sheet(images[~rejected][:16], args.out / f"passed-{name}-{what.replace(' ', '-')}.png", model=model)
        print(*(one for one in lines if one["set"] == name), sep="\n", flush=True)
    write_json(args.out / "guard.json", {"model": model.digest, "judge": judge.digest, "lines": lines, "reasons": reasons})
    table = ["| set | view | images | n | rejected (95 %) | by outlines alone |", "|---|---|---|---|---|---|"]
    table += [f"| {one['set']} | {one['view']} | {one['what']} | {one['n']} | {one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}] | "
              f"{one['outlines_alone']:.3f} |" for one in lines]
    write_atomic(args.out / "guard.md", "\n".join(table) + "\n")


def _sheet(pixels: Images, path: Path, *, model: Segmenter) -> None:
    sheet(pixels, segment_lungs(pixels, model=model), np.zeros(pixels.shape, dtype=np.bool_), path)


if __name__ == "__main__":
    main()
