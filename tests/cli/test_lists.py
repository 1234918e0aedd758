"""What lists what there is: `recipes`, `models` and `doctor`, for a person, for a program, and beside what is broken."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import synthorax as sx
from synthorax.cli.output import finish, without_nan
from synthorax.errors import UsageError
from synthorax.files import write_with_digest
from synthorax.protocols import as_model
from synthorax.run import WEIGHTS_NAME, save_model
from synthorax.steps.models.recipe import build_objective, load_recipe, recipe_names
from synthorax.steps.parameter_count import facts_of
from trainings import fresh_objective, smallest


def called(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "synthorax", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", recipe_names())
def test_the_table_of_recipes_is_what_the_recipes_are(name: str) -> None:
    """Where this fails after a change of a recipe or a network: `python bench/release/recipe_table.py` writes the table anew."""
    assert [row for row in sx.recipes() if row["recipe"] == name] == [facts_of(name).to_dict()]


def test_counting_without_memory_is_counting() -> None:
    objective = build_objective(load_recipe("edm-32"), findings=[str(number) for number in range(14)])
    assert sx.count_parameters("edm-32") == sum(part.numel() for part in objective.players.parameters())
    assert torch.zeros(1).device.type == "cpu"


def test_what_a_recipe_needs_is_in_the_table_and_in_the_refusal() -> None:
    needs = {row["recipe"]: row["needs"] for row in sx.recipes()}
    assert needs["latent-64"] == ["compressor"] and needs["spade-gan-64"] == ["masks"] and needs["student"] == ["teacher"]
    assert needs["super-256"] == ["base"] and needs["edm-64"] == []
    assert sx.count_parameters("latent-64") > 1_000_000 and sx.count_parameters("spade-gan-64", masks=["lung"]) > 1_000_000
    with pytest.raises(UsageError, match=r"shape of its teacher: give the run of that, base=\.\.\."):
        sx.count_parameters("student")
    with pytest.raises(UsageError, match="shape of its generator"):
        sx.count_parameters("inversion-encoder")


def test_recipes_are_listed_without_torch_for_programs_and_people() -> None:
    for_programs = called("recipes", "--json")
    rows = json.loads(for_programs.stdout)["recipes"]
    assert for_programs.returncode == 0 and len(for_programs.stdout.splitlines()) == 1
    assert {row["recipe"] for row in rows} == set(recipe_names())
    assert all(row["parameters"] is None or row["parameters"] > 0 for row in rows)
    piped = called("recipes").stdout.splitlines()
    assert len(piped) == 1 + len(rows) and piped[0].split() == ["recipe", "family", "image_size", "parameters", "needs"]
    program = "import sys, synthorax; synthorax.recipes(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(("columns", "first"), [(120, "recipe"), (40, "aae-64")])
def test_a_terminal_gets_a_table_that_fits_or_paragraphs(columns: int, first: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    process = subprocess.Popen([sys.executable, "-m", "synthorax", "recipes"], stdout=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    lines = shown.decode().splitlines()
    assert process.wait() == 0 and lines[0].split()[0] == first
    assert max(map(len, lines)) <= columns


def test_a_broken_model_is_listed_with_its_fault_among_the_others(tmp_path: Path) -> None:
    """Whatever is wrong with one file: the others are listed, and the verb is done."""
    model = fresh_objective(smallest("diffusion")).model
    save_model(tmp_path / "good" / WEIGHTS_NAME, model, spec=as_model(model).spec, facts={})
    broken = {"empty": b"", "text": b"no tensors", "cut": (tmp_path / "good" / WEIGHTS_NAME).read_bytes()[:300]}
    for name, content in broken.items():
        write_with_digest(tmp_path / name / WEIGHTS_NAME, content)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / WEIGHTS_NAME).write_bytes(b"without a digest")
    broken["odd"] = b""
    save_model(tmp_path / "spec" / WEIGHTS_NAME, model, spec=replace(as_model(model).spec, image_size="large"), facts={})  # type: ignore[arg-type]
    broken["spec"] = b""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.toml").write_text("")
    listed = {Path(row["model"]).name: row["state"] for row in sx.models(tmp_path)}
    assert listed["good"] == "finished" and listed["half"] == "not finished" and listed["cxr-256"] == "shipped"
    assert set(broken) <= set(listed) and not {listed[name] for name in broken} & {"finished", "shipped", "not finished"}


def test_doctor_says_what_to_put_into_a_report() -> None:
    result = called("doctor", "--json")
    assert result.returncode == 0
    assert {"synthorax", "python", "system", "torch", "processor", "cores", "device", "bf16"} <= set(json.loads(result.stdout))


def test_no_number_that_json_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    finish({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("nan"), "nan")}}, True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None], "c": {"d": [None, "nan"]}}
    assert without_nan({1: Path("x")}) == {"1": Path("x")}
