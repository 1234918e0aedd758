"""Directions among latents: those that were planted in a generator are found, and a step along one leaves alone what it is to leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from planted import BLOCKS, NAMES, Planted, judged, score
from synthorax.editing.directions import DirectionConfig, directions, generated_images, move, moved_images, own_directions
from synthorax.editing.inversion import editable
from synthorax.errors import UsageError
from synthorax.protocols import Condition
from synthorax.rng import Draws
from trainings import fresh_objective, smallest

METHODS = ("logistic", "means")


def likeness(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0).item()


@pytest.mark.parametrize("method", METHODS)
def test_planted_directions_are_found_from_the_labels_of_images(method: Any) -> None:
    """Also where half of the labels are not stated; and labels that say nothing give a direction that says nothing."""
    model = Planted()
    latents, said = generated_images(model, judged, seeds=range(800))
    said[::2, 0] = math.nan
    found = directions(latents, said, names=NAMES, config=DirectionConfig(method=method))
    for number, name in enumerate(NAMES):
        assert likeness(found.of(name), model.axes[number]) > 0.95, name
        assert found.of(name).norm().item() == pytest.approx(1, abs=0.1), "a step is a standard deviation of the latents"
    nonsense = torch.rand(said.shape, generator=torch.Generator().manual_seed(1)).round()
    blind = directions(latents, nonsense, names=NAMES, config=DirectionConfig(method=method))
    assert abs(likeness(blind.of(NAMES[0]), model.axes[0])) < 0.7


def test_probabilities_do_as_labels() -> None:
    model = Planted()
    latents, _ = generated_images(model, judged, seeds=range(600))
    sure = torch.sigmoid(4 * latents @ model.axes.T)
    for method in METHODS:
        found = directions(latents, sure, names=NAMES, config=DirectionConfig(method=cast(Any, method)))
        assert likeness(found.of(NAMES[1]), model.axes[1]) > 0.95


def test_a_conditional_step_leaves_the_other_finding_as_it_is() -> None:
    """The planted axes are not at right angles, so a plain step along one moves the other."""
    model = Planted()
    latents, said = generated_images(model, judged, seeds=range(2000))
    found = directions(latents, said, names=NAMES)
    some = [torch.zeros(1, latents.shape[1])]
    before = model.decode_latents(some, None)
    plain, kept = (model.decode_latents(move(some, step, 2.0), None) for step in (found.of("Effusion"), found.of("Effusion",
                                                                                                                 keep=["Mass"])))
    assert score(plain - before, "Effusion").item() > 0.5 and score(kept - before, "Effusion").item() > 0.3
    assert score(plain - before, "Mass").item() > 0.2
    assert abs(score(kept - before, "Mass").item()) < 0.2 * score(plain - before, "Mass").item()


def test_a_step_moves_the_first_latent_alone_and_each_image_by_its_own_amount() -> None:
    model = Planted()
    latents = [torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), torch.ones(3, 2)]
    step = torch.arange(12.0)
    moved = move(latents, step, torch.tensor([0.0, 1.0, -2.0]))
    assert torch.equal(moved[0][0], latents[0][0]) and torch.equal(moved[1], latents[1])
    torch.testing.assert_close(moved[0] - latents[0], torch.tensor([[0.0], [1.0], [-2.0]]) * step)
    rows = moved_images(model, latents[:1], model.axes[0], [-1.0, 0.0, 1.0])
    torch.testing.assert_close(rows[:, 1], model.decode_latents(latents[:1], None).clamp(-1, 1))
    assert (score(rows[:, 2], "Effusion") > score(rows[:, 0], "Effusion")).all()
    with pytest.raises(UsageError, match="same space"):
        move(latents, torch.zeros(3, 12), 1.0)


@pytest.mark.parametrize("family", ["gan", "stylegan2", "spade-gan", "inversion-encoder"])
def test_the_strongest_direction_of_a_generator_is_the_one_that_was_planted(family: str) -> None:
    """One direction has large weights; the step moves styles of all layers alike."""
    model = cast(Any, fresh_objective(smallest(family)).model.eval())
    inner = cast(Any, model.generator if family == "inversion-encoder" else model)
    size = editable(model).latent_weights().shape[1]
    loud = nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(3)), dim=0)
    layers = [layer.convolution.style for layer in inner.synthesis.layers] if family == "stylegan2" else [inner.generator.start]
    with torch.no_grad():
        for layer in layers:
            rows = torch.randn(len(layer.weight), 1, generator=torch.Generator().manual_seed(4))
            layer.weight[:, :size] = 0.1 * layer.weight[:, :size] + 5 * rows * loud
    found = own_directions(model, num=size)
    space = editable(model)
    step = found.of("1")
    assert step.shape == space.latent_shapes[0]
    assert abs(likeness(step[-1] if step.ndim == 2 else step, loud)) > 0.95
    assert step.ndim == 1 or torch.equal(step[0], step[-1])
    with pytest.raises(UsageError, match="latents of"):
        own_directions(model, num=size + 1)


def test_styles_make_the_images_that_their_latents_make() -> None:
    model = cast(Any, fresh_objective(smallest("stylegan2")).model.eval())
    space = editable(model)
    condition = Condition(labels=torch.tensor([[1.0, 0.0]] * 2), attributes=torch.full((2, 7), math.nan))
    latents = [Draws([5, 6]).normal(*size) for size in model.latent_shapes]
    draws = Draws([5, 6])
    torch.testing.assert_close(space.decode_latents(space.draw_latents(draws, condition), None), model.decode_latents(latents,
                                                                                                                         condition))
    drawn = space.draw_latents(Draws(range(300)), None)[0]
    assert drawn.mean().abs() < 0.2 and drawn.var(0).mean().item() == pytest.approx(1, abs=0.2), "about as large as normal numbers"
    assert editable(Planted()).latent_shapes == ((12,),), "a model without styles is its own space"


def constant(images: Tensor) -> Tensor:
    return torch.ones(len(images), 2)


def test_what_cannot_be_learned_is_refused() -> None:
    model = Planted()
    latents, said = generated_images(model, constant, seeds=range(8))
    with pytest.raises(UsageError, match="'Effusion' is present in 8 of the 8 images"):
        directions(latents, said, names=NAMES)
    with pytest.raises(UsageError, match="labels of shape"):
        directions(latents, said, names=("Effusion",))
    found = directions(*generated_images(model, judged, seeds=range(50)), names=NAMES)
    for name, keep, message in (("Hernia", [], "no direction is known for 'Hernia'"), ("Mass", ["Mass"], "cannot keep 'Mass'"),
                                ("Mass", ["Efusion"], "did you mean 'Effusion'")):
        with pytest.raises(UsageError, match=message):
            found.of(name, keep=cast(Sequence[str], keep))
    with pytest.raises(UsageError, match="'diffusion' makes no images of latents"):
        own_directions(fresh_objective(smallest("diffusion")).model, num=1)
    assert set(BLOCKS) == set(NAMES)
