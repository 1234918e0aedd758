"""Leaning on origin: a mark that stands for the finding in synthetic images is noticed, an idle mark and good images are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benefit_task import images, synthetic
from synthorax.evaluation.benefit.origin_reliance import origin_reliance, partial_rank_correlation, without_origin
from synthorax.judges.classifier import ClassifierConfig

CONFIG = ClassifierConfig(updates=100, batch_size=16, width=16, learning_rate=0.01, autocast=False)
TRAIN, ASKED = images(11, present=20, absent=100, name="train"), images(12, present=60, absent=60, name="test")


def reliance_on_origin(made):
    found = origin_reliance(TRAIN, ASKED, made, findings=["Mass"], config=CONFIG, seed=0)
    return found["probe"], found["findings"][0]


def marked(made):
    images = made.pixels.copy()
    images[:, :6, :6] = 255
    return replace(made, pixels=images)


def test_a_classifier_relies_on_a_mark_that_means_the_finding():
    """Every synthetic image has a mark and is said to show the finding, whatever it shows."""
    made = marked(synthetic(present=80, absent=80))
    labels = made.labels.copy()
    labels[:, 1] = 1
    probe, told = reliance_on_origin(replace(made, labels=labels))
    assert probe["auroc"] > 0.95
    assert told["relies_on_origin"] and told["shift"]["low"] > 0.2
    assert abs(told["shift_without"]["value"]) < told["shift"]["value"] / 2


def test_a_classifier_does_not_rely_on_the_origin_of_images_like_real_ones():
    probe, told = reliance_on_origin(synthetic(present=80, absent=80))
    assert probe["low"] < 0.6 and not told["relies_on_origin"]
    assert told["auroc"] > 0.8 and told["auroc_drop_by_chance"] > 0


def test_partial_correlation_ignores_what_the_label_explains():
    rng = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], 200)
    first, second = (3 * labels + rng.normal(size=400) for _ in range(2))
    value, low, high = partial_rank_correlation(first, second, labels)
    assert np.corrcoef(first, second)[0, 1] > 0.5 and low < 0 < high and abs(value) < 0.15
    assert partial_rank_correlation(first, first + 0.5 * second, labels)[1] > 0.5
    assert partial_rank_correlation(first[:3], second[:3], labels[:3]) == (0.0, -1.0, 1.0)


def test_taking_origin_out_leaves_no_difference_of_means_and_real_means_where_they_were():
    rng = np.random.default_rng(1)
    made, labels = np.repeat([0, 1], 150), np.tile([0.0, 1.0], 150)
    features = rng.normal(size=(300, 5)) + np.outer(labels, [0, 2, 0, 0, 0]) + np.outer(made, [1, 0, 0.5, 0, 0])
    erased = without_origin(features, known=features, made=made, labels=labels)
    for value in (0, 1):
        gap = erased[(made == 1) & (labels == value)].mean(axis=0) - erased[(made == 0) & (labels == value)].mean(axis=0)
        assert np.abs(gap[[0, 2]]).max() < 0.25
    assert erased[made == 0].mean(axis=0) == pytest.approx(features[made == 0].mean(axis=0))
    assert np.corrcoef(erased[:, 1], labels)[0, 1] > 0.6  # what the label says is not taken with it
    assert without_origin(features, known=features[:3], made=made[:3], labels=labels[:3]) is features


def test_too_few_images_give_no_answer():
    assert origin_reliance(TRAIN, ASKED, synthetic(present=10, absent=10), findings=["Mass"], config=CONFIG, seed=0) is None
