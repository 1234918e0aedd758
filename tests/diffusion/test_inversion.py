"""Inversion: images become noise, and deterministic sampling turns that noise back into the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ideal import MEAN, SPREAD, gaussian, mixture_of, peak_signal_to_noise, solution
from synthorax.data.phantom import PhantomSpec, draw_phantom
from synthorax.diffusion.inversion import invert
from synthorax.diffusion.noise import SCHEDULES, karras_sigmas, sampling_sigmas
from synthorax.diffusion.samplers import Denoise, solve
from synthorax.errors import UsageError

TEXTURE = 0.1


def gaussian_images() -> Tensor:
    return MEAN + SPREAD * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def drawn_images() -> tuple[Denoise, Tensor]:
    """The ideal denoiser for twenty drawn thoraces with texture, and four images of that kind."""
    drawings = [torch.from_numpy(np.array(draw_phantom(PhantomSpec(seed=seed), size=32).image)) for seed in range(20)]
    centres = torch.stack(drawings)[:, None].double() / 127.5 - 1
    texture = TEXTURE * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture_of(centres, shares=torch.full((20,), 0.05, dtype=torch.float64), spread=TEXTURE), centres[:4] + texture


def returned(denoise: Denoise, images: Tensor, sigmas: Tensor, *, refinements: int) -> Tensor:
    """PSNR in dB of images that were inverted and sampled again, [B]."""
    noise = invert(denoise, images, sigmas, refinements=refinements)
    return peak_signal_to_noise(solve(denoise, noise, sigmas, sampler="ddim"), images)


schedules = pytest.mark.parametrize("schedule", SCHEDULES)


@schedules
@pytest.mark.parametrize(("refinements", "decibels"), [(0, 30), (1, 48), (5, 90)])
def test_images_of_a_gaussian_return_in_fifty_steps(schedule: str, refinements: int, decibels: float) -> None:
    sigmas = sampling_sigmas(schedule, 50, sigma_min=0.005, sigma_max=80.0)
    assert returned(gaussian, gaussian_images(), sigmas, refinements=refinements).min() > decibels


@schedules
def test_images_of_a_mixture_return_in_fifty_steps(schedule: str) -> None:
    """Between kinds the slope changes fast: without refinement an image may come back as another one, but most do not."""
    denoise, images = drawn_images()
    sigmas = sampling_sigmas(schedule, 50, sigma_min=0.005, sigma_max=80.0)
    assert returned(denoise, images, sigmas, refinements=0).median() > 34
    assert returned(denoise, images, sigmas, refinements=1).min() > 44
    assert returned(denoise, images, sigmas, refinements=5).min() > 75


def test_the_noise_is_that_of_the_exact_path() -> None:
    images, sigmas = gaussian_images(), karras_sigmas(1000, sigma_max=20.0)
    exact = solution(images, start=0.0, end=20.0)
    error = (invert(gaussian, images, sigmas) - exact).abs().max() / exact.abs().max()
    refined = (invert(gaussian, images, sigmas, refinements=3) - exact).abs().max() / exact.abs().max()
    assert error < 0.01 and refined < 0.01


def test_more_steps_and_more_refinements_return_more() -> None:
    images = gaussian_images()
    by_steps = [returned(gaussian, images, karras_sigmas(steps), refinements=0).min().item() for steps in (10, 50, 250)]
    by_refinements = [returned(gaussian, images, karras_sigmas(20), refinements=number).min().item() for number in range(5)]
    assert by_steps == sorted(by_steps) and by_steps[-1] > by_steps[0] + 20
    assert by_refinements == sorted(by_refinements) and by_refinements[-1] > by_refinements[0] + 30


def test_other_noise_gives_other_images() -> None:
    """The images return because of their noise, not because sampling always gives them."""
    denoise, images = drawn_images()
    sigmas = karras_sigmas(50)
    noise = invert(denoise, images, sigmas, refinements=1)
    swapped = solve(denoise, noise.flip(0), sigmas, sampler="ddim")
    assert peak_signal_to_noise(swapped, images).max() < 25


@pytest.mark.parametrize("refinements", [0, 2])
def test_number_of_network_calls(refinements: int) -> None:
    asked: list[float] = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (8,)
        asked.append(sigma[0].item())
        return gaussian(x, sigma)

    invert(counting, gaussian_images(), karras_sigmas(10), refinements=refinements)
    assert len(asked) == 10 * (1 + refinements) and min(asked) > 0


def test_fewer_than_no_refinements_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 refinements: choose 0 or more"):
        invert(gaussian, gaussian_images(), karras_sigmas(5), refinements=-1)
