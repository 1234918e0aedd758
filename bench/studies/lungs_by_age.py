"""Width and height of lungs in mm by age, where the pixel spacing is known, and how well the estimates of spacing do there.

    python bench/studies/lungs_by_age.py ../shared/data/open/nih

Reads the images and the official table (`Data_Entry_2017.csv`) of ChestX-ray14: the spacing is that of the original, over the size of the
copy. Lungs are found by the model that ships. All images of children and 160 of normal adults.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from synthorax.data.image_files import read_image
from synthorax.judges.lungs import segment_lungs
from synthorax.physics.grey_curve import estimate_spacing_mm

AGES = ((0, 4), (4, 8), (8, 12), (12, 16), (16, 18), (18, 20), (20, 40), (40, 60), (60, 96))
ADULTS = 160


def main() -> None:
    """Print one row of the table for each range of ages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="images/, metadata.csv and Data_Entry_2017.csv")
    folder = parser.parse_args().folder
    found = np.array([row for row in (_lungs_in_mm(folder, one) for one in _chosen(folder)) if row])
    print("| age | images | width mm | height mm | root of width times height | error, as an adult | error, by age |")
    print("|---|---|---|---|---|---|---|")
    for low, high in AGES:
        rows = found[(found[:, 0] >= low) & (found[:, 0] < high)]
        if len(rows):
            _, width, height, adult, own = np.median(rows, axis=0)
            extent = np.median(np.sqrt(rows[:, 1] * rows[:, 2]))
            print(f"| {low} to {high} | {len(rows)} | {width:.0f} | {height:.0f} | {extent:.0f} | {adult:.0%} | {own:.0%} |")


def _chosen(folder: Path) -> list[tuple[str, float, float]]:
    """File, age and mm a pixel of each image that is measured."""
    with (folder / "Data_Entry_2017.csv").open() as file:
        original = {row["Image Index"]: row for row in csv.DictReader(file)}
    children, adults = [], []
    with (folder / "metadata.csv").open() as file:
        for row in csv.DictReader(file):
            name = Path(row["file_name"]).name
            cells = original[name]
            longest = max(int(cells["OriginalImage[Width"]), int(cells["Height]"]))
            age = float(row["age_years"] or "nan")
            one = row["file_name"], age, longest * float(cells["OriginalImagePixelSpacing[x"])
            if age < 20:
                children.append(one)
            elif row["findings"] == "No Finding" and age < 96:
                adults.append(one)
    order = np.random.default_rng(0).permutation(len(adults))[:ADULTS]
    return [*children, *(adults[number] for number in order)]


def _lungs_in_mm(folder: Path, chosen: tuple[str, float, float]) -> tuple[float, float, float, float, float] | None:
    """Age, width and height of both lungs in mm, and the errors of the spacing as of an adult and by age; None without two lungs."""
    name, age, longest_mm = chosen
    image = read_image(folder / name)
    lungs = segment_lungs(image[None])
    if not lungs.right.any() or not lungs.left.any():
        return None
    both, spacing = lungs.both[0], longest_mm / max(image.shape)
    height, width = (float(np.ptp(np.nonzero(both.any(axis=axis))[0]) + 1) * spacing for axis in (1, 0))
    errors = [abs(estimate_spacing_mm(both, age_years=years)[0] / spacing - 1) for years in (np.nan, age)]
    return age, width, height, errors[0], errors[1]


if __name__ == "__main__":
    main()
