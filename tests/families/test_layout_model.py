"""The model of outlines: its transform is exact where it keeps everything, and samples lie where training maps do, before any training."""

from __future__ import annotations

import math

import torch

from synthorax.families.denoising.layout import LayoutModel
from synthorax.protocols import Condition, SampleSettings
from trainings import fresh_objective, smallest


def model_of(*overrides: str) -> LayoutModel:
    model = fresh_objective(smallest("layout", *overrides)).model
    assert isinstance(model, LayoutModel)
    return model.eval()


def test_maps_come_back_and_keep_their_length() -> None:
    model, maps = model_of(), torch.rand(3, 1, 8, 8) * 2 - 1
    coefficients = model.coefficients(maps)
    torch.testing.assert_close(model.maps(coefficients), maps)
    torch.testing.assert_close(coefficients.square().sum(1), maps.square().sum((1, 2, 3)))
    low = model_of("model.band=3")
    assert low.coefficients(maps).shape == (3, 6), "six pairs of numbers add up to less than 3"
    flat = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(low.maps(low.coefficients(flat)), flat)


def test_an_untrained_model_estimates_the_best_linear_way_and_samples_have_mean_and_spread_of_training_maps() -> None:
    """Maps are mostly outside: their mean must not have to be learned."""
    model = model_of("model.image_size=16")
    generator = torch.Generator().manual_seed(0)
    maps = (-0.8 + 0.1 * torch.randn(200, 1, 16, 16, generator=generator)).clamp(-1, 1)
    model.fit(maps)
    nothing = Condition.unstated(4, num_labels=2, num_sites=2)
    with torch.no_grad():
        far = model.denoise(torch.randn(4, 1, 16, 16, generator=generator) * 1e4, torch.full((4,), 1e4), nothing)
    torch.testing.assert_close(far.mean(), maps.mean(), atol=0.02, rtol=0)
    made = model.sample(None, range(60), SampleSettings(steps=30, guidance=1.0))
    assert math.isclose(made.mean().item(), maps.mean().item(), abs_tol=0.02)
    assert math.isclose(made.std(0).mean().item(), maps.std(0).mean().item(), rel_tol=0.25)
