"""The soft-introspective autoencoder: its bounds in closed form, and who pushes where."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from synthorax.families.autoencoders.soft_intro_vae import SoftIntroVaeObjective
from synthorax.families.autoencoders.vae_model import VaeModel
from synthorax.protocols import Batch, Condition
from synthorax.rng import Draws
from trainings import fresh_objective, smallest

PLAIN = ("model.parts=[]", "objective.beta=0.5", "objective.beta_made=10.0", "objective.alpha=2.0", "objective.reconstruction=1.0")


def players(*overrides: str) -> tuple[SoftIntroVaeObjective, VaeModel]:
    objective = fresh_objective(smallest("soft-intro-vae", *PLAIN, *overrides)).train()
    assert isinstance(objective, SoftIntroVaeObjective) and isinstance(objective.model, VaeModel)
    return objective, objective.model


def batch(size: int = 4) -> Batch:
    images = torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images=images, condition=Condition.unstated(size, num_labels=2, num_sites=2), draws=Draws(range(size)))


def made_divergence(model: VaeModel) -> Tensor:
    """Of images of the prior's latents, [64]."""
    with torch.no_grad():
        latent = model.prior.sample(Draws(range(64)))
        raw = model.posterior(model.explain(latent))
        return model.prior.divergence(raw, latent).sum(1)


def test_both_bounds_in_closed_form() -> None:
    """An encoder that puts every image at one place m, and a decoder that makes one grey image: all errors and divergences are known."""
    objective, model = players()
    place, grey = 0.8, 0.25
    with torch.no_grad():
        model.encoder.last.weight.zero_()
        model.encoder.last.bias.zero_()
        model.encoder.last.bias[:4] = place
        model.decoder.last.weight.zero_()
        assert model.decoder.last.bias is not None
        model.decoder.last.bias.fill_(grey)
    images, pixels, divergence = batch().images, 256, 4 * place**2 / 2
    error = (images - grey).square().sum((1, 2, 3)) / pixels
    encoder, decoder = objective("encode", batch()), objective("decode", batch())
    torch.testing.assert_close(encoder["reconstruction"], error)
    torch.testing.assert_close(encoder["divergence"], torch.full((4,), 0.5 * divergence / pixels))
    pushed = math.exp(-2.0 * 10.0 * divergence / pixels) / 2.0  # a made image is rebuilt without error
    torch.testing.assert_close(encoder["pushed_off"], torch.full((4,), pushed))
    torch.testing.assert_close(decoder, {"reconstruction": error, "accepted": torch.full((4,), 0.5 * divergence / pixels)})


@pytest.mark.parametrize(("phase", "term", "player", "further"), [("encode", "pushed_off", "encoder", True),
                                                                  ("decode", "accepted", "decoder", False)])
def test_the_encoder_pushes_generated_images_off_and_the_decoder_pulls_them_back(phase: str, term: str, player: str, further: bool) -> None:
    objective, model = players()
    if not further:
        with torch.no_grad():
            model.encoder.last.weight.mul_(5.0)  # images that the encoder tells apart
    before = made_divergence(model)
    optimiser = torch.optim.Adam(objective.players[player].parameters(), lr=3e-3)
    for _ in range(6):
        objective.zero_grad()
        objective(phase, batch(8))[term].mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert bool(made_divergence(model).mean() > before.mean()) == further


def test_each_player_gets_the_gradients_of_its_own_phase_from_real_and_generated_images() -> None:
    objective, model = players()
    objective("encode", batch())["pushed_off"].sum().backward()  # type: ignore[no-untyped-call]
    assert model.encoder.last.weight.grad is not None and bool(model.encoder.last.weight.grad.any())
    objective.zero_grad()
    terms = objective("decode", batch())
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert model.decoder.first.weight.grad is not None and bool(model.decoder.first.weight.grad.any())
