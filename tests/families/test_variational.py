"""Variational autoencoders and their adversarial kin: what they refuse, who teaches whom, and that they learn to rebuild images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import synthorax as sx
from synthorax.data.phantom import write_phantom_dataset
from synthorax.engine import Engine
from synthorax.errors import SynthoraxError, UsageError
from synthorax.families.autoencoders.vae import VaeObjective
from synthorax.families.autoencoders.vae_gan import VaeGanObjective
from synthorax.families.autoencoders.vae_model import VaeModel
from synthorax.protocols import Batch, Condition, Objective, as_model
from synthorax.rng import Draws
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.training.feed import Feed
from trainings import FINDINGS, MASKS, fresh_objective, smallest, toy_images

RECIPES = ("vae-64", "cvae-64", "gmvae-64", "geometric-vae-64", "progressive-vae-64", "aae-64", "vae-gan-64", "alpha-gan-64",
           "hamiltonian-vae-64", "soft-intro-vae-64", "vq-vae-2-64")
PRIORS = ("normal", "mixture", "dirichlet", "cauchy", "geometric")


def batch_of(objective: Objective, engine: Engine, *, size: int = 4) -> Batch:
    spec = as_model(objective.model).spec
    return Feed(toy_images(spec.image_size), spec=spec, batch_size=size, balance=0.0, augment=False, seed=0, engine=engine).batch(0)


def steps(objective: Objective, batch: Batch, *, number: int) -> list[float]:
    """Some steps of Adam on one batch; the first term of every step."""
    optimiser = torch.optim.Adam(objective.players["model"].parameters(), lr=3e-3)
    told = []
    for _ in range(number):
        optimiser.zero_grad()
        terms = objective(objective.phases[0].name, batch)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimiser.step()
        told.append(next(iter(terms.values())).mean().item())
    return told


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_of_their_size(name: str) -> None:
    recipe = load_recipe(name)
    model = build_objective(recipe, findings=FINDINGS, masks=MASKS).model
    assert recipe.model.image_size == 64 and ("mask" not in recipe.model.parts)
    assert 5e5 < sum(weight.numel() for weight in model.parameters()) < 2e7
    assert as_model(model.eval()).sample(None, [1]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_learns_to_rebuild_images(prior: str, engine: Engine) -> None:
    objective = fresh_objective(smallest("vae", f"model.prior={prior}", "model.components=3", "model.likelihood=mse",
                                         "objective.beta=0.01"))
    told = steps(objective.train(), batch_of(objective, engine), number=40)
    assert all(math.isfinite(value) for value in told) and told[-1] < 0.8 * told[0]


@pytest.mark.parametrize("likelihood", ["gaussian", "learned-gaussian", "bernoulli"])
def test_every_likelihood_learns(likelihood: str, engine: Engine) -> None:
    objective = fresh_objective(smallest("vae", f"model.likelihood={likelihood}"))
    told = steps(objective.train(), batch_of(objective, engine), number=20)
    assert told[-1] < told[0]
    assert as_model(objective.model).sample(None, [1]).abs().max() <= 1


def test_the_bound_is_below_the_likelihood_of_an_exact_model() -> None:
    """With a posterior that is the prior and a decoder that ignores the latent, the bound is the log-likelihood itself."""
    objective = fresh_objective(smallest("vae", "model.parts=[]", "objective.sigma=0.5", "objective.free_bits=0.0")).eval()
    model = objective.model
    assert isinstance(model, VaeModel)
    with torch.no_grad():
        for layer in (model.encoder.last, model.decoder.last):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    condition = Condition.unstated(2, num_labels=2, num_sites=2)
    losses = objective("elbo", Batch(images=images, condition=condition, draws=Draws([0, 1])))
    exact = torch.distributions.Normal(0.0, 0.5).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(losses["reconstruction"], -exact, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(losses["divergence"], torch.zeros(2))


def test_beta_weighs_the_divergence_and_warms_up(engine: Engine) -> None:
    def divergence(*overrides: str) -> Tensor:
        objective = fresh_objective(smallest("vae", "objective.free_bits=0.0", *overrides)).eval()
        return objective("elbo", batch_of(objective, engine))["divergence"]

    torch.testing.assert_close(divergence("objective.beta=4.0"), 4 * divergence("objective.beta=1.0"))
    warming = fresh_objective(smallest("vae", "objective.free_bits=0.0", "objective.beta_warmup=4")).train()
    batches = [batch_of(warming, engine) for _ in range(6)]
    told = [warming("elbo", batch)["divergence"].detach() for batch in batches]
    for step, part in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        torch.testing.assert_close(told[step], part * told[5])


def test_half_of_an_image_is_predictable_from_its_mask(engine: Engine) -> None:
    objective = fresh_objective(smallest("vae"))
    model = objective.model
    assert isinstance(model, VaeModel) and "mask" in model.spec.conditions
    mask = torch.zeros(1, 2, 16, 16)
    nothing = Condition.unstated(1, num_labels=2, num_sites=2)
    here = Condition(labels=nothing.labels, attributes=nothing.attributes, mask=mask.index_fill(3, torch.arange(8), 1.0))
    there = Condition(labels=nothing.labels, attributes=nothing.attributes, mask=mask.index_fill(3, torch.arange(8, 16), 1.0))
    latent = torch.zeros(1, 4)
    difference = (model.decode(latent, here) - model.decode(latent, there)).abs()
    assert difference.max() > 0 and not torch.equal(model.decode(latent, here), model.decode(latent, None))


def test_the_discriminator_of_a_vae_gan_does_not_train_the_encoder(engine: Engine) -> None:
    objective = fresh_objective(smallest("vae-gan", "objective.features=0.0", "objective.pixels=0.0", "objective.beta=0.0")).train()
    assert isinstance(objective, VaeGanObjective)
    terms = objective("autoencode", batch_of(objective, engine))
    terms["adversarial"].sum().backward()
    model = objective.model
    assert isinstance(model, VaeModel)
    assert all(weight.grad is None or not bool(weight.grad.any()) for weight in model.encoder.parameters())
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in model.decoder.parameters())


def test_the_discriminator_of_a_vae_gan_pays_nothing_for_values_beyond_white(engine: Engine) -> None:
    objective = fresh_objective(smallest("vae-gan")).eval()
    assert isinstance(objective, VaeGanObjective)
    batch, model = batch_of(objective, engine), objective.model
    assert isinstance(model, VaeModel)
    told: list[dict[str, Tensor]] = []
    for grey in (1.0, 30.0):
        model.explain = lambda latent, condition=None, grey=grey: torch.full_like(batch.images, grey)  # type: ignore[method-assign]
        told.append(objective("autoencode", batch) | objective("discriminate", batch))
    assert torch.equal(told[0]["adversarial"], told[1]["adversarial"]) and torch.equal(told[0]["features"], told[1]["features"])
    assert torch.equal(told[0]["made"], told[1]["made"]), "the discriminator learns from the images that the decoder is judged by"
    assert (told[1]["pixels"] > told[0]["pixels"]).all(), "and the decoder pays for going there"


def test_features_are_blind_to_nothing_but_equality(engine: Engine) -> None:
    """A decoder that put out the image itself would pay nothing for features and pixels."""
    objective = fresh_objective(smallest("vae-gan")).eval()
    assert isinstance(objective, VaeGanObjective)
    batch = batch_of(objective, engine)
    model = objective.model
    assert isinstance(model, VaeModel)
    model.explain = lambda latent, condition=None: batch.images  # type: ignore[method-assign]
    terms = objective("autoencode", batch)
    assert terms["features"].abs().max() < 1e-6 and terms["pixels"].abs().max() == 0 and (terms["divergence"] > 0).all()


def test_mask_classes_that_no_image_has_are_not_inputs() -> None:
    objective = fresh_objective(smallest("vae"))
    nothing = torch.full((1, 2), math.nan)
    images = Condition(labels=nothing, attributes=torch.full((1, 7), math.nan), mask=torch.tensor([1.0, math.nan]).reshape(1, 2, 1, 1))
    objective.zero_unvaried_inputs(images)
    model = objective.model
    assert isinstance(model, VaeModel)

    def image_of(channel: int) -> Tensor:
        mask = torch.full((1, 2, 16, 16), math.nan)
        mask[:, channel] = 1.0
        asked = Condition(labels=nothing, attributes=images.attributes, mask=mask)
        return torch.cat([model.decode(torch.zeros(1, 4), asked).flatten(), model.posterior(torch.zeros(1, 1, 16, 16), asked).flatten()])

    unasked = torch.cat([model.decode(torch.zeros(1, 4)).flatten(), model.posterior(torch.zeros(1, 1, 16, 16)).flatten()])
    assert torch.equal(image_of(1), unasked) and not torch.equal(image_of(0), unasked)


ALPHA = ("objective.codes=1.0", "objective.latent_discriminator_width=16", "objective.beta=0.0", "objective.features=0.0")


@pytest.mark.parametrize("side", [6.0, -6.0])
@pytest.mark.parametrize(("family", "overrides", "discriminator_name", "term"), [
    ("aae", ("objective.adversarial=1.0", "objective.discriminator_width=16"), "discriminator", "adversarial"),
    ("vae-gan", ALPHA, "latent_discriminator", "codes")])
def test_a_discriminator_of_latents_pulls_them_towards_the_prior(family: str, overrides: tuple[str, ...], discriminator_name: str,
                                                                 term: str, side: float,
                                                        engine: Engine) -> None:
    """Latents that lie far off on either side, a discriminator that has learned to tell: the encoder is asked to come back."""
    objective = fresh_objective(smallest(family, *overrides)).train()
    model = objective.model
    assert isinstance(model, VaeModel) and model.encoder.last.bias is not None
    with torch.no_grad():
        model.encoder.last.bias[:4] = side
    discriminator = torch.optim.Adam(objective.players[discriminator_name].parameters(), lr=0.01)
    batch = batch_of(objective, engine, size=8)
    for _ in range(60):
        discriminator.zero_grad()
        terms = objective("discriminate", batch)
        torch.stack(list(terms.values())).sum().backward()
        discriminator.step()
    assert terms["latent"].mean() < 0.1 and model.encoder.last.weight.grad is None, "the discriminator learns and teaches nobody"
    objective("autoencode", batch)[term].sum().backward()
    asked = model.encoder.last.bias.grad
    assert asked is not None and asked[:4].sum().item() * side > 0, "descent lowers what is too high, and lifts what is too low"


def test_an_alpha_gan_has_two_discriminators_and_no_divergence(engine: Engine) -> None:
    objective = fresh_objective(smallest("vae-gan", *ALPHA)).train()
    batch = batch_of(objective, engine)
    assert objective("autoencode", batch).keys() == {"pixels", "adversarial", "codes"}
    assert objective("discriminate", batch).keys() == {"real", "made", "given", "latent"}
    assert [phase.updates for phase in objective.phases] == [("model",), ("discriminator", "latent_discriminator")]


@pytest.mark.parametrize("overrides", [(), ("model.posterior=hamiltonian",), ("model.prior=mixture", "model.components=3")])
def test_a_discriminative_regulariser_trains_only_the_decoder(overrides: tuple[str, ...], engine: Engine) -> None:
    with_discriminator = ("objective.discriminative=1.0", "objective.discriminator_channels=2", "objective.discriminator_layers=1")
    plain, objective = (fresh_objective(smallest("vae", *overrides, *more)).eval() for more in ((), with_discriminator))
    assert [phase.name for phase in objective.phases] == ["elbo", "discriminate"]
    model = objective.model
    assert isinstance(model, VaeModel)
    without, terms = (some("elbo", batch_of(some, engine)) for some in (plain, objective))
    for name, term in without.items():
        torch.testing.assert_close(terms[name], term)
    terms["discriminative"].sum().backward()
    assert all(weight.grad is None or not bool(weight.grad.any()) for weight in model.encoder.parameters())
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in model.decoder.parameters())
    objective.zero_grad()
    losses = objective("discriminate", batch_of(objective, engine))
    torch.stack(list(losses.values())).sum().backward()
    assert all(weight.grad is None for weight in model.parameters()), "in its own phase the discriminator teaches nobody"
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in objective.players["discriminator"].parameters())


@pytest.mark.parametrize(("family", "override", "message"), [
    ("vae", "model.latent_size=0", r"model\.latent_size"),
    ("vae", "model.image_size=18", r"model\.image_size 18"),
    ("vae", 'model.parts=["lables"]', "model.parts.0: there is no 'lables'; did you mean 'labels'"),
    ("vae", "objective.sigma=0.0", r"objective\.sigma"),
    ("vae", "model.prior=gauss", r"model\.prior"),
    ("aae", "model.prior=mixture", "given, not learned"),
    ("vae-gan", "model.likelihood=gaussian", r"model\.likelihood"),
    ("aae", "model.posterior=hamiltonian", "belongs to the family vae: aae"),
    ("vae", "model.leaps=0", r"model\.leaps"),
    ("soft-intro-vae", "model.likelihood=gaussian", "made of squared errors"),
    ("soft-intro-vae", "model.prior=dirichlet", "a prior that is given, normal"),
    ("soft-intro-vae", "model.latent_size=0", r"model\.latent_size"),
    ("soft-intro-vae", "objective.alpha=0.0", r"objective\.alpha"),
    ("vq-vae", "model.codes=1", r"model\.codes=1.*at least 2 codes"),
    ("vq-vae", "model.levels=3", r"model\.levels"),
    ("vq-vae", "model.image_size=18", r"model\.image_size 18 is not a multiple of 4"),
    ("vq-vae", "model.prior_heads=3", r"model\.prior_heads=3"),
    ("vq-vae", 'model.parts=["mask"]', "is conditioned on labels and attributes only"),
    ("vq-vae", 'model.parts=["lables"]', "model.parts.0: there is no 'lables'; did you mean 'labels'"),
])
def test_what_cannot_be_trained_is_refused(family: str, override: str, message: str) -> None:
    with pytest.raises(SynthoraxError, match=message):
        build_objective(smallest(family, override), findings=FINDINGS, masks=MASKS)


@pytest.mark.parametrize("overrides", [("model.prior=mixture",), ("model.likelihood=mse",)])
def test_a_posterior_that_needs_a_density_is_refused_without(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"model\.posterior=hamiltonian needs"):
        build_objective(smallest("vae", "model.posterior=hamiltonian", *overrides), findings=FINDINGS, masks=MASKS)


@pytest.mark.parametrize(("family", "overrides", "message"), [
    ("vae-gan", ("objective.codes=1.0", "model.prior=mixture"), "given, not learned"),
    ("vae", ("objective.discriminative=1.0", "model.prior=geometric"), "the prior geometric has none in training"),
    ("vae", ("objective.growth_images=4",), "networks that grow"),
    ("vae", ("model.network=progressive",), "takes no masks"),
])
def test_settings_that_do_not_go_together_are_refused(family: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_objective(smallest(family, *overrides), findings=FINDINGS, masks=MASKS)


def test_images_without_masks_or_findings_are_refused() -> None:
    with pytest.raises(UsageError, match="no masks"):
        build_objective(smallest("vae"), findings=FINDINGS)
    with pytest.raises(UsageError, match="no findings"):
        build_objective(smallest("vae"), findings=(), masks=MASKS)
    with pytest.raises(UsageError, match="no findings"):
        build_objective(smallest("vq-vae"), findings=())


def test_more_components_than_images_are_refused() -> None:
    objective = fresh_objective(smallest("vae", "model.prior=mixture", "model.components=30"))
    assert isinstance(objective, VaeObjective)
    objective.check_data(num_images=30)
    with pytest.raises(UsageError, match="components=30 is more than the 29 images"):
        objective.check_data(num_images=29)


def test_training_is_refused_before_it_begins(tmp_path: Path) -> None:
    drawn = write_phantom_dataset(tmp_path / "drawn", num=30, size=32, seed=1, prevalence={"Effusion": 0.4})
    prepared = sx.prepare(drawn, size=32, out=tmp_path / "prepared")
    for recipe, override, message in (("gmvae-64", "model.components=31", "more than the .* images"),
                                      ("kumar-vae", "train.batch_size=1", r"train\.batch_size=1: .*batch normalisation")):
        with pytest.raises(UsageError, match=message):
            sx.train(recipe, prepared, out=tmp_path / recipe, device="cpu", threads=1, overrides=["model.image_size=32", override])
        assert not (tmp_path / recipe).exists()
