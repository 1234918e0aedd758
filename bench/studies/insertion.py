"""What does insertion by physics do to real images? Curves, spacings, contrast, seams, pixels outside, time, and a sheet to look at.

  python bench/studies/insertion.py --images nih/ --lungs pseudo_lung_mask --nodules nodules.npz --out bench-insertion

`--images` is a dataset folder with a mask of the lungs without the heart in the column `--lungs`; frontal images without a finding are
used. `--nodules` is a bank of CT nodules: arrays hounsfield and mask (packed bits) one after the other, shapes, diameter_mm. Regions of
the other findings are drawn in coordinates of the lungs by the formulas below, not learned. Writes insertion.json, insertion.md and
insertion.png (it shows real images: keep it where they may lie).
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
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from synthorax.editing.insertion.insert import TemplateOptions, insert_lesion
from synthorax.editing.insertion.insertion import Insertion
from synthorax.editing.insertion.nodules import NoduleOptions
from synthorax.editing.insertion.templates import TEMPLATES
from synthorax.errors import InputError
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_atomic, write_json
from synthorax.physics.grey_curve import estimate_grey_curve, estimate_spacing_mm
from synthorax.physics.volumes import LesionVolume, from_hounsfield

Mask = NDArray[np.bool_]
MEASURED = ("peak_water_mm", "peak_levels", "rim_px", "seam")
"""of the record of an insertion"""


def main() -> int:
    """Insert, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="dataset folder")
    parser.add_argument("--lungs", default="lung_mask", help="column with masks of the lungs without the heart")
    parser.add_argument("--nodules", type=Path, required=True, help="bank of CT nodules, .npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=24, help="images a finding")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.images / "metadata.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["findings"] == "No Finding" and row["view"] == "PA" and row[options.lungs]]
    hosts = [tuple(np.asarray(Image.open(options.images / row[column])) for column in ("file_name", options.lungs)) for row in rows]
    curves = [curve_row(pixels, lungs > 127, row) for (pixels, lungs), row in zip(hosts, rows, strict=True)]
    record: dict[str, Any] = {"images": len(rows), "curves": {key: quantiles([row[key] for row in curves if key in row])
                                                              for key in ("levels_per_mm", "noise", "spacing_ratio")}}
    bank = nodules(options.nodules)
    shown: list[NDArray[Any]] = []
    for number, finding in enumerate(("Nodule", *TEMPLATES)):
        made: list[tuple[Insertion, float, int]] = []
        refused: dict[str, int] = {}
        for turn in range(options.num):
            pixels, lungs = hosts[(7 * number + 11 * turn) % len(hosts)]
            start = time.process_time()
            try:
                inserted = insert(finding, pixels, lungs > 127, bank, seed=turn)
            except InputError as error:
                refused[str(error)] = refused.get(str(error), 0) + 1
                continue
            outside = distance_transform_edt(inserted.mask == 0) > inserted.record["rim_px"]
            made.append((inserted, time.process_time() - start, int((inserted.pixels != pixels)[outside].sum())))
            if len(made) <= 2:
                shown += [pixels, inserted.pixels]
        record[finding] = {key: quantiles([each[0].record[key] for each in made]) for key in MEASURED}
        record[finding] |= {"made": len(made), "refused": refused, "seconds": quantiles([each[1] for each in made]),
                            "changed outside": sum(each[2] for each in made)}
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


def insert(finding: str, pixels: NDArray[Any], lungs: Mask, bank: list[LesionVolume], *, seed: int) -> Insertion:
    """A nodule of 12 to 28 mm from the bank, or the template of another finding, of random severity."""
    rng = np.random.default_rng(seed)
    if finding == "Nodule":
        volume = bank[int(rng.integers(len(bank)))]
        return insert_lesion(pixels, finding=finding, lungs=lungs, seed=seed, lesion=volume,
                             nodule=NoduleOptions(diameter_mm=float(rng.uniform(12, 28))))
    return insert_lesion(pixels, finding=finding, lungs=lungs, seed=seed, region=region(finding, lungs, rng),
                         template=TemplateOptions(severity=float(rng.uniform(0, 1))))


def nodules(path: Path) -> list[LesionVolume]:
    """Nodules of at least 10 mm, the beam from back to front."""
    bank = np.load(path)
    shapes, hounsfield, bits = bank["shapes"].astype(int), bank["hounsfield"], np.unpackbits(bank["mask"])
    volumes, at = [], 0
    for shape, diameter in zip(shapes, bank["diameter_mm"], strict=True):
        part = slice(at, at := at + int(shape.prod()))
        units, mask = hounsfield[part].reshape(shape), bits[part].reshape(shape).astype(bool)
        if diameter >= 10 and mask.any():
            around = units[~mask & (units < -500)]
            lung = float(np.median(around)) if len(around) else -850.0
            volumes.append(from_hounsfield(units.transpose(1, 0, 2), mask.transpose(1, 0, 2), spacing_mm=1.0, lung=lung))
    return volumes


def region(finding: str, lungs: Mask, rng: np.random.Generator) -> Mask:
    """A plausible region in one lung, or around the heart, in coordinates of the lungs."""
    parts, count = label(lungs)
    largest = sorted(range(1, count + 1), key=lambda part: -(parts == part).sum())[:2]
    right, left = (parts == part for part in sorted(largest, key=lambda part: np.nonzero(parts == part)[1].mean()))
    own, side = ((right, 0), (left, 1))[int(rng.integers(2))]
    rows, columns = np.nonzero(own)
    down, across = (grid for grid in np.mgrid[:lungs.shape[0], :lungs.shape[1]].astype(float))
    v, u = (down - rows.min()) / np.ptp(rows), (across - columns.min()) / np.ptp(columns)
    lateral, wall, width = (u if side else 1 - u), distance_transform_edt(own), np.ptp(columns)
    if finding == "Effusion":
        return np.asarray(own & (v > rng.uniform(0.6, 0.85) - 0.22 * lateral**2))
    if finding == "Pneumothorax":
        crescent = wall < width * rng.uniform(0.12, 0.25) * (1 - 0.75 * np.clip(v, 0, 1))
        return np.asarray(own & crescent & (lateral > np.where(v < 0.2, 0, 0.3)) & (v < 0.75))
    if finding == "Pleural_Thickening":
        return np.asarray(own & (wall < 0.08 * width) & (lateral > 0.6) & (v > 0.3) & (v < 0.9))
    if finding == "Cardiomegaly":
        at = np.cumsum(lungs, axis=1)
        heart = (at > 0) & (at < at[:, -1:]) & ~lungs & (v > 0.4) & (v < 0.97)
        reach = np.where(left, 0.3, 0.08) * width * np.exp(-(((v - 0.75) / 0.22) ** 2))
        return np.asarray((distance_transform_edt(~heart) < reach) & (lungs | heart))
    if finding == "Emphysema":
        return np.asarray(own & (v < 0.55))
    centre, half = (rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.75)), ((0.2, 0.11) if finding == "Mass" else (0.3, 0.18))
    bumps = gaussian_filter(rng.standard_normal(lungs.shape), len(lungs) / 40)
    return np.asarray(own & (((u - centre[0]) / half[0]) ** 2 + ((v - centre[1]) / half[1]) ** 2 + 0.25 * bumps / bumps.std() < 1))


def quantiles(values: list[float]) -> list[float]:
    """5 %, median, 95 %."""
    return [round(float(value), 3) for value in np.quantile(values, (0.05, 0.5, 0.95))] if values else []


def markdown(record: dict[str, Any]) -> str:
    """The tables."""
    lines = ["| of an image | 5 % | median | 95 % |", "|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(map(str, values)) + " |" for name, values in record["curves"].items()]
    keys = (*MEASURED, "seconds")
    lines += ["", "| finding | made | refused | " + " | ".join(keys) + " | changed outside |", "|---" * (len(keys) + 4) + "|"]
    for finding in ("Nodule", *TEMPLATES):
        row = record[finding]
        cells = ["{1:g} ({0:g} to {2:g})".format(*row[key]) if row[key] else "" for key in keys]
        cells = [finding, str(row["made"]), str(sum(row["refused"].values())), *cells, str(row["changed outside"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
