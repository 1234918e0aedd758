"""Reports on the same images share a folder: each verb adds its dimension, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from synthorax.errors import InputError
from synthorax.evaluation.report.folder import report_folder
from synthorax.evaluation.report.record import Dimension, Report
from synthorax.types import Score

SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"


def part(name: str, value: float, **extra: object) -> Report:
    """A report that measured one dimension, with a figure."""
    score = Score(metric="recall", value=value, low=value, high=value, n_real=1, n_synthetic=1)
    return Report(inputs={"real": {"digest": "a1"}, "synthetic": {"digest": "b2"}}, judges=({"name": name, "digest": "c3"},),
                  dimensions={name: Dimension("measured", scores=(score,), extra=extra)}, figures={f"figure of {name}": SVG})


def add(out: Path, verb: str, report: Report, *, seed: int = 0, synthetic: str = "b2") -> Report:
    """What a verb does."""
    with report_folder(out, part=verb, real="a1", synthetic=synthetic, settings={"seed": seed}) as folder:
        return folder.read() if folder.done else folder.written(report)


def test_each_verb_adds_its_dimension_and_no_figure_is_orphaned(tmp_path: Path) -> None:
    add(tmp_path, "an evaluation", part("fidelity", 0.5))
    both = add(tmp_path, "an audit", part("privacy", 0.7, gate={"passed": True, "reasons": []}))
    assert both.dimensions["fidelity"].status == both.dimensions["privacy"].status == "measured"
    assert Report.load(tmp_path) == both and len(both.judges) == 2
    assert len(list((tmp_path / "figures").iterdir())) == len(both.figures) == 2


def test_an_evaluation_does_not_take_the_place_of_an_audit(tmp_path: Path) -> None:
    add(tmp_path, "an audit", part("privacy", 0.7, gate={"passed": True, "reasons": []}))
    later = part("fidelity", 0.5).with_dimension("privacy", part("privacy", 0.1).dimensions["privacy"])
    assert "gate" in add(tmp_path, "an evaluation", later).dimensions["privacy"].extra


def test_the_same_call_finds_its_report_and_others_are_refused(tmp_path: Path) -> None:
    first = add(tmp_path, "an evaluation", part("fidelity", 0.5))
    assert add(tmp_path, "an evaluation", part("fidelity", 0.9)) == first
    with pytest.raises(InputError, match="holds an evaluation with other seed"):
        add(tmp_path, "an evaluation", part("fidelity", 0.9), seed=1)
    with pytest.raises(InputError, match="holds a report with other synthetic images"):
        add(tmp_path, "an audit", part("privacy", 0.9), synthetic="b3")
    assert Report.load(tmp_path) == first
    assert add(tmp_path / "none", "an evaluation", replace(first, notes=("new",))).notes == ("new",)
