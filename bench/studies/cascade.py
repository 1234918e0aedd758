"""How far do the stages that enlarge twice get? First on shrunken images, of which there are many, then on the originals at hand.

  python bench/studies/cascade.py --images prepared-256/ --originals originals/ --out bench-cascade --budget 20m

Three trainings, each from the weights of the one before: `super-512` at half its size on the images of a prepared folder (128 to 256 px),
then `super-512` and `super-1024` on crops of original pictures that are large enough, one patient a picture. Every stage then enlarges
held-out images that were shrunk by half, beside cubic interpolation: PSNR, and how much detail there is that the shrunken image lacks,
as its standard deviation over that of the real image, and its correlation with the real one. Then patches of the real images are
refined, and the gradient across their borders is compared with that beside them, before, after, and after a hard paste.
Writes cascade.json, cascade.md and cascade.png (it shows real images: keep it where they may lie); finished trainings are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import synthorax as sx
from synthorax.data.prepared import Prepared
from synthorax.editing.lesion_refinement import Patch, RefineConfig, refine
from synthorax.engine import started
from synthorax.evaluation.metrics.ssim import psnr
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.evaluation.statistics.intervals import Z_95
from synthorax.families.denoising.conditioning_augmentation import resized
from synthorax.families.denoising.model import DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.protocols import Condition, SampleSettings
from synthorax.run import Run, read_spec
from synthorax.threads import available_cores
from synthorax.training.feed import unit_images
from synthorax.types import Lesion

BOX = (0.3, 0.35, 0.04, 0.04)
LESION = Lesion(finding="Nodule", box=BOX)
WINDOW = 128
"""pixels of a side of what the picture shows of an image"""
FEWEST = 5
"""pictures of a size"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training; each starts from the one before."""

    size: int
    recipe: str
    share: float
    """of the budget"""
    overrides: tuple[str, ...] = ()


STAGES = (Stage(size=256, recipe="super-512", share=0.6, overrides=("model.image_size=256", "objective.crop=128", "train.batch_size=16")),
          Stage(size=512, recipe="super-512", share=0.2, overrides=("train.learning_rate=2e-4",)),
          Stage(size=1024, recipe="super-1024", share=0.2, overrides=("train.learning_rate=2e-4",)))


def main() -> int:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="prepared folder of images of 256 px")
    parser.add_argument("--originals", type=Path, required=True, help="folder of pictures; those whose shorter side suffices are used")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=20.0, help="minutes of processor time of all trainings")
    parser.add_argument("--num", type=int, default=48, help="held-out images at most")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    base, rows, shown = None, [], []
    for stage in STAGES:
        prepared = Prepared.load(options.images) if stage is STAGES[0] else originals(options.originals, options.out, size=stage.size)
        run = sx.train(stage.recipe, prepared, out=options.out / str(stage.size), base=base, budget=60 * options.budget * stage.share,
                       clock="processor", threads=options.threads, seed=0,
                       overrides=[*stage.overrides, "train.steps=1000000000", "train.sample_every=0"])
        base = run.weights
        with started(threads=options.threads) as engine, engine.autocast():
            row, pictures = row_and_pictures(run, prepared, num=options.num)
        rows.append({"size": stage.size, **row})
        shown += pictures
    write_json(options.out / "cascade.json", {"budget_minutes": options.budget, "stages": rows})
    write_atomic(options.out / "cascade.md", table(rows))
    captions = ["real", "cubic", "made", "real, refined in the middle"] * (len(shown) // 4)
    save_png(options.out / "cascade.png", contact_sheet(np.stack(shown), columns=4, tile_px=2 * WINDOW, captions=captions))
    print(table(rows))
    return 0


def originals(folder: Path, out: Path, *, size: int) -> Prepared:
    """The pictures of a folder that have `size` pixels, 3 of 5 for training and the others held out."""
    prepared, chosen = out / f"prepared-{size}", out / f"originals-{size}" / "Unlabelled"
    if prepared.exists():
        return Prepared.load(prepared)
    for old in (out / f"films-{size}", chosen.parent):
        shutil.rmtree(old, ignore_errors=True)
    chosen.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and min(Image.open(path).size) >= size:
            shutil.copyfile(path, chosen / path.name)
    if len(list(chosen.iterdir())) < FEWEST:
        raise SystemExit(f"{folder} has fewer than {FEWEST} pictures of {size} px")
    images = sx.ingest(chosen.parent, out=out / f"films-{size}", patient_per_image=True)
    return sx.prepare(images, size=size, out=prepared, split=(0.6, 0.0, 0.4), patient_per_image=True)


def row_and_pictures(run: Run, prepared: Prepared, *, num: int) -> tuple[dict[str, Any], list[Any]]:
    """A row of the table, and four pictures of the first two images."""
    model = sx.load_model(run.path)
    assert isinstance(model, DiffusionModel)
    images = prepared.images("test")
    real = unit_images(images.pixels[:num])
    facts = read_spec(run.weights)[1]
    size, made, cubic = prepared.size, [], []
    for row, image in enumerate(real.split(1)):
        small = resized(image, (size // 2, size // 2))
        asked = replace(Condition.unstated(1, num_labels=len(model.spec.findings), num_sites=len(model.spec.sites)), image=small)
        made.append(model.sample(asked, [row], SampleSettings(steps=8, guidance=1.0, conditioning_noise=0.0)).float())
        cubic.append(resized(small, (size, size)))
    ours, plain = torch.cat(made), torch.cat(cubic)
    record: dict[str, Any] = {"trained on": facts["data"]["images"], "steps": facts["steps"], "crops": facts["images_seen"],
                              "images": len(real)}
    for name, enlarged in (("cubic", plain), ("made", ours)):
        record[f"PSNR {name}"] = interval(psnr(enlarged, real, data_range=2.0))
        own, theirs = detail(enlarged), detail(real)
        record[f"detail {name}"] = interval(own.std((1, 2, 3)) / theirs.std((1, 2, 3)))
        record[f"correlation {name}"] = interval(correlation(own, theirs))
    seams, refined = seam_test(model, real)
    record |= {f"seam {name}": interval(values) for name, values in seams.items()}
    rows, columns = (slice(int(size * (at + 0.02)) - WINDOW // 2, int(size * (at + 0.02)) + WINDOW // 2) for at in BOX[1::-1])
    return record, [grey(one[row, 0][rows, columns]) for row in range(2) for one in (real, plain, ours, refined)]


def detail(images: Tensor) -> Tensor:
    """What an image loses when it is shrunk by half and enlarged again, [B, 1, S, S]."""
    side = images.shape[2]
    return images - resized(resized(images, (side // 2, side // 2)), (side, side))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, of each pair of images, [B]."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (first, second))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def seam_test(model: DiffusionModel, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Steepness across the border of a refined patch in parts of that beside it: before, after, and when pasted without blending; and the
    refined images.
    """
    asked, seeds = [[LESION]] * len(images), list(range(len(images)))
    soft = refine(model, images, asked, seeds=seeds, config=RefineConfig(level=0.2))
    hard = refine(model, images, asked, seeds=seeds, config=RefineConfig(level=0.2, blend=0.0))
    return {name: torch.tensor([seam(image[0], patch[0]) for image, patch in zip(each, soft.patches, strict=True)])
            for name, each in (("before", images), ("after", soft.images), ("hard", hard.images))}, soft.images


def seam(image: Tensor, patch: Patch) -> float:
    """How steep an image [S, S] is across the border of a square, over the steepest of six lines beside it; 1 is no steeper."""

    def step(shift: int) -> float:
        top, left, side = patch
        low, high = -shift, side + shift
        rows, columns = slice(top + low, top + high), slice(left + low, left + high)
        pairs = [(image[top + low, columns], image[top + low - 1, columns]), (image[top + high - 1, columns], image[top + high, columns]),
                 (image[rows, left + low], image[rows, left + low - 1]), (image[rows, left + high - 1], image[rows, left + high])]
        return torch.cat([(one - other).abs() for one, other in pairs]).mean().item()

    return step(0) / max(step(shift) for shift in (-4, -3, -2, 2, 3, 4))


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean over images with its 95 % interval."""
    error = Z_95 * float(values.std()) / len(values) ** 0.5
    return float(values.mean()), float(values.mean()) - error, float(values.mean()) + error


def grey(image: Tensor) -> Any:
    """An image in [-1, 1] in 8 bits."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    names = ("PSNR cubic", "PSNR made", "detail cubic", "detail made", "correlation cubic", "correlation made", "seam before", "seam after",
             "seam hard")
    first = ("to, px", "trained on, images", "steps", "crops seen", "held-out images")
    lines = ["| " + " | ".join([*first, *names]) + " |", "|---" * (len(first) + len(names)) + "|"]
    for row in rows:
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(*row[name]) for name in names]
        lines.append("| " + " | ".join([*(str(row[key]) for key in ("size", "trained on", "steps", "crops", "images")), *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
