"""The demonstration at tiny size: its stages, a kill, a slow clock, and the small model that it starts from."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import synthorax as sx
from progress_checks import check_progress
from synthorax.data.phantom import PhantomSplit, write_phantom_dataset
from synthorax.data.prepared import load_images
from synthorax.errors import InputError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.judges.classifier import train_classifier
from synthorax.verbs.augmentation import Work
from synthorax.verbs.demonstration import BASE, COMMON, FINDING, SMALL, DemoConfig, Demonstration, demo
from synthorax.zoo import shipped
from trainings import in_new_process, killed_when

QUICK = replace(SMALL, updates=4, batch_size=8)
TINY = DemoConfig(
    population=(PhantomSplit(split="train", num=40, prevalence=COMMON), PhantomSplit(split="val", num=20, prevalence=COMMON),
                PhantomSplit(split="test", num=40, prevalence=COMMON)),
    work=Work(steps=5, learning_rate=1e-4, augment=False, judge=QUICK,
              benefit=replace(BenefitConfig(classifier=QUICK).brief(), resamples=100)),
    num=12, radiographs=(("", "F"),))


def demonstrate(out: Path) -> None:
    demo(out=out, threads=1, config=TINY)


def result_files(folder: Path) -> dict[str, bytes]:
    """All files of a demonstration but those that tell of time or of the folder's own path: checkpoints, logs, cards and reports."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in (".csv", ".png", ".safetensors", ".npy") and path.parent.name != "checkpoints"}


def benefit_of(folder: Path) -> dict[str, object]:
    """What the report says of the benefit."""
    told: dict[str, object] = json.loads((folder / "report.json").read_text())["dimensions"]["benefit"]
    return told


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    done, titles = check_progress(lambda: demo(out=tmp_path_factory.mktemp("demo") / "d", threads=1, config=TINY))
    assert titles == ["draw", "prepare", "train phantom-64", "plan", "generate", "screen",
                      "join the training set", "evaluate", "benefit", "generate"]
    return done


def test_it_leaves_a_report_with_pictures_and_says_where(finished: Demonstration) -> None:
    page = (finished.out / "report.html").read_text()
    assert "Radiographs by cxr-256" in page and "The need was planted" in page
    assert str((finished.out / "report.html").resolve()) in str(finished) and "95 % interval" in str(finished)
    told = json.loads(json.dumps(finished.to_dict()))
    assert set(told["verdicts"]) == {FINDING} and told["delta"]["low"] <= told["delta"]["value"] <= told["delta"]["high"]
    assert {"phantom", "augmented", "radiographs"} <= {path.name for path in finished.out.iterdir()}
    assert len(finished.radiographs) == 1 and finished.radiographs.facts["synthetic"] is True


def test_a_second_call_changes_nothing(finished: Demonstration) -> None:
    before = result_files(finished.out)
    again = demo(out=finished.out, threads=1, config=TINY)
    assert result_files(finished.out) == before and again.to_dict()["delta"] == finished.to_dict()["delta"]


def test_a_killed_demonstration_goes_on_to_the_same_files(finished: Demonstration, tmp_path: Path) -> None:
    assert killed_when(in_new_process(demonstrate, tmp_path / "d"), (tmp_path / "d/augmented/plan.csv").exists, limit_seconds=250)
    demonstrate(tmp_path / "d")
    assert result_files(tmp_path / "d") == result_files(finished.out) and benefit_of(tmp_path / "d") == benefit_of(finished.out)


def test_a_clock_that_runs_a_thousand_times_faster_changes_nothing(finished: Demonstration, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    hours = itertools.count(0, 3600)
    for clock in ("monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, clock, lambda: float(next(hours)))
    demonstrate(tmp_path / "d")
    assert result_files(tmp_path / "d") == result_files(finished.out) and benefit_of(tmp_path / "d") == benefit_of(finished.out)


def test_it_touches_no_folder_of_others(tmp_path: Path) -> None:
    theirs = tmp_path / "d" / "phantom" / "scan.dcm"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(InputError, match="not empty"):
        demo(out=tmp_path / "d", config=TINY)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["d", "d/phantom", "d/phantom/scan.dcm"]


def test_the_shipped_phantom_base_generates_what_is_requested(tmp_path: Path) -> None:
    drawn = load_images(write_phantom_dataset(tmp_path / "drawn", num=400, seed=77, prevalence={**COMMON, FINDING: 0.5}), size=64)
    judge = train_classifier(drawn.pixels, drawn.labels, findings=drawn.findings, config=SMALL, seed=0)
    asked = sx.plan(sx.prepare(tmp_path / "drawn", size=64, out=tmp_path / "prepared"), count={FINDING: 40})
    synthetic = load_images(sx.generate(BASE, asked, out=tmp_path / "made", threads=1), size=64, findings=drawn.findings)
    shown = synthetic.column(FINDING) == 1
    assert roc_auc_score(shown, judge.predict(synthetic.pixels)[:, drawn.findings.index(FINDING)]) > 0.85
    assert abs(float(np.mean(synthetic.pixels)) - float(np.mean(drawn.pixels))) < 10


def test_the_shipped_phantom_base_is_small() -> None:
    assert shipped()[BASE].weights.stat().st_size <= 1_500_000
