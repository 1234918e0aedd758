"""The encoder of latents: it reads what a frozen generator would make, a search from there is shorter, and it is trained from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import synthorax as sx
from latent_generators import generator
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.editing.inversion import InversionConfig, invert
from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.families.adversarial.inversion_encoder import InversionEncoderModel
from synthorax.protocols import as_model
from synthorax.rng import Draws
from synthorax.run import WEIGHTS_NAME, Run, save_model
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.steps.models.trained_model import load_model
from synthorax.training.loop import train
from trainings import FEW, FINDINGS, MASKS, SITES, fresh_objective, smallest, toy_images

GENERATOR = ("model.image_size=32", "model.latent_size=4", "model.channels=4", "model.embedding=8", "objective.discriminator_channels=4")


def trained(family: str, engine: Engine, folder: Path) -> tuple[InversionEncoderModel, torch.nn.Module]:
    """An encoder for a generator whose images differ by latent, after a short training."""
    base = generator(family)
    shape = ", ".join(f"{name} = {value!r}" if not isinstance(value, str) else f'{name} = "{value}"'
                      for name, value in as_model(base).spec.config.items())
    recipe = load_recipe("inversion-encoder", overrides=[*FEW, "model.image_size=16", "model.channels=8", f"model.generator={family}",
                                                    f"model.generator_config={{{shape}}}", "train.steps=250", "train.batch_size=16",
                                                    "train.learning_rate=2e-3", "objective.features=0.0"])
    torch.manual_seed(0)
    objective = build_objective(recipe, findings=FINDINGS, sites=SITES, masks=MASKS)
    objective.start_from(base)
    outcome = train(objective, toy_images(16), recipe.train, engine=engine, folder=folder)
    return cast(InversionEncoderModel, outcome.model), base


def psnr(model: Any, images: Tensor, *, steps: int, start: Any = None) -> Tensor:
    return invert(model, images, seeds=range(len(images)), start=start, config=InversionConfig(steps=steps, candidates=1)).psnr


@pytest.mark.parametrize("family", ["gan", "stylegan2"])
def test_a_search_from_the_encoders_latent_beats_one_from_the_mean(family: str, engine: Engine, tmp_path: Path) -> None:
    model, base = trained(family, engine, tmp_path)
    for name, weight in base.state_dict().items():
        assert torch.equal(model.generator.state_dict()[name], weight), "the generator stays as it was, batch statistics included"
    made = model.draw_latents(Draws(range(100, 116)), None)
    images = model.decode_latents(made, None).detach().clamp(-1, 1)
    mean = [torch.zeros_like(latent) for latent in made]
    read = model.encode_latents(images)
    assert [latent.shape for latent in read] == [latent.shape for latent in made]
    assert all(not noise.any() for noise in read[1:]), "noises are not read"
    at_once, from_mean = psnr(model, images, steps=0).mean(), psnr(model, images, steps=0, start=mean).mean()
    assert at_once > from_mean + 3
    assert psnr(model, images, steps=20).mean() > psnr(model, images, steps=20, start=mean).mean()
    assert torch.equal(invert(model, images, seeds=range(16), config=InversionConfig(steps=0)).latents[0], read[0])


def test_a_start_of_other_shape_is_refused() -> None:
    model = cast(Any, fresh_objective(smallest("inversion-encoder")).model.eval())
    with pytest.raises(UsageError, match="latents of shapes"):
        invert(model, torch.zeros(2, 1, 16, 16), seeds=[1, 2], start=[torch.zeros(2, 5)])


# ---- from a run, through the verbs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("phantoms")
    drawn = write_phantom_dataset(folder / "drawn", num=30, size=32, seed=1, prevalence={"Effusion": 0.4, "Nodule": 0.4})
    return sx.prepare(drawn, size=32, out=folder / "prepared")


@pytest.fixture(scope="module")
def base(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sx.train("projection-gan-64", prepared, out=tmp_path_factory.mktemp("runs") / "gan", device="cpu", threads=1,
                    overrides=[*FEW, *GENERATOR, "train.steps=2"])


def encoded(prepared: Prepared, out: Path, base: Path | None, *overrides: str) -> Run:
    return sx.train("inversion-encoder", prepared, out=out, base=base, device="cpu", threads=1,
                    overrides=[*FEW, "model.channels=4", "train.steps=2", *overrides])


def test_an_encoder_is_trained_from_the_run_of_its_generator(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    run = encoded(prepared, tmp_path / "encoder", base.path)
    model, generator = cast(Any, load_model(run.path)), cast(Any, load_model(base.path))
    assert model.spec.image_size == 32 and model.spec.conditions == generator.spec.conditions
    assert torch.equal(model.sample(None, [1, 2]), generator.sample(None, [1, 2])), "it makes the generator's images"
    images = model.sample(None, [1, 2])
    assert torch.equal(model.decode_latents(model.encode_latents(images), None), invert(model, images, seeds=[1, 2],
                                                                           config=InversionConfig(steps=0)).images)
    weights, begun = load_file(run.weights), load_file(base.weights)
    assert all(torch.equal(weights[f"generator.{name}"], weight) for name, weight in begun.items())
    assert "the base itself stays as it was" in (run.path / "card.md").read_text()
    assert encoded(prepared, tmp_path / "encoder", base.path).weights == run.weights, "the same command finds it finished"


def test_what_no_encoder_can_be_trained_for_is_refused_before_anything_is_written(base: Run, prepared: Prepared, tmp_path: Path) -> None:
    model = fresh_objective(smallest("kumar-vae")).model
    other = tmp_path / WEIGHTS_NAME
    save_model(other, model, spec=as_model(model).spec, facts={})
    for place, overrides, message in (
        (None, (), "give its run with --base"),
        (other, (), "family 'kumar-vae', whose images have no latents"),
        (base.path, ("model.image_size=16",), r"follows its generator, where it is 32"),
        (base.path, ("train.adapt=lora",), "leave it out"),
    ):
        with pytest.raises(UsageError, match=message):
            encoded(prepared, tmp_path / "r", place, *overrides)
    with pytest.raises(UsageError, match="trains an encoder for a generator"):
        sx.augment(tmp_path, findings=["Effusion"], out=tmp_path / "r", base=base.path, recipe="inversion-encoder")
    assert not (tmp_path / "r").exists()


def test_a_generator_that_does_not_know_a_finding_is_refused() -> None:
    recipe = smallest("inversion-encoder")
    objective = build_objective(recipe, findings=("Effusion", "Hernia"), sites=SITES, masks=MASKS)
    known = fresh_objective(recipe).model
    with pytest.raises(UsageError, match="knows no finding 'Hernia'"):
        objective.start_from(cast(Any, known).generator)
    with pytest.raises(UsageError, match="can only start from another one"):
        fresh_objective(recipe).start_from(fresh_objective(smallest("stylegan2")).model)
