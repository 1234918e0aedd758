"""The plan: how many of what, with which companions, and its table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.options import Request
from synthorax.protocols import COARSE, EXACT, PARTS, ModelSpec
from synthorax.protocols import UNCERTAIN as UNSURE
from synthorax.steps.planning.plan import Plan, PlanRow, balancing_plan, plan_like, read_plan, simple_plan
from synthorax.steps.planning.request import row_of
from synthorax.types import ImageSet, Lesion, Stated, Study

PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN
FINDINGS = ("Effusion", "Hernia", "Mass", "No Finding", "Pneumothorax")


def images_of(counts: dict[tuple[str, ...], int], *, findings: tuple[str, ...] = FINDINGS) -> ImageSet:
    """As many images of each combination of findings as asked for; every other finding is stated absent."""
    shown = [combination for combination, number in counts.items() for _ in range(number)]
    labels = np.array([[float(name in combination) for name in findings] for combination in shown], dtype=np.float32)
    studies = tuple(Study(file_name=f"{number}.png", patient_id=f"p{number}", view="PA" if number % 2 else "AP",
                          sex="F" if number % 3 else "M", age_years=30.0 + number % 40) for number in range(len(shown)))
    return ImageSet(pixels=np.zeros((len(shown), 2, 2), np.uint8), studies=studies, findings=findings, labels=labels, digest="")


TRAIN = images_of({("Effusion",): 40, ("Effusion", "Mass"): 12, ("Mass",): 8, ("Pneumothorax",): 10, ("Hernia",): 3, ("No Finding",): 60})


def test_a_balanced_finding_becomes_as_frequent_as_the_most_frequent_one() -> None:
    plan = balancing_plan(TRAIN, balance=["Pneumothorax"])
    assert plan.counts()["Pneumothorax"] == 52 - 10
    assert balancing_plan(TRAIN, count={"Pneumothorax": 7}).counts()["Pneumothorax"] == 7


def test_counts_come_on_top_of_balance() -> None:
    plan = balancing_plan(TRAIN, balance=["Pneumothorax"], count={"Mass": 5}, companions=0)
    assert plan.counts()["Pneumothorax"] == 42 and plan.counts()["Mass"] == 5


def test_all_means_every_finding_that_can_be_learned() -> None:
    plan = balancing_plan(TRAIN, balance=["all"], companions=0)
    counts = plan.counts()
    assert counts["Pneumothorax"] == 42 and counts["Mass"] >= 52 - 20
    assert "Hernia" not in counts and "No Finding" not in counts


@pytest.mark.parametrize(("companions", "expected"), [(0.0, 0), (1.0, 300), (2.0, 600), (0.5, 150)])
def test_companions_lack_the_finding_and_are_as_many_as_asked_for(companions: float, expected: int) -> None:
    plan = balancing_plan(TRAIN, count={"Mass": 300}, companions=companions, seed=1)
    having = [row for row in plan.rows if row.labels["Mass"] is PRESENT]
    lacking = [row for row in plan.rows if row.labels["Mass"] is ABSENT]
    assert len(having) == 300 and len(having) + len(lacking) == len(plan)
    assert len(lacking) == pytest.approx(expected, abs=0 if expected != 150 else 35)


def test_companions_show_other_findings_as_often_as_real_images_do() -> None:
    plan = balancing_plan(TRAIN, count={"Mass": 600}, seed=2)
    lacking = [row for row in plan.rows if row.labels["Mass"] is ABSENT]
    share = sum(row.labels["Effusion"] is PRESENT for row in lacking) / len(lacking)
    assert share == pytest.approx(40 / 113, abs=0.06)


def test_findings_keep_occurring_together_as_they_do() -> None:
    """12 of the 20 images with a mass show an effusion too; no image shows a mass and a pneumothorax."""
    plan = balancing_plan(TRAIN, count={"Mass": 600}, companions=0, seed=3)
    assert plan.counts()["Effusion"] / 600 == pytest.approx(12 / 20, abs=0.06)
    assert plan.counts()["Pneumothorax"] == 0
    real = {tuple(row) for row in np.delete(TRAIN.labels, FINDINGS.index("No Finding"), axis=1)}
    asked = {tuple(float(row.labels[name] is PRESENT) for name in FINDINGS if name != "No Finding") for row in plan.rows}
    assert asked <= real


def test_people_are_those_who_have_the_finding() -> None:
    plan = balancing_plan(TRAIN, count={"Pneumothorax": 200}, companions=0, seed=4)
    ages = [study.age_years for study, value in zip(TRAIN.studies, TRAIN.column("Pneumothorax"), strict=True) if value == 1]
    assert min(ages) - 5 <= min(row.age_years for row in plan.rows) and max(row.age_years for row in plan.rows) <= max(ages) + 5
    assert {row.view for row in plan.rows} == {"PA", "AP"} and {row.sex for row in plan.rows} == {"F", "M"}


def test_what_real_images_do_not_state_is_not_asked_for() -> None:
    labels = TRAIN.labels.copy()
    labels[:, FINDINGS.index("Hernia")] = math.nan
    images = ImageSet(pixels=TRAIN.pixels, findings=FINDINGS, labels=labels, digest="",
                  studies=tuple(Study(file_name=study.file_name) for study in TRAIN.studies))
    plan = balancing_plan(images, count={"Mass": 20})
    assert not any("Hernia" in row.labels for row in plan.rows)
    assert all(row.view == row.sex == "" and math.isnan(row.age_years) for row in plan.rows)
    assert "age_years" not in plan.rows[0].requested()


def test_seeds_are_unique_and_plans_repeat() -> None:
    plan = balancing_plan(TRAIN, balance=["all"], seed=5)
    assert len({row.seed for row in plan.rows}) == len(plan)
    assert plan == balancing_plan(TRAIN, balance=["all"], seed=5) != balancing_plan(TRAIN, balance=["all"], seed=6)
    assert len({row.seed for row in simple_plan(num=500).rows}) == 500


def test_a_plan_like_the_training_images_has_their_prevalence() -> None:
    plan = plan_like(TRAIN, num=800, seed=0)
    assert len(plan) == 800
    assert plan.counts()["Effusion"] / 800 == pytest.approx(52 / 133, abs=0.05)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"balance": ["Pneumotorax"]}, "states 'Pneumotorax'; did you mean 'Pneumothorax'"),
    ({"count": {"Masss": 3}}, "did you mean 'Mass'"),
    ({"balance": ["Hernia"]}, "only 3 training images show 'Hernia'.*fewer than 5"),
    ({"count": {"Hernia": 3}}, "only 3 training images"),
    ({"balance": ["Effusion"]}, r"nothing to balance: no finding is more frequent than 'Effusion' \(52 training images show it\); ask for "
                                r"a number instead, such as --count Effusion=100"),
    ({"count": {"No Finding": 3}}, "every image with a finding gets companions without it"),
    ({"count": {"Mass": -1}}, "not below 0"),
    ({"count": {"Mass": 99_999_999_999}}, r"199,999,999,998 images.*at most 1,000,000; split it into several plans with different seeds"),
])
def test_what_cannot_be_planned(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SynthoraxError, match=message):
        balancing_plan(TRAIN, **arguments)  # type: ignore[arg-type]


def at_sites(counts: dict[str, int]) -> ImageSet:
    """Images of several sites: half of those at the west show an effusion, and one in ten of the others."""
    studies = [Study(file_name=f"{site}{number}.png", patient_id=f"{site}{number}", site=site) for site, images in counts.items()
               for number in range(images)]
    shows = [int(study.file_name[len(study.site):-4]) % (2 if study.site == "west" else 10) == 0 for study in studies]
    labels = np.array(shows, dtype=np.float32)[:, None]
    return ImageSet(pixels=np.zeros((len(studies), 2, 2), np.uint8), studies=tuple(studies), findings=("Effusion",), labels=labels,
                    digest="")


def test_rows_keep_the_sites_of_the_images_whose_labels_they_have() -> None:
    plan = balancing_plan(at_sites({"west": 100, "east": 300}), count={"Effusion": 400}, seed=2)
    share = {value: [row.site for row in plan.rows if row.labels["Effusion"] is value].count("west") / 400 for value in (PRESENT, ABSENT)}
    assert share[PRESENT] == pytest.approx(50 / 80, abs=0.06) and share[ABSENT] == pytest.approx(50 / 320, abs=0.06)
    assert {row.site for row in plan_like(at_sites({"west": 50, "east": 50}), num=50).rows} == {"west", "east"}


def test_a_single_site_and_what_a_model_does_not_know_are_left_out() -> None:
    assert {row.site for row in balancing_plan(at_sites({"west": 100}), count={"Effusion": 9}).rows} == {""}
    plan = balancing_plan(at_sites({"west": 100, "east": 100}), count={"Effusion": 20})
    spec = replace(SPEC, findings=("Effusion",))
    assert plan.restricted_to(spec) == plan
    assert {row.site for row in plan.restricted_to(replace(spec, sites=("east",))).rows} == {"east", ""}
    assert not plan.restricted_to(replace(spec, conditions=("labels",))).rows[0].site


# ---- the table and the condition


FULL = PlanRow(seed=2**63 - 1, labels={"Mass": PRESENT, "Effusion": ABSENT, "Hernia": UNCERTAIN}, view="PA", sex="F", age_years=61.5)


def test_a_plan_survives_its_table(tmp_path: Path) -> None:
    plan = Plan(rows=(FULL, PlanRow(seed=0), PlanRow(seed=7, labels={"Mein Befund": PRESENT}, view="LATERAL")))
    plan.write(tmp_path / "plan.csv")
    again = read_plan(tmp_path / "plan.csv", allow=["Mein Befund"])
    assert [row.cells() for row in again.rows] == [row.cells() for row in plan.rows]
    assert again.rows[0] == FULL
    assert (tmp_path / "plan.csv").read_text().splitlines()[1] == f"{2**63 - 1},Mass|!Effusion|Hernia?,PA,F,61.5"


@pytest.mark.parametrize(("line", "message"), [
    ("x,Mass,PA,,", r"row 3: not a number"),
    (",Mass,PA,,", r"row 3: not a number"),
    ("-1,Mass,PA,,", r"row 3: seed -1 is outside"),
    (f"{2**63},Mass,PA,,", r"row 3: seed 9223372036854775808 is outside"),
    ("1,Masss,PA,,", r"row 3: .*'Masss'.*'Mass'"),
    ("1,Mass,PAA,,", r"row 3: unknown view 'PAA'; did you mean 'PA'"),
    ("1,Mass,PA,1,", r"row 3: sex '1' is not known"),
    ("1,Mass,PA,F,old", r"row 3: not a number"),
    ("1,Mass,PA,F,-3", r"row 3: age -3 is outside 0 to 120"),
    ("1,Mass,PA,F,inf", r"row 3: age inf is outside"),
    ("1,Mass|!Mass,PA,,", r"row 3: 'Mass' is stated as"),
])
def test_bad_cells_are_refused_with_their_row(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "plan.csv").write_text(f"seed,findings,view,sex,age_years\n1,Mass,PA,F,50\n{line}\n")
    with pytest.raises(InputError, match=message) as refusal:
        read_plan(tmp_path / "plan.csv")
    assert "plan.csv" in str(refusal.value)


def test_tables_of_other_hands(tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text("findings;seed;sex\noedema;3;female\n", encoding="utf-8-sig")
    assert [row.cells() for row in read_plan(tmp_path / "plan.csv").rows] == [PlanRow(seed=3, labels={"Edema": PRESENT}, sex="F").cells()]
    (tmp_path / "plan.csv").write_text("findings\nMass\n")
    with pytest.raises(InputError, match="no column 'seed'"):
        read_plan(tmp_path / "plan.csv")


SPEC = ModelSpec(family="made up", image_size=16, findings=("Effusion", "Hernia", "Mass", "Nodule"), sites=("east", "west"),
                 conditions=("attributes", "labels", "lesions", "mask", "text"), masks=("heart", "lung", "Effusion", "Mass"))
"""a model conditioned on everything"""
NAN = math.nan
HEART, LUNG, EFFUSION, MASS = range(4)


def drawn_mask(path: Path, *, size: int = 32, inside: tuple[slice, slice] = (slice(0, 16), slice(16, 32)), value: int = 255) -> str:
    """A mask file that is white in one rectangle, and its path."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[inside] = value
    Image.fromarray(pixels).save(path)
    return str(path)


def everything(folder: Path) -> PlanRow:
    """A row that asks for every part."""
    folder.mkdir(parents=True, exist_ok=True)
    lesions = (Lesion(finding="Mass", severity=0.75, mask=drawn_mask(folder / "mass.png")),
               Lesion(finding="Effusion", side="right", size=0.5, box=(0.0, 0.5, 0.25, 0.5)))
    return replace(FULL, labels={"Hernia": UNCERTAIN}, site="east", text="small left mass NOT effusion", lesions=lesions,
                   masks={"lung": drawn_mask(folder / "lung.png", inside=(slice(4, 28), slice(4, 28)))})


def test_the_condition_states_what_the_rows_state() -> None:
    plan = Plan(rows=(FULL, PlanRow(seed=1), PlanRow(seed=2, labels={"No Finding": PRESENT}, site="west")))
    condition = plan.condition(SPEC)
    expected = torch.tensor([[0, UNSURE, 1, NAN], [NAN] * 4, [0, 0, 0, 0]])
    torch.testing.assert_close(condition.labels, expected, equal_nan=True)
    attributes = torch.tensor([[1, 0, 0, 1, 0.615, NAN, NAN], [NAN] * 7, [NAN] * 5 + [0, 1]])
    torch.testing.assert_close(condition.attributes, attributes, equal_nan=True)
    assert condition.lesions is condition.mask is condition.text is condition.image is None


def test_the_bad_requestthat_is_written_down_says_no_more_than_the_row(tmp_path: Path) -> None:
    assert FULL.requested() == {"labels": {"Mass": 1, "Effusion": 0, "Hernia": 0.5}, "view": "PA", "sex": "F", "age_years": "61.5"}
    assert PlanRow(seed=1).requested() == {}
    asked = everything(tmp_path).requested()
    assert asked["lesions"] == [{"finding": "Mass", "severity": 0.75, "mask": str(tmp_path / "mass.png")},
                                {"finding": "Effusion", "side": "right", "size": 0.5, "box": [0.0, 0.5, 0.25, 0.5]}]
    assert asked["labels"] == {"Hernia": 0.5, "Mass": 1, "Effusion": 1}, "whoever asks for a lesion asks for its finding"
    assert (asked["site"], asked["text"]) == ("east", "small left mass NOT effusion")
    assert asked["masks"] == {"lung": str(tmp_path / "lung.png")}
    json.dumps(asked, allow_nan=False)


def test_masks_boxes_lesions_and_text_reach_the_model(tmp_path: Path) -> None:
    plan = Plan(rows=(everything(tmp_path), PlanRow(seed=1, labels={"Mass": ABSENT}),
                      PlanRow(seed=2, labels={"Mass": ABSENT}, lesions=(Lesion(finding="Effusion", box=(0, 0, 1, 1)),))))
    condition = plan.condition(SPEC)
    assert condition.text == ("small left mass NOT effusion", "", "")
    assert condition.mask is not None and condition.lesions is not None
    first, second, third = condition.mask
    assert first[HEART].isnan().all() and second.isnan().all(), "what has no mask is not stated"
    assert first[LUNG].sum() == 12 * 12 and first[LUNG, 2:14, 2:14].min() == EXACT
    assert first[MASS].sum() == 64 and first[MASS, :8, 8:].min() == EXACT
    assert first[EFFUSION].sum() == COARSE * 4 * 8 and first[EFFUSION, 8:, :4].max() == COARSE
    assert float(third[MASS].abs().max()) == 0 and third[LUNG].isnan().all(), "a mass stated absent is nowhere; the lungs are not stated"
    effusion, mass = condition.lesions[0, 0], condition.lesions[0, 2]
    torch.testing.assert_close(mass, torch.tensor([1, 1, 0.75, 0.75, 0.25]))  # 2 sqrt(1/4) of the image, at the right of the image
    torch.testing.assert_close(effusion, torch.tensor([0, 0.5, NAN, 0.125, 0.75]), equal_nan=True)
    assert condition.lesions[1].isnan().all()


def test_lesions_of_one_finding_share_a_channel(tmp_path: Path) -> None:
    left = Lesion(finding="Mass", mask=drawn_mask(tmp_path / "a.png", inside=(slice(0, 8), slice(0, 8))))
    right = Lesion(finding="Mass", box=(0.5, 0.5, 0.5, 0.5))
    condition = Plan(rows=(PlanRow(seed=0, lesions=(left, right)),)).condition(SPEC)
    assert condition.mask is not None
    assert condition.mask[0, MASS, :4, :4].min() == EXACT and condition.mask[0, MASS, 8:, 8:].min() == COARSE
    assert condition.mask[0, MASS].sum() == 16 + 64 * COARSE


def test_what_the_model_measures_in_a_mask_does_not_overrule_what_is_stated(tmp_path: Path) -> None:
    lesion = Lesion(finding="Mass", side="left", size=0.2, x=0.6, y=0.6, mask=drawn_mask(tmp_path / "a.png"))
    condition = Plan(rows=(PlanRow(seed=0, lesions=(lesion,)),)).condition(SPEC)
    assert condition.lesions is not None
    torch.testing.assert_close(condition.lesions[0, 2], torch.tensor([1, 0.2, NAN, 0.6, 0.6]), equal_nan=True)


def test_models_with_fewer_conditions_get_only_those(tmp_path: Path) -> None:
    lesion = Lesion(finding="Mass", mask=drawn_mask(tmp_path / "a.png"))
    masks_only = replace(SPEC, conditions=("mask",))
    condition = Plan(rows=(PlanRow(seed=0, lesions=(lesion,)),)).condition(masks_only)
    assert condition.labels.isnan().all() and condition.lesions is None
    assert condition.mask is not None and condition.mask[0, MASS].sum() == 64
    for parts in (("labels",), ("attributes", "text"), ("lesions",), ("mask",), ()):
        spec = replace(SPEC, conditions=parts)
        restricted = Plan(rows=(everything(tmp_path), FULL, PlanRow(seed=0))).restricted_to(spec)
        assert set(restricted.rows[0].parts()) == set(parts)
        condition = restricted.condition(spec)
        assert {part for part in PARTS if condition.stated(part).any()} == set(parts)


@pytest.mark.parametrize(("part", "row", "source"), [
    ("text", PlanRow(seed=0, text="small mass"), "a text"),
    ("attributes", PlanRow(seed=0, site="east"), "view, sex, age or site"),
    ("labels", PlanRow(seed=0, labels={"Mass": PRESENT}), "a finding"),
    ("lesions", PlanRow(seed=0, lesions=(Lesion(finding="Mass", side="left"),)), "side, size, severity or place"),
    ("mask", PlanRow(seed=0, lesions=(Lesion(finding="Mass", box=(0, 0, 1, 1)),)), "a box"),
    ("mask", PlanRow(seed=0, masks={"lung": "no-such-file.png"}), "a mask"),
])
def test_a_part_the_model_is_not_conditioned_on_is_named_with_those_it_is(part: str, row: PlanRow, source: str) -> None:
    spec = replace(SPEC, conditions=tuple(other for other in SPEC.conditions if other != part))
    with pytest.raises(UsageError, match=f"is not conditioned on {part}, which {source} asks for; it is conditioned on "
                                         f"{', '.join(spec.conditions)}"):
        Plan(rows=(row,)).condition(spec)
    with pytest.raises(UsageError, match="takes no conditions"):
        Plan(rows=(row,)).check(replace(SPEC, conditions=()))


def lesion(**stated: object) -> PlanRow:
    return PlanRow(seed=0, lesions=(Lesion(finding="Mass", **stated),))  # type: ignore[arg-type]


@pytest.mark.parametrize(("row", "message"), [
    (PlanRow(seed=0, labels={"Masss": PRESENT}), "not trained on 'Masss'; did you mean 'Mass'"),
    (PlanRow(seed=0, site="eats"), "does not know the site 'eats'; did you mean 'east'"),
    (PlanRow(seed=0, masks={"lungs": "l.png"}), "is conditioned on no masks of 'lungs'; did you mean 'lung'"),
    (PlanRow(seed=0, lesions=(Lesion(finding="Nodule", box=(0, 0, 1, 1)),)), "is conditioned on no masks of 'Nodule'"),
    (PlanRow(seed=0, view="PAA"), "unknown view 'PAA'; did you mean 'PA'"),
    (PlanRow(seed=0, sex="W"), "unknown sex 'W'"),
    (PlanRow(seed=0, age_years=121), "age 121 is outside"),
    (PlanRow(seed=2**63), "seed .* is outside"),
    (lesion(side="lefft"), "side 'lefft' of Mass .*did you mean 'left'"),
    (lesion(size=1.1), r"size 1\.1 of Mass is outside 0 to 1"),
    (lesion(severity=-0.1), r"severity -0\.1 of Mass"),
    (lesion(x=math.inf), "x inf of Mass"),
    (lesion(box=(0.8, 0.1, 0.3, 0.1)), "the box 0.8,0.1,0.3,0.1 of Mass leaves the image"),
    (lesion(box=(0.1, 0.1, 0.0, 0.1)), "leaves the image"),
    (PlanRow(seed=0, labels={"Mass": ABSENT}, lesions=lesion(size=0.5).lesions), "'Mass' is asked for, which is stated absent"),
    (PlanRow(seed=0, labels={"No Finding": PRESENT}, lesions=lesion(size=0.5).lesions), "stated absent"),
    (PlanRow(seed=0, text="kleiner Erguss links ohne Stauung"), "not known"),
    (PlanRow(seed=0, text="effusion " * 10_000), "10,000 words"),
    (PlanRow(seed=0, text="mass NOT "), "'NOT' stands without words"),
])
def test_what_cannot_be_is_refused(row: PlanRow, message: str) -> None:
    for refuse in (Plan(rows=(row,)).check, Plan(rows=(row,)).condition):
        with pytest.raises(SynthoraxError, match=message):
            refuse(SPEC)


@pytest.mark.parametrize(("pixels", "message"), [
    (np.ones((32, 48), np.uint8), "is 48 x 32 pixels, not square"),
    (np.ones((8, 8), np.uint8), "has 8 x 8 pixels, the model's images 16 x 16"),
    (np.arange(32 * 32, dtype=np.uint8).reshape(32, 32), "256 grey values, as an image has and no mask"),
    (np.zeros((32, 32), np.uint8), "the mask of Mass is empty"),
    (b"no image", "is no PNG"),
    (None, "is missing"),
])
def test_what_is_no_mask_of_such_an_image_is_refused_with_its_row(tmp_path: Path, pixels: object, message: str) -> None:
    if isinstance(pixels, np.ndarray):
        Image.fromarray(pixels).save(tmp_path / "m.png")
    elif isinstance(pixels, bytes):
        (tmp_path / "m.png").write_bytes(pixels)
    row = PlanRow(seed=0, lesions=(Lesion(finding="Mass", mask=str(tmp_path / "m.png")),))
    with pytest.raises(SynthoraxError, match=message):
        Plan(rows=(row,)).check(SPEC)
    Plan(rows=(PlanRow(seed=0), row)).write(tmp_path / "plan.csv")
    with pytest.raises(InputError, match=rf"plan\.csv row 3: .*{message}"):
        read_plan(tmp_path / "plan.csv").check(SPEC)


def test_a_plan_with_every_part_survives_its_table_and_a_move(tmp_path: Path) -> None:
    plan = Plan(rows=(everything(tmp_path / "a/masks"), PlanRow(seed=3, text="=not, a \"formula\"")))
    plan.write(tmp_path / "a/plan.csv")
    table = (tmp_path / "a/plan.csv").read_text()
    assert "masks/mass.png" in table and str(tmp_path) not in table, "masks beside the plan are named relative to it"
    (tmp_path / "a").rename(tmp_path / "b")
    again = read_plan(tmp_path / "b/plan.csv")
    moved = [row.with_paths(lambda path: path.replace(str(tmp_path / "a"), str(tmp_path / "b"))) for row in plan.rows]
    assert [row.cells() for row in again.rows] == [row.cells() for row in moved]
    assert [row.requested() for row in again.rows] == [row.requested() for row in moved]
    again.condition(SPEC)
    elsewhere = drawn_mask(tmp_path / "elsewhere.png")
    Plan(rows=(PlanRow(seed=0, masks={"lung": elsewhere}),)).write(tmp_path / "b/other.csv")
    assert read_plan(tmp_path / "b/other.csv").rows[0].masks == {"lung": elsewhere}


def test_columns_that_no_row_uses_are_left_out(tmp_path: Path) -> None:
    Plan(rows=(PlanRow(seed=0), PlanRow(seed=1, lesions=(Lesion(finding="Mass", side="left"),)))).write(tmp_path / "plan.csv")
    assert (tmp_path / "plan.csv").read_text() == "seed,findings,lesion_label,lesion_side\n0,,,\n1,Mass,Mass,left\n"


@pytest.mark.parametrize(("cells", "message"), [
    ("Mass,up,,", "lesion_side 'up' cannot be"),
    ("Mass,,1.5,", "lesion_size '1.5' cannot be"),
    ("Mass|Nodule,left,,", "lesion_side has 1 items and lesion_label 2 names"),
    ("Masss,left,,", "unknown finding 'Masss'; did you mean 'Mass'"),
    (",left,,", "lesion without a name"),
    ('Mass,,,"0.5,0.5,0.6,0.1"', "lesion_box '0.5,0.5,0.6,0.1' cannot be"),
])
def test_bad_lesions_are_refused_with_their_row(tmp_path: Path, cells: str, message: str) -> None:
    (tmp_path / "plan.csv").write_text(f"seed,lesion_label,lesion_side,lesion_size,lesion_box\n1,Mass,,0.5,\n2,{cells}\n")
    with pytest.raises(InputError, match=rf"plan\.csv row 3: .*{message}"):
        read_plan(tmp_path / "plan.csv")


# ---- one request in words


def test_a_request_in_words_becomes_a_row(tmp_path: Path) -> None:
    mass, lung = drawn_mask(tmp_path / "m.png"), drawn_mask(tmp_path / "l.png")
    request = Request(finding=["mass"], without=["pleural effusion"], uncertain=["Hernia"], view="pa", sex="f", age=40, site="east",
                      text="mass", mask=[("", mass), ("LUNG", lung)], side="Left", severity=0.5, at=(0.7, 0.3))
    assert row_of(request, SPEC) == PlanRow(
        seed=0, labels={"Mass": PRESENT, "Effusion": ABSENT, "Hernia": UNCERTAIN}, view="PA", sex="F", age_years=40, site="east",
        text="mass", masks={"lung": lung}, lesions=(Lesion(finding="Mass", side="left", severity=0.5, x=0.7, y=0.3, mask=mass),))
    box = (0.1, 0.2, 0.3, 0.4)
    assert row_of(Request(finding=["Mass"], box=[("", box), ("nodule", box)], size=0.2), SPEC).lesions == (
        Lesion(finding="Mass", box=box, size=0.2), Lesion(finding="Nodule", box=box))
    assert row_of(Request(), SPEC) == PlanRow(seed=0) and Request().stated() == []
    assert Request(side="left", age=3, at=(0, 0)).stated() == ["age", "side", "at"]


@pytest.mark.parametrize(("bad_request", "message"), [
    (Request(side="left"), "side needs exactly one finding to belong to, and 0 are asked for"),
    (Request(finding=["Mass", "Nodule"], severity=0.5), "severity needs exactly one finding .* 2 are"),
    (Request(finding=["Mass"], without=["mass"]), "'Mass' is asked for as present and as absent"),
    (Request(finding=["Mass", "Nodule"], mask=[("", "m.png")]), "a mask without a class needs exactly one"),
    (Request(box=[("", (0, 0, 1, 1))]), "a box without a finding needs exactly one"),
    (Request(finding=["Mass"], size=0.5, box=[("Mass", (0, 0, 1, 1)), ("", (0, 0, 1, 1))]),
     "size could belong to 2 lesions of 'Mass'"),
    (Request(finding=["Masss"]), "unknown finding 'Masss'; did you mean 'Mass'"),
    (Request(mask=[("lung", "a.png"), ("lung", "b.png")]), "two masks of 'lung'"),
])
def test_a_bad_requestthat_cannot_be_understood(bad_request: Request, message: str) -> None:
    with pytest.raises(SynthoraxError, match=message):
        row_of(bad_request, SPEC)


def test_an_unknown_mask_class_is_refused_with_the_nearest() -> None:
    row = row_of(Request(mask=[("efusion", "m.png")]), SPEC)
    with pytest.raises(UsageError, match="is conditioned on no masks of 'efusion'; did you mean 'Effusion'"):
        Plan(rows=(row,)).check(SPEC)
