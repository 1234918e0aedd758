"""One training from recipe and prepared folder to finished run: claimed, continued, written down."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from synthorax import __version__
from synthorax.capabilities import Cascade, HasDiagnostics
from synthorax.data.pixels import from_unit
from synthorax.data.prepared import Prepared
from synthorax.data.prepared_volumes import PreparedVolumes
from synthorax.data.vocabulary import NO_FINDING
from synthorax.engine import Engine, describe_machine
from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.families.denoising import adaptation
from synthorax.files import read_json_object, write_atomic, write_json
from synthorax.folders import CLAIM_NAME, Folder, claimed
from synthorax.progress import progress_line, quiet
from synthorax.protocols import Objective, as_model, condition_of
from synthorax.rng import derive
from synthorax.run import Run, read_spec, save_model
from synthorax.steps.generate import preview
from synthorax.steps.models.card import model_head, training_of, write_card
from synthorax.steps.models.recipe import Recipe, build_objective, conditions_of, load_recipe, needs_of, recipe_from_toml
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import plan_like, sites_of
from synthorax.steps.planning.support import Support
from synthorax.steps.training import base_model
from synthorax.steps.training.volume_training import begin_volumes, fresh_volume_objective, volume_sheet_writer
from synthorax.training import loop
from synthorax.training.feed import unit_images, varying_inputs
from synthorax.types import ImageSet, VolumeSet

TrainingData = Prepared | PreparedVolumes
MEASURED_IMAGES = 256  # enough for the scale of a compressor's latents
MAY_CHANGE_ON_RESUME = ("steps", "learning_rate", "precision", "checkpoint_every", "log_every", "sample_every")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """Trained models that a training starts from."""

    base: TrainedModel | None
    compressor: TrainedModel | None
    why: str = "asked for"
    """reason for the way in which the base is adapted"""

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of their weights, for the record."""
        return {f"{name}_digest": None if model is None else model.digest
                for name, model in (("base", self.base), ("compressor", self.compressor))}


def train_run(run: Run, recipe: Recipe, prepared: TrainingData, *, engine: Engine, seconds: float | None, beginning: Beginning,
              pause_seconds: float | None = None, clock: Callable[[], float] = time.monotonic, num_images: int | None = None,
              resume: bool = False) -> None:
    """Train a recipe on the training split in the folder of `run`, or go on; nothing happens where it is finished.

    `seconds` and `num_images` are budgets of time and of images drawn. After `pause_seconds` the training is saved, with its model so far
    beside it, and another call goes on. `resume` allows other values of `MAY_CHANGE_ON_RESUME`; the finished model then stays until its
    successor is whole. What cannot be trained, or not in this folder, is refused with nothing written.
    """
    if engine.from_main(engine.is_main and _is_there(run, recipe, prepared, beginning=beginning, resume=resume)):
        if engine.is_main and run.continued.exists():  # back to the settings of the finished model
            write_atomic(run.path / "config.toml", recipe.to_toml())
            run.continued.unlink()
        return
    objective, images = _fresh(recipe, prepared)
    objective.check_data(num_images=len(images))
    loop.check_batch(objective, recipe.train)
    if engine.is_main:
        if run.weights.exists():
            write_json(run.continued, {"model": "that of earlier settings, until the training with those of config.toml has ended"})
        write_json(run.path / "data.json", _data_record(prepared, beginning))
        write_atomic(run.path / "config.toml", recipe.to_toml())
    begin(objective, images, recipe, beginning)
    with progress_line(f"train {recipe.name}") if engine.is_main else contextlib.nullcontext(quiet) as progress:
        outcome = loop.train(objective, images, recipe.train, engine=engine, folder=run.path, budget_seconds=seconds,
                             budget_images=num_images, pause_seconds=pause_seconds, progress=progress, clock=clock,
                             sample=_sheet_writer(run, images, recipe, engine), held_out=_held_out_images(prepared, recipe))
    if engine.is_main:
        adaptation.merge(outcome.model)
        settings = recipe.to_toml()
        facts = {"recipe": recipe.name, "recipe_digest": hashlib.sha256(settings.encode()).hexdigest(), "settings": settings,
                 "data_digest": prepared.digest, "data": {"images": len(images), "patients": len(set(images.patients()))},
                 "sources": [origin.to_dict() for origin in prepared.sources], "steps": outcome.steps, "images_seen": outcome.images,
                 "sample": asdict(recipe.sample), "support": _support_of(images).to_dict(), "tool": f"synthorax {__version__}",
                 **_facts_of_start(beginning, recipe), **({} if outcome.held_out is None else {"held_out": asdict(outcome.held_out)})}
        spec, hours = as_model(outcome.model).spec, round(outcome.elapsed_seconds / 3600, 5)
        if not outcome.finished:
            save_model(run.so_far, outcome.model, spec=spec, facts=facts | {"hours": hours})
            return
        training = training_of(facts, hours=hours, machine=describe_machine())
        write_atomic(run.path / "card.md", write_card(model_head(spec, facts, name=recipe.name) | {"training": [training]}))
        for left in (run.so_far, run.so_far.with_name(run.so_far.name + ".sha256")):
            left.unlink(missing_ok=True)
        save_model(run.weights, outcome.model, spec=spec, facts=facts)
        run.continued.unlink(missing_ok=True)


def _fresh(recipe: Recipe, prepared: TrainingData) -> tuple[Objective[nn.Module], ImageSet | VolumeSet]:
    if isinstance(prepared, PreparedVolumes):
        return fresh_volume_objective(recipe, prepared)
    return fresh_objective(recipe, prepared)


def _support_of(images: ImageSet | VolumeSet) -> Support:
    return Support.of(images) if isinstance(images, ImageSet) else Support(images=len(images))


def claimed_run(run: Run, recipe: Recipe, prepared: TrainingData, *, beginning: Beginning,
                resume: bool = False) -> contextlib.AbstractContextManager[Folder]:
    """Hold the folder of `run` for one training on these images; see `folders.claimed`."""
    _is_there(run, recipe, prepared, beginning=beginning, resume=resume)  # what is wrong with the settings is said first
    inputs = {"data": prepared.digest, **{name.removesuffix("_digest"): digest for name, digest in beginning.digests().items()}}
    before_claims = not (run.path / CLAIM_NAME).exists() and (run.path / "config.toml").exists() and _has_begun(run)
    return claimed(run.path, kind="a training", inputs=inputs, take_over=before_claims, drafts=("config.toml", "data.json"))


def fresh_objective(recipe: Recipe, prepared: Prepared) -> tuple[Objective[nn.Module], ImageSet]:
    """The objective of a recipe with fresh weights, and the training images as it is to see them."""
    images = _training_images(prepared, recipe)
    masks = images.masks.names if images.masks else ()
    return build_objective(recipe, findings=images.findings, sites=sites_of(images), masks=masks), images


def begin(objective: Objective[nn.Module], images: ImageSet | VolumeSet, recipe: Recipe, beginning: Beginning) -> None:
    """Make fresh weights ready for their first step: those of trained models taken over, and what must be measured on images."""
    if beginning.compressor is not None:
        cast(Any, objective.model).compressor.load_matching(beginning.compressor.weights)
    if isinstance(images, VolumeSet):
        begin_volumes(objective, images)
    else:
        objective.prepare(unit_images(images.pixels[:MEASURED_IMAGES]))
        objective.zero_unvaried_inputs(varying_inputs(images, spec=as_model(objective.model).spec))
    if beginning.base is not None:
        # Built twice: what low-rank updates begin with depends on the random numbers drawn before, and stays that of earlier versions.
        whole, again = beginning.base.build(), beginning.base.build()
        first = whole.stages[0] if isinstance(whole, Cascade) else whole
        objective.start_from(first, guide=again.guide if isinstance(again, Cascade) else None)
        adaptation.adapt(objective.model, recipe.train.adapt, rank=recipe.train.adapt_rank, alpha=recipe.train.adapt_alpha)


def _facts_of_start(beginning: Beginning, recipe: Recipe) -> dict[str, Any]:
    """What the model file and the card say of the models that the training began with; nothing where there were none."""
    facts: dict[str, Any] = {}
    if beginning.base is not None:
        facts["started_from"] = base_model.started_from(beginning.base, recipe, beginning.why)
    if beginning.compressor is not None:
        facts["compressor_digest"] = beginning.compressor.digest
    return facts


def _held_out_images(prepared: TrainingData, recipe: Recipe) -> ImageSet | None:
    """The validation images, where the loss on them is asked for."""
    asked = recipe.train.held_out_every and isinstance(prepared, Prepared)
    return _images_of(cast(Prepared, prepared), recipe, "val") if asked else None


def _training_images(prepared: Prepared, recipe: Recipe) -> ImageSet:
    """The training split."""
    return _images_of(prepared, recipe, "train")


def _images_of(prepared: Prepared, recipe: Recipe, split: str) -> ImageSet:
    """A split at the recipe's size, with masks and lesions where the recipe has a use for them."""
    masks = bool({"mask", "lesions", "text"} & set(conditions_of(recipe))) or needs_of(recipe).lesion_masks
    return without_no_finding(prepared.images(split, size=recipe.model.image_size, masks=masks))


def _sheet_writer(run: Run, images: ImageSet | VolumeSet, recipe: Recipe, engine: Engine) -> loop.Look:
    """Writes a sheet of 32 images whose conditions and seeds stay the same throughout the run, and watches for collapse."""
    if isinstance(images, VolumeSet):
        return volume_sheet_writer(run, images, recipe, engine)
    if "image" in conditions_of(recipe):
        return _enlarged_sheet_writer(run, images, recipe, engine)
    chosen = plan_like(images, num=32, seed=recipe.train.seed)

    def write(model: Any, step: int) -> Mapping[str, float | str]:
        from synthorax.steps.training.collapse import CollapseMonitor  # SciPy is not on every machine that trains without sheets

        generated = preview(as_model(model), chosen, settings=recipe.sample, engine=engine)
        sheet = contact_sheet(generated, columns=8, tile_px=max(96, generated.shape[1]), title=f"{recipe.name} step {step}")
        save_png(run.path / "samples" / f"step-{step:08d}.png", sheet)
        diagnostics = model.diagnostics() if isinstance(model, HasDiagnostics) else {}
        side = int(diagnostics["side_px"]) if "side_px" in diagnostics else None
        monitor = CollapseMonitor(images.pixels, log=run.path / "metrics.jsonl", seed=recipe.train.seed, side=side)
        return {**monitor.look(generated), **diagnostics}

    return write


def _enlarged_sheet_writer(run: Run, images: ImageSet, recipe: Recipe, engine: Engine) -> loop.Look:
    """Writes a sheet of eight training images: each shrunk, as the model makes it large again, and as it is."""
    rows = np.random.default_rng(derive(recipe.train.seed, "sheet")).choice(len(images), size=8)
    shown = images.take(rows)
    real = unit_images(shown.pixels)
    side = recipe.model.image_size // recipe.model.reduction
    small = F.adaptive_avg_pool2d(real, side)
    condition = replace(condition_of(shown.studies, shown.labels, sites=sites_of(images)), image=small)

    def write(model: Any, step: int) -> None:
        with engine.autocast():
            generated = as_model(model).sample(condition.to(engine.device), range(len(rows)), recipe.sample).float().cpu()
        tiles = torch.stack([F.interpolate(small, size=real.shape[2:], mode="nearest"), generated, real], dim=1).flatten(0, 1)
        sheet = contact_sheet(from_unit(tiles[:, 0].numpy()), columns=6, tile_px=real.shape[2],
                              title=f"{recipe.name} step {step}: shrunk to {side} px, enlarged, real")
        save_png(run.path / "samples" / f"step-{step:08d}.png", sheet)

    return write


def _has_begun(run: Run) -> bool:
    return run.weights.exists() or any((run.path / kept).exists() for kept in ("checkpoints", "metrics.jsonl"))


def _is_there(run: Run, recipe: Recipe, prepared: TrainingData, *, beginning: Beginning, resume: bool) -> bool:
    """Whether the folder holds the finished model of this training; it refuses to mix two. One without a first step binds nothing."""
    config = run.path / "config.toml"
    if resume and not config.exists():
        raise InputError("has no training to resume", file=run.path, remedy="leave out --resume")
    if not config.exists() or not _has_begun(run):
        return False
    try:
        earlier = load_recipe(config)
    except SynthoraxError as error:
        raise InputError(f"is damaged ({error})", file=config, remedy="restore it, or choose another --out") from error
    earlier_facts = read_json_object(run.path / "data.json", remedy="restore it, or choose another --out")
    allowed = {name: getattr(recipe.train, name) for name in MAY_CHANGE_ON_RESUME} if resume else {}
    facts = _data_record(prepared, beginning)
    if earlier.with_train(**allowed) != recipe or any(earlier_facts.get(name) != facts[name] for name in facts if "digest" in name):
        raise InputError("holds a run with another recipe or other data", file=run.path,
                         remedy="choose another --out" + ("" if resume else ", or --resume to change steps or learning rate"))
    if not run.weights.exists():
        return False
    return (run.finished and earlier == recipe) or _settings_in(run) == recipe


def _settings_in(run: Run) -> Recipe | None:
    """The recipe with which the finished model was trained."""
    settings = read_spec(run.weights)[1].get("settings")
    return None if settings is None else recipe_from_toml(settings, where=str(run.weights))


def _data_record(prepared: TrainingData, beginning: Beginning) -> dict[str, Any]:
    """What data.json tells of the images and of the models that the training began with."""
    return {"prepared": prepared.path.resolve().name, "digest": prepared.digest, **beginning.digests()}


def with_compressor(recipe: Recipe, compressor: TrainedModel) -> Recipe:
    """The recipe with the shape of its compressor filled in from the run."""
    spec = compressor.spec
    wanted = needs_of(recipe).compressor
    if spec.family != wanted:
        raise UsageError(f"the recipe '{recipe.name}' diffuses on '{wanted}', and {compressor} is a model of family '{spec.family}'")
    return replace(recipe, model=replace(recipe.model, compressor_config=dict(spec.config)))


def without_no_finding(images: ImageSet) -> ImageSet:
    """The images without the column `No Finding`, which for a generator is said by every other column being absent."""
    keep = [index for index, name in enumerate(images.findings) if name != NO_FINDING]
    return replace(images, findings=tuple(images.findings[i] for i in keep), labels=np.ascontiguousarray(images.labels[:, keep]),
                   lesions=None if images.lesions is None else np.ascontiguousarray(images.lesions[:, keep]))
