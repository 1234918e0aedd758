"""Edits inside a region: nothing else changes by a bit, no seam shows, a change of nothing is the image itself, and identity is kept."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from latent_generators import generator
from planted import SIDE, Planted, score
from synthorax.editing.inversion import Inversion, InversionConfig, editable, invert
from synthorax.editing.lesion_refinement import blend_weight
from synthorax.editing.regions import RegionEditConfig, blend_into, edit_region
from synthorax.errors import UsageError
from synthorax.losses.perceptual import Oriented
from synthorax.protocols import Condition
from trainings import FINDINGS, fresh_objective, smallest

seam = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "studies" / "cascade.py"))["seam"]

SHORT = InversionConfig(steps=60, candidates=8)
BOX = (6 / SIDE, 24 / SIDE, 32 / SIDE, 32 / SIDE)  # around the effusion's block
PATCH = (24, 6, 32)


def images(model: Planted, num: int = 2) -> Tensor:
    """Images that the generator makes up to a fine grain and a little jewel, which it cannot make."""
    made = model.decode_latents([torch.randn(num, 12, generator=torch.Generator().manual_seed(2))], None)
    grain = 0.02 * torch.randn(made.shape, generator=torch.Generator().manual_seed(3))
    grain[:, :, 40:42, 20:22] = 0.3
    return (made + grain).clamp(-0.95, 0.95)


def test_a_change_of_nothing_is_the_image_to_the_bit() -> None:
    model = Planted()
    before = images(model)
    found = invert(model, before, seeds=[1, 2], config=SHORT)
    assert not torch.equal(found.images, before), "what the latent cannot say of the image is added back"
    same = edit_region(model, before, BOX, seeds=[1, 2], direction=model.axes[0], amount=0.0, found=found)
    assert torch.equal(same.images, before)
    assert torch.equal(same.latents[0], found.latents[0])


def test_the_region_alone_changes_and_has_no_seam() -> None:
    """With a generator that leaks: its own change reaches everywhere, and pasted hard it would show."""
    model = Planted(leak=0.2)
    before = images(model)
    found = invert(model, before, seeds=[1, 2], config=SHORT)
    plain = RegionEditConfig(steps=0)
    made = edit_region(model, before, BOX, seeds=[1, 2], direction=model.axes[0], amount=2.0, found=found, config=plain)
    top, left, side = PATCH
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[top:top + side, left:left + side] = True
    assert torch.equal(made.images[..., ~inside], before[..., ~inside])
    assert (score(made.images, "Effusion") - score(before, "Effusion") > 0.2).all()
    change = model.decode_latents(made.latents, None) - found.images
    for image, whole, old in zip(made.images[:, 0], change[:, 0], before[:, 0], strict=True):
        hard = torch.where(inside, old + whole, old)
        assert seam(image, PATCH) < 1.3 < 2 < seam(hard, PATCH)
    assert torch.equal(before, images(model)), "the images that were given are left alone"


def test_bending_the_latent_spares_the_rest_of_the_image_and_keeps_what_was_asked() -> None:
    model = Planted(leak=0.2)
    before = images(model)
    found = invert(model, before, seeds=[1, 2], config=SHORT)
    axis = model.axes[0]

    def edited(config: RegionEditConfig) -> tuple[float, Tensor, float]:
        made = edit_region(model, before, BOX, seeds=[1, 2], direction=axis, amount=2.0, found=found, config=config)
        change = model.decode_latents(made.latents, None) - model.decode_latents(found.latents, None)
        outside = change[(made.weight == 0).expand_as(change)].square().mean().item()
        coarse = torch.nn.functional.avg_pool2d(made.images - before, 8).square().sum().item()
        return outside, (made.latents[0] - found.latents[0]) @ axis, coarse

    straight, along, coarse = edited(RegionEditConfig(steps=0))
    bent, still_along, _ = edited(RegionEditConfig(coarse=0.0))
    torch.testing.assert_close(along, torch.full((2,), 2.0))
    torch.testing.assert_close(still_along, along, atol=1e-3, rtol=0)
    assert bent < 0.8 * straight
    identical = edited(RegionEditConfig(coarse=30.0))
    assert identical[2] < 0.97 * coarse, "identity costs change"
    oriented = RegionEditConfig(features=1.0)
    with_features = edit_region(model, before, BOX, seeds=[1, 2], direction=axis, amount=2.0, found=found, config=oriented,
                                features=Oriented())
    without = edit_region(model, before, BOX, seeds=[1, 2], direction=axis, amount=2.0, found=found)
    assert not torch.equal(with_features.latents[0], without.latents[0])


def test_a_square_is_blended_as_refining_blends_it_and_any_mask_is() -> None:
    """Along its middle lines; towards the corners `refine` multiplies what this takes the least of."""
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[:, :, 10:34, 20:44] = True
    weight, expected = blend_into(mask, blend=0.25), blend_weight((10, 20, 24), size=64, blend_px=6)
    assert (weight[~mask] == 0).all()
    torch.testing.assert_close(weight[0, 0, 22, 20:44], expected[12])
    torch.testing.assert_close(weight[0, 0, 10:34, 32], expected[:, 12])
    assert (weight[0, 0, 10:34, 20:44] >= expected - 1e-6).all()
    corner = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    corner[:, :, 32:, 32:] = True
    assert blend_into(corner, blend=0.25)[0, 0, 63, 63] == 1, "no border where the image ends"
    disc = ((torch.arange(64)[:, None] - 32) ** 2 + (torch.arange(64) - 20) ** 2 < 15**2)[None, None]
    weight = blend_into(disc, blend=0.25)
    assert weight[0, 0, 32, 20] == 1 and (weight[~disc] == 0).all()
    assert weight.diff(dim=2).abs().max() < 0.3, "it rises by degrees"
    assert (blend_into(torch.ones(1, 1, 8, 8, dtype=torch.bool), blend=0.5) == 1).all()


def test_an_image_follows_its_own_mask_and_amount() -> None:
    model = Planted()
    before = images(model)
    masks = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    masks[0, :, 24:56, 6:38], masks[1, :, 2:26, 40:63] = True, True
    found = invert(model, before, seeds=[1, 2], config=SHORT)
    both = edit_region(model, before, masks, seeds=[1, 2], direction=model.axes[0] + model.axes[1], amount=torch.tensor([1.0, -1.0]),
                       found=found)
    for row in range(2):
        assert torch.equal(both.images[row][~masks[row]], before[row][~masks[row]])
    change = both.images - before
    assert score(change, "Effusion")[0] > 0.1 and score(change, "Mass")[1] < -0.1


def test_another_label_changes_the_region_of_a_conditional_generator() -> None:
    model = cast(Any, fresh_objective(smallest("gan")).model)
    with torch.no_grad():
        model.generator.last.weight.mul_(4.0)
        model.embedding.linear.weight.mul_(20.0)
        for seed in range(30):
            model.train().decode_latents([torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))], None)
    model.eval().requires_grad_(False)
    nothing = Condition.unstated(1, num_labels=len(FINDINGS), num_sites=2)
    healthy, ill = (replace(nothing, labels=torch.tensor([[value, math.nan]])) for value in (0.0, 1.0))
    image = model.sample(healthy, [3])
    made = edit_region(model, image, (0.25, 0.25, 0.5, 0.5), seeds=[1], condition=healthy, wanted=ill, search=SHORT)
    assert torch.equal(made.images[made.weight == 0], image[made.weight == 0]) and not torch.equal(made.images, image)
    same = edit_region(model, image, (0.25, 0.25, 0.5, 0.5), seeds=[1], condition=healthy, wanted=healthy, search=SHORT)
    assert torch.equal(same.images, image)


def test_what_cannot_be_is_refused() -> None:
    model = Planted()
    before, axis = images(model), model.axes[0]
    found = Inversion(latents=(torch.zeros(2, 12),), images=before, psnr=torch.zeros(2))

    def refused(message: str, region: Any = BOX, given: Tensor = before, **more: Any) -> None:
        with pytest.raises(UsageError, match=message):
            edit_region(model, given, region, **({"seeds": [1, 2], "direction": axis, "found": found} | more))

    refused("does not lie in the image", region=(0.9, 0.1, 0.2, 0.2))
    refused("does not lie in the image", region=(0.1, 0.1, 0.0, 0.2))
    refused("holds no pixel", region=torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool))
    refused("holds no pixel", region=(0.5, 0.5, 0.001, 0.001))
    refused("all border", region=(0.5, 0.5, 2 / SIDE, 0.3))
    refused("is a bool for every pixel", region=torch.ones(1, 1, SIDE, SIDE))
    refused("is a bool for every pixel", region=torch.ones(1, 1, 32, 32, dtype=torch.bool))
    refused("a model of 64 px needs images of shape", given=before[..., :32])
    refused("as many seeds", seeds=[1], found=None)
    refused("give a direction, or a condition", direction=None)
    refused("follow no condition", wanted=Condition.unstated(2, num_labels=2))
    refused("same space", direction=torch.zeros(9, 12))
    refused("latents of shapes", found=Inversion(latents=(torch.zeros(2, 7),), images=before, psnr=torch.zeros(2)))
    refused("needs features", config=RegionEditConfig(features=1.0))
    styles = editable(generator("stylegan2"))
    with pytest.raises(UsageError, match="follow no condition"):
        edit_region(styles, torch.zeros(1, 1, 16, 16), BOX, seeds=[1], wanted=Condition.unstated(1, num_labels=2))
    with pytest.raises(UsageError, match="makes no images of latents"):
        edit_region(cast(Any, fresh_objective(smallest("diffusion")).model), before, BOX, seeds=[1, 2], direction=axis)
