"""Draw inserted lesions: host, result, difference and mask, and the place enlarged before and after, one row an image.

    synthorax insert FOLDER --finding Nodule --seed 1 --out inserted/
    python bench/studies/insertion_figure.py inserted/ docs/images/insert-nodules.png --rows 4
    python bench/studies/insertion_figure.py effusions/ masses/ docs/images/insert-findings.png --rows 1 --tiles 4

Reads the private manifest of the set, so the figure shows patients: publish it only of images whose terms allow that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from synthorax.data.derived import read_manifest
from synthorax.data.image_files import read_image
from synthorax.data.pixels import letterbox

TILE_PX = 256
DIFFERENCE = 4
"""how much the difference is enlarged"""


def main() -> None:
    """Draw the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="what `synthorax insert` wrote")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--hosts", default="", help="draw only hosts with this in their name")
    parser.add_argument("--tiles", type=int, default=6, help="of a row; 4 leave out the place enlarged")
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="how many images of each folder to pass over")
    given = parser.parse_args()
    rows = []
    for folder, skip in zip(given.folder, given.skip or [0] * len(given.folder), strict=True):
        lines = [line for line in read_manifest(folder) if "study" in line and given.hosts in line["host"]]
        rows += [row_of(folder, line)[:, : given.tiles * TILE_PX] for line in lines[skip : skip + given.rows]]
    Image.fromarray(np.vstack(rows)).save(given.out, optimize=True)


def row_of(folder: Path, line: dict[str, object]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Six tiles of one image, [TILE_PX, 6 TILE_PX]."""
    study = line["study"]
    assert isinstance(study, dict)
    host, result = read_image(str(line["host"])), read_image(folder / str(line["file_name"]))
    mask = read_image(folder / study["masks"]["lesion_mask"][-1])
    top = np.iinfo(host.dtype).max
    grey, changed = (np.asarray(image / top * 255) for image in (host, result))
    difference = np.clip(128 + DIFFERENCE * (changed - grey), 0, 255)
    rows, columns = np.nonzero(mask)
    half = max(24, round(1.5 * max(np.ptp(rows), np.ptp(columns))))
    middle = [int(np.clip(axis.mean(), half, max(half, length - half))) for axis, length in zip((rows, columns), mask.shape, strict=True)]
    near = tuple(slice(max(0, at - half), at + half) for at in middle)
    tiles = [letterbox(np.asarray(tile).astype(np.uint8), TILE_PX) for tile in (grey, changed, difference, mask, grey[near], changed[near])]
    return np.hstack(tiles)


if __name__ == "__main__":
    main()
