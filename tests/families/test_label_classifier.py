"""Three players: what is guessed, who learns it, and that guesses become right."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.families.adversarial.label_classifier import LabelClassifier
from synthorax.protocols import Batch, Objective, as_model
from synthorax.rng import Draws
from synthorax.training.feed import Feed
from synthorax.training.loop import _Loop
from trainings import fresh_objective, smallest, toy_images

THREE = ("objective.label_classifier=true", "train.batch_size=8", "objective.part_dropout=0.0")


def batch_of(objective: Objective, engine: Engine, labels: torch.Tensor) -> Batch:
    spec = as_model(objective.model).spec
    batch = Feed(toy_images(16), spec=spec, batch_size=len(labels), balance=0.0, augment=False, seed=0, engine=engine).batch(0)
    return replace(batch, condition=replace(batch.condition, labels=labels), draws=Draws(range(len(labels))))


def test_only_labels_that_are_not_stated_but_vary_are_predicted() -> None:
    label_classifier, nan = LabelClassifier(labels=3, image_size=16, channels=2), math.nan
    label_classifier.note(torch.tensor([[1.0, nan, nan], [nan, 0.0, nan]]))
    filled = label_classifier.filled(torch.tensor([[0.0, nan, nan], [1.0, 1.0, nan]]), torch.zeros(2, 1, 16, 16))
    assert filled[0, 0] == 0 and 0 < filled[0, 1] < 1 and bool(filled[:, 2].isnan().all()) and filled[1, :2].tolist() == [1.0, 1.0]


def test_stated_images_have_no_pseudo_labels_and_pseudo_labels_train_the_classifier(engine: Engine) -> None:
    objective = fresh_objective(smallest("gan", *THREE)).train()
    label_classifier = cast(LabelClassifier, objective.players["label_classifier"])
    label_classifier.known[:] = True
    nan = math.nan
    batch = batch_of(objective, engine, torch.tensor([[1.0, 0.0], [nan, nan], [0.0, nan]]))
    assert (objective("discriminator", batch)["pseudo_labelled"] != 0).tolist()[0] is False
    terms = objective("label_classifier", batch)
    assert set(terms) == {"labels", "made_labels", "pairs"}
    assert terms["labels"][1] == 0 == terms["pairs"][0], "nothing stated to learn, nothing guessed to defend"
    terms["pairs"][1].backward()
    assert label_classifier.last.weight.grad is not None and bool(label_classifier.last.weight.grad.any())


def test_labels_of_unlabelled_images_are_predicted(engine: Engine, tmp_path: Path) -> None:
    """Four of five images state nothing; an effusion is bright at the bottom."""
    images = toy_images(16, num=200)
    labels = images.labels.copy()
    labels[np.arange(200) % 5 != 1] = math.nan
    recipe = smallest("gan", *THREE, "train.learning_rate=1e-3", "train.steps=60", "train.augment=false")
    refine_loop = _Loop(fresh_objective(recipe), replace(images, labels=labels), recipe.train, engine=engine, folder=tmp_path)
    for _ in range(60):
        refine_loop.step(0.0)
    label_classifier = refine_loop.objective.players["label_classifier"].eval()
    unread = np.isnan(labels[:, 0]) & ~np.isnan(images.labels[:, 0])
    with torch.no_grad():
        label_logits = label_classifier(torch.from_numpy(images.pixels[unread]).float()[:, None] / 127.5 - 1)[:, 0] > 0
    assert (label_logits.numpy() == (images.labels[unread, 0] == 1)).mean() > 0.85


def test_a_discriminator_without_labels_cannot_judge_pseudo_labels() -> None:
    with pytest.raises(UsageError, match="projection"):
        fresh_objective(smallest("gan", *THREE, "model.conditioning=auxiliary"))
