"""The posterior between adjacent levels and the variational bound, against torch's Gaussians and the entropy of known data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from synthorax.diffusion.noise import ddpm_sigmas
from synthorax.diffusion.variance import (
    GREY_LEVELS,
    gaussian_divergence,
    grey_level_log_likelihood,
    posterior_mean,
    prior_bits,
    variance_between,
    variance_bounds,
    vlb_terms,
)

INTENSITIES = torch.linspace(-1, 1, GREY_LEVELS, dtype=torch.float64)


def level(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The posterior


def test_the_posterior_is_bayes_rule() -> None:
    """q(x_s | x_t, x0) is proportional to N(x_s; x0, s^2) N(x_t; x_s, t^2 - s^2): add precisions."""
    s, t, image, x = 0.7, 1.9, 0.4, -1.3
    precision = 1 / s**2 + 1 / (t**2 - s**2)
    mean = posterior_mean(level(x), level(image), sigma=level(t), sigma_next=level(s))
    lower, _ = variance_bounds(level(t), level(s))
    assert lower.item() == pytest.approx(1 / precision)
    assert mean.item() == pytest.approx((image / s**2 + x / (t**2 - s**2)) / precision)


def test_the_bounds_are_the_betas_of_ddpm() -> None:
    """In a variance-preserving state both are multiplied by alpha_bar of the lower level."""
    sigmas = ddpm_sigmas("linear")
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    share = (1 - beta).cumprod(0)
    lower, upper = variance_bounds(sigmas[1:], sigmas[:-1])
    torch.testing.assert_close(upper * share[:-1], beta[1:])
    torch.testing.assert_close(lower * share[:-1], beta[1:] * (1 - share[:-1]) / (1 - share[1:]))  # Eq. 7, Ho et al. 2020
    assert bool((lower < upper).all())


def test_the_upper_bound_is_exact_for_data_of_unit_variance() -> None:
    s, t = 0.7, 1.9
    # Of x_s = x0 + s n and x_t = x_s + sqrt(t^2 - s^2) n': variance of x_s given x_t.
    exact = (1 + s**2) - (1 + s**2) ** 2 / (1 + t**2)
    assert variance_bounds(level(t), level(s))[1].item() == pytest.approx(exact)


def test_the_exponent_runs_from_the_lower_bound_to_the_upper() -> None:
    sigma, sigma_next = level(1.9, 0.3), level(0.7, 0.2)
    lower, upper = variance_bounds(sigma, sigma_next)
    shape = (2, 1, 2, 2)
    for part, expected in ((0.0, lower), (1.0, upper), (0.5, (lower * upper).sqrt())):
        between = variance_between(torch.full(shape, part, dtype=torch.float64), sigma=sigma, sigma_next=sigma_next)
        torch.testing.assert_close(between, expected.reshape(2, 1, 1, 1).expand(shape))


def test_a_fraction_in_half_precision_makes_a_variance_in_full() -> None:
    half = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    made = variance_between(half, sigma=torch.tensor([1.9]), sigma_next=torch.tensor([0.7]))
    torch.testing.assert_close(made, variance_between(half.float(), sigma=torch.tensor([1.9]), sigma_next=torch.tensor([0.7])))


def test_the_last_step_has_a_variance_near_that_of_the_paper() -> None:
    """The paper takes the lower bound of the second timestep for the first, where its own is 0."""
    sigmas = ddpm_sigmas("linear")
    last = variance_between(torch.zeros(1, 1, dtype=torch.float64), sigma=sigmas[:1], sigma_next=level(0.0)).item()
    papers = variance_bounds(sigmas[1:2], sigmas[:1])[0].item()
    assert 0.8 < last / papers < 1.25


# The terms of the bound


def test_divergence_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(100, generator=generator, dtype=torch.float64) for _ in range(2))
    one, other = (torch.rand(100, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    torch.testing.assert_close(gaussian_divergence(first, one, second, other),
                               kl_divergence(Normal(first, one.sqrt()), Normal(second, other.sqrt())))


@pytest.mark.parametrize("spread", [0.002, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, -0.33, 0.0, 0.999, 1.7])
def test_the_mass_of_all_grey_levels_is_one(mean: float, spread: float) -> None:
    logs = grey_level_log_likelihood(INTENSITIES, torch.full_like(INTENSITIES, mean), torch.full_like(INTENSITIES, spread**2))
    assert bool(logs.isfinite().all())
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_mass_of_a_grey_level_is_that_of_its_bin() -> None:
    inner = INTENSITIES[1:-1]
    normal = Normal(level(0.1), level(0.2))
    expected = normal.cdf(inner + 1 / 255) - normal.cdf(inner - 1 / 255)
    logs = grey_level_log_likelihood(inner, torch.full_like(inner, 0.1), torch.full_like(inner, 0.04))
    torch.testing.assert_close(logs.exp(), expected)


def test_far_from_the_mean_the_mass_is_small_but_its_logarithm_and_slope_are_finite() -> None:
    mean = torch.zeros(4, requires_grad=True)
    pixels = torch.tensor([-1.0, -0.5, 0.5, 1.0])  # 100 to 200 standard deviations away, in float32
    logs = grey_level_log_likelihood(pixels, mean, torch.full((4,), 1e-4))
    logs.sum().backward()
    assert mean.grad is not None and bool(mean.grad.isfinite().all()) and bool(logs.isfinite().all())
    nearest = pixels.abs() - 1 / 255
    torch.testing.assert_close(logs.detach(), -(nearest**2) / 2e-4, rtol=2e-2, atol=0)
    assert bool((mean.grad.sign() == pixels.sign()).all())


def test_a_term_is_the_mean_divergence_in_bits_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    image, x, estimate = (torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    fraction = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    sigma, sigma_next = level(0.5, 3.0, 40.0), level(0.4, 2.0, 35.0)
    lower, _ = variance_bounds(sigma, sigma_next)
    truth = Normal(posterior_mean(x, image, sigma=sigma, sigma_next=sigma_next), lower.sqrt().reshape(3, 1, 1, 1))
    model = Normal(posterior_mean(x, estimate, sigma=sigma, sigma_next=sigma_next),
                   variance_between(fraction, sigma=sigma, sigma_next=sigma_next).sqrt())
    expected = kl_divergence(truth, model).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(vlb_terms(image, x, sigma, estimate, fraction, sigma_next=sigma_next), expected)
    perfect = vlb_terms(image, x, sigma, image, torch.zeros_like(image), sigma_next=sigma_next)
    torch.testing.assert_close(perfect, torch.zeros(3, dtype=torch.float64))


def test_the_last_term_is_the_likelihood_of_the_grey_levels() -> None:
    image, estimate = INTENSITIES[::5].reshape(1, 1, 4, 13), INTENSITIES[::5].flip(0).reshape(1, 1, 4, 13) / 50
    sigma, zero, fraction = level(0.1), level(0.0), torch.full((1, 1, 4, 13), 0.7, dtype=torch.float64)
    variance = variance_between(fraction, sigma=sigma, sigma_next=zero)
    expected = -grey_level_log_likelihood(image, estimate, variance).mean() / math.log(2)
    assert vlb_terms(image, image + 1, sigma, estimate, fraction, sigma_next=zero).item() == pytest.approx(expected.item())


def test_the_default_step_is_that_of_the_linear_schedule() -> None:
    image = torch.zeros(3, 1, 2, 2)
    sigmas = ddpm_sigmas("linear")[torch.tensor([0, 1, 700])].float()
    below = torch.cat([torch.zeros(1), ddpm_sigmas("linear")[torch.tensor([0, 699])].float()])
    estimate, fraction = image + 0.1, image + 0.3
    torch.testing.assert_close(vlb_terms(image, image, sigmas, estimate, fraction),
                               vlb_terms(image, image, sigmas, estimate, fraction, sigma_next=below))


def test_only_the_variance_learns_when_the_estimate_is_detached() -> None:
    image = torch.zeros(2, 1, 2, 2)
    sigma, sigma_next = torch.tensor([0.5, 0.01]), torch.tensor([0.4, 0.0])
    estimate, fraction = torch.full_like(image, 3.0, requires_grad=True), torch.full_like(image, 0.5, requires_grad=True)
    vlb_terms(image, image, sigma, estimate.detach(), fraction, sigma_next=sigma_next).sum().backward()
    assert estimate.grad is None and fraction.grad is not None and bool((fraction.grad < 0).all())  # an error asks for more variance
    vlb_terms(image, image, sigma, estimate, fraction, sigma_next=sigma_next).sum().backward()
    assert estimate.grad is not None and bool((estimate.grad > 0).all())  # the estimate is above the image


def test_the_bound_of_the_ideal_model_is_the_entropy_of_its_data() -> None:
    """For Gaussian data the reverse steps are Gaussian, so that the bound is tight: the terms of all levels sum to the entropy."""
    spread = 0.25
    sigma = ddpm_sigmas("linear")
    sigma_next = torch.cat([level(0.0), sigma[:-1]])
    lower, upper = variance_bounds(sigma, sigma_next)
    lower = torch.where(sigma_next > 0, lower, upper / 2)
    exact = (spread**2 + sigma_next**2) * (sigma**2 - sigma_next**2) / (spread**2 + sigma**2)
    fraction = ((exact / lower).log() / (upper / lower).log()).clamp(0, 1)[:, None]
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(1000, 400, generator=generator, dtype=torch.float64) for _ in range(2))  # [levels, images of one pixel]
    image = spread * image
    x = image + sigma[:, None] * noise
    estimate = (spread**2 / (spread**2 + sigma**2))[:, None] * x

    def bits(*, wrong: float) -> float:
        terms = vlb_terms(image, x, sigma, estimate, (fraction + wrong).expand_as(x), sigma_next=sigma_next)
        return (terms.sum() + prior_bits(image, sigma_max=sigma[-1].item()).mean()).item()

    entropy = math.log2(spread * math.sqrt(2 * math.pi * math.e)) + math.log2((GREY_LEVELS - 1) / 2)
    assert bits(wrong=0.0) == pytest.approx(entropy, abs=0.05)
    assert bits(wrong=0.5) > entropy + 0.1


def test_what_sampling_starts_from_costs_little() -> None:
    image = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    expected = kl_divergence(Normal(0.5, 157.0), Normal(0.0, math.sqrt(1 + 157.0**2))).item() / math.log(2)
    torch.testing.assert_close(prior_bits(image, sigma_max=157.0), torch.full((2,), expected, dtype=torch.float64))
    assert 0 < expected < 1e-4
