"""Models that enlarge images: what they are shown, what they are told of it, training on crops, and images that must be there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from synthorax.diffusion.guidance import classifier_guided
from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.families.denoising.conditioning_augmentation import LEVEL_UNIT, blurred, crop_at, resized, with_noise
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective
from synthorax.nets.layers import coordinates_like
from synthorax.protocols import Batch, Condition, SampleSettings
from synthorax.rng import Draws
from synthorax.steps.generate import check_settings
from synthorax.steps.models.recipe import load_recipe
from synthorax.training.feed import Feed
from trainings import FINDINGS, MASKS, SITES, fresh_objective, randomised, smallest, super_resolution, toy_images, train_here

PLAIN = SampleSettings(steps=3, guidance=1.0)


def objective_of(*overrides: str) -> DiffusionObjective:
    objective = fresh_objective(super_resolution(*overrides))
    assert isinstance(objective, DiffusionObjective)
    return objective


def model_of(*overrides: str) -> DiffusionModel:
    model = objective_of(*overrides).model
    randomised(model.network)
    randomised(model.embeddings)
    return model.eval()


def showing(image: torch.Tensor) -> Condition:
    return replace(Condition.unstated(len(image), num_labels=len(FINDINGS), num_sites=len(SITES)), image=image)


def smooth(size: int, *, num: int = 2) -> torch.Tensor:
    """Images [num, 1, size, size] in [-1, 1] without detail."""
    return resized(torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, (size, size)).clamp(-1, 1)


# ---- what is shown


def test_a_blur_has_the_variance_that_was_asked_for() -> None:
    """Of a single bright pixel it makes a spot of that variance and of the same sum, each image its own, and 0 leaves it alone."""
    images = torch.zeros(3, 1, 21, 21)
    images[:, :, 10, 10] = 1.0
    sigma = torch.tensor([0.0, 0.6, 1.0])
    spots = blurred(images, sigma)
    torch.testing.assert_close(spots[0], images[0])
    torch.testing.assert_close(spots.sum((1, 2, 3)), torch.ones(3))
    distance = (torch.arange(21) - 10.0) ** 2
    for axis in (2, 3):
        profile = spots.sum((1, axis))  # [B, 21]
        torch.testing.assert_close((profile * distance).sum(1)[2], torch.tensor(1.0), atol=5e-3, rtol=0)
        assert 0.3 < (profile * distance).sum(1)[1] < 0.4  # 0.36, less what sampling a narrow Gaussian changes
    flat = torch.full((3, 1, 8, 8), 0.3)
    torch.testing.assert_close(blurred(flat, sigma), flat, msg="nothing darkens at the edge")


def test_resizing_keeps_means_down_and_grey_levels_up() -> None:
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(resized(image, (16, 16)), image)
    torch.testing.assert_close(resized(image, (4, 4)), F.avg_pool2d(image, 4))
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(resized(F.avg_pool2d(ramp, 2), (16, 16))[..., 4:-4], ramp[..., 4:-4], atol=1e-5, rtol=0)


def test_noise_has_the_stated_level_and_images_that_are_not_stated_have_none() -> None:
    images, level = torch.zeros(3, 1, 64, 64), torch.tensor([0.0, 0.05, 0.2])
    images[0] = math.nan
    shown = with_noise(images, level=level, noise=torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert bool(shown[0].isnan().all())
    assert shown[1:, 0].std((1, 2)).tolist() == pytest.approx([0.05, 0.2], rel=0.05)
    assert torch.equal(shown[1:, 1], level[1:, None, None].expand(2, 64, 64))


# ---- what the network is conditioned on


def planes(model: DiffusionModel, condition: Condition) -> torch.Tensor:
    """Image, stated and noise level as the network gets them, [B, 3, 16, 16]."""
    conditions = model.guided(condition, len(condition), PLAIN, seeds=range(len(condition)))[1]
    return model._condition_maps(conditions, torch.zeros(len(condition), 1, 16, 16))["image"]


def test_the_network_gets_the_noise_level_in_training_and_sampling() -> None:
    """In training every image has a level of its own, which its plane says truly; at sampling it is that of the config or the settings."""
    objective = objective_of("objective.image_blur=0.0", "objective.conditioning_noise=0.2", "objective.crop=0")
    flat = torch.zeros(400, 1, 16, 16)
    shown = objective._low_resolution(flat, Draws(range(400)))
    level = shown[:, 1].flatten(1)
    assert bool((level.std(1) < 1e-6).all()) and 0 <= level.min() < 0.02 and 0.18 < level.max() <= 0.2
    small = F.avg_pool2d(shown[:, :1], 2)  # of a cubic enlargement: the noise is still there, a little smoother
    ratio = small.flatten(1).std(1) / level.mean(1)
    assert 0.7 < ratio.mean() < 1.1
    assert torch.corrcoef(torch.stack([small.flatten(1).std(1), level.mean(1)]))[0, 1] > 0.9
    model = model_of("model.conditioning_noise=0.05")
    condition = showing(smooth(8))
    torch.testing.assert_close(planes(model, condition)[:, 2], torch.full((2, 16, 16), 0.05 / LEVEL_UNIT))
    free, noisy = (model.sample(condition, [1, 2], replace(PLAIN, conditioning_noise=level)) for level in (0.0, 0.3))
    assert not torch.equal(free, noisy) and not torch.equal(free, model.sample(condition, [1, 2], PLAIN))
    large = resized(smooth(8), (16, 16))
    untold, told = showing(large), showing(torch.cat([large, torch.full((2, 1, 16, 16), 0.1)], dim=1))
    x, sigma = torch.zeros(2, 1, 16, 16), torch.full((2,), 0.2)
    assert not torch.allclose(model.denoise(x, sigma, told), model.denoise(x, sigma, untold)), "the level itself is used"


def test_an_image_of_any_size_is_shown_as_training_shows_it() -> None:
    """A full image, its half and its quarter are one and the same where they agree at low resolution."""
    model = model_of("model.conditioning_noise=0.0")
    large = resized(smooth(8), (16, 16))
    small = F.avg_pool2d(large, 2)
    torch.testing.assert_close(model.sample(showing(large), [1, 2], PLAIN), model.sample(showing(small), [1, 2], PLAIN), atol=1e-5, rtol=0)
    torch.testing.assert_close(planes(model, showing(small))[:, :1], resized(small, (16, 16)))


def test_the_noise_in_an_image_depends_on_its_seed_alone() -> None:
    """Also where another image of the batch has none, and it does not change the noise from which an image begins."""
    model = model_of("model.centred=false", "model.conditioning_noise=0.2")
    image = smooth(8)
    image[1] = math.nan
    settings = replace(PLAIN, sampler="euler-a")
    together = model.sample(showing(image), [4, 5], settings)
    torch.testing.assert_close(model.sample(showing(image[:1]), [4], settings), together[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.sample(None, [5], settings), together[1:], atol=1e-4, rtol=0)


# ---- images that must be there


def test_an_untrained_model_adds_noise_of_the_scale_of_what_is_missing() -> None:
    """A network that gives 0 is the best one for Gaussian data of standard deviation `sigma_data` around the enlarged image."""
    model = objective_of("model.conditioning_noise=0.0", "model.sigma_data=0.07").model.eval()
    small = 0.8 * smooth(8)
    added = model.sample(showing(small), [1, 2], replace(PLAIN, steps=20)) - resized(small, (16, 16))
    assert added.std((1, 2, 3)).tolist() == pytest.approx([0.07] * 2, rel=0.15)
    assert added.mean((1, 2, 3)).tolist() == pytest.approx([0.0] * 2, abs=0.02)


def test_detail_is_learned_and_added_to_the_image(tmp_path: Path) -> None:
    """Stripes that no small image shows are put back, on images of any grey level."""
    recipe = super_resolution("train.steps=80", "train.batch_size=8", "train.learning_rate=1e-2", "train.augment=false",
                       "model.sigma_data=0.3", "objective.sigma_mean=-1.0", "objective.conditioning_noise=0.02", "objective.image_blur=0.0",
                       'model.parts=["image"]')
    image_set = toy_images(16)
    images = image_set.pixels.copy()
    images[:] = (40 + 5 * torch.arange(len(images)))[:, None, None].numpy()
    images[:, ::2] += 60
    model = train_here(recipe, tmp_path, images=replace(image_set, pixels=images)).model.eval()
    assert isinstance(model, DiffusionModel)
    grey = torch.tensor([-0.3, 0.1])[:, None, None, None].expand(2, 1, 8, 8)
    made = model.sample(showing(grey), [1, 2], replace(PLAIN, steps=8))
    stripes = made[:, :, ::2].mean((1, 2, 3)) - made[:, :, 1::2].mean((1, 2, 3))
    assert stripes.tolist() == pytest.approx([60 / 127.5] * 2, abs=0.1)
    assert made.mean((1, 2, 3)).tolist() == pytest.approx([-0.3, 0.1], abs=0.1)


def test_without_an_image_it_says_what_is_missing() -> None:
    model = model_of()
    half = smooth(8)
    half[1] = math.nan
    for condition in (None, showing(half)):
        with pytest.raises(UsageError, match="synthorax pack"):
            model.sample(condition, [1, 2], PLAIN)
    with pytest.raises(UsageError, match="synthorax pack"):
        check_settings(model, PLAIN)
    with pytest.raises(UsageError, match="centred"):
        objective_of('model.parts=["labels"]')
    with pytest.raises(UsageError, match="super_resolution_steps"):
        check_settings(fresh_objective(smallest("diffusion")).model, SampleSettings(super_resolution_steps=3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="conditioning_noise"):
        check_settings(fresh_objective(smallest("diffusion")).model, SampleSettings(conditioning_noise=0.1))  # type: ignore[arg-type]


def test_guidance_acts_on_the_other_parts_and_keeps_the_image() -> None:
    """D = D(image) + w (D(image, labels) - D(image)), and guidance from outside goes through."""
    model = model_of('model.parts=["labels", "image"]', "model.conditioning_noise=0.0")
    condition = replace(showing(smooth(8)), labels=torch.tensor([[1.0, 0.0], [math.nan, 1.0]]))
    x, sigma = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.3)
    got = model.guided(condition, 2, replace(PLAIN, guidance=2.5), seeds=[1, 2])[0](x, sigma)
    free = model.denoise(x, sigma, condition.only(("image",)))
    torch.testing.assert_close(got, free + 2.5 * (model.denoise(x, sigma, condition) - free), atol=1e-4, rtol=1e-4)
    guided = model.sample(condition, [1, 2], PLAIN, change=lambda denoise: classifier_guided(denoise,
                                                                                             lambda image: image.flatten(1).mean(1),
                                                                                              weight=5.0))
    assert not torch.equal(guided, model.sample(condition, [1, 2], PLAIN))


# ---- crops


def test_all_maps_are_cropped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is its own mask and its own lesion stays so, at every place, and the places are spread over the image."""
    objective = objective_of('model.parts=["mask", "image"]', "objective.part_dropout=0.0", "objective.statement_dropout=0.0",
                             "objective.box=0.0", "objective.conditioning_noise=0.0", "objective.image_blur=0.0",
                             "objective.lesion.mask_weight=1.0")
    ramp = torch.arange(256).reshape(1, 1, 16, 16) / 255.0
    batch = Batch(images=ramp.expand(64, 1, 16, 16), lesion=ramp.expand(64, 1, 16, 16), draws=Draws(range(64)),
                  condition=replace(Condition.unstated(64, num_labels=2, num_sites=2), mask=ramp.expand(64, 2, 16, 16)))
    seen = {}
    estimate = objective.model.estimate

    def listening(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen["condition"], seen["x"] = condition, x
        return estimate(x, torch.full_like(sigma, 1e-4), condition)

    monkeypatch.setattr(objective.model, "estimate", listening)
    assert bool(objective("denoise", batch)["lesion_error"].isfinite().all())
    condition = seen["condition"]
    assert condition.mask.shape == (64, 2, 8, 8) and seen["x"].shape == (64, 1, 8, 8)
    places = {round(255 * corner) for corner in condition.mask[:, 0, 0, 0].tolist()}
    assert {divmod(place, 16) for place in places} == {(row, column) for row in range(0, 9, 2) for column in range(0, 9, 2)}
    whole = resized(F.avg_pool2d(ramp, 2), (16, 16))
    for row in range(64):
        top, left = divmod(round(255 * condition.mask[row, 0, 0, 0].item()), 16)
        torch.testing.assert_close(condition.mask[row, 1], ramp[0, 0, top:top + 8, left:left + 8])
        torch.testing.assert_close(condition.image[row, 0], whole[0, 0, top:top + 8, left:left + 8])
    assert torch.equal(crop_at(ramp, torch.tensor([[3, 5]]), 4)[0, 0], ramp[0, 0, 3:7, 5:9])


def test_a_network_with_coordinates_is_told_where_its_crop_lies() -> None:
    """The coordinates of a crop are those that its pixels have in the whole image."""
    whole = coordinates_like(torch.zeros(2, 1, 16, 12))
    place = torch.tensor([[[4 / 16, 8 / 16], [2 / 12, 6 / 12]], [[0.0, 8 / 16], [6 / 12, 6 / 12]]])
    crops = coordinates_like(torch.zeros(2, 1, 8, 6), place)
    torch.testing.assert_close(crops[0], whole[0, :, 4:12, 2:8])
    torch.testing.assert_close(crops[1], whole[1, :, :8, 6:])


def test_the_place_that_is_told_is_that_of_the_crop(engine: Engine) -> None:
    """What the network estimates of a crop changes with its place, and the place goes with the corners."""
    objective = objective_of("model.coordinates=true")
    crop = objective.crop(Draws(range(64), device="cpu"))
    assert crop.corners is not None and crop.place is not None
    torch.testing.assert_close(crop.place[:, :, 0] * 16, crop.corners.float())
    assert (crop.place[:, :, 1] == 0.5).all() and len(crop.corners.unique(dim=0)) > 3
    assert objective_of().crop(Draws(range(4), device="cpu")).place is None
    model = model_of("model.coordinates=true")
    asked = replace(showing(torch.zeros(2, 2, 8, 8)), place=torch.tensor([[[0.0, 0.5], [0.0, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]))
    x, sigma = torch.zeros(2, 1, 8, 8), torch.ones(2)
    made = model.denoise(x, sigma, asked)
    assert not torch.equal(made[0], made[1])
    batch = Feed(toy_images(16), spec=model.spec, batch_size=4, balance=0.0, augment=True, seed=0, engine=engine).batch(0)
    assert bool(objective("denoise", batch)["denoise"].isfinite().all())


def test_a_network_that_learns_from_crops_sees_no_more_than_them() -> None:
    """Attention and lesions' places would be those of the crop in training and those of the image afterwards."""
    for override in ("model.middle_attention=true", "model.attention=[false, true]",
                     'model.parts=["lesions", "image"]', "objective.crop=6", "objective.crop=32"):
        with pytest.raises(UsageError, match="crop"):
            objective_of(override)
    model = model_of()
    assert not any("attention" in type(module).__name__.lower() for module in model.network.modules())
    assert model.size_multiple == 4 and load_recipe("super-256").model.middle_attention is False


def test_the_loss_of_a_crop_is_one_number_an_image_and_training_continues_exactly(engine: Engine, tmp_path: Path) -> None:
    objective = objective_of()
    batch = Feed(toy_images(16), spec=objective.model.spec, batch_size=4, balance=0.0, augment=True, seed=0, engine=engine).batch(0)
    losses = objective("denoise", batch)
    assert losses["denoise"].shape == (4,) and bool(losses["denoise"].isfinite().all())
    straight = train_here(super_resolution("train.steps=4", "train.checkpoint_every=2"), tmp_path / "a").model.state_dict()
    train_here(super_resolution("train.steps=4", "train.checkpoint_every=2", "train.cooldown=0.3"), tmp_path / "b", budget_seconds=None)
    for newest in sorted((tmp_path / "b" / "checkpoints").glob("*4.safetensors*")):
        newest.unlink()  # as if it had been killed after step 2
    again = train_here(super_resolution("train.steps=4", "train.checkpoint_every=2"), tmp_path / "b").model.state_dict()
    assert all(torch.equal(straight[key], again[key]) for key in straight)


@pytest.mark.parametrize(("name", "before"), [("super-256", 64), ("super-256-from-128", 128), ("super-512", 256), ("super-1024", 512)])
def test_super_resolution_recipes_chain_and_are_small(name: str, before: int) -> None:
    recipe = load_recipe(name)
    assert recipe.model.image_size // recipe.model.reduction == before
    objective = fresh_objective(recipe)
    assert sum(weight.numel() for weight in objective.model.parameters()) < 6.1e6
    assert recipe.sample.steps <= 8 and recipe.sample.guidance == 1
    assert MASKS and objective.model.spec.conditions == ("attributes", "labels", "image")  # type: ignore[union-attr]
