"""Leaning on origin: a mark that stands for the finding in synthetic films is noticed, an idle mark and good films are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthorax.evaluation.leaning import origin_leaning, partial_rank_correlation, without_direction
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.probe import fit_probe
from test_benefit import films, synthetic

CONFIG = ClassifierConfig(updates=100, batch_size=16, width=16, learning_rate=0.01, autocast=False)
TRAIN, ASKED = films(11, present=20, absent=100, name="train"), films(12, present=60, absent=60, name="test")


def leaning(made):
    found = origin_leaning(TRAIN, ASKED, made, findings=["Mass"], config=CONFIG, seed=0)
    return found["probe"], found["findings"][0]


def marked(made):
    images = made.images.copy()
    images[:, :6, :6] = 255
    return replace(made, images=images)


def test_a_mark_that_means_the_finding_is_leant_on():
    """Every synthetic film has a mark and is said to show the finding, whatever it shows."""
    made = marked(synthetic(present=80, absent=80))
    labels = made.labels.copy()
    labels[:, 1] = 1
    probe, told = leaning(replace(made, labels=labels))
    assert probe["auroc"] > 0.95
    assert told["leans"] and told["shift"]["low"] > 0.2
    assert abs(told["shift_without"]["value"]) < told["shift"]["value"] / 2


def test_films_like_real_ones_are_not_leant_on():
    probe, told = leaning(synthetic(present=80, absent=80))
    assert probe["low"] < 0.6 and not told["leans"]
    assert told["auroc"] > 0.8 and abs(told["auroc_drop"]["value"]) < 0.05


def test_partial_correlation_ignores_what_the_label_explains():
    rng = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], 200)
    first, second = (3 * labels + rng.normal(size=400) for _ in range(2))
    value, low, high = partial_rank_correlation(first, second, labels)
    assert np.corrcoef(first, second)[0, 1] > 0.5 and low < 0 < high and abs(value) < 0.15
    assert partial_rank_correlation(first, first + 0.5 * second, labels)[1] > 0.5
    assert partial_rank_correlation(first[:3], second[:3], labels[:3]) == (0.0, -1.0, 1.0)


def test_projection_leaves_the_probe_nothing_and_other_directions_alone():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 5))
    probe = fit_probe(features, (features[:, 0] > 0).astype(float), name="first", strength=1.0)
    level = features[:50]
    moved = without_direction(features, probe, level=level)
    assert probe.scores(moved) == pytest.approx(np.full(300, probe.scores(level).mean()))
    assert np.linalg.matrix_rank((moved - features) - (moved - features).mean(axis=0), tol=1e-9) == 1


def test_too_few_films_give_no_answer():
    assert origin_leaning(TRAIN, ASKED, synthetic(present=10, absent=10), findings=["Mass"], config=CONFIG, seed=0) is None
