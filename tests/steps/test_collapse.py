"""The collapse monitor: it stays quiet on varied images, and a planted collapse fires it once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthorax.data.phantom import write_phantom_dataset
from synthorax.steps.training.collapse import CollapseMonitor, collapse_warning
from trainings import smallest, toy_images, train_here


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    drawn = write_phantom_dataset(tmp_path_factory.mktemp("drawn") / "images", num=48, size=32, seed=1, prevalence={"Effusion": 0.4})
    return np.stack([np.asarray(Image.open(drawn.path / study.file_name).convert("L")) for study in drawn.studies])


def looks_at(log: Path, real: NDArray[np.uint8], sheets: list[NDArray[np.uint8]]) -> list[dict[str, float | str]]:
    """What a run's log holds after some sheets, each looked at by a new monitor, as after a restart."""
    for sheet in sheets:
        seen = CollapseMonitor(real, log=log, seed=0).look(sheet)
        with log.open("a") as file:
            file.write(json.dumps({"step": 1, **seen}) + "\n")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_varied_images_are_no_collapse_and_one_image_again_and_again_is(images: NDArray[np.uint8], tmp_path: Path,
                                                                     caplog: pytest.LogCaptureFixture) -> None:
    real, varied = images[:32], images[32:]
    noise = np.random.default_rng(0).integers(0, 3, varied.shape, dtype=np.uint8)
    collapsed = np.minimum(np.repeat(varied[:1], len(varied), axis=0), 250) + noise
    with caplog.at_level(logging.WARNING):
        looks = looks_at(tmp_path / "metrics.jsonl", real, [varied, varied, varied, collapsed, collapsed, collapsed, collapsed])
    assert sum("warning" in look for look in looks) == 1 and len(caplog.records) == 1
    assert not any("warning" in look for look in looks[:3]) and any("warning" in look for look in looks[3:5])
    assert looks[0]["sample_recall"] > 0.2 and looks[4]["sample_recall"] < 0.1  # type: ignore[operator]
    assert looks[0]["sample_ms_ssim"] < looks[4]["sample_ms_ssim"]  # type: ignore[operator]


def look(*, ms_ssim: float, recall: float, precision: float = 0.5) -> dict[str, float | str]:
    return {"sample_ms_ssim": ms_ssim, "real_ms_ssim": 0.4, "sample_recall": recall, "sample_precision": precision}


def test_the_first_grey_sheet_is_forgiven_and_lost_recall_is_not() -> None:
    grey, fine = look(ms_ssim=0.9, recall=0.0), look(ms_ssim=0.45, recall=0.5)
    assert collapse_warning([grey]) == "" == collapse_warning([grey, fine]) == collapse_warning([fine, grey | {"sample_recall": 0.4}])
    assert "alike" in collapse_warning([grey, grey])
    assert "recall was 0.50 and is 0.05" in collapse_warning([fine, look(ms_ssim=0.45, recall=0.05)])
    assert collapse_warning([look(ms_ssim=0.45, recall=0.1), look(ms_ssim=0.45, recall=0.0)]) == "", "there was nothing to lose"
    noise = look(ms_ssim=0.45, recall=0.9, precision=0.0)
    assert collapse_warning([noise, look(ms_ssim=0.45, recall=0.1)]) == "", "noise is wide, not varied"


def test_too_few_or_too_small_images_say_nothing(tmp_path: Path) -> None:
    few = np.zeros((3, 32, 32), np.uint8)
    tiny = np.zeros((20, 8, 8), np.uint8)
    assert CollapseMonitor(few, log=tmp_path / "none", seed=0).look(few) == {}
    assert CollapseMonitor(tiny, log=tmp_path / "none", seed=0).look(tiny) == {}


def test_what_the_monitor_finds_is_a_line_of_its_own(tmp_path: Path) -> None:
    recipe = smallest("gan", "train.steps=2", "train.sample_every=2")
    train_here(recipe, tmp_path, images=toy_images(16), sample=lambda model, step: {"sample_recall": 0.5, "warning": f"at {step}"})
    *losses, seen = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all("generator" in line for line in losses)
    assert seen["step"] == 2 and seen["sample_recall"] == 0.5 and seen["warning"] == "at 2"
