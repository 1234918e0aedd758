"""Reading: what a text states becomes numbers of a condition, learned from descriptions whose meaning is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from synthorax.nets.text import WordEncoder
from synthorax.nets.text_statements import TextParser
from synthorax.protocols import LESION_PROPERTIES
from synthorax.training.text_statements import made_up_text, read

FINDINGS = ("Cardiomegaly", "Effusion", "Nodule", "Pneumothorax")
LEFT, SIZE, X, Y = (LESION_PROPERTIES.index(name) for name in ("left", "size", "x", "y"))


def stated(text: str) -> dict[str, float]:
    labels = read([text], FINDINGS).labels[0].tolist()
    return {name: value for name, value in zip(FINDINGS, labels, strict=True) if not math.isnan(value)}


def lesion(text: str, finding: str) -> Tensor:
    return read([text], FINDINGS).lesions[0, FINDINGS.index(finding)]


@pytest.mark.parametrize(("text", "labels"), [
    ("small left effusion, no nodule", {"Effusion": 1, "Nodule": 0}),
    ("possible pneumothorax", {"Pneumothorax": 0.5}),
    ("normal chest", dict.fromkeys(FINDINGS, 0)),
    ("normal heart size", {"Cardiomegaly": 0}),
    ("AP image of a man", {}),
    ("", {}),
])
def test_a_text_states_what_it_says_and_nothing_else(text: str, labels: dict[str, float]) -> None:
    assert stated(text) == labels


def test_a_lesion_in_words_has_a_side_a_size_and_a_height_but_no_point() -> None:
    small = lesion("small left effusion in the lower zone", "Effusion")
    assert small[LEFT] == 1 and small[SIZE] < 1 / 3 and small[Y] > 0.6 and small[X].isnan()
    assert lesion("right effusion", "Effusion")[LEFT] == 0
    assert lesion("no left effusion", "Effusion").isnan().all()
    both = lesion("bilateral small effusions", "Effusion")
    assert both[LEFT].isnan() and both[SIZE] < 1 / 3, "lesions of one finding keep what all of them share"


def test_random_texts_mention_every_finding_and_both_sides_equally() -> None:
    rng = np.random.default_rng(0)
    made = read([made_up_text(FINDINGS, rng) for _ in range(600)], FINDINGS)
    for value in (0.0, 1.0):
        counts = (made.labels == value).sum(0)
        assert counts.min() > 60 and counts.max() < 3 * counts.min()
    normal = (made.labels == 0).all(1)
    assert 0.01 < normal.float().mean() < 0.1, "and some call the whole chest normal"
    sides = made.lesions[:, 1:, LEFT]
    assert 0.4 < sides[~sides.isnan()].mean() < 0.6
    assert made.labels.isnan().float().mean() > 0.3, "most texts leave most things unsaid"


@pytest.fixture(scope="module")
def learned() -> tuple[WordEncoder, TextParser]:
    """An encoder and a reader after 600 steps of 16 made-up texts, some 15 seconds."""
    torch.manual_seed(0)
    encoder, reader = WordEncoder(width=64), TextParser(len(FINDINGS), width=64)
    optimiser = torch.optim.Adam([*encoder.parameters(), *reader.parameters()], lr=2e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.05, total_iters=600)
    rng = np.random.default_rng(1)
    for _ in range(600):
        batch = read([made_up_text(FINDINGS, rng) for _ in range(16)], FINDINGS)
        loss = reader.loss(*encoder(batch.texts), labels=batch.labels, lesions=batch.lesions)
        assert loss.shape == (16,)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        slower.step()
    return encoder, reader


def test_reading_is_learned_in_a_few_hundred_steps(learned: tuple[WordEncoder, TextParser]) -> None:
    """Nearly every statement and side of texts that it never saw; a reader that says nothing would score 0."""
    encoder, reader = learned
    rng = np.random.default_rng(2)
    unseen = read([made_up_text(FINDINGS, rng) for _ in range(300)], FINDINGS)
    labels, lesions = reader(*encoder(unseen.texts))
    told = ~unseen.labels.isnan()
    assert (labels == unseen.labels)[told].float().mean() > 0.9
    assert labels[~told].isnan().float().mean() > 0.95
    sided = ~unseen.lesions[..., LEFT].isnan()
    assert (lesions == unseen.lesions)[..., LEFT][sided].float().mean() > 0.85


def test_a_denial_and_a_side_are_understood(learned: tuple[WordEncoder, TextParser]) -> None:
    encoder, reader = learned
    labels, lesions = reader(*encoder(["there is an effusion", "no effusion", "left effusion", "right effusion", ""]))
    assert labels[:4, 1].tolist() == [1, 0, 1, 1] and labels[4].isnan().all(), "an empty text says nothing"
    assert lesions[2:4, 1, LEFT].tolist() == [1, 0] and lesions[1].isnan().all(), "what is absent has no place"
