"""What a command says at its end and in its refusals: it names what it counts, and says what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthorax.cli import app as cli
from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.image_files import read_image
from synthorax.data.phantom import write_phantom_dataset
from synthorax.diffusion.samplers import SAMPLERS, check_sampler
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.dimensions.lesion_preservation import lesion_preservation
from synthorax.evaluation.dimensions.robustness import robustness
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.monitoring.drift import drift_between
from synthorax.evaluation.report.folder import merge_reports
from synthorax.evaluation.report.record import Dimension, Report
from synthorax.training.loop import Position, _Log
from synthorax.types import Score
from trainings import toy_images

Run = Callable[..., tuple[int, str, str]]
SIDES = {"real": {"digest": "a1"}, "synthetic": {"digest": "b2"}}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synthorax", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantom_dataset(tmp_path_factory.mktemp("sets") / "drawn", num=8, size=32)


def score(metric: str, *, group: str = "all", features: str = "") -> Score:
    return Score(metric=metric, value=0.5, low=0.4, high=0.6, n_real=10, n_synthetic=10, group=group, features=features)


def test_a_dataset_folder_is_copied_to_out(run: Run, drawings: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "ds"
    for _ in range(2):  # the same call again finds its folder
        code, said, _ = run("ingest", drawings.path, "--out", out)
        assert code == 0 and f"dataset: {out}" in said
    copy = read_dataset(out)
    assert copy.studies == drawings.studies and copy.findings == drawings.findings
    assert all(np.array_equal(read_image(out / study.file_name), read_image(drawings.path / study.file_name)) for study in drawings.studies)
    assert copy.facts["drawing"] == drawings.facts["drawing"]
    other = write_phantom_dataset(tmp_path / "other", num=4, size=32)
    code, _, refused = run("ingest", other.path, "--out", out)
    assert code == 3 and "holds a dataset folder with other" in refused


def test_export_says_how_many_files_it_wrote(run: Run, drawings: Dataset, tmp_path: Path) -> None:
    code, said, _ = run("export", drawings.path, "--format", "png", "--out", tmp_path / "out")
    assert code == 0 and f"images: {len(drawings)}" in said


def test_a_summary_says_of_which_finding_and_which_features_a_number_is() -> None:
    report = Report(inputs=SIDES, dimensions={
        "controllability": Dimension("measured", scores=(score("requested_finding_auroc", group="Mass"),
                                                         score("requested_finding_auroc", group="Nodule"))),
        "privacy": Dimension("measured", scores=(score("near_duplicate_rate"), score("near_duplicate_rate", features="pixels")))})
    text = str(report)
    assert "AUROC of the requested finding, Mass 0.5" in text and "AUROC of the requested finding, Nodule 0.5" in text
    assert "Near-duplicate rate 0.5" in text and "Near-duplicate rate, by pixels 0.5" in text


def test_a_report_keeps_the_command_of_each_verb_and_none_is_no_sentence(tmp_path: Path) -> None:
    first, second = (Report(inputs=SIDES, command=f"synthorax {verb}") for verb in ("evaluate", "benefit"))
    both = merge_reports(first, second)
    assert both.command == "synthorax evaluate\nsynthorax benefit" and merge_reports(both, second).command == both.command
    assert "synthorax benefit" in both.write(tmp_path).read_text()
    assert "command line" not in replace(both, command="").write(tmp_path).read_text()


def test_drift_says_why_images_without_patients_are_too_few() -> None:
    images = toy_images(num=8, size=16)
    nobody = replace(images, studies=tuple(replace(study, patient_id="") for study in images.studies))
    with pytest.raises(InputError, match=r"has 1 patient \(all images without patient_id count as one\), and at least 20 are needed; "
                                         r"write patient_id"):
        drift_between(nobody, nobody, features=None)  # type: ignore[arg-type]


def test_an_unknown_sampler_is_answered_with_all_of_them() -> None:
    with pytest.raises(UsageError, match=re.escape("did you mean 'ddpm'? The samplers: " + ", ".join(SAMPLERS))):
        check_sampler("dpm", eta=None)


def test_a_model_that_takes_no_text_comes_with_a_remedy(run: Run, tmp_path: Path) -> None:
    code, _, refused = run("generate", "phantom-64", "--text", "effusion", "--num", 1, "--out", tmp_path / "g")
    assert code == 2 and "leave this out, or choose a model that is conditioned on it" in refused


def test_help_explains_every_argument_and_cuts_no_sentence(run: Run) -> None:
    assert "Further numbers of --positives" in run("benefit", "--help")[1]
    assert "more_positives" not in run("benefit", "--help")[1]
    line = next(line for line in run("--help")[1].splitlines() if line.strip().startswith("drift"))
    assert line.endswith("Detect distribution shift between two sets.")


def test_the_first_line_of_a_training_claims_no_speed(tmp_path: Path) -> None:
    said: list[str] = []
    log = _Log(tmp_path, step=0)
    for step in (1, 2):
        log.write(Position(step=step, images=8 * step, elapsed_seconds=float(step)), {"loss": torch.tensor(0.5)},
                  progress=lambda done, text: said.append(text), done=0.1)
    assert said[0] == "step 1 loss 0.5000" and said[1].endswith(" images/s")


def test_what_was_skipped_is_said_in_words() -> None:
    images = toy_images(num=8, size=16)
    nowhere = replace(images, studies=tuple(replace(study, site="") for study in images.studies))
    skipped = robustness(RealImages(train=nowhere, held_out=nowhere), nowhere, None, seed=0, corruptions=False)  # type: ignore[arg-type]
    assert skipped.status == "skipped" and skipped.reason.startswith("other sites: ") and "_" not in skipped.reason
    real = RealImages(train=nowhere, held_out=nowhere)
    missing = lesion_preservation(real, nowhere.take(np.arange(2)), None, space=None, seed=0)  # type: ignore[arg-type]
    assert missing.reason == "fewer than 5 of these images were requested with a mask, so there is no lesion region to compare"
