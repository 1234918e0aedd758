"""Which sampler suits a trained diffusion model? The same requests and noise by each, measured as `synthorax compare` does.

  python bench/speed/samplers.py runs/a --data prepared --samplers dpmpp-2m:24 euler-a:24 --out bench-samplers [--images 128] [--threads 1]

Writes samplers.md and samplers.png (one row a sampler; it shows real images) into --out. Images and measures are kept there, so a killed
bench goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.evaluation.comparison.measures import DISTRIBUTION, REQUEST, VIEW, WITHIN, RealReference, quality_record, reference_record
from synthorax.evaluation.comparison.pages import REAL, sheets
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.contact_sheets import png_bytes
from synthorax.evaluation.report.page import show
from synthorax.evaluation.statistics.over_seeds import over_seeds
from synthorax.files import write_atomic, write_json
from synthorax.judges.features import load_features
from synthorax.rng import derive
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.planning.plan import STATED_ONLY, plan_like
from synthorax.types import ImageSet

MEASURES = (*DISTRIBUTION, WITHIN, REQUEST, VIEW)


def main() -> int:
    """Make what is missing, measure what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="run folder or model file of a diffusion model")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder: its held-out images are compared with")
    parser.add_argument("--samplers", nargs="+", required=True, metavar="NAME:STEPS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    claim = {"model": open_model(options.model).digest, "data": Prepared.load(options.data).digest, "images": options.images}
    if (path := options.out / "claim.json").exists() and json.loads(path.read_text(encoding="utf-8")) != claim:
        raise SystemExit(f"{options.out} holds a bench of another model or other images; choose another --out")
    write_json(path, claim)
    text = table(options)
    write_atomic(options.out / "samplers.md", text)
    print(text)
    return 0


def table(options: argparse.Namespace) -> str:
    """The measures of every sampler, real images first, as Markdown; the sheet beside it."""
    prepared = Prepared.load(options.data)
    spec = open_model(options.model).spec
    held_out = ImageSet.join([prepared.images(split, size=spec.image_size) for split in ("val", "test")])
    real = RealImages(train=prepared.images("train", size=spec.image_size), held_out=held_out)
    reference = RealReference.of(real, load_features("efficientnet-lite0", train=real.train))
    plan = plan_like(held_out, num=options.images, seed=derive(0, "compare")).restricted_to(spec)
    rows, shown = [cells(REAL, reference_record(reference, num=options.images))], {REAL: held_out.pixels}
    for name in options.samplers:
        sampler, _, steps = name.partition(":")
        folder = options.out / f"{sampler}-{steps}"
        made = sx.generate(options.model, plan, out=folder / "images", settings={"sampler": sampler, "steps": int(steps)},
                           threads=options.threads)
        images = load_images(read_dataset(made.path), size=spec.image_size, findings=prepared.findings, policy=STATED_ONLY)
        if not (folder / "measures.json").exists():
            write_json(folder / "measures.json", quality_record(reference, images))
        rows.append(cells(name, json.loads((folder / "measures.json").read_text(encoding="utf-8"))))
        shown[name] = images.pixels
    write_atomic(options.out / "samplers.png", png_bytes(sheets(shown)))
    return "\n".join(f"| {' | '.join(row)} |" for row in (["sampler", *MEASURES], ["---"] * (1 + len(MEASURES)), *rows)) + "\n"


def cells(name: str, record: dict[str, Any]) -> list[str]:
    """A row: each measure with its 95 % interval over the sampling of images."""
    told = [record[measure] for measure in MEASURES]
    spread = [None if "skipped" in one else over_seeds([one["value"]], [one["error"]]) for one in told]
    return [name, *("–" if one is None else f"{show(one['value'])} [{show(one['low'])}, {show(one['high'])}]" for one in spread)]


if __name__ == "__main__":
    raise SystemExit(main())
