"""Recipes, overrides and durations: every shipped recipe trains, and every mistake names what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthorax.config import parse_duration
from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.families import FAMILIES
from synthorax.steps.models.recipe import build_objective, load_recipe, recipe_names
from trainings import FEW, FINDINGS, SMALLEST, smallest, train_here


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(name: str, tmp_path: Path) -> None:
    family = load_recipe(name).family
    trained = getattr(load_recipe(name).model, "compressor", "none") not in ("none", "wavelet")
    compressor = ["model.image_size=32", "model.compressor_config={image_size=32, channels=4, multipliers=[1, 2]}"] if trained else []
    without_masks = ['model.parts=["labels"]'] if name == "progressive-vae-64" else []
    recipe = load_recipe(name, overrides=[*SMALLEST[family][1:], *FEW, *compressor, *without_masks, "train.steps=2",
                                          "train.held_out_every=0"])
    outcome = train_here(recipe, tmp_path)
    assert outcome.steps == 2
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_is_and_survives_its_own_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.family in FAMILIES
    (tmp_path / "copy.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "copy.toml") == recipe


def test_every_family_has_a_recipe() -> None:
    assert {load_recipe(name).family for name in recipe_names()} == set(FAMILIES)


def test_overrides_are_toml_or_a_plain_word() -> None:
    overrides = ["train.steps=1_000", "train.learning_rate=1e-3", "train.precision=fp32", "train.augment=false",
                 "model.multipliers=[1, 2, 2, 2]", "sample.sampler=heun", "train.steps = 7"]
    recipe = load_recipe("edm-64", overrides=overrides)
    assert (recipe.train.steps, recipe.train.learning_rate, recipe.train.precision, recipe.train.augment) == (7, 1e-3, "fp32", False)
    assert recipe.model.multipliers == (1, 2, 2, 2) and recipe.sample.sampler == "heun"
    assert recipe.with_train(seed=5).train.seed == 5


@pytest.mark.parametrize(("override", "message"), [
    ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'steps'"),
    ("model.chanels=3", "did you mean 'channels'"),
    ("objective.sigma_meen=0.0", "did you mean 'sigma_mean'"),
    ("trane.steps=3", "unknown table 'trane'; did you mean 'train'"),
    ("train.steps=many", r"train\.steps: .*integer.*'many'"),
    ("train.steps=2.5", r"train\.steps: .*integer"),
    ("train.augment=perhaps", r"train\.augment: .*boolean"),
    ("train.precision=fp8", r"train\.precision: .*'fp32'"),
    ("model.multipliers=3", r"model\.multipliers: .*tuple"),
    ("model.multipliers=[1, 'two']", r"model\.multipliers\.1: .*integer"),
    ("train.steps=0", r"train\.steps: .*greater than or equal to 1 \(got 0\)"),
    ("train.batch_size=-4", r"train\.batch_size"),
    ("train.log_every=0", r"train\.log_every"),
    ("train.checkpoint_every=0", r"train\.checkpoint_every"),
    ("train.cooldown=1.5", r"train\.cooldown"),
    ("objective.lesion.mask_wait=1.0", "unknown key 'objective.lesion.mask_wait'; did you mean 'mask_weight'"),
    ("model.distilled.step=4", "unknown key 'model.distilled.step'; did you mean 'steps'"),
    ("train.learning_rate=nan", r"train\.learning_rate"),
])
def test_wrong_settings_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        load_recipe("edm-64", overrides=[override])
    assert "edm-64.toml" in str(refusal.value)


@pytest.mark.parametrize("override", ["train.steps", "steps=3", "family.x=3", "=3"])
def test_overrides_of_another_form_are_wrong_usage(override: str) -> None:
    with pytest.raises(UsageError, match=r"table\.key=value"):
        load_recipe("edm-64", overrides=[override])


@pytest.mark.parametrize(("content", "message"), [
    (b"family = 'diffusion'\n[trian]\nsteps = 1", "unknown table 'trian'; did you mean 'train'"),
    (b"family = 'diffusion'\ntrain = 3", "'train' must be a table"),
    (b"[family]\nname = 'diffusion'", "'family' must be a word"),
    (b"family = 'difusion'", "unknown family 'difusion'; did you mean 'diffusion'"),
    (b"name = 'x'", "unknown family ''; choose from: aae, diffusion, gan"),
    (b"family = ", "not valid TOML"),
    (b"name = '\xff'", "not valid TOML"),
])
def test_broken_recipes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(SynthoraxError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_unknown_recipes_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown recipe 'edm64'; did you mean 'edm-64'"):
        load_recipe("edm64")
    with pytest.raises(InputError, match=r"no such recipe file; shipped recipes: .*edm-64"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(("override", "family"), [("model.image_size=20", "diffusion"), ("model.attention=[true]", "diffusion"),
                                                  ("model.image_size=96", "kumar-gan"), ("model.image_size=48", "kumar-vae")])
def test_sizes_that_a_network_cannot_have_are_wrong_usage(override: str, family: str) -> None:
    sizes = ("model.multipliers=[1, 1, 1, 1]", "model.attention=[false, false, false, false]") if family == "diffusion" else ()
    with pytest.raises(UsageError, match=override.partition("=")[0].replace(".", r"\.")):
        build_objective(smallest(family, *sizes, override), findings=FINDINGS)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400), ("1h 5m 2s", 3902)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "10 minutes", "0s", "5d", "1h30", "nan s"])
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)
