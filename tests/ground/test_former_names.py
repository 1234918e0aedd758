"""Former names: renamed where an earlier version wrote them, and never where a user gave the same name to a thing of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import synthorax as sx
from synthorax.errors import UsageError
from synthorax.evaluation.report.record import DIMENSIONS
from synthorax.former_names import with_present_facts, with_present_weights
from synthorax.metric_table import METRICS
from synthorax.options import SampleSettings
from synthorax.steps.generate import changed_settings


def test_names_that_users_gave_to_findings_stay_as_they_are() -> None:
    facts = {"films": 9, "support": {"labels": {"films": {"present": 2}}, "together": {"Mass": {"films": 1}}},
             "findings": {"films": {"present": {"films": 2}}}}
    assert with_present_facts(facts) == {
        "images": 9, "support": {"labels": {"films": {"present": 2}}, "together": {"Mass": {"films": 1}}},
        "findings": {"films": {"present": {"images": 2}}}}


def test_no_weight_is_lost_where_a_name_stands_beside_its_former_one() -> None:
    both = {"critic.weight": torch.zeros(1), "discriminator.weight": torch.ones(1)}
    assert with_present_weights(both) == both
    assert list(with_present_weights({"stages.0.reader.bias": torch.zeros(1)})) == ["stages.0.text_parser.bias"]


def test_sampling_settings_answer_to_their_former_names_in_python_too() -> None:
    assert changed_settings(SampleSettings(), {"image_noise": 0.5}).conditioning_noise == 0.5
    with pytest.raises(UsageError, match=r"give SampleSettings\(super_resolution_steps=\.\.\.\)"):
        sx.generate("phantom-64", out="nowhere", enlarging_steps=3)  # type: ignore[call-arg]


def test_a_report_with_a_metric_of_another_program_is_read(tmp_path: object) -> None:
    record = {"schema": "synthorax.report/1", "revision": 2, "created": "", "version": "", "command": "", "judges": [], "notes": [],
              "inputs": {"real": {"digest": "0" * 64}, "synthetic": {"digest": "1" * 64}}, "warnings": [], "figures": {},
              "dimensions": {name: {"status": "skipped", "reason": "not asked for"} for name in DIMENSIONS}}
    score = {"metric": "sharpness_of_ribs", "value": 0.5, "low": 0.4, "high": 0.6, "better": "higher", "n_real": 3, "n_synthetic": 3}
    record["dimensions"]["fidelity"] = {"status": "measured", "scores": [score]}  # type: ignore[index]
    path = Path(str(tmp_path)) / "report.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    try:
        report = sx.Report.load(path)
        (read,) = report.dimensions["fidelity"].scores
        assert read.better == "higher" and "sharpness_of_ribs" in str(report.to_pandas()) and np.isclose(read.value, 0.5)
    finally:
        METRICS.pop("sharpness_of_ribs", None)
