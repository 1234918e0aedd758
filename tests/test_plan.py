"""The plan: how many of what, with which companions, and its table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.steps.plan import Plan, PlanRow, balancing_plan, plan_like, read_plan, simple_plan
from synthorax.types import Films, Stated, Study

PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN
FINDINGS = ("Effusion", "Hernia", "Mass", "No Finding", "Pneumothorax")


def films_of(counts: dict[tuple[str, ...], int], *, findings: tuple[str, ...] = FINDINGS) -> Films:
    """As many films of each combination of findings as asked for; every other finding is stated absent."""
    shown = [combination for combination, number in counts.items() for _ in range(number)]
    labels = np.array([[float(name in combination) for name in findings] for combination in shown], dtype=np.float32)
    studies = tuple(Study(file_name=f"{number}.png", patient_id=f"p{number}", view="PA" if number % 2 else "AP",
                          sex="F" if number % 3 else "M", age_years=30.0 + number % 40) for number in range(len(shown)))
    return Films(images=np.zeros((len(shown), 2, 2), np.uint8), studies=studies, findings=findings, labels=labels, digest="")


TRAIN = films_of({("Effusion",): 40, ("Effusion", "Mass"): 12, ("Mass",): 8, ("Pneumothorax",): 10, ("Hernia",): 3, ("No Finding",): 60})


def test_a_balanced_finding_becomes_as_frequent_as_the_most_frequent_one() -> None:
    plan = balancing_plan(TRAIN, balance=["Pneumothorax"])
    assert plan.counts()["Pneumothorax"] == 52 - 10
    assert balancing_plan(TRAIN, balance=["Effusion"]).rows == ()
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


def test_companions_show_other_findings_as_often_as_real_films_do() -> None:
    plan = balancing_plan(TRAIN, count={"Mass": 600}, seed=2)
    lacking = [row for row in plan.rows if row.labels["Mass"] is ABSENT]
    share = sum(row.labels["Effusion"] is PRESENT for row in lacking) / len(lacking)
    assert share == pytest.approx(40 / 113, abs=0.06)


def test_findings_keep_occurring_together_as_they_do() -> None:
    """12 of the 20 films with a mass show an effusion too; no film shows a mass and a pneumothorax."""
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


def test_what_real_films_do_not_state_is_not_asked_for() -> None:
    labels = TRAIN.labels.copy()
    labels[:, FINDINGS.index("Hernia")] = math.nan
    films = Films(images=TRAIN.images, findings=FINDINGS, labels=labels, digest="",
                  studies=tuple(Study(file_name=study.file_name) for study in TRAIN.studies))
    plan = balancing_plan(films, count={"Mass": 20})
    assert not any("Hernia" in row.labels for row in plan.rows)
    assert all(row.view == row.sex == "" and math.isnan(row.age_years) for row in plan.rows)
    assert "age_years" not in plan.rows[0].requested()


def test_seeds_are_unique_and_plans_repeat() -> None:
    plan = balancing_plan(TRAIN, balance=["all"], seed=5)
    assert len({row.seed for row in plan.rows}) == len(plan)
    assert plan == balancing_plan(TRAIN, balance=["all"], seed=5) != balancing_plan(TRAIN, balance=["all"], seed=6)
    assert len({row.seed for row in simple_plan(num=500).rows}) == 500


def test_a_plan_like_the_training_films_has_their_prevalence() -> None:
    plan = plan_like(TRAIN, num=800, seed=0)
    assert len(plan) == 800
    assert plan.counts()["Effusion"] / 800 == pytest.approx(52 / 133, abs=0.05)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"balance": ["Pneumotorax"]}, "states 'Pneumotorax'; did you mean 'Pneumothorax'"),
    ({"count": {"Masss": 3}}, "did you mean 'Mass'"),
    ({"balance": ["Hernia"]}, "only 3 training films show 'Hernia'.*fewer than 5"),
    ({"count": {"Hernia": 3}}, "only 3 training films"),
])
def test_what_cannot_be_planned(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SynthoraxError, match=message):
        balancing_plan(TRAIN, **arguments)  # type: ignore[arg-type]


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


def test_the_condition_states_what_the_rows_state() -> None:
    plan = Plan(rows=(FULL, PlanRow(seed=1), PlanRow(seed=2, labels={"No Finding": PRESENT})))
    condition = plan.condition(["Effusion", "Hernia", "Mass", "Nodule"])
    nan = math.nan
    expected = torch.tensor([[0, nan, 1, nan], [nan] * 4, [0, 0, 0, 0]])
    torch.testing.assert_close(condition.labels, expected, equal_nan=True)
    torch.testing.assert_close(condition.attributes, torch.tensor([[1, 0, 0, 1, 0.615], [nan] * 5, [nan] * 5]), equal_nan=True)
    with pytest.raises(UsageError, match="not trained on 'Mass'"):
        plan.condition(["Effusion", "Hernia"])


def test_the_request_that_is_written_down_says_no_more_than_the_row() -> None:
    assert FULL.requested() == {"labels": {"Mass": 1, "Effusion": 0}, "view": "PA", "sex": "F", "age_years": "61.5"}
    assert PlanRow(seed=1).requested() == {}
