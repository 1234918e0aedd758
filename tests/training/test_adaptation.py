"""Starting from a base: what moves in each way, what stays to the bit, what `auto` chooses, and what is refused before training."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import synthorax as sx
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.engine import started
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.report.record import Report
from synthorax.families.denoising.adaptation import WAYS, adapt, check_rank, low_rank_layers, merge, moving_weights
from synthorax.families.denoising.model import DiffusionModel
from synthorax.nets.lora import LowRank
from synthorax.protocols import Condition, SampleSettings, as_model
from synthorax.run import WEIGHTS_NAME, Run, read_spec, save_model, weights_digest
from synthorax.steps.models.recipe import build_model, build_objective, load_recipe
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.training import train_run
from synthorax.steps.training.base_model import LEARNING_RATES, RULES, check_base, choose_way, recipe_of_base, resolve_way
from synthorax.training.loop import train
from synthorax.verbs.augmentation import _known_to_base, _settings, _with_base
from trainings import (
    MASKS,
    SITES,
    digests,
    finished,
    fresh_objective,
    in_new_process,
    killed_when,
    randomised,
    smallest,
    super_resolution,
    toy_images,
)

FAST = SampleSettings(steps=3, guidance=2.0)
NEW = ("Effusion", "Hernia")
"""findings of the images to adapt to; `FINDINGS`, which the base knows, are Effusion and Mass"""
NETWORKS = {"unet": (), "transformer": ('model.network="transformer"', "model.width=32", "model.depth=2", "model.heads=4")}
TINY = ["model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.steps=6", "train.batch_size=4", "train.checkpoint_every=3", "train.sample_every=0", "train.adapt_rank=2"]

each_way = pytest.mark.parametrize("way", WAYS)
each_network = pytest.mark.parametrize("network", NETWORKS)


def base_model(*overrides: str) -> DiffusionModel:
    """A model with random weights everywhere, as a trained one has."""
    model = fresh_objective(smallest("diffusion", *overrides)).model
    assert isinstance(model, DiffusionModel)
    randomised(model, seed=5)
    return model.eval()


def adapting_objective(way: str, base: DiffusionModel, *overrides: str, rank: int = 2):
    """An objective for images with a new finding, started from the base."""
    torch.manual_seed(1)
    objective = build_objective(smallest("diffusion", *overrides), findings=NEW, sites=SITES, masks=MASKS)
    assert isinstance(objective.model, DiffusionModel)
    objective.model.load_matching(base)
    start = {name: weight.clone() for name, weight in objective.model.state_dict().items()}
    adapt(objective.model, way, rank=rank, alpha=4.0)
    return objective, start


def asking(model: DiffusionModel, label: float = 1.0) -> Condition:
    nothing = Condition.unstated(2, num_labels=2, num_sites=len(SITES))
    return Condition(labels=torch.tensor([[label, math.nan]] * 2), attributes=nothing.attributes)


def trained(way: str, folder: Path, *overrides: str, base: DiffusionModel | None = None):
    """The averaged model after a few steps, and the weights with which it began."""
    recipe = smallest("diffusion", "train.steps=6", "train.learning_rate=1e-2", *overrides)
    base = base or base_model(*(part for part in overrides if part.startswith("model.")))
    images = replace(toy_images(recipe.model.image_size), findings=NEW)
    with started(device="cpu", threads=1, precision="fp32", seed=0) as engine:
        objective, start = adapting_objective(way, base, *overrides)
        return train(objective, images, recipe.train, engine=engine, folder=folder).model, start


def train_adapted(way: str, overrides: tuple[str, ...], folder: Path) -> None:
    """What a killed process was doing: train and write the merged weights."""
    model, _ = trained(way, folder, *overrides)
    merge(model)
    save_model(folder / WEIGHTS_NAME, model, spec=as_model(model).spec, facts={})


# ---- what moves


@each_way
@each_network
def test_training_starts_exactly_at_the_base(way: str, network: str) -> None:
    base = base_model(*NETWORKS[network])
    objective, _ = adapting_objective(way, base, *NETWORKS[network])
    plain = build_objective(smallest("diffusion", *NETWORKS[network]), findings=NEW, sites=SITES, masks=MASKS).model
    plain.load_state_dict(adapting_objective("full", base, *NETWORKS[network])[1])
    images = as_model(objective.model.eval()).sample(asking(base), [3, 4], FAST)
    assert torch.equal(images, as_model(plain.eval()).sample(asking(base), [3, 4], FAST))
    torch.testing.assert_close(images, base.sample(asking(base), [3, 4], FAST), atol=1e-4, rtol=0)


@each_way
@each_network
def test_only_what_the_adaptation_names_moves_and_the_rest_stays_to_the_bit(way: str, network: str, tmp_path: Path) -> None:
    model, start = trained(way, tmp_path, *NETWORKS[network])
    named = as_model(model).named_axes()  # type: ignore[attr-defined]
    updated = {name for name, part in model.named_modules() if isinstance(part, LowRank)}
    merge(model)
    moving, after = moving_weights(model, way), model.state_dict()
    assert after.keys() == start.keys() and all(after[name].shape == start[name].shape for name in start)
    for name in start:
        moved = not torch.equal(after[name], start[name])
        expected = name in named or name in moving or name.removesuffix(".weight") in updated
        if name.startswith("text.") and "letters" not in name:
            continue  # rows of words that no text had, and keys' biases, stay as they are in any way
        assert moved == expected or (expected and name.endswith("bias")), name
    assert any(not torch.equal(after[name], start[name]) for name in start if name.startswith("network."))


@each_way
def test_a_new_finding_starts_fresh_and_is_learned(way: str, tmp_path: Path) -> None:
    base = base_model()
    model, start = trained(way, tmp_path, base=base)
    theirs = base.state_dict()["embeddings.labels.linear.weight"]
    own, after = start["embeddings.labels.linear.weight"], model.state_dict()["embeddings.labels.linear.weight"]
    stated, value = (NEW.index("Hernia") + half * len(NEW) for half in range(2))
    assert torch.equal(own[:, 0], theirs[:, 0]), "Effusion is the base's"
    assert not any(torch.equal(own[:, stated], theirs[:, column]) for column in range(theirs.shape[1])), "Hernia is nobody's"
    assert not torch.equal(after[:, stated], own[:, stated]) and not torch.equal(after[:, value], own[:, value])
    assert not torch.equal(model.state_dict()["network.first.weight"], start["network.first.weight"]), "its maps come in by the first layer"


@each_network
def test_merged_weights_make_the_images_of_the_unmerged_and_load_without_this_code(network: str, tmp_path: Path) -> None:
    model, _ = trained("lora", tmp_path / "run", *NETWORKS[network])
    assert any(isinstance(part, LowRank) for part in model.modules())
    unmerged = as_model(model).sample(asking(base_model()), [1, 2], FAST)
    merge(model)
    save_model(tmp_path / "m.safetensors", model, spec=as_model(model).spec, facts={})
    assert not any("reduce" in name or "expand" in name for name in load_file(tmp_path / "m.safetensors"))
    again = sx.load_model(tmp_path / "m.safetensors").sample(asking(base_model()), [1, 2], FAST)
    torch.testing.assert_close(again, unmerged, atol=1e-4, rtol=0)


@each_network
def test_few_weights_move_in_lora_and_trunk(network: str) -> None:
    """Counted in the network of a shipped recipe; the text encoder, which always moves, is not."""
    recipe = load_recipe("edm-64" if network == "unet" else "transformer-64")
    counts = {}
    for way in WAYS:
        model = build_objective(recipe, findings=NEW).model
        adapt(model, way, rank=recipe.train.adapt_rank, alpha=1.0)
        counts[way] = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
    assert counts["lora"] < 0.12 * counts["full"] and counts["trunk"] < 0.35 * counts["full"], counts


def test_the_rule_of_the_trunk_names_norms_modulations_and_the_last_layers() -> None:
    unet, transformer = (base_model(*NETWORKS[network]) for network in NETWORKS)
    for model, frozen, moving in (
            (unet, r"conv|qkv|project|skip|noise|first|query|key_value", r"norm|affine|last"),
            (transformer, r"qkv|project|perceptron|noise|first|query|key_value", r"norm|affine|last")):
        names = [name for name, _ in model.named_parameters() if name.startswith("network.")]
        chosen = [name for name in names if name in moving_weights(model, "trunk")]
        assert all(re.search(moving, name) for name in chosen)
        assert all(re.search(frozen, name) for name in set(names) - set(chosen))
        assert {"affine", "last", "norm"} <= {part for name in chosen for part in re.split(r"[._]", name)}


def test_what_is_conditional_moves_in_every_adaptation() -> None:
    """A description of a new finding has to be learned too."""
    model = base_model()
    for way in WAYS:
        moving = moving_weights(model, way)
        assert all(name in moving for name, _ in model.named_parameters() if not name.startswith("network."))


@pytest.mark.parametrize("way", ["lora", "trunk"])
def test_killed_and_continued_is_the_same_to_the_bit(way: str, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = ("train.steps=16", "train.checkpoint_every=2")
    finished(in_new_process(train_adapted, way, settings, straight))
    log = killed / "metrics.jsonl"
    assert killed_when(in_new_process(train_adapted, way, settings, killed), lambda: log.exists() and log.read_bytes().count(b"\n") >= 5)
    assert not (killed / WEIGHTS_NAME).exists()
    finished(in_new_process(train_adapted, way, settings, killed))
    assert digests(killed, WEIGHTS_NAME) == digests(straight, WEIGHTS_NAME)


# ---- what auto chooses


def test_auto_moves_more_with_more_images_and_says_why() -> None:
    order = ["trunk", "lora", "full"]
    ways = [choose_way(images=images, shown=None).way for images in (10, 300, 20_000)]
    assert ways == order
    rare = [choose_way(images=20_000, shown=shown).way for shown in (5, 50, 5000)]
    assert rare == order, "a rare finding counts by its own images"
    choice = choose_way(images=300, shown=25)
    assert "300" in choice.reason and "25" in choice.reason and choice.way in WAYS
    assert set(LEARNING_RATES) == set(WAYS) and RULES[-1].images_below == math.inf and all(rule.reason for rule in RULES)


# ---- through the verbs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    dataset = write_phantom_dataset(folder / "phantom", num=56, size=32, seed=0, prevalence={"Pneumothorax": 0.3, "Effusion": 0.3})
    return sx.prepare(dataset, size=32, out=folder / "prepared", split=(0.8, 0.1, 0.1))


@pytest.fixture(scope="module")
def base(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sx.train("edm-64", prepared, out=tmp_path_factory.mktemp("bases") / "base", overrides=TINY)


def test_the_adaptation_is_recorded_in_config_weights_and_card(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    run = sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY, base=base.path, adapt="auto")
    images = len(prepared.images("train"))
    assert images < RULES[0].images_below and RULES[0].way == "trunk"
    assert load_recipe(run.path / "config.toml").train.adapt == "trunk"
    started_from = read_spec(run.weights)[1]["started_from"]
    assert started_from["way"] == "trunk" and f"{images} training images" in started_from["why"]
    assert started_from["base_digest"] == json.loads((run.path / "data.json").read_text())["base_digest"]
    assert "adapted by trunk" in (run.path / "card.md").read_text()
    before = run.weights.read_bytes()
    sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY, base=base.path, adapt="auto")
    assert run.weights.read_bytes() == before, "the same command finds its run again"


def test_lora_through_train_leaves_a_model_of_the_bases_shape(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    overrides = [*TINY, "train.adapt=lora", "train.learning_rate=1e-2"]
    run = sx.train("edm-64", prepared, out=tmp_path / "r", overrides=overrides, base=base.path)
    theirs, own = load_file(base.weights), load_file(run.weights)
    assert {name: weight.shape for name, weight in own.items()} == {name: weight.shape for name, weight in theirs.items()}
    inner = list(low_rank_layers({name: weight.shape for name, weight in own.items()}))
    changes = [(own[f"{name}.weight"] - theirs[f"{name}.weight"]).flatten(1) for name in inner]
    assert sum(change.abs().max().item() > 1e-4 for change in changes) > len(inner) / 2
    assert all(np.linalg.matrix_rank(change.double().numpy(), tol=1e-4 * max(1e-3, float(change.norm()))) <= 2 for change in changes)
    assert read_spec(run.weights)[1]["started_from"]["rank"] == 2


def test_low_rank_updates_begin_after_the_base_was_built_twice_as_in_earlier_versions(base: Run, prepared: Prepared) -> None:
    """Their first weights are drawn from the state that building the base leaves, so a seed gives the model that it always gave."""
    recipe, handle = load_recipe("edm-64", overrides=[*TINY, "train.adapt=lora"]), open_model(base.path)
    torch.manual_seed(0)
    objective, images = train_run.fresh_objective(recipe, prepared)
    train_run.begin(objective, images, recipe, train_run.Beginning(base=handle, compressor=None, why=""))
    torch.manual_seed(0)
    other, _ = train_run.fresh_objective(recipe, prepared)
    for _ in range(2):
        build_model(handle.spec)
    adapt(other.model, "lora", rank=recipe.train.adapt_rank, alpha=recipe.train.adapt_alpha)
    expected, begun = ({name: value for name, value in model.state_dict().items() if name.endswith("reduce.weight")}
                       for model in (other.model, objective.model))
    assert expected and all(torch.equal(value, begun[name]) for name, value in expected.items())


def test_augment_takes_the_bases_recipe_and_the_machines_batches(base: Run, tmp_path: Path) -> None:
    settings, beginning = _settings(None, base=base.path, adapt=None)
    assert beginning.base is not None and beginning.base.digest == weights_digest(base.weights)
    assert settings.model == load_recipe("edm-64", overrides=TINY).model
    assert settings.train.adapt == "auto" and settings.train.batch_size == load_recipe("edm-64").train.batch_size
    alone = tmp_path / "base.safetensors"
    for name in (alone, alone.with_name(alone.name + ".sha256")):
        name.write_bytes((base.path / name.name.replace("base", "model")).read_bytes())
    alone.with_name(alone.name + ".sha256").write_text((base.path / f"{WEIGHTS_NAME}.sha256").read_text().replace(WEIGHTS_NAME, alone.name))
    assert _settings(None, base=alone, adapt="lora")[0] == settings.with_train(adapt="lora"), "the file alone says how it was trained"
    assert _settings(None, base=None, adapt=None)[0] == load_recipe("edm-64")


def test_the_report_of_augment_says_what_the_generator_started_from(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    run = sx.train("edm-64", prepared, out=tmp_path / "r", overrides=[*TINY, "train.steps=1"], base=base.path, adapt="lora")
    plain = Report(inputs={"real": {"digest": "a"}, "synthetic": {"digest": "b"}}, notes=("drawn",))
    told = _with_base(plain, open_model(run)).to_dict()
    assert told["inputs"]["base"]["way"] == "lora" and told["inputs"]["base"]["base_digest"] == weights_digest(base.weights)
    assert told["notes"][0] == "drawn" and "adapted by lora of rank 2" in told["notes"][1]
    assert _with_base(plain, open_model(base)) is plain, "from scratch there is nothing to say"


def test_images_that_the_base_has_seen_prove_nothing(tmp_path: Path) -> None:
    source = write_phantom_dataset(tmp_path / "images", num=4, size=32, seed=0)
    base = open_model("cxr-256")
    assert _known_to_base(base, source) == ""
    learned = base.stages[0].facts["sources"][0]["digest"]
    told = _known_to_base(base, replace(source, facts={**source.facts, "digest": learned}))
    assert "the proof does not count" in told
    plain = Report(inputs={"real": {"digest": "a"}, "synthetic": {"digest": "b"}})
    trained = Run(path=tmp_path)
    started_from = {"base": "b", "base_digest": "ab" * 32, "way": "full", "moves": "all", "why": "asked for"}
    save_model(trained.weights, base_model(), spec=base_model().spec, facts={"started_from": started_from})
    assert _with_base(plain, open_model(trained), seen=told).notes[-1] == told


def test_a_base_that_does_not_say_how_it_was_trained_needs_a_recipe(tmp_path: Path) -> None:
    model = base_model()
    save_model(tmp_path / "m.safetensors", model, spec=as_model(model).spec, facts={})
    with pytest.raises(InputError, match=r"how it was trained.*--recipe"):
        recipe_of_base(open_model(tmp_path / "m.safetensors"), train=load_recipe("edm-64").train)


def test_auto_counts_the_images_of_what_is_new_to_the_base(base: Run, prepared: Prepared) -> None:
    recipe = load_recipe("edm-64", overrides=[*TINY, "train.adapt=auto"])
    for findings, expected in (((), "training images:"), (("Pneumothorax",), "with the rarest finding to learn")):
        way, why = resolve_way(recipe, prepared, open_model(base), findings=findings)
        assert way.train.adapt == "trunk" and expected in why
    unchanged, _ = resolve_way(recipe.with_train(adapt="full"), prepared, open_model(base))
    assert unchanged.train.adapt == "full"


# ---- what is refused, before anything is written


@pytest.fixture(scope="module")
def other_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = fresh_objective(smallest("kumar-vae")).model
    path = tmp_path_factory.mktemp("others") / "vae.safetensors"
    save_model(path, model, spec=as_model(model).spec, facts={})
    return path


REFUSED = {
    "another size": (["model.image_size=16"], r"images of 32 px.*of 16 px"),
    "another width": (["model.channels=12"], r"model\.channels is 8 there and 12 here"),
    "another parameterisation": (["model.parameterisation=eps"], r"model\.parameterisation is edm there and eps here"),
    "more parts": (['model.parts=["labels", "attributes", "mask"]'], "is not conditioned on mask"),
    "a rank beyond the layers": (["train.adapt=lora", "train.adapt_rank=9"],
                                 r"adapt_rank 9 is larger than a layer: 'network\..*' has a rank of 8; choose at most 8"),
    "such a rank, and auto": (["train.adapt=auto", "train.adapt_rank=9"], "adapt_rank 9"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_base_that_does_not_fit_is_refused_before_anything_is_written(what: str, base: Run, prepared: Prepared, tmp_path: Path) -> None:
    overrides, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        sx.train("edm-64", prepared, out=tmp_path / "r", overrides=[*TINY, *overrides], base=base.path)
    assert not (tmp_path / "r").exists()


def test_a_stage_that_learns_from_crops_may_start_from_one_of_another_size(tmp_path: Path) -> None:
    """Its network knows no places, so the weights of 64 px serve images of 128; that of whole images does know them."""
    path = tmp_path / WEIGHTS_NAME
    model = fresh_objective(super_resolution("objective.crop=8")).model
    save_model(path, model, spec=as_model(model).spec, facts={})
    twice = f"model.image_size={2 * as_model(model).spec.image_size}"
    check_base(super_resolution("objective.crop=8", twice), open_model(path))
    with pytest.raises(UsageError, match="makes images of"):
        check_base(super_resolution("objective.crop=0", twice), open_model(path))


def test_a_base_of_another_family_is_refused(other_family: Path, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"family 'kumar-vae'.*trains 'diffusion'"):
        sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY, base=other_family)
    with pytest.raises(UsageError, match="'kumar-vae' cannot be adapted by 'lora'"):
        check_base(smallest("kumar-vae", "train.adapt=lora"), open_model(other_family))
    with pytest.raises(InputError, match="no model found"):
        sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY, base=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="family 'kumar-vae'"):
        sx.augment(tmp_path, findings=["Mass"], out=tmp_path / "a", base=other_family, recipe="edm-64")
    assert not (tmp_path / "r").exists() and not (tmp_path / "a").exists()


def test_an_adaptation_without_a_base_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    for arguments in ({"overrides": [*TINY, "train.adapt=lora"]}, {"overrides": TINY, "adapt": "full"}):
        with pytest.raises(UsageError, match="needs a trained model to start from"):
            sx.train("edm-64", prepared, out=tmp_path / "r", **arguments)
    with pytest.raises(UsageError, match="needs a trained model to start from"):
        sx.augment(tmp_path, findings=["Mass"], out=tmp_path / "a", adapt="lora", recipe="edm-64")
    assert not (tmp_path / "r").exists() and not (tmp_path / "a").exists()


def test_an_unknown_adaptation_is_refused_with_the_nearest_one(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'lora'"):
        sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY, base=base.path, adapt="lorra")


def test_a_rank_is_held_against_the_narrowest_layer() -> None:
    model: nn.Module = base_model()
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    limit = min(low_rank_layers(shapes).values())
    check_rank(shapes, limit)
    with pytest.raises(UsageError, match=f"at most {limit}"):
        adapt(model, "lora", rank=limit + 1, alpha=1.0)
