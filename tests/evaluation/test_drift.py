"""Drift: what is changed on purpose raises the alarm, two halves of one set do not more often than stated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from phantoms import phantom_images
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.corruptions import corrupt
from synthorax.evaluation.monitoring.drift import Drift, drift_between
from synthorax.evaluation.monitoring.drift_page import drift_page
from synthorax.judges.radiomics import RadiomicsFeatures
from synthorax.types import ImageSet

IMAGES = phantom_images(240, seed=4)
OLD, NEW = IMAGES.take(range(160)), IMAGES.take(range(160, 240))


def drift(old: ImageSet, new: ImageSet, seed: int = 0) -> Drift:
    return drift_between(old, new, features=RadiomicsFeatures(), seed=seed, draws=99)


def alarms(found: Drift) -> set[str]:
    return {shift.name for shift in found.shifts if shift.alarm}


def test_halves_of_one_set_rarely_raise_the_alarm() -> None:
    rng, raised = np.random.default_rng(0), 0
    for seed in range(20):
        order = rng.permutation(len(IMAGES))
        raised += drift(IMAGES.take(order[:160]), IMAGES.take(order[160:]), seed).alarm
    assert raised <= 4  # one is expected; five or more has a chance of 0.3 %


@pytest.mark.parametrize(("how", "seen_in"), [("blur", "look: "), ("gain", "look: "), ("noise", "look: noise")])
def test_changed_images_raise_the_alarm(how: str, seen_in: str) -> None:
    images = (ndimage.gaussian_filter(NEW.pixels, sigma=(0, 1, 1)) if how == "blur" else corrupt(NEW.pixels, how, seed=0))
    found = drift(OLD, replace(NEW, pixels=images))
    assert found.alarm and any(name.startswith(seen_in) for name in alarms(found))


def test_another_site_and_more_findings_are_named() -> None:
    there = replace(OLD, studies=tuple(replace(study, site="north") for study in OLD.studies))
    moved = replace(NEW, studies=tuple(replace(study, site="south") for study in NEW.studies))
    assert alarms(drift(there, moved)) == {"site"}
    ill = NEW.take(np.flatnonzero(NEW.column("Effusion") == 1))
    assert {"finding Effusion", "finding No Finding"} <= alarms(drift(OLD, ill))
    unnamed = drift(OLD, NEW)
    assert "site" in unnamed.not_compared[0] and "site" not in {shift.name for shift in unnamed.shifts}


def test_one_image_of_a_new_site_is_no_alarm() -> None:
    there = replace(OLD, studies=tuple(replace(study, site="north") for study in OLD.studies))
    moved = replace(NEW, studies=tuple(replace(study, site="south" if row == 0 else "north") for row, study in enumerate(NEW.studies)))
    assert "site" not in alarms(drift(there, moved))


def test_report_and_page_hold_the_same(tmp_path: Path) -> None:
    found = drift(OLD, replace(NEW, pixels=corrupt(NEW.pixels, "noise", seed=0)))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["alarm"] is True and told["schema"] == "synthorax.drift/1" and {"name", "digest"} == set(told["features"])
    page = drift_page(found)
    assert "The newer images differ" in page and "<script" not in page
    assert all(shift["name"] in page for shift in told["shifts"])
    assert "alarm" in str(found).lower()


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="newer set has 5 patients"):
        drift(OLD, NEW.take(range(5)))
    with pytest.raises(UsageError, match="same image size"):
        drift(OLD, phantom_images(30, seed=6, px=48))
