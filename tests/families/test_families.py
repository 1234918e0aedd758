"""The contract of a generative family, held to everything in the table at its smallest size, and Kumar's printed numbers."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.families import FAMILIES, PACKED
from synthorax.families.autoencoders.vq_vae import VqVaeModel
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective
from synthorax.families.weight_matching import matched_weights
from synthorax.protocols import (
    ATTRIBUTES,
    COARSE,
    LESION_PROPERTIES,
    UNCERTAIN,
    Batch,
    Condition,
    Model,
    ModelSpec,
    Objective,
    SampleSettings,
    as_model,
)
from synthorax.rng import Draws
from synthorax.run import read_spec, save_model
from synthorax.steps.models.recipe import build_model, build_objective, load_recipe, makes_volumes
from synthorax.training.feed import Feed
from synthorax.training.volume_feed import VolumeFeed
from trainings import (
    FINDINGS,
    MASKS,
    SITES,
    SMALLEST,
    fresh_cascade,
    fresh_objective,
    randomised,
    shape_of,
    smallest,
    toy_images,
    toy_volumes,
)

FAST = SampleSettings(steps=3, guidance=2.0)
NUM_ATTRIBUTES = len(ATTRIBUTES) + len(SITES)
SAME_IMAGE = 1e-4  # of the range [-1, 1]: another batch size may add numbers in another order; a grey level is 8e-3

families = pytest.mark.parametrize("family", FAMILIES)
models = pytest.mark.parametrize("family", [*FAMILIES, *PACKED])


def test_every_family_has_its_smallest_size() -> None:
    assert set(SMALLEST) == set(FAMILIES)


def objective_of(family: str, *overrides: str) -> Objective:
    return fresh_objective(smallest(family, *overrides))


def network_of(family: str) -> nn.Module:
    """A model whose every weight is random, also those that start at zero, so that everything it is conditioned on has an effect."""
    model = fresh_cascade() if family == "cascade" else objective_of(family).model
    if family in ("diffusion", "volume-diffusion", "cascade"):
        randomised(model)
    if isinstance(model, VqVaeModel):
        randomised(model.prior)
        with torch.no_grad():
            for grid in model.prior.grids:
                grid.last.weight.mul_(10.0)  # type: ignore[operator, union-attr]
            for embedding in model.prior.embeddings.values():
                embedding.linear.weight.mul_(10.0)  # type: ignore[operator, union-attr]  # codes change in leaps: requests must be loud
    return model


def model_of(family: str) -> Model:
    return as_model(network_of(family).eval())


def batch_of(objective: Objective, engine: Engine, *, size: int = 4) -> Batch:
    spec = as_model(objective.model).spec
    if makes_volumes(spec):
        return VolumeFeed(toy_volumes(spec.image_size), spec=spec, batch_size=size, augment=True, seed=0, engine=engine).batch(0)
    images = toy_images(spec.image_size)
    return Feed(images, spec=spec, batch_size=size, balance=0.0, augment=True, seed=0, engine=engine).batch(0)


def asking(*, labels: list[float], attributes: list[float] | None = None, size: int = 1) -> Condition:
    stated = [math.nan] * NUM_ATTRIBUTES if attributes is None else attributes
    return Condition(labels=torch.tensor([labels] * size), attributes=torch.tensor([stated] * size))


def everything(model: Model) -> dict[str, Condition]:
    """For each part of a condition, a request that states it and nothing else."""
    nothing = asking(labels=[math.nan] * 2)
    side = model.spec.image_size
    lesions = torch.full((1, 2, len(LESION_PROPERTIES)), math.nan)
    lesions[0, 1, LESION_PROPERTIES.index("x")] = 0.3
    mask = torch.full((1, len(MASKS), side, side), math.nan)
    mask[0, 1] = 0.0
    mask[0, 1, : side // 2] = 1.0
    return {"labels": asking(labels=[1.0, 0.0]), "attributes": asking(labels=[math.nan] * 2, attributes=[0, 1, 0, 1, 0.7, 1, 0]),
            "lesions": replace(nothing, lesions=lesions), "mask": replace(nothing, mask=mask),
            "text": replace(nothing, text=("a mass on the left",)), "image": replace(nothing, image=torch.zeros(1, 1, side, side)),
            "measurements": replace(nothing, measurements=torch.tensor([[0.4, math.nan, 0.8]]))}


@models
def test_images_have_the_promised_shape_and_range(family: str) -> None:
    model = model_of(family)
    images = model.sample(asking(labels=[1.0, 0.0], size=3), [1, 2, 3], FAST)
    assert images.shape == (3, *shape_of(model.spec)) and images.dtype == torch.float32
    assert bool(images.isfinite().all()) and images.abs().max() <= 1
    assert images.std() > 0 and not torch.equal(images[0], images[1])
    assert not images.requires_grad


@models
def test_an_image_depends_on_its_seed_and_condition_alone(family: str) -> None:
    model = model_of(family)
    condition = Condition(labels=torch.tensor([[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]),
                          attributes=asking(labels=[0, 0], size=3).attributes)
    together = model.sample(condition, [4, 5, 6], FAST)
    assert torch.equal(together, model.sample(condition, [4, 5, 6], FAST)), "same batch, same bits"
    turned = model.sample(condition[torch.tensor([2, 0, 1])], [6, 4, 5], FAST)
    torch.testing.assert_close(turned[[1, 2, 0]], together, atol=SAME_IMAGE, rtol=0)
    for row, seed in enumerate((4, 5, 6)):
        alone = model.sample(condition[row:row + 1], [seed], FAST)
        torch.testing.assert_close(alone[0], together[row], atol=SAME_IMAGE, rtol=0)
    torch.manual_seed(99)
    assert torch.equal(together, model.sample(condition, [4, 5, 6], FAST)), "the global random state has no say"


@models
def test_a_saved_model_makes_the_same_images(family: str, tmp_path: Path) -> None:
    model = network_of(family)
    save_model(tmp_path / "model.safetensors", model, spec=as_model(model).spec, facts={})
    spec, _ = read_spec(tmp_path / "model.safetensors")
    again = build_model(spec)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    condition = asking(labels=[1.0, math.nan], size=2)
    assert torch.equal(as_model(again.eval()).sample(condition, [1, 2], FAST), as_model(model.eval()).sample(condition, [1, 2], FAST))


@models
def test_what_is_declared_changes_the_image_and_the_rest_does_not(family: str) -> None:
    model = model_of(family)
    nothing = model.sample(asking(labels=[math.nan] * 2), [7], FAST)
    for part, condition in everything(model).items():
        changed = not torch.equal(model.sample(condition, [7], FAST), nothing)
        assert changed == (part in model.spec.conditions), part


@models
def test_every_single_statement_counts_and_not_stated_is_not_absent(family: str) -> None:
    model = model_of(family)
    parts = [("labels", column) for column in range(len(FINDINGS))] + [("attributes", column) for column in range(NUM_ATTRIBUTES)]
    parts += [("measurements", column) for column in range(3)]
    for part, column in parts:
        if part not in model.spec.conditions:
            continue
        images = []
        for value in (0.0, UNCERTAIN, 1.0, math.nan):
            condition = replace(asking(labels=[math.nan] * len(FINDINGS)), measurements=torch.full((1, 3), math.nan))
            getattr(condition, part)[0, column] = value
            images.append(model.sample(condition, [7], FAST))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2)), (part, column)


@models
def test_asking_for_nothing_is_accepted(family: str) -> None:
    model = model_of(family)
    unstated = Condition.unstated(2, num_labels=len(FINDINGS), num_sites=len(SITES))
    nothing = model.sample(None, [1, 2], FAST)
    torch.testing.assert_close(nothing, model.sample(unstated, [1, 2], FAST), atol=SAME_IMAGE, rtol=0)
    assert bool(nothing.isfinite().all())
    assert model.sample(None, [1], None).shape[0] == 1, "settings may be left out"


@families
def test_losses_are_one_number_an_image_and_reach_every_player(family: str, engine: Engine) -> None:
    objective = objective_of(family).train()
    batch = batch_of(objective, engine)
    for phase in objective.phases:
        assert set(phase.updates) <= set(objective.players)
        losses = objective(phase.name, batch)
        assert losses and all(term.shape == (4,) and bool(term.isfinite().all()) for term in losses.values())
        objective.zero_grad()
        torch.stack([term.sum() for term in losses.values()]).sum().backward()
        for name in phase.updates:
            assert any(bool((weight.grad != 0).any()) for weight in objective.players[name].parameters() if weight.grad is not None)


@families
def test_the_loss_of_an_image_does_not_depend_on_its_neighbours(family: str, engine: Engine) -> None:
    """In evaluation mode, because batch statistics are the one thing that images of a training batch share."""
    objective = objective_of(family).eval()
    if family in ("diffusion", "volume-diffusion"):
        randomised(objective)
    batch = batch_of(objective, engine)
    for phase in objective.phases:
        fresh = [Batch(images=images, condition=batch.condition, draws=Draws(range(4)))
                 for images in (batch.images, torch.cat([batch.images[:3], -batch.images[3:]]))]
        first, second = (objective(phase.name, one) for one in fresh)
        for term in first:
            torch.testing.assert_close(first[term][:3], second[term][:3], rtol=1e-5, atol=1e-6)
        if phase.sees_patients:
            assert any(not torch.isclose(first[term][3], second[term][3], rtol=1e-3) for term in first)
        else:
            assert all(torch.equal(first[term], second[term]) for term in first), "this phase says that it sees no patient"


@families
def test_the_model_that_ships_is_made_of_players(family: str) -> None:
    objective = objective_of(family)
    trained = {id(weight) for weight in objective.players.parameters()}
    assert all(id(weight) in trained for weight in objective.model.parameters())
    assert sum(len(list(player.parameters())) for player in objective.players.values()) == len(trained), "no weight has two players"


def test_a_base_with_findings_serves_images_without_any_and_the_other_way_round() -> None:
    some, none = torch.ones(4, 2), torch.ones(4, 0)
    for own, names, base, base_names in ((none, [], some, ["Mass", "Nodule"]), (some, ["Mass", "Nodule"], none, [])):
        taken = matched_weights({"w": own}, {"w": base}, own_names={"w": (1, names)}, base_names={"w": (1, base_names)})
        assert torch.equal(taken["w"], own)


# ---- the diffusion family


def test_findings_sites_and_masks_of_a_base_model_are_matched_by_name() -> None:
    def diffusion(findings: tuple[str, ...], sites: tuple[str, ...], masks: tuple[str, ...]) -> DiffusionModel:
        model = build_objective(smallest("diffusion"), findings=findings, sites=sites, masks=masks).model
        assert isinstance(model, DiffusionModel)
        return model.eval()

    base = diffusion(("Effusion", "Mass"), ("east", "west"), ("lung", "Mass"))
    model = diffusion(("Hernia", "Mass"), ("west",), ("Mass", "heart", "lung"))
    randomised(base)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    model.load_matching(base)
    nan, side = math.nan, 8
    outline = torch.linspace(0, 1, side * side).reshape(side, side)
    unknown = torch.full((side, side), nan)
    lesion = torch.tensor([0.0, 0.5, nan, 0.2, 0.9])
    nowhere = torch.full((len(LESION_PROPERTIES),), nan)
    for label in (0.0, 1.0, nan):
        asked = Condition(labels=torch.tensor([[nan, label]]), attributes=torch.tensor([[1.0, 0, 0, 1, 0.4, nan, 1]]),
                          lesions=torch.stack([nowhere, lesion])[None], mask=torch.stack([unknown, outline])[None])
        same = replace(asked, attributes=torch.tensor([[1.0, 0, 0, 1, 0.4, 1]]),
                       mask=torch.stack([outline, unknown, unknown])[None])
        torch.testing.assert_close(model.sample(same, [3], FAST), base.sample(asked, [3], FAST), atol=SAME_IMAGE, rtol=0)
    assert model.text is not None and model.text_parser is not None and base.text is not None and base.text_parser is not None
    for own, theirs in zip(model.text_parser(*model.text(["a mass"])), base.text_parser(*base.text(["a mass"])), strict=True):
        torch.testing.assert_close(own[:, 1], theirs[:, 1], equal_nan=True, msg="a finding that the base knew is read as before")
    fresh = model.state_dict()["embeddings.labels.linear.weight"][:, [0, 2]]
    assert torch.equal(fresh, before["embeddings.labels.linear.weight"][:, [0, 2]]), "a new finding starts fresh"
    other = build_objective(smallest("diffusion", "model.channels=12"), findings=FINDINGS, sites=SITES, masks=MASKS).model
    assert isinstance(other, DiffusionModel)
    with pytest.raises(UsageError, match="another shape"):
        other.load_matching(base)


def test_denoising_trusts_an_image_with_little_noise() -> None:
    model = objective_of("diffusion").model
    assert isinstance(model, DiffusionModel)
    randomised(model)
    image = torch.rand(2, 1, 8, 8) * 2 - 1
    condition = asking(labels=[1.0, 0.0], size=2)
    torch.testing.assert_close(model.denoise(image, torch.full((2,), 1e-5), condition), image, atol=1e-3, rtol=0)


def after_dropout(condition: Condition, *overrides: str) -> Condition:
    """The condition as the network is conditioned on it in training."""
    objective = objective_of("diffusion", "objective.box=0.0", *overrides)
    assert isinstance(objective, DiffusionObjective)
    return objective.condition_dropout(condition, Draws(range(len(condition))))


def test_withheld_parts_follow_their_probabilities() -> None:
    """Parts withheld whole and independently, single statements withheld too, and nothing made up."""
    size, mask = 2000, torch.rand(2000, 2, 4, 4)
    condition = Condition(labels=torch.tensor([[1.0, 0.0]] * size), attributes=torch.full((size, NUM_ATTRIBUTES), 0.5),
                          lesions=torch.full((size, 2, 5), 0.3), mask=mask, text=("a mass",) * size)
    kept = after_dropout(condition, "objective.part_dropout=0.3", "objective.statement_dropout=0.2", "objective.dropout={text=0.6}")
    whole = {}
    for part in ("labels", "attributes", "lesions", "mask"):
        asked, got = getattr(condition, part), getattr(kept, part)
        stated = ~got.isnan()
        assert torch.equal(got[stated], asked[stated])
        if part == "mask":
            assert torch.equal(stated.flatten(2).any(2), stated.flatten(2).all(2)), "a mask class is withheld as a whole"
            stated = stated[:, :, 0, 0]
        stated = stated.flatten(1)
        assert stated.float().mean().item() == pytest.approx(0.7 * 0.8, abs=0.03)
        whole[part] = (~stated).all(1)
        assert whole[part].float().mean().item() == pytest.approx(0.3 + 0.7 * 0.2 ** stated.shape[1], abs=0.03)
    assert kept.text is not None
    whole["text"] = torch.tensor([not text for text in kept.text])
    assert whole["text"].float().mean().item() == pytest.approx(0.6, abs=0.03)
    for one, other in itertools.combinations(whole, 2):
        both = (whole[one] & whole[other]).float().mean().item()
        assert both == pytest.approx(whole[one].float().mean().item() * whole[other].float().mean().item(), abs=0.03), (one, other)


def test_a_box_holds_the_lesion_and_organs_keep_their_outlines() -> None:
    mask = torch.zeros(300, 2, 8, 8)
    mask[:, 0, 1:5, 2:4] = 1.0
    mask[:, 1, 2:4, 3] = mask[:, 1, 3, 3:6] = 1.0
    mask[0, 1] = math.nan
    condition = replace(asking(labels=[math.nan] * 2, size=300), mask=mask)
    kept = after_dropout(condition, "objective.part_dropout=0.0", "objective.statement_dropout=0.0", "objective.box=0.4").mask
    assert kept is not None and torch.equal(kept[:, 0], mask[:, 0]) and bool(kept[0, 1].isnan().all())
    boxed = (kept[1:, 1] == COARSE).flatten(1).any(1)
    assert boxed.float().mean().item() == pytest.approx(0.4, abs=0.08)
    box = torch.zeros(8, 8)
    box[2:4, 3:6] = COARSE
    for outline, changed in zip(kept[1:, 1], boxed, strict=True):
        assert torch.equal(outline, box if changed else mask[1, 1])


# ---- Kumar et al.


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_parameters_are_those_that_kumar_et_al_print() -> None:
    gan = build_objective(load_recipe("kumar-gan"), findings=())
    assert {name: count(player) for name, player in gan.players.items()} == {"generator": 3_606_976, "discriminator": 2_795_904}
    assert count(gan.players) == 6_402_880
    vae = build_objective(load_recipe("kumar-vae"), findings=()).model
    assert count(vae) == 32_674_945
    parts = {name: count(part) for name, part in vae.named_children()}
    assert parts == {"encoder": 4_711_648, "mean": 8_389_632, "log_variance": 8_389_632, "decoder": 11_184_033}


def test_kumar_gan_takes_three_generator_steps_to_one_of_the_discriminator() -> None:
    assert [(phase.updates, phase.repeats, phase.every) for phase in objective_of("kumar-gan").phases] == [
        (("generator",), 3, 1), (("discriminator",), 1, 1)]


def test_least_squares_losses_are_those_of_mao(engine: Engine) -> None:
    """With a constant score s the generator pays (s - 1)^2 / 2, the discriminator (s - 1)^2 / 2 + s^2 / 2."""
    objective = objective_of("kumar-gan")
    objective.players["discriminator"] = Constant(0.25)
    batch = batch_of(objective, engine)
    torch.testing.assert_close(objective("generator", batch), {"generator": torch.full((4,), 0.5 * 0.75**2)})
    torch.testing.assert_close(objective("discriminator", batch),
                               {"real": torch.full((4,), 0.5 * 0.75**2), "made": torch.full((4,), 0.5 * 0.25**2)})


class Constant(nn.Module):
    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 1, 2, 2), self.score)


def test_elbo_agrees_with_torch_distributions(engine: Engine) -> None:
    objective = objective_of("kumar-vae", "objective.beta=0.5", "model.equalise=false").eval()
    batch = batch_of(objective, engine)
    model = copy.deepcopy(objective.model)
    losses = objective("elbo", batch)
    mean, log_variance = model.encode(batch.images)  # type: ignore[operator]
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(losses["kl"], 0.5 * kl, rtol=1e-4, atol=1e-5)
    noise = batch_of(objective, engine).draws  # the same streams again, moved on by the augmentation
    code = mean + (0.5 * log_variance).exp() * noise.normal(4)
    likelihood = torch.distributions.Normal(model.decode(code), 1.0).log_prob(batch.images).sum((1, 2, 3))  # type: ignore[operator]
    constant = -0.5 * math.log(2 * math.pi) * 32**2
    torch.testing.assert_close(losses["reconstruction"], 2 * (constant - likelihood), rtol=1e-4, atol=1e-3)


def test_a_spec_names_what_a_model_is_conditioned_on() -> None:
    specs: dict[str, ModelSpec] = {family: as_model(objective_of(family).model).spec for family in FAMILIES}
    assert specs["diffusion"].conditions == ("attributes", "labels", "lesions", "mask", "text")
    assert (specs["diffusion"].findings, specs["diffusion"].sites, specs["diffusion"].masks) == (FINDINGS, SITES, MASKS)
    assert specs["kumar-gan"].conditions == specs["kumar-vae"].conditions == ()
