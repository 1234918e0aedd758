"""Latents of images: those of generated images are found again."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from latent_generators import generator
from synthorax.editing.inversion import InversionConfig, invert
from synthorax.errors import UsageError
from synthorax.protocols import as_model
from trainings import fresh_objective, smallest

SEARCH = InversionConfig(steps=300, candidates=32)


@pytest.mark.parametrize("family", ["gan", "stylegan2"])
def test_the_latent_of_a_generated_image_is_recovered(family: str) -> None:
    model = cast(Any, generator(family))
    images = model.sample(None, [1, 2, 3])
    if family == "stylegan2":
        latents = [torch.randn(3, *size, generator=torch.Generator().manual_seed(7)) for size in model.latent_shapes]
        images = model.decode_latents(latents, None).detach()
    others = images.roll(1, 0)
    strangers = 10 * torch.log10(4 / (images - others).square().mean((1, 2, 3)))
    found = invert(model, images, seeds=[10, 11, 12], config=SEARCH)
    assert (found.psnr > 30).all(), found.psnr
    assert strangers.max() < 25, "other images are not that close, so closeness means something"
    torch.testing.assert_close(model.decode_latents(list(found.latents), None), found.images)
    assert found.latents[0].square().mean() < 4, "latents stay typical of normal numbers"


def test_a_search_depends_on_its_image_and_seed_alone() -> None:
    model = cast(Any, generator("gan"))
    images, short = model.sample(None, [1, 2]), InversionConfig(steps=20, candidates=4)
    together = invert(model, images, seeds=[10, 11], config=short)
    alone = invert(model, images[1:], seeds=[11], config=short)
    torch.testing.assert_close(alone.images[0], together.images[1], atol=1e-3, rtol=0)
    again = invert(model, images, seeds=[10, 11], config=short)
    assert torch.equal(again.images, together.images)


def test_an_image_that_the_generator_cannot_make_is_not_pretended_to() -> None:
    model = cast(Any, generator("gan"))
    checkers = torch.ones(1, 1, 16, 16)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1.0
    assert invert(model, checkers, seeds=[1], config=InversionConfig(steps=50, candidates=8)).psnr.item() < 15


def test_what_cannot_work_is_refused() -> None:
    model = cast(Any, generator("gan"))
    with pytest.raises(UsageError, match="shape"):
        invert(model, torch.zeros(2, 1, 16, 16), seeds=[1])
    with pytest.raises(UsageError, match="training mode"):
        invert(model.train(), torch.zeros(1, 1, 16, 16), seeds=[1])
    with pytest.raises(UsageError, match="'diffusion' makes no images of latents"):
        invert(cast(Any, as_model(fresh_objective(smallest("diffusion")).model)), torch.zeros(1, 1, 8, 8), seeds=[1])
