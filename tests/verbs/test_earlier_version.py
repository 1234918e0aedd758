"""What the version before 0.1.0 left on a disk, and what its users type: it is read, continued, or refused with that reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import synthorax as sx
from earlier_version import (
    SETTINGS,
    former_toml,
    make_former_claim,
    make_former_generation,
    make_former_prepared,
    make_former_run,
    make_former_weights,
    with_former_keys,
    write,
)
from synthorax.data.dataset import read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError
from synthorax.evaluation.monitoring.poison import PoisonConfig
from synthorax.folders import CLAIM_NAME, claimed
from synthorax.former_names import COMPARISON, command_line, with_present_weights
from synthorax.judges.classifier import ClassifierConfig
from synthorax.run import Run, read_spec
from synthorax.steps.models.recipe import load_recipe, recipe_from_toml, recipe_names
from synthorax.steps.models.trained_model import load_model
from synthorax.steps.poisoning import check_dataset
from synthorax.steps.training.undertraining import loss_fall
from synthorax.verbs import augmentation
from synthorax.verbs.training import pack
from trainings import FEW, SMALL_DIFFUSION, SMALL_SUPER_RESOLUTION, SMALL_VAE, SMALLEST, fresh_objective, smallest

HERE = {"device": "cpu", "threads": 1}
STEPS = ("train.steps=4", "train.checkpoint_every=2")
DIFFUSION = [text for text in SMALL_DIFFUSION if "image_size" not in text] + ["model.image_size=16", "sample.steps=2"]
GAN = list(SMALLEST["stylegan2"][1:])
ARMS = {"controlled-64": DIFFUSION, "stylegan2-ada-64": GAN}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder, runs and generated images of this version."""
    folder = tmp_path_factory.mktemp("place")
    drawn = write_phantom_dataset(folder / "phantom", num=100, size=32, seed=0, prevalence={"Effusion": 0.4})
    sx.prepare(drawn, size=32, out=folder / "prepared", images_per_patient=4)
    for recipe in ARMS:
        train(folder, recipe)
    small, *settings = SMALL_SUPER_RESOLUTION
    sx.train(small, folder / "prepared", out=folder / "large", overrides=[*settings, *FEW, "model.image_size=32", "train.steps=1"], **HERE)
    sx.generate(folder / "controlled-64", sx.Request(num=3, finding=["Effusion"]), out=folder / "made", batch_size=1, **HERE)
    return folder


def train(folder: Path, recipe: str) -> Run:
    run: Run = sx.train(recipe, folder / "prepared", out=folder / recipe, overrides=[*ARMS[recipe], *FEW, *STEPS], **HERE)
    return run


@pytest.fixture
def former(place: Path, tmp_path: Path) -> Path:
    """The same as the earlier version would have left it."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    make_former_prepared(tmp_path / "prepared")
    for run in (*ARMS, "large"):
        make_former_run(tmp_path / run)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Folders


def test_a_prepared_folder_is_read_and_found_again(place: Path, tmp_path: Path) -> None:
    dataset, out = read_dataset(place / "phantom"), tmp_path / "prepared"
    sx.prepare(dataset, size=32, out=out, images_per_patient=4)
    make_former_prepared(out)
    before = contents(out)
    assert "films_per_patient" in before["prepared.json"].decode() and "films_per_patient" in before[CLAIM_NAME].decode()
    prepared = Prepared.load(out)
    assert [origin.images for origin in prepared.sources] == [100]
    assert sx.prepare(dataset, size=32, out=out, images_per_patient=4).digest == prepared.digest
    assert contents(out) == before
    with pytest.raises(InputError, match="of an earlier version of synthorax with other images_per_patient"):
        sx.prepare(dataset, size=32, out=out, images_per_patient=3)
    (out / CLAIM_NAME).unlink()
    assert sx.prepare(dataset, size=32, out=out, images_per_patient=4).digest == prepared.digest, "it need not have a claim"


@pytest.mark.parametrize(("recipe", "name"), [
    ("controlled-64", "reader.questions"), ("stylegan2-ada-64", "synthesis.to_film.0.style.weight")])
def test_a_finished_run_is_the_same_model(recipe: str, name: str, place: Path, former: Path) -> None:
    assert name in load_file(former / recipe / "model.safetensors")
    before = contents(former / recipe)
    assert train(former, recipe).finished
    assert contents(former / recipe) == before
    expected, found = (load_model(folder / recipe).state_dict() for folder in (place, former))
    assert expected.keys() == found.keys() and all(torch.equal(found[key], value) for key, value in expected.items())
    (spec, facts), (former_spec, former_facts) = (read_spec(folder / recipe / "model.safetensors") for folder in (place, former))
    assert former_spec == spec
    assert {key: value for key, value in former_facts.items() if key != "settings"} == {
        key: value for key, value in facts.items() if key != "settings"}


@pytest.mark.parametrize("recipe", ARMS)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(recipe: str, place: Path, former: Path) -> None:
    run = former / recipe
    for left in (*run.glob("model.*"), *run.glob("checkpoints/*4.safetensors*")):
        left.unlink()
    assert train(former, recipe).finished
    expected, found = (load_file(folder / recipe / "model.safetensors") for folder in (place, former))
    assert expected.keys() == found.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


def test_losses_are_read_from_its_log(tmp_path: Path) -> None:
    lines = [{"step": step, "films": 1000 * step, "elapsed_seconds": step, "films_per_second": 9.0, "loss": 1.0} for step in range(200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert loss_fall(tmp_path / "metrics.jsonl", cooldown=0) == 0.0


def test_generated_images_are_completed_and_found_again(place: Path, former: Path) -> None:
    shutil.copyfile(place / "controlled-64" / "model.safetensors", former / "controlled-64" / "model.safetensors")
    shutil.copyfile(place / "controlled-64" / "model.safetensors.sha256", former / "controlled-64" / "model.safetensors.sha256")
    make_former_generation(former / "made")
    for left in (former / "made" / "metadata.csv", former / "made" / "images" / "synthetic-000001.png"):
        left.unlink()
    made = sx.generate(former / "controlled-64", sx.Request(num=3, finding=["Effusion"]), out=former / "made", batch_size=1, **HERE)
    assert len(made) == 3
    assert contents(former / "made" / "images") == contents(place / "made" / "images")
    with pytest.raises(InputError, match="holds a generation of an earlier version of synthorax with other plan"):
        sx.generate(former / "controlled-64", sx.Request(num=4, finding=["Effusion"]), out=former / "made", batch_size=1, **HERE)


def test_a_packed_model_is_found_again_with_its_settings(place: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "packed", [place / "controlled-64", place / "large"]
    pack(stages, out=out)
    make_former_weights(out / "model.safetensors")
    make_former_claim(out)
    facts = (out / "model.safetensors").read_bytes()
    assert b"enlarging_steps" in facts and b"image_noise" in facts and b"super_resolution_steps" not in facts
    pack(stages, out=out)
    assert (out / "model.safetensors").read_bytes() == facts
    assert set(read_spec(out / "model.safetensors")[1]["sample"]) == set(read_spec(place / "large" / "model.safetensors")[1]["sample"])
    assert {"super_resolution_steps", "conditioning_noise"} <= set(read_spec(out / "model.safetensors")[1]["sample"])


def test_a_check_for_poisoning_is_read_from_its_former_file(place: Path, tmp_path: Path) -> None:
    config = PoisonConfig(classifier=ClassifierConfig(updates=2, batch_size=8, width=4, input_size=32, autocast=False))

    def check() -> str:
        return str(check_dataset(read_dataset(place / "made"), Prepared.load(place / "prepared"), out=tmp_path / "vetted", config=config))

    first = check()
    found = json.loads((tmp_path / "vetted" / "poisoning.json").read_text())
    write(tmp_path / "vetted" / "vet.json", found | {"films": found["images"]})
    (tmp_path / "vetted" / "poisoning.json").unlink()
    make_former_claim(tmp_path / "vetted")
    assert check() == first


def test_an_augmentation_goes_on_where_its_recipe_had_former_keys(tmp_path: Path) -> None:
    recipe = load_recipe("edm-32").to_toml()
    inputs = {"recipe": recipe, "seed": 0}
    with claimed(tmp_path / "out", kind="an augmentation", inputs=inputs) as folder:
        (folder.path / "films").mkdir()
        (folder.path / "films" / "metadata.csv").write_text("file_name\n")
    claim = json.loads((tmp_path / "out" / CLAIM_NAME).read_text())
    del claim["format"]
    write(tmp_path / "out" / CLAIM_NAME, claim | {"inputs": inputs | {"recipe": former_toml(recipe)}})
    with claimed(tmp_path / "out", kind="an augmentation", inputs=inputs, former=augmentation._former_inputs) as folder:
        assert folder.again
    with pytest.raises(InputError, match="an augmentation of an earlier version of synthorax with other recipe"), claimed(
            tmp_path / "out", kind="an augmentation", inputs=inputs | {"recipe": load_recipe("edm-64").to_toml()},
            former=augmentation._former_inputs):
        pass


def test_a_comparison_is_found_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    tiny = ["train.batch_size=4", "train.precision=fp32", *(text for text in SMALL_VAE if "image_size" not in text), "model.image_size=32"]

    def compare() -> None:
        sx.compare(["vae-64"], place / "prepared", out=out, budget_images=12, seeds=[0], num=24, features="radiomics", apart=False,
                   overrides=[f"vae-64:{text}" if "train." not in text else f":{text}" for text in tiny], **HERE)

    compare()
    claim = json.loads((out / "claim.json").read_text())
    write(out / "claim.json", {"common": with_former_keys(claim["common"], {"images": "films", "train_images": "train_films"}),
                               "arms": {name: [*map(former_toml, texts[:-1]), *texts[-1:]] for name, texts in claim["arms"].items()}})
    for piece in (out / "pieces").iterdir():
        write(piece, with_former_keys(json.loads(piece.read_text()), {"images": "films", **{now: name for name, now in COMPARISON.items()},
                                                                      "images_per_second": "films/s"}))
    (out / "pieces" / "real-images.json").rename(out / "pieces" / "real-films.json")
    make_former_claim(out)
    before = contents(out / "pieces")
    compare()
    assert contents(out / "pieces") == before


# Names of weights


@pytest.mark.parametrize("family", SMALLEST)
def test_no_present_weight_has_a_former_name(family: str) -> None:
    objective = fresh_objective(smallest(family))
    names = {name: 0 for part in (objective.model, objective.players) for name in part.state_dict()}
    assert with_present_weights(names) == names


@pytest.mark.parametrize(("before", "now"), [
    ("decoder.code.weight", "decoder.latent.weight"), ("reader.questions", "text_parser.questions"),
    ("stages.0.reader.questions", "stages.0.text_parser.questions"), ("generator.to_film.0.weight", "generator.to_image.0.weight"),
    ("module/players/critic.trunk.from_film.0.weight", "module/players/discriminator.trunk.from_image.0.weight"),
    ("module/players/growth.films", "module/players/growth.images"),
    ("module/players/sight.strength", "module/players/augmentation.strength"),
    ("module/players/guesser.told", "module/players/label_classifier.known"),
    ("module/players/code_critic.layers.0.weight", "module/players/latent_discriminator.layers.0.weight"),
    ("autoencoder.told_fine.0.weight", "autoencoder.fine_in.0.weight"),
    ("autoencoder.told_film.0.weight", "autoencoder.coarse_in.0.weight"), ("autoencoder.heard.weight", "autoencoder.codes_in.weight"),
    ("codes.weight", "codes.weight"), ("toll_film.weight", "toll_film.weight")])
def test_weights_are_found_by_their_former_names(before: str, now: str) -> None:
    assert with_present_weights({before: 1}) == {now: 1}


# What a user types


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("kumar-") or name == "inversion-encoder"])
def test_recipes_answer_to_their_former_names(name: str) -> None:
    before = "code-encoder" if name == "inversion-encoder" else f"s4-{name.removeprefix('kumar-')}"
    assert load_recipe(before) == load_recipe(name) == recipe_from_toml(former_toml(load_recipe(name).to_toml()), where="config.toml")


def test_a_recipe_of_a_user_keeps_its_own_name_and_may_have_former_keys(tmp_path: Path) -> None:
    text = former_toml(load_recipe("stylegan2-ada-64").to_toml()).replace('name = "stylegan2-ada-64"', 'name = "s4-mine"')
    assert "critic_channels" in text and "[objective.sight]" in text and "rise_films" in text
    (tmp_path / "s4-mine.toml").write_text(text)
    recipe = load_recipe(tmp_path / "s4-mine.toml")
    assert recipe.name == "s4-mine"
    assert recipe.objective == load_recipe("stylegan2-ada-64").objective


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_shipped_recipe_is_read_with_former_keys(recipe: str) -> None:
    present = load_recipe(recipe)
    assert recipe_from_toml(former_toml(present.to_toml()), where="config.toml") == present


@pytest.mark.parametrize(("recipe", "before", "now"), [
    ("dcgan-64", "objective.critic_channels=7", "objective.discriminator_channels=7"),
    ("stylegan2-ada-64", "objective.sight.certainty=0.5", "objective.augmentation.ada_target=0.5"),
    ("stylegan2-ada-64", "objective.sight.rise_films=10", "objective.augmentation.ada_images=10"),
    ("edm-64", "train.ema_halflife_films=9", "train.ema_halflife_images=9"),
    ("super-256", "model.image_noise=0.25", "model.conditioning_noise=0.25"),
    ("super-256", "objective.image_noise=0.25", "objective.conditioning_noise=0.25"),
    ("controlled-64", "objective.reading_weight=3.0", "objective.text_statements_weight=3.0"),
    ("progressive-gan-64", "objective.grow_films=8", "objective.growth_images=8"),
    ("edm-64", "sample.enlarging_steps=8", "sample.super_resolution_steps=8"),
    ("student", "objective.lessons.own=0.1", "objective.distillation.own=0.1"),
    ("alpha-gan-64", "objective.codes=0.75", "objective.latent_adversarial=0.75")])
def test_settings_are_set_by_their_former_names(recipe: str, before: str, now: str) -> None:
    assert load_recipe(recipe, overrides=[before]) == load_recipe(recipe, overrides=[now]) != load_recipe(recipe)
    key, _, value = now.partition("=")
    other = f"{key}={float(value) + 1 if '.' in value else int(value) + 1}"
    assert load_recipe(recipe, overrides=[other, before]) == load_recipe(recipe, overrides=[now]), "the last one counts, by any name"


def test_a_setting_by_both_names_is_refused_and_an_unknown_one_gets_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('family = "gan"\n[objective]\ncritic_channels = 4\ndiscriminator_channels = 8\n')
    with pytest.raises(InputError, match=r"'objective\.critic_channels' and 'objective\.discriminator_channels' are the same setting"):
        load_recipe(tmp_path / "mine.toml")
    with pytest.raises(InputError, match=r"unknown key 'objective\.critic_chanels'.*discriminator_channels"):
        load_recipe("dcgan-64", overrides=["objective.critic_chanels=4"])
    with pytest.raises(InputError, match=r"unknown key 'model\.critic_channels'"):
        load_recipe("dcgan-64", overrides=["model.critic_channels=4"])


@pytest.mark.parametrize("recipe", ["vq-gan-256", "vq-vae-2-64"])
def test_codes_of_vector_quantisation_stay_codes(recipe: str) -> None:
    assert load_recipe(recipe, overrides=["model.codes=17"]).model.codes == 17


def test_commands_and_options_answer_to_their_former_names() -> None:
    assert command_line(["vet", "made", "--against", "prepared"]) == (
        ["check-poisoning", "made", "--against", "prepared"], ["'vet' is now 'check-poisoning'"])
    assert command_line(["generate", "loop", "--text", "vet", "--image-noise=0.1", "--enlarging-steps", "4"])[0] == [
        "generate", "loop", "--text", "vet", "--conditioning-noise=0.1", "--super-resolution-steps", "4"]
    assert command_line(["prepare", "set", "--films-per-patient", "3", "--patient-per-film"])[0] == [
        "prepare", "set", "--images-per-patient", "3", "--patient-per-image"]


@pytest.mark.parametrize(("before", "now"), [("vet", "check_poisoning"), ("loop", "refine_loop")])
def test_verbs_answer_to_their_former_names_in_python(before: str, now: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"synthorax.{before} is now synthorax.{now}"):
        assert getattr(sx, before) is getattr(sx, now)


assert SETTINGS.keys().isdisjoint(SETTINGS.values())
