"""Bands of detail: scalings in each band, and the start from a model of half the side."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from synthorax.diffusion.precondition import edm_scalings, output_weight
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.detail_bands import DetailBands, with_detail
from synthorax.families.denoising.distillation_objective import StudentObjective
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import denoise
from synthorax.nets.wavelet import merge
from synthorax.protocols import Condition, SampleSettings
from synthorax.rng import Draws
from synthorax.training.feed import Feed
from trainings import FINDINGS, SITES, diffusion_model, diffusion_objective, fresh_objective, randomised, smallest, toy_images

DETAIL = (0.08, 0.1, 0.03)
WITH_DETAIL = ("model.detail_sigma_data=[0.08, 0.1, 0.03]", "model.image_size=16")
HALF = SampleSettings(steps=6, guidance=1.0)


def condition() -> Condition:
    unstated = Condition.unstated(3, num_labels=len(FINDINGS), num_sites=len(SITES))
    mask = torch.full((3, 2, 16, 16), math.nan)
    mask[1, 0] = torch.zeros(16, 16)
    mask[1, 0, 4:12, 4:12] = 1.0
    attributes = unstated.attributes.clone()
    attributes[:, 0] = 1.0
    return replace(unstated, labels=torch.tensor([[1.0, 0.0], [0.0, math.nan], [math.nan, math.nan]]), attributes=attributes, mask=mask)


def start_of(model: DiffusionModel) -> torch.Tensor:
    return Draws([1, 2, 3], device="cpu").normal(*model.latent_shape) * model.config.sigma_max


def test_the_first_images_are_those_of_the_base_enlarged_by_two() -> None:
    """From twice the noise of the base in the means and none in the detail come the base's images, each pixel four times."""
    base = diffusion_model("model.sigma_max=20.0", seed=3)
    model = diffusion_model(*WITH_DETAIL, "model.sigma_max=40.0", "model.sigma_min=0.01", seed=5)
    model.load_matching(base)
    start, nothing = start_of(base), torch.zeros(3, 3, 8, 8)
    small = base.sample(condition(), [1, 2, 3], HALF, start=start)
    large = model.sample(condition(), [1, 2, 3], HALF, start=merge(torch.cat([2 * start, nothing], dim=1)))
    torch.testing.assert_close(large, F.interpolate(small, scale_factor=2.0), atol=2e-4, rtol=0)
    other = diffusion_model(*WITH_DETAIL, "model.sigma_max=40.0", "model.sigma_min=0.01", seed=5)
    unlike = other.sample(condition(), [1, 2, 3], HALF, start=merge(torch.cat([2 * start, nothing], dim=1)))
    assert (unlike - F.interpolate(small, scale_factor=2.0)).abs().mean() > 0.05, "the base's weights do it"


def test_detail_begins_as_noise_of_its_own_standard_deviation() -> None:
    model = with_detail(diffusion_model(), detail=DETAIL, parts=("attributes", "labels", "lesions", "mask", "text"))
    large = model.sample(None, range(64), SampleSettings(steps=40, guidance=1.0))
    bands = DetailBands(sigma_data=0.5, detail=DETAIL).split(large)
    inside = F.avg_pool2d(large, 2).abs() < 0.5  # images are clipped to -1 and 1
    spread = torch.stack([bands[:, band][inside[:, 0]].std() for band in (1, 2, 3)])
    torch.testing.assert_close(spread, torch.tensor(DETAIL), rtol=0.1, atol=0)


def test_a_base_that_is_conditioned_on_less_may_be_started_from() -> None:
    base = diffusion_model('model.parts=["attributes", "labels"]')
    model = diffusion_model(*WITH_DETAIL, seed=5)
    model.load_matching(base)
    large = model.sample(None, [1, 2], HALF)
    assert bool(large.isfinite().all())
    weights = model.network.first.weight  # type: ignore[union-attr]
    assert torch.equal(weights[:, 0], base.network.first.weight[:, 0])  # type: ignore[union-attr, index]
    assert not bool(weights[:, 1:4].any())  # type: ignore[index]


def test_a_model_with_detail_starts_from_another_one() -> None:
    base, model = diffusion_model(*WITH_DETAIL, seed=3), diffusion_model(*WITH_DETAIL, seed=5)
    model.load_matching(base)
    assert torch.equal(model.sample(condition(), [1, 2, 3], HALF), base.sample(condition(), [1, 2, 3], HALF))
    with pytest.raises(UsageError, match="twice the side again"):
        with_detail(base, detail=DETAIL, parts=base.config.parts)


def test_each_band_has_the_scalings_of_its_own_standard_deviation() -> None:
    """Where all bands have that of white images, a whole image is scaled, and its error weighted, as without bands."""
    bands, sigma = DetailBands(sigma_data=0.25, detail=(0.5, 0.5, 0.5)), torch.tensor([0.05, 0.5, 5.0])
    plain = edm_scalings(sigma, sigma_data=0.5)
    s = bands.scalings(sigma)
    for name in ("c_skip", "c_out", "c_in"):
        torch.testing.assert_close(getattr(s, name), getattr(plain, name)[:, None, None, None].expand(3, 4, 1, 1))
    torch.testing.assert_close(s.c_noise, (sigma / 2).log() / 4)
    difference = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    energy = bands.split(difference).square().flatten(2).mean(2)
    wanted = output_weight(plain) * (0.5 * energy[:, 0] + 0.5 * energy[:, 1:].mean(1))
    torch.testing.assert_close(bands.error(difference, sigma), wanted)
    torch.testing.assert_close(bands.merge(bands.split(difference)), difference)


def test_a_network_of_zeros_has_a_loss_of_one_in_every_band() -> None:
    """So bands that hold a hundredth of the image's variance are learned as eagerly as the means."""
    model = diffusion_objective(*WITH_DETAIL).model
    assert model.bands is not None
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(model.bands.sigma_data)[:, None, None]
    clean = model.bands.merge(torch.randn(400, 4, 8, 8, generator=generator) * scale)
    unstated = Condition.unstated(400, num_labels=len(FINDINGS), num_sites=len(SITES))
    for level in (0.02, 0.5, 10.0):
        noise = torch.randn(400, 1, 16, 16, generator=generator)
        made = denoise(model, clean, noise=noise, sigma=torch.full((400,), level), condition=unstated)
        assert made.loss.mean().item() == pytest.approx(1.0, abs=0.02)


def test_detail_is_learned(engine: Engine) -> None:
    """A pattern of single columns, which the means do not show, is in the estimate at a level that drowns it."""
    torch.manual_seed(0)
    objective = diffusion_objective(*WITH_DETAIL, 'model.parts=["labels"]', "objective.sigma_mean=-1.5")
    images = toy_images(16)
    pixels = images.pixels.copy()
    pixels[:, :, ::2], pixels[:, :, 1::2] = 138, 117  # a difference of columns of 0.08 over 2 x 2 pixels, twice
    feed = Feed(replace(images, pixels=pixels), spec=objective.model.spec, batch_size=8, balance=0.0, augment=False, seed=0, engine=engine)
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    for step in range(120):
        optimizer.zero_grad()
        objective("denoise", feed.batch(step))["denoise"].mean().backward()
        optimizer.step()
    made = objective.model.eval().sample(None, range(8), SampleSettings(steps=12, guidance=1.0))
    assert (made[..., ::2] - made[..., 1::2]).mean() == pytest.approx(21 / 127.5, rel=0.3)


def test_a_student_is_told_of_augmentation_as_its_teacher_is_and_weighs_bands_as_training_does(engine: Engine) -> None:
    """With the teacher's weights and no guidance there is nothing to learn, whatever was done to the images."""
    recipe = smallest("diffusion", *WITH_DETAIL, "model.told_augmentation=true", "model.distilled.guidance=1.0", "model.distilled.steps=0",
                      "objective.lesion.mask_weight=0.0")
    objective = fresh_objective(recipe)
    assert isinstance(objective, StudentObjective) and objective.told_augmentation and objective.teacher is not None
    randomised(objective.teacher, seed=1)
    objective.model.load_state_dict(objective.teacher.state_dict())
    batch = Feed(toy_images(16), spec=objective.model.spec, batch_size=4, balance=0.0, augment=True, seed=0, engine=engine,
                 told=True).batch(0)
    assert batch.condition.augmentation is not None and batch.condition.augmentation.any()
    assert objective("distil", batch)["distil"].max() < 1e-6
    randomised(objective.model.embeddings["augmentation"], seed=3)
    assert objective("distil", batch)["distil"].max() > 1e-3


@pytest.mark.parametrize("setting", ["model.compressor=wavelet", "model.parameterisation=eps", "model.network=transformer",
                                     "model.learned_variance=true"])
def test_what_has_no_bands_of_detail_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=r"model\.detail_sigma_data: bands of detail need"):
        smallest("diffusion", *WITH_DETAIL, setting)


def test_three_bands_have_three_numbers() -> None:
    with pytest.raises(UsageError, match="has 2 numbers; there are 3"):
        diffusion_objective("model.detail_sigma_data=[0.1, 0.1]", "model.image_size=16")
