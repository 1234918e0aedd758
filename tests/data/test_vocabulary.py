import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthorax.data.vocabulary import (
    CHESTXRAY14,
    CHESTXRAY_LT20,
    CHEXPERT14,
    KNOWN,
    NO_FINDING,
    canonical,
    format_findings,
    label_matrix,
    parse_findings,
)
from synthorax.errors import InputError
from synthorax.types import LabelPolicy, Stated, Study

PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN


def test_the_label_lists_have_the_sizes_that_their_papers_give():
    assert [len(set(names)) for names in (CHESTXRAY14, CHESTXRAY_LT20, CHEXPERT14)] == [14, 20, 14]
    assert set(CHESTXRAY14) < set(CHESTXRAY_LT20)  # the relabelling adds five findings and counts No Finding
    assert set(CHESTXRAY_LT20) - set(CHESTXRAY14) - {NO_FINDING} == {
        "Subcutaneous Emphysema", "Tortuous Aorta", "Calcification of the Aorta", "Pneumoperitoneum", "Pneumomediastinum"}
    assert all(canonical(name) == name for name in KNOWN)


@pytest.mark.parametrize(("written", "name"), [
    ("Pleural Effusion", "Effusion"), ("effusion", "Effusion"), ("Pleural Thickening", "Pleural_Thickening"),
    ("pleural-thickening", "Pleural_Thickening"), ("Oedema", "Edema"), ("Pulmonary Edema", "Edema"),
    ("Infiltrate", "Infiltration"), ("NORMAL", NO_FINDING), ("No_Finding", NO_FINDING), ("covid_19", "COVID-19"),
    ("COVID19", "COVID-19"), ("Lung_Opacity", "Lung Opacity"), (" enlarged  cardiomediastinum ", "Enlarged Cardiomediastinum"),
    ("Aortic Calcification", "Calcification of the Aorta"),
])
def test_one_finding_has_one_name(written, name):
    assert canonical(written) == name


def test_an_unknown_finding_is_refused_with_the_nearest_name_and_its_place():
    with pytest.raises(InputError, match=r"labels.csv row 12: unknown finding 'Efusion'; did you mean 'Effusion'\?"):
        parse_findings("Mass|Efusion", file="labels.csv", row=12)
    with pytest.raises(InputError, match="'Viral Pneumonia'"):
        parse_findings("Viral Pneumonia")
    assert parse_findings("viral_pneumonia", allow=["Viral Pneumonia"]) == {"Viral Pneumonia": PRESENT}


def test_all_states_are_read():
    assert parse_findings(" Mass | Oedema? |!Hernia") == {"Mass": PRESENT, "Edema": UNCERTAIN, "Hernia": ABSENT}
    assert parse_findings("No Nodule") == {"Nodule": ABSENT}
    assert parse_findings("") == parse_findings("Unlabelled") == {}


@pytest.mark.parametrize("cell", ["No Finding|Mass", "Mass|!Mass", "Effusion|Pleural Effusion?"])
def test_contradictions_are_refused_with_the_row(cell):
    with pytest.raises(InputError, match=r"a\.csv row 3: "):
        parse_findings(cell, file="a.csv", row=3)


def test_a_catheter_may_stand_beside_no_finding():
    labels = parse_findings("No Finding|Support Devices")
    np.testing.assert_array_equal(matrix(labels, ["No Finding", "Support Devices", "Mass"]), [1, 1, 0])


@given(st.dictionaries(st.sampled_from([name for name in KNOWN if name != NO_FINDING]), st.sampled_from(list(Stated))))
def test_what_is_written_is_read_back(labels):
    assert parse_findings(format_findings(labels)) == labels


def matrix(labels, findings, **policy):
    return label_matrix([Study(file_name="a.png", labels=labels)], findings, policy=LabelPolicy(**policy))[0]


FINDINGS = ["Mass", "Edema", "Hernia", NO_FINDING]
nan = np.nan


@pytest.mark.parametrize(("cell", "policy", "expected"), [
    ("", {}, [nan, nan, nan, nan]),  # nothing stated is not normal
    ("", {"uncertain": "negative"}, [nan, nan, nan, nan]),
    ("Mass", {}, [1, 0, 0, 0]),
    ("Mass", {"unlisted": "not stated"}, [1, nan, nan, 0]),
    ("Mass|Edema?", {}, [1, nan, 0, 0]),
    ("Mass|Edema?", {"uncertain": "positive"}, [1, 1, 0, 0]),
    ("Mass|Edema?", {"uncertain": "negative"}, [1, 0, 0, 0]),
    ("Edema?", {"uncertain": "ignore"}, [0, nan, 0, nan]),
    ("Edema?", {"uncertain": "positive"}, [0, 1, 0, 0]),
    ("No Finding", {}, [0, 0, 0, 1]),
    ("No Finding", {"unlisted": "not stated"}, [0, 0, 0, 1]),  # normal says that all others are absent
    ("No Finding|Edema?", {}, [0, nan, 0, 1]),
    ("No Finding?", {"uncertain": "positive", "unlisted": "not stated"}, [nan, nan, nan, 1]),
    ("!Mass", {}, [0, 0, 0, nan]),  # without a mass is not the same as normal
    ("!Mass", {"unlisted": "not stated"}, [0, nan, nan, nan]),
    ("!No Finding", {}, [nan, nan, nan, 0]),  # abnormal, but not said how
    ("Atelectasis", {"unlisted": "not stated"}, [nan, nan, nan, 0]),  # present, though it has no column here
])
def test_statements_become_numbers_by_the_stated_policy(cell, policy, expected):
    np.testing.assert_array_equal(matrix(parse_findings(cell), FINDINGS, **policy), np.float32(expected))


def test_the_matrix_has_a_row_for_each_study_even_where_there_is_none():
    assert label_matrix([], FINDINGS).shape == (0, 4)
    assert label_matrix([Study(file_name="a.png")], []).shape == (1, 0)
    assert label_matrix([], FINDINGS).dtype == np.float32


def test_an_unknown_finding_is_refused_with_each_choice_once() -> None:
    with pytest.raises(InputError, match="choose from") as refused:
        canonical("Scoliosis", allow=("Effusion", "Mass"))
    assert str(refused.value).count("Effusion,") == str(refused.value).count("Mass,") == 1
