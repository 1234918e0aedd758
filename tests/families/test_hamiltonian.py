"""The posterior that follows the image: leapfrog steps keep volumes and can be undone, and the bound is exact and rises with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from synthorax.engine import Engine
from synthorax.families.autoencoders.hamiltonian import HamiltonianFlow, flow_divergence, leap, slope_of
from synthorax.families.autoencoders.vae_model import VaeModel
from synthorax.protocols import Batch, Condition
from synthorax.rng import Draws
from trainings import fresh_objective, smallest

CODE, PIXELS, SIGMA = 3, 16, 0.5
"""of a linear decoder, x = W z + noise, whose posterior and likelihood are known"""


def curved(latent: Tensor) -> Tensor:
    """A log-density with curvature everywhere, [B, 2] -> [B]."""
    return -(latent**4).sum(1) / 4 - latent[:, 0] * latent[:, 1] + latent[:, 1].sin()


def flowed(state: Tensor, *, leaps: int = 3, flow: HamiltonianFlow | None = None) -> Tensor:
    """Code and momentum beside each other, [4] -> [4]: leapfrog steps, or a whole flow."""
    latent, momentum = state[None, :2], state[None, 2:]
    slope, steps = slope_of(curved), torch.tensor([0.3, 0.2], dtype=torch.float64)
    if flow is not None:
        return torch.cat(flow(latent, momentum, slope, std=torch.ones_like(latent)), dim=1)[0]
    force = slope(latent)
    for _ in range(leaps):
        latent, momentum, force = leap(latent, momentum, force, slope, steps=steps)
    return torch.cat([latent, momentum], dim=1)[0]


def test_leapfrog_keeps_volumes_and_can_be_undone() -> None:
    start = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flowed, start)
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.tensor(1.0, dtype=torch.float64))
    turned = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    there = flowed(start)
    assert (there - start).abs().max() > 0.1
    torch.testing.assert_close(turned * flowed(turned * there), start)


def test_cooling_shrinks_volumes_as_the_first_momentum_widened_them() -> None:
    """det = prod of sqrt(beta_(k-1) / beta_k) times 1 / sqrt(beta_0) each number: together 1, and the bound needs no correction."""
    flow = HamiltonianFlow(2, leaps=3).double()
    assert flow.heats[0] > 1 and flow.heats[-1] == 1 and bool((flow.heats.diff() < 0).all())
    start = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda state: flowed(state, flow=flow), start)
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.tensor(1.0, dtype=torch.float64))


class Linear:
    """p(z) = N(0, I), p(x | z) = N(W z, sigma^2 I), an encoder that is wrong, and the exact bound of a flow in it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.w = 0.5 * torch.randn(PIXELS, CODE, generator=generator, dtype=torch.float64)
        self.image = torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.mean, self.std = torch.zeros(CODE, dtype=torch.float64), torch.full((CODE,), 0.4, dtype=torch.float64)

    def log_likelihood(self) -> float:
        """log N(x; 0, W W' + sigma^2 I)."""
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
        zeros = torch.zeros(PIXELS, dtype=torch.float64)
        return float(torch.distributions.MultivariateNormal(zeros, covariance).log_prob(self.image))

    def log_joint(self, latent: Tensor) -> Tensor:
        away = (self.image - latent @ self.w.T).square().sum(1) / SIGMA**2 + PIXELS * math.log(2 * math.pi * SIGMA**2)
        return -0.5 * (away + latent.square().sum(1) + CODE * math.log(2 * math.pi))

    def bound(self, flow: HamiltonianFlow | None) -> Tensor:
        """The bound without chance: the flow is affine in the normal numbers that it starts from, and the energy is quadratic."""
        entropy = self.std.log().sum() + 0.5 * CODE * math.log(2 * math.pi * math.e)
        numbers = torch.cat([torch.zeros(1, 2 * CODE, dtype=torch.float64), torch.eye(2 * CODE, dtype=torch.float64)])
        latent, gamma = self.mean + self.std * numbers[:, :CODE], numbers[:, CODE:]
        last, momentum = (latent, gamma) if flow is None else flow(latent, gamma, slope_of(self.log_joint),
                                                                std=self.std.expand_as(latent))
        moved = last[1:] - last[0]  # [2 Z, Z]: the latent's part of each normal number
        precision = self.w.T @ self.w / SIGMA**2 + torch.eye(CODE, dtype=torch.float64)
        joint = self.log_joint(last[:1])[0] - 0.5 * torch.einsum("ni,ij,nj->", moved, precision, moved)
        kinetic = 0.5 * (momentum[0].square().sum() + (momentum[1:] - momentum[0]).square().sum()) - 0.5 * CODE
        return joint + entropy - kinetic


def test_more_steps_give_a_tighter_bound_that_stays_below_the_likelihood() -> None:
    """In closed form, with steps as long as they are at the beginning."""
    model = Linear()
    with torch.no_grad():
        bounds = [float(model.bound(HamiltonianFlow(CODE, leaps=leaps).double() if leaps else None)) for leaps in (0, 1, 2, 4, 8)]
    assert bounds == sorted(bounds) and bounds[-1] < model.log_likelihood()
    assert model.log_likelihood() - bounds[-1] < 0.8 * (model.log_likelihood() - bounds[0])


def test_steps_and_heat_can_be_learned() -> None:
    """At their best few steps do what many short ones did, and the bound is a bound still."""
    model, flow = Linear(), HamiltonianFlow(CODE, leaps=2).double()
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.1)
    for _ in range(40):
        optimiser.zero_grad()
        lost = -model.bound(flow)
        lost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        learned, many = float(model.bound(flow)), float(model.bound(HamiltonianFlow(CODE, leaps=8).double()))
    assert many < learned < model.log_likelihood()


def test_the_bound_of_draws_is_the_exact_one() -> None:
    """Monte Carlo over the start, through the functions that training uses."""
    model, flow, size = Linear(), HamiltonianFlow(CODE, leaps=3).double(), 20_000
    generator = torch.Generator().manual_seed(1)
    noise, gamma = (torch.randn(size, CODE, generator=generator, dtype=torch.float64) for _ in range(2))
    first, log_variance = model.mean + model.std * noise, 2 * model.std.log().expand(size, -1)
    with torch.no_grad():
        last, momentum = flow(first, gamma, slope_of(model.log_joint), std=model.std.expand(size, -1))
        cost = flow_divergence(first=first, gamma=gamma, last=last, momentum=momentum, mean=model.mean.expand(size, -1),
                               log_variance=log_variance)
        zeros = torch.zeros(CODE, dtype=torch.float64)
        prior = torch.distributions.Normal(zeros, 1.0).log_prob(last).sum(1)
        draws, exact = model.log_joint(last) - prior - cost, float(model.bound(flow))
    error = float(draws.std()) / size**0.5
    assert draws.mean().item() == pytest.approx(exact, abs=4 * error)
    assert draws.mean().item() < model.log_likelihood() + 4 * error


def test_training_minimises_this_bound_and_trains_the_flow(engine: Engine) -> None:
    """The objective on a decoder that is put out of order to be linear: its mean is below log p(x), and better than without the flow."""
    size, scale = 256, 0.05
    images = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3)).expand(size, -1, -1, -1)
    weights = scale * torch.randn(256, 4, generator=torch.Generator().manual_seed(4))
    covariance = weights.double() @ weights.double().T + SIGMA**2 * torch.eye(256, dtype=torch.float64)
    zeros = torch.zeros(256, dtype=torch.float64)
    exact = float(torch.distributions.MultivariateNormal(zeros, covariance).log_prob(images[0].double().flatten()))
    told = {}
    for posterior in ("encoder", "hamiltonian"):
        objective = fresh_objective(smallest("vae", "model.parts=[]", f"objective.sigma={SIGMA}", "objective.free_bits=0.0",
                                             f"model.posterior={posterior}", "model.leaps=4")).train()
        model = objective.model
        assert isinstance(model, VaeModel)
        model.explain = lambda latent, condition=None: (latent @ weights.T).reshape(-1, 1, 16, 16)  # type: ignore[method-assign]
        condition = Condition.unstated(size, num_labels=2, num_sites=2)
        terms = objective("elbo", Batch(images=images, condition=condition, draws=Draws(range(size))))
        lost = terms["reconstruction"] + terms["divergence"]
        told[posterior] = -lost.detach()
        lost.mean().backward()  # type: ignore[no-untyped-call]
    assert model.flow is not None and model.flow.raw_step.grad is not None and bool(model.flow.raw_step.grad.any())
    assert model.flow.raw_heat.grad is not None and float(model.flow.sigma) == SIGMA
    assert all(bound.mean() < exact + 4 * bound.std() / size**0.5 for bound in told.values())


def test_an_image_is_rebuilt_alike_where_no_gradients_are_kept() -> None:
    objective = fresh_objective(smallest("vae", "model.posterior=hamiltonian", "model.likelihood=bernoulli")).eval()
    model = objective.model
    assert isinstance(model, VaeModel)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = model.rebuild(images, None, Draws([1, 2])).detach()
    with torch.inference_mode():
        torch.testing.assert_close(model.rebuild(images.clone(), None, Draws([1, 2])), made)
    alone = model.rebuild(images[1:], None, Draws([2])).detach()
    torch.testing.assert_close(alone[0], made[1], atol=1e-5, rtol=0)
