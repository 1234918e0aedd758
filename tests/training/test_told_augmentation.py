"""Augmentation that the model is told of: what it does to images, masks and lesions, and that sampling asks for none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from synthorax.engine import Engine
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective
from synthorax.protocols import AUGMENTATIONS, LESION_PROPERTIES, Condition, SampleSettings, as_model
from synthorax.rng import Draws
from synthorax.training.augmentation import EXPOSING, MOVING, told_augmentation
from synthorax.training.feed import Feed
from trainings import FINDINGS, SITES, fresh_objective, randomised, smallest, toy_images, train_here

TOLD = "model.told_augmentation=true"
NUM = 64


def draws() -> Draws:
    return Draws(range(NUM), device="cpu")


def spot(*, side: int = 64) -> tuple[torch.Tensor, Condition, torch.Tensor]:
    """A bright disc at the upper left of the middle, with its mask and its stated place, in `NUM` equal images."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = ((rows - 0.4 * side) ** 2 + (columns - 0.35 * side) ** 2 < (0.08 * side) ** 2).float()
    lesions = torch.full((NUM, 1, len(LESION_PROPERTIES)), math.nan)
    lesions[:, 0, LESION_PROPERTIES.index("x")] = 0.35 + 0.5 / side
    lesions[:, 0, LESION_PROPERTIES.index("y")] = 0.4 + 0.5 / side
    condition = Condition.unstated(NUM, num_labels=1)
    return ((disc - 0.5).repeat(NUM, 1, 1, 1), replace(condition, lesions=lesions, mask=disc.repeat(NUM, 1, 1, 1)),
            disc.repeat(NUM, 1, 1, 1))


def column(condition: Condition, name: str) -> torch.Tensor:
    assert condition.augmentation is not None
    return condition.augmentation[:, AUGMENTATIONS.index(name)]


def test_what_is_told_is_what_was_done() -> None:
    images, condition, lesion = spot()
    changed, told, _ = told_augmentation(images, condition, lesion, draws())
    moved, exposed = column(told, "moved") == 1, column(told, "exposed") == 1
    assert 0.3 < moved.float().mean() < 0.7 and 0.3 < exposed.float().mean() < 0.7
    assert {*MOVING, *EXPOSING, "moved", "exposed"} == set(AUGMENTATIONS)
    untouched = ~moved & ~exposed
    assert untouched.any() and torch.equal(changed[untouched], images[untouched]), "an image that is not changed keeps every bit"
    assert told.augmentation is not None and not told.augmentation[untouched].any()
    assert (changed[moved] != images[moved]).flatten(1).any(1).all()
    assert all(not column(told, name)[~moved].any() for name in MOVING) and all(not column(told, name)[~exposed].any() for name in EXPOSING)
    assert told.augmentation.abs().max() <= 1 and changed.abs().max() <= 1
    again, _, _ = told_augmentation(images, condition, lesion, draws())
    assert torch.equal(again, changed)


def test_masks_and_places_of_lesions_move_along() -> None:
    images, condition, lesion = spot()
    changed, told, carried = told_augmentation(images, condition, lesion, draws())
    assert told.mask is not None and told.lesions is not None and carried is not None
    torch.testing.assert_close(told.mask, carried)
    side = images.shape[-1]
    centres = (torch.arange(side) + 0.5) / side
    weights = told.mask[:, 0] / told.mask[:, 0].sum((1, 2), keepdim=True)
    x, y = (weights.sum(1) * centres).sum(1), (weights.sum(2) * centres).sum(1)
    torch.testing.assert_close(told.lesions[:, 0, LESION_PROPERTIES.index("x")], x, atol=0.01, rtol=0)
    torch.testing.assert_close(told.lesions[:, 0, LESION_PROPERTIES.index("y")], y, atol=0.01, rtol=0)
    inside = told.mask[:, 0] > 0.99
    for image, where in zip(changed[:, 0], inside, strict=True):
        assert image[where].min() > image.mean(), "the mask lies on the disc"


def test_black_borders_stay_black_and_nothing_is_flipped() -> None:
    images, condition, lesion = spot()
    images[..., :6] = -1.0
    changed, told, _ = told_augmentation(images, condition, lesion, draws())
    still = column(told, "moved") == 0
    assert changed[still][..., :6].max() == -1.0
    left, right = changed[..., 10:32].clamp(min=0).flatten(1).sum(1), changed[..., 32:].clamp(min=0).flatten(1).sum(1)
    assert (left > right).float().mean() > 0.95, "the disc stays on its side"


def test_sampling_asks_for_no_change() -> None:
    """Whatever the weights of what is told, images are those of a model that was never told anything."""
    plain, told = (fresh_objective(smallest("diffusion", *setting)).model for setting in ((), (TOLD,)))
    assert isinstance(told, DiffusionModel) and isinstance(plain, DiffusionModel)
    randomised(plain.network, seed=1)
    told.load_matching(plain)
    randomised(told.embeddings["augmentation"], seed=3)
    unstated = Condition.unstated(2, num_labels=len(FINDINGS), num_sites=len(SITES))
    condition = replace(unstated, labels=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    settings = SampleSettings(steps=3, guidance=2.0)
    assert torch.equal(told.eval().sample(condition, [1, 2], settings), plain.eval().sample(condition, [1, 2], settings))
    changed = replace(condition, augmentation=torch.ones(2, len(AUGMENTATIONS)))
    x, sigma = torch.zeros(2, 1, 8, 8), torch.ones(2)
    assert not torch.equal(told.denoise(x, sigma, changed), told.denoise(x, sigma, condition)), "told of a change, it sees another image"
    assert torch.equal(plain.denoise(x, sigma, changed), plain.denoise(x, sigma, condition))


def test_a_model_that_is_told_learns_from_it(tmp_path: Path) -> None:
    outcome = train_here(smallest("diffusion", TOLD, "train.steps=4"), tmp_path)
    model = as_model(outcome.model)
    assert isinstance(model, DiffusionModel) and bool(model.embeddings["augmentation"].weight.any())


def test_the_feed_tells_only_models_that_listen(engine: Engine) -> None:
    for setting, told in (((), False), ((TOLD,), True)):
        objective = fresh_objective(smallest("diffusion", *setting))
        assert isinstance(objective, DiffusionObjective) and objective.told_augmentation is told
        feed = Feed(toy_images(8), spec=objective.model.spec, batch_size=4, balance=0.0, augment=True, seed=0, engine=engine,
                    told=objective.told_augmentation)
        assert (feed.batch(0).condition.augmentation is not None) is told
        still = Feed(toy_images(8), spec=objective.model.spec, batch_size=4, balance=0.0, augment=False, seed=0, engine=engine, told=told)
        assert still.batch(0).condition.augmentation is None
