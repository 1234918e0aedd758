"""Are the settings of a recipe ones that can be trained and sampled? Asked before an image is read and before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from synthorax.capabilities import Denoiser
from synthorax.data.vocabulary import CHESTXRAY14
from synthorax.errors import InputError, SynthoraxError
from synthorax.protocols import as_model
from synthorax.steps.generate import check_settings
from synthorax.steps.models.recipe import Recipe, build_objective, needs_of
from synthorax.training.loop import check_batch


def check_recipe(recipe: Recipe, *, findings: Sequence[str] = CHESTXRAY14, sites: Sequence[str] = (), masks: Sequence[str] = ()) -> None:
    """Refuse settings of which no network can be made, or that it could not be trained or sampled with. Raises UsageError or InputError.

    Bounds of single settings are checked when a recipe is read; this is for what depends on several. The networks are built without memory,
    so that it takes a moment for any size.
    """
    if needs_of(recipe).own_files:  # which are read when the network is built in earnest, also before anything is written
        return
    try:
        with torch.device("meta"):
            objective = build_objective(recipe, findings=findings, sites=sites, masks=masks)
    except SynthoraxError:
        raise
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"no network can be built with the settings of [model] and [objective] ({' '.join(str(error).split())[:160]})",
                         file=recipe.name, remedy="correct them, or start from a recipe that ships") from error
    check_batch(objective, recipe.train)
    model = as_model(objective.model)
    if not (isinstance(model, Denoiser) and model.needs_image):
        try:
            check_settings(model, recipe.sample)
        except SynthoraxError as error:
            raise type(error)(f"recipe '{recipe.name}', [sample]: {error}") from error
