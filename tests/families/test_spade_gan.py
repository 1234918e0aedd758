"""Masks to images: what the mask moves, what the segmenter learns, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.families.adversarial.objective import AdversarialObjective
from synthorax.families.adversarial.terms import mask_loss
from synthorax.nets.spade import MaskNorm, MaskReader, mask_channels
from synthorax.protocols import Condition, as_model
from synthorax.steps.models.recipe import build_objective
from synthorax.training.feed import Feed
from trainings import FINDINGS, SITES, fresh_objective, smallest, toy_images


def objective_of(*overrides: str) -> AdversarialObjective:
    objective = fresh_objective(smallest("spade-gan", "objective.part_dropout=0.0", *overrides))
    assert isinstance(objective, AdversarialObjective)
    return objective


def test_a_mask_says_stated_and_value() -> None:
    mask = torch.tensor([0.0, 0.5, 1.0, math.nan]).reshape(1, 4, 1, 1)
    channels = mask_channels(mask, masks=4, size=1, side=1, device=torch.device("cpu")).flatten().tolist()
    assert channels == [1, 1, 1, 0, -1, 0, 1, 0]
    assert not mask_channels(None, masks=3, size=2, side=4, device=torch.device("cpu")).any(), "not stated is not absent"


def test_the_mask_moves_features_where_it_differs_and_nowhere_else() -> None:
    torch.manual_seed(0)
    norm = MaskNorm(8, kind="batch", inputs=2, hidden=6).eval()
    x, beside = torch.randn(1, 8, 16, 16), torch.zeros(1, 2, 16, 16)
    changed = beside.clone()
    changed[..., :4, :4] = 1.0
    difference = (norm(x, changed) - norm(x, beside)).abs().amax((0, 1))
    assert difference[:4, :4].min() > 0
    assert difference[6:].max() == 0 and difference[:, 6:].max() == 0, "two 3 x 3 convolutions reach 2 px"


def test_masks_count_by_stated_pixels_alone() -> None:
    logits = torch.full((3, 2, 2, 2), 2.0)
    mask = torch.ones(3, 2, 2, 2)
    mask[1, 1], mask[2] = math.nan, math.nan
    wrong = logits.clone()
    wrong[1, 1] = -9.0  # not stated: does not count
    expected = math.log1p(math.exp(-2.0))
    assert mask_loss(wrong, mask).tolist() == pytest.approx([expected, expected, 0.0])
    assert mask_loss(logits, None).tolist() == [0.0, 0.0, 0.0]


def test_the_segmenter_is_passive(engine: Engine) -> None:
    """It learns beside the discriminator, from real images; in the generator's phase it only judges."""
    objective = objective_of()
    assert {phase.name: (phase.updates, phase.sees_patients) for phase in objective.phases} == {
        "discriminator": (("discriminator", "segmenter"), True), "generator": (("generator",), False)}
    spec = as_model(objective.model).spec
    batch = Feed(toy_images(16), spec=spec, batch_size=4, balance=0.0, augment=False, seed=0, engine=engine).batch(0)
    assert set(objective("generator", batch)) == {"generator", "generator_mask"}
    learned = objective.eval()("discriminator", batch)["segmenter"]
    objective.players["generator"].generator.last.bias.data += 1.0  # type: ignore[union-attr, operator]
    assert torch.equal(objective("discriminator", batch)["segmenter"], learned), "made images teach it nothing"
    assert "generator_mask" not in objective_of("objective.segmenter=0.0")("generator", batch)


def test_the_segmenter_can_learn_masks() -> None:
    torch.manual_seed(0)
    reader = MaskReader(masks=1, channels=4)
    optimizer = torch.optim.Adam(reader.parameters(), lr=1e-2)
    for _ in range(60):
        mask = (torch.rand(8, 1, 2, 2) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        loss = mask_loss(reader(mask - 0.5 + 0.2 * torch.randn(8, 1, 16, 16)), mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25, "chance is ln 2 = 0.69"


def test_the_discriminator_sees_the_mask_with_the_image(engine: Engine) -> None:
    objective = objective_of().eval()
    spec = as_model(objective.model).spec
    batch = Feed(toy_images(16), spec=spec, batch_size=4, balance=0.0, augment=False, seed=0, engine=engine).batch(0)
    mask = cast(torch.Tensor, batch.condition.mask)
    fresh = [replace(batch, condition=replace(batch.condition, mask=one),
                     draws=type(batch.draws)(range(4))) for one in (mask, 1 - mask)]
    first, second = (objective("discriminator", one)["real"] for one in fresh)
    assert not torch.allclose(first, second)


def test_a_set_without_masks_is_refused() -> None:
    with pytest.raises(UsageError, match="has none; prepare a set with masks"):
        build_objective(smallest("spade-gan"), findings=FINDINGS, sites=SITES, masks=())


@pytest.mark.parametrize(("family", "override", "message"), [
    ("gan", "objective.segmenter=1.0", "conditioned on masks"), ("spade-gan", "objective.augmentation.augment=0.5",
                                                                    "and not their masks")])
def test_masks_are_asked_for_where_there_are_some(family: str, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fresh_objective(smallest(family, override))


def test_images_without_a_stated_mask_are_generated_too() -> None:
    model = as_model(objective_of().model.eval())
    unstated = Condition.unstated(2, num_labels=len(FINDINGS), num_sites=len(SITES))
    assert model.sample(unstated, [1, 2]).shape == (2, 1, 16, 16)
    assert cast(Any, model).sample(None, [1]).isfinite().all()
