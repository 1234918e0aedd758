"""Groups, shortcuts and other sites: a weak group, a score that stands for the site and a site left out are what they were made to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benefit_task import QUICK
from synthorax.evaluation.benefit.comparison import ArmPredictions
from synthorax.evaluation.benefit.shortcuts import shortcuts
from synthorax.evaluation.benefit.subgroups import subgroup_benefit
from synthorax.evaluation.benefit.worst_cases import failure_sheets, wrongness
from synthorax.evaluation.report.page import figure_title
from synthorax.evaluation.statistics.roc import auroc
from synthorax.types import ImageSet, Study

CONFIG = replace(QUICK, resamples=400)


def scored(real, added, *, labels, images_per_patient=1, **columns):
    """What both arms say, as if three trainings had said it, [N] each; `columns` fill the table."""
    rng, number = np.random.default_rng(9), len(labels)
    studies = tuple(Study(file_name=f"{row}.png", patient_id=f"p{row // images_per_patient}",
                          **{name: values[row] for name, values in columns.items()}) for row in range(number))
    test = ImageSet(pixels=rng.integers(0, 255, (number, 16, 16), dtype=np.uint8), studies=studies, findings=("Mass",),
                 labels=np.asarray(labels, dtype=np.float32)[:, None], digest="d")
    said = {arm: (1 / (1 + np.exp(-values[:, None] - 0.05 * rng.normal(size=(number, 3)))))[:, None]
            for arm, values in (("real", real), ("real+synthetic", added))}
    return ArmPredictions(test=test, probabilities=said, scores=said, thresholds={}, ratios={})


def weak_women(num=600, *, mended):
    rng = np.random.default_rng(0)
    labels, sex = np.arange(num) % 3 == 0, np.where(rng.random(num) < 0.5, "F", "M")
    noise = rng.normal(size=num)
    real = np.where(sex == "M", 2.0, 0.2) * labels + noise
    return scored(real, (2.0 if mended else np.where(sex == "M", 2.0, 0.2)) * labels + noise, labels=labels, sex=sex.tolist(),
                   view=["PA"] * num)


# Groups


def test_a_weak_group_that_the_images_mend_gains_and_the_gap_narrows():
    found = subgroup_benefit(weak_women(mended=True), "Mass", CONFIG)
    women, men = found["groups"]
    assert (women["group"], men["group"]) == ("sex F", "sex M") and found["worse"] == []
    assert women["arms"][0]["high"] < men["arms"][0]["low"]
    assert women["delta"]["low"] > 0.1 and women["delta"]["p_holm"] < 0.05 and abs(men["delta"]["value"]) < 0.03
    gap, = found["gaps"]
    assert gap["verdict"] == "narrower" and gap["change"]["high"] < -0.1 and gap["change"]["between"] == ["sex M", "sex F"]
    assert gap["arms"][0]["worst"] == "sex F" and gap["arms"][0]["beyond_chance"]["low"] > 0.1
    for arm in (0, 1):
        assert gap["arms"][arm]["value"] == pytest.approx(abs(women["arms"][arm]["auroc"] - men["arms"][arm]["auroc"]))
    assert gap["change"]["value"] == pytest.approx(men["delta"]["value"] - women["delta"]["value"])
    assert {"attribute": "view", "group": "view PA", "reason": "the tested images name fewer than two groups"} in found["skipped"]


def test_a_group_that_stays_weak_changes_nothing():
    found = subgroup_benefit(weak_women(mended=False), "Mass", CONFIG)
    gap, = found["gaps"]
    assert gap["verdict"] == "no evidence" and gap["change"]["low"] < 0 < gap["change"]["high"] and gap["arms"][1]["value"] > 0.2


def test_images_that_help_men_alone_widen_the_gap_and_name_who_lost():
    fair = weak_women(mended=True)
    swapped = replace(fair, scores={"real": fair.scores["real+synthetic"], "real+synthetic": fair.scores["real"]})
    found = subgroup_benefit(swapped, "Mass", CONFIG)
    assert found["gaps"][0]["verdict"] == "wider" and found["worse"] == ["sex F"]


def test_a_group_of_few_patients_is_skipped_however_many_images_it_has():
    rng = np.random.default_rng(1)
    labels = np.arange(240) % 2 == 0
    site = np.where(np.arange(240) < 40, "small", np.where(np.arange(240) < 140, "a", "b"))
    found = subgroup_benefit(scored(*rng.normal(size=(2, 240)), labels=labels, site=site.tolist(), images_per_patient=10), "Mass", CONFIG)
    assert [row["group"] for row in found["groups"]] == ["site a", "site b"]
    skipped = next(entry for entry in found["skipped"] if entry["group"] == "site small")
    assert "in 4 patients" in skipped["reason"]


# Shortcuts


def at_sites(*, reliance, num=800, sharing=0.8, images_per_patient=1):
    """Two sites, one with many positives; the score holds the finding and, by `reliance` of each arm, the site."""
    rng = np.random.default_rng(2)
    at_a = rng.random(num) < 0.5
    labels = rng.random(num) < np.where(at_a, sharing, 1 - sharing)
    signal = labels + rng.normal(size=num)
    return scored(*(signal + amount * at_a for amount in reliance), labels=labels, site=np.where(at_a, "a", "b").tolist(),
                   images_per_patient=images_per_patient)


def test_a_score_that_stands_for_the_site_is_flagged_in_the_arm_that_relies_on_it():
    found = shortcuts(at_sites(reliance=(0.0, 1.5)), "Mass", CONFIG)
    checked, = found["checked"]
    honest, reliant = checked["arms"]
    assert not honest["shortcut"] and honest["excess"]["low"] < 0 < honest["excess"]["high"]
    assert reliant["shortcut"] and reliant["excess"]["low"] > 0.05
    assert reliant["within"] == pytest.approx(honest["within"], abs=0.02) and reliant["pooled"] > honest["pooled"]
    assert reliant["excess"]["value"] == pytest.approx(reliant["pooled"] - reliant["within"])
    assert checked["change"]["low"] > 0.05
    first = reliant["association"][0]
    assert first["group"] == "site a" and first["low"] > 0.3
    assert honest["association"][0]["low"] < 0 < honest["association"][0]["high"]
    assert found["skipped"] == [{"attribute": "view", "reason": "the tested images name fewer than two groups of 5 patients"}]


def test_a_shortcut_that_gains_nothing_shows_only_in_the_association():
    checked, = shortcuts(at_sites(reliance=(0.0, 1.5), sharing=0.5), "Mass", CONFIG)["checked"]
    reliant = checked["arms"][1]
    assert reliant["association"][0]["low"] > 0.3 and not reliant["shortcut"]


def test_within_is_the_mean_area_of_the_sites_by_their_pairs():
    found = at_sites(reliance=(0.0, 1.5))
    arm = shortcuts(found, "Mass", CONFIG)["checked"][0]["arms"][1]
    labels, said = found.test.column("Mass"), found.scores["real+synthetic"][:, 0].mean(axis=-1)
    sites = [np.array([study.site == name for study in found.test.studies]) for name in "ab"]
    pairs = [float((labels[site] == 1).sum() * (labels[site] == 0).sum()) for site in sites]
    assert arm["within"] == pytest.approx(np.average([auroc(labels[site], said[site]) for site in sites], weights=pairs))
    assert arm["pooled"] == pytest.approx(auroc(labels, said))


def test_a_site_that_is_the_label_cannot_be_checked():
    found = at_sites(reliance=(0.0, 0.0), sharing=1.0)
    assert "no group has 5 tested patients with and without" in shortcuts(found, "Mass", CONFIG)["skipped"][1]["reason"]


def test_honest_scores_are_seldom_flagged():
    flagged = sum(arm["shortcut"] for seed in range(20) for arm in shortcuts(
        shuffled_noise(seed), "Mass", replace(CONFIG, resamples=200))["checked"][0]["arms"])
    assert flagged <= 5  # of 40; 2 are due at most, since Holm counts both arms


def shuffled_noise(seed):
    rng = np.random.default_rng(seed)
    at_a = rng.random(200) < 0.5
    labels = rng.random(200) < np.where(at_a, 0.7, 0.3)
    return scored(*(labels + rng.normal(size=(2, 200))), labels=labels, site=np.where(at_a, "a", "b").tolist())


# Gallery


def test_the_gallery_shows_the_worst_images_and_no_patient():
    labels = np.array([1, 1, 1, 0, 0, 0])
    found = scored(np.array([-3.0, 2, 2, 0, 0, 0]), np.array([3.0, 2, 2, 0, 0, 0]), labels=labels)
    sheets = failure_sheets(found, "Mass")
    assert all(sheet.startswith(b"\x89PNG") for sheet in sheets.values())
    assert not any("p0" in name or "0.png" in name for name in sheets)
    assert "corrected_by_synthetic: Mass" in sheets and all("test images of patients" in figure_title(name) for name in sheets)
    assert wrongness(labels, np.array([-3.0, 2, 2, 0, 0, 0])).tolist() == pytest.approx([1, 0, 0, 1 / 3, 1 / 3, 1 / 3])
