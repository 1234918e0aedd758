"""Recipes: TOML files that name a family and hold every setting of its model, objective, training and sampling."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from torch import nn

from synthorax import former_names
from synthorax.config import build
from synthorax.errors import InputError, UsageError, nearest
from synthorax.families import FAMILIES, PACKED
from synthorax.protocols import Family, ModelSpec, Needs, Objective, SampleSettings
from synthorax.registry import lookup
from synthorax.training.loop import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A resolved recipe: family name and the three config objects."""

    name: str
    family: str
    model: Any
    objective: Any
    train: TrainConfig
    sample: SampleSettings

    def to_toml(self) -> str:
        """The recipe as TOML that `load_recipe` reads back."""
        tables = {"name": self.name, "family": self.family, "model": asdict(self.model), "objective": asdict(self.objective),
                  "train": asdict(self.train), "sample": asdict(self.sample)}
        return tomli_w.dumps(_without_none(tables))

    def with_train(self, **changes: Any) -> Recipe:
        """The same recipe with other training settings."""
        return replace(self, train=replace(self.train, **changes))


def _without_none(tables: dict[str, Any]) -> dict[str, Any]:
    """TOML has no word for None, and leaving the key out means the same here."""
    return {key: _without_none(value) if isinstance(value, dict) else value for key, value in tables.items() if value is not None}


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("synthorax") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, apply `key=value` overrides, check every key and type.

    >>> load_recipe("edm-64", overrides=["train.steps=10"]).train.steps
    10
    """
    tables, where = _read(str(name_or_path))
    for override in overrides:
        _apply(tables, override)
    return _checked_recipe(tables, where)


def recipe_from_toml(text: str, *, where: str) -> Recipe:
    """What `Recipe.to_toml` wrote, wherever it is kept; `where` is named in errors."""
    return _checked_recipe(tomllib.loads(text), where)


def _checked_recipe(tables: dict[str, Any], where: str) -> Recipe:
    known = {"name", "family", "model", "objective", "train", "sample"}
    for key, value in tables.items():
        if key not in known:
            raise InputError(f"unknown table '{key}'", file=where, remedy=nearest(key, known))
        if key in ("name", "family") and not (isinstance(value, str) and 1 <= len(value) <= 100 and value.isprintable()):
            raise InputError(f"'{key}' must be a word", file=where)
        if key not in ("name", "family") and not isinstance(value, dict):
            raise InputError(f"'{key}' must be a table", file=where)
    name = str(tables.get("family", ""))
    name = former_names.FAMILIES.get(name, name)
    family: Family = lookup(FAMILIES, name, kind="family")
    sample = build(SampleSettings, tables.get("sample", {}), where=where, prefix="sample")
    return Recipe(name=former_names.recipe_name(tables.get("name", Path(where).stem)), family=name,
                  model=build(family.model_config, tables.get("model", {}), where=where, prefix="model"),
                  objective=build(family.objective_config, tables.get("objective", {}), where=where, prefix="objective"),
                  train=build(TrainConfig, tables.get("train", {}), where=where, prefix="train"), sample=sample)


def build_model(spec: ModelSpec) -> nn.Module:
    """The network that a spec describes, with fresh weights."""
    found = lookup(FAMILIES | PACKED, spec.family, kind="family")
    build: Callable[[ModelSpec], nn.Module] = found if spec.family in PACKED else found.build_model
    return build(spec)


def conditions_of(recipe: Recipe) -> tuple[str, ...]:
    """The parts of a condition that models of this recipe are conditioned on."""
    family: Family = lookup(FAMILIES, recipe.family, kind="family")
    return family.conditions(recipe.model)


def follows_masks(recipe: Recipe) -> bool:
    """Whether every image of this recipe's models needs a mask."""
    family: Family = lookup(FAMILIES, recipe.family, kind="family")
    return family.follows_masks


def learns_volumes(recipe: Recipe) -> bool:
    """Whether this recipe learns from volumes, and makes them, rather than images."""
    family: Family = lookup(FAMILIES, recipe.family, kind="family")
    return family.volumes


def makes_volumes(spec: ModelSpec) -> bool:
    """Whether a model makes volumes rather than images."""
    return spec.family in FAMILIES and bool(lookup(FAMILIES, spec.family, kind="family").volumes)


def needs_of(recipe: Recipe) -> Needs:
    """What a training of this recipe needs beside images, and what it can use."""
    family: Family = lookup(FAMILIES, recipe.family, kind="family")
    return family.needs(recipe.model, recipe.objective)


def families_that_can(capability: type) -> list[str]:
    """Families whose models have one of `capabilities.CAPABILITIES`, among those that are trained by a recipe."""
    return [name for name in FAMILIES if capability in lookup(FAMILIES, name, kind="family").can]


def build_objective(recipe: Recipe, *, findings: Sequence[str], sites: Sequence[str] = (),
                    masks: Sequence[str] = ()) -> Objective[nn.Module]:
    """The objective of a recipe, with fresh weights, for images with these findings, sites and mask classes."""
    family: Family = lookup(FAMILIES, recipe.family, kind="family")
    spec = ModelSpec(family=recipe.family, image_size=recipe.model.image_size, findings=tuple(findings), sites=tuple(sites),
                     masks=tuple(masks), conditions=conditions_of(recipe), config=asdict(recipe.model))
    return family.build_objective(build_model(spec), recipe.objective)


def _read(name_or_path: str) -> tuple[dict[str, Any], str]:
    name_or_path = former_names.recipe_name(name_or_path)
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError("no such recipe file", file=path, remedy=f"shipped recipes: {', '.join(recipe_names())}")
        content, where = path.read_bytes(), str(path)
    elif name_or_path in recipe_names():
        content = (resources.files("synthorax") / "recipes" / f"{name_or_path}.toml").read_bytes()
        where = f"{name_or_path}.toml"
    else:
        raise UsageError(f"unknown recipe '{name_or_path}'; {nearest(name_or_path, recipe_names())}")
    try:
        return tomllib.loads(content.decode("utf-8-sig")), where
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not valid TOML ({error})", file=where) from error


def _apply(tables: dict[str, Any], override: str) -> None:
    """Set one `table.key=value`, or `table.key.key=value` where a table lies in a table; the value is TOML, or a plain word."""
    key, equals, text = override.partition("=")
    *path, name = key.strip().split(".")
    for part in path:
        tables = tables.setdefault(_key_in(tables, part), {}) if isinstance(tables, dict) else tables
    if not equals or not path or not isinstance(tables, dict):
        raise UsageError(f"--set {override}: write it as table.key=value, for example train.steps=1000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tables[_key_in(tables, name)] = value


def _key_in(tables: dict[str, Any], key: str) -> str:
    """The key that a table has for one given by its present or its former name."""
    others = (former_names.SETTINGS.get(key), *(former for former, present in former_names.SETTINGS.items() if present == key))
    return key if key in tables else next((other for other in others if other in tables), key)
