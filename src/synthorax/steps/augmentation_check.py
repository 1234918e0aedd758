"""What the main job cannot use, refused before any image is read: recipes, bases and compressors that cannot make what it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthorax.capabilities import LayoutMaker
from synthorax.data.dataset import read_facts
from synthorax.data.prepared import SIZES_PX
from synthorax.data.vocabulary import NO_FINDING, canonical
from synthorax.errors import InputError, UsageError
from synthorax.families.autoencoders.compressors import TRAINED
from synthorax.steps.models.recipe import Recipe, conditions_of, families_that_can, follows_masks, needs_of
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import check_num
from synthorax.steps.training.base_model import check_base, with_compressor_of
from synthorax.steps.training.student import is_student
from synthorax.steps.training.train_run import with_compressor

CHOOSE = "choose a recipe that follows findings, such as edm-64 or projection-gan-64"


def augment_recipe(recipe: Recipe, *, base: TrainedModel | None, compressor: TrainedModel | None) -> Recipe:
    """The recipe with the shape of its compressor filled in, if the main job can use it: it must make images that show what is asked for.

    Raises UsageError that says why it cannot be used, and InputError where base or compressor is damaged.
    """
    check_base(recipe, base)
    if recipe.family in TRAINED:
        raise UsageError(f"the recipe '{recipe.name}' compresses images and makes no new ones; train it first, then a latent recipe on it "
                         "(--recipe latent-64 --compressor RUN)")
    if recipe.family in families_that_can(LayoutMaker):
        raise UsageError(f"the recipe '{recipe.name}' draws outlines of findings and no images; {CHOOSE}, and give its run to insert "
                         "or plan with --layouts")
    conditions = conditions_of(recipe)
    if "image" in conditions:
        raise UsageError(f"the recipe '{recipe.name}' enlarges images and makes none of its own; pack its run behind a model that does "
                         "(synthorax pack), and give that as --base")
    if "labels" not in conditions:
        raise UsageError(f"the recipe '{recipe.name}' makes images of no finding in particular, because family '{recipe.family}' as set "
                         f"there is not conditioned on labels; {CHOOSE}")
    if follows_masks(recipe):
        raise UsageError(f"the recipe '{recipe.name}' makes images of masks, which augment does not draw; {CHOOSE}, or use train, plan "
                         "and generate with masks of your own")
    recipe = _with_compressor(recipe, base=base, compressor=compressor)
    _check_size(recipe, base)
    return recipe


def check_compressor(recipe: Recipe) -> None:
    """Refuse a recipe that has no use for a trained compressor, where one is given. Raises UsageError."""
    if needs_of(recipe).compressor not in TRAINED or is_student(recipe):
        raise UsageError(f"the recipe '{recipe.name}' works on no latents of a trained compressor; leave --compressor out, or take a "
                         "latent recipe, such as latent-64")


def _with_compressor(recipe: Recipe, *, base: TrainedModel | None, compressor: TrainedModel | None) -> Recipe:
    kind = needs_of(recipe).compressor
    recipe = with_compressor_of(recipe, base) if compressor is None else with_compressor(recipe, compressor)
    if kind in TRAINED and compressor is None and base is None:
        size = recipe.model.image_size
        raise UsageError(f"the recipe '{recipe.name}' diffuses latents of a trained '{kind}'; train one of {size} px first (such as "
                         f"synthorax train kl-autoencoder-{size}), and give its run with --compressor")
    return recipe


def _check_size(recipe: Recipe, base: TrainedModel | None) -> None:
    """Refuse sizes at which no images can be prepared, or that do not divide those of the model that enlarges them."""
    sizes = {recipe.model.image_size} if base is None else {stage.spec.image_size for stage in base.stages}
    largest = max(sizes)
    for size in sorted(sizes):
        if not SIZES_PX[0] <= size <= SIZES_PX[1]:
            raise UsageError(f"the recipe '{recipe.name}' makes images of {size} px, and images are prepared at {SIZES_PX[0]} to "
                             f"{SIZES_PX[1]} px; choose another size")
        if largest % size:
            raise UsageError(f"the base makes images of {largest} px out of {size} px, which do not divide them; choose another base")


def image_size(recipe: Recipe, base: TrainedModel | None) -> int:
    """Side in pixels of the images that the main job will make: the recipe's, or of a packed base the size that it enlarges them to."""
    return int(recipe.model.image_size if base is None else base.spec.image_size)


def known_findings(findings: Sequence[str], source: Path, *, allow: Sequence[str]) -> list[str]:
    """The findings by the names of the vocabulary, of `allow`, or of what the data set declares, each once.

    Raises UsageError for none, and InputError for a folder that is not there or a name that nobody knows, with the nearest one.
    """
    if not findings:
        raise UsageError("say which finding to augment (--finding)")
    if not source.is_dir():
        raise InputError("no such folder", file=source)
    known = (*allow, *read_facts(source).get("labels", ()))
    names = list(dict.fromkeys(canonical(name, allow=known) for name in findings))
    if NO_FINDING in names:
        raise UsageError(f"'{NO_FINDING}' cannot be augmented: every image with a finding gets a companion without it anyway")
    return names


def check_images(num: int | None, *, kinds: int) -> None:
    """Refuse a number of images for each of `kinds` findings that is none, or more than one call makes. Raises UsageError."""
    if num is not None:
        check_num(num)
        check_num(2 * num * kinds)  # every image with a finding has a companion without it
