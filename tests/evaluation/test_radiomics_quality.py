"""The radiomics quality score: its sum, its bounds, and answers that are refused."""

import pytest

from synthorax.errors import InputError
from synthorax.evaluation.dimensions.radiomics_quality import ITEMS, radiomics_quality
from synthorax.evaluation.report.record import Dimension, Report

SIDES = {"real": {"digest": "a"}, "synthetic": {"digest": "b"}}


def best(item):
    return list(item.points) if item.several else max(item.points, key=item.points.get)


def written(path, answers):
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in answers.items()))
    return path


def test_all_and_none(tmp_path):
    """36 points at most and -8 at least, as published: two items cost points."""
    assert len(ITEMS) == 16
    most = radiomics_quality(written(tmp_path / "a.toml", {name: best(item) for name, item in ITEMS.items()}))
    assert (most["score"], most["flag"]) == (36, "")
    least = radiomics_quality(written(tmp_path / "b.toml", dict.fromkeys(ITEMS, "none")))
    assert least["score"] == -8
    assert "below 18" in least["flag"]


def test_half_of_the_points_is_just_enough(tmp_path):
    """Reduction 3, register 7, validation 5, gold standard 2, cost 1: 18; without the last it is flagged."""
    answers = dict.fromkeys(ITEMS, "none") | {"feature_reduction": "yes", "prospective": "yes", "validation": "three institutes",
                                              "gold_standard": "yes", "cost": "yes"}
    enough = radiomics_quality(written(tmp_path / "a.toml", answers))
    assert (enough["score"], enough["flag"]) == (18, "")
    short = radiomics_quality(written(tmp_path / "a.toml", answers | {"cost": "none"}))
    assert (short["score"], bool(short["flag"])) == (17, True)


def test_what_the_report_shows_need_not_be_answered(tmp_path):
    answers = {name: "none" for name in ITEMS if name not in ("discrimination", "calibration")}
    path = written(tmp_path / "a.toml", answers)
    arm = {"arm": "real", "auroc": 0.8, "auprc_low": 0.2, "brier": {"value": 0.1}, "ece": {"value": 0.1}}

    def report(**without):
        shown = {key: value for key, value in arm.items() if key not in without}
        benefit = Dimension("measured", findings=({"finding": "Mass", "verdict": "no evidence", "arms": [shown]},))
        return Report(inputs=SIDES, dimensions={"benefit": benefit})

    found = radiomics_quality(path, report())
    assert found["score"] == -8 + 4
    assert found["items"]["calibration"] == {"points": 2, "answer": ["statistics", "resampling"], "by": "the report"}
    assert found["items"]["biology"]["by"] == "the file"
    for certain in (report(ece=0), Report(inputs=SIDES), None):
        with pytest.raises(InputError, match="has no answer"):
            radiomics_quality(path, certain)


def test_it_joins_the_report(tmp_path):
    found = radiomics_quality(written(tmp_path / "a.toml", dict.fromkeys(ITEMS, "none")))
    page = Report(inputs=SIDES | {"radiomics_quality": found}).write(tmp_path / "out").read_text()
    assert "below 18" in page
    assert Report.load(tmp_path / "out").inputs["radiomics_quality"]["score"] == -8


@pytest.mark.parametrize(("change", "message"), [
    ({"biolgy": "yes"}, "unknown item 'biolgy'; did you mean 'biology'"),
    ({"validation": "yes"}, "'validation' is 'yes'; choose from: none, same institute"),
    ({"validation": ["same institute", "other institute"]}, "'validation' has 2 answers"),
    ({"open": ["code", "code"]}, "'open' has 2 answers"),
    ({"phantom": 1}, "'phantom' is 1"),
])
def test_bad_answers_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        radiomics_quality(written(tmp_path / "a.toml", dict.fromkeys(ITEMS, "none") | change))


def test_files_that_are_no_toml(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        radiomics_quality(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("phantom: yes\n")
    with pytest.raises(InputError, match="cannot be read"):
        radiomics_quality(tmp_path / "a.toml")
