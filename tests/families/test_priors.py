"""Priors of latents and likelihoods of images against Monte Carlo, closed forms and torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as laws

from synthorax.errors import UsageError
from synthorax.families.autoencoders.geometric import Geometric, log_volume, reach, riemannian_latents
from synthorax.families.autoencoders.priors import PRIORS, Mixture, build_prior
from synthorax.losses.divergence import free_bits, kl_mixture_draw, kl_standard_normal
from synthorax.losses.likelihood import LOWEST_LOG_VARIANCE, bounded, expected_image, negative_log_likelihood, outputs_of
from synthorax.rng import Draws

MANY = 20_000
Z = 3


def prior_of(name: str) -> object:
    torch.manual_seed(0)
    return build_prior(name, latent_size=Z, components=4, concentration=0.7, remembered=5)


def log_densities(name: str, prior: object, raw: Tensor, latents: Tensor) -> Tensor:
    """log q - log p of latents under torch's own distributions, [N]."""
    if name == "dirichlet":
        posterior = laws.Dirichlet(torch.nn.functional.softplus(raw) + 0.01)
        return posterior.log_prob(latents) - laws.Dirichlet(torch.full((Z,), 0.7)).log_prob(latents)
    place, spread = raw.chunk(2, dim=1)
    if name == "cauchy":
        return (laws.Cauchy(place, spread.exp()).log_prob(latents) - laws.Cauchy(0.0, 0.7).log_prob(latents)).sum(1)
    posterior = laws.Normal(place, (0.5 * spread).exp()).log_prob(latents).sum(1)
    if name in ("normal", "geometric"):
        return posterior - laws.Normal(0.0, 1.0).log_prob(latents).sum(1)
    assert isinstance(prior, Mixture)
    parts = laws.Independent(laws.Normal(prior.means, (0.5 * prior.log_variances).exp()), 1)
    return posterior - laws.MixtureSameFamily(laws.Categorical(logits=prior.logits), parts).log_prob(latents)


@pytest.mark.parametrize("name", PRIORS)
def test_divergence_is_what_monte_carlo_finds(name: str) -> None:
    """The mean of log q - log p over latents that the prior's own `draw` makes: it checks the draws and the formula against each other."""
    prior = prior_of(name)
    one = torch.tensor([[0.8, -0.5, 2.0, -0.7, 0.3, 0.1]])[:, :prior.numbers]  # type: ignore[attr-defined]
    raw = one.expand(MANY, -1)
    with torch.no_grad():
        latents = prior.draw(raw, Draws(range(MANY)))  # type: ignore[attr-defined]
        found = log_densities(name, prior, raw, latents).double()
        told = prior.divergence(raw, latents).sum(1).double().mean().item()  # type: ignore[attr-defined]
    error = found.std().item() / math.sqrt(MANY)
    assert told > 0.1 and told == pytest.approx(found.mean().item(), abs=4 * error + 1e-4)


@pytest.mark.parametrize("name", PRIORS)
def test_the_posterior_can_be_the_prior(name: str) -> None:
    if name == "mixture":
        pytest.skip("one Gaussian is no mixture of four; its case of one component is tested below")
    prior = prior_of(name)
    even = {"normal": torch.zeros(1, 2 * Z), "geometric": torch.zeros(1, 2 * Z),
            "cauchy": torch.tensor([[0.0] * Z + [math.log(0.7)] * Z]),
            "dirichlet": torch.full((1, Z), math.log(math.expm1(0.69)))}[name]  # softplus of which, plus 0.01, is 0.7
    divergence = prior.divergence(even, prior.centre(even))  # type: ignore[attr-defined]
    torch.testing.assert_close(divergence, torch.zeros_like(divergence), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_latents_of_the_prior_follow_its_law(name: str) -> None:
    prior = prior_of(name)
    with torch.no_grad():
        latents = prior.sample(Draws(range(4000))).double()  # type: ignore[attr-defined]
    assert latents.shape == (4000, Z)
    first = latents[:, 0].numpy()
    if name == "mixture":
        assert isinstance(prior, Mixture)
        torch.testing.assert_close(latents.mean(0), prior.means.detach().double().mean(0), atol=0.1, rtol=0)
        return
    law = {"normal": stats.norm(), "geometric": stats.norm(), "cauchy": stats.cauchy(scale=0.7), "dirichlet": stats.beta(0.7, 1.4)}[name]
    assert stats.kstest(first, law.cdf).pvalue > 1e-3
    if name == "dirichlet":
        torch.testing.assert_close(latents.sum(1), torch.ones(4000, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_reach_what_the_encoder_says(name: str) -> None:
    prior = prior_of(name)
    raw = torch.full((2, prior.numbers), 0.3, requires_grad=True)  # type: ignore[attr-defined]
    prior.decoder_input(prior.draw(raw, Draws([0, 1]))).square().sum().backward()  # type: ignore[attr-defined]
    assert raw.grad is not None and bool(raw.grad.isfinite().all()) and bool((raw.grad != 0).all())


def test_gamma_numbers_follow_their_law_and_their_own_seed() -> None:
    shape = torch.full((4000, 1), 0.4)
    drawn = Draws(range(4000)).gamma(shape)
    assert stats.kstest(drawn[:, 0].numpy(), stats.gamma(0.4).cdf).pvalue > 1e-3
    assert torch.equal(Draws([7]).gamma(shape[:1])[0], drawn[7])
    wide = torch.full((MANY, 1), 2.0, requires_grad=True)
    Draws(range(MANY)).gamma(wide).mean().backward()
    assert wide.grad is not None and wide.grad.sum().item() == pytest.approx(1.0, abs=0.05), "the mean of a gamma number is its shape"


def test_a_mixture_of_one_is_the_closed_form() -> None:
    """Monte Carlo log q - log p with one standard normal component has the mean of the closed form."""
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[-0.5, 0.4]])
    latents = mean + (0.5 * log_variance).exp() * Draws(range(MANY)).normal(2)
    found = kl_mixture_draw(latents, mean.expand_as(latents), log_variance.expand_as(latents), means=torch.zeros(1, 2),
                            log_variances=torch.zeros(1, 2), log_weights=torch.zeros(1))
    expected = kl_standard_normal(mean, log_variance).item()
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / math.sqrt(MANY))


def test_a_mixture_may_hold_a_component_twice() -> None:
    mean, log_variance, latent = torch.randn(5, 2), torch.randn(5, 2), torch.randn(5, 2)
    once = kl_mixture_draw(latent, mean, log_variance, means=torch.ones(1, 2), log_variances=torch.ones(1, 2), log_weights=torch.zeros(1))
    twice = kl_mixture_draw(latent, mean, log_variance, means=torch.ones(2, 2), log_variances=torch.ones(2, 2),
                            log_weights=torch.tensor([0.3, 0.7]).log())
    torch.testing.assert_close(once, twice)


def test_free_bits_cost_the_same_and_press_nothing_below() -> None:
    divergence = torch.tensor([[0.1, 3.0], [0.3, 0.0]], requires_grad=True)
    free = free_bits(divergence, nats=0.5, over_batch=True)
    assert free.mean().item() == pytest.approx(0.5 + 1.5), "the first number is free on average, the second is not"
    free.sum().backward()
    assert divergence.grad is not None and divergence.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    alone = free_bits(divergence.detach(), nats=0.5, over_batch=False)
    assert alone.tolist() == pytest.approx([0.5 + 3.0, 0.5 + 0.5])
    assert free_bits(divergence.detach(), nats=0.0, over_batch=True).tolist() == pytest.approx([3.1, 0.3])


def test_likelihoods_are_those_of_torch() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 4, 4) * 2 - 1
    mean, spread = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)

    def close(found: Tensor, log_density: Tensor) -> None:
        torch.testing.assert_close(found, -log_density.flatten(1).sum(1), rtol=1e-4, atol=1e-4)

    close(negative_log_likelihood(mean, images, likelihood="gaussian", sigma=0.3), laws.Normal(mean, 0.3).log_prob(images))
    learned = torch.cat([mean, spread], dim=1)
    close(negative_log_likelihood(learned, images, likelihood="learned-gaussian", sigma=0.0),
          laws.Normal(mean, (0.5 * bounded(spread)).exp()).log_prob(images))
    black_or_white = images.sign()
    close(negative_log_likelihood(mean, black_or_white, likelihood="bernoulli", sigma=0.0),
          laws.Bernoulli(logits=mean).log_prob((black_or_white + 1) / 2))
    close(negative_log_likelihood(mean, images, likelihood="mse", sigma=0.0), -(mean - images).square())
    assert [outputs_of(name) for name in ("gaussian", "learned-gaussian")] == [1, 2]


def test_a_learned_variance_has_a_floor_and_finds_the_noise() -> None:
    assert bounded(torch.tensor(-100.0)).item() == pytest.approx(LOWEST_LOG_VARIANCE)
    images = 0.2 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    costs = {std: negative_log_likelihood(torch.stack([torch.zeros(1, 64, 64), torch.full((1, 64, 64), 2 * math.log(std))], dim=1), images,
                                 likelihood="learned-gaussian", sigma=0.0).item() for std in (0.1, 0.2, 0.4)}
    assert min(costs, key=lambda std: costs[std]) == 0.2


def test_the_expected_image_is_in_range() -> None:
    raw = torch.tensor([-30.0, 0.0, 30.0]).reshape(1, 1, 1, 3)
    for likelihood in ("mse", "gaussian", "bernoulli"):
        torch.testing.assert_close(expected_image(raw, likelihood=likelihood).flatten(), torch.tensor([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize(("name", "latent_size", "concentration"), [("dirichlet", 1, 1.0), ("dirichlet", 4, 0.0), ("cauchy", 4, 0.0)])
def test_priors_that_cannot_be_are_refused(name: str, latent_size: int, concentration: float) -> None:
    with pytest.raises(UsageError, match=f"prior={name}"):
        build_prior(name, latent_size=latent_size, components=1, concentration=concentration, remembered=1)


def test_the_slope_of_the_volume_is_its_gradient() -> None:
    means, precisions = torch.randn(6, 3).double(), torch.rand(6, 3).double() + 0.5
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    volume, slope = log_volume(z, means, precisions, width=torch.tensor(2.0).double())
    torch.testing.assert_close(torch.autograd.grad(volume.sum(), z)[0], slope.detach())


def test_latents_have_the_density_of_the_volume() -> None:
    """In one dimension, where the density can be added up: two images apart, and a hole between them."""
    means, log_variances = torch.tensor([[-2.0], [2.0]]), torch.tensor([[-2.0], [-2.0]])
    grid = torch.linspace(-8, 8, 4001)[:, None]
    width = torch.tensor(1.0)
    volume = log_volume(grid, means, (-log_variances).exp(), width=width)[0].exp()
    cumulated = (volume.cumsum(0) / volume.sum()).numpy()
    drawn = riemannian_latents(means, log_variances, Draws(range(600)), rounds=150, leap=1.5, width=width)[:, 0].numpy()
    assert stats.kstest(drawn, lambda x: np.interp(x, grid[:, 0].numpy(), cumulated)).pvalue > 1e-3
    assert abs((drawn > 0).mean() - 0.5) < 0.1


def test_the_last_posteriors_are_remembered_and_sampled_around() -> None:
    prior = Geometric(Z, remembered=3)
    for value in (50.0, 1.0, 2.0, 3.0):
        prior.remember(torch.cat([torch.full((1, Z), value), torch.full((1, Z), -4.0)], dim=1))
    assert sorted(prior.means[:, 0].tolist()) == [1.0, 2.0, 3.0]
    latents = prior.sample(Draws(range(50)))
    assert latents.mean().item() == pytest.approx(2.0, abs=0.5) and latents.std(0).min() > 0.05
    assert (latents - 2).abs().max() < 5, "what was forgotten, at 50, draws no more"
    torch.testing.assert_close(prior.sample(Draws([7]))[0], latents[7], atol=1e-4, rtol=0)
    assert reach(prior.means, prior.log_variances).item() == pytest.approx(Z * math.exp(4.0), rel=1e-3)
