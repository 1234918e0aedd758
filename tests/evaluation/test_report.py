"""What a report must never do: hide a dimension, carry a number that is none, run a label as code, claim too much."""

import dataclasses
import doctest
import html.parser
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report_examples import ARMS, benefit_entry, report, score
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.report import contact_sheets, page, plots
from synthorax.evaluation.report import record as report_module
from synthorax.evaluation.report.record import DIMENSIONS, REVISION, BalanceRow, Dimension, Report

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> $x^2$ {{ 7*7 }} javascript:alert(3) --> ]]>"
ROOT = Path(__file__).parents[2]
ACCEPTANCE = ROOT.parent / "shared" / "acceptance" / "check_report.py"


# --- the record -----------------------------------------------------------------------------------------------------

def test_all_dimensions_are_always_there_in_order():
    empty = Report(inputs={"real": {"digest": "a"}, "synthetic": {"digest": "b"}})
    assert list(empty.to_dict()["dimensions"]) == list(DIMENSIONS)
    assert all(part["status"] == "skipped" and part["reason"] for part in empty.to_dict()["dimensions"].values())


def test_the_guide_to_a_report_has_every_dimension_in_order():
    page = (ROOT / "docs/how-to/read-a-report.md").read_text(encoding="utf-8")
    section = page.partition("\n## The dimensions\n")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| ([a-z ]+) \|", section)[1:] == [name.replace("_", " ") for name in DIMENSIONS]


@pytest.mark.skipif(not ACCEPTANCE.exists(), reason="the acceptance checks are not beside this checkout")
def test_written_report_passes_the_acceptance_check(tmp_path):
    report().write(tmp_path)
    wanted = ["fidelity=measured", "robustness=skipped"]
    command = [sys.executable, str(ACCEPTANCE), str(tmp_path / "report.json"), *wanted]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("ok")


def test_a_score_stands_in_the_file_as_the_contract_says():
    told = json.loads(json.dumps(report().to_dict()))
    assert told["schema"] == "synthorax.report/1" and told["revision"] == REVISION == 2
    assert told["dimensions"]["fidelity"]["scores"][0] == {
        "metric": "fid", "features": "EfficientNet-Lite0", "value": 60.0, "low": 55.0, "high": 66.0, "better": "lower",
        "floor": 21.0, "group": "all", "n_real": 300, "n_synthetic": 400}
    assert "scores" not in told["dimensions"]["benefit"]
    assert told["dimensions"]["privacy"]["threshold"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
@pytest.mark.parametrize("place", ["value", "low", "floor", "extra", "findings", "inputs"])
def test_numbers_that_are_none_are_refused_when_building(bad, place):
    with pytest.raises(UsageError, match="not finite"):
        if place == "extra":
            Dimension("measured", scores=(score(),), extra={"deep": [{"er": np.array([bad])}]})
        elif place == "findings":
            Dimension("measured", findings=(benefit_entry(p=bad),))
        elif place == "inputs":
            report(inputs={"real": {"digest": "a", "images": bad}, "synthetic": {"digest": "b"}})
        else:
            Dimension("measured", scores=(score(**{place: bad}),))


@pytest.mark.parametrize("build", [
    lambda: Dimension("skipped"), lambda: Dimension("failed"), lambda: Dimension("not_applicable"),
    lambda: Dimension("measured"), lambda: Dimension("passed", reason="x"),
    lambda: Dimension("measured", scores=(score(low=61.0),)),
    lambda: score(metric="fidd"),
    lambda: Dimension("skipped", reason="x", extra={"status": "measured"}),
    lambda: Dimension("measured", scores=(score(),), extra={"x": object()}),
    lambda: report(dimensions={"fidellity": Dimension("skipped", reason="x")}),
    lambda: report(inputs={"real": {"digest": "a"}}), lambda: report(judges=({"name": "nameless weights"},)),
    lambda: report(figures={"real: X": b"GIF89a"}),
    lambda: report(dimensions={"benefit": Dimension("measured", findings=(benefit_entry(verdict="probably"),))}),
])
def test_unsound_reports_are_refused(build):
    with pytest.raises(UsageError):
        build()


def test_what_is_written_is_what_is_read(tmp_path):
    figures = {"real: A/..\\B": contact_sheets.png_bytes(Image.new("L", (4, 4))), "map": "<svg/>"}
    written = report(notes=("The images are drawings.",), warnings=("The training was too short.",), figures=figures)
    page = written.write(tmp_path)
    assert page == tmp_path / "report.html" and page.exists()
    assert Report.load(tmp_path) == written == Report.load(tmp_path / "report.json")
    assert not list(tmp_path.rglob("*.tmp"))


def test_merging_fills_one_dimension_and_keeps_the_old_report():
    before = report()
    judge = {"name": "classifier", "digest": "d" * 64}
    after = before.with_dimension("diversity", Dimension("measured", scores=(score(metric="recall"),)),
                                  judges=[judge, before.judges[0]], figures={"map": "<svg/>"})
    assert before.dimensions["diversity"].status == "skipped" and after.dimensions["diversity"].status == "measured"
    assert after.judges == (*before.judges, judge)
    assert set(after.figures) == {*before.figures, "map"}
    assert after.dimensions["fidelity"] == before.dimensions["fidelity"] and after.created == before.created


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "synthorax.report/9"}',
                                  '{"schema": "synthorax.report/1"}',
                                  '{"schema": "synthorax.report/1", "inputs": {}, "judges": [], "dimensions": {}}'])
def test_files_that_are_no_report_are_refused_by_name(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json"):
        Report.load(tmp_path)


def test_figures_outside_the_folder_are_not_read(tmp_path):
    (tmp_path / "secret.svg").write_text("<svg>secret</svg>")
    report(figures={"map": "<svg/>"}).write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    told["figures"] = {"map": "../secret.svg", "gone": "figures/gone.png"}
    (tmp_path / "out" / "report.json").write_text(json.dumps(told))
    loaded = Report.load(tmp_path / "out")
    assert loaded.figures == {}
    assert sum("was not beside report.json" in note for note in loaded.notes) == 2


def test_table_has_one_row_a_score_and_a_trained_arm():
    table = report().to_pandas()
    assert len(table) == 3 + len(ARMS)
    assert set(table[table.dimension == "benefit"].arm) == set(ARMS)
    assert table.loc[table.metric == "fid", "value"].tolist() == [60.0, 60.0]


def test_terminal_text_names_the_verdict_and_all_dimensions():
    text = str(report())
    assert "Pneumothorax: adding synthetic images helps." in text and "FID 60.0 [55.0, 66.0]" in text
    assert all(name.replace("_", " ") in text for name in DIMENSIONS)


def test_warnings_stand_before_everything_else(tmp_path):
    warned = report(warnings=("The training was too short.",), notes=("The images are drawings.",))
    assert str(warned).index("Warning: The training was too short.") < str(warned).index("adding synthetic images")
    page = warned.write(tmp_path).read_text()
    assert page.index("The training was too short.") < page.index("adding synthetic images helps") < page.index("The images are drawings.")
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == ["The training was too short."]


# --- the words ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("verdict", "value", "low", "high", "expected"), [
    ("helps", 0.031, 0.008, 0.055, "adding synthetic images helps"),
    ("hurts", -0.03, -0.05, -0.01, "adding synthetic images hurts"),
    ("no evidence", 0.002, -0.02, 0.03, "no evidence that adding synthetic images helps")])
def test_verdict_gives_the_number_interval_p_test_and_patients(verdict, value, low, high, expected):
    told = page.verdict(benefit_entry(verdict=verdict, value=value, low=low, high=high))
    assert told["headline"] == f"Pneumothorax: {expected}."
    for part in (*(page.show(number, signed=True) for number in (value, low, high)),
                 "p = 0.012 (DeLong)", "from 0.780 to 0.810"):
        assert part in told["detail"]
    assert "224 test patients" in told["sizes"] and "1,600 updates" in told["sizes"]
    assert ("not proof" in told["caution"]) == (verdict == "no evidence")


def test_corrected_and_tiny_p_values_are_reported():
    assert page.probability({"p": 1e-9, "test": "DeLong"}) == "p < 0.001 (DeLong)"
    corrected = page.probability({"p": 0.012, "p_holm": 0.024, "test": "DeLong"})
    assert corrected == "p = 0.012 (DeLong), after Holm's correction p = 0.024"


@pytest.mark.parametrize("module", [report_module, page, contact_sheets, plots])
def test_examples_in_docstrings_run(module):
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


# --- the page -------------------------------------------------------------------------------------------------------

class Page(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.styles = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "style":
            self.styles += data
        self.text += data


@pytest.fixture(scope="module")
def hostile_page():
    row = BalanceRow(finding=HOSTILE, before=3, after=30, total_before=100, total_after=130)
    dimensions = {
        "fidelity": Dimension("measured", scores=(
            score(group=HOSTILE, features=HOSTILE, note=HOSTILE),)),
        "lesion_preservation": Dimension("measured", findings=({HOSTILE: {HOSTILE: [HOSTILE, 1, None, True]}},)),
        "benefit": Dimension("measured", findings=(
            benefit_entry(finding=HOSTILE, classifier=HOSTILE, others_worse=[HOSTILE]),)),
        "privacy": Dimension("skipped", reason=HOSTILE)}
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(4)'><script>alert(5)</script>{HOSTILE}</svg>"
    figures = {f"real: {HOSTILE}": contact_sheets.png_bytes(Image.new("L", (8, 8))), HOSTILE: svg}
    built = report(dimensions=dimensions, balance=(row,), figures=figures, notes=(HOSTILE,), warnings=(HOSTILE,), command=HOSTILE,
                   judges=({"name": HOSTILE, "digest": HOSTILE, "role": HOSTILE},),
                   inputs={"real": {"digest": HOSTILE, HOSTILE: HOSTILE}, "synthetic": {"digest": "b"}})
    return page.render(built, questions=DIMENSIONS)


def test_hostile_labels_stay_text(hostile_page):
    page = Page(hostile_page)
    active = {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not active & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 12
    assert page.text.count("{{ 7*7 }}") >= page.text.count(HOSTILE)  # shown, not computed


def test_page_needs_nothing_from_outside(hostile_page):
    page = Page(hostile_page)
    for _, attrs in page.tags:
        assert attrs.get("src", "data:").startswith("data:image/")  or "src" not in attrs
        assert all(attrs[name].startswith("#") for name in ("href", "xlink:href") if name in attrs)
        assert not [value for value in attrs.values() if value and "url(" in value and "url(#" not in value]
    assert "url(" not in page.styles and "@import" not in page.styles
    assert "http://" not in hostile_page and "https://" not in hostile_page
    policy = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policy and policy[0].startswith("default-src 'none'")


def test_page_can_be_read_by_a_machine_that_reads_aloud(hostile_page):
    page = Page(hostile_page)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    assert dict(page.tags)["html"]["lang"] == "en"


def test_page_leads_with_the_verdict_and_marks_what_is_synthetic():
    text = page.render(report(), questions=DIMENSIONS)
    parts = ("adding synthetic images helps", "0.78 → 0.81", "224", "Pictures", ">Dimensions<", ">Inputs<")
    order = [text.index(part) for part in parts]
    assert order == sorted(order)
    assert "not a medical device" in text and 'class="mark synthetic"' in text
    assert text.count("data:image/png;base64,") == 2 and text.count("<svg") == 3  # two sheets; balance, forest and ROC


def test_page_says_so_when_benefit_was_not_measured():
    silent = report(dimensions={"benefit": Dimension("skipped", reason="fewer than 5 images with the finding")})
    text = Page(page.render(silent, questions=DIMENSIONS)).text
    assert "has not been measured" in text and "fewer than 5 images with the finding." in text


@pytest.mark.parametrize(("reasons", "said"), [((), "The audit found no reason against a release."),
                                               (("copies were found",), "Not fit for release.")])
def test_page_of_an_audit_leads_with_its_gate(reasons, said):
    gate = {"passed": not reasons, "reasons": list(reasons)}
    audited = report(dimensions={"privacy": Dimension("measured", scores=(score(),), extra={"gate": gate})})
    text = Page(page.render(audited, questions=DIMENSIONS)).text
    assert said in text and "has not been measured" not in text
    assert all(f"{reason.capitalize()}." in text for reason in reasons)


def test_a_benefit_entry_without_curves_or_delta_still_makes_a_page():
    bare = {"finding": "Hernia", "verdict": "no evidence"}
    best = {"against": "classic", "arm": "real+synthetic", "value": 0.01, "low": -0.01, "high": 0.03, "p": 0.3}
    measured = Dimension("measured", findings=(bare, benefit_entry(delta_best_conventional=best)))
    text = page.render(report(dimensions={"benefit": measured}), questions=DIMENSIONS)
    assert "Hernia: no evidence" in text and "Against classic, the best of the conventional methods: +0.010" in text


def test_opening_the_report_module_stays_cheap():
    heavy = {"torch", "matplotlib", "jinja2", "pandas"}
    code = f"import sys, synthorax.evaluation.report.record; print({heavy} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set()"


# --- plots ----------------------------------------------------------------------------------------------------------

def bar_lengths(svg, colour):
    paths = [element.attrib["d"] for element in ElementTree.fromstring(svg).iter() if "d" in element.attrib
             and f"fill: {colour}" in element.attrib.get("style", "") and "clip-path" in element.attrib]
    numbers = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", path)] for path in paths]
    return [max(xs) - min(xs) for xs in numbers]


def test_bars_are_as_long_as_the_counts():
    short, long = bar_lengths(plots.balance_bars(["A", "B"], before=[50, 100], after=[300, 100]), plots.BLUE)
    assert long == pytest.approx(2 * short, rel=1e-4)


def test_forest_marks_follow_the_verdict_not_only_the_interval():
    row = {"labels": ["A"], "value": [0.03], "low": [0.01], "high": [0.05]}
    assert plots.GREEN in plots.forest_plot(**row)
    assert plots.GREEN not in plots.forest_plot(**row, verdicts=["no evidence"])
    assert plots.VERMILION in plots.forest_plot(["A"], value=[-0.03], low=[-0.05], high=[-0.01])


def test_plots_are_the_same_every_time_and_refer_to_nothing():
    curve = {"fpr": [0, 0.5, 1], "tpr": [0, 0.8, 1], "low": [0, 0.7, 1], "high": [0, 0.9, 1]}
    drawn = [plots.roc_curves({"real": curve, HOSTILE: curve}, aurocs={"real": 0.7}) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert re.findall(r"https?://[^\"' ]*", drawn[0]) == ["http://www.w3.org/2000/svg"]
    assert "<script" not in drawn[0] and "<!--" not in drawn[0] and "currentColor" in drawn[0]
    pointed = set(re.findall(r"url\(#([^)]+)\)", drawn[0])) | set(re.findall(r'href="#([^"]+)"', drawn[0]))
    assert pointed and pointed <= set(re.findall(r'id="([^"]+)"', drawn[0]))


def test_labels_in_other_scripts_and_with_control_characters_are_drawn():
    text = plots.balance_bars(["肺炎", "a\x00b\nc"], before=[1, 2], after=[3, 4])
    assert "肺炎" in text and "a b c" in text


# --- contact sheets -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("captions", [None, ["a caption that is far too long for its image"] * 5])
def test_every_image_is_in_its_place_unflipped(depth, captions):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    stored = images if depth == np.uint8 else images.astype(np.uint16) * 257
    sheet = np.asarray(contact_sheets.contact_sheet(stored, columns=3, tile_px=32, captions=captions, title="Pneumothorax"))
    found = {}
    for number, image in enumerate(images):
        for top in range(sheet.shape[0] - 31):
            for left in range(contact_sheets.GAP_PX, sheet.shape[1] - 31, 32 + contact_sheets.GAP_PX):
                if sheet[top, left] == image[0, 0] and np.array_equal(sheet[top:top + 32, left:left + 32], image):
                    found[number] = (top, left)
    assert len(found) == 5
    assert found[0][0] == found[2][0] < found[3][0] == found[4][0]
    assert found[0][1] == found[3][1] < found[1][1] == found[4][1] < found[2][1]


@pytest.mark.parametrize("images", [np.zeros((0, 8, 8), np.uint8), np.zeros((8, 8), np.uint8),
                                   np.zeros((2, 8, 8), np.float32)])
def test_what_is_not_images_is_refused(images):
    with pytest.raises(UsageError):
        contact_sheets.contact_sheet(images)


def test_a_caption_short_is_refused():
    with pytest.raises(UsageError, match="1 captions for 2 images"):
        contact_sheets.contact_sheet(np.zeros((2, 8, 8), np.uint8), captions=["one"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = contact_sheets.save_png(tmp_path / "sheet.png", Image.new("L", (4, 4), 7))
    with pytest.raises(AttributeError):
        contact_sheets.save_png(path, "not an image")
    assert np.asarray(Image.open(path)).tolist() == np.full((4, 4), 7).tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().created = "yesterday"
