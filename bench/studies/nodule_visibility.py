"""How much do real nodules stand out, and how much do inserted ones? The numbers behind `LEAST_VISIBLE`.

  python bench/studies/nodule_visibility.py --images nih/ --boxes BBox_List_2017.csv --num 24

`--images` is the dataset folder of open NIH images, `--boxes` the NIH's table of radiologists' boxes, in pixels of 1024. A box is looser
than its lesion, so half, seven tenths and all of its smaller half are tried as the radius, and the largest response counts. Prints each
lesion, and the quantiles of nodules that are inserted at random places, before anything is tried again, and of those that `insert`
accepts.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from synthorax.data.image_files import read_image
from synthorax.editing.insertion.nodules import NoduleOptions, insert_nodule
from synthorax.editing.insertion.visibility import conspicuity, visibility
from synthorax.errors import InputError
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.lesions import DIAMETERS_MM, lesion_maker, template_volume
from synthorax.steps.insertion.lungs import LungFinder

BOXES_PX = 1024
RADII = (0.5, 0.7, 1.0)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--num", type=int, default=24, help="hosts")
    options = parser.parse_args()
    find = LungFinder()
    with (options.images / "metadata.csv").open() as table:
        rows = {Path(row["file_name"]).name: row for row in csv.DictReader(table)}
    with options.boxes.open() as table:
        boxes = [line[:6] for line in list(csv.reader(table))[1:] if line[0] in rows and line[1] in DIAMETERS_MM]
    real = []
    for name, finding, *numbers in boxes:
        pixels = read_image(options.images / rows[name]["file_name"])
        x, y, width, height = (float(number) / BOXES_PX for number in numbers)
        lungs = find(pixels[None]).both[0]
        place, half = (x + width / 2, y + height / 2), min(width, height) / 2 * len(pixels)
        real.append(max(conspicuity(pixels, lungs, place=place, radius_px=part * half) for part in RADII))
        print(f"{name}: {finding}, box of {width * len(pixels):.0f} x {height * len(pixels):.0f} px, {real[-1]:.2f}")
    print(f"{len(real)} real ones: {quantiles(real)}")
    hosts = [row for row in rows.values() if row["findings"] == "No Finding" and row["view"] == "PA" and float(row["age_years"] or 0) > 18]
    maker = lesion_maker("Nodule", InsertConfig(), model="template")
    anywhere, kept, tried, refused = [], [], [], 0
    for number, row in enumerate(hosts[:: max(1, len(hosts) // options.num)][: options.num]):
        pixels = read_image(options.images / row["file_name"])
        try:
            lungs = find.of_host(pixels[None])
            inside = lungs.both[0] & ~lungs.heart[0]
            diameter = float(np.exp(np.random.default_rng(number).uniform(*np.log(DIAMETERS_MM["Nodule"]))))
            plain = insert_nodule(pixels, template_volume(diameter, seed=number), lungs=inside, seed=number,
                                  options=NoduleOptions(diameter_mm=diameter))
        except InputError:
            continue
        radius = diameter / plain.record["spacing_mm"] / 2
        anywhere.append(visibility(pixels, plain.pixels, inside, place=plain.record["place"], radius_px=radius).after)
        try:
            made = maker.insert(pixels, lungs, spacing_mm=None, mask=None, seed=number)
        except InputError:
            refused += 1
            continue
        kept.append(made.record["visibility"])
        tried.append(made.record["places"])
    print(f"{len(anywhere)} inserted at random places: {quantiles(anywhere)}")
    print(f"{len(kept)} that insert accepts: {quantiles(kept)}; places tried: {quantiles(tried)}; {refused} refused")
    return 0


def quantiles(values: list[float]) -> str:
    """5 %, median and 95 %."""
    return ", ".join(f"{value:.2f}" for value in np.quantile(values, (0.05, 0.5, 0.95))) if values else "none"


if __name__ == "__main__":
    sys.exit(main())
