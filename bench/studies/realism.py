"""What the check of realism calls unlike the real images of a set: planted ones of many kinds, and real ones of other patients.

    python bench/studies/realism.py prepared/ --size 64 --splits 5 --most 600 --also trained=made/

Each split fits the check on half of the patients (of the whole prepared folder, at most `--most` images) and asks it about images of the
other half, as they are and changed. `--also NAME=FOLDER` adds a dataset folder. Prints a Markdown table: parts called, over all splits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from synthorax.data.dataset import read_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.evaluation.statistics.roc import wilson
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.realism import RealismCheck

Grey = NDArray[np.float64]
CHANGED = 100
"""images of each kind in a split"""


def photographs(images: Grey, rng: np.random.Generator) -> Grey:
    """Random squares of the two photographs that come with scikit-learn, in grey."""
    photos, side, found = [photo.mean(axis=2) / 255 for photo in load_sample_images().images], images.shape[1], []
    for number in range(len(images)):
        photo = photos[number % len(photos)]
        part = int(rng.integers(side, min(photo.shape)))
        top, left = (int(rng.integers(0, length - part + 1)) for length in photo.shape)
        square = Image.fromarray(photo[top : top + part, left : left + part].astype(np.float32))
        found.append(np.asarray(square.resize((side, side), Image.Resampling.BOX)))
    return np.stack(found)


def salt_and_pepper(images: Grey, rng: np.random.Generator) -> Grey:
    """One pixel in ten black or white."""
    chance = rng.random(images.shape)
    return np.where(chance < 0.05, 0, np.where(chance > 0.95, 1, images))


def grainy_patches(images: Grey, rng: np.random.Generator) -> Grey:
    """Patches of an eighth of the side in shades of their own, under noise."""
    block = images.shape[1] // 8
    return 0.5 + 0.12 * np.kron(rng.normal(size=(len(images), 8, 8)), np.ones((block, block))) + 0.1 * rng.normal(size=images.shape)


def blurred(images: Grey, *, part: float) -> Grey:
    """Gaussian blur with a standard deviation of `part` of the side."""
    std = part * images.shape[1]
    return np.asarray(ndimage.gaussian_filter(images, (0, std, std)))


KINDS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "real, other patients": lambda x, rng: x,
    "Gaussian noise": lambda x, rng: 0.5 + 0.2 * rng.normal(size=x.shape),
    "smooth noise": lambda x, rng: 0.5 + 2 * blurred(rng.normal(size=x.shape), part=0.05),
    "salt and pepper, one pixel in ten": salt_and_pepper,
    "grainy patches": grainy_patches,
    "half denoised: blurred, under noise of 12 %": lambda x, rng: blurred(x, part=0.06) + 0.12 * rng.normal(size=x.shape),
    "real under noise of 20 %": lambda x, rng: x + 0.2 * rng.normal(size=x.shape),
    "real under noise of 10 %": lambda x, rng: x + 0.1 * rng.normal(size=x.shape),
    "real under noise of 5 %": lambda x, rng: x + 0.05 * rng.normal(size=x.shape),
    "constant": lambda x, rng: np.ones_like(x) * rng.random((len(x), 1, 1)),
    "mean image under noise of 1 %": lambda x, rng: x.mean(axis=0) + 0.01 * rng.normal(size=x.shape),
    "blurred by 3 % of the side": lambda x, rng: blurred(x, part=0.03),
    "inverted": lambda x, rng: 1 - x,
    "turned by 90 degrees": lambda x, rng: np.rot90(x, axes=(1, 2)),
    "turned by 180 degrees": lambda x, rng: x[:, ::-1, ::-1],
    "mirrored left to right": lambda x, rng: x[:, :, ::-1],
    "photographs": photographs,
}


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--most", type=int, default=600)
    parser.add_argument("--also", action="append", default=[])
    given = parser.parse_args()
    prepared = Prepared.load(given.prepared)
    real, also = prepared.images(size=given.size), [one.partition("=")[::2] for one in given.also]
    made = {name: load_images(read_dataset(folder), size=given.size, findings=()).pixels for name, folder in also}
    called: dict[str, list[NDArray[np.bool_]]] = {}
    begin, judged = time.process_time(), 0
    for split in range(given.splits):
        rng, half = np.random.default_rng(split), patient_folds(real.patients(), folds=2, seed=split)
        check = RealismCheck.fit(real.take(rng.permutation(np.flatnonzero(half == 0))[: given.most]))
        others = real.pixels[half == 1]
        for name, change in KINDS.items():
            images = others if name == "real, other patients" else rng.permutation(others)[:CHANGED]
            highest = np.iinfo(images.dtype).max
            changed = np.rint(np.clip(change(images / highest, rng), 0, 1) * highest).astype(images.dtype)
            called.setdefault(name, []).append(check.check(changed).unrealistic)
            judged += len(changed)
        for name, images in made.items():
            called.setdefault(name, []).append(check.check(images).unrealistic)
    print(f"{check.num_real} real images in the last of {given.splits} splits; {(time.process_time() - begin) / judged:.4f} s an image\n")
    print("| images | called unlike the real ones | interval |\n|---|---|---|")
    for name, found in called.items():
        every = np.concatenate(found)
        low, high = wilson(int(every.sum()), len(every))
        print(f"| {name} | {every.sum()} of {len(every)} ({every.mean():.1%}) | {low:.1%} to {high:.1%} |")


if __name__ == "__main__":
    main()
