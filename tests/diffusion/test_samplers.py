"""Samplers against closed forms: for Gaussian data the ideal denoiser, every path and the distribution at its end are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ideal import MEAN, SPREAD, gaussian, mixture_of, solution, start_at
from synthorax.diffusion.noise import karras_sigmas
from synthorax.diffusion.samplers import ALWAYS_NOISY, SAMPLERS, USUAL_ETA, Noise, ddpm_learned, solve
from synthorax.diffusion.variance import variance_bounds
from synthorax.errors import UsageError

ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp-2m": 2, "unipc": 3}
NOISY = ("ddpm", "euler-a", "dpmpp-2m-sde")


def noise_like(*shape: int, seed: int = 1) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def sampled(name: str, x: Tensor, sigmas: Tensor, *, eta: float | None = None,
            denoise: Callable[[Tensor, Tensor], Tensor] = gaussian) -> Tensor:
    return solve(denoise, x, sigmas, sampler=name, noise=noise_like(*x.shape), eta=eta)


def test_every_sampler_is_tested() -> None:
    assert {*ORDERS, *NOISY} == set(SAMPLERS)
    assert {*USUAL_ETA, *ALWAYS_NOISY} == {*NOISY, "ddim"}


# Deterministic samplers


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_error_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    x = start_at(10.0)
    exact = solution(x, start=10.0, end=0.1)
    errors = [(sampled(name, x, torch.logspace(1, -1, steps + 1, dtype=torch.float64)) - exact).abs().max().item()
              for steps in (32, 64, 128, 256)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.1), measured


SETTINGS = [("euler", 400, 0.02), ("ddim", 400, 0.02), ("heun", 24, 0.07), ("heun", 96, 0.005), ("dpmpp-2m", 24, 0.07),
            ("dpmpp-2m", 96, 0.005), ("unipc", 24, 0.05), ("unipc", 96, 0.002)]


@pytest.mark.parametrize(("name", "steps", "tolerance"), SETTINGS)
def test_noise_becomes_the_exact_image(name: str, steps: int, tolerance: float) -> None:
    x = start_at(80.0, num=2000)
    made = sampled(name, x, karras_sigmas(steps))
    torch.testing.assert_close(made, solution(x, start=80.0, end=0.0), atol=tolerance, rtol=0)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert made.std().item() == pytest.approx(SPREAD, abs=0.03)


SHARES, CENTRES, WIDTH = torch.tensor([0.2, 0.8], dtype=torch.float64), torch.tensor([-0.8, 0.5], dtype=torch.float64), 0.1
TWO_KINDS = mixture_of(CENTRES.reshape(2, 1, 1, 1), shares=SHARES, spread=WIDTH)


def reached(images: Tensor) -> Tensor:
    """Share of the two kinds of data below each image, [B]."""
    parts = [share * torch.from_numpy(norm.cdf((images.flatten() - centre).numpy() / WIDTH))
             for share, centre in zip(SHARES, CENTRES, strict=True)]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("name", ORDERS)
def test_two_kinds_of_data_keep_their_quantiles(name: str) -> None:
    """In one dimension the flow preserves quantiles, so the exact end of every path is known for any data."""
    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    middle, far = (SHARES * CENTRES).sum().item(), 80.0
    start = torch.from_numpy(norm.ppf(quantiles.numpy())) * far + middle
    made = sampled(name, start.reshape(-1, 1, 1, 1), karras_sigmas(200, sigma_max=far), denoise=TWO_KINDS).flatten()
    torch.testing.assert_close(reached(made), quantiles, atol=0.02, rtol=0)
    assert (made < 0).double().mean().item() == pytest.approx(0.2, abs=0.011)


# Samplers with fresh noise


@pytest.mark.parametrize(("name", "eta"), [*((name, None) for name in NOISY), ("ddim", 0.5), ("ddim", 1.0), ("euler-a", 0.3)])
def test_fresh_noise_becomes_data_of_the_right_mean_and_spread(name: str, eta: float | None) -> None:
    made = sampled(name, start_at(80.0, num=5000), karras_sigmas(400), eta=eta)  # 20,000 independent pixels
    assert made.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert made.std().item() == pytest.approx(SPREAD, abs=0.012)
    assert ((made - MEAN) ** 4).mean().item() / SPREAD**4 == pytest.approx(3, abs=0.3)  # kurtosis of a Gaussian


@pytest.mark.parametrize("name", NOISY)
def test_fresh_noise_keeps_the_shares_of_two_kinds_of_data(name: str) -> None:
    start = 80.0 * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = sampled(name, start, karras_sigmas(200), denoise=TWO_KINDS)
    quantiles = reached(made).sort().values  # uniform if and only if the images are distributed like the data
    furthest = (quantiles - torch.linspace(0, 1, 4000, dtype=torch.float64)).abs().max()
    assert furthest.item() < 0.04  # Kolmogorov-Smirnov: 0.026 is the 1 % point for exact samples
    assert (made < 0).double().mean().item() == pytest.approx(0.2, abs=0.025)


@pytest.mark.parametrize("name", NOISY)
def test_where_a_noisy_path_ends_says_nothing_of_where_it_began(name: str) -> None:
    x = start_at(80.0, num=2000)
    made = sampled(name, x, karras_sigmas(100))
    assert abs(torch.corrcoef(torch.stack([x.flatten(), made.flatten()]))[0, 1].item()) < 0.04
    kept = sampled("ddim", x, karras_sigmas(100))
    assert torch.corrcoef(torch.stack([x.flatten(), kept.flatten()]))[0, 1].item() > 0.999


def test_the_second_order_sde_needs_fewer_steps_than_ddpm() -> None:
    errors = {name: abs(sampled(name, start_at(80.0, num=20_000), karras_sigmas(50)).std().item() - SPREAD)
              for name in ("ddpm", "dpmpp-2m-sde")}
    assert errors["dpmpp-2m-sde"] < errors["ddpm"] / 3


# ddim, euler-a and ddpm are one step with different fresh noise


@pytest.mark.parametrize(("one", "other"), [
    (("ddim", 0.0), ("euler", None)), (("ddim", None), ("euler", None)), (("euler-a", 0.0), ("euler", None)),
    (("ddim", 1.0), ("ddpm", None)), (("euler-a", None), ("ddpm", None)), (("ddim", 0.4), ("euler-a", 0.4)),
])
def test_one_step_has_several_names(one: tuple[str, float | None], other: tuple[str, float | None]) -> None:
    x = start_at(80.0, num=4)
    made = [sampled(name, x, karras_sigmas(8), eta=eta) for name, eta in (one, other)]
    torch.testing.assert_close(*made)


# The learned variance


@pytest.mark.parametrize("steps", [4, 20])
def test_with_the_exact_variance_ddpm_is_exact_at_any_number_of_steps(steps: int) -> None:
    """Between Gaussians every reverse step is Gaussian; the plain bound is far off at few steps, the exact exponent is not."""
    sigmas = karras_sigmas(steps)

    def with_exact_variance(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        sigma_next = sigmas[int((sigmas - sigma[0]).abs().argmin()) + 1]
        lower, upper = variance_bounds(sigma[:1], sigma_next[None])
        exact = (SPREAD**2 + sigma_next**2) * (sigma[:1] ** 2 - sigma_next**2) / (SPREAD**2 + sigma[:1] ** 2)
        fraction = torch.zeros_like(lower) if sigma_next == 0 else (exact / lower).log() / (upper / lower).log()
        assert bool((fraction >= 0).all()) and bool((fraction <= 1).all())
        return gaussian(x, sigma), fraction.reshape(1, 1, 1, 1).expand_as(x)

    x = start_at(80.0, num=10_000)
    made = ddpm_learned(with_exact_variance, x, sigmas, noise=noise_like(*x.shape))
    assert made.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert made.std().item() == pytest.approx(SPREAD, abs=0.008)
    assert abs(sampled("ddpm", x, sigmas).std().item() - SPREAD) > 0.05


def test_the_lowest_learned_variance_is_plain_ddpm() -> None:
    x = start_at(80.0, num=4)
    made = ddpm_learned(lambda x, sigma: (gaussian(x, sigma), torch.zeros_like(x)), x, karras_sigmas(8), noise=noise_like(*x.shape))
    torch.testing.assert_close(made, sampled("ddpm", x, karras_sigmas(8)))


# What is asked of the network


CALLS = dict.fromkeys(SAMPLERS, 10) | {"heun": 19}


@pytest.mark.parametrize(("name", "calls"), CALLS.items())
def test_number_of_network_calls(name: str, calls: int) -> None:
    asked: list[Tensor] = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    sampled(name, start_at(80.0, num=3), karras_sigmas(10), denoise=counting)
    assert len(asked) == calls
    assert all(sigma.shape == (3,) and bool((sigma > 0).all()) for sigma in asked)


@pytest.mark.parametrize(("name", "draws"), [*((name, 9) for name in NOISY), ("ddim", 0)])
def test_noise_is_drawn_once_a_step_but_the_last(name: str, draws: int) -> None:
    drawn = []
    x = start_at(80.0, num=3)

    def noise() -> Tensor:
        drawn.append(1)
        return torch.zeros_like(x)

    solve(gaussian, x, karras_sigmas(10), sampler=name, noise=noise)
    assert len(drawn) == draws


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_one_denoising(name: str) -> None:
    x = start_at(80.0, num=2)
    torch.testing.assert_close(sampled(name, x, karras_sigmas(1)), gaussian(x, torch.full((2,), 80.0)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_volumes_stay_float32(name: str) -> None:
    x = 80 * torch.randn(2, 1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    made = sampled(name, x, karras_sigmas(6))
    assert made.dtype == torch.float32 and made.shape == x.shape
    torch.testing.assert_close(made.double(), sampled(name, x.double(), karras_sigmas(6)), atol=1e-4, rtol=1e-4)


# Bad input


@pytest.mark.parametrize(("name", "eta", "noise", "message"), [
    ("huen", None, True, "unknown sampler 'huen'; did you mean 'heun'"),
    ("heun", 0.5, True, "sampler 'heun' has no eta; those that have one: ddim, euler-a"),
    ("ddpm", 0.0, True, "sampler 'ddpm' has no eta"),
    ("ddim", 1.5, True, "eta 1.5 is outside 0 to 1"),
    ("euler-a", math.nan, True, "eta nan is outside"),
    ("ddpm", None, False, "sampler 'ddpm' adds fresh noise, and no source"),
    ("euler-a", None, False, "sampler 'euler-a' adds fresh noise"),
    ("dpmpp-2m-sde", None, False, "sampler 'dpmpp-2m-sde' adds fresh noise"),
    ("ddim", 0.1, False, "sampler 'ddim' adds fresh noise"),
])
def test_what_a_sampler_cannot_do_is_refused(name: str, eta: float | None, noise: bool, message: str) -> None:
    x = start_at(80.0, num=2)
    with pytest.raises(UsageError, match=message):
        solve(gaussian, x, karras_sigmas(3), sampler=name, eta=eta, noise=noise_like(*x.shape) if noise else None)


@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0], [1.0, -1.0]])
def test_levels_that_do_not_fall_are_refused(levels: list[float]) -> None:
    with pytest.raises(UsageError, match="must be at least two, finite, falling and not below 0"):
        solve(gaussian, start_at(1.0), torch.tensor(levels), sampler="euler")


def test_samplers_without_noise_need_no_source_of_it() -> None:
    for name in ORDERS:
        assert bool(solve(gaussian, start_at(80.0), karras_sigmas(3), sampler=name).isfinite().all())
