"""What does insertion do to real images? Curves, spacings, contrast, seams, masks, pixels outside, time, and a sheet to look at.

  python bench/studies/insertion.py --images nih/ --num 12 --out bench-insertion

`--images` is a dataset folder; frontal PA images of adults without a finding are used. Lungs, outlines, nodules and masses are those of the
models that ship, as in `synthorax insert`; the severity is drawn evenly from 0 to 1. With `--from` a diffusion model samples the regions
again. Writes insertion.json, insertion.md and insertion.png (it shows real images: keep it where they may lie).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from synthorax.data.image_files import read_image
from synthorax.editing.insertion.insertion import Insertion
from synthorax.editing.insertion.templates import TEMPLATES
from synthorax.errors import InputError
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_atomic, write_json
from synthorax.judges.lungs import LungMasks
from synthorax.physics.grey_curve import estimate_grey_curve, estimate_spacing_mm
from synthorax.steps.insertion.acceptance import refusal
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.lesions import DIAMETERS_MM, lesion_maker
from synthorax.steps.insertion.lungs import LungFinder

Mask = NDArray[np.bool_]
NO_OUTLINES = ("Infiltration", "Pneumonia")
"""templates without a model of outlines that ships"""
FINDINGS = ("Nodule", *(finding for finding in TEMPLATES if finding not in NO_OUTLINES))
MEASURED = ("peak_water_mm", "peak_levels", "contrast_to_clutter", "rim_px", "seam")
"""of the record of an insertion"""


def main() -> int:
    """Insert, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="dataset folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=12, help="images a finding")
    parser.add_argument("--findings", nargs="+", default=FINDINGS)
    parser.add_argument("--from", dest="model", default=None, help="diffusion model for findings other than nodule and mass")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.images / "metadata.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["findings"] == "No Finding" and row["view"] == "PA"
                and float(row["age_years"] or 0) >= 18]
    rows = rows[:: max(1, len(rows) // (2 * options.num))][: 2 * options.num]
    find, hosts, curves = LungFinder(), [], []
    for row in rows:
        pixels = read_image(options.images / row["file_name"])
        try:
            lungs = find.of_host(pixels[None])
        except InputError as error:
            print(f"{row['file_name']}: {error}", file=sys.stderr)
            continue
        hosts.append((pixels, lungs))
        curves.append(curve_row(pixels, lungs.both[0] & ~lungs.heart[0], row))
    record: dict[str, Any] = {"images": len(hosts), "curves": {key: quantiles([row[key] for row in curves if key in row])
                                                               for key in ("levels_per_mm", "noise", "spacing_ratio")}}
    shown: list[NDArray[Any]] = []
    for number, finding in enumerate(options.findings):
        made: list[tuple[Insertion, float, int]] = []
        refused: dict[str, int] = {}
        for turn in range(options.num):
            pixels, lungs = hosts[(7 * number + 11 * turn) % len(hosts)]
            start = time.process_time()
            try:
                inserted = insert(finding, pixels, lungs, seed=turn, model=options.model)
            except InputError as error:
                refused[str(error)] = refused.get(str(error), 0) + 1
                continue
            outside = distance_transform_edt(inserted.mask == 0) > inserted.record["rim_px"]
            made.append((inserted, time.process_time() - start, int((inserted.pixels != pixels)[outside].sum())))
            if len(made) <= 2:
                shown += [pixels, inserted.pixels]
        records = [each[0].record for each in made]
        record[finding] = {key: quantiles([each[key] for each in records if each.get(key) is not None]) for key in MEASURED}
        record[finding] |= {"made": len(made), "refused": refused, "seconds": quantiles([each[1] for each in made]),
                            "bodies": max((bodies(each[0].mask) for each in made), default=0),
                            "holes": sum(holes(each[0].mask) for each in made), "changed outside": sum(each[2] for each in made)}
    write_json(options.out / "insertion.json", record)
    write_atomic(options.out / "insertion.md", markdown(record))
    save_png(options.out / "insertion.png", contact_sheet(np.stack(shown), columns=4, tile_px=256))
    print(markdown(record))
    return 0


def curve_row(pixels: NDArray[Any], lungs: Mask, row: dict[str, str]) -> dict[str, float]:
    """Slope and noise of an image, and its estimated spacing over the true one where the table has it."""
    try:
        curve = estimate_grey_curve(pixels, lungs)
    except InputError:
        return {}
    facts = json.loads(row.get("extra") or "{}")
    found = {"levels_per_mm": curve.levels_per_mm, "noise": curve.noise}
    if "pixel_spacing" in facts:
        true = facts["pixel_spacing"] * max(facts["orig_w"], facts["orig_h"]) / len(pixels)
        found["spacing_ratio"] = estimate_spacing_mm(lungs)[0] / true
    return found


def insert(finding: str, pixels: NDArray[Any], lungs: LungMasks, *, seed: int, model: str | None) -> Insertion:
    """One insertion as `synthorax insert` makes it at the first attempt; InputError where that is refused."""
    severity = float(np.random.default_rng(seed).uniform(0, 1))
    maker = lesion_maker(finding, InsertConfig(severity=severity), model=None if finding in DIAMETERS_MM else model)
    made = maker.insert(pixels, lungs, spacing_mm=None, mask=None, seed=seed)
    if reason := refusal(pixels, made, lungs):
        raise InputError(reason)
    return made


def bodies(mask: NDArray[np.uint8]) -> int:
    """Connected bodies of a mask."""
    return int(label(mask)[1])


def holes(mask: NDArray[np.uint8]) -> int:
    """Pixels in holes of a mask."""
    return int((binary_fill_holes(mask) & (mask == 0)).sum())


def quantiles(values: list[float]) -> list[float]:
    """5 %, median, 95 %."""
    return [round(float(value), 3) for value in np.quantile(values, (0.05, 0.5, 0.95))] if values else []


def markdown(record: dict[str, Any]) -> str:
    """The tables."""
    lines = ["| of an image | 5 % | median | 95 % |", "|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(map(str, values)) + " |" for name, values in record["curves"].items()]
    keys, counts = (*MEASURED, "seconds"), ("bodies", "holes", "changed outside")
    lines += ["", "| finding | made | refused | " + " | ".join((*keys, *counts)) + " |", "|---" * (len(keys) + len(counts) + 3) + "|"]
    for finding, row in record.items():
        if finding in ("images", "curves"):
            continue
        cells = ["{1:g} ({0:g} to {2:g})".format(*row[key]) if row[key] else "" for key in keys]
        cells = [finding, str(row["made"]), str(sum(row["refused"].values())), *cells, *(str(row[key]) for key in counts)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
