"""Verbs that train and assemble models: train and pack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from synthorax.config import parse_duration
from synthorax.data.prepared import Prepared
from synthorax.data.prepared_volumes import PreparedVolumes
from synthorax.data.vocabulary import NO_FINDING
from synthorax.engine import Device, started
from synthorax.errors import UsageError
from synthorax.progress import progress_line
from synthorax.run import Run
from synthorax.steps.models.pack import pack_cascade
from synthorax.steps.models.recipe import Recipe, load_recipe
from synthorax.steps.models.trained_model import ModelLike, PathLike, TrainedModel, open_model
from synthorax.steps.training.base_model import check_base, resolve_way, with_compressor_of, with_way
from synthorax.steps.training.inversion_encoder import AS_IT_IS, is_encoder, with_generator
from synthorax.steps.training.recipe_checks import check_recipe
from synthorax.steps.training.student import TEACHER_DECIDES, is_student, with_teacher
from synthorax.steps.training.train_run import Beginning, claimed_run, train_run, with_compressor
from synthorax.verbs.inputs import check_kind_of_data, training_data_of


def train(recipe: str | Path | Recipe, data: Prepared | PreparedVolumes | PathLike, *, out: PathLike, overrides: Sequence[str] = (),
          budget: str | float | None = None, pause_after: str | float | None = None, resume: bool = False,
          base: ModelLike | None = None, adapt: str | None = None, compressor: ModelLike | None = None, seed: int | None = None,
          device: Device = "auto", threads: int | None = None, findings: Sequence[str] = (),
          clock: Literal["wall", "processor"] = "wall", budget_images: int | None = None) -> Run:
    """Train a recipe on the training split of `data`, images or lesions, or go on where the same command stopped; a finished run is
    returned as it is.

    `budget` is a duration such as "20m" or seconds, of wall-clock time or, by `clock`, of processor time over all cores, which is fair on
    a busy machine; `budget_images` ends it after so many images were drawn. After `pause_after`, always in wall-clock time, the
    training is saved and the run returned unfinished, with its model so far in `run.so_far`; the same call goes on. `resume` also allows
    other values of steps, learning rate, precision and intervals. `base` starts from the weights of a shipped model or of another run of
    the same shape, and `adapt` says which of its weights are trained: full, lora, trunk, or auto, which goes by the number of images
    and of those that show the rarest of `findings` (by default of those new to the base). For a recipe that trains a student `base` is
    the teacher, and for one that trains an inversion encoder the generator. `compressor` is the run of the autoencoder whose latents are
    diffused. Raises UsageError for a base that does not fit, and InputError if `out` holds another run.
    """
    if budget is not None and budget_images is not None:
        raise UsageError("a budget limits the time, or the images that the training sees (--budget-images); give one of the two")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides=overrides)
    prepared = training_data_of(recipe, data)
    if adapt is not None:
        if base is None:
            raise UsageError(f"adapt = '{adapt}' needs a trained model to start from; give its base, or leave it out")
        recipe = with_way(recipe, adapt)
    if seed is not None:
        recipe = recipe.with_train(seed=seed)
    recipe, beginning = _fit_to_start(recipe, prepared, base=None if base is None else open_model(base),
                                      compressor=None if compressor is None else open_model(compressor), findings=findings)
    return train_from(beginning, recipe, prepared, out=out, budget=budget, budget_images=budget_images, pause_after=pause_after,
                      resume=resume, clock=clock, device=device, threads=threads)


def train_from(beginning: Beginning, recipe: Recipe, prepared: Prepared | PreparedVolumes, *, out: PathLike,
               budget: str | float | None = None, budget_images: int | None = None, pause_after: str | float | None = None,
               resume: bool = False, clock: Literal["wall", "processor"] = "wall", device: Device = "auto",
               threads: int | None = None) -> Run:
    """`train` for a recipe that fits the models that it begins with, and says how much of them moves."""
    check_kind_of_data(recipe, prepared)
    check_recipe(recipe, findings=[name for name in prepared.findings if name != NO_FINDING], masks=prepared.mask_classes())
    run = Run(path=Path(out))
    seconds, pause = (parse_duration(given) if isinstance(given, str) else given for given in (budget, pause_after))
    now = {"wall": time.monotonic, "processor": time.process_time}[clock]
    with (started(device=device, threads=threads, precision=recipe.train.precision, seed=recipe.train.seed) as engine,
          claimed_run(run, recipe, prepared, beginning=beginning, resume=resume) if engine.is_main else contextlib.nullcontext()):
        train_run(run, recipe, prepared, engine=engine, seconds=seconds, beginning=beginning, pause_seconds=pause, clock=now,
                  num_images=budget_images, resume=resume)
    return run


def _fit_to_start(recipe: Recipe, prepared: Prepared | PreparedVolumes, *, base: TrainedModel | None, compressor: TrainedModel | None,
                  findings: Sequence[str]) -> tuple[Recipe, Beginning]:
    """The recipe with the shapes of the models that it begins with and the way in which they are adapted; what does not fit is refused."""
    if is_student(recipe):
        recipe, why = with_teacher(recipe, base, compressor=compressor), TEACHER_DECIDES
    elif is_encoder(recipe):
        recipe, why = with_generator(recipe, base, compressor=compressor), AS_IT_IS
    else:
        recipe = with_compressor_of(recipe, base) if compressor is None else with_compressor(recipe, compressor)
        check_base(recipe, base)
        recipe, why = resolve_way(recipe, prepared, base, findings=findings) if isinstance(prepared, Prepared) else (recipe, "asked for")
    return recipe, Beginning(base=base, compressor=compressor, why=why)


def pack(runs: Sequence[ModelLike], *, out: PathLike, guide: ModelLike | None = None, sample: Mapping[str, Any] | None = None,
         precision: Literal["bf16", "fp32"] = "bf16") -> Run:
    """Put trained models together: one that makes small images, and those that enlarge them; see `steps.models.pack.pack_cascade`.

    >>> pack(["runs/base-64", "runs/super-256"], out="models/cxr-256")  # doctest: +SKIP
    """
    with progress_line("pack") as progress:
        return pack_cascade(runs, Path(out), guide=guide, sample=sample, precision=precision, progress=progress)
