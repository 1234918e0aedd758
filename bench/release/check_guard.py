"""How often the anatomy guard rejects real images of patients it does not know, and which constructed failures it sees.

  python bench/release/check_guard.py --sets nih/ kermany/ hannover/ jsrt/ --out guard

Each set is held against its own real images: those of 70 % of the patients are the reference, those of the others are checked. --out gets
guard.json, guard.md and a sheet of the real images that were rejected.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from check_lungs import sheet
from numpy.typing import NDArray
from PIL import Image
from pseudo_lungs import is_held_out
from scipy import stats

from synthorax.files import write_atomic, write_json
from synthorax.judges.anatomy_guard import AnatomyReference
from synthorax.judges.lungs import LungMasks, load_lung_model, segment_lungs
from synthorax.judges.planted_anatomy import FAILURES

PLANTED = 60
"""images of a set of which failures are made"""


def read_frontal(folder: Path, *, most: int = 0) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Frontal images of a dataset folder, their views and patients."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["view"] != "LATERAL" and row.get("frontal", "True") == "True"]
    if most:
        rows = [rows[number] for number in sorted(np.random.default_rng(0).permutation(len(rows))[:most])]
    pixels = np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("L")) for row in rows])
    return pixels, [row["view"] for row in rows], [row["patient_id"] for row in rows]


def line(name: str, view: str, what: str, rejected: NDArray[np.bool_]) -> dict[str, Any]:
    """A share with its Wilson interval."""
    interval = stats.binomtest(int(rejected.sum()), len(rejected)).proportion_ci(method="wilson")
    return {"set": name, "view": view, "what": what, "n": len(rejected), "rejected": int(rejected.sum()),
            "share": round(float(rejected.mean()), 4), "low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}


def main() -> None:
    """Measure each set and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="file of the lung model; by default the one that ships")
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--most", type=int, default=0, help="images of a set that are looked at, drawn at random; 0: all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, lines, reasons = load_lung_model(args.weights), [], {}
    for folder in args.sets:
        pixels, views, patients = read_frontal(folder, most=args.most)
        held_out = np.array([is_held_out(patient) for patient in patients])
        known, new = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        reference = AnatomyReference.fit(pixels[known], views=[views[row] for row in known], patients=[patients[row] for row in known],
                                         model=model)
        shown = [views[row] for row in new]
        found = reference.check(pixels[new], views=shown)
        rejected = np.array([one is not None for one in found])
        lines.append(line(folder.name, "all", "real, held out", rejected))
        lines += [line(folder.name, view, "real, held out", rejected[np.array(shown) == view]) for view in sorted(set(shown))]
        reasons[folder.name] = [str(one) for one in found if one is not None]
        bad = new[rejected]
        organs = segment_lungs(pixels[bad], model=model) if len(bad) else None
        if organs is not None:
            sheet(pixels[bad], organs, np.zeros(pixels[bad].shape, dtype=np.bool_), args.out / f"rejected-{folder.name}.png")
        good = new[~rejected][:PLANTED]
        organs = segment_lungs(pixels[good], model=model)
        for what, fail in FAILURES.items():
            planted = fail(pixels[good], organs)
            seen = reference.check(planted, views=[views[row] for row in good])
            lines.append(line(folder.name, "all", what, np.array([one is not None for one in seen])))
            if folder == args.sets[0]:
                marks = segment_lungs(planted[:8], model=model)
                sheet(planted[:8], LungMasks(right=marks.right, left=marks.left, heart=marks.heart),
                      np.zeros(planted[:8].shape, dtype=np.bool_), args.out / f"planted-{what.replace(' ', '-')}.png")
        print(folder.name, *lines[-len(FAILURES) - 4 :], sep="\n", flush=True)
    write_json(args.out / "guard.json", {"model": model.digest, "lines": lines, "reasons": reasons})
    table = ["| set | view | images | n | rejected (95 %) |", "|---|---|---|---|---|"]
    table += [f"| {one['set']} | {one['view']} | {one['what']} | {one['n']} | {one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}] |"
              for one in lines]
    write_atomic(args.out / "guard.md", "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
