"""Train the judge of plausible chests: real frontal images and drawn thoraces, and the same ones with anatomy that is wrong.

  python bench/release/train_plausible_chest.py --sets nih/ kermany/ --out chest
  python bench/release/train_plausible_chest.py --sets nih/ kermany/ --out chest --leave-out "a mirrored image"

Only patients who are not held out train (`pseudo_lungs.is_held_out`), so that the guard can be measured on the others. --out gets the
images that were read, `plausible-chest.safetensors` and `facts.json`. --leave-out trains without kinds of failure, to measure how well the
judge sees what it was not shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from check_guard import read_frontal
from numpy.typing import NDArray
from pseudo_lungs import is_held_out
from varied_failures import KINDS, harmless

from synthorax.data.phantom import PhantomSpec, draw_phantom
from synthorax.files import write_json
from synthorax.judges.config import ClassifierConfig
from synthorax.judges.fitting import Variation, fit, image_batches, standardise, vary
from synthorax.judges.lungs import segment_lungs
from synthorax.judges.plausible_chest import IMAGE_SIZE, INTACT, MODEL_NAME, ChestNetwork, chest_judge, save_chest_judge
from synthorax.judges.residual import initialise

DRAWN = 150
"""drawn thoraces among the images"""
HARMLESS = 0.25
"""part of the intact images in which something is replaced by itself"""
INTACT_WEIGHT = 5.0
"""how many images of one kind of failure count as much as the intact ones"""
OUTLINED_SIZE = 128
"""pixels a side at which lungs and hearts are outlined"""
DRAWS = 2
"""of every kind from every image"""
SLIGHT = Variation(degrees=6, scale=0.05, shift=0.06, contrast=0.2, brightness=0.1, noise=0.05)
PER_PATIENT = 4
SEED = 0


def read_images(folders: list[Path], cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[str, int]]:
    """Training images [N, S, S], their right lungs, left lungs and hearts [N, 3, S, S], and how many of each source."""
    if not cache.exists():
        parts, counts = [], {}
        for folder in folders:
            pixels, _, patients = read_frontal(folder)
            seen: dict[str, int] = {}
            rows = []
            for row, patient in enumerate(patients):
                seen[patient] = seen.get(patient, 0) + 1
                if not is_held_out(patient) and seen[patient] <= PER_PATIENT:
                    rows.append(row)
            parts.append(_shrunk(pixels[rows], OUTLINED_SIZE))
            counts[folder.name] = len(rows)
        specs = [PhantomSpec(seed=90_000 + number, view="AP" if number % 3 == 0 else "PA") for number in range(DRAWN)]
        parts.append(np.stack([draw_phantom(spec, size=OUTLINED_SIZE).image for spec in specs]))
        pixels = np.concatenate(parts)
        found = segment_lungs(pixels)
        np.savez_compressed(cache, pixels=pixels, organs=np.stack([found.right, found.left, found.heart], axis=1),
                            names=list(counts), counts=list(counts.values()))
    with np.load(cache) as stored:
        organs = np.stack([_shrunk(255 * part.astype(np.uint8), IMAGE_SIZE) >= 128 for part in stored["organs"].swapaxes(0, 1)], axis=1)
        return _shrunk(stored["pixels"], IMAGE_SIZE), organs, dict(zip(stored["names"].tolist(), stored["counts"].tolist(), strict=True))


def _shrunk(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    small = F.interpolate(torch.from_numpy(images.astype(np.float32))[:, None], size=(size, size), mode="area")
    return np.asarray(small[:, 0].round().byte().numpy())


def examples(pixels: NDArray[np.uint8], organs: NDArray[np.bool_], kinds: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Images and classes: each image intact, twice, then `DRAWS` of every kind. A kind that changes nothing of an image is left out."""
    images, classes = [], []
    for number, (image, parts) in enumerate(zip(pixels, organs, strict=True)):
        rng = np.random.default_rng([SEED, number])
        for draw in range(DRAWS):
            images.append(harmless(image, parts, rng) if draw and rng.random() < 2 * HARMLESS else image)
            classes.append(0)
            for label, kind in enumerate(kinds, start=1):
                made = KINDS[kind](image, parts, rng)
                if np.abs(made.astype(np.float32) - image).mean() > 1:
                    images.append(made)
                    classes.append(label)
    return np.stack(images), np.array(classes)


def main() -> None:
    """Make the images, train, and write the weights and what they were trained with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--leave-out", nargs="*", default=[], choices=list(KINDS), metavar="KIND")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pixels, organs, counts = read_images(args.sets, args.out / "images.npz")
    kinds = [kind for kind in KINDS if kind not in args.leave_out]
    images, classes = examples(pixels, organs, kinds)
    share = np.bincount(classes, minlength=len(kinds) + 1)
    weights = np.where(classes == 0, INTACT_WEIGHT, 1.0) / share[classes]
    generator = torch.Generator().manual_seed(SEED)
    network = ChestNetwork(num_classes=len(kinds) + 1)
    initialise(network, head=network.head, bias=0.0, generator=generator)
    config = ClassifierConfig(updates=args.updates, batch_size=48, learning_rate=4e-3, weight_decay=0.02)

    def loss_of(rows: NDArray[np.intp]) -> torch.Tensor:
        inputs = vary(standardise(images[rows], size=IMAGE_SIZE), by=SLIGHT, generator=generator)[0]
        logits = network(inputs.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits, torch.from_numpy(classes[rows]), label_smoothing=0.02)

    losses = fit(network, loss_of, batches=image_batches(len(images), weights, config=config, seed=SEED), config=config,
                 judge="judge of plausible chests", progress=_print_hundreds)
    judge = chest_judge(network, classes=(INTACT, *kinds))
    save_chest_judge(judge, args.out / f"{MODEL_NAME}.safetensors")
    write_json(args.out / "facts.json", {"images": counts, "drawn": DRAWN, "updates": args.updates, "batch_size": config.batch_size,
                                         "learning_rate": config.learning_rate, "left_out": args.leave_out, "classes": judge.classes,
                                         "loss": [float(np.mean(losses[:50])), float(np.mean(losses[-50:]))]})


def _print_hundreds(part: float, text: str) -> None:
    if text.split()[-3].endswith("00"):
        print(text, flush=True)


if __name__ == "__main__":
    main()
