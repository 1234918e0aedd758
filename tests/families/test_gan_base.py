"""Adversarial trainings that start from a trained generator: its images come along, and it rests until the fresh discriminator has
learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import synthorax as sx
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import UsageError
from synthorax.protocols import Condition, as_model
from synthorax.run import WEIGHTS_NAME, Run, save_model
from synthorax.steps.models.recipe import build_objective
from trainings import FINDINGS, MASKS, SITES, fresh_objective, smallest

FAMILIES = ("gan", "stylegan2", "spade-gan")
TURNED = ("Mass", "Hernia", "Effusion")
"""findings of the images to go on with: those of the base in another order, and one that it does not know"""


def base_model(family: str, *overrides: str) -> nn.Module:
    """A generator conditioned on everything loudly."""
    model = fresh_objective(smallest(family, *overrides)).model
    with torch.no_grad():
        cast(Any, model).embedding.linear.weight.mul_(5.0)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_images_of_the_base_come_along_and_findings_are_matched_by_name(family: str) -> None:
    base = base_model(family)
    objective = build_objective(smallest(family, "model.conditioning=projection"), findings=TURNED, sites=SITES, masks=MASKS[::-1])
    fresh = cast(Any, objective.model).embedding.linear.weight[:, 1].clone()
    objective.start_from(base)
    model = as_model(objective.model.eval())
    nan = float("nan")
    attributes = torch.tensor([[1.0, 0, 0, 1, 0.4, 0, 1]])
    mask = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = Condition(labels=torch.tensor([[1.0, 0.0]]), attributes=attributes, mask=mask)
    ours = Condition(labels=torch.tensor([[0.0, nan, 1.0]]), attributes=attributes, mask=mask.flip(1))
    torch.testing.assert_close(model.sample(ours, [3]), as_model(base).sample(theirs, [3]))
    assert torch.equal(cast(Any, objective.model).embedding.linear.weight[:, 1], fresh), "a new finding starts fresh"
    other = build_objective(smallest(family, "model.channels=8"), findings=FINDINGS, sites=SITES, masks=MASKS)
    with pytest.raises(UsageError, match="another shape"):
        other.start_from(base)
    with pytest.raises(UsageError, match=f"'{family}' can only start from another one"):
        objective.start_from(base_model(next(name for name in FAMILIES if name != family)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("phantoms")
    drawn = write_phantom_dataset(folder / "drawn", num=30, size=32, seed=1, prevalence={"Effusion": 0.4, "Nodule": 0.4})
    return sx.prepare(drawn, size=32, out=folder / "prepared")


def saved(model: nn.Module, path: Path) -> Path:
    save_model(path, model, spec=as_model(model).spec, facts={})
    return path


def trained_on(family: str, prepared: Prepared, out: Path, base: Path, *overrides: str) -> Run:
    recipe = smallest(family, "train.batch_size=4", "objective.discriminator_repeats=2", "objective.discriminator_warmup=5", *overrides)
    return sx.train(recipe, prepared, out=out, base=base, device="cpu", threads=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generator_rests_until_the_discriminator_has_learned(family: str, prepared: Prepared, tmp_path: Path) -> None:
    base = saved(base_model(family), tmp_path / "base" / WEIGHTS_NAME)
    before = load_file(base)
    heads = [name for name in before if name.endswith(("last.weight", "to_image.0.convolution.weight"))]
    assert heads
    resting = load_file(trained_on(family, prepared, tmp_path / "two", base, "train.steps=2").weights)
    moving = load_file(trained_on(family, prepared, tmp_path / "three", base, "train.steps=3").weights)
    for name in heads:
        assert torch.equal(resting[name], before[name]), "two steps are four of the discriminator's five"
        assert not torch.equal(moving[name], before[name])
    assert "every weight moves" in (tmp_path / "three" / "card.md").read_text()


def test_other_adaptations_and_families_are_refused_before_anything_is_written(prepared: Prepared, tmp_path: Path) -> None:
    gan = saved(base_model("gan"), tmp_path / "gan" / WEIGHTS_NAME)
    vae = saved(fresh_objective(smallest("kumar-vae")).model, tmp_path / "vae" / WEIGHTS_NAME)
    for family, base, overrides, message in (
        ("gan", gan, ("train.adapt=lora",), "family 'gan' cannot be adapted by 'lora'"),
        ("gan", gan, ("model.channels=8",), "model.channels is 4 there and 8 here"),
        ("stylegan2", gan, (), "family 'gan' and the recipe 'stylegan2-ada-64' trains 'stylegan2'"),
        ("kumar-vae", vae, (), "no training of family 'kumar-vae' can start from a trained model"),
    ):
        with pytest.raises(UsageError, match=message):
            sx.train(smallest(family, *overrides), prepared, out=tmp_path / "r", base=base, device="cpu", threads=1)
    assert not (tmp_path / "r").exists()
