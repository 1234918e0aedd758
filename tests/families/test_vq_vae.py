"""VQ-VAE and VQ-VAE-2: codes that rebuild images, a prior that is causal and learns what was planted, and whose turn it is to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.engine import Engine
from synthorax.families.autoencoders.vq_vae import Priors, VqVaeConfig, VqVaeModel, VqVaeObjective
from synthorax.nets.quantizer import Quantizer
from synthorax.nets.token_prior import TokenPrior
from synthorax.nets.vq_pyramid import PyramidConfig, VqPyramid
from synthorax.protocols import Batch, Condition, ModelSpec, as_model
from synthorax.rng import Draws
from trainings import FINDINGS, fresh_objective, randomised, smallest, train_here

SIDE, CODES = 4, 5


def prior(*, below: int = 0, seed: int = 0) -> TokenPrior:
    """A prior whose every weight is random and whose logits are far apart."""
    torch.manual_seed(seed)
    made = TokenPrior(num_codes=CODES, side=SIDE, width=8, depth=2, heads=2, below=below)
    randomised(made, seed=seed)
    with torch.no_grad():
        made.last.weight.mul_(10.0)
    return made.eval()


def random_latents(side: int = SIDE, *, seed: int = 0, size: int = 1) -> Tensor:
    return torch.randint(CODES, (size, side, side), generator=torch.Generator().manual_seed(seed))


def test_a_code_depends_only_on_the_codes_before_it() -> None:
    network, codes, asked = prior(below=CODES), random_latents(), torch.linspace(-1, 1, 8)[None]
    coarse = random_latents(SIDE // 2)
    with torch.no_grad():
        told = network(codes, asked, coarse).flatten(2)
        for place in range(SIDE**2):
            changed = codes.flatten(1).clone()
            changed[0, place] = (changed[0, place] + 1) % CODES
            now = network(changed.reshape_as(codes), asked, coarse).flatten(2)
            torch.testing.assert_close(now[..., : place + 1], told[..., : place + 1], msg="what comes later, or is itself, says nothing")
            assert place == SIDE**2 - 1 or not torch.allclose(now[..., place + 1], told[...,
                                                                                        place + 1]), "the next one is conditioned on it"
        elsewhere = network(codes, asked, (coarse + 1) % CODES).flatten(2)
        assert not torch.isclose(elsewhere, told).all(1).any(), "coarse codes are used everywhere"
        assert not torch.isclose(network(codes, -asked, coarse).flatten(2), told).all(1).any(), "and so is the request"


@pytest.mark.parametrize("below", [0, CODES])
def test_drawing_one_by_one_agrees_with_the_whole_grid(below: int) -> None:
    """What is kept of earlier positions gives the codes that the whole network, asked again and again, would give."""
    network, asked = prior(below=below), torch.linspace(-1, 1, 24).reshape(3, 8)
    coarse = random_latents(SIDE // 2, size=3) if below else None
    uniform = Draws([1, 2, 3]).uniform(SIDE**2)
    drawn = network.draw(uniform, asked, coarse)
    with torch.no_grad():
        reach = network(drawn, asked, coarse).flatten(2).double().softmax(1).cumsum(1)  # [3, K, N]
    assert torch.equal(drawn.flatten(1), (uniform[:, None].double() >= reach).sum(1))
    assert drawn.min() >= 0 and drawn.max() < CODES and len(drawn.unique()) > 2


def planted(labels: Tensor, *, seed: int) -> list[Tensor]:
    """Coarse codes that say the label, 2 or 0 or 1 by chance, and are alike along a row; fine codes one above the coarse one beneath."""
    draws = Draws(range(seed, seed + len(labels)))
    rows = (draws.uniform(2, 1) < 0.25).long().expand(-1, -1, 2)  # 1 in a quarter of the rows
    coarse = torch.where(labels[:, None, None] == 1, 2, rows)
    return [coarse, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2) + 1]


@pytest.fixture(scope="module")
def trained_prior() -> Priors:
    """A prior that has learned what is planted."""
    torch.manual_seed(0)
    config = VqVaeConfig(image_size=16, parts=("labels",), codes=4, prior_width=16, prior_depth=1, prior_heads=2)
    spec = ModelSpec(family="vq-vae", image_size=16, findings=FINDINGS[:1], conditions=("labels",))
    priors = Priors(config, spec, sides=(2, 4))
    optimiser = torch.optim.Adam(priors.parameters(), lr=1e-2)
    for step in range(150):
        labels = (torch.arange(32) % 2).float()
        optimiser.zero_grad()
        condition = Condition(labels=labels[:, None], attributes=torch.full((32, 5), torch.nan))
        torch.stack(priors.negative_log_likelihood(planted(labels, seed=32 * step), condition)).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return priors.eval()


def drawn_for(priors: Priors, label: float, *, size: int = 200) -> list[Tensor]:
    condition = Condition(labels=torch.full((size, 1), label), attributes=torch.full((size, 5), torch.nan))
    with torch.inference_mode():
        return priors.draw(condition, Draws(range(size)))


def test_the_prior_learns_what_was_planted_and_follows_the_label(trained_prior: Priors) -> None:
    coarse, fine = drawn_for(trained_prior, 1.0)
    assert (coarse == 2).float().mean() > 0.97 and (fine == 3).float().mean() > 0.97
    coarse, fine = drawn_for(trained_prior, 0.0)
    assert (coarse == 2).float().mean() < 0.03
    assert (coarse[:, :, 0] == coarse[:, :, 1]).float().mean() > 0.95, "a row is alike"
    assert (coarse[:, :, 0] == 1).float().mean().item() == pytest.approx(0.25, abs=0.08)
    assert (coarse[:, 0] == coarse[:, 1]).float().mean().item() == pytest.approx(0.625, abs=0.1), "rows know nothing of one another"
    assert (fine == coarse.repeat_interleave(2, 1).repeat_interleave(2, 2) + 1).float().mean() > 0.95, "fine codes follow the coarse ones"


def test_its_negative_log_likelihood_is_the_planted_entropy(trained_prior: Priors) -> None:
    labels = torch.zeros(400)
    condition = Condition(labels=labels[:, None], attributes=torch.full((400, 5), torch.nan))
    with torch.no_grad():
        coarse, fine = trained_prior.negative_log_likelihood(planted(labels, seed=10**6), condition)
    entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())  # nats of a row, which has two codes
    assert coarse.mean().item() == pytest.approx(float(entropy) / 2, abs=0.04) and fine.mean() < 0.05


# ---- the autoencoder


def rebuilt_error(levels: int, *, gradient: bool = False) -> float:
    """Part of the variance that is lost after some steps, on images whose quarters have 4 levels and whose sixteenths have 4 more."""
    torch.manual_seed(0)
    shape = PyramidConfig(image_size=16, levels=levels, channels=8, multipliers=(1, 2), patch=2, blocks=1, code_channels=4, codes=4,
                          gradient=gradient)
    network = VqPyramid(shape)
    draws = Draws(range(24))
    quarters, parts = (F.interpolate((draws.uniform(1, side, side) * 4).floor(), size=16) for side in (2, 4))
    images = (4 * quarters + parts) / 7.5 - 1
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        reads = network.read(images, learn=True)
        lost = (network.image([read.codes for read in reads]) - images).square().mean()
        for level, read in enumerate(reads):
            lost = lost + 0.25 * (read.latents - read.codes.detach()).square().mean()
            if gradient:
                lost = lost + network.quantizer(level).distance(read.latents).mean()
        lost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        return float((network.decode(network.encode(images)) - images).square().mean() / images.var())


def test_two_levels_rebuild_better_than_one() -> None:
    one, two = rebuilt_error(1), rebuilt_error(2)
    assert two < 0.8 * one < 0.2, (one, two)


def test_codes_that_move_by_gradients_learn_too() -> None:
    assert rebuilt_error(1, gradient=True) < 0.3


def test_gradients_of_the_distance_move_codes_alone() -> None:
    quantizer = Quantizer(num_codes=2, channels=2, gradient=True)
    quantizer.codes.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
    latents = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    quantizer.distance(latents).sum().backward()  # type: ignore[no-untyped-call]
    assert latents.grad is None and quantizer.moved is not None
    torch.testing.assert_close(quantizer.moved.grad, torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
    quantizer.counts.fill_(1.0)
    places = quantizer.places.detach().clone()
    quantizer.learn(latents)
    torch.testing.assert_close(quantizer.places, places, msg="what is in use is left to the gradients")
    with torch.no_grad():
        quantizer.moved.fill_(3.0)
    quantizer.counts.copy_(torch.tensor([0.0, 1.0]))
    quantizer.learn(latents)
    torch.testing.assert_close(quantizer.places[0], latents.detach().flatten(), msg="a dead code comes back where a vector is")


def test_codes_are_numbers_of_their_grids_and_rebuild_what_training_saw() -> None:
    model = fresh_objective(smallest("vq-vae")).model.eval()
    assert isinstance(model, VqVaeModel)
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    coarse, fine = model.encode(images)
    assert coarse.shape == (3, 4, 4) and fine.shape == (3, 8, 8)
    reads = model.autoencoder.read(images)
    torch.testing.assert_close(model.decode([coarse, fine]), model.autoencoder.image([read.codes for read in reads]).clamp(-1, 1))
    assert set(model.diagnostics()) == {"codes_in_use_1", "codes_in_use_2"} and 1 <= model.diagnostics()["codes_in_use_1"] <= 8
    single = fresh_objective(smallest("vq-vae", "model.levels=1")).model
    assert isinstance(single, VqVaeModel) and [grid.shape for grid in single.encode(images)] == [(3, 8, 8)]
    assert as_model(single.eval()).sample(None, [1, 2]).shape == (2, 1, 16, 16)


# ---- training


def batch_of(size: int) -> Batch:
    images = torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images=images, condition=Condition.unstated(size, num_labels=2, num_sites=2), draws=Draws(range(size)))


def test_first_the_autoencoder_then_the_prior() -> None:
    objective = fresh_objective(smallest("vq-vae", "objective.autoencoder_steps=5")).train()
    assert isinstance(objective, VqVaeObjective)
    turns = []
    for _ in range(8):
        turn = ""
        for phase in objective.phases:
            for _ in range(objective.repeats(phase)):
                objective(phase.name, batch_of(2))
                turn += phase.name[0]
        turns.append(turn)
    assert turns == ["a", "a", "a", "ap", "ap", "p", "p", "p"]
    together = fresh_objective(smallest("vq-vae"))
    assert [together.repeats(phase) for phase in together.phases] == [1, 1]


def test_the_prior_does_not_train_the_autoencoder(engine: Engine) -> None:
    objective: Any = fresh_objective(smallest("vq-vae")).train()
    before = {name: value.clone() for name, value in objective.model.autoencoder.state_dict().items()}
    torch.stack(list(objective("prior", batch_of(4)).values())).sum().backward()
    assert all(weight.grad is None for weight in objective.model.autoencoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in objective.model.autoencoder.state_dict().items())


def test_a_training_says_how_many_codes_are_in_use(tmp_path: Any) -> None:
    outcome = train_here(smallest("vq-vae", "train.steps=4"), tmp_path)
    assert isinstance(outcome.model, VqVaeModel) and outcome.model.diagnostics()["codes_in_use_2"] > 1
