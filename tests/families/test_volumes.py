"""Diffusion of volumes: what feeds it, what it learns, and the lesions that are drawn from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import synthorax as sx
from nodules import untrained_volumes, write_bank
from synthorax.data.lesion_shape import main_body
from synthorax.data.lesion_units import diameter_unit, margin_of
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.volumes import VolumeDiffusionModel
from synthorax.options import SampleSettings
from synthorax.protocols import Condition, as_model
from synthorax.run import Run
from synthorax.steps.generate import generate_images
from synthorax.steps.models.recipe import load_recipe
from synthorax.steps.models.ship import ship
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.nodules import lesion_of
from synthorax.steps.planning.plan import simple_plan
from synthorax.training.volume_feed import SYMMETRIES, VolumeFeed, turned
from trainings import FEW, SMALLEST, digests, fresh_objective, smallest, toy_volumes, train_here

FAST = SampleSettings(steps=2, guidance=1.0)
SMALL = [*SMALLEST["volume-diffusion"][1:], *FEW]


def test_the_48_positions_of_a_cube_are_all_different_and_keep_the_volume() -> None:
    volume = torch.rand(2, 4, 4, 4)
    positions = [turned(volume, number) for number in range(48)]
    assert len(SYMMETRIES) == 48 and len({tuple(one.flatten().tolist()) for one in positions}) == 48
    for one in positions:
        assert torch.equal(one.flatten(1).sort(1).values, volume.flatten(1).sort(1).values), "a quantity stays in its channel"


def test_a_batch_depends_on_the_seed_and_its_number_alone(engine: Engine) -> None:
    spec = as_model(fresh_objective(smallest("volume-diffusion")).model).spec
    def feed(augment: bool, seed: int = 3) -> VolumeFeed:
        return VolumeFeed(toy_volumes(8), spec=spec, batch_size=6, augment=augment, seed=seed, engine=engine)

    first, again, plain = (feed(augment).batch(5) for augment in (True, True, False))
    assert torch.equal(first.images, again.images) and first.images.shape == (6, 2, 8, 8, 8)
    assert not torch.equal(first.images, plain.images)
    for one, other in zip(first.images, plain.images, strict=True):
        assert any(torch.equal(one, turned(other, position)) for position in range(48)), "turned or mirrored, and nothing else"
    assert first.condition.measurements is not None and plain.condition.measurements is not None
    torch.testing.assert_close(first.condition.measurements, plain.condition.measurements, equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(feed(True).batch(6).images, first.images) and not torch.equal(feed(True, 4).batch(5).images, first.images)


def test_it_learns_size_from_the_stated_diameter(tmp_path: Path) -> None:
    recipe = smallest("volume-diffusion", "train.steps=150", "train.batch_size=16", "train.learning_rate=3e-3", "model.channels=12",
                      "train.ema_halflife_images=200", "model.multipliers=[1, 1]")
    model = as_model(train_here(recipe, tmp_path, images=toy_volumes(8, num=64)).model)
    inside = {}
    for value in (0.05, 0.95):
        nothing = Condition.unstated(24, num_labels=len(model.spec.findings), num_sites=len(model.spec.sites))
        condition = replace(nothing, measurements=torch.tensor([[value, math.nan, math.nan]] * 24))
        made = model.sample(condition, range(24), SampleSettings(steps=8, guidance=1.0))
        inside[value] = (made[:, 0] > 0).float().mean().item()
    assert inside[0.95] > 1.5 * inside[0.05]


def test_a_condition_of_other_measurements_is_refused() -> None:
    model = untrained_volumes()
    nothing = Condition.unstated(1, num_labels=2, num_sites=2)
    with pytest.raises(UsageError, match="one row a volume of diameter, margin, solidity"):
        model.sample(replace(nothing, measurements=torch.zeros(1, 2)), [0], FAST)


@pytest.mark.parametrize("setting", ["model.image_size=10", "model.attention=[true]"])
def test_sizes_that_the_network_cannot_have_are_wrong_usage(setting: str) -> None:
    with pytest.raises(UsageError, match=r"model\.(image_size|multipliers)"):
        fresh_objective(smallest("volume-diffusion", setting))


# ---- from bank to lesions, as a user does it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("nodules")
    prepared = sx.prepare_nodules(write_bank(folder / "bank.npz"), side=8, out=folder / "prepared", licence="CC0", attribution="us")
    return sx.train("nodule-3d", prepared, out=folder / "run", overrides=[*SMALL, "train.steps=3", "train.sample_every=2"], device="cpu",
                    threads=1)


def test_a_run_has_its_card_its_sheet_and_its_model(run: Run) -> None:
    assert run.finished and (run.path / "samples" / "step-00000002.png").is_file()
    card = (run.path / "card.md").read_text()
    assert "lesions of 8 x 8 x 8 voxels" in card and "diameter, margin, solidity" in card and "radiograph" not in card.split("---")[2]
    trained = sx.open_model(run)
    assert trained.spec.conditions == ("measurements",) and trained.facts["data"]["patients"] < 6
    assert trained.network.sample(None, [0, 1], FAST).shape == (2, 2, 8, 8, 8)


def test_the_same_command_goes_on_and_a_base_lends_its_weights(run: Run, tmp_path: Path) -> None:
    prepared = run.path.with_name("prepared")
    before = digests(run.path)
    sx.train("nodule-3d", prepared, out=run.path, overrides=[*SMALL, "train.steps=3", "train.sample_every=2"], device="cpu", threads=1)
    assert digests(run.path) == before
    tuned = sx.train("nodule-3d", prepared, out=tmp_path / "tuned", base=run.path, device="cpu", threads=1,
                     overrides=[*SMALL, "train.steps=1", "train.learning_rate=0.0", "train.ema_halflife_images=0"])
    own, base = sx.load_model(tuned), sx.load_model(run)
    assert torch.equal(own.sample(None, [3], FAST), base.sample(None, [3], FAST))


def test_a_model_of_volumes_ships_with_the_page_that_measures_it(run: Run, tmp_path: Path) -> None:
    shipped = ship(run, name="tiny-nodules", folder=tmp_path / "zoo", study="docs/studies/nodules.md")
    card = (tmp_path / "zoo" / shipped.card).read_text()
    assert "in the study `docs/studies/nodules.md`" in card and "CC0" in card
    own, half = sx.load_model(run), sx.load_model(shipped.weights)
    torch.testing.assert_close(half.sample(None, [3], FAST), own.sample(None, [3], FAST), atol=0.02, rtol=0)


def test_images_and_lesions_are_not_mixed_up(run: Run, tmp_path: Path) -> None:
    prepared = run.path.with_name("prepared")
    with pytest.raises(InputError, match="folder of lesions, not of images"):
        sx.train("edm-64", prepared, out=tmp_path / "a")
    with pytest.raises(InputError, match=r"voxels a side 8, and the recipe 'nodule-3d' 32"):
        sx.train("nodule-3d", prepared, out=tmp_path / "b", device="cpu")
    from synthorax.data.prepared_volumes import PreparedVolumes
    with pytest.raises(UsageError, match="learns from a prepared folder of images"):
        sx.train("edm-64", PreparedVolumes.load(prepared), out=tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_no_images_are_generated_with_a_model_of_lesions(engine: Engine, tmp_path: Path) -> None:
    model = TrainedModel.of(untrained_volumes(), name="tiny", digest="0" * 64)
    with pytest.raises(UsageError, match="makes volumes and no images; sample_nodules"):
        generate_images(model, simple_plan(num=1), out=tmp_path / "out", settings=FAST, engine=engine)
    assert not (tmp_path / "out").exists()


def test_a_lesion_has_its_diameter_one_body_and_its_seed() -> None:
    model = untrained_volumes()
    asked = [4.0, 12.5, 30.0]
    lesions = sx.sample_nodules(model, diameters_mm=asked, solidity=[None, "solid", 0.2], margin="smooth", seeds=[1, 2, 3], settings=FAST)
    for lesion, diameter in zip(lesions, asked, strict=True):
        assert lesion.diameter_mm == pytest.approx(diameter, rel=1e-6)
        assert np.array_equal(main_body(lesion.mask), lesion.mask) and lesion.water.min() >= 0
    alone = sx.sample_nodules(model, diameters_mm=[12.5], solidity="solid", margin="smooth", seeds=[2], settings=FAST)[0]
    assert np.array_equal(alone.mask, lesions[1].mask) and np.allclose(alone.water, lesions[1].water, atol=1e-4)
    other = sx.sample_nodules(model, diameters_mm=[12.5], solidity="solid", margin="smooth", seeds=[4], settings=FAST)[0]
    assert other.mask.shape != alone.mask.shape or not np.array_equal(other.mask, alone.mask)


def test_what_is_not_the_main_body_goes_with_its_rim() -> None:
    volume = np.full((2, 16, 16, 16), -1.0, np.float32)
    volume[:, 5:11, 5:11, 5:11] = 0.5
    volume[:, 0, 0, 0] = 0.5
    lesion = lesion_of(volume, diameter_mm=10.0)
    assert lesion.mask.sum() == 6**3 and not lesion.water[:3, :3, :3].any() and lesion.diameter_mm == pytest.approx(10.0)
    with pytest.raises(InputError, match="without a lesion"):
        lesion_of(np.full((2, 16, 16, 16), -1.0, np.float32), diameter_mm=10.0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"diameters_mm": [0.0]}, "3 to 60 mm"), ({"diameters_mm": [math.nan]}, "3 to 60 mm"), ({"diameters_mm": [90]}, "3 to 60 mm"),
    ({"seeds": [1, 2]}, "1 diameters and 2 seeds"), ({"solidity": "sollid"}, "did you mean 'solid'"),
    ({"margin": 1.2}, "margin 1.2 is outside 0 to 1"), ({"margin": ["smooth"] * 2}, "2 values of margin"),
    ({"solidity": math.nan}, "outside 0 to 1")])
def test_requests_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sx.sample_nodules(untrained_volumes(), **{"diameters_mm": [8], "seeds": [1]} | changes)  # type: ignore[arg-type]


def test_a_model_of_images_makes_no_lesions() -> None:
    with pytest.raises(UsageError, match="family 'diffusion' makes no lesions"):
        sx.sample_nodules("phantom-64", diameters_mm=[8], seeds=[1])


def test_measurements_are_in_their_range() -> None:
    assert diameter_unit(3) == 0 and diameter_unit(60) == 1 and 0 < diameter_unit(10) < diameter_unit(20) < 1
    assert math.isnan(diameter_unit(math.nan)) and margin_of(1.0) == 0 and margin_of(0.3) == 1 and margin_of(0.75) == 0.5


def test_the_recipe_is_small_enough_to_ship() -> None:
    assert sx.count_parameters("nodule-3d") <= 600_000
    model = fresh_objective(load_recipe("nodule-3d")).model
    assert isinstance(model, VolumeDiffusionModel) and model.shape == (2, 32, 32, 32)
