"""What does guidance cost and bring? Requested findings and view as judges see them, FID and KID, for settings of guidance side by side.

  python bench/studies/guidance.py --model cxr-256 --data prepared/ --out bench-guidance [--images 400] [--settings FILE.json] [--threads 1]

Every line of `SETTINGS` (or of FILE.json: name -> fields of `SampleSettings`) makes the same images: same seeds, asked for what test images
state. Judges are those of `synthorax evaluate`: linear probes on ImageNet features, learned from real training images, which score real
images of validation and test patients too. A finding counts as seen with at least 0.9 of the AUROC on real images. Writes guidance.json,
guidance.md and sheet.png into --out; images are kept there, so a killed bench goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.prepared import Prepared
from synthorax.data.vocabulary import label_matrix
from synthorax.engine import Engine, started
from synthorax.errors import SynthoraxError, UsageError
from synthorax.evaluation.dimensions.controllability import controllability
from synthorax.evaluation.metrics.distances import fid_score, kid_score
from synthorax.evaluation.metrics.feature_sets import RealImages, SetFeatures
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_atomic, write_json
from synthorax.judges.features import FeatureSpace, load_features
from synthorax.protocols import SampleSettings
from synthorax.steps.generate import preview
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.planning.plan import Plan, plan_like
from synthorax.steps.training.train_run import without_no_finding
from synthorax.types import ImageSet, Study

FEATURES = "efficientnet-lite0"
SEEN = 0.9
SHEET_IMAGES = 6
BY_LABELS = {"part_guidance": {"labels": 4.0, "attributes": 2.0}}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "none": {"guidance": 1.0, "part_guidance": {}},
    "all levels": BY_LABELS,
    "0.2 to 4": {**BY_LABELS, "guidance_from": 0.2, "guidance_to": 4.0},
    "0.3 to 2": {**BY_LABELS, "guidance_from": 0.3, "guidance_to": 2.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the images of every setting, judge them, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder: its held-out images are compared with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--settings", type=Path, help="JSON: name -> fields of SampleSettings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    chosen = json.loads(options.settings.read_text()) if options.settings else SETTINGS
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with started(device="cpu", threads=options.threads, seed=options.seed) as engine:
            record = by_setting(options, chosen, engine=engine)
    except SynthoraxError as error:
        print(f"guidance.py: {error}", file=sys.stderr)
        return error.exit_code
    write_json(options.out / "guidance.json", record)
    write_atomic(options.out / "guidance.md", table(record).encode())
    print(table(record))
    return 0


def by_setting(options: argparse.Namespace, chosen: Mapping[str, Mapping[str, Any]], *, engine: Engine) -> dict[str, Any]:
    """One row a setting."""
    model, prepared = open_model(options.model), Prepared.load(options.data)
    size = model.spec.image_size
    train, val, test = (without_no_finding(prepared.images(split, size=size)) for split in ("train", "val", "test"))
    real, space = RealImages(train=train, held_out=ImageSet.join([val, test])), load_features(FEATURES)
    real_features = space(train.pixels), space(real.held_out.pixels)
    plan = plan_like(test, num=options.images, seed=options.seed)
    rows, pictures = [], []
    for name, changed in chosen.items():
        settings = replace(model.settings, **changed)
        file = options.out / "images" / f"{name.replace(' ', '-')}.npz"
        pixels, seconds = cached_images(file, model.network, plan, settings, engine=engine)
        pictures.append(pixels[:SHEET_IMAGES])
        rows.append({"name": name, "settings": asdict(settings), "seconds_an_image": seconds,
                     **scores(real, as_asked(plan, pixels, real.held_out.findings), space, real_features, seed=options.seed)})
        print(name, "seen", rows[-1]["seen"], "KID", rows[-1]["kid"][0], file=sys.stderr, flush=True)
    captions = [name if number == 0 else "" for name in chosen for number in range(len(pictures[0]))]
    save_png(options.out / "sheet.png", contact_sheet(np.concatenate(pictures), columns=len(pictures[0]), captions=captions, tile_px=256))
    return {"model": model.digest, "images": options.images, "image_size": size, "features": space.name, "rows": rows}


def cached_images(path: Path, network: Any, plan: Plan, settings: SampleSettings, *, engine: Engine) -> tuple[NDArray[np.uint8], float]:
    """The images [N, S, S] and the processor time of one in seconds, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        pixels = preview(network, plan, settings=settings, engine=engine)
        partial = path.with_suffix(".part.npz")
        np.savez(partial, pixels=pixels, seconds=(time.process_time() - start) / len(pixels))
        partial.replace(path)
    with np.load(path) as kept:
        return kept["pixels"], float(kept["seconds"])


def as_asked(plan: Plan, pixels: NDArray[np.uint8], findings: tuple[str, ...]) -> ImageSet:
    """The images with the labels and the view that their rows ask for."""
    studies = tuple(Study(file_name=f"{number}.png", view=row.view, labels=row.labels, origin="synthetic")
                    for number, row in enumerate(plan.rows))
    return ImageSet(pixels=pixels, studies=studies, findings=findings, labels=label_matrix(studies, findings), digest="")


def scores(real: RealImages, made: ImageSet, space: FeatureSpace, real_features: tuple[NDArray[np.float32], NDArray[np.float32]], *,
           seed: int) -> dict[str, Any]:
    """Findings and view as judges see them, FID and KID with interval and floor."""
    train, held_out = real_features
    vectors = space(made.pixels)
    dimension, _ = controllability(real, made, SetFeatures(space=space, train=train, held_out=held_out, synthetic=vectors))
    asked = {score.group: (score.value, score.floor) for score in dimension.scores if score.metric == "requested_finding_auroc"}
    if not asked:
        raise UsageError("no finding is asked for and not asked for often enough; ask for more --images")
    view = next((score for score in dimension.scores if score.metric == "view_agreement"), None)
    distances = {}
    for name, distance in (("kid", kid_score), ("fid", fid_score)):
        score = distance(held_out, vectors, floor_sets=(held_out, train[:len(held_out)]), features_name=space.name, seed=seed,
                         real_patients=real.held_out.patients())
        distances[name] = [score.value, score.low, score.high, score.floor]
    return {"findings": asked, "seen": sum(value >= SEEN * (floor or 0) for value, floor in asked.values()), "of": len(asked),
            "mean_auroc": float(np.mean([value for value, _ in asked.values()])),
            "mean_auroc_real": float(np.mean([floor for _, floor in asked.values()])),
            "view": None if view is None else [view.value, view.low, view.high, view.floor], **distances}


def table(record: dict[str, Any]) -> str:
    """Two tables in Markdown: settings, and findings by setting."""
    rows = record["rows"]
    lines = [f"{record['images']} images of {record['image_size']} px.", "",
             "| guidance | findings seen | mean AUROC (real) | view | KID | FID | s an image |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        view = "" if row["view"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row["view"][:3])
        lines.append(f"| {row['name']} | {row['seen']} of {row['of']} | {row['mean_auroc']:.3f} ({row['mean_auroc_real']:.3f}) | {view} | "
                     + "{:.3f} [{:.3f}, {:.3f}]".format(*row["kid"][:3]) + f" | {row['fid'][0]:.0f} | {row['seconds_an_image']:.2f} |")
    lines += ["", "| AUROC | real | " + " | ".join(row["name"] for row in rows) + " |", "|---" * (len(rows) + 2) + "|"]
    for finding, (_, floor) in rows[0]["findings"].items():
        cells = [row["findings"][finding][0] for row in rows]
        lines.append(f"| {finding} | {floor:.2f} | " + " | ".join(f"{one:.2f}" for one in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
