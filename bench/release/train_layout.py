"""Make the model of outlines that ships: lay the outlines of ChestX-Det into coordinates of the lungs, train, and put it into a zoo.

  python bench/release/train_layout.py outlines.json --out layouts --minutes 25

`outlines.json` is a list of records with `image`, `part` (train or test), `findings` and `polygons` in pixels of 1024 x 1024. The images
are not needed, so the place of a patient's lungs is known only where an outline fills a whole lung (diffuse nodules, emphysema); elsewhere
the mean lungs of these stand in. Kill it at any time: the same command goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import synthorax as sx
from synthorax.data.dataset import Dataset, read_dataset, write_dataset
from synthorax.data.layouts import CELLS, Box, Frame, frame_of, layout_of_polygon, shape_of
from synthorax.data.lesions import UNSIDED, with_lesions
from synthorax.data.pixels import from_unit, write_png
from synthorax.data.vocabulary import canonical
from synthorax.errors import SynthoraxError
from synthorax.outline_grid import MARGIN
from synthorax.steps.models.ship import ship
from synthorax.types import Lesion, Stated, Study

NAME = "layout"
RECIPE = "layout-128"
SIDE_PX = 1024
WHOLE_LUNG_PX = 450
"""least height of an outline that fills a lung"""
WHOLE_LUNG = ("Diffuse Nodule", "Emphysema")
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Mass", "Nodule", "Pleural_Thickening",
            "Pneumothorax")
FACTS = {"licence": "Apache-2.0",
         "attribution": "ChestX-Det, Deepwise AI Lab, https://github.com/Deepwise-AILab/ChestX-Det-Dataset; J. Lian et al., 2021; outlines "
                        "by three radiologists on images of the NIH Clinical Center (X. Wang et al., ChestX-ray8, CVPR 2017)"}
LIMITS = ("Draws outlines, no images: `editing.layouts` lays them into a chest, and `insert` makes the lesion.",
          "Learned from outlines without their images: the lungs of most patients were not known, and mean lungs stood in "
          "(docs/studies/layouts.md says what that costs).",
          "Edges are smoother than radiologists draw them, and strips thinner than two cells of the grid lose their ends.",
          "Outlines of one lesion each: which findings occur together is not learned.")


@dataclass(frozen=True, kw_only=True)
class LungOutline:
    """One outline of the set."""

    image: str
    part: str
    finding: str
    side: str
    frame: Frame
    own_frame: bool
    """whether the patient's own lung is known, not a mean one"""
    points: NDArray[np.float64]


def main() -> int:
    """Go on from wherever the last call came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outlines", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="of training")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, such as train.steps=1000")
    options = parser.parse_args()
    try:
        print(json.dumps(stages(options)))
    except SynthoraxError as error:
        print(f"train_layout.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_layout.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def stages(options: argparse.Namespace) -> dict[str, Any]:
    """Every stage; what exists already is used again."""
    out: Path = options.out
    drawn = out / "layouts"
    source = read_dataset(drawn) if (drawn / "dataset.json").exists() else write_layouts(drawn, options.outlines)
    prepared = sx.prepare(source, size=CELLS, out=out / "prepared", split=(0.8, 0.0, 0.2), images_per_patient=1000, allow_rejects=True)
    run = sx.train(RECIPE, prepared, out=out / "run", overrides=options.set, budget=60 * options.minutes, threads=1, device="cpu")
    model = ship(run, name=NAME, folder=out / "zoo", limits=LIMITS)
    return {"weights": str(model.weights), "bytes": model.weights.stat().st_size, "prepared": str(prepared.path)}


def read_outlines(path: Path) -> tuple[list[LungOutline], dict[str, Box]]:
    """The outlines of the findings that are learned, and the mean lungs by side."""
    records = json.loads(path.read_text())
    whole = [(record["image"], side_of(points), box_of(points)) for record in records
             for name, points in zip(record["findings"], map(np.array, record["polygons"]), strict=True)
             if name in WHOLE_LUNG and np.ptp(points[:, 1]) >= WHOLE_LUNG_PX]
    own = {(image, side): box for image, side, box in whole}
    mean = {side: mean_box([box for _, where, box in whole if where == side]) for side in ("right", "left")}
    drawn = []
    for record in records:
        for name, points in zip(record["findings"], record["polygons"], strict=True):
            if name == "Diffuse Nodule" or (finding := canonical(name, allow=[name])) not in FINDINGS:
                continue
            outline = np.array(points, dtype=np.float64)
            drawn.append(placed(outline, finding, record, own=own, mean=mean))
    return drawn, mean


def placed(outline: NDArray[np.float64], finding: str, record: Mapping[str, Any], *, own: Mapping[tuple[str, str], Box],
           mean: Mapping[str, Box]) -> LungOutline:
    """An outline with its side and frame."""
    side = "" if finding in UNSIDED else side_of(outline)
    boxes = {where: own.get((record["image"], where), mean[where]) for where in ("right", "left")}
    known = all((record["image"], where) in own for where in ((side,) if side else boxes))
    return LungOutline(image=record["image"], part=record["part"], finding=finding, side=side, own_frame=known, points=outline,
                 frame=frame_of(finding, side, right=boxes["right"], left=boxes["left"]))


def side_of(points: NDArray[Any]) -> str:
    """The patient's side of an outline, by its middle."""
    return "left" if points[:, 0].min() + points[:, 0].max() > SIDE_PX else "right"


def box_of(points: NDArray[Any]) -> Box:
    """Left, top, right, bottom."""
    return float(points[:, 0].min()), float(points[:, 1].min()), float(points[:, 0].max()), float(points[:, 1].max())


def mean_box(boxes: list[Box]) -> Box:
    """The median of each edge."""
    left, top, right, bottom = np.median(np.array(boxes), axis=0).tolist()
    return left, top, right, bottom


def write_layouts(out: Path, outlines: Path) -> Dataset:
    """A dataset folder whose images are the layouts, one row an outline; patients are the images that they were drawn on."""
    drawn, mean = read_outlines(outlines)
    same: dict[tuple[str, bytes], list[LungOutline]] = {}  # one outline in twenty is listed under two findings
    for one in drawn:
        same.setdefault((one.image, one.points.tobytes()), []).append(one)
    rows, lost = [], 0
    for number, listed in enumerate(same.values()):
        one = listed[0]
        layout = layout_of_polygon(one.points, one.frame, shape=(SIDE_PX, SIDE_PX), finding=one.finding, side=one.side, source=one.image)
        if not layout.mask.any():
            lost += 1  # smaller than a cell of the grid
            continue
        shape = shape_of(layout)
        name = f"images/{number:05d}.png"
        write_png(out / name, from_unit(layout.grid))
        # x and y of the model are parts of the grid, as those of any image
        places = {"x": grid_part(shape.x), "y": grid_part(shape.y)}
        findings = sorted({other.finding for other in listed})
        row = Study(file_name=name, patient_id=one.image, labels=dict.fromkeys(findings, Stated.PRESENT), split=one.part,
                    extra={"own_frame": str(int(one.own_frame))})
        rows.append(with_lesions(row, [Lesion(finding=finding, side=one.side, size=shape.size, **places) for finding in findings]))
    facts = FACTS | {"labels": list(FINDINGS), "mean_lungs": mean, "smaller_than_a_cell": lost}
    write_dataset(out, rows, name="ChestX-Det layouts", synthetic=False, facts=facts)
    return read_dataset(out)


def grid_part(part: float) -> float:
    """A place in parts of the lung's box as one in parts of the grid."""
    return float(np.clip((part + MARGIN) / (1 + 2 * MARGIN), 0, 1))


if __name__ == "__main__":
    sys.exit(main())
