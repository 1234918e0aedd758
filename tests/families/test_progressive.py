"""Networks that grow: what a level is, that images and discriminators keep to it, and that a training goes through all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.families.adversarial.generator import GanModel
from synthorax.families.adversarial.objective import AdversarialObjective
from synthorax.families.growth import Growth, growing, level_after
from synthorax.nets.progressive import Growing, GrowingDiscriminator, GrowingGenerator
from synthorax.run import WEIGHTS_NAME, save_model
from synthorax.steps.models.recipe import Recipe, load_recipe
from synthorax.steps.models.trained_model import load_model
from synthorax.steps.training.collapse import CollapseMonitor
from trainings import FEW, digests, fresh_objective, in_new_process, killed_when, toy_images, train_here

SMALL = ("model.image_size=16", "model.latent_size=4", "model.channels=4", "model.embedding=8", "objective.growth_images=4")
OWN = {"progressive-gan-64": ("objective.discriminator_channels=4",), "progressive-vae-64": ()}


def growing_recipe(*overrides: str, name: str = "progressive-gan-64") -> Recipe:
    return load_recipe(name, overrides=[*SMALL, *OWN[name], *FEW, *overrides])


def blocks(images: Tensor, side: int) -> Tensor:
    """Images that show no more than the mean of each of side x side squares."""
    return F.interpolate(F.adaptive_avg_pool2d(images, side), size=images.shape[-1])


@pytest.fixture
def networks() -> tuple[GrowingGenerator, GrowingDiscriminator]:
    torch.manual_seed(0)
    return (GrowingGenerator(image_size=16, latent_size=4, channels=4, embedding=2),
            GrowingDiscriminator(image_size=16, inputs=1, channels=4).eval())


def at(network: Growing, level: float) -> Any:
    network.level.fill_(level)
    return network


@pytest.mark.parametrize(("level", "side"), [(0.0, 4), (0.5, 8), (1.0, 8), (1.25, 16), (2.0, 16)])
def test_images_and_discriminators_have_no_more_detail_than_their_level(networks: tuple[GrowingGenerator, GrowingDiscriminator],
                                                                        level: float,
                                                               side: int) -> None:
    generator, discriminator = (at(network, level) for network in networks)
    image = generator(torch.randn(3, 4), torch.randn(3, 2))
    assert image.shape == (3, 1, 16, 16) and generator.side_px == side
    torch.testing.assert_close(image, blocks(image, side))
    seen = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(discriminator(seen), discriminator(blocks(seen, side)))
    assert side == 4 or not torch.allclose(image, blocks(image, side // 2)), "and no less"
    assert side == 4 or not torch.allclose(discriminator(seen), discriminator(blocks(seen, side // 2)))


def test_a_doubling_fades_in_without_a_jump(networks: tuple[GrowingGenerator, GrowingDiscriminator]) -> None:
    code, condition, seen = torch.randn(2, 4), torch.randn(2, 2), torch.randn(2, 1, 16, 16)
    generator, discriminator = networks
    for before, after in ((0.0, 1e-4), (1 - 1e-4, 1.0), (1.0, 1 + 1e-4), (2 - 1e-4, 2.0)):
        made = [at(generator, level)(code, condition) for level in (before, after)]
        scored = [at(discriminator, level)(seen) for level in (before, after)]
        torch.testing.assert_close(made[0], made[1], atol=2e-3, rtol=0)
        torch.testing.assert_close(scored[0], scored[1], atol=2e-3, rtol=0)


def test_levels_rest_and_rise_in_turn_and_a_base_goes_on_from_its_own() -> None:
    assert [level_after(images, pace=4, doublings=2) for images in (0, 4, 6, 8, 12, 15, 16, 1000)] == [0, 0, 0.5, 1, 1, 1.75, 2, 2]
    for level in (0.0, 0.5, 1.0, 1.75, 2.0):
        growth, network = Growth(4), GrowingDiscriminator(image_size=16, inputs=1, channels=2)
        growth.go_on_from(level)
        growth.grow([network], images=1)
        assert network.level.item() == level


@pytest.mark.parametrize("name", OWN)
def test_training_goes_through_all_levels_and_ships_the_last(name: str, tmp_path: Path) -> None:
    """Two images an update: 4 at each resolution and 4 in each fade, so 16 px are reached after 8 updates."""
    sides = []
    for steps in (1, 4, 9):
        model = cast(Any, train_here(growing_recipe(f"train.steps={steps}", name=name), tmp_path / str(steps)).model)
        assert len({network.level.item() for network in growing(model)}) == 1
        sides.append(growing(model)[0].level.item())
        path = tmp_path / str(steps) / WEIGHTS_NAME
        save_model(path, model, spec=model.spec, facts={})
        again = cast(Any, load_model(path))
        assert torch.equal(again.sample(None, [1, 2]), model.sample(None, [1, 2])), "the level is part of the file"
        assert again.diagnostics() == {"side_px": (4, 8, 16)[len(sides) - 1]}
    assert sides == [0.0, 0.5, 2.0]


def grow_to(folder: Path, steps: int) -> None:
    """Train or go on training to so many steps, and write the weights; what a killed process was doing."""
    model = cast(GanModel, train_here(growing_recipe(f"train.steps={steps}", "train.checkpoint_every=1"), folder).model)
    save_model(folder / WEIGHTS_NAME, model, spec=model.spec, facts={})


def test_a_killed_training_grows_on_to_the_same_weights(tmp_path: Path) -> None:
    grow_to(tmp_path / "whole", 8)
    process = in_new_process(grow_to, tmp_path / "cut", 8)
    assert killed_when(process, lambda: len(list((tmp_path / "cut" / "checkpoints").glob("*.safetensors"))) > 1)
    grow_to(tmp_path / "cut", 8)
    assert digests(tmp_path / "cut", WEIGHTS_NAME) == digests(tmp_path / "whole", WEIGHTS_NAME) != {}


def test_both_players_have_the_same_level_and_a_base_is_not_shrunk() -> None:
    objective = fresh_objective(growing_recipe()).train()
    assert isinstance(objective, AdversarialObjective)
    base = fresh_objective(growing_recipe()).model
    cast(Growing, cast(GanModel, base).generator).level.fill_(1.5)
    objective.start_from(base)
    cast(Growth, objective.players["growth"]).grow(growing(objective.players), images=2)
    assert [network.level.item() for network in growing(objective.players)] == [1.5, 1.5]


def test_a_growing_image_is_held_against_real_images_without_detail(tmp_path: Path) -> None:
    """Real images as blocks are no collapse, and against real images with all their detail they would look like one."""
    images = toy_images(64, num=40).pixels
    coarse = blocks(torch.from_numpy(images).float()[:, None], 4)[:, 0].round().numpy().astype(np.uint8)
    fair, unfair = (CollapseMonitor(images, log=tmp_path / "none", seed=0, side=side).look(coarse) for side in (4, None))
    gap = [abs(float(look["sample_ms_ssim"]) - float(look["real_ms_ssim"])) for look in (fair, unfair)]
    assert gap[0] < 0.05 < 0.2 < gap[1]
