"""The closed loop on drawn images: a kind scarce in training is asked for, and then found; a stopped loop goes on to the same end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import synthorax as sx
from phantoms import drawing, phantom_images, study_and_image, write_drawn
from synthorax.data.dataset import Dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.judges.classifier import ClassifierConfig
from synthorax.progress import Progress
from synthorax.steps.feedback.rounds import RefineLoopConfig, error_plan, run_refine_loop
from synthorax.steps.feedback.weak_groups import errors_of, kinds_of, missed_and_alarms
from synthorax.steps.planning.plan import Plan
from synthorax.types import Stated

CLASSIFIER = ClassifierConfig(updates=120, batch_size=16, width=8, input_size=32, learning_rate=0.01, autocast=False)
CONFIG = RefineLoopConfig(rounds=2, num=40, trainings=2, classifier=CLASSIFIER, judge=CLASSIFIER, filters=("copy",))
SIDES = {"train": {"right": 38, "left": 4, "": 70}, "val": {"right": 20, "left": 20, "": 40}, "test": {"right": 6, "left": 6, "": 6}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Effusions on the left are scarce in training, and as frequent as others among validation patients."""
    return prepare_drawn(tmp_path_factory.mktemp("images"), bits=8)


def prepare_drawn(folder: Path, *, bits: int) -> Prepared:
    (folder / "drawn/images").mkdir(parents=True)
    drawn = []
    for split, sides in SIDES.items():
        for side, count in sides.items():
            for number in range(count):
                patient = f"{split}-{side}-{number}"
                study, image = study_and_image(f"images/{patient}.png", patient=patient, seed=len(drawn) + 1, side=side)
                drawn.append((replace(study, split=split), image if bits == 8 else image.astype(np.uint16) * 257))
    write_drawn(folder / "drawn", drawn)
    return sx.prepare(folder / "drawn", size=32, out=folder / "prepared")


@pytest.fixture(scope="module")
def looped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refine-loop") / "out"
    run_refine_loop(drawing, prepared, findings=["Effusion"], out=out, config=CONFIG)
    return out


def group_of(out: Path, number: int, level: str) -> dict:
    rounds = json.loads((out / "loop.json").read_text())["rounds"]
    return next(group for group in rounds[number]["findings"]["Effusion"]["groups"] if group["level"] == level)


def test_a_weak_group_is_requested_more_in_round_two_and_is_found_afterwards(looped: Path) -> None:
    first, second = (group_of(looped, number, "left")["asked"] for number in (1, 2))
    assert second >= first + 8
    before, after = (1 - group_of(looped, number, "left")["wrong"] / group_of(looped, number, "left")["images"] for number in (1, 2))
    assert after >= before + 0.15
    right = [group_of(looped, number, "right") for number in (1, 2)]
    assert right[1]["wrong"] <= right[0]["wrong"] + 5  # others do not pay for it


def test_rounds_leave_plan_images_reasons_and_one_set(looped: Path) -> None:
    for number in (1, 2):
        names = {path.name for path in (looped / f"round-{number}").iterdir()}
        assert {"plan.csv", "made", "kept", "round.json"} <= names
        assert (looped / f"round-{number}/kept/dropped.csv").exists()
    rows = list(csv.DictReader((looped / "synthetic/metadata.csv").read_text().splitlines()))
    kept = [json.loads((looped / f"round-{number}/round.json").read_text())["kept"] for number in (1, 2)]
    assert [sum(row["round"] == str(number) for row in rows) for number in (1, 2)] == kept
    assert {row["split"] for row in rows} == {"train"} and {row["origin"] for row in rows} == {"synthetic"}
    assert all((looped / "synthetic" / row["file_name"]).exists() for row in rows)


def test_synthetic_images_of_8_bits_are_added_to_real_ones_of_16(tmp_path: Path) -> None:
    prepared = prepare_drawn(tmp_path, bits=16)
    assert prepared.images("train").pixels.dtype == np.uint16
    config = replace(CONFIG, rounds=1, num=8, trainings=1, filters=("copy",))
    done = run_refine_loop(drawing, prepared, findings=["Effusion"], out=tmp_path / "out", config=config)
    assert len(done.synthetic) > 0


def test_a_stopped_loop_goes_on_to_the_same_numbers(looped: Path, prepared: Prepared, tmp_path: Path) -> None:
    made = []

    def stopped_in_round_two(plan: Plan, out: Path, progress: Progress) -> Dataset:
        if "round-2" in str(out):
            raise KeyboardInterrupt
        made.append(out)
        return drawing(plan, out)

    with pytest.raises(KeyboardInterrupt):
        run_refine_loop(stopped_in_round_two, prepared, findings=["Effusion"], out=tmp_path / "out", config=CONFIG)
    run_refine_loop(drawing, prepared, findings=["Effusion"], out=tmp_path / "out", config=CONFIG)
    assert len(made) == 1
    for name in ("round-1/round.json", "round-2/plan.csv", "round-2/round.json", "synthetic/metadata.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (looped / name).read_bytes(), name
    with pytest.raises(InputError, match="holds a loop with other"):
        run_refine_loop(drawing, prepared, findings=["Effusion"], out=tmp_path / "out", config=RefineLoopConfig(rounds=1))


def test_errors_are_counted_by_group_and_small_groups_are_shrunk_to_the_rest() -> None:
    images = phantom_images(80, seed=0)
    shows = np.flatnonzero(images.column("Effusion") == 1)
    left = np.array([("side", "left") in kinds_of(study, "Effusion") for study in images.studies])
    errors = errors_of(images, left, shows, "Effusion")
    assert (errors.images, errors.wrong, errors.recall) == (40, 20, 0.5)
    group = errors.groups["side", "left"]
    assert (group.images, group.wrong) == (20, 20) and group.rate == pytest.approx((20 + 4 * errors.overall) / 24)
    assert errors.expected(images.studies[1]) > 3 * errors.expected(images.studies[3])


def test_plans_follow_errors_and_ask_for_nothing_that_no_image_shows() -> None:
    images = phantom_images(80, seed=0)
    scores = np.zeros((80, 2))
    scores[:, 0] = [0.9 if study.extra["lesion_side"] == "right" else 0.1 + 0.001 * row for row, study in enumerate(images.studies)]
    found = {"Effusion": missed_and_alarms(images, scores, "Effusion")}
    plan = error_plan(images, ["Effusion"], found, num=100)
    shows = [row for row in plan.rows if row.labels["Effusion"] is Stated.PRESENT]
    assert (len(shows), len(plan)) == (100, 200)
    assert sum(row.lesions[0].side == "left" for row in shows) > 75
    assert {row.lesions[0].size for row in shows} == {0.6}
    assert error_plan(images, ["Effusion"], found, num=100) == plan
    even = error_plan(images, ["Effusion"], None, num=100)
    assert 35 < sum(row.lesions[0].side == "left" for row in even.rows if row.lesions) < 65


def test_too_few_images_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image states 'Mass'"):
        run_refine_loop(drawing, prepared, findings=["Mass"], out=tmp_path / "a", config=CONFIG)
    with pytest.raises(UsageError, match="which finding"):
        run_refine_loop(drawing, prepared, findings=[], out=tmp_path / "a", config=CONFIG)
    with pytest.raises(UsageError, match="at least 1"):
        RefineLoopConfig(rounds=0)
