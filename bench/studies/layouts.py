"""How good the model of outlines is: drawn outlines against held-back ones, size asked for against size drawn, copies, and placement.

  python bench/studies/layouts.py outlines.json --work layouts --model layout --out layout-study --lungs hannover/

`--work` is the folder that `bench/release/train_layout.py` was given, whose held-back images no training has seen. `--lungs` is a dataset
folder with human lung masks, into which outlines are placed. Writes layouts.json, tables.md, sheet.png and placed.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent.parent / "release"))
from train_layout import FINDINGS, WHOLE_LUNG, read_outlines

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.layouts import Frame, Layout, Shape, frame_of, in_image, layout_of_polygon, outline_mask, shape_of
from synthorax.data.lesions import UNSIDED, lesions_of
from synthorax.data.masks import load_masks
from synthorax.data.pixels import to_unit
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.vocabulary import label_matrix
from synthorax.editing.layouts import MisplacedError, draw_layouts, draw_placed, place_layout
from synthorax.evaluation.metrics.layouts import layout_distances
from synthorax.families.autoencoders.contours import contour_of, laid_out
from synthorax.files import write_atomic, write_json
from synthorax.judges.lungs import LungMasks

SHOWN = 10
TILE = 128
SHRUNK = 3 / 4
"""of the sheet, from a cell of the grid to a pixel"""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A real outline of the set."""

    layout: Layout
    image: str
    split: str
    shape: Shape


def main() -> None:
    """Measure, and write tables and sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outlines", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="layout")
    parser.add_argument("--lungs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=120, help="outlines to draw of a finding")
    parser.add_argument("--sizes", type=int, default=40, help="outlines to draw of a finding of a stated size")
    parser.add_argument("--real", type=int, default=400, help="real outlines of a finding at most, from each split")
    parser.add_argument("--frames", type=int, default=200, help="outlines of patients whose own lungs are known")
    parser.add_argument("--again", type=int, default=30, help="outlines of a finding that are read and laid out again")
    parser.add_argument("--chests", type=int, default=60)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    real = real_outlines(options.work / "prepared", most=options.real)
    maker: Any = sx.load_model(options.model)
    rng = np.random.default_rng(0)
    record: dict[str, Any] = {"model": str(options.model), "findings": {}}
    rows = []
    for finding in FINDINGS:
        held_back = [one for one in real if one.split == "test" and one.layout.finding == finding]
        train = [one for one in real if one.split == "train" and one.layout.finding == finding]
        asked = [held_back[number % len(held_back)] for number in rng.permutation(options.draws)]
        made = draw_layouts(maker, [finding] * options.draws, [one.layout.side for one in asked], [np.nan] * options.draws,
                            range(options.draws))
        shapes = [shape_of(one) for one in made]
        distances = layout_distances([one.shape for one in held_back], shapes, [one.shape for one in train],
                                     images=[one.image for one in held_back])
        sizes = np.quantile([one.shape.size for one in train], np.linspace(0.05, 0.95, options.sizes))
        sided = [one.layout.side for one in asked[:options.sizes]]
        sized = [shape_of(one).size for one in draw_layouts(maker, [finding] * len(sided), sided, sizes.tolist()[:len(sided)],
                                                            range(1000, 1000 + len(sided)))]
        rho = float(spearmanr(sizes, sized).statistic)
        error = float(np.median(np.abs(np.array(sized) / sizes - 1)))
        copies = {name: nearest_overlap(layouts, [one.layout for one in train]) for name, layouts in
                  (("made", made[:60]), ("held back", [one.layout for one in held_back[:60]]))}
        record["findings"][finding] = {"distances": [asdict(one) for one in distances], "size_spearman": rho, "size_error": error,
                                       "nearest_dice": copies,
                                       "solidity": {"made": quartiles(shapes),
                                                    "held back": quartiles([one.shape for one in held_back])},
                                       "train": len(train), "held_back": len(held_back),
                                       "one_part": float(np.mean([parts(one) == 1 for one in made]))}
        rows.append((finding, [one.layout for one in held_back][:SHOWN], made[:SHOWN]))
        print(finding, f"size rho {rho:.2f} error {error:.2f}", {one.property: f"{one.value:.2f}/{one.floor:.2f}" for one in distances},
              record["findings"][finding]["solidity"], copies, flush=True)
    sheet(rows).save(options.out / "sheet.png")
    record["frame"] = frame_cost(options.outlines, most=options.frames)
    record["again"] = cost_of_reading(options.outlines, model=maker, most=options.again)
    print(record["frame"], record["again"], flush=True)
    if options.lungs:
        record["placed"] = placement(maker, options.lungs, options.out / "placed.png", most=options.chests)
    write_json(options.out / "layouts.json", record)
    write_atomic(options.out / "tables.md", tables(record))


def real_outlines(prepared: Path, *, most: int) -> list[Outline]:
    """The first outlines of the prepared layouts, so many a split and finding, one for each finding that it is listed under."""
    folder = Prepared.load(prepared)
    outlines = []
    for split in ("train", "test"):
        images = folder.images(split)
        for study, grid in zip(images.studies, to_unit(images.pixels), strict=True):
            for lesion in lesions_of(study):
                if sum(1 for one in outlines if one.split == split and one.layout.finding == lesion.finding) >= most:
                    continue
                layout = Layout(finding=lesion.finding, side=lesion.side, grid=grid)
                outlines.append(Outline(layout=layout, image=study.patient_id, split=split, shape=shape_of(layout)))
    return outlines


def parts(layout: Layout) -> int:
    """Connected parts of a layout's mask."""
    return int(ndimage.label(layout.mask)[1])


def nearest_overlap(layouts: Sequence[Layout], train: Sequence[Layout]) -> dict[str, float]:
    """Dice coefficient with the most similar training outline of the same finding: median and largest."""
    flat = np.stack([one.mask.ravel() for one in train]).astype(np.float32)
    areas = flat.sum(1)
    best = [float((2 * flat @ one.mask.ravel().astype(np.float32) / (areas + one.mask.sum())).max()) for one in layouts]
    return {"median": float(np.median(best)), "largest": float(np.max(best))}


def quartiles(shapes: Sequence[Shape]) -> list[float]:
    """Of the solidity, and its mean."""
    values = [one.solidity for one in shapes]
    return [*np.quantile(values, [0.25, 0.5, 0.75]).tolist(), float(np.mean(values))]


def frame_cost(outlines: Path, *, most: int) -> dict[str, Any]:
    """How far mean lungs misplace outlines of patients whose own lungs are known: standard deviations, in parts of the box."""
    drawn, mean = read_outlines(outlines)
    known = [one for one in drawn if one.own_frame and one.finding not in (*UNSIDED, *WHOLE_LUNG)]
    errors = []
    for one in known[::max(1, len(known) // most)][:most]:
        assumed = frame_of(one.finding, one.side, right=mean["right"], left=mean["left"])
        pair = [shape_of(layout_of_polygon(one.points, frame, shape=(1024, 1024), finding=one.finding, side=one.side))
                for frame in (one.frame, assumed) if fits(one.points, frame)]
        if len(pair) == 2:
            errors.append([pair[1].x - pair[0].x, pair[1].y - pair[0].y, np.log(pair[1].size / pair[0].size)])
    spread = np.std(errors, axis=0)
    return {"outlines": len(errors), "of": len(known), "sd_x": float(spread[0]), "sd_y": float(spread[1]), "sd_log_size": float(spread[2]),
            "mean_lungs": mean}


def cost_of_reading(outlines: Path, *, model: Any, most: int) -> dict[str, dict[str, float]]:
    """Intersection over union of an outline with what comes back of it, at the images' own 1024 pixels: through the grid, and through the
    contour as the model reads it and lays it out again.
    """
    drawn, _ = read_outlines(outlines)
    found: dict[str, dict[str, float]] = {}
    for finding in FINDINGS:
        overlaps = []
        for one in [one for one in drawn if one.finding == finding and one.part == "test"][:most]:
            mask = outline_mask(one.points, shape=(1024, 1024))
            layout = layout_of_polygon(one.points, one.frame, shape=(1024, 1024), finding=finding, side=one.side)
            contour = contour_of(layout.grid, points=model.config.form_size)
            again = (layout, replace(layout, grid=laid_out(contour, cells=model.config.image_size)))
            overlaps.append([overlap_of(mask, in_image(each, one.frame, (1024, 1024))) for each in again])
        grid, contours = np.quantile(overlaps, [0.5, 0.05], axis=0).T.tolist()
        found[finding] = {"outlines": len(overlaps), "grid": grid[0], "grid_low": grid[1], "contour": contours[0],
                          "contour_low": contours[1]}
    return found


def overlap_of(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


def fits(points: NDArray[np.float64], frame: Frame) -> bool:
    """Whether an outline has at least a cell in a frame."""
    return bool(layout_of_polygon(points, frame, shape=(1024, 1024), finding="", side="").mask.any())


def placement(maker: Any, folder: Path, sheet_path: Path, *, most: int) -> dict[str, Any]:
    """How often outlines fit human lung masks at once, after a shift, and after redraws; and a sheet of them on the images."""
    dataset = read_dataset(folder)
    rows = [study for study in dataset.studies if "lung_mask" in study.masks]
    rows = rows[::max(1, len(rows) // most)][:most]
    masks = load_masks(rows, folder, size=256, classes=("lung",), labels=label_matrix(rows, ()), findings=())
    lungs = np.stack([masks.pixels[row] >= 128 for row in masks.index[:, 0]])
    middle = [round(float(np.nonzero(one)[1].mean())) for one in lungs]
    columns = np.arange(256)[None, None]
    on_right = columns < np.array(middle)[:, None, None]
    human = LungMasks(right=lungs & on_right, left=lungs & ~on_right, heart=np.zeros_like(lungs))
    found: dict[str, Any] = {}
    shown: dict[str, list[tuple[int, NDArray[np.bool_]]]] = {}
    for finding in (name for name in FINDINGS if name not in UNSIDED):
        first = again = 0
        for number in range(len(rows)):
            side = ("left", "right")[number % 2]
            layout, = draw_layouts(maker, [finding], [side], [np.nan], [number])
            try:
                place_layout(layout, human, image=number)
                first += 1
            except MisplacedError:
                pass
            if number % 3 == 0:
                try:
                    _, mask = draw_placed(maker, finding, human, side=side, seed=number, image=number)
                    shown.setdefault(finding, []).append((number, mask))
                    again += 1
                except MisplacedError as error:
                    print(error)
        found[finding] = {"first": first / len(rows), "after_redraws": again / len(range(0, len(rows), 3)), "chests": len(rows)}
        print(finding, found[finding], flush=True)
    images = load_images(type(dataset)(path=folder, name=dataset.name, studies=tuple(rows), findings=(), facts={}), size=256, findings=())
    strips = []
    for placed in shown.values():
        tiles = []
        for number, mask in placed[:8]:
            grey = (images.pixels[number] // (256 if images.pixels.dtype == np.uint16 else 1)).astype(np.float64)
            colour = np.stack([grey] * 3, axis=2)
            colour[mask] = 0.6 * colour[mask] + 0.4 * np.array([255, 120, 0])
            tiles.append(colour.astype(np.uint8)[::2, ::2])
        strips.append(np.concatenate(tiles + [np.zeros((128, 128, 3), np.uint8)] * (8 - len(tiles)), axis=1))
    Image.fromarray(np.concatenate(strips)).save(sheet_path)
    return found


def sheet(rows: Sequence[tuple[str, Sequence[Layout], Sequence[Layout]]]) -> Image.Image:
    """Held-back outlines on the left, drawn ones on the right, a row a finding; the box of the lung is a line."""
    strips = []
    for _, real, made in rows:
        tiles = [*(tile(one, (90, 200, 120)) for one in real), np.full((TILE, 8, 3), 255, np.uint8),
                 *(tile(one, (255, 150, 50)) for one in made)]
        strips.append(np.concatenate(tiles, axis=1))
    image = Image.fromarray(np.concatenate(strips))
    return image.resize((round(image.width * SHRUNK), round(image.height * SHRUNK)), Image.Resampling.LANCZOS)


def tile(layout: Layout, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One outline, as in the image: right lungs are turned back."""
    grid = layout.grid[:, ::-1] if layout.side == "right" else layout.grid
    picture = np.full((TILE, TILE, 3), 25, dtype=np.uint8)
    edge = round(TILE * 0.2 / 1.4)
    picture[edge, edge:-edge] = picture[-edge, edge:-edge] = picture[edge:-edge, edge] = picture[edge:-edge, -edge] = 90
    picture[grid > 0] = colour
    picture[:, -1] = picture[-1] = 0
    return picture


def tables(record: dict[str, Any]) -> str:
    """The tables of the page."""
    names = [one["property"] for one in record["findings"]["Effusion"]["distances"]]
    lines = ["| finding | train, held back | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for finding, found in record["findings"].items():
        cells = [f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}] ({one['floor']:.2f})" for one in found["distances"]]
        lines.append(f"| {finding} | {found['train']}, {found['held_back']} | " + " | ".join(cells) + " |")
    lines += ["", "| finding | Spearman of size | median error of size | nearest training outline: drawn | held back |",
              "|---|---|---|---|---|"]
    for finding, found in record["findings"].items():
        copies = found["nearest_dice"]
        lines.append(f"| {finding} | {found['size_spearman']:.2f} | {found['size_error']:.0%} | {copies['made']['median']:.2f} (at most "
                     f"{copies['made']['largest']:.2f}) | {copies['held back']['median']:.2f} ({copies['held back']['largest']:.2f}) |")
    lines += ["", "| finding | solidity: drawn, median (quartiles), mean | held back |", "|---|---|---|"]
    for finding, found in record["findings"].items():
        cells = [f"{half:.2f} ({low:.2f} to {high:.2f}), {mean:.2f}" for low, half, high, mean in found["solidity"].values()]
        lines.append(f"| {finding} | " + " | ".join(cells) + " |")
    lines += ["", "| finding | outlines | grid: intersection over union, median (5 %) | contour |", "|---|---|---|---|"]
    lines += [f"| {finding} | {found['outlines']} | {found['grid']:.2f} ({found['grid_low']:.2f}) | {found['contour']:.2f} "
              f"({found['contour_low']:.2f}) |" for finding, found in record["again"].items()]
    if "placed" in record:
        lines += ["", "| finding | fits at once | after redraws |", "|---|---|---|"]
        lines += [f"| {finding} | {found['first']:.0%} | {found['after_redraws']:.0%} |" for finding, found in record["placed"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
