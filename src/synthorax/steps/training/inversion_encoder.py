"""Inversion encoders: recipes whose model holds a trained generator and learns to predict its latents from images."""

from __future__ import annotations

from dataclasses import replace

from synthorax.errors import UsageError
from synthorax.families.adversarial.inversion_encoder import GENERATORS
from synthorax.steps.models.recipe import Recipe
from synthorax.steps.models.trained_model import TrainedModel

FAMILY = "inversion-encoder"
AS_IT_IS = "codes mean something to the generator that they were read for alone"
"""why a generator stays as it is"""
MOVES = "an encoder of its images is trained, and the base itself stays as it was"


def is_encoder(recipe: Recipe) -> bool:
    """Whether the recipe trains an encoder, which needs a generator."""
    return recipe.family == FAMILY


def with_generator(recipe: Recipe, generator: TrainedModel | None, *, compressor: TrainedModel | None = None) -> Recipe:
    """The recipe with the shape of a trained generator filled in.

    Raises UsageError without a generator, for one whose images have no codes, and where something else is asked for than it is.
    """
    if generator is None:
        raise UsageError(f"the recipe '{recipe.name}' trains an encoder for a trained generator: give its run with --base")
    if compressor is not None:
        raise UsageError("an inversion encoder works on images; leave --compressor out")
    if recipe.train.adapt != "full":
        raise UsageError(f"train.adapt = '{recipe.train.adapt}' is for bases; a generator stays as it is beside its "
                         "encoder, so leave it out")
    spec = generator.stages[0].spec
    if spec.family not in GENERATORS:
        raise UsageError(f"{generator} is a model of family '{spec.family}', whose images have no latents to read; those that have: "
                         f"{', '.join(GENERATORS)}")
    usual = type(recipe.model)()
    theirs = {"image_size": spec.image_size, "generator": spec.family, "generator_config": dict(spec.config)}
    for name, value in theirs.items():
        if getattr(recipe.model, name) not in (getattr(usual, name), value):
            raise UsageError(f"model.{name} {getattr(recipe.model, name)}: an encoder follows its generator, where it is {value}; leave it "
                             "out")
    return replace(recipe, model=replace(recipe.model, **theirs))
