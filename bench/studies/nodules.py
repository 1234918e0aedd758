"""Nodules drawn by a model of volumes against held-out nodules of CT: measures, projected peaks, copies, and whether requests are met.

    python bench/studies/nodules.py nodule-3d --prepared nodules/ --out nodules-study

For every held-out nodule one is drawn with its diameter, margin and solidity. Both are measured on the same grid, cut off alike.
`--out` gets `nodules.json`, a Markdown table on stdout too, and two sheets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr, wasserstein_distance

from synthorax.data.lesion_grid import BOX_DIAMETERS
from synthorax.data.lesion_shape import measure
from synthorax.data.lesion_units import diameter_unit, from_unit_volume, margin_of
from synthorax.data.prepared_volumes import PreparedVolumes, measures_in
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_json
from synthorax.protocols import Condition, SampleSettings
from synthorax.rng import derive
from synthorax.steps.models.trained_model import TrainedModel, open_model
from synthorax.steps.nodules import lesion_of
from synthorax.training.volume_feed import SYMMETRIES

Volumes = NDArray[np.float32]
CLASSES_MM = ((0, 6), (6, 12), (12, 20), (20, 30), (30, 99))
MEASURES = ("volume_mm3", "sphericity", "roughness", "mean_water", "peak_water", "solid_share", "projected_mm")
RESAMPLES = 1000
LUNG_HU = -850.0


def measures_of(volume: Volumes, *, diameter_mm: float, lung_hu: float) -> dict[str, float]:
    """What is measured of a volume [2, S, S, S]: its main body scaled to this diameter, and its peak seen from three sides."""
    distance, lesion = from_unit_volume(volume)[0], lesion_of(volume, diameter_mm=diameter_mm)
    whole = float((distance > 0).sum())
    distance = np.where(lesion.mask, np.maximum(distance, 1e-3), np.minimum(distance, -1e-3))
    found = measure(distance, lesion.water, spacing_mm=lesion.spacing_mm, lung_hu=lung_hu)
    peaks = [float(lesion.water.sum(axis).max()) * lesion.spacing_mm for axis in range(3)]
    values = {name: float(getattr(found, name)) for name in MEASURES if name != "projected_mm"}
    return values | {"projected_mm": float(np.mean(peaks)), "diameter_mm": diameter_mm,
                     # 1 where the model drew it as large as its box says
                     "size_in_grid": diameter_mm / lesion.spacing_mm * BOX_DIAMETERS / volume.shape[-1],
                     "parts_dropped": 1 - float(lesion.mask.sum()) / whole}


def draw(model: TrainedModel, measurements: NDArray[np.float32], *, purpose: str, settings: SampleSettings, batch: int = 16) -> Volumes:
    """One volume a row of measurements, [N, 2, S, S, S]."""
    made = []
    for start in range(0, len(measurements), batch):
        rows = torch.from_numpy(measurements[start:start + batch])
        condition = replace(Condition.unstated(len(rows), num_labels=len(model.spec.findings)), measurements=rows)
        seeds = [derive(0, purpose, start + number) for number in range(len(rows))]
        made.append(model.network.sample(condition, seeds, settings).numpy())
    return np.concatenate(made)


def distance_of(one: NDArray[np.float64], other: NDArray[np.float64], *, scale: float) -> float:
    """Wasserstein distance in standard deviations of the real values."""
    return float(wasserstein_distance(one, other) / scale)


def comparison_of(real: Mapping[str, NDArray[np.float64]], made: Mapping[str, NDArray[np.float64]],
             scans: Sequence[str]) -> list[dict[str, object]]:
    """For each measure: medians, distance with its interval over scans, and the floor between two halves of the real scans."""
    names = np.array(scans)
    unique = np.unique(names)
    rng = np.random.default_rng(0)
    rows_of = {scan: np.flatnonzero(names == scan) for scan in unique}
    draws = [np.concatenate([rows_of[scan] for scan in rng.choice(unique, len(unique))]) for _ in range(RESAMPLES)]
    halves = [np.isin(names, rng.permutation(unique)[: len(unique) // 2]) for _ in range(RESAMPLES)]
    table = []
    for name in MEASURES:
        # volumes and projections differ by powers of ten
        theirs, ours = (np.log(values[name]) if name in ("volume_mm3", "projected_mm") else values[name] for values in (real, made))
        scale = float(theirs.std())
        resampled = [distance_of(theirs[rows], ours[rows], scale=scale) for rows in draws]
        floor = [distance_of(theirs[half], theirs[~half], scale=scale) for half in halves]
        table.append({"measure": name, "real": _spread(real[name]), "made": _spread(made[name]),
                      "distance": distance_of(theirs, ours, scale=scale), "low": float(np.quantile(resampled, 0.025)),
                      "high": float(np.quantile(resampled, 0.975)), "floor": float(np.median(floor)),
                      "floor_high": float(np.quantile(floor, 0.975))})
    return table


def nearest(volumes: Volumes, train: Volumes) -> NDArray[np.float64]:
    """Root mean square difference of each volume from the nearest training volume in any of the 48 positions, at half resolution."""
    library = _small(train).reshape(len(train), -1)
    norms = (library**2).sum(1)
    best = np.full(len(volumes), np.inf)
    for axes, flips in SYMMETRIES:
        turned = np.flip(_small(volumes).transpose(0, 1, *(axis + 2 for axis in axes)), [axis + 2 for axis in range(3) if flips[axis]])
        flat = turned.reshape(len(volumes), -1)
        squared = (flat**2).sum(1)[:, None] + norms - 2 * flat @ library.T
        best = np.minimum(best, squared.min(1))
    return np.sqrt(np.maximum(best, 0) / library.shape[1])


def requests_met(model: TrainedModel, *, num: int, settings: SampleSettings) -> list[dict[str, object]]:
    """Requests drawn independently of one another, and how they rank with what is measured."""
    rng = np.random.default_rng(1)
    diameters = np.exp(rng.uniform(np.log(6), np.log(30), num))
    margins, shares = rng.uniform(0.1, 0.6, num), rng.uniform(0, 0.8, num)
    asked = np.stack([[diameter_unit(value) for value in diameters], margins, shares], axis=1)
    volumes = draw(model, asked.astype(np.float32), purpose="requests", settings=settings)
    got = [measures_of(volume, diameter_mm=float(diameter), lung_hu=LUNG_HU) for volume, diameter in zip(volumes, diameters, strict=True)]
    answers = {"margin": [margin_of(one["sphericity"]) for one in got], "solidity": [one["solid_share"] for one in got]}
    table: list[dict[str, object]] = [{"asked": "diameter", "spearman": 1.0, "mean_error": 0.0, "note": "met by the size of a voxel"}]
    for column, name in ((1, "margin"), (2, "solidity")):
        value = spearmanr(asked[:, column], answers[name])
        table.append({"asked": name, "spearman": float(value.statistic), "p": float(value.pvalue),
                      "mean_error": float(np.abs(asked[:, column] - answers[name]).mean())})
    return table


def _small(volumes: Volumes) -> Volumes:
    n, c, s = volumes.shape[:3]
    return volumes.astype(np.float32).reshape(n, c, s // 2, 2, s // 2, 2, s // 2, 2).mean((3, 5, 7))


def _spread(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.05, 0.5, 0.95))]


def sheets(real: Volumes, made: Volumes, diameters: NDArray[np.float64], out: Path) -> None:
    """Twelve nodules from small to large: middle slice and projection, real above, made for the same measurements below."""
    rows = np.argsort(diameters)[np.linspace(0, len(diameters) - 1, 12).astype(int)]

    def grey(values: NDArray[np.float64], top: float) -> NDArray[np.uint8]:
        return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)

    tiles = []
    for volumes in (real, made):
        water = np.stack([lesion_of(volumes[row], diameter_mm=float(diameters[row])).water for row in rows]).astype(np.float64)
        tiles.append(grey(water[:, water.shape[1] // 2], 1.2))
        spacing = BOX_DIAMETERS * diameters[rows] / water.shape[1]
        sums = water.sum(1) * spacing[:, None, None]
        tiles.append(np.concatenate([grey(one[None], max(2.0, float(top))) for one, top in zip(sums, 0.9 * diameters[rows], strict=True)]))
    captions = [f"{diameters[row]:.0f} mm" for row in rows]
    sheet = contact_sheet(np.concatenate([tiles[0], tiles[2], tiles[1], tiles[3]]), columns=12, tile_px=96, captions=captions * 4,
                          title="slices of real, of made; projections of real, of made")
    save_png(out / "nodules.png", sheet)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's")
    parser.add_argument("--requests", type=int, default=96, help="requests drawn independently of one another")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepared, model = PreparedVolumes.load(options.prepared), open_model(options.model)
    settings = model.settings if options.steps is None else replace(model.settings, steps=options.steps)
    test, train = prepared.volumes("test"), prepared.volumes("train")
    rows = [row for row in prepared.rows if row["split"] == "test"]
    diameters = np.array([measures_in(row).diameter_mm for row in rows])
    real = test.volumes.astype(np.float32)
    made = draw(model, test.measurements, purpose="held-out", settings=settings)
    both = []
    for volumes in (real, made):
        found = [measures_of(volume, diameter_mm=float(size), lung_hu=float(row["lung_hu"]))
                 for volume, size, row in zip(volumes, diameters, rows, strict=True)]
        both.append({name: np.array([one[name] for one in found]) for name in found[0]})
    table = comparison_of(both[0], both[1], test.scans)
    classes = [{"diameter_mm": f"{low} to {high}", "n": int(((diameters >= low) & (diameters < high)).sum()),
                **{name: _spread(values["projected_mm"][(diameters >= low) & (diameters < high)])
                   for name, values in zip(("real", "made"), both, strict=True)}}
               for low, high in CLASSES_MM if ((diameters >= low) & (diameters < high)).sum()]
    copies = {"real": nearest(real, train.volumes), "made": nearest(made, train.volumes)}
    near = float(np.quantile(copies["real"], 0.05))
    requests = requests_met(model, num=options.requests, settings=settings)
    record = {"model_digest": model.digest, "data_digest": prepared.digest, "n": len(rows), "scans": len(set(test.scans)),
              "measures": table, "projected": classes, "requests": requests,
              "copies": {"real": _spread(copies["real"]), "made": _spread(copies["made"]),
                         "made_nearer_than_5_percent_of_real": float((copies["made"] < near).mean())},
              "size_in_grid": _spread(both[1]["size_in_grid"]), "parts_dropped": _spread(both[1]["parts_dropped"])}
    write_json(options.out / "nodules.json", record)
    sheets(real, made, diameters, options.out)
    print("| measure | real: 5 %, median, 95 % | made | distance | floor (97.5 %) |\n|---|---|---|---|---|")
    for line in table:
        spread = [", ".join(f"{value:.3g}" for value in line[name]) for name in ("real", "made")]  # type: ignore[attr-defined]
        print(f"| {line['measure']} | {spread[0]} | {spread[1]} | {line['distance']:.2f} "
              f"({line['low']:.2f} to {line['high']:.2f}) | "
              f"{line['floor']:.2f} ({line['floor_high']:.2f}) |")
    print(json.dumps({name: record[name] for name in ("projected", "copies", "requests", "size_in_grid", "parts_dropped")}, indent=1))


if __name__ == "__main__":
    main()
