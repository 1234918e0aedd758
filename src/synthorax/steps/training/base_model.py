"""Starting from a base model: whether it fits, which recipe goes with it, and how much of it moves for how many images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthorax.capabilities import Adaptable, StartsFromBase
from synthorax.config import build
from synthorax.data.prepared import Prepared
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError, UsageError, nearest
from synthorax.families import FAMILIES
from synthorax.families.denoising.adaptation import WAYS, check_rank
from synthorax.protocols import Family
from synthorax.registry import lookup
from synthorax.steps.models.recipe import Recipe, families_that_can, load_recipe, needs_of, recipe_from_toml, recipe_names
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.training.inversion_encoder import MOVES, is_encoder
from synthorax.steps.training.student import describe_student, is_student, ordinary
from synthorax.training.loop import TrainConfig
from synthorax.types import Stated

LEARNING_RATES = {"full": 2e-4, "lora": 1e-3, "trunk": 5e-4}
"""Peak learning rate of each way where no recipe says another one: the fewer weights move, the further each may go. Taken from usage
(Hu et al. 2021; Xie et al. 2023); `bench/studies/few_images.py` measures with them."""
MAY_DIFFER = ("parts", "dropout", "sigma_min", "sigma_max", "truncation", "told_augmentation")
"""Keys of the model that need not be the base's: they change no weight's meaning. Of `parts`, the base must have all."""

MAY_DIFFER_IN_CROPS = ("image_size", "reduction", "sigma_data", "coordinates")
"""The same of a stage that learns from crops: by how much it enlarges, and how much detail that adds, is soon learned anew"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Up to which number of images a way is taken, and why."""

    way: str
    images_below: float
    """training images in all"""
    shown_below: float
    """training images of the rarest finding that has to be learned"""
    reason: str


RULES = (
    Rule(way="trunk", images_below=50, shown_below=10,
         reason="so few images are memorised by anything that can move much; the fewest weights that can change how images look "
                "are norms and modulations (Xie et al. 2023)"),
    Rule(way="lora", images_below=2000, shown_below=200,
         reason="some hundred images teach a new look or finding but do not cover a population; updates of low rank keep what the base "
                "knows of the rest (Hu et al. 2021)"),
    Rule(way="full", images_below=float("inf"), shown_below=float("inf"),
         reason="enough images to move every weight"),
)
"""The first rule that holds decides. The numbers are expectations: in trainings of 150 s `bench/studies/few_images.py` saw no
difference between the ways (docs/how-to/start-from-a-base.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A way to adapt, and why it was taken."""

    way: str
    reason: str


def choose_way(*, images: int, shown: int | None) -> Choice:
    """The way for a number of training images, `shown` of which show the rarest finding that is to be learned (None: no such finding).

    >>> choose_way(images=5000, shown=None).way, choose_way(images=5000, shown=25).way, choose_way(images=30, shown=25).way
    ('full', 'lora', 'trunk')
    """
    rule = next(rule for rule in RULES if images < rule.images_below or (shown is not None and shown < rule.shown_below))
    counted = f"{images} training images" + ("" if shown is None else f", {shown} with the rarest finding to learn")
    return Choice(way=rule.way, reason=f"{counted}: {rule.reason}")


def with_way(recipe: Recipe, way: str) -> Recipe:
    """The recipe with another way to adapt; an unknown one is a UsageError."""
    if way not in (*WAYS, "auto"):
        raise UsageError(f"unknown way to adapt '{way}'; {nearest(way, (*WAYS, 'auto'))}")
    return recipe.with_train(adapt=way)


def resolve_way(recipe: Recipe, prepared: Prepared, base: TrainedModel | None, *, findings: Sequence[str] = ()) -> tuple[Recipe, str]:
    """The recipe with the way that `auto` comes to, and why; the finding to learn is the rarest of `findings`, or of those new to the base.
    """
    if recipe.train.adapt != "auto" or base is None:
        return recipe, "asked for"
    known = base.spec.findings
    train = [study for study in prepared.studies if study.split == "train"]
    counts = {name: sum(study.labels.get(name) is Stated.PRESENT for study in train)
              for name in findings or [name for name in prepared.findings if name not in known and name != NO_FINDING]}
    choice = choose_way(images=len(train), shown=min((count for count in counts.values() if count), default=None))
    return recipe.with_train(adapt=choice.way), choice.reason


def check_base(recipe: Recipe, base: TrainedModel | None) -> None:
    """Refuse, before anything is written, a base that does not fit the recipe, and a way to adapt that cannot be.

    Raises UsageError, or InputError where the base is damaged.
    """
    train = recipe.train
    if is_student(recipe):
        raise UsageError(f"the recipe '{recipe.name}' trains a student, which learns from its teacher and by `train` alone; choose another "
                         "recipe, or a base that is no student")
    if is_encoder(recipe):
        raise UsageError(f"the recipe '{recipe.name}' trains an encoder for a generator, by `train` alone; choose another recipe or base")
    if base is None:
        if train.adapt != "full":
            raise UsageError(f"train.adapt = '{train.adapt}' needs a trained model to start from; give --base, or leave it out")
        return
    _refuse_foreign(base)
    stage = base.stages[0]
    spec = stage.spec
    if spec.family != recipe.family:
        raise UsageError(f"the base {base} is a model of family '{spec.family}' and the recipe '{recipe.name}' trains '{recipe.family}'; "
                         "a training starts from a base of its own family")
    crops = needs_of(recipe).crops  # which only a network that knows no places learns from
    halved = needs_of(recipe).halved_base and 2 * spec.image_size == recipe.model.image_size
    if spec.image_size != recipe.model.image_size and not (crops or halved):
        raise UsageError(f"the base {base} makes images of {spec.image_size} px and the recipe '{recipe.name}' of "
                         f"{recipe.model.image_size} px; choose a recipe of {spec.image_size} px, or another base")
    family: Family = lookup(FAMILIES, spec.family, kind="family")
    built = ordinary(build(family.model_config, spec.config, where=str(base.path), prefix="model"))
    theirs, own = _plain(built), _plain(recipe.model)
    free = (*MAY_DIFFER, *(MAY_DIFFER_IN_CROPS if crops else ()), *(("image_size", "detail_sigma_data") if halved else ()))
    differing = [f"model.{key} is {theirs[key]} there and {own[key]} here" for key in own if key not in free and theirs[key] != own[key]]
    differing += [f"it is not conditioned on {part}" for part in own.get("parts", ()) if part not in theirs["parts"] and not halved]
    if differing:
        raise UsageError(f"the base {base} has another shape than the recipe '{recipe.name}': {'; '.join(differing)}")
    if train.adapt != "full" and recipe.family not in families_that_can(Adaptable):
        raise UsageError(f"models of family '{recipe.family}' cannot be adapted by '{train.adapt}'; those that can: "
                         f"{', '.join(families_that_can(Adaptable))}")
    if recipe.family not in families_that_can(StartsFromBase):
        raise UsageError(f"no training of family '{recipe.family}' can start from a trained model; those that can: "
                         f"{', '.join(families_that_can(StartsFromBase))}")
    if train.adapt in ("lora", "auto"):
        check_rank({name: weight.shape for name, weight in stage.weights.items()}, train.adapt_rank)


def with_compressor_of(recipe: Recipe, base: TrainedModel | None) -> Recipe:
    """The recipe with the shape of the base's compressor, where the recipe names a trained one and not its shape."""
    missing = needs_of(recipe).compressor not in ("none", "wavelet") and not recipe.model.compressor_config
    if base is None or not missing or base.is_foreign:
        return recipe
    config = base.stages[0].spec.config
    return replace(recipe, model=replace(recipe.model, compressor_config=config.get("compressor_config", {})))


def recipe_of_base(base: TrainedModel, *, train: TrainConfig) -> Recipe:
    """The recipe of a base's own shape and objective, trained as `train` says: batches that fit this machine, not the base's.

    Raises InputError where the base does not say how it was trained.
    """
    _refuse_foreign(base)
    assert base.path is not None
    path, spec, facts = base.path, base.stages[0].spec, base.stages[0].facts
    family: Family = lookup(FAMILIES, spec.family, kind="family")
    model = ordinary(build(family.model_config, spec.config, where=str(path), prefix="model"))
    name = str(facts.get("recipe", ""))
    if "settings" in facts:
        settings = recipe_from_toml(facts["settings"], where=str(path))
    elif (path.parent / "config.toml").is_file():
        settings = load_recipe(path.parent / "config.toml")
    elif name in recipe_names() and _plain(load_recipe(name).model) == _plain(model):
        settings = load_recipe(name)
    else:
        raise InputError("does not say how it was trained", file=path, remedy="give the recipe that it was trained with by --recipe")
    if is_student(settings) and model.distilled is None:
        settings = replace(settings, name=f"{Path(base.given).stem}-adapted")  # what is trained on is no student any more
    return replace(settings, model=model, train=train)


def started_from(base: TrainedModel, recipe: Recipe, why: str) -> dict[str, Any]:
    """What a run, its card and a report say of the base that it started from."""
    train = recipe.train
    rank = {"rank": train.adapt_rank, "alpha": train.adapt_alpha} if train.adapt == "lora" else {}
    moves = MOVES if is_encoder(recipe) else WAYS[train.adapt]
    student = {"student": describe_student(recipe)} if is_student(recipe) else {}
    return {"base": base.label, "base_digest": base.digest, "way": train.adapt, "moves": moves, "why": why, **rank, **student}


def _refuse_foreign(base: TrainedModel) -> None:
    if base.is_foreign:
        raise UsageError(f"{base} was saved by diffusers; such a model can be sampled from, but nothing here can start from it")


def _plain(config: Any) -> dict[str, Any]:
    """A config as JSON has it, in which a list and a tuple are the same."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
