"""Settings that nothing can be made of are refused before the first step: by name, at once, with nothing written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import synthorax as sx
from calls import calls
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import InputError, UsageError
from synthorax.families import FAMILIES
from synthorax.steps.models.recipe import load_recipe, recipe_names
from synthorax.steps.training.recipe_checks import check_recipe

ANY = [
    "model.image_size=0", "model.image_size=-32", "model.image_size=100000", "model.image_size=nan", "model.image_size=[64]",
    "train.steps=0", "train.steps=1.5", "train.batch_size=0", "train.batch_size=99999999999999999999", "train.learning_rate=-1.0",
    "train.learning_rate=inf", "train.learning_rate=1e300", "train.balance=1e308", "train.balance=-0.5", "train.seed=-1",
    "train.seed=18446744073709551616", "train.cooldown=nan", "train.gradient_clip=nan", "train.log_every=0", "train.checkpoint_every=-5",
    "train.adapt_rank=0", "train.ema_rampup=inf", "train.precision=fp8", "sample.sampler=zz", "sample.schedule=zz", "sample.steps=0",
    "sample.steps=100000", "sample.guidance=nan", "sample.guidance=inf", "sample.guidance_from=-1.0", "sample.guidance_from=2e6",
    "sample.eta=2.0", "sample.part_guidance={labls = 2.0}", "sample.part_guidance={labels = nan}"]
"""wrong for every family"""
OWN = {
    "edm-64": [
        "model.channels=0", "model.channels=-8", "model.channels=9999999", "model.multipliers=[]", "model.multipliers=[0, 1]",
        "model.blocks=0", "model.patch=0", "model.patch=-2", "model.dropout=1.0",
        "model.dropout=2.0", "model.dropout=nan", "model.embedding=0", "model.reduction=0", "model.sigma_min=0.0", "model.sigma_min=90.0",
        "model.sigma_max=0.0", "model.sigma_max=nan", "model.sigma_data=0.0", "model.sigma_data=-1.0", "model.parameterisation=zz",
        "model.compressor=zz", "model.parts=[\"label\"]", "model.network=vit", "model.text_depth=0", "model.text_tokens=0",
        "objective.levels=zz", "objective.sigma_std=-1.0", "objective.sigma_mean=nan", "objective.part_dropout=2.0",
        "objective.dropout={labels = 3.0}", "objective.crop=-1", "objective.lesion.mask_weight=nan", "objective.lesion.sigma_least=3.0"],
    "transformer-64": ["model.width=0", "model.depth=0", "model.heads=0", "model.depth=100000"],
    "student": ["model.distilled.steps=-1", "model.distilled.substeps=0", "model.distilled.schedule=zz", "model.distilled.guidance=nan",
                "model.distilled.guidance_from=2e6", "objective.distillation.sampler=zz"],
    "dcgan-64": ["model.channels=0", "model.latent_size=0", "objective.loss=zz", "objective.discriminator_channels=0", "objective.r1=-1.0",
                 "objective.beta1=2.0", "objective.gradient_penalty=inf", "objective.augmentation.augment=2.0"],
    "stylegan2-ada-64": ["model.mapping_depth=0", "model.style_size=0", "model.truncation=nan"],
    "vae-64": ["model.latent_size=0", "model.multipliers=[]", "objective.beta=-1.0", "model.prior=zz", "model.components=0"],
    "vq-vae-2-64": ["model.codes=0", "model.levels=3", "model.prior_heads=0", "objective.commitment=nan"],
    "kl-autoencoder-64": ["model.multipliers=[-1]", "model.blocks=0", "objective.kl=-1.0", "objective.discriminator_layers=0"],
    "kumar-vae": ["model.latent_size=-3", "objective.beta=nan"], "kumar-gan": ["model.latent_size=0"],
    "kumar-gmvae-v3": ["model.components=0", "model.encoder=vgg99"]}
ONE_OF_EACH = {load_recipe(name).family: name for name in reversed(recipe_names())}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_wrong_for_every_family_is_refused_by_name_at_once(family: str) -> None:
    start = time.process_time()
    for setting in ANY:
        refused(ONE_OF_EACH[family], setting)
    assert (time.process_time() - start) / len(ANY) < 1


@pytest.mark.parametrize("recipe", OWN)
def test_what_is_wrong_for_one_family_is_refused_by_name(recipe: str) -> None:
    for setting in OWN[recipe]:
        refused(recipe, setting)


def refused(recipe: str, setting: str) -> None:
    with pytest.raises((InputError, UsageError)) as refusal:
        load_recipe(recipe, overrides=[setting])
    assert setting.partition("=")[0] in str(refusal.value), (setting, str(refusal.value))


@pytest.mark.parametrize(("recipe", "settings", "said"), [
    ("edm-64", ["model.image_size=52"], "52"), ("edm-64", ["model.multipliers=[1, 2]"], "model.attention"),
    ("transformer-64", ["model.heads=7"], "heads"), ("edm-64", ["model.attention=[]"], "model.attention"),
    ("edm-64", ["sample.sampler=heun", "sample.eta=0.5"], r"\[sample\].*eta"),
    ("dcgan-64", ["train.batch_size=1"], "train.batch_size=1"), ("dcgan-64", ["sample.clip=true"], r"\[sample\].*clip"),
    ("vae-64", ["model.image_size=20"], "20"), ("stylegan2-ada-64", ["model.image_size=48"], "48"),
    ("kl-autoencoder-64", ["model.image_size=30"], "30"), ("spade-gan-64", [], "masks"), ("latent-64", [], "--compressor"),
    ("edm-64", ["sample.part_guidance={mask = 2.0}"], r"\[sample\].*mask"), ("vae-64", ["sample.steps=9"], r"\[sample\].*steps")])
def test_settings_that_do_not_go_together_are_refused_before_any_image_is_read(recipe: str, settings: list[str], said: str) -> None:
    with pytest.raises((InputError, UsageError), match=said):
        check_recipe(load_recipe(recipe, overrides=settings))


def test_any_size_of_network_is_checked_without_memory() -> None:
    check_recipe(load_recipe("edm-64", overrides=["model.channels=4096", "model.image_size=2048"]))
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("text", ['name = ["a"]\nfamily = "diffusion"', 'family = 3', 'family = ["gan"]', 'family = "diffusion"\nmodel = 3',
                                  'family = "diffusion"\n[[train]]\nsteps = 3', 'family = "diffusion"\nname = ""', 'name = "a"',
                                  'family = "diffusion"\nname = "a\\nb"', "family = \"diffusion\"\n[sample]\nguidance = {a = 1}"])
def test_a_recipe_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises((InputError, UsageError)):
        load_recipe(tmp_path / "r.toml")


def test_nothing_is_written_and_nothing_is_trained(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "images", num=30, size=32, seed=0, prevalence={"Pneumothorax": 0.4})
    data = sx.prepare(tmp_path / "images", size=32, out=tmp_path / "prepared")
    small = ["model.image_size=32", "train.steps=1"]
    wrong = ["sample.sampler=zz", "model.sigma_max=0.0", "train.seed=18446744073709551616", "sample.part_guidance={mask = 2.0}"]
    for setting in wrong:
        with pytest.raises((InputError, UsageError)):
            sx.train("edm-64", data, out=tmp_path / "run", overrides=[*small, setting])
    train = ["train", "edm-64", "--data", tmp_path / "prepared", "--out", tmp_path / "run"]
    cases = [[*train, "--set", "model.image_size=32", "--set", "model.patch=0"], [*train, "--seed", 2**64], [*train, "--seed", -1],
             [*train, "--threads", 100000], ["generate", "cxr-256", "--num", 1, "--seed", 2**64, "--out", tmp_path / "run"],
             ["generate", "cxr-256", "--threads", 100000, "--out", tmp_path / "run"]]
    for words, call in zip(cases, calls(cases), strict=True):
        assert call.code in (2, 3) and "Traceback" not in call.said and not call.out, (words, call)
    assert not (tmp_path / "run").exists()
