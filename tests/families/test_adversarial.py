"""Adversarial losses, penalties, discriminators and schedules: closed forms, and what each is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.families.adversarial.discriminator_augmentation import (
    UPDATES_PER_CORRECTION,
    CriticSchedule,
    DiscriminatorAugmentation,
    DiscriminatorAugmentationConfig,
)
from synthorax.families.adversarial.label_conditioning import DiscriminatorHead, statement_loss
from synthorax.families.adversarial.objective import AdversarialObjective
from synthorax.families.adversarial.terms import PathLength
from synthorax.losses.adversarial import ADVERSARIAL, AdversarialLoss, gradient_penalty, zero_centred_penalty
from synthorax.nets.convolutional_gan import widths
from synthorax.nets.differentiable_augmentation import CUTOUT, augmented
from synthorax.nets.stylegan2 import ModulatedConvolution, ScaledLinear, Synthesis
from synthorax.protocols import Batch, Condition, as_model
from synthorax.registry import lookup
from synthorax.rng import Draws
from synthorax.training.feed import Feed
from synthorax.training.loop import _Loop
from trainings import fresh_objective, smallest, toy_images, train_here

SCORES = torch.tensor([[-2.0], [0.0], [0.3], [5.0]])


def loss_called(name: str) -> AdversarialLoss:
    return cast(AdversarialLoss, lookup(ADVERSARIAL, name, kind="adversarial loss"))


def objective_of(family: str, *overrides: str) -> AdversarialObjective:
    objective = fresh_objective(smallest(family, *overrides))
    assert isinstance(objective, AdversarialObjective)
    return objective


def batch_for(objective: AdversarialObjective, engine: Engine, *, size: int = 4) -> Batch:
    spec = as_model(objective.model).spec
    return Feed(toy_images(spec.image_size), spec=spec, batch_size=size, balance=0.0, augment=False, seed=0, engine=engine).batch(0)


# ---- losses


@pytest.mark.parametrize(("name", "real", "made", "generator"), [
    ("minimax", lambda s: -torch.sigmoid(s).log(), lambda s: -(1 - torch.sigmoid(s)).log(), lambda s: (1 - torch.sigmoid(s)).log()),
    ("non-saturating", lambda s: -torch.sigmoid(s).log(), lambda s: -(1 - torch.sigmoid(s)).log(), lambda s: -torch.sigmoid(s).log()),
    ("least-squares", lambda s: (s - 1) ** 2 / 2, lambda s: s**2 / 2, lambda s: (s - 1) ** 2 / 2),
    ("hinge", lambda s: (1 - s).clamp(min=0), lambda s: (1 + s).clamp(min=0), lambda s: -s),
    ("wasserstein", lambda s: -s, lambda s: s, lambda s: -s),
])
def test_losses_are_those_of_their_papers(name: str, real: Callable[[Tensor], Tensor], made: Callable[[Tensor], Tensor],
                                          generator: Callable[[Tensor], Tensor]) -> None:
    loss = loss_called(name)
    for ours, theirs in ((loss.real, real), (loss.made, made), (loss.generator, generator)):
        torch.testing.assert_close(ours(SCORES), theirs(SCORES)[:, 0], rtol=1e-4, atol=1e-5)


def test_the_best_discriminator_of_equal_images_is_at_the_boundary() -> None:
    """If an image is as often real as made, the discriminator pays least at the boundary; that is what certainty is measured from."""
    grid = torch.linspace(-3, 3, 601)[:, None]
    for name in ("minimax", "non-saturating", "least-squares"):
        loss = loss_called(name)
        best = grid[(loss.real(grid) + loss.made(grid)).argmin()].item()
        assert best == pytest.approx(cast(float, loss.boundary), abs=0.011), name


def test_where_the_discriminator_is_sure_only_minimax_loses_its_gradient() -> None:
    slopes = {}
    for name in ADVERSARIAL:
        score = torch.full((1, 1), -10.0, requires_grad=True)
        loss_called(name).generator(score).sum().backward()
        assert score.grad is not None
        slopes[name] = abs(score.grad.item())
    assert slopes.pop("minimax") < 1e-4 and min(slopes.values()) > 0.9


# ---- penalties on a discriminator whose gradient is known


def test_penalties_of_a_linear_discriminator() -> None:
    """score = <w, image> has the gradient w everywhere: |w| = 5 here."""
    weight = torch.zeros(1, 8, 8)
    weight[0, 0, 0], weight[0, 3, 5] = 3.0, -4.0

    def score(images: Tensor) -> Tensor:
        return (images * weight).sum((1, 2, 3))[:, None]

    real, made = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(gradient_penalty(score, real, made, share=torch.rand(3)), torch.full((3,), 16.0))
    torch.testing.assert_close(zero_centred_penalty(score, real), torch.full((3,), 12.5))


def test_the_gradient_penalty_looks_between_the_images() -> None:
    """score = |image|^2 / 2 has the image as gradient, so the penalty is that of the mixed image itself."""
    real, made, part = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed = part[:, None, None, None] * real + (1 - part[:, None, None, None]) * made
    got = gradient_penalty(lambda images: 0.5 * images.square().sum((1, 2, 3))[:, None], real, made, share=part)
    torch.testing.assert_close(got, (mixed.flatten(1).norm(dim=1) - 1) ** 2, rtol=1e-4, atol=1e-5)


def test_penalties_train_the_discriminator_also_without_gradients_around() -> None:
    weight = torch.tensor(3.0, requires_grad=True)

    def score(images: Tensor) -> Tensor:
        return weight * images.sum((1, 2, 3))[:, None]

    zero_centred_penalty(score, torch.randn(2, 1, 2, 2)).sum().backward()
    assert weight.grad is not None and weight.grad.item() == pytest.approx(2 * 4 * 3.0)  # d/dw of 2 images x 4 pixels x w^2 / 2
    with torch.no_grad():
        penalty = zero_centred_penalty(score, torch.randn(2, 1, 2, 2))
    assert penalty.tolist() == pytest.approx([18, 18])


def test_lazy_terms_count_as_often_as_they_are_left_out(engine: Engine) -> None:
    terms = []
    for every in (1, 5):
        objective = objective_of("stylegan2", f"objective.r1_every={every}", f"objective.path_every={every}").eval()
        batch = batch_for(objective, engine)
        terms.append({**objective("r1", batch), **objective("path-length", batch_for(objective, engine))})
        phases = {phase.name: (phase.every, phase.optimizer) for phase in objective.phases}
        assert phases == {"discriminator": (1, ""), "r1": (every, "discriminator"), "generator": (1, ""), "path-length": (every,
                                                                                                                          "generator")}
    for name in ("r1", "path_length"):
        torch.testing.assert_close(terms[1][name], 5 * terms[0][name])


def test_a_lazy_phase_shares_the_optimiser_of_its_player(engine: Engine, tmp_path: Any) -> None:
    """A penalty with an Adam of its own would move as far whatever its weight."""
    recipe = smallest("stylegan2", "objective.r1_every=2", "train.steps=4")
    refine_loop = _Loop(fresh_objective(recipe), toy_images(16), recipe.train, engine=engine, folder=tmp_path)
    for _ in range(2):
        refine_loop.step(0.0)
    assert set(refine_loop.optimizers) == {"discriminator", "generator"}
    steps = {int(state["step"]) for state in refine_loop.optimizers["discriminator"].state.values()}
    assert max(steps) == 3, "two discriminator updates and one penalty"


def test_the_discriminator_learns_at_a_rate_of_its_own(engine: Engine, tmp_path: Any) -> None:
    """The first step of Adam is as long as its rate, so weights tell the two time-scales apart, the lazy penalty's included."""
    recipe = smallest("stylegan2", "objective.discriminator_rate=4.0", "train.learning_rate=1e-3", "train.warmup_steps=0",
                      "train.cooldown=0.0")
    refine_loop = _Loop(fresh_objective(recipe), toy_images(16), recipe.train, engine=engine, folder=tmp_path)
    refine_loop.step(0.0)
    assert {name: group["lr"] for name, optimizer in refine_loop.optimizers.items() for group in optimizer.param_groups} == {
        "discriminator": pytest.approx(4e-3), "generator": pytest.approx(1e-3)}


# ---- conditions


def test_projection_is_one_product_with_the_sum_of_what_is_stated() -> None:
    torch.manual_seed(0)
    head = DiscriminatorHead(features=6, statements=3, conditioning="projection", spectral=False)
    assert head.projection is not None
    features, nan = torch.randn(1, 6), math.nan
    weight = head.projection.linear.weight  # [6, 3 stated + 3 values]
    plain = head.score(features)

    def product(stated: list[float]) -> Tensor:
        return (head(features, torch.tensor([stated])) - plain) * 6**0.5

    expected = features @ (weight[:, 0] + weight[:, 3] + weight[:, 2] - weight[:, 5])
    torch.testing.assert_close(product([1.0, nan, 0.0])[:, 0], expected)
    assert product([nan, nan, nan]).item() == 0.0, "what is not stated adds nothing"
    torch.testing.assert_close(product([1.0, nan, 0.0]), product([1.0, nan, nan]) + product([nan, nan, 0.0]))


def test_pseudo_labels_are_judged_by_what_is_stated() -> None:
    label_logits = torch.tensor([[2.0, -1.0, 7.0], [0.0, 0.0, 0.0]], requires_grad=True)
    stated = torch.tensor([[1.0, 0.0, math.nan], [math.nan] * 3])
    loss = statement_loss(label_logits, stated)
    expected = [(math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))) / 2, 0.0]
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert label_logits.grad is not None and label_logits.grad[0, 2] == 0 and not label_logits.grad[1].any()


def test_only_auxiliary_and_projection_discriminators_are_conditional(engine: Engine) -> None:
    for conditioning, terms in (("none", set()), ("projection", set()), ("auxiliary", {"real_statements", "made_statements"})):
        objective = objective_of("gan", f"model.conditioning={conditioning}").eval()
        batch = batch_for(objective, engine)
        assert set(objective("discriminator", batch)) == {"real", "made"} | terms
        stated = torch.tensor([[1.0] * 9, [math.nan] * 9])
        scores, label_logits = objective.players["discriminator"](batch.images[:1].expand(2, -1, -1, -1), stated)
        assert torch.equal(scores[0], scores[1]) == (conditioning != "projection")
        assert (label_logits is not None) == (conditioning == "auxiliary")


def test_parts_are_withheld_from_generator_and_discriminator_alike(engine: Engine) -> None:
    for dropout in (0.0, 0.3, 1.0):
        objective = objective_of("gan", f"objective.part_dropout={dropout}")
        batch = batch_for(objective, engine)
        many = Condition(labels=torch.ones(500, 2), attributes=torch.ones(500, 7))
        kept = objective._condition_dropout(replace(batch, condition=many, draws=Draws(range(500))))
        for part in (kept.labels, kept.attributes):
            assert torch.equal(part.isnan().any(1), part.isnan().all(1)), "as a whole"
            assert part.isnan().float().mean().item() == pytest.approx(1 - (1 - dropout)**2, abs=0.06), "alone or with all"
        both = (kept.labels[:, 0].isnan() & kept.attributes[:, 0].isnan()).float().mean().item()
        assert both == pytest.approx(dropout + (1 - dropout) * dropout**2, abs=0.06), "all at once, or each by itself"
        alone = objective_of("spade-gan", "model.conditioning=none", f"objective.part_dropout={dropout}")
        kept = alone._condition_dropout(replace(batch, condition=replace(many, mask=torch.ones(500, 1, 2, 2)), draws=Draws(range(500))))
        assert kept.mask.isnan().float().mean().item() == pytest.approx(dropout, abs=0.06), "the only part: as often as is set"
    kept = objective.eval()("discriminator", replace(batch, draws=Draws(range(4))))
    other = replace(batch.condition, labels=1 - batch.condition.labels)
    torch.testing.assert_close(objective("discriminator", replace(batch, condition=other, draws=Draws(range(4)))), kept)


# ---- style


def test_modulation_is_that_of_the_weights() -> None:
    """Scaling inputs and outputs is the same as a convolution with each image's own weights (Eq. 1-3, Karras et al. 2020a)."""
    torch.manual_seed(1)
    layer = ModulatedConvolution(5, 7, 3, style_size=4)
    x, style = torch.randn(2, 5, 6, 6), torch.randn(2, 4)
    scaled = layer.convolution.weight * layer.convolution.scale
    for row in range(2):
        weight = scaled * layer.style(style)[row][None, :, None, None]
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).add(1e-8).sqrt()
        torch.testing.assert_close(layer(x, style)[row], F.conv2d(x[row:row + 1], weight, padding=1)[0], rtol=1e-4, atol=1e-5)


def test_scaled_layers_keep_the_variance_and_learn_slowly_on_request() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 50)
    for rate in (1.0, 0.01):
        layer = ScaledLinear(50, 60, rate=rate)
        assert layer(x).var().item() == pytest.approx(1.0, rel=0.1)
        before = layer(x)
        with torch.no_grad():
            layer.weight += 0.1
        assert (layer(x) - before).std().item() == pytest.approx(0.1 * rate, rel=0.1)


def test_path_lengths_of_a_linear_generator(engine: Engine) -> None:
    """With image = style times a number a for every pixel, the length is a |sum of the direction| for each of L equal layers."""
    objective = objective_of("stylegan2", "objective.part_dropout=0.0").eval()
    model = cast(Any, objective.model)

    class Linear(Synthesis):
        def forward(self, styles: Tensor, noises: Any) -> Tensor:
            return (3.0 * styles.mean(1)[:, :1, None, None]).expand(-1, 1, 4, 4)

    model.synthesis.__class__ = Linear
    batch = batch_for(objective, engine)
    draws = Draws(range(4))
    term = objective("path-length", Batch(images=batch.images, condition=batch.condition, draws=draws))["path_length"]
    again = Draws(range(4))
    for size in model.latent_shapes:
        again.normal(*size)
    total = again.normal(1, 4, 4).sum((1, 2, 3)) / 4
    layers = len(model.synthesis.layers)
    length = (3.0 / layers * total).abs()  # one component of the style, the root of the mean over equal layers
    torch.testing.assert_close(term, objective.config.path_length * objective.config.path_every * length**2, rtol=1e-4, atol=1e-6)


def test_the_running_mean_of_lengths_follows_them() -> None:
    path = PathLength().train()
    for _ in range(1000):
        last = path(torch.full((3,), 2.0))
    assert path.mean.item() == pytest.approx(2.0, rel=1e-3) and last.max() < 1e-4
    assert torch.equal(path.eval()(torch.tensor([3.0])), (3.0 - path.mean).square()[None])


def test_noise_changes_details_where_the_generator_uses_it() -> None:
    model = cast(Any, objective_of("stylegan2").model).eval()
    latents = [Draws([1]).normal(*size) for size in model.latent_shapes]
    other = [latents[0], *(Draws([2]).normal(*size) for size in model.latent_shapes[1:])]
    with torch.no_grad():
        assert torch.equal(model.decode_latents(latents, None), model.decode_latents(other, None)), "noise starts silent"
        for layer in model.synthesis.layers:
            layer.strength.fill_(0.5)
        assert not torch.equal(model.decode_latents(latents, None), model.decode_latents(other, None))


def test_truncation_leads_to_the_mean_image() -> None:
    images = []
    for part in (1.0, 0.5, 0.0):
        model = as_model(objective_of("stylegan2", f"model.truncation={part}").model.eval())  # type: ignore[arg-type]
        images.append(model.sample(None, [1, 2, 3]).std(0).mean().item())
    assert images[0] > images[1] > images[2] == 0.0


# ---- augmentation, noise and schedules


def test_probability_0_shows_images_bit_for_bit_and_1_changes_all() -> None:
    images = torch.rand(8, 1, 32, 32) * 2 - 1
    assert torch.equal(augmented(images, probability=0.0, draws=Draws(range(8))), images)
    changed = augmented(images, probability=1.0, draws=Draws(range(8)))
    assert not any(torch.equal(one, other) for one, other in zip(images, changed, strict=True))
    assert ((changed == 0).float().mean((1, 2, 3)) > 0.5 * CUTOUT**2 / 2).all(), "a square is blanked"


def test_augmentation_never_flips() -> None:
    """An image that is bright on its left stays brighter on its left."""
    images = -torch.ones(200, 1, 32, 32)
    images[..., :10] = 1.0
    for strength in (0.5, 1.0):
        changed = augmented(images, probability=strength, draws=Draws(range(200)))
        assert (changed[..., :12].mean((1, 2, 3)) > changed[..., 20:].mean((1, 2, 3))).all()


def test_augmentation_of_an_image_depends_on_its_own_stream_and_has_a_gradient() -> None:
    images = (torch.rand(3, 1, 16, 16) * 2 - 1).requires_grad_()
    together = augmented(images, probability=0.7, draws=Draws([5, 6, 7]))
    alone = augmented(images[1:2], probability=0.7, draws=Draws([6]))
    torch.testing.assert_close(alone[0], together[1])
    together.sum().backward()
    assert images.grad is not None and bool(images.grad.isfinite().all()) and bool(images.grad.any())


def test_strength_follows_the_sign_of_the_scores() -> None:
    augmentation = DiscriminatorAugmentation(DiscriminatorAugmentationConfig(augment=0.8, ada_target=0.6, ada_images=1000), boundary=0.5)
    for _ in range(UPDATES_PER_CORRECTION):
        augmentation.learn(torch.full((10, 1), 0.9))  # all above the boundary: sign 1 > 0.6
    assert augmentation.strength.item() == pytest.approx(10 * UPDATES_PER_CORRECTION / 1000)
    for _ in range(25 * UPDATES_PER_CORRECTION):
        augmentation.learn(torch.full((10, 1), 0.9))
    assert augmentation.strength.item() == 1.0
    for _ in range(UPDATES_PER_CORRECTION):
        augmentation.learn(torch.tensor([[0.9]] * 7 + [[0.1]] * 3))  # mean sign 0.4 < 0.6
    assert augmentation.strength.item() == pytest.approx(1 - 10 * UPDATES_PER_CORRECTION / 1000)


def test_noise_before_the_discriminator_follows_the_schedule_and_its_level_is_an_input() -> None:
    augmentation = DiscriminatorAugmentation(DiscriminatorAugmentationConfig(noise_levels=1000, noise_strength=0.3), boundary=0.0)
    images = torch.full((400, 1, 8, 8), 0.8)
    reached = []
    for strength in (0.0, 1.0):
        augmentation.strength.fill_(strength)
        seen = augmentation(images, Draws(range(400)))
        assert seen.shape == (400, 2, 8, 8)
        level = (seen[:, 1, 0, 0] + 1) / 2
        reached.append(level.max().item())
        assert (level == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
        quiet = level == 0
        torch.testing.assert_close(seen[quiet, 0], images[quiet, 0])
        kept = augmentation._remaining_variance(level * 1000)
        torch.testing.assert_close(seen[:, 0].mean((1, 2)), kept.sqrt() * 0.8, atol=0.15, rtol=0)
        loud = kept < 0.5
        if strength:
            expected = ((1 - kept).sqrt() * 0.3)[loud].mean()
            assert seen[loud, 0].std((1, 2)).mean().item() == pytest.approx(expected.item(), rel=0.05)
    assert reached[0] == pytest.approx(0.1, abs=0.01) and reached[1] > 0.9


def test_the_critic_schedule_follows_the_distance() -> None:
    schedule = CriticSchedule(usual=4, most=8)
    assert schedule.repeats() == 4
    for _ in range(300):
        schedule.learn(torch.tensor(1.0))
    assert schedule.repeats() == 4, "nobody is ahead"
    for _ in range(15):
        schedule.learn(torch.tensor(3.0))
    assert schedule.repeats() < 4, "the discriminator is ahead"
    for _ in range(30):
        schedule.learn(torch.tensor(0.2))
    assert schedule.repeats() > 4, "the generator is ahead"
    for _ in range(60):
        schedule.learn(torch.tensor(-1.0))
    assert schedule.repeats() == 8, "a discriminator that cannot tell images apart gets all there is"


ADAPTIVE = ("objective.loss=wasserstein", "objective.discriminator_norm=layer", "objective.gradient_penalty=10.0",
            "objective.discriminator_repeats=2",
            "objective.discriminator_repeats_most=5")


def test_the_loop_gives_the_discriminator_as_many_updates_as_it_asks_for(tmp_path: Any) -> None:
    recipe = smallest("gan", *ADAPTIVE, "train.steps=1")
    assert train_here(recipe, tmp_path / "one").images == 2 * (2 + 1)
    objective = objective_of("gan", *ADAPTIVE)
    cast(CriticSchedule, objective.players["critic_schedule"]).learn(torch.tensor(-1.0))
    assert [objective.repeats(phase) for phase in objective.phases] == [5, 1]


# ---- what contradicts itself is refused before training


@pytest.mark.parametrize(("family", "overrides", "message"), [
    ("gan", ["objective.loss=hinje"], "objective.loss: there is no 'hinje'; did you mean 'hinge'"),
    ("gan", ["model.image_size=48"], "model.image_size 48"),
    ("stylegan2", ["model.image_size=100"], "model.image_size 100"),
    ("gan", ["objective.discriminator_norm=batch", "objective.gradient_penalty=10.0"], "share statistics"),
    ("gan", ["objective.discriminator_norm=batch", "objective.r1=1.0"], "share statistics"),
    ("gan", ["objective.loss=wasserstein", "objective.augmentation.augment=0.5"], "certainty"),
    ("gan", ["objective.path_length=2.0"], "styles"),
    ("gan", ["objective.discriminator_repeats_most=9"], "wasserstein"),
    ("gan", [*ADAPTIVE, "objective.discriminator_repeats=6"], "less than discriminator_repeats"),
    ("stylegan2", ["objective.discriminator_norm=spectral"], "stylegan2 discriminator has none"),
    ("gan", ["objective.discriminator=progressive", "objective.discriminator_norm=spectral"], "progressive discriminator has none"),
    ("gan", ["objective.growth_images=8"], "a generator and a discriminator that grow"),
    ("gan", ["objective.growth_images=8", "model.network=progressive"], "a generator and a discriminator that grow"),
])
def test_settings_that_contradict_each_other_are_refused(family: str, overrides: list[str], message: str) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        objective_of(family, *overrides)


@pytest.mark.parametrize("family", ["gan", "kumar-gan"])
def test_a_batch_of_one_with_batch_norm_is_refused(family: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="two images a batch"):
        train_here(smallest(family, "train.batch_size=1"), tmp_path)


def test_a_batch_of_one_without_batch_norm_trains(tmp_path: Any) -> None:
    assert train_here(smallest("gan", "train.batch_size=1", "train.steps=1", "model.norm=group"), tmp_path).steps == 1


def test_widths_double_at_each_halving_up_to_a_limit() -> None:
    assert widths(64, 16) == [128, 128, 64, 32, 16] and widths(8, 4) == [8, 4]
