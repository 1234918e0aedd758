"""The diffusion family beyond the contract of every family: parameterisations, compressors, composition, inversion, other guidance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthorax.diffusion.guidance import autoguided, classifier_guided
from synthorax.diffusion.precondition import PARAMETERISATIONS
from synthorax.diffusion.samplers import SAMPLERS, Denoise
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.objective import DiffusionObjective
from synthorax.protocols import ATTRIBUTES, LESION_PROPERTIES, Batch, Condition, SampleSettings, as_model
from synthorax.rng import Draws
from synthorax.steps.generate import check_settings
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.training.feed import Feed, unit_images, varying_inputs
from synthorax.training.loop import train
from synthorax.types import Masks
from trainings import FINDINGS, MASKS, SITES, diffusion_model, diffusion_objective, fresh_objective, randomised, smallest, toy_images

FAST = SampleSettings(steps=3, guidance=2.0)


def unstated(size: int = 1) -> Condition:
    return Condition.unstated(size, num_labels=len(FINDINGS), num_sites=len(SITES))


def batch_of(objective: DiffusionObjective, engine: Engine, *, size: int = 4) -> Batch:
    images = toy_images(objective.model.spec.image_size)
    return Feed(images, spec=objective.model.spec, batch_size=size, balance=0.0, augment=False, seed=0, engine=engine).batch(0)


# ---- parameterisations and noise


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_every_parameterisation_learns_and_samples(name: str, engine: Engine, tmp_path: Any) -> None:
    """An image of one grey level a half is learned whatever the network is asked for, from the levels that belong to it."""
    levels = {"edm": "lognormal", "flow": "flow-logit-normal"}.get(name, "cosine")
    recipe = smallest("diffusion", f"model.parameterisation={name}", f"objective.levels={levels}", "train.steps=150", "train.batch_size=8",
                      "train.learning_rate=5e-3", "train.augment=false", "model.sigma_max=20.0", 'model.parts=["labels"]')
    image_set = toy_images(8)
    images = image_set.pixels.copy()
    images[:, :4], images[:, 4:] = 40, 200
    outcome = train(fresh_objective(recipe), replace(image_set, pixels=images), recipe.train, engine=engine, folder=tmp_path)
    made = as_model(outcome.model).sample(None, range(4), SampleSettings(steps=12, guidance=1.0))
    wanted = unit_images(images[:1])
    assert (made - wanted).abs().mean() < 0.3  # 0.6 for an image of the mean grey level


def test_a_learned_variance_lies_between_its_bounds_and_is_trained_by_the_bound(engine: Engine) -> None:
    objective = diffusion_objective("model.parameterisation=eps", "model.learned_variance=true", "objective.levels=linear")
    model = objective.model
    randomised(model.network)
    batch = batch_of(objective, engine)
    _, fraction = model.estimate(batch.images, torch.full((4,), 0.5), batch.condition)
    assert fraction is not None and fraction.shape == batch.images.shape and fraction.min() >= 0 and fraction.max() <= 1
    terms = objective("denoise", batch)
    assert set(terms) == {"denoise", "vlb", "reading", "lesion_error"} and bool(terms["vlb"].isfinite().all())
    last = model.network.last[-1]  # type: ignore[index, union-attr]
    half = last.weight.shape[0] // 2  # type: ignore[union-attr]
    spread = torch.autograd.grad(terms["vlb"].sum(), last.weight, retain_graph=True)[0]  # type: ignore[union-attr]
    assert bool((spread[half:] != 0).any()) and not bool((spread[:half] != 0).any()), "the bound trains the variance alone"
    images = model.sample(None, [1, 2], replace(FAST, sampler="ddpm"))
    assert bool(images.isfinite().all())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["karras", "linear", "flow"])
def test_every_sampler_and_schedule_draws_images_by_their_seeds(sampler: str, schedule: str) -> None:
    model, settings = diffusion_model(), SampleSettings(sampler=sampler, schedule=schedule, steps=4, guidance=1.0)
    images = model.sample(None, [5, 6], settings)
    torch.testing.assert_close(images[1:], model.sample(None, [6], settings), atol=1e-4, rtol=0)
    assert bool(images.isfinite().all()) and not torch.equal(images[0], images[1])


def test_inversion_finds_the_noise_that_gives_the_image_back() -> None:
    model = diffusion_model()
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(0.3)  # smooth enough for the step sizes
    condition = replace(unstated(2), labels=torch.tensor([[1.0, 0.0], [math.nan, 1.0]]))
    settings = SampleSettings(sampler="ddim", steps=50, guidance=1.0)
    images = model.sample(condition, [1, 2], settings)
    noise = model.invert(images, condition, settings)
    again = model.sample(condition, [3, 4], settings, start=noise)
    psnr = 10 * torch.log10(4 / (again - images).square().mean())
    assert psnr > 30 and noise.std() > 10


# ---- compressors


def test_a_wavelet_packing_is_scaled_by_what_is_measured(engine: Engine) -> None:
    objective = diffusion_objective("model.compressor=wavelet", "model.image_size=16", "model.multipliers=[1, 1]")
    images = unit_images(toy_images(16).pixels)
    objective.prepare(images)
    latents = objective.model.compressor.encode(images)
    assert latents.shape == (24, 16, 4, 4) and objective.model.latent_shape == (16, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.var((0, 2, 3), correction=0), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(objective.model.compressor.decode(latents), images, atol=1e-5, rtol=0)
    made = objective.model.eval().sample(None, [1], FAST)
    assert made.shape == (1, 1, 16, 16)


@pytest.mark.parametrize("family", ["kl-autoencoder", "vq-gan"])
def test_latents_of_a_trained_compressor_are_diffused_and_it_is_never_trained_along(family: str, engine: Engine) -> None:
    compressor = fresh_objective(smallest(family)).model
    side = int(as_model(compressor).spec.image_size)
    config = dict(as_model(compressor).spec.config.items())
    recipe = smallest("diffusion", f"model.compressor={family}", f"model.image_size={side}", "model.multipliers=[1]",
                      "model.attention=[true]")
    recipe = replace(recipe, model=replace(recipe.model, compressor_config=config))
    objective = fresh_objective(recipe)
    assert isinstance(objective, DiffusionObjective)
    objective.model.compressor.load_matching(compressor.state_dict())  # type: ignore[union-attr]
    images = unit_images(toy_images(side).pixels)
    objective.prepare(images)
    latents = objective.model.compressor.encode(images)
    torch.testing.assert_close(latents.var((0, 2, 3), correction=0), torch.ones(latents.shape[1]), atol=0.02, rtol=0)
    expected = compressor.decode(compressor.encode(images))  # type: ignore[operator]
    torch.testing.assert_close(objective.model.compressor.decode(latents), expected, atol=1e-4, rtol=0)
    assert not any("compressor" in name for name, _ in objective.model.named_parameters())
    assert any("compressor" in name for name in objective.model.state_dict()), "but it is saved with the model"
    objective("denoise", batch_of(objective, engine))["denoise"].sum().backward()
    image_set = objective.model.eval().sample(None, [1], FAST)
    assert image_set.shape == (1, 1, side, side)


def test_a_trained_compressor_must_be_given() -> None:
    with pytest.raises(UsageError, match="--compressor"):
        build_objective(load_recipe("latent-256"), findings=FINDINGS)
    with pytest.raises(InputError, match="did you mean 'wavelet'"):
        diffusion_objective("model.compressor=wavelets")


# ---- the condition


@pytest.mark.processor
def test_parts_the_model_is_not_conditioned_on_change_nothing() -> None:
    model = diffusion_model('model.parts=["labels"]')
    asked = replace(unstated(), labels=torch.tensor([[1.0, 0.0]]))
    more = replace(asked, text=("a mass",), attributes=torch.ones_like(asked.attributes), mask=torch.ones(1, len(MASKS), 8, 8))
    assert torch.equal(model.sample(asked, [1], FAST), model.sample(more, [1], FAST))


@pytest.mark.processor
@pytest.mark.parametrize("part", ["labels", "attributes", "lesions", "mask"])
def test_what_no_image_of_training_states_changes_nothing(part: str, engine: Engine) -> None:
    """Of the first finding, attribute or mask class, nothing is stated in training, and something after it."""
    objective = diffusion_objective('model.parts=["attributes", "labels", "lesions", "mask"]')
    model, batch = objective.model, batch_of(objective, engine)
    first, rest = getattr(batch.condition, part).clone(), getattr(batch.condition, part).clone()
    first[:, 1:], rest[:, :1] = math.nan, math.nan
    everything = Condition(labels=torch.ones(1, len(FINDINGS)), attributes=torch.ones(1, len(ATTRIBUTES) + len(SITES)),
                           lesions=torch.ones(1, len(FINDINGS), len(LESION_PROPERTIES)), mask=torch.ones(1, len(MASKS), 1, 1))
    known = getattr(everything, part).clone()
    known[:, 0] = math.nan
    objective.zero_unvaried_inputs(replace(everything, **{part: known}))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        objective("denoise", replace(batch, condition=replace(batch.condition, **{part: rest})))["denoise"].mean().backward()
        optimiser.step()
    model.eval()
    first[:, :1] = 1.0
    silent, never, learned = (model.denoise(batch.images, torch.ones(4), replace(unstated(4), **{part: value}))
                              for value in (torch.full_like(first, math.nan), first, rest))
    assert torch.equal(never, silent) and not torch.equal(learned, silent)


def test_images_say_what_they_differ_in() -> None:
    images, spec = toy_images(8), diffusion_objective().model.spec
    told = varying_inputs(images, spec=spec)
    assert not told.labels.isnan().any() and not told.mask.isnan().any()  # type: ignore[union-attr]
    assert told.attributes[0, [0, 1, 3, 4]].eq(1).all() and told.attributes[0, 2].isnan(), "PA, AP, sex and age; no lateral image"
    assert told.lesions is not None and told.lesions.isnan().all(), "all masses have one place and size"
    assert images.masks is not None and images.lesions is not None
    lesions, labels, index = images.lesions.copy(), images.labels.copy(), images.masks.index.copy()
    lesions[0, 1, 1], labels[:, 0], index[:, 0] = 0.1, 0.0, Masks.NOT_STATED
    other = varying_inputs(replace(images, lesions=lesions, labels=labels, masks=replace(images.masks, index=index)), spec=spec)
    assert other.lesions is not None and (~other.lesions[0].isnan()).nonzero().tolist() == [[1, 1]]
    assert other.labels[0].isnan().tolist() == [True, False], "absent in every image is nothing to tell images apart by"
    assert other.mask is not None and other.mask[0, :, 0, 0].isnan().tolist() == [True, False]


def test_a_low_resolution_image_is_followed_and_may_be_missing(engine: Engine) -> None:
    objective = diffusion_objective('model.parts=["labels", "image"]', "model.reduction=2")
    batch = batch_of(objective, engine)
    assert bool(objective("denoise", batch)["denoise"].isfinite().all())
    model = diffusion_model('model.parts=["labels", "image"]', "model.reduction=2")
    small = torch.rand(1, 1, 8, 8)
    followed = model.sample(replace(unstated(), image=small), [1], FAST)
    assert not torch.equal(followed, model.sample(replace(unstated(), image=-small), [1], FAST))
    assert not torch.equal(followed, model.sample(None, [1], FAST))


def test_the_unconditional_path_is_the_null_condition() -> None:
    """Asking for nothing, in whatever words, is one and the same (D4)."""
    model = diffusion_model()
    empty = replace(unstated(), text=("",), mask=torch.full((1, len(MASKS), 8, 8), math.nan), lesions=torch.full((1, 2, 5), math.nan))
    torch.testing.assert_close(model.sample(empty, [1], FAST), model.sample(None, [1], FAST))


def test_what_is_stated_outdoes_what_a_text_says() -> None:
    """A text fills in what labels and lesions leave open; a finding stated absent gets no lesion from it."""
    model, nan = diffusion_model(), math.nan
    asked = replace(unstated(3), labels=torch.tensor([[nan, nan], [0.0, nan], [1.0, nan]]))
    asked = replace(asked, lesions=torch.full((3, 2, 5), nan).index_fill(0, torch.tensor([2]), 0.25))
    read = torch.full((3, 2, 5), 0.75)
    told = model._with_text_statements(asked, torch.tensor([[1.0, 0.5]] * 3), read)
    assert told.labels.tolist() == [[1.0, 0.5], [0.0, 0.5], [1.0, 0.5]]
    assert told.lesions is not None and told.lesions[:, 0, 0].isnan().tolist() == [False, True, False]
    assert told.lesions[0, 0, 0] == 0.75 and (told.lesions[2] == 0.25).all()


def test_and_joins_texts_and_not_takes_them_away() -> None:
    """Each row has its own operators; the arithmetic is that of Liu et al. 2022, by hand."""
    model = diffusion_model()
    x, sigma = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((4,), 2.0)
    labels = torch.tensor([[1.0, math.nan]] * 4)
    asked = replace(unstated(4), labels=labels, text=("a mass AND effusion", "a mass NOT effusion", "NOT effusion", "a mass"))
    settings = SampleSettings(guidance=1.0)
    got = model.guided(asked, 4, settings)[0](x, sigma)

    def plain(texts: tuple[str, ...], *, stated: bool) -> Tensor:
        return model.denoise(x, sigma, replace(unstated(4), labels=labels if stated else unstated(4).labels, text=texts))

    base = plain(("a mass", "a mass", "", "a mass"), stated=True)
    free = plain(("",) * 4, stated=False)
    other = plain(("effusion",) * 4, stated=False)
    signs = torch.tensor([1.0, -1.0, -1.0, 0.0])[:, None, None, None]
    torch.testing.assert_close(got, base + signs * (other - free), atol=1e-4, rtol=1e-4)


def test_guidance_for_a_part_that_is_no_condition_names_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"'text'.*is not conditioned on.*labels"):
        diffusion_model('model.parts=["labels"]').sample(unstated(), [1], replace(FAST, part_guidance={"text": 2.0}))
    with pytest.raises(InputError, match="did you mean 'labels'"):
        diffusion_objective('model.parts=["label"]')


def test_guidance_from_outside_wraps_the_denoiser() -> None:
    """A weaker model changes the image; a classifier that likes bright images makes the estimate brighter."""
    model, weak = diffusion_model(), diffusion_model(seed=1)
    nothing = unstated()

    def away(denoise: Denoise) -> Denoise:
        return autoguided(denoise, lambda x, sigma: weak.denoise(x, sigma, nothing), weight=2.0)

    def brighter(denoise: Denoise) -> Denoise:
        return classifier_guided(denoise, lambda image: image.flatten(1).mean(1), weight=20.0)

    assert not torch.equal(model.sample(None, [1], FAST, change=away), model.sample(None, [1], FAST))
    estimates: list[Tensor] = []

    def listened(denoise: Denoise) -> Denoise:
        def both(x: Tensor, sigma: Tensor) -> Tensor:
            estimates.extend([denoise(x, sigma).mean(), brighter(denoise)(x, sigma).mean()])
            return denoise(x, sigma)

        return both

    model.sample(None, [1], replace(FAST, steps=2), change=listened)
    assert estimates[-1] > estimates[-2], "at the lowest noise level, where a brighter x is a brighter estimate"


@pytest.mark.parametrize(("sampler", "learned"), [("ddpm", "true"), ("ddpm", "false"), ("dpmpp-2m", "false")])
def test_clipping_holds_every_estimate_within_the_range_of_an_image(sampler: str, learned: str) -> None:
    model = diffusion_model("model.parameterisation=eps", f"model.learned_variance={learned}")
    plain = replace(FAST, sampler=sampler, schedule="cosine")
    clipped = model.sample(None, [1], replace(plain, clip=True))
    by_hand = model.sample(None, [1], plain, change=lambda denoise: lambda x, sigma: denoise(x, sigma).clamp(-1, 1))
    assert torch.equal(clipped, by_hand) and not torch.equal(clipped, model.sample(None, [1], plain))
    again = [model.resample(clipped, None, [1], replace(plain, clip=clip), level=20.0) for clip in (False, True)]
    assert not torch.equal(*again)


def test_latents_have_no_range_to_clip_to() -> None:
    model = diffusion_model("model.compressor=wavelet")
    for call in (lambda: model.sample(None, [1], replace(FAST, clip=True)), lambda: check_settings(model, replace(FAST, clip=True))):
        with pytest.raises(UsageError, match=r"clip: this model diffuses latents \(model\.compressor=wavelet\)"):
            call()


# ---- lesions


def test_lesion_terms_are_added_where_lesions_are_known(engine: Engine) -> None:
    off, on = diffusion_objective("objective.lesion.mask_weight=0.0"), diffusion_objective("objective.lesion.mask_weight=0.5",
                                                                         "objective.lesion.ssim_weight=0.1")
    batch = batch_of(off, engine)
    plain, added = off("denoise", replace(batch, draws=Draws(range(4)))), on("denoise", replace(batch, draws=Draws(range(4))))
    assert set(plain) == {"denoise", "reading"} and set(added) == {"denoise", "reading", "lesion_error", "lesion_ssim"}
    torch.testing.assert_close(plain["denoise"], added["denoise"])
    assert batch.lesion is not None
    shown = batch.lesion.flatten(1).any(1)
    assert bool((added["lesion_error"][shown] > 0).all()) and bool((added["lesion_error"][~shown] == 0).all())


def test_a_model_conditioned_on_masks_learns_from_images_without_any() -> None:
    recipe = smallest("diffusion")
    objective = build_objective(recipe, findings=FINDINGS, sites=SITES, masks=())
    images = replace(toy_images(8), masks=Masks(names=(), pixels=np.zeros((0, 8, 8), np.uint8), index=np.zeros((24, 0), np.int32)))
    feed = Feed(images, spec=as_model(objective.model).spec, batch_size=2, balance=0.0, augment=False, seed=0,
                engine=Engine(device=torch.device("cpu"), bf16=False))
    losses = objective.losses(objective.phases[0].name, feed.batch(0))
    assert all(bool(term.isfinite().all()) for term in losses.values())
