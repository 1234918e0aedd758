"""Students: recipes whose model takes its shape from a trained teacher, and is sampled as its teacher was."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from synthorax.config import build
from synthorax.errors import UsageError
from synthorax.families.denoising.distillation import Distilled
from synthorax.families.denoising.model import DiffusionConfig
from synthorax.protocols import SampleSettings
from synthorax.steps.models.recipe import Recipe
from synthorax.steps.models.trained_model import TrainedModel

TEACHER_DECIDES = "a student begins with its teacher's weights"
"""why every weight of a student moves"""


def is_student(recipe: Recipe) -> bool:
    """Whether the recipe trains a student, which needs a teacher."""
    return isinstance(recipe.model, DiffusionConfig) and recipe.model.distilled is not None


def with_teacher(recipe: Recipe, teacher: TrainedModel | None, *, compressor: TrainedModel | None = None) -> Recipe:
    """The recipe of a student with the shape of its teacher and the student's own way of sampling filled in.

    Raises UsageError without a teacher, for a shape that is not the teacher's, for a teacher that cannot teach this, and where only part of
    the weights would move.
    """
    if teacher is None:
        raise UsageError(f"the recipe '{recipe.name}' trains a student: give the run of its teacher with --base")
    if compressor is not None:
        raise UsageError("a student works on the latents of its teacher; leave --compressor out")
    if recipe.train.adapt != "full":
        raise UsageError(f"train.adapt = '{recipe.train.adapt}' is for bases; of a student every weight moves, so leave it out")
    spec = teacher.stages[0].spec
    distilled: Distilled = recipe.model.distilled
    if distilled.autoguidance != 1 and teacher.guide is None:
        raise UsageError(f"the recipe '{recipe.name}' builds in the guidance by a weaker model, and {teacher} has none beside it; pack one "
                         "with it (synthorax pack --guide)")
    if spec.family != recipe.family:
        raise UsageError(f"the recipe '{recipe.name}' learns from a model of family '{recipe.family}', and {teacher} is of '{spec.family}'")
    theirs = build(type(recipe.model), spec.config, where=str(teacher.path), prefix="model")
    usual = type(recipe.model)()
    for field in fields(recipe.model):
        own = getattr(recipe.model, field.name)
        if field.name != "distilled" and own not in (getattr(usual, field.name), getattr(theirs, field.name)):
            raise UsageError(f"model.{field.name} {own}: a student has the shape of its teacher, where it is "
                             f"{getattr(theirs, field.name)}; leave it out")
    _check_guidance(distilled, theirs.distilled)
    for part in distilled.part_guidance:
        if part not in theirs.parts:
            raise UsageError(f"model.distilled.part_guidance of '{part}': the teacher is not conditioned on it; it is conditioned on "
                             f"{', '.join(theirs.parts)}")
    sample = distilled.settings(recipe.sample)
    if distilled.steps:
        distilled.levels(sigma_min=theirs.sigma_min, sigma_max=theirs.sigma_max)  # an unknown schedule, or too many steps of it
        if recipe.sample not in (SampleSettings(), sample):
            raise UsageError(f"the recipe '{recipe.name}' has a table [sample], but a student of {distilled.steps} steps is sampled in "
                             "its own way; leave it out")
    return replace(recipe, model=replace(theirs, distilled=distilled), sample=sample)


def describe_student(recipe: Recipe) -> str:
    """One sentence on what a student has built in, for its card."""
    distilled: Distilled = recipe.model.distilled
    walk = f"sampled in {distilled.steps} steps" if distilled.steps else "sampled with the number of steps that is asked for"
    own = "its own guidance is 1" if distilled.guides else "it may be guided as any model"
    return f"Student of that base: {walk}, with the teacher's guidance {distilled.description()} built in; {own}."


def ordinary(config: Any) -> Any:
    """The model's config as that of no student, where it is guided and trained on as any other; else as it is."""
    if not isinstance(config, DiffusionConfig) or config.distilled is None or config.distilled.guides or config.distilled.steps:
        return config
    return replace(config, distilled=None)


def _check_guidance(own: Distilled, teacher: Distilled | None) -> None:
    if teacher is None:
        return
    if teacher.steps:
        raise UsageError(f"the teacher is itself a student of {teacher.steps} steps; give the model that it learned from")
    if teacher.guides and own.teacher_settings() != teacher.teacher_settings():
        raise UsageError(f"the teacher has guidance {teacher.description()} built in, and the recipe asks for {own.description()}; set "
                         f"model.distilled.guidance={teacher.guidance:g} and the other weights and levels as the teacher has them")
