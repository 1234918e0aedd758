"""The design of a comparison of generators: its arms, the terms that all of them share, and what is refused before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP
from synthorax.families.autoencoders.compressors import TRAINED
from synthorax.files import read_json_object, safe_name, write_json
from synthorax.folders import claimed
from synthorax.judges.classifier import ClassifierConfig
from synthorax.privacy.copies import MIN_HELD_OUT
from synthorax.rng import derive
from synthorax.steps.models.recipe import Recipe, conditions_of, load_recipe, needs_of, recipe_from_toml, recipe_names
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import Plan, plan_like
from synthorax.steps.training.base_model import LEARNING_RATES, check_base, recipe_of_base, with_way
from synthorax.steps.training.student import is_student
from synthorax.steps.training.train_run import fresh_objective
from synthorax.steps.training.training_subset import drawn_images, training_set
from synthorax.training.loop import check_batch
from synthorax.types import ImageSet

FIRST_STAGE_PART = 0.4
"""part of the budget that trains the compressor, where a recipe diffuses on the codes of one"""
WITHOUT_END = 10**9
"""steps: the budget alone ends a training"""
COMMON = ("train.steps", "train.seed", "train.augment", "train.balance")
"""settings that are the same for all arms and cannot be set for one"""
BASE_RECIPE = "edm-64"
"""whose training settings an adapted base has, but for the learning rate of its way"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to train a generator."""

    name: str
    recipe: Recipe
    first: Recipe | None = None
    """of the compressor whose codes it diffuses"""
    base: TrainedModel | None = None
    """model that it starts from"""

    @property
    def folder(self) -> str:
        """Its name as part of a path."""
        return safe_name(self.name.replace(":", "-"))

    @property
    def settings(self) -> list[str]:
        """All that belongs to it and is not common to the arms: its recipes as TOML, and the SHA-256 of its base."""
        base = "" if self.base is None else self.base.digest
        return [*(stage.to_toml() for stage in (self.first, self.recipe) if stage is not None), base]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What is the same for every arm."""

    seconds: float | None = None
    """of training, on the clock"""
    images: int | None = None
    """drawn in training, in place of seconds"""
    clock: Literal["wall", "processor"] = "wall"
    num: int = 400
    """images that each training makes"""
    train_images: int | None = None
    """training images that each seed draws; None: all"""
    finding: str = ""
    """shown by half of few images, of the requests and of the held-out images"""
    features: str = "efficientnet-lite0"
    """feature space of the judges"""
    augment: bool = True
    """vary the training images slightly"""
    judge_updates: int = ClassifierConfig().updates
    """of the classifiers that tell what few images gain"""

    def __post_init__(self) -> None:
        """Refuse what cannot be a comparison."""
        if (self.seconds is None) == (self.images is None):
            raise UsageError("a comparison needs one budget: of time (--budget 10m) or of images (--budget-images 50k)")
        if (self.seconds is not None and self.seconds <= 0) or (self.images is not None and self.images < 1):
            raise UsageError("the budget must be above zero")
        if self.num < MIN_IMAGES_PER_GROUP:
            raise UsageError(f"{self.num} images of each training are too few to measure anything; make at least {MIN_IMAGES_PER_GROUP}")
        if self.finding and self.train_images is None:
            raise UsageError("--finding is for a comparison with few images; give their number with --train-images")
        if self.train_images is not None and self.train_images < 2:
            raise UsageError(f"{self.train_images} training images: at least 2 are needed")

    def in_words(self) -> str:
        """The budget."""
        return f"{self.images:,} images drawn" if self.images is not None else f"{self.seconds:g} s of {self.clock} time"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ComparisonDesign:
    """A comparison whose arms were checked; it can be sent to another process."""

    out: Path
    prepared: Prepared
    arms: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    terms: Terms
    notes: tuple[str, ...] = field(default=())
    """what a reader must know before the numbers"""

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.arms[0].recipe.model.image_size)

    def training_images(self, seed: int) -> Prepared:
        """What every arm of a seed learns from: all training images, or a prepared folder of the few that the seed draws."""
        terms = self.terms
        if terms.train_images is None:
            return self.prepared
        drawn = drawn_images(self.prepared.images("train"), num=terms.train_images, seed=seed, finding=terms.finding)
        return training_set(drawn, like=self.prepared, findings=self.prepared.findings, out=self.out / "sets" / f"seed{seed}")

    def held_out(self) -> ImageSet:
        """Images of patients whom no training sees: validation and test."""
        return ImageSet.join([self.prepared.images(split, size=self.size) for split in ("val", "test")])

    def reference_images(self) -> ImageSet:
        """The held-out images that made ones are held against: with a finding, all that show it and as many that do not."""
        held_out = self.held_out()
        if not self.terms.finding:
            return held_out
        shows, lacks = (np.flatnonzero(held_out.column(self.terms.finding) == value) for value in (1, 0))
        some = np.random.default_rng(derive(0, "compare")).permutation(lacks)[: len(shows)]
        return held_out.take(np.sort(np.concatenate([shows, some])))

    def requests(self, seed: int) -> Plan:
        """What every arm of a seed is asked for; with a finding, every other image is asked to show it."""
        images, num, finding = self.held_out(), self.terms.num, self.terms.finding
        if not finding:
            return plan_like(images, num=num, seed=derive(seed, "compare"))
        halves = [plan_like(images.take(np.flatnonzero(images.column(finding) == value)), num=(num + 1) // 2, seed=derive(seed, name))
                  for name, value in (("with", 1), ("without", 0))]
        return Plan(rows=tuple(row for pair in zip(*(half.rows for half in halves), strict=True) for row in pair)[:num])


def design_comparison(recipes: Sequence[str], prepared: Prepared, *, out: Path, terms: Terms, seeds: Sequence[int],
                      overrides: Sequence[str] = (),
             base: TrainedModel | None = None, ways: Sequence[str] = ()) -> ComparisonDesign:
    """The comparison that is asked for, checked before any training begins.

    Raises UsageError or InputError for arms that cannot be compared, and for images that are too few.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError("seeds must be different whole numbers, such as 0 1 2")
    arms = (*_recipe_arms(recipes, overrides, terms=terms), *_base_arms(base, ways, terms=terms))
    if repeated := [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]:
        raise UsageError(f"'{repeated[0]}' is named twice; to train it more often, give more seeds")
    if not arms:
        raise UsageError("name at least one recipe, or a base")
    design = ComparisonDesign(out=out, prepared=prepared, arms=arms, seeds=tuple(seeds), terms=terms, notes=_notes(prepared, base))
    for arm in arms:
        _check_kind(arm)
    _check_images(design)
    for arm in arms:
        _check_trains(arm, design)
    return design


def _recipe_arms(names: Sequence[str], overrides: Sequence[str], *, terms: Terms) -> list[Candidate]:
    own: dict[str, list[str]] = {}
    for text in overrides:
        left, equals, value = text.partition("=")
        named, _, key = left.rpartition(":")
        if not equals or key in COMMON:
            raise UsageError(f"--set {text}: " + (f"{key} is the same for all; see --budget, --seeds and --no-augment" if equals else
                                                  "write it as RECIPE:table.key=value"))
        own.setdefault(named, []).append(f"{key}={value}")
    arms, used = [], {""}
    for name in names:
        recipe = load_recipe(name, overrides=[*own.get("", ()), *own.get(name, ())])
        first = first_stage(recipe, own)
        used |= {name, *([first.name] if first else [])}
        if first is not None:
            recipe = replace(recipe, model=replace(recipe.model, compressor_config=asdict(first.model)))
        arms.append(Candidate(name=Path(name).stem if name.endswith(".toml") else name, recipe=_on(terms, recipe),
                        first=None if first is None else _on(terms, first)))
    if unknown := sorted(set(own) - used):
        raise UsageError(f"--set {unknown[0]}:{own[unknown[0]][0]}: that recipe is not compared; {nearest(unknown[0], used - {''})}")
    return arms


def first_stage(recipe: Recipe, own: Mapping[str, Sequence[str]]) -> Recipe | None:
    """The shipped recipe of the compressor that a recipe names, at its size; None where it names none or a lossless one."""
    family = needs_of(recipe).compressor
    if family not in TRAINED or is_student(recipe):
        return None
    firsts = [load_recipe(name, overrides=[*own.get("", ()), *own.get(name, ())]) for name in recipe_names()
              if load_recipe(name).family == family]
    for first in firsts:
        if first.model.image_size == recipe.model.image_size:
            return first
    sizes = ", ".join(map(str, sorted(first.model.image_size for first in firsts)))
    raise UsageError(f"the recipe '{recipe.name}' diffuses on '{family}' at {recipe.model.image_size} px, and that ships for {sizes} px")


def _base_arms(base: TrainedModel | None, ways: Sequence[str], *, terms: Terms) -> list[Candidate]:
    if base is None:
        if ways:
            raise UsageError("--adapt needs a trained model to start from; give its --base, or leave it out")
        return []
    arms = []
    for way in ways or ("full", "lora"):
        if way not in LEARNING_RATES:
            raise UsageError(f"unknown way to adapt '{way}'; {nearest(way, LEARNING_RATES)}")
        recipe = with_way(recipe_of_base(base, train=load_recipe(BASE_RECIPE).train), way).with_train(learning_rate=LEARNING_RATES[way])
        check_base(recipe, base)
        arms.append(Candidate(name=f"{recipe.name}+base:{way}", recipe=_on(terms, recipe), base=base))
    return arms


def _on(terms: Terms, recipe: Recipe) -> Recipe:
    """The recipe on the terms of the comparison: images as they come, no end but the budget, no sheets on the way."""
    return recipe.with_train(steps=WITHOUT_END, augment=terms.augment, balance=0.0, sample_every=0)


def _check_kind(arm: Candidate) -> None:
    """Refuse a recipe that makes no images by itself."""
    recipe = arm.recipe
    if is_student(recipe) and arm.base is None:
        raise UsageError(f"the recipe '{recipe.name}' trains a student, which learns from a teacher and not from images alone")
    if "image" in conditions_of(recipe):
        raise UsageError(f"the recipe '{recipe.name}' enlarges images and makes none of its own")
    if recipe.family in TRAINED:
        raise UsageError(f"the recipe '{recipe.name}' trains a compressor, which makes no images; compare a latent diffusion on it")


def _check_images(design: ComparisonDesign) -> None:
    """Refuse too few images, on either side, or too few with the finding."""
    terms, findings = design.terms, design.prepared.findings
    sizes = {arm.name: int(arm.recipe.model.image_size) for arm in design.arms}
    if len(set(sizes.values())) > 1:
        raise UsageError("images of different sizes cannot be compared: " + ", ".join(f"{name} {size} px" for name, size in sizes.items()))
    if terms.finding and terms.finding not in findings:
        raise InputError(f"no image states '{terms.finding}'", file=design.prepared.path, remedy=nearest(terms.finding, findings))
    train, held_out = design.prepared.images("train", size=design.size), design.held_out()
    if len(held_out) < max(MIN_IMAGES_PER_GROUP, 2 * MIN_HELD_OUT):
        raise InputError(f"only {len(held_out)} validation and test images", file=design.prepared.path,
                         remedy=f"prepare it with a split that holds out at least {max(MIN_IMAGES_PER_GROUP, 2 * MIN_HELD_OUT)}")
    if terms.train_images is not None and terms.train_images > len(train):
        raise InputError(f"--train-images {terms.train_images}: there are {len(train)} training images", file=design.prepared.path)
    for images, wanted, kind in ((train, ((terms.train_images or 0) + 1) // 2, "training"), (held_out, MIN_IMAGES_PER_GROUP, "held-out")):
        for value, word in ((1, "show"), (0, "lack")) if terms.finding else ():
            if (count := int((images.column(terms.finding) == value).sum())) < wanted:
                raise InputError(f"only {count} {kind} images {word} {terms.finding}, and {wanted} are needed", file=design.prepared.path)


def _check_trains(arm: Candidate, design: ComparisonDesign) -> None:
    """Refuse what could not be trained on these images."""
    for stage in (arm.first, arm.recipe):
        if stage is not None:
            objective, images = fresh_objective(stage, design.prepared)
            objective.check_data(num_images=design.terms.train_images or len(images))
            check_batch(objective, stage.train)


def _notes(prepared: Prepared, base: TrainedModel | None) -> tuple[str, ...]:
    """A warning where a base has learned from these very images: then no patient among them is sure to be unseen."""
    if base is None:
        return ()
    if base.known_data.isdisjoint({origin.digest for origin in prepared.sources if origin.digest}):
        return ()
    return (f"The base {base.label} has learned from images of this data set, held-out patients perhaps among them: its arms may look "
            "better than they are.",)


def claim(design: ComparisonDesign) -> None:
    """Note in `out`/claim.json what is compared; more arms and seeds may join later, and anything else is another comparison.

    Raises InputError where the folder holds another one.
    """
    path, terms = design.out / "claim.json", asdict(design.terms)
    with claimed(design.out, kind="a comparison", inputs={}, take_over=_is_ours(path), wait_seconds=10):  # several may begin at once
        _join_claim(design, path, terms)


def _is_ours(path: Path) -> bool:
    try:
        return bool(read_json_object(path, {"common": dict, "arms": dict}, remedy=""))
    except InputError:
        return False


def _present(settings: list[str], path: Path) -> list[str]:
    """`Candidate.settings` with the keys that settings have now."""
    return [*(recipe_from_toml(text, where=str(path)).to_toml() for text in settings[:-1]), *settings[-1:]]


def _join_claim(design: ComparisonDesign, path: Path, terms: dict[str, Any]) -> None:
    """Add the arms to the comparison, if it is on the same terms."""
    settings = {arm.name: arm.settings for arm in design.arms}
    common = {"data": design.prepared.digest, **terms}
    if path.exists():
        earlier = read_json_object(path, {"common": dict, "arms": dict}, remedy="choose another --out, or delete the folder")
        changed = [name for name, value in common.items() if earlier["common"].get(name) != value]
        changed += [f"the settings of {name}" for name, texts in settings.items()
                    if _present(earlier["arms"].get(name, texts), path) != texts]
        if changed:
            raise InputError(f"holds a comparison on other terms: {', '.join(changed)} differ", file=design.out,
                             remedy="choose another --out, or delete the folder")
        settings = earlier["arms"] | settings
    write_json(path, {"common": common, "arms": settings})

