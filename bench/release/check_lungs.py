"""How well the lung model outlines lungs and hearts: against human masks that trained nothing, by view, with intervals.

  python bench/release/check_lungs.py --weights lungs.safetensors --sets jsrt/ cohen/ --out check

The sets may be for research only: they are measured against, and train nothing. JSRT's lungs and those of cohen's radiologists leave out
the heart, so `lungs & ~heart` is compared with them; others hold the part behind the heart. --out gets check.json, check.md and sheets of
the worst images.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.evaluation.metrics.anatomy import measure_anatomy
from synthorax.files import write_atomic, write_json
from synthorax.judges.lungs import LungMasks, load_lung_model, segment_lungs
from synthorax.judges.segmenter import dice

Masks = NDArray[np.bool_]
WORST = 24
DRAWS = 1000


def read_set(folder: Path) -> tuple[NDArray[np.uint8], list[dict[str, str]], Masks, Masks]:
    """Images, rows, lungs and hearts (empty where there is none) of the rows with a human lung mask."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("lung_mask") and row["view"] != "LATERAL"]
    pixels = np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("L")) for row in rows])
    lungs, hearts = (np.stack([_mask(folder, row.get(column, ""), pixels.shape[1:]) for row in rows]) for column in
                     ("lung_mask", "heart_mask"))
    return pixels, rows, lungs, hearts


def _mask(folder: Path, cell: str, shape: tuple[int, ...]) -> Masks:
    mask = np.zeros(shape, dtype=np.bool_)
    for name in filter(None, cell.split("|")):
        mask |= np.asarray(Image.open(folder / name).convert("L")) >= 128
    return mask


def interval(values: NDArray[np.float64], patients: NDArray[np.str_], of: Callable[..., Any] = np.mean) -> tuple[float, float, float]:
    """A statistic of the images with its 95 % interval by a bootstrap over patients."""
    names, owner = np.unique(patients, return_inverse=True)
    members = [np.flatnonzero(owner == number) for number in range(len(names))]
    rng = np.random.default_rng(0)
    drawn = [of(values[np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))])]) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(of(values)), float(low), float(high)


def scores(name: str, rows: list[dict[str, str]], lungs: Masks, hearts: Masks, found: LungMasks) -> list[dict[str, Any]]:
    """One line for each view and structure, and for the cardiothoracic ratio."""
    kinds = np.array([json.loads(row["extra"] or "{}").get("lung_kind", "whole lungs") for row in rows], dtype="<U80")
    if name == "jsrt":
        kinds[:] = "lungs without heart"
    kinds = np.where(np.char.startswith(kinds.astype(str), "radiologist"), "lungs without heart", kinds)
    views, patients = np.array([row["view"] for row in rows]), np.array([row["patient_id"] for row in rows])
    bare = (kinds == "lungs without heart")[:, None, None]
    seen = np.where(bare, found.both & ~found.heart, found.both)
    overlap, lines = dice(lungs, seen), []
    for kind in np.unique(kinds):
        for view in np.unique(views):
            chosen = (kinds == kind) & (views == view)
            if chosen.any():
                lines.append(_line(name, view, str(kind), "Dice", overlap[chosen], patients[chosen]))
                lines.append(_line(name, view, str(kind), "share below 0.9", (overlap[chosen] < 0.9).astype(float), patients[chosen]))
    if name == "jsrt":
        lines.append(_line(name, "PA", "heart", "Dice", dice(hearts, found.heart), patients))
        lines.append(_line(name, "PA", "lungs with heart", "Dice", dice(lungs | hearts, found.both | found.heart), patients))
        ours, theirs = (measure_anatomy(one, two)["cardiothoracic_ratio"] for one, two in ((found.both, found.heart), (lungs, hearts)))
        known = np.isfinite(ours)
        difference = (ours - theirs)[known]
        lines.append(_line(name, "PA", "cardiothoracic ratio", "mean difference", difference, patients[known]))
        lines.append(_line(name, "PA", "cardiothoracic ratio", "mean absolute difference", np.abs(difference), patients[known]))
        pairs = np.stack([ours[known], theirs[known]], axis=1)
        lines.append(_line(name, "PA", "cardiothoracic ratio", "correlation", pairs, patients[known],
                           of=lambda two: np.corrcoef(two[:, 0], two[:, 1])[0, 1]))
        enlarged = theirs[known] > 0.5
        lines.append({"set": name, "view": "PA", "structure": "cardiothoracic ratio", "measure": "above 0.5 by both, by us, by hand",
                      "n": int(known.sum()), "value": [int((enlarged & (ours[known] > 0.5)).sum()), int((ours[known] > 0.5).sum()),
                                                       int(enlarged.sum())]})
    return lines


def _line(name: str, view: str, structure: str, measure: str, values: NDArray[np.float64], patients: NDArray[np.str_],
          of: Callable[..., Any] = np.mean) -> dict[str, Any]:
    value, low, high = interval(values, patients, of)
    return {"set": name, "view": view, "structure": structure, "measure": measure, "n": len(values), "patients": len(np.unique(patients)),
            "value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def sheet(pixels: NDArray[np.uint8], found: LungMasks, human: Masks, path: Path, *, columns: int = 8) -> None:
    """Images with their outlines: right lung red, left lung green, heart blue, human lungs white."""
    colour = np.repeat(pixels[..., None], 3, axis=3)
    for masks, shade in ((human, (255, 255, 255)), (found.right, (255, 60, 0)), (found.left, (0, 255, 0)), (found.heart, (0, 128, 255))):
        colour[masks ^ np.roll(masks, 1, 1) | masks ^ np.roll(masks, 1, 2)] = shade
    spare = -len(colour) % columns
    colour = np.concatenate([colour, np.zeros((spare, *colour.shape[1:]), np.uint8)])
    rows = [np.concatenate(list(colour[start : start + columns]), axis=1) for start in range(0, len(colour), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Measure each set and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="file of the lung model; by default the one that ships")
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, lines = load_lung_model(args.weights), []
    for folder in args.sets:
        pixels, rows, lungs, hearts = read_set(folder)
        found = segment_lungs(pixels, model=model)
        lines += scores(folder.name, rows, lungs, hearts, found)
        bare = found.both & ~found.heart
        overlap = np.maximum(np.nan_to_num(dice(lungs, found.both)), np.nan_to_num(dice(lungs, bare)))
        worst = np.argsort(overlap)[:WORST]
        sheet(pixels[worst], LungMasks(right=found.right[worst], left=found.left[worst], heart=found.heart[worst]), lungs[worst],
              args.out / f"worst-{folder.name}.png")
    write_json(args.out / "check.json", {"model": model.digest, "lines": lines})
    table = ["| set | view | structure | measure | images | value (95 %) |", "|---|---|---|---|---|---|"]
    for line in lines:
        value = f"{line['value']:.3f} [{line['low']:.3f}, {line['high']:.3f}]" if "low" in line else ", ".join(map(str, line["value"]))
        table.append(f"| {line['set']} | {line['view']} | {line['structure']} | {line['measure']} | {line['n']} | {value} |")
    write_atomic(args.out / "check.md", "\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
