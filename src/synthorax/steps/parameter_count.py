"""How many parameters a recipe trains, and what it needs: counted on networks without memory, on PyTorch's device `meta`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from synthorax.data.vocabulary import CHESTXRAY14
from synthorax.errors import UsageError
from synthorax.steps.models.recipe import Recipe, build_objective, conditions_of, follows_masks, load_recipe
from synthorax.steps.models.recipe_table import RecipeFacts
from synthorax.steps.models.trained_model import ModelLike, open_model
from synthorax.steps.training.comparison_design import first_stage
from synthorax.steps.training.inversion_encoder import is_encoder, with_generator
from synthorax.steps.training.student import is_student, with_teacher
from synthorax.steps.training.train_run import with_compressor

ORGANS = ("lung", "heart")
"""masks that a recipe which takes masks is counted for, unless others are given"""


def count_parameters(recipe: str | Path, *, findings: Sequence[str] | None = None, masks: Sequence[str] = ORGANS,
                     base: ModelLike | None = None, compressor: ModelLike | None = None) -> int:
    """Parameters that a recipe would train, of all its networks together.

    Counted for the 14 findings of ChestX-ray14, one site, and masks of lungs and heart where the recipe takes masks. The compressor under
    a latent recipe does not count; without a run of it, it has the shape of the shipped recipe of its family and size. A student or an
    inversion encoder has the shape of a trained model: give its run as `base`; UsageError without it.

    >>> count_parameters("kumar-gan")
    6402880
    """
    shaped = _with_shapes(load_recipe(recipe), base=base, compressor=compressor)
    with torch.device("meta"):
        objective = build_objective(shaped, findings=CHESTXRAY14 if findings is None else findings,
                                    masks=masks if "mask" in conditions_of(shaped) else ())
    return sum(parameter.numel() for parameter in objective.players.parameters() if parameter.requires_grad)


def facts_of(name: str) -> RecipeFacts:
    """What the table of recipes says of a shipped one; `bench/release/recipe_table.py` writes it."""
    recipe = load_recipe(name)
    if is_student(recipe) or is_encoder(recipe):
        model = "teacher" if is_student(recipe) else "generator"
        return RecipeFacts(recipe=name, family=recipe.family, image_size=None, parameters=None, needs=(model,))
    wanted = {"compressor": first_stage(recipe, {}) is not None, "masks": follows_masks(recipe),
              "base": "image" in conditions_of(recipe)}
    needs = tuple(what for what, needed in wanted.items() if needed)
    return RecipeFacts(recipe=name, family=recipe.family, image_size=recipe.model.image_size, needs=needs,
                       parameters=count_parameters(name))


def _with_shapes(recipe: Recipe, *, base: ModelLike | None, compressor: ModelLike | None) -> Recipe:
    """The recipe with the shapes filled in that come from trained models."""
    if is_student(recipe) or is_encoder(recipe):
        if base is None:
            model = "teacher" if is_student(recipe) else "generator"
            raise UsageError(f"the recipe '{recipe.name}' has the shape of its {model}: give the run of that, base=...")
        return with_teacher(recipe, open_model(base)) if is_student(recipe) else with_generator(recipe, open_model(base))
    if compressor is not None:
        return with_compressor(recipe, open_model(compressor))
    first = first_stage(recipe, {})
    return recipe if first is None else replace(recipe, model=replace(recipe.model, compressor_config=asdict(first.model)))
