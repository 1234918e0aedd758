"""Train compressors on a prepared folder and measure what they keep of images that they never saw.

  python bench/studies/reconstruction.py --data prepared/nih-256 --lesions sets/jsrt sets/cohen --budget 30m --out runs/reconstruction

Every recipe is trained into its own folder under --out, or taken from there if it is finished. Measured are PSNR and MS-SSIM on the
test images, and SSIM averaged inside lesion masks on the test images and on all images of the sets under --lesions, which train nothing.
Reconstructions are rounded to 8 bits first. Intervals are bootstrapped over patients. Writes reconstruction.json, reconstruction.md
and sheet.png (images above their reconstructions; it shows real images, so keep it where the images may lie).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import synthorax as sx
from synthorax.data.masks import lesion_union
from synthorax.data.pixels import from_unit
from synthorax.data.prepared import Prepared, load_images
from synthorax.evaluation.metrics.ms_ssim import ms_ssim
from synthorax.evaluation.metrics.ssim import psnr, to_intensity
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.families.autoencoders.vq_gan import VqGanModel
from synthorax.files import write_atomic, write_json
from synthorax.losses.lesion import lesion_ssim_loss
from synthorax.nets.wavelet import WaveletPacking
from synthorax.run import Run, read_spec
from synthorax.training.feed import unit_images
from synthorax.types import ImageSet

BATCH = 8
DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to store an image in fewer or other numbers."""

    name: str
    stored: str
    """what is kept of an image"""
    back_and_forth: Callable[[Tensor], Tensor]
    """images [B, 1, S, S] in [-1, 1] to their reconstructions"""
    facts: dict[str, object]


class BlockMeans(nn.Module):
    """Means over blocks, enlarged by cubic interpolation: what a trained compressor with as many numbers must beat."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = 1, factor

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=self.factor, mode="bicubic", align_corners=False).clamp(-1, 1)


def main() -> int:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder: its training images train, its test images measure")
    parser.add_argument("--lesions", type=Path, nargs="*", default=[], help="further sets with lesion masks, for measuring only")
    parser.add_argument("--recipes", nargs="*", default=["kl-autoencoder-256", "vq-gan-256"])
    parser.add_argument("--budget", default=None, help="of each training, for example 30m; without it train.steps of the recipe decides")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of every recipe")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    prepared = Prepared.load(options.data)
    runs = [Run(path=options.out / recipe) for recipe in options.recipes]
    for recipe, run in zip(options.recipes, runs, strict=True):
        if not run.weights.exists():
            sx.train(recipe, prepared, out=run.path, budget=options.budget, overrides=options.set, threads=options.threads)

    images = prepared.images("test", masks=True)
    sets = {prepared.path.name: images}
    for folder in options.lesions:
        sets[folder.name] = load_images(sx.ingest(folder), size=prepared.size, masks=True)
    means = of_module("means of 4 x 4 pixels, enlarged", BlockMeans(4), prepared.size)
    contenders = [of_module("wavelet packing, 2 levels", WaveletPacking(2), prepared.size), means,
                  *(of_run(run, prepared.size) for run in runs)]
    values = [quality_of(contender, images, sets) for contender in contenders]
    of_means = values[contenders.index(means)]
    results = [summary(contender, own, of_means, images, sets) for contender, own in zip(contenders, values, strict=True)]
    write_json(options.out / "reconstruction.json", {"data_digest": prepared.digest, "test_films": len(images),
                                                     "test_patients": len(set(images.patients())), "contenders": results})
    table = as_table(results)
    write_atomic(options.out / "reconstruction.md", table)
    save_png(options.out / "sheet.png", sheet(contenders, sets))
    print(table)
    print(json.dumps(results))
    return 0


def of_module(name: str, module: nn.Module, size: int, facts: dict[str, object] | None = None) -> Contender:
    """A compressor as a contender."""
    places = (size // module.factor) ** 2
    stored = f"{module.channels * places:,} numbers"
    if isinstance(module, VqGanModel):
        stored = f"{places:,} words of {len(module.quantizer.codes):,}"
    return Contender(name=name, stored=stored, facts=facts or {}, back_and_forth=lambda images: module.decode(module.encode(images)))


def of_run(run: Run, size: int) -> Contender:
    """The compressor of a finished run."""
    model = sx.load_model(run.path)
    _, facts = read_spec(run.weights)
    seconds = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])["elapsed_seconds"]
    known = {"steps": facts["steps"], "images_seen": facts["images_seen"], "training_seconds": round(seconds)}
    if isinstance(model, VqGanModel):
        known |= {"codes": len(model.quantizer.codes), "code_perplexity": round(model.quantizer.perplexity(), 1)}
    assert isinstance(model, nn.Module)
    return of_module(facts["recipe"], model, size, known)


def quality_of(contender: Contender, images: ImageSet, sets: dict[str, ImageSet]) -> dict[str, NDArray[np.float64]]:
    """Each measure of each image, [N]: `psnr_db`, `ms_ssim`, and for each set of marked images `lesion_ssim <set>`."""
    first, second = to_intensity(images.pixels), to_intensity(reconstructed(contender, images.pixels))
    values = {"psnr_db": in_parts(psnr, first, second), "ms_ssim": in_parts(ms_ssim, first, second)}
    for name, these in sets.items():
        chosen, mask = marked(these)
        values[f"lesion_ssim {name}"] = lesion_ssim(chosen.pixels, reconstructed(contender, chosen.pixels), mask)
    return values


def summary(contender: Contender, own: dict[str, NDArray[np.float64]], means: dict[str, NDArray[np.float64]], images: ImageSet,
            sets: dict[str, ImageSet]) -> dict[str, object]:
    """Mean of each measure with its 95 % interval over patients, and of its difference from block means, image by image."""
    patients = {f"lesion_ssim {name}": marked(these)[0].patients() for name, these in sets.items()}
    result: dict[str, object] = {"name": contender.name, "stored": contender.stored, **contender.facts}
    for measure, values in own.items():
        of_whom = patients.get(measure, images.patients())
        if np.isfinite(values).all():
            result[measure] = over_patients(values, of_whom) | {"images": len(values)}
            result[f"{measure} beyond means"] = over_patients(values - means[measure], of_whom)
        else:
            result[measure] = "exact"  # without any error, PSNR is infinite
    return result


def marked(images: ImageSet) -> tuple[ImageSet, NDArray[np.float32]]:
    """The images that have a lesion mask, and where their lesions are, [N, 1, S, S]."""
    assert images.masks is not None
    mask = lesion_union(images.masks, range(len(images)), images.findings)
    rows = np.nonzero(mask.any(axis=(1, 2, 3)))[0]
    return images.take(rows), mask[rows]


def reconstructed(contender: Contender, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Images [N, S, S] compressed and back, in 8 bits."""
    with torch.inference_mode():
        parts = [contender.back_and_forth(part) for part in unit_images(images).split(BATCH)]
    return from_unit(torch.cat(parts)[:, 0].numpy(), np.uint8)


def lesion_ssim(images: NDArray[np.uint8], made: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.float64]:
    """SSIM of each image averaged inside its lesions, [N]."""
    inputs = (unit_images(made), unit_images(images), torch.from_numpy(mask))
    parts = zip(*(tensor.double().split(BATCH) for tensor in inputs), strict=True)
    return torch.cat([1 - lesion_ssim_loss(*part) for part in parts]).numpy()


def in_parts(metric: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> NDArray[np.float64]:
    return torch.cat([metric(a, b) for a, b in zip(first.split(BATCH), second.split(BATCH), strict=True)]).numpy()


def over_patients(values: NDArray[np.float64], patients: NDArray[np.str_]) -> dict[str, float]:
    """Mean over images and its percentile interval over patients drawn with replacement, all images of a patient together."""
    names, owner = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def as_table(results: Sequence[dict]) -> str:
    """The results in Markdown."""
    measures = [key for key in results[-1] if key.startswith(("psnr", "ms_ssim", "lesion_ssim")) and "beyond" not in key]
    heads = [f"{measure} ({results[-1][measure]['images']} images)" for measure in measures]
    lines = ["| compressor | stored | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for one in results:
        lines.append("| " + " | ".join([one["name"], one["stored"], *(formatted(one[measure]) for measure in measures)]) + " |")
    lines += ["", "Difference from the means, image by image:", ""]
    lines += ["| compressor | " + " | ".join(measures) + " |", "|---" * (1 + len(heads)) + "|"]
    for one in results[2:]:
        lines.append("| " + " | ".join([one["name"], *(formatted(one[f"{measure} beyond means"]) for measure in measures)]) + " |")
    return "\n".join(lines) + "\n"


def formatted(score: dict[str, float] | str) -> str:
    if isinstance(score, str):
        return score
    digits = 1 if abs(score["value"]) > 2 else 3
    return f"{score['value']:.{digits}f} ({score['low']:.{digits}f} to {score['high']:.{digits}f})"


def sheet(contenders: Sequence[Contender], sets: dict[str, ImageSet]):
    """Two marked images of each set in the first row, each contender's reconstructions below."""
    rows = []
    for images in sets.values():
        chosen, _ = marked(images)
        rows.append(chosen.pixels[:: max(1, len(chosen) // 2)][:2])
    real = np.concatenate(rows)
    shown_images = [real, *(reconstructed(contender, real) for contender in contenders)]
    captions = [name for name in ("image", *(contender.name for contender in contenders)) for _ in real]
    return contact_sheet(np.concatenate(shown_images), columns=len(real), captions=captions, tile_px=256)


if __name__ == "__main__":
    sys.exit(main())
