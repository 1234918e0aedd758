"""The loss on held-out images: what it sees, that it changes nothing, and that it ends a training that learns its images by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthorax.engine import started
from synthorax.errors import InputError, UsageError
from synthorax.training.held_out import LOSS, SEEN_LOSS, HeldOutLoss, standing
from synthorax.training.loop import train
from synthorax.types import ImageSet
from trainings import fresh_objective, smallest, toy_images, train_here

MEASURED = ("train.held_out_every=5", "train.steps=20")


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if LOSS in line]


def noise(num: int, *, seed: int) -> ImageSet:
    """Images that have nothing in common."""
    images = toy_images(8, num=num, seed=seed)
    pixels = np.random.default_rng(seed).integers(0, 256, images.pixels.shape, dtype=np.uint8)
    return replace(images, pixels=pixels, masks=None, lesions=None)


def test_it_is_measured_at_its_interval_and_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    plain = train_here(smallest("diffusion", "train.steps=20"), tmp_path / "plain")
    outcome = train_here(smallest("diffusion", *MEASURED), tmp_path / "measured", held_out=toy_images(8, seed=1))
    assert all(torch.equal(one, other) for one, other in zip(plain.model.parameters(), outcome.model.parameters(), strict=True))
    lines = lines_of(tmp_path / "measured")
    assert [line["step"] for line in lines] == [5, 10, 15, 20] and all(SEEN_LOSS in line for line in lines)
    assert plain.held_out is None and outcome.held_out is not None
    assert outcome.held_out.loss == lines[-1][LOSS] and outcome.held_out.best == min(line[LOSS] for line in lines)


def test_two_measurements_of_the_same_weights_are_equal_and_those_of_better_weights_lower(tmp_path: Path) -> None:
    recipe, held_out = smallest("diffusion", "train.steps=200", "train.learning_rate=5e-3", "train.batch_size=8"), toy_images(8, seed=1)
    outcome = train_here(recipe, tmp_path)
    with started(device="cpu", threads=1, precision="fp32", seed=0) as engine:
        objective = fresh_objective(recipe)
        judge = HeldOutLoss(objective, held_out, toy_images(8), batch_size=8, seed=0, engine=engine)
        before = [weight.clone() for weight in objective.parameters()]
        fresh, trained = judge.measure(fresh_objective(recipe).model), judge.measure(outcome.model)
        assert judge.measure(outcome.model) == trained
    assert trained[LOSS] < 0.9 * fresh[LOSS]
    assert objective.training and all(torch.equal(one, other) for one, other in zip(before, objective.parameters(), strict=True))


def test_learning_by_heart_shows_and_ends_the_training(tmp_path: Path) -> None:
    """Six images of noise can only be learned by heart: their loss falls, that of others rises, and the training ends long before 2,000."""
    recipe = smallest("diffusion", "train.steps=2000", "train.learning_rate=1e-2", "train.batch_size=6", "train.augment=false",
                      "train.ema_halflife_images=0", "train.held_out_every=25", "train.stop=held-out", "train.patience=4",
                      'model.parts=["labels"]', "objective.sigma_mean=0.0", "objective.sigma_std=0.5", "model.channels=16")
    outcome = train_here(recipe, tmp_path, images=noise(6, seed=0), held_out=noise(32, seed=1))
    lines = lines_of(tmp_path)
    assert outcome.finished and outcome.steps < 1500 and outcome.steps == lines[-1]["step"]
    assert outcome.held_out is not None and outcome.held_out.since == 4
    assert outcome.held_out.best_step == lines[-5]["step"] and lines[-1][LOSS] > outcome.held_out.best
    assert lines[-1][SEEN_LOSS] < 0.9 * lines[-1][LOSS]


def test_a_training_that_is_continued_knows_its_measurements(tmp_path: Path) -> None:
    recipe = smallest("diffusion", *MEASURED, "train.checkpoint_every=5", "train.augment=false")
    held_out = toy_images(8, seed=1)
    whole = train_here(recipe, tmp_path / "whole", held_out=held_out)
    with started(device="cpu", threads=1, precision="fp32", seed=0) as engine:
        for _ in range(30):
            part = train(fresh_objective(recipe), toy_images(8), recipe.train, engine=engine, folder=tmp_path / "parts", pause_seconds=1e-6,
                         held_out=held_out)
    assert part.finished and part.held_out == whole.held_out
    assert [line[LOSS] for line in lines_of(tmp_path / "parts")] == [line[LOSS] for line in lines_of(tmp_path / "whole")]


def test_the_lowest_loss_is_the_first_of_equal_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert standing(path) is None
    path.write_text("".join(json.dumps({"step": step, "images": 2 * step, LOSS: loss}) + "\n"
                            for step, loss in enumerate([0.5, 0.4, 0.4, 0.6])))
    now = standing(path)
    assert now is not None and (now.best_step, now.best_images, now.since, now.loss) == (1, 2, 2, 0.6)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.stop: held-out needs train\.held_out_every"):
        smallest("diffusion", "train.stop=held-out")
    with pytest.raises(UsageError, match="there are no validation images"):
        train_here(smallest("diffusion", *MEASURED), tmp_path)
    with pytest.raises(UsageError, match="do not say how well it has learned"):
        train_here(smallest("gan", *MEASURED), tmp_path, held_out=toy_images(16))
