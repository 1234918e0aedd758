"""Diffusion against closed forms: for Gaussian data the ideal denoiser and the solution of the sampling equation are known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from synthorax.diffusion.guidance import classifier_free
from synthorax.diffusion.noise import karras_sigmas, lognormal_sigmas
from synthorax.diffusion.precondition import edm_scalings, edm_weight
from synthorax.diffusion.samplers import SAMPLERS, Denoise, Sampler
from synthorax.errors import UsageError
from synthorax.protocols import Condition
from synthorax.registry import lookup

MEAN, SPREAD = 0.3, 0.5
ORDERS = {"euler": 1, "heun": 2, "dpmpp-2m": 2}


def test_every_sampler_is_tested() -> None:
    assert set(ORDERS) == set(SAMPLERS)
    with pytest.raises(UsageError, match="did you mean 'heun'"):
        lookup(SAMPLERS, "huen", kind="sampler")


def sampler_called(name: str) -> Sampler:
    sampler: Sampler = lookup(SAMPLERS, name, kind="sampler")
    return sampler


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Expected clean value of data N(MEAN, SPREAD^2) given x = data + sigma noise."""
    level = sigma.reshape(-1, 1, 1, 1)
    return MEAN + SPREAD**2 / (SPREAD**2 + level**2) * (x - MEAN)


def solution(x: Tensor, *, start: float, end: float) -> Tensor:
    """Where dx/dsigma = (x - D(x)) / sigma leads from sigma `start` to `end`, for the denoiser above."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


def start_at(sigma: float, *, num: int = 64) -> Tensor:
    return sigma * torch.randn(num, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_error_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    x = start_at(10.0)
    exact = solution(x, start=10.0, end=0.1)
    errors = [(sampler_called(name)(gaussian, x, torch.logspace(1, -1, steps + 1, dtype=torch.float64)) - exact).abs().max().item()
              for steps in (32, 64, 128, 256)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.1), measured


SETTINGS = [("euler", 400, 0.02), ("heun", 24, 0.07), ("heun", 96, 0.005), ("dpmpp-2m", 24, 0.07), ("dpmpp-2m", 96, 0.005)]


@pytest.mark.parametrize(("name", "steps", "tolerance"), SETTINGS)
def test_noise_becomes_data_of_the_right_mean_and_spread(name: str, steps: int, tolerance: float) -> None:
    x = start_at(80.0, num=2000)
    made = sampler_called(name)(gaussian, x, karras_sigmas(steps))
    torch.testing.assert_close(made, solution(x, start=80.0, end=0.0), atol=tolerance, rtol=0)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert made.std().item() == pytest.approx(SPREAD, abs=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_kinds_of_data_keep_their_shares(name: str) -> None:
    """In one dimension the flow preserves quantiles, so the exact end of every path is known for any data."""
    shares, centres, spread = torch.tensor([0.2, 0.8], dtype=torch.float64), torch.tensor([-0.8, 0.5], dtype=torch.float64), 0.1

    def mixture(x: Tensor, sigma: Tensor) -> Tensor:
        variance = spread**2 + sigma[:, None] ** 2
        flat = x.reshape(len(x), 1)
        weights = torch.softmax(shares.log() - (flat - centres) ** 2 / (2 * variance), dim=1)
        each = centres + spread**2 / variance * (flat - centres)
        return (weights * each).sum(1).reshape(x.shape)

    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    middle, far = (shares * centres).sum().item(), 80.0
    start = torch.from_numpy(norm.ppf(quantiles.numpy())) * far + middle
    made = sampler_called(name)(mixture, start.reshape(-1, 1, 1, 1), karras_sigmas(200, sigma_max=far)).flatten()
    reached = sum(share * torch.from_numpy(norm.cdf((made - centre).numpy() / spread))
                  for share, centre in zip(shares, centres, strict=True))
    torch.testing.assert_close(reached, quantiles, atol=0.02, rtol=0)
    assert (made < 0).double().mean().item() == pytest.approx(0.2, abs=0.011)


@pytest.mark.parametrize(("name", "calls"), [("euler", 10), ("heun", 19), ("dpmpp-2m", 10)])
def test_number_of_network_calls(name: str, calls: int) -> None:
    asked: list[Tensor] = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    sampler_called(name)(counted, start_at(80.0, num=3), karras_sigmas(10))
    assert len(asked) == calls
    assert all(sigma.shape == (3,) and bool((sigma > 0).all()) for sigma in asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_one_denoising(name: str) -> None:
    x = start_at(80.0, num=2)
    torch.testing.assert_close(sampler_called(name)(gaussian, x, karras_sigmas(1)), gaussian(x, torch.full((2,), 80.0)))


def test_karras_levels_fall_between_their_ends() -> None:
    sigmas = karras_sigmas(18, sigma_min=0.01, sigma_max=50.0)
    assert sigmas.shape == (19,) and sigmas.dtype == torch.float64
    assert sigmas[0].item() == pytest.approx(50.0) and sigmas[-2].item() == pytest.approx(0.01) and sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    roots = sigmas[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(17))


def test_training_levels_are_log_normal() -> None:
    logs = lognormal_sigmas(torch.randn(20_000, generator=torch.Generator().manual_seed(0)), mean=-0.8, std=1.4).log()
    assert logs.mean().item() == pytest.approx(-0.8, abs=0.04) and logs.std().item() == pytest.approx(1.4, abs=0.04)


def test_scalings_keep_input_and_target_at_unit_variance() -> None:
    sigma, spread = torch.logspace(-3, 2, 50, dtype=torch.float64), 0.5
    s = edm_scalings(sigma, sigma_data=spread)
    c_skip, c_out, c_in = (value.flatten() for value in (s.c_skip, s.c_out, s.c_in))
    one = torch.ones_like(sigma)
    torch.testing.assert_close(c_in**2 * (spread**2 + sigma**2), one)  # variance of the network's input
    target = ((1 - c_skip) ** 2 * spread**2 + c_skip**2 * sigma**2) / c_out**2  # of (clean - c_skip noisy) / c_out
    torch.testing.assert_close(target, one)
    torch.testing.assert_close(edm_weight(sigma, sigma_data=spread) * c_out**2, one)
    torch.testing.assert_close((4 * s.c_noise).exp(), sigma)
    assert s.c_skip.shape == (50, 1, 1, 1) and s.c_noise.shape == (50,)


def test_c_skip_leaves_the_network_the_smallest_task() -> None:
    """For Gaussian data around 0 the skip connection alone is the ideal denoiser."""
    x, sigma = start_at(3.0), torch.full((64,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(edm_scalings(sigma, sigma_data=SPREAD).c_skip * x, gaussian(x + MEAN, sigma) - MEAN)


def conditional(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Moves towards 1 where the first finding is asked for, towards -1 where it is ruled out, towards 0 where nothing is said."""
    asked = (condition.labels[:, 0] * 2 - 1).nan_to_num(0.0)
    return 0.5 * x + asked[:, None, None, None] / (1 + sigma.reshape(-1, 1, 1, 1))


def guided(weight: float) -> Tensor:
    labels = torch.tensor([[1.0], [0.0], [math.nan]])
    condition = Condition(labels=labels, attributes=Condition.unstated(3, num_labels=1).attributes)
    denoise: Denoise = classifier_free(conditional, condition, weight=weight)
    return denoise(torch.zeros(3, 1, 1, 1), torch.ones(3)).flatten()


def test_guidance_extrapolates_from_nothing_asked_to_asked() -> None:
    torch.testing.assert_close(guided(0.0), torch.zeros(3))
    torch.testing.assert_close(guided(1.0), torch.tensor([0.5, -0.5, 0.0]))
    for weight in (0.3, 1.5, 4.0):
        torch.testing.assert_close(guided(weight), guided(0.0) + weight * (guided(1.0) - guided(0.0)))
