"""One identifier a metric, wherever it appears; and reports of the first revision are still read."""

import json
import re
from pathlib import Path

import pytest

from report_examples import report, score
from synthorax import former_names
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.comparison.join import SCHEMA, read_report
from synthorax.evaluation.comparison.measures import DISTRIBUTION, REQUEST, VIEW, WITHIN
from synthorax.evaluation.comparison.pages import COSTS, DOWNSTREAM, RANKED, table
from synthorax.evaluation.report.folder import report_folder
from synthorax.evaluation.report.record import REVISION, TABLE_COLUMNS, Dimension, Report
from synthorax.metric_table import METRICS, Metric
from synthorax.steps.models.card import metrics_of

HERE = Path(__file__).parent
EARLIER = [HERE / "report_of_revision_1.json", HERE / "audit_of_revision_1.json"]
DOCS = next((HERE.parents[1] / "docs").rglob("metrics.md"))


@pytest.mark.parametrize("identifier", METRICS)
def test_an_identifier_is_snake_case_and_its_entry_complete(identifier):
    entry = METRICS[identifier]
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", identifier)
    assert entry.better in ("higher", "lower") and entry.name and entry.source and entry.sees
    assert "\n" not in entry.sees and len(entry.sees) < 120


def test_the_docs_list_exactly_the_metrics_of_the_table():
    section = DOCS.read_text(encoding="utf-8").partition("## All metrics")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (higher|lower) \|", section, flags=re.MULTILINE)
    assert listed == [(name, entry.name + (f" ({entry.unit})" if entry.unit else ""), entry.better) for name, entry in METRICS.items()]


def test_a_metric_that_is_in_no_table_is_refused_with_the_nearest_and_one_of_your_own_is_one_line(monkeypatch):
    with pytest.raises(UsageError, match=r"unknown metric 'lesion SSIM'.*lesion_ssim"):
        score(metric="lesion SSIM")
    monkeypatch.setitem(METRICS, "sharpness", Metric(name="Sharpness", better="higher", source="ours", sees="blur"))
    mine = score(metric="sharpness")
    assert mine.better == "higher" and mine.to_dict()["better"] == "higher"
    page = report(dimensions={"fidelity": Dimension("measured", scores=(mine,))})
    assert "Sharpness 60.0" in str(page)


def test_the_table_of_a_report_is_filtered_by_identifier():
    table = report().to_pandas()
    assert tuple(table.columns) == TABLE_COLUMNS
    assert TABLE_COLUMNS[:12] == ("metric", "name", "dimension", "group", "value", "low", "high", "better", "unit", "floor", "n_real",
                                  "n_synthetic")
    fid = table[table.metric == "fid"].iloc[0]
    assert (fid["name"], fid.better, fid.unit, fid.n_real) == ("FID", "lower", "", 300)


def test_former_identifiers_lead_to_present_ones():
    assert set(former_names.METRICS.values()) <= set(METRICS) and not set(former_names.METRICS) & set(METRICS)


@pytest.mark.parametrize("path", EARLIER)
def test_a_report_of_the_first_revision_is_read_with_its_numbers_and_written_as_the_present_one(path, tmp_path):
    earlier = json.loads(path.read_text(encoding="utf-8"))
    assert "revision" not in earlier
    loaded = Report.load(path)
    for name, part in earlier["dimensions"].items():
        assert [score.value for score in loaded.dimensions[name].scores] == [score["value"] for score in part.get("scores", ())]
        assert [score.better for score in loaded.dimensions[name].scores] == [score["better"] for score in part.get("scores", ())]
        assert loaded.dimensions[name].status == part["status"]
    loaded.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["revision"] == REVISION
    assert Report.load(tmp_path).dimensions == loaded.dimensions
    assert {row["metric"] for row in metrics_of(loaded.to_dict())} <= {*METRICS, "verdict"}


def test_former_names_of_metrics_keys_and_figures_are_translated(tmp_path):
    loaded = Report.load(EARLIER[0])
    clinical = {score.metric for score in loaded.dimensions["clinical_acceptability"].scores}
    assert {"turing_accuracy", "acceptable_images", "turing_sensitivity", "sensitivity_gain"} <= clinical
    assert "real_or_synthetic" in loaded.dimensions["clinical_acceptability"].extra["verdict"]
    assert "origin_reliance" in loaded.dimensions["benefit"].extra["shortcut_probe"]
    assert former_names.figure_name("Map of real and synthetic films, chest") == "feature_map: chest"
    assert former_names.figure_name("A, test images of patients, broken by the synthetic images: label") == "spoiled_by_synthetic: A"
    assert former_names.figure_name("real: Mass") == "real: Mass"


def test_a_folder_of_the_first_revision_is_continued(tmp_path):
    earlier = json.loads(EARLIER[0].read_text(encoding="utf-8"))
    sides = {side: earlier["inputs"][side]["digest"] for side in ("real", "synthetic")}
    (tmp_path / "report.json").write_text(json.dumps(earlier), encoding="utf-8")
    (tmp_path / "synthorax.json").write_text(json.dumps({
        "kind": "a report", "inputs": {"real images": sides["real"], "synthetic images": sides["synthetic"]},
        "parts": {"an evaluation": {"seed": 0}}}), encoding="utf-8")
    with report_folder(tmp_path, part="an evaluation", settings={"seed": 0}, **sides) as folder:
        assert folder.done and folder.read() == Report.load(tmp_path)
    audited = report(inputs={side: {"digest": digest} for side, digest in sides.items()}, dimensions={
        "privacy": Dimension("measured", scores=(score(metric="membership_auroc", value=0.5, low=0.4, high=0.6, floor=0.5),))})
    with report_folder(tmp_path, part="an audit", settings={"seed": 0}, **sides) as folder:
        both = folder.written(audited)
    assert both.dimensions["privacy"].scores[0].metric == "membership_auroc"
    assert {"lesion_ssim", "requested_mask_iou"} <= {score.metric for score in both.dimensions["lesion_preservation"].scores}


@pytest.mark.parametrize("changes", [{"revision": REVISION + 1}, {"schema": "synthorax.report/2"}, {"revision": "2"}])
def test_a_report_of_a_later_version_is_refused_in_words(changes, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report(figures={}).to_dict() | changes), encoding="utf-8")
    with pytest.raises(InputError, match=f"this version of Synthorax reads 'synthorax.report/1' up to revision {REVISION}"):
        Report.load(path)


def test_a_comparison_of_the_first_schema_is_read_under_present_names():
    """One that an earlier version made, among the studies."""
    path = HERE.parents[1] / "docs" / "studies" / "families-kermany.json"
    earlier, present = json.loads(path.read_text(encoding="utf-8")), read_report(path)
    assert earlier["schema"] == "synthorax.comparison/1" and present["schema"] == SCHEMA == "synthorax.comparison/2"
    done = [number for number, arm in enumerate(earlier["arms"]) if arm["seeds"]]
    assert [present["arms"][number]["fid"]["value"] for number in done] == [earlier["arms"][number]["FID"]["value"] for number in done]
    columns, rows = table(present)
    assert "AUROC of the requested finding" in columns and len(rows) == 1 + len(earlier["arms"])
    assert {key for arm in present["arms"] for key in arm if key in METRICS} >= {"fid", "kid", "recall", "ms_ssim_within_synthetic"}


def test_the_metrics_of_a_comparison_are_in_the_table_and_their_keys_snake_case():
    assert {*DISTRIBUTION, WITHIN, REQUEST, VIEW, DOWNSTREAM, *RANKED} <= set(METRICS)
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in (*COSTS, *former_names.COMPARISON.values()))


def test_a_direction_that_contradicts_the_table_is_refused(tmp_path):
    record = report(figures={}).to_dict()
    record["dimensions"]["fidelity"]["scores"][0]["better"] = "higher"
    (tmp_path / "report.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match="fid: higher is better there, and lower in this version"):
        Report.load(tmp_path)
