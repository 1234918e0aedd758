"""Does the lesion-preserving loss keep lesions of real images? The same training with and without it, at equal time, on patients not seen.

  python bench/studies/lesions.py --sources nih/ jsrt/ cohen/ --out bench-lesions --base-budget 60m --steps 1200 --seeds 0 1

Trains the recipe `controlled-64` on images of all sources without lesion terms, goes on from it once per arm and seed, then asks each model
for the held-out images with lesion outlines: regenerated from a noise level on, and made from nothing but the mask and what is stated.
Compute is equal: a step with lesion terms costs more processor time, so that arm makes fewer of them, by the ratio measured at the start.
Differences are on minus off, averaged over seeds, with intervals over patients. Every training is kept in --out, so a killed bench goes
on; `--train ARM SEED` does one training only, for machines on which several can run side by side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import synthorax as sx
from synthorax.data.dataset import read_dataset, write_facts, write_table
from synthorax.data.masks import lesion_union, mask_stack
from synthorax.data.pixels import from_unit
from synthorax.data.prepared import Prepared
from synthorax.diffusion.guidance import guided
from synthorax.diffusion.noise import karras_sigmas
from synthorax.diffusion.samplers import solve
from synthorax.engine import started
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.families.denoising.model import DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.losses.lesion import lesion_ssim_loss, masked_error
from synthorax.protocols import Condition, SampleSettings, as_model, condition_of
from synthorax.rng import Draws, derive
from synthorax.run import WEIGHTS_NAME
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.steps.training.train_run import without_no_finding
from synthorax.training.feed import Feed, unit_images
from synthorax.types import ImageSet

SIZE_PX = 64
OFF = ("objective.lesion.mask_weight=0.0",)
ON = ("objective.lesion.mask_weight=0.1", "objective.lesion.ssim_weight=0.02", "objective.lesion.perceptual_weight=0.02")
ARMS = {"off": OFF, "on": ON}
COMMON = ("train.learning_rate=5e-4", "train.sample_every=0")
LEVELS = (0.25, 0.5, 1.0, 2.0)
"""noise levels from which images are regenerated"""
STEPS, NOISES = 12, 2
Vector = NDArray[np.float64]


def main() -> int:
    """Train what is missing, measure, and write lesions.json, lesions.md and a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True, help="dataset folders of real images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base-budget", default="60m", help="of the training that both arms start from")
    parser.add_argument("--steps", type=int, default=1200, help="of an arm without lesion terms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train", nargs=2, metavar=("ARM", "SEED"), help="do this one training and stop")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    prepared = prepare(options.sources, options.out)
    if options.train:
        train(options.train[0], int(options.train[1]), prepared, options)
        return 0
    runs = {arm: [train(arm, seed, prepared, options) for seed in options.seeds] for arm in ARMS}
    report = measure(runs, prepared, options.out)
    write_json(options.out / "lesions.json", report)
    write_atomic(options.out / "lesions.md", table(report))
    print(table(report))
    return 0


def prepare(sources: Sequence[Path], out: Path, *, size: int = SIZE_PX) -> Prepared:
    """All images of the sources as one data set, a third of the patients held out."""
    merged = out / "images"
    if not (merged / "dataset.json").exists():
        shutil.rmtree(merged, ignore_errors=True)
        studies = []
        for source in sources:
            for study in read_dataset(source).studies:
                masks = {column: tuple(f"{source.name}/{path}" if path else "" for path in paths) for column, paths in study.masks.items()}
                studies.append(replace(study, file_name=f"{source.name}/{study.file_name}", masks=masks, site=study.site or source.name,
                                       patient_id=f"{source.name}-{study.patient_id}", split=""))
            for folder in ("images", "masks"):
                if (source / folder).is_dir():
                    shutil.copytree(source / folder, merged / source.name / folder)
        write_table(merged, studies)
        names = {name for study in studies for name in study.labels}
        write_facts(merged, name="lesions", studies=studies, synthetic=False, extra={"labels": sorted(names)})
    return sx.prepare(merged, size=size, out=out / "prepared", split=(0.6, 0.05, 0.35))


def train(arm: str, seed: int, prepared: Prepared, options: argparse.Namespace) -> Path:
    """One training of one arm; the compute is the same for both, and the lesion terms have to pay for themselves."""
    base, run, costs = options.out / "base", options.out / f"{arm}-{seed}", options.out / "cost.json"
    if not (base / WEIGHTS_NAME).exists():
        sx.train("controlled-64", prepared, out=base, budget=options.base_budget, seed=seed, threads=options.threads,
                 overrides=[*OFF, *COMMON])
    if not costs.exists():
        write_json(costs, step_costs(prepared, threads=options.threads))
    cost = json.loads(costs.read_text(encoding="utf-8"))
    if not (run / WEIGHTS_NAME).exists():
        steps = round(options.steps * cost["off"] / cost[arm])
        sx.train("controlled-64", prepared, out=run, seed=seed, threads=options.threads, base=base,
                 overrides=[*ARMS[arm], *COMMON, f"train.steps={steps}"])
    return run


def step_costs(prepared: Prepared, *, threads: int | None, repeats: int = 15) -> dict[str, float]:
    """Processor seconds of one training step of each arm, the least of several that take turns: other work on the machine only adds."""
    images = without_no_finding(prepared.images("train", masks=True))
    assert images.masks is not None
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with started(threads=threads) as engine:
        for number, (arm, terms) in itertools.product(range(repeats), ARMS.items()):
            recipe = load_recipe("controlled-64", overrides=[*terms, *COMMON])
            objective = build_objective(recipe, findings=images.findings, masks=images.masks.names).to(engine.device)
            feed = Feed(images, spec=as_model(objective.model).spec, batch_size=recipe.train.batch_size, balance=0.0, augment=True,
                        seed=0, engine=engine)
            start = time.process_time()
            with engine.autocast():
                losses = objective("denoise", feed.batch(number))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            seconds[arm].append(time.process_time() - start)
    return {arm: min(each) for arm, each in seconds.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Held-out images with a lesion, and everything that is stated of them."""

    images: ImageSet
    pixels: Tensor
    """[N, 1, S, S] in [-1, 1]"""
    lesion: Tensor
    """[N, 1, S, S] in [0, 1]"""
    condition: Condition

    def patients(self) -> NDArray[np.str_]:
        """[N]"""
        return self.images.patients()


def held_out(prepared: Prepared, model: DiffusionModel) -> HeldOut:
    """Test images with a lesion mask, in the words of the model; text is left out because it may say where the lesion is."""
    images = without_no_finding(prepared.images("test", masks=True))
    assert images.masks is not None and images.masks.names == model.spec.masks
    rows = np.arange(len(images))
    lesion = lesion_union(images.masks, rows)
    chosen = np.flatnonzero((lesion > 0).any(axis=(1, 2, 3)))
    images = images.take(chosen)
    assert images.masks is not None and images.lesions is not None
    condition = condition_of(images.studies, images.labels, sites=model.spec.sites)
    mask = torch.from_numpy(mask_stack(images.masks, np.arange(len(images))))
    return HeldOut(images=images, pixels=unit_images(images.pixels), lesion=torch.from_numpy(lesion[chosen]),
                   condition=replace(condition, mask=mask, lesions=torch.from_numpy(images.lesions)))


def measure(runs: dict[str, list[Path]], prepared: Prepared, out: Path) -> dict[str, object]:
    """Every measure of both arms, [seeds, images], and the paired differences."""
    values: dict[str, dict[str, list[Vector]]] = {}
    shown: dict[str, Tensor] = {}
    for arm, folders in runs.items():
        for folder in folders:
            model = sx.load_model(folder)
            assert isinstance(model, DiffusionModel)
            told = held_out(prepared, model)
            found, made = measure_model(model, told)
            shown.setdefault(arm, made)
            for name, each in found.items():
                values.setdefault(name, {}).setdefault(arm, []).append(each)
    sheet(told, shown, out / "lesions.png")
    rows = [row(name, group, np.mean(arms["off"], axis=0)[chosen], np.mean(arms["on"], axis=0)[chosen], told.patients()[chosen])
            for name, arms in values.items() for group, chosen in groups(told).items()]
    return {"images": len(told.pixels), "patients": len(set(told.patients())), "seeds": len(runs["on"]), "rows": rows}


def measure_model(model: DiffusionModel, told: HeldOut) -> tuple[dict[str, Vector], Tensor]:
    """One number an image for each measure, and the images made from nothing but the condition."""
    found: dict[str, Vector] = {}
    with torch.inference_mode():
        for level in LEVELS:
            parts = [regenerated(model, told, level, number) for number in range(NOISES)]
            ssim = [1 - lesion_ssim_loss(made, told.pixels, told.lesion) for made in parts]
            error = [masked_error(made, told.pixels, told.lesion).sqrt() for made in parts]
            outside = [masked_error(made, told.pixels, 1 - told.lesion).sqrt() for made in parts]
            for name, each in (("lesion SSIM", ssim), ("error in the lesion", error), ("error outside", outside)):
                found[f"{name}, from sigma {level:g}"] = torch.stack(each).mean(0).double().numpy()
    settings = SampleSettings(steps=24, guidance=1.5)
    seeds = [derive(0, "film", number) for number in range(len(told.pixels))]
    made = torch.cat([model.sample(told.condition[rows], [seeds[i] for i in rows.tolist()], settings)
                      for rows in torch.arange(len(seeds)).split(32)])
    real, own = contrast(told.pixels, told.lesion), contrast(made, told.lesion)
    found["contrast of the lesion: distance from the real image's"] = np.abs(own - real)
    found["contrast of the lesion: same sign as the real image's"] = (np.sign(own) == np.sign(real)).astype(np.float64)
    return found, made


def regenerated(model: DiffusionModel, told: HeldOut, level: float, number: int) -> Tensor:
    """Each image with noise of this level, sampled down again under its own condition, without guidance."""
    parts = []
    for rows in torch.arange(len(told.pixels)).split(32):
        noise = Draws([derive(number, "noise", row) for row in rows.tolist()]).normal(*model.latent_shape)
        start = model.compressor.encode(told.pixels[rows]) + level * noise
        denoise = guided(model.denoise, told.condition[rows], SampleSettings(guidance=1.0))
        sigmas = karras_sigmas(STEPS, sigma_min=model.config.sigma_min, sigma_max=level)
        parts.append(model.compressor.decode(solve(denoise, start, sigmas, sampler="dpmpp-2m")).clamp(-1, 1))
    return torch.cat(parts)


def contrast(images: Tensor, mask: Tensor) -> Vector:
    """Mean inside the mask less mean within five pixels around it, [N]."""
    inside = (mask > 0).float()
    around = torch.nn.functional.max_pool2d(inside, 11, stride=1, padding=5) - inside

    def mean(where: Tensor) -> Tensor:
        return (images * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)

    return (mean(inside) - mean(around)).double().numpy()


def groups(told: HeldOut) -> dict[str, NDArray[np.bool_]]:
    """All images, and those of each source."""
    source = np.array([study.file_name.split("/")[0] for study in told.images.studies])
    return {"all": np.ones(len(source), dtype=bool), **{str(name): source == name for name in np.unique(source)}}


def row(name: str, group: str, off: Vector, on: Vector, patients: NDArray[np.str_]) -> dict[str, object]:
    """Both arms and the paired difference with its interval over patients."""
    difference = on - off
    low, high = normal_interval(float(difference.mean()), standard_error(difference - difference.mean(), patients))
    return {"measure": name, "group": group, "n": len(on), "off": float(off.mean()), "on": float(on.mean()),
            "difference": float(difference.mean()), "low": low, "high": high}


def table(report: dict[str, object]) -> str:
    """The report as Markdown."""
    lines = [f"{report['images']} held-out images of {report['patients']} patients, {report['seeds']} trainings an arm.", "",
             "| measure | images | off | on | on - off |", "|---|---|---|---|---|"]
    rows = report["rows"]
    assert isinstance(rows, list)
    lines += [f"| {r['measure']} | {r['group']} ({r['n']}) | {r['off']:.3f} | {r['on']:.3f} | "
              f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] |" for r in rows]
    return "\n".join(lines) + "\n"


def sheet(told: HeldOut, shown: dict[str, Tensor], path: Path) -> None:
    """Rows of real image, outline, and what each arm made from the mask."""
    images = [told.pixels, told.lesion * 2 - 1, *shown.values()]
    chosen = torch.arange(0, len(told.pixels), max(1, len(told.pixels) // 12))[:12]
    stacked = torch.cat([part[chosen, 0] for part in images])
    pictures = np.asarray(from_unit(stacked.numpy()))
    save_png(path, contact_sheet(pictures, columns=len(chosen), tile_px=128, title=f"real, outline, {', '.join(shown)}"))


if __name__ == "__main__":
    sys.exit(main())
