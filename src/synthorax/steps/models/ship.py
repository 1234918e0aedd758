"""From a finished run to a model that ships: half the bytes, checked image by image, with its card and its line in the zoo's table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from synthorax.data.pixels import from_unit
from synthorax.data.sources import NOT_STATED
from synthorax.errors import InputError, UsageError
from synthorax.files import sha256, write_atomic
from synthorax.former_names import with_present_facts
from synthorax.protocols import Condition, Model, SampleSettings
from synthorax.rng import derive
from synthorax.run import FORMAT, WEIGHTS_NAME, Run, halve, save_weights
from synthorax.steps.models.card import metrics_of, model_head, read_card, write_card
from synthorax.steps.models.trained_model import TrainedModel, open_model
from synthorax.zoo import FOLDER, Shipped, enter

Precision = Literal["float16", "bfloat16", "float32"]
PRECISIONS: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_BYTES = 27_000_000
"""weights of all shipped models together"""
FARTHEST_MEAN = 1.0
"""mean difference in grey levels of 255 that half precision may make"""
CHECKED_IMAGES = 8
LICENCE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far images of two copies of a model are apart for the same seeds and conditions, in 8-bit grey levels."""

    images: int
    mean_grey_levels: float
    worst_grey_levels: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {"images": self.images, "mean_grey_levels": round(self.mean_grey_levels, 4), "worst_grey_levels": self.worst_grey_levels}


def ship(run: Run, *, name: str, folder: Path = FOLDER, precision: Precision = "float16", report: Path | None = None,
         earlier: Sequence[Run] = (), limits: Sequence[str] = (), study: str = "", images: int = CHECKED_IMAGES) -> Shipped:
    """Write a finished run into the zoo in `folder` under `name`, in place of an earlier model of that name.

    `report` is the report.json of its evaluation, whose numbers go onto the card; `earlier` are the runs that it started from or was
    packed from, whose training and data are named as well; `limits` are further sentences for the card, and `study` is the page of the
    documents that measures it, for models that no report is about. Raises InputError for a run
    that is not finished, a report on another model, data without terms, images that half precision moves too far, and too many bytes.
    """
    if not name or not all(part.isascii() and part.isalnum() for part in name.split("-")):
        raise UsageError(f"'{name}' is no name for a model; use letters, digits and hyphens")
    path, trained = run.weights, open_model(run)
    head = _head(run, trained, name=name, earlier=earlier, limits=limits)
    if report is not None:
        head |= _measurements(report, digest=trained.digest)
    if study:
        head["study"] = study
    out = folder / f"{name}.safetensors"
    trial = folder / f".trial-{name}" / WEIGHTS_NAME
    try:
        weights = halve(trained.weights, PRECISIONS[precision], file=path)
        save_weights(trial, weights, spec=trained.spec, facts={**trained.facts, "sources": head["data"]})
        _check_size(trial, out)
        distance = image_distance(trained.network, open_model(trial.resolve()).network, num=images, settings=trained.settings)
        if distance.mean_grey_levels > FARTHEST_MEAN:
            raise InputError(f"stored as {precision}, its images move by {distance.mean_grey_levels:.2f} grey levels on average, and "
                             f"{FARTHEST_MEAN:g} is allowed", file=path, remedy="use another precision")
        for source in (trial.with_name(trial.name + ".sha256"), trial):
            write_atomic(out.with_name(source.name.replace(WEIGHTS_NAME, out.name)), source.read_bytes())
    finally:
        for left in (trial, trial.with_name(trial.name + ".sha256")):
            left.unlink(missing_ok=True)
        if trial.parent.exists():
            trial.parent.rmdir()
    head["weights"] = {"file": out.name, "bytes": out.stat().st_size, "sha256": sha256(out), "stored_as": precision,
                       "trained_sha256": trained.digest, "distance": distance.to_dict()}
    write_atomic(folder / f"{name}.md", write_card(head))
    model = Shipped(name=name, file=out.name, sha256=sha256(out), format=FORMAT, card=f"{name}.md", folder=folder)
    enter(model)
    return model


def image_distance(first: Model, second: Model, *, settings: SampleSettings, num: int) -> Distance:
    """Differences between `num` images of two models with the same seeds: every finding in turn asked for, then nothing."""
    findings, sites = len(first.spec.findings), len(first.spec.sites)
    worst, total = 0.0, 0.0
    for number in range(num):
        condition = Condition.unstated(1, num_labels=findings, num_sites=sites)
        if number < findings:
            labels = condition.labels.clone()
            labels[0, number] = 1.0
            condition = replace(condition, labels=labels)
        pair = [from_unit(model.sample(condition, [derive(0, "ship", number)], settings)[0, 0].float().cpu().numpy()).astype(np.float64)
                for model in (first, second)]
        difference = np.abs(pair[0] - pair[1])
        worst, total = max(worst, float(difference.max())), total + float(difference.mean())
    return Distance(images=num, mean_grey_levels=total / num, worst_grey_levels=worst)


def _head(run: Run, trained: TrainedModel, *, name: str, earlier: Sequence[Run], limits: Sequence[str]) -> dict[str, Any]:
    runs = [*earlier, *(() if "stages" in trained.facts else (run,))]  # stages that were packed together were trained elsewhere
    if not runs:
        raise InputError("was packed from other runs", file=run.weights, remedy="name them as earlier ones: their cards tell the training")
    sources = [source for model in (*map(open_model, earlier), trained) for source in model.facts.get("sources", ())]
    different = [source for number, source in enumerate(sources) if source not in sources[:number]]
    head = model_head(trained.spec, trained.facts, name=name) | {"data": different}
    if not head["data"]:
        raise InputError("does not say on which images it was trained", file=run.weights,
                         remedy="prepare them again with this version, and train again")
    for source in head["data"]:
        if NOT_STATED in source["licence"] or not source.get("attribution"):
            raise InputError(f"was trained on '{source['name']}', which states no terms or nobody to name", file=run.weights,
                             remedy="write `licence` and `attribution` into its dataset.json, prepare and train again")
    entries = [entry for place in runs for entry in read_card(place.path / "card.md")["training"]]
    return head | {"training": entries, "limits": [*head["limits"], *limits], "licence": LICENCE}


def _measurements(report: Path, *, digest: str) -> dict[str, Any]:
    try:
        content = report.read_bytes()
        stated = with_present_facts(json.loads(content))
        made_by = stated["inputs"]["synthetic"].get("model_digest")
        metrics, judges = metrics_of(stated), stated.get("judges", [])
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=report) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"is no report ({error})", file=report, remedy="`synthorax evaluate` makes one") from error
    if made_by != digest:
        raise InputError(f"is about images of the model {str(made_by)[:16]}, and this one is {digest[:16]}", file=report,
                         remedy="generate images with this run, and evaluate them")
    return {"metrics": metrics, "report": {"sha256": hashlib.sha256(content).hexdigest(), "judges": judges}}


def _check_size(new: Path, out: Path) -> None:
    total = new.stat().st_size + sum(path.stat().st_size for path in out.parent.glob("*.safetensors") if path != out)
    if total > MAX_BYTES:
        raise InputError(f"the shipped weights would be {total / 1e6:.1f} MB in all, and {MAX_BYTES / 1e6:g} MB is the limit", file=out,
                         remedy="train a smaller network, or store it in half precision")
