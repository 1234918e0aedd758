"""Parameterisations: each says the same clean image in its own words."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from ideal import MEAN, SPREAD, gaussian, start_at
from synthorax.diffusion.noise import sigma_to_alpha_bar, sigma_to_flow_time
from synthorax.diffusion.precondition import (
    PARAMETERISATIONS,
    Scalings,
    denoised_from_output,
    edm_scalings,
    output_from_denoised,
    output_weight,
)
from synthorax.errors import UsageError
from synthorax.registry import lookup

LEVELS = torch.logspace(-3, 2, 50, dtype=torch.float64)
names = pytest.mark.parametrize("name", PARAMETERISATIONS)


def scalings_of(name: str, sigma: Tensor = LEVELS) -> Scalings:
    scalings: Scalings = lookup(PARAMETERISATIONS, name, kind="parameterisation")(sigma, sigma_data=SPREAD)
    return scalings


def image_noise_and_both(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """x0, n and x0 + sigma n at every level, each [50, *shape]."""
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(50, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return image, noise, image + LEVELS.reshape(-1, *[1] * len(shape)) * noise


def test_an_unknown_parameterisation_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown parameterisation 'epsilon'; did you mean 'eps'"):
        lookup(PARAMETERISATIONS, "epsilon", kind="parameterisation")


@names
def test_coefficients_are_one_an_image_and_fit_images_and_volumes(name: str) -> None:
    scalings = scalings_of(name)
    for value in (scalings.c_skip, scalings.c_out, scalings.c_in, scalings.c_noise):
        assert value.shape == (50,) and bool(value.isfinite().all())
    for shape in ((1, 4, 4), (2, 3, 4, 5)):
        like = scalings.like(torch.zeros(50, *shape))
        assert like.c_in.shape == like.c_out.shape == like.c_skip.shape == (50, *[1] * len(shape)) and like.c_noise.shape == (50,)


def test_each_network_gives_what_its_paper_says() -> None:
    image, noise, x = image_noise_and_both(1, 2, 2)
    share = sigma_to_alpha_bar(LEVELS).reshape(-1, 1, 1, 1)
    expected = {"x0": image, "eps": noise, "v": share.sqrt() * noise - (1 - share).sqrt() * image, "flow": noise - image}
    for name, output in expected.items():
        torch.testing.assert_close(output_from_denoised(image, x, scalings_of(name)), output, rtol=1e-6, atol=1e-6)


def test_each_network_sees_the_state_of_its_convention() -> None:
    image, noise, x = image_noise_and_both(1, 2, 2)
    share, time = (value(LEVELS).reshape(-1, 1, 1, 1) for value in (sigma_to_alpha_bar, sigma_to_flow_time))
    preserving = share.sqrt() * image + (1 - share).sqrt() * noise
    states = {"x0": preserving, "eps": preserving, "v": preserving, "flow": (1 - time) * image + time * noise}
    for name, state in states.items():
        torch.testing.assert_close(scalings_of(name).like(x).c_in * x, state)


@pytest.mark.parametrize(("one", "other"), list(permutations(PARAMETERISATIONS, 2)))
def test_outputs_convert_from_each_parameterisation_to_each(one: str, other: str) -> None:
    output, _, x = image_noise_and_both(1, 2, 2)
    clean = denoised_from_output(output, x, scalings_of(one))
    translated = output_from_denoised(clean, x, scalings_of(other))
    torch.testing.assert_close(denoised_from_output(translated, x, scalings_of(other)), clean)
    back = output_from_denoised(denoised_from_output(translated, x, scalings_of(other)), x, scalings_of(one))
    torch.testing.assert_close(back, output, rtol=1e-6, atol=1e-6)


@names
def test_weighted_error_of_the_image_is_the_plain_error_of_the_network(name: str) -> None:
    image, _, x = image_noise_and_both(1, 2, 2)
    scalings = scalings_of(name)
    answer = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = (answer - output_from_denoised(image, x, scalings)) ** 2
    through_image = output_weight(scalings)[:, None, None, None] * (denoised_from_output(answer, x, scalings) - image) ** 2
    torch.testing.assert_close(through_image, own, rtol=1e-6, atol=1e-6)


@names
def test_c_noise_rises_with_the_level_and_is_of_order_one(name: str) -> None:
    noise_input = scalings_of(name).c_noise
    assert bool((noise_input.diff() > 0).all()) and noise_input.abs().max() < 2
    if name != "edm":
        assert noise_input.min() > 0 and noise_input.max() < 1


def test_c_noise_is_what_the_table_says() -> None:
    torch.testing.assert_close((4 * scalings_of("edm").c_noise).exp(), LEVELS)
    torch.testing.assert_close(scalings_of("flow").c_noise, sigma_to_flow_time(LEVELS))
    torch.testing.assert_close((scalings_of("v").c_noise * math.pi / 2).cos() ** 2, sigma_to_alpha_bar(LEVELS))


def test_edm_scalings_keep_input_and_target_at_unit_variance() -> None:
    s = edm_scalings(LEVELS, sigma_data=SPREAD)
    one = torch.ones_like(LEVELS)
    torch.testing.assert_close(s.c_in**2 * (SPREAD**2 + LEVELS**2), one)  # variance of the network's input
    target = ((1 - s.c_skip) ** 2 * SPREAD**2 + s.c_skip**2 * LEVELS**2) / s.c_out**2  # of (clean - c_skip noisy) / c_out
    torch.testing.assert_close(target, one)
    torch.testing.assert_close(output_weight(s), (LEVELS**2 + SPREAD**2) / (LEVELS * SPREAD) ** 2)  # Table 1, Karras et al. 2022


def test_c_skip_leaves_the_network_the_smallest_task() -> None:
    """For Gaussian data around 0 the skip connection alone is the ideal denoiser."""
    x, sigma = start_at(3.0), torch.full((64,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(edm_scalings(sigma, sigma_data=SPREAD).like(x).c_skip * x, gaussian(x + MEAN, sigma) - MEAN)


@names
def test_scalings_keep_the_dtype_of_sigma(name: str) -> None:
    scalings = scalings_of(name, LEVELS.float())
    assert scalings.c_skip.dtype == scalings.c_out.dtype == scalings.c_in.dtype == scalings.c_noise.dtype == torch.float32
