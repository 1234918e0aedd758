"""How few network evaluations do images bear? Solvers alone, and students, against the model's own 50 steps.

  python bench/speed/steps.py --model runs/a --student runs/a-student --data prepared --out bench-steps [--images 256] [--threads 2]

Every contender makes the same images: the same seeds, asked for what training images state. Measured are PSNR to the 50-step image of the
same seed, KID against held-out real images with its difference from that of 50 steps, network evaluations an image, and milliseconds of an
image alone and of an image in a batch of eight. A packed model is measured whole: its first stage with fewer and fewer steps, then the
stages that enlarge, against 50 steps of each.
Writes steps.json, steps.md and sheet.png into --out. Images are kept there, so a killed bench goes on where it stopped. On two cores,
256 images of 64 px take about 20 minutes; --no-solvers or fewer --images make it shorter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from synthorax.data.prepared import Prepared
from synthorax.engine import Engine, started
from synthorax.evaluation.metrics.distances import kid_difference, kid_score
from synthorax.evaluation.metrics.ssim import psnr, to_intensity
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.families.denoising.cascade import CascadeModel
from synthorax.families.denoising.model import DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.judges.features import load_features
from synthorax.protocols import SampleSettings
from synthorax.steps.generate import preview
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.planning.plan import Plan, plan_like
from synthorax.steps.training.train_run import without_no_finding
from synthorax.threads import available_cores

REFERENCE_STEPS = 50
CURVE = (24, 12, 8, 6, 4, 2, 1)
SUPER_RESOLUTION = (16, 4, 2, 1)
CALLS = (4, 6, 8)
SOLVERS = ("dpmpp-2m", "unipc", "heun")
SCHEDULES = ("karras", "karras-few", "cosine", "exponential", "exponential-few")
SHEET_IMAGES = 6
TIMINGS = 3
BATCH = 8
FEATURES = "efficientnet-lite0"
COLUMNS = ("", "evaluations", "ms, one image", "ms, of 8", "PSNR to 50 steps, dB", "KID x 1,000", "beyond 50 steps", "in %")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to make the images."""

    name: str
    model: DiffusionModel | CascadeModel
    settings: SampleSettings
    group: str
    """curve, enlarging, solvers or students: the table in which it stands"""

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '-')}.npy"

    @property
    def networks(self) -> list[nn.Module]:
        """Those of all stages."""
        return [stage.network for stage in self.model.stages] if isinstance(self.model, CascadeModel) else [self.model.network]


def main() -> int:
    """Make the images, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="run folder or model file: the teacher")
    parser.add_argument("--student", type=Path, nargs="*", default=[], help="run folders or model files of its students")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder: its held-out images are compared with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--real", type=int, default=1000, help="held-out images at most, and as many training images for the floor")
    parser.add_argument("--guidance", type=float, default=None, help="of the teacher; by default that of its recipe")
    parser.add_argument("--steps", type=int, nargs="*", default=CURVE, help="of the teacher's curve, below 50")
    parser.add_argument("--no-solvers", action="store_true", help="leave out the other solvers and schedules")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    claim = {"model": open_model(options.model).digest, "images": options.images, "guidance": options.guidance, "seed": options.seed,
             "precision": options.precision,
             "data": Prepared.load(options.data).digest}
    path = options.out / "claim.json"
    if path.exists() and json.loads(path.read_text()) != claim:
        raise SystemExit(f"{options.out} holds a bench of another model or other options; choose another --out")
    write_json(path, claim)
    with started(threads=options.threads, precision=options.precision, seed=options.seed) as engine:
        record = measure(options, list(contenders(options)), engine=engine)
    write_json(options.out / "steps.json", record | {"claim": claim, "threads": options.threads})
    write_atomic(options.out / "steps.md", tables(record))
    print(tables(record))
    return 0


def contenders(options: argparse.Namespace) -> Iterator[Contender]:
    """The reference first."""
    trained = open_model(options.model)
    model, usual = trained.network, trained.settings
    if not isinstance(model, DiffusionModel | CascadeModel):
        raise SystemExit(f"{options.model} is no diffusion model of ours")
    usual = replace(usual, **({} if options.guidance is None else {"guidance": options.guidance, "part_guidance": {}}))
    common = replace(usual, sampler="dpmpp-2m", schedule="karras", eta=None)
    packed = isinstance(model, CascadeModel)
    for steps in (REFERENCE_STEPS, *sorted(options.steps, reverse=True)):
        settings = replace(common, steps=steps, super_resolution_steps=REFERENCE_STEPS if packed and steps == REFERENCE_STEPS else None)
        yield Contender(name=f"dpmpp-2m karras {steps}", model=model, settings=settings, group="curve")
    for steps in SUPER_RESOLUTION if packed else ():
        yield Contender(name=f"enlarging {steps}", model=model, settings=replace(common, super_resolution_steps=steps), group="enlarging")
    for path in options.student:
        opened = open_model(path)
        student, settings = opened.network, opened.settings
        assert isinstance(student, DiffusionModel)
        distilled = student.config.distilled
        if distilled is None:
            raise SystemExit(f"{path} is no student")
        title = f"{opened.name} {path.stem if path.is_file() else path.name}"
        if distilled.steps:
            yield Contender(name=f"{title} {distilled.steps}", model=student, settings=settings, group="students")
        else:
            for steps in sorted(options.steps, reverse=True):
                yield Contender(name=f"{title} {steps}", model=student, settings=replace(settings, steps=steps), group="students")
    for sampler in () if options.no_solvers or packed else SOLVERS:
        for schedule in SCHEDULES:
            for calls in CALLS:
                steps = (calls + 1) // 2 if sampler == "heun" else calls  # heun asks twice a step but for the last
                if (sampler, schedule) != ("dpmpp-2m", "karras") or steps not in options.steps:
                    settings = replace(common, sampler=sampler, schedule=schedule, steps=steps)
                    yield Contender(name=f"{sampler} {schedule} {steps}", model=model, settings=settings, group="solvers")


def measure(options: argparse.Namespace, ways: Sequence[Contender], *, engine: Engine) -> dict[str, Any]:
    """One row a contender."""
    prepared, size = Prepared.load(options.data), ways[0].model.spec.image_size
    train = prepared.images("train", size=size)
    held_out = [prepared.images(split, size=size) for split in ("val", "test")]
    plan = plan_like(without_no_finding(train), num=options.images, seed=options.seed)
    images = {}
    for way in ways:
        images[way.name] = cached_images(options.out / "images" / way.file, way, plan, engine=engine)
        print(way.name, file=sys.stderr, flush=True)
    features = load_features(FEATURES)
    real = np.concatenate([part.pixels for part in held_out])[: options.real]
    patients = np.concatenate([part.patients() for part in held_out])[: options.real]
    real_features = features(real)
    floor = real_features, features(train.pixels[: len(real)])
    vectors = {name: features(made) for name, made in images.items()}
    reference = ways[0].name
    rows = []
    for way in ways:
        score = kid_score(real_features, vectors[way.name], floor_sets=floor, features_name=features.name, seed=options.seed,
                          real_patients=patients)
        row: dict[str, Any] = {"name": way.name, "group": way.group, "settings": asdict(way.settings), **costs(way, plan, engine=engine),
                               "parameters": sum(weight.numel() for weight in way.model.parameters()),
                               "kid": [score.value, score.low, score.high], "kid_floor": score.floor}
        if way.name != reference:
            values = psnr(to_intensity(images[reference]), to_intensity(images[way.name])).numpy()
            mean = float(values.mean())
            row["psnr_db"] = [mean, *normal_interval(mean, standard_error(values))]
            row["kid_more"] = list(kid_difference(real_features, vectors[reference], vectors[way.name], real_patients=patients))
        rows.append(row)
    save_png(options.out / "sheet.png", sheet(ways, images))
    return {"reference": reference, "features": {"name": features.name, "digest": features.digest}, "real_films": len(real),
            "images": options.images, "image_size": size, "rows": rows}


def cached_images(path: Path, way: Contender, plan: Plan, *, engine: Engine) -> NDArray[np.uint8]:
    """The contender's images [N, S, S], made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        way.model.to(engine.device)
        partial = path.with_suffix(".part.npy")
        np.save(partial, preview(way.model, plan, settings=way.settings, engine=engine))
        partial.replace(path)
    images: NDArray[np.uint8] = np.load(path)
    return images


def costs(way: Contender, plan: Plan, *, engine: Engine) -> dict[str, float]:
    """Network evaluations an image of each stage, the shortest of some times for one image alone, and the median an image in a batch."""
    rows: Counter[nn.Module] = Counter()

    def count(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[network] += len(inputs[0])

    def seconds(images: int) -> Iterator[float]:
        condition = replace(plan, rows=plan.rows[:images]).restricted_to(way.model.spec).condition(way.model.spec)
        for _ in range(TIMINGS):
            start = time.perf_counter()
            with engine.autocast():
                way.model.sample(condition, range(images), way.settings)
            yield (time.perf_counter() - start) / images

    hooks = [network.register_forward_pre_hook(count) for network in way.networks]
    alone = min(seconds(1))
    for hook in hooks:
        hook.remove()
    return {"evaluations": [rows[network] // TIMINGS for network in way.networks], "ms_alone": round(1000 * alone, 1),
            "ms_in_batch": round(1000 * statistics.median(seconds(min(BATCH, len(plan)))), 1)}


def tables(record: dict[str, Any]) -> str:
    """The rows in Markdown, one table a group."""
    first = record["rows"][0]
    lines = [f"{record['images']} images of {record['image_size']} px, {record['real_films']} held-out images; KID of 50 steps "
             f"{spread(first['kid'], 1000)}, floor {1000 * first['kid_floor']:.2f} (all times 1,000).", ""]
    for group in ("curve", "enlarging", "students", "solvers"):
        rows = [row for row in record["rows"] if row["group"] == group]
        if rows:
            lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += [as_line(row, first) for row in rows] + [""]
    return "\n".join(lines)


def as_line(row: dict[str, Any], first: dict[str, Any]) -> str:
    cells = [row["name"], " + ".join(map(str, row["evaluations"])), f"{row['ms_alone']:.0f}", f"{row['ms_in_batch']:.0f}", "–",
             spread(row["kid"], 1000), "–", "–"]
    if "kid_more" in row:
        cells[4], cells[6] = spread(row["psnr_db"], 1), spread(row["kid_more"], 1000)
        cells[7] = spread([100 * value / first["kid"][0] for value in row["kid_more"]], 1, digits=0)
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float], factor: float, *, digits: int = 2) -> str:
    value, low, high = (factor * one for one in values)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def sheet(ways: Sequence[Contender], images: dict[str, NDArray[np.uint8]]) -> Any:
    """The same seeds in every row: the teacher's curve, then the students."""
    shown = [way for way in ways if way.group != "solvers"]
    pictures = np.concatenate([images[way.name][:SHEET_IMAGES] for way in shown])
    captions = [way.name if number == 0 else "" for way in shown for number in range(min(SHEET_IMAGES, len(images[way.name])))]
    return contact_sheet(pictures, columns=min(SHEET_IMAGES, len(images[shown[0].name])), captions=captions,
                         tile_px=max(96, pictures.shape[1]))


if __name__ == "__main__":
    sys.exit(main())
