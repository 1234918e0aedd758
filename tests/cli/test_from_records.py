"""A field of a record is an option: its help, its type, its bounds and its default come from there, and its value goes back there."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import typer.main
from annotated_types import Ge, Le
from typer.testing import CliRunner

from synthorax.bounds import AtLeastOne, Form, Fraction
from synthorax.cli.app import app
from synthorax.cli.from_records import docstrings
from synthorax.cli.options import Fields, Given
from synthorax.cli.panels import add
from synthorax.errors import UsageError
from synthorax.evaluation.benefit.protocol import BenefitConfig
from synthorax.options import Request, SampleSettings
from synthorax.privacy.config import AuditConfig
from synthorax.steps.feedback.config import RefineLoopConfig
from synthorax.steps.screening.config import ScreenConfig

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    """A record with one field of each kind."""

    number: AtLeastOne = 3
    """a number of `things`"""
    part: Fraction = math.nan
    """a fraction"""
    word: str = ""
    """a word"""
    quick: bool = False
    """be quick"""
    careful: bool = True
    """be
    careful"""
    names: Sequence[str] = ()
    """a name"""
    counts: tuple[int, ...] = ()
    """a count"""
    file: str | Path | None = None
    """a file"""
    at: Annotated[tuple[float, float] | None, Form("x,y", "0.5,0.5")] = None
    """a place"""
    weights: Annotated[Mapping[str, float], Form("NAME=W", "a=2")] = field(default_factory=dict)
    """a weight"""
    boxes: Annotated[Sequence[tuple[str, tuple[float, float]]], Form("[NAME=]w,h", "a=1,2")] = ()
    """a box"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Longer(SampleSettings):
    """Sampling settings with one more, as somebody would add it."""

    churn: Annotated[float, Ge(0), Le(5)] = 0.0
    """noise added before every step"""


def command_of(record: type, **mark: Any) -> tuple[typer.Typer, list[Given]]:
    """A command line of two commands, one of which takes the record, and what that was given."""
    line, given = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False), []

    def toy(group: Given) -> None:
        given.append(group)

    toy.__annotations__["group"] = Annotated[Given, Fields(record, panel="Toys", **mark)]
    add(line, "Theme", toy, example="toy")
    add(line, "Theme", lambda: None, example="other", name="other")
    return line, given


def typed(record: type, *words: str, **mark: Any) -> Any:
    line, given = command_of(record, **mark)
    result = CliRunner().invoke(line, ["toy", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return record(**given[0])


def test_what_is_typed_is_in_the_record() -> None:
    made = typed(Toy, "--number", "7", "--part", "0.25", "--word", "so", "--quick", "--no-careful", "--names", "a", "--names", "b",
                 "--counts", "1", "--file", "x.png", "--at", "0.1,0.2", "--weights", "a=2", "--weights", "b=0.5", "--boxes", "m=1,2",
                 "--boxes", "3,4")
    assert made == Toy(number=7, part=0.25, word="so", quick=True, careful=False, names=("a", "b"), counts=(1,), file=Path("x.png"),
                       at=(0.1, 0.2), weights={"a": 2.0, "b": 0.5}, boxes=(("m", (1.0, 2.0)), ("", (3.0, 4.0))))


def test_what_is_not_typed_is_as_the_record_says() -> None:
    made = typed(Toy)
    assert math.isnan(made.part)
    assert {name: getattr(made, name) for name in Toy.__slots__ if name != "part"} == {
        name: getattr(Toy(), name) for name in Toy.__slots__ if name != "part"}
    line, given = command_of(Toy, usual=False)
    CliRunner().invoke(line, ["toy", "--number", "5"])
    assert given == [{"number": 5}], "what is usual is said elsewhere"


def test_help_is_the_docstring_with_type_bounds_and_default() -> None:
    told = re.sub(r"\s+", " ", CliRunner().invoke(command_of(Toy)[0], ["toy", "--help"]).output)
    assert "Toys: " in told
    assert re.search(r"--number .* A number of things\. \[default: 3; x>=1\] --part", told)
    assert re.search(r"--part .* A fraction\. \[0<=x<=1\] --word", told)
    assert "--careful / --no-careful Be careful. [default: careful]" in told
    assert "--quick Be quick. --" in told and "--boxes [NAME=]w,h A box; repeat for more." in told


def test_bad_values_are_refused_with_an_example() -> None:
    for words, message in (("--at 1", "--at 1: write x,y, such as 0.5,0.5"), ("--weights a=b", "--weights b: write NAME=W, such as a=2")):
        with pytest.raises(UsageError, match=re.escape(message)):
            typed(Toy, *words.split())
    assert CliRunner().invoke(command_of(Toy)[0], ["toy", "--number", "0"]).exit_code == 2


def test_a_field_that_is_added_is_an_option_and_reaches_the_record() -> None:
    told = CliRunner().invoke(command_of(Longer)[0], ["toy", "--help"]).output
    assert "Noise added before every step." in told and "0<=x<=5" in told and "--sampler" in told, "inherited fields too"
    assert typed(Longer, "--churn", "2.5", "--steps", "9", usual=False) == Longer(churn=2.5, steps=9)


def test_a_field_without_a_docstring_is_a_mistake() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Mute:
        number: int = 0

    with pytest.raises(TypeError, match="field 'number' has no docstring"):
        typed(Mute)


@pytest.mark.parametrize("record", [Request, SampleSettings, BenefitConfig, AuditConfig, ScreenConfig, RefineLoopConfig])
def test_every_field_of_a_record_of_options_has_a_docstring_in_one_line(record: type) -> None:
    texts = docstrings(record)
    assert list(texts) == [entry.name for entry in fields(record)]
    assert not [name for name, text in texts.items() if len(text) > 140]


@pytest.mark.parametrize(("verb", "record", "elsewhere"), [
    ("generate", Request, {}), ("generate", SampleSettings, {}), ("screen", ScreenConfig, {"findings": "finding", "filters": "filter"}),
    ("refine-loop", RefineLoopConfig, {"filters": "filter", "subtypes": "subtype"}), ("benefit", BenefitConfig, {}),
    ("audit", AuditConfig, {})])
def test_options_of_a_verb_are_fields_of_its_record(verb: str, record: type, elsewhere: Mapping[str, str]) -> None:
    options = {option: parameter for parameter in COMMANDS[verb].params for option in parameter.opts}
    shown = {entry.name: options.get(f"--{elsewhere.get(entry.name, entry.name).replace('_', '-')}") for entry in fields(record)}
    assert sum(option is not None for option in shown.values()) >= 1
    for entry in fields(record):
        option = shown[entry.name]
        if option is not None and isinstance(entry.default, int) and record is not SampleSettings and entry.default is not MISSING:
            assert option.default == entry.default, entry.name


def test_options_are_read_without_torch_and_without_numpy() -> None:
    """For every verb, in one process, which reads the options of all."""
    program = ("import sys, typer.main; from synthorax.cli.app import app; typer.main.get_command(app); "
               "print(sorted({'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'PIL', 'rich', 'synthorax.config'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
