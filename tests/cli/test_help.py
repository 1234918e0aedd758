"""What help and pages say can be chosen is what the tables hold."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

from synthorax import cli, engine
from synthorax.cli.app import app
from synthorax.data.adapters import ADAPTERS
from synthorax.data.attributes import parse_view
from synthorax.data.lesions import SIDES
from synthorax.diffusion.noise import SCHEDULES
from synthorax.diffusion.precondition import PARAMETERISATIONS
from synthorax.diffusion.samplers import SAMPLERS, USUAL_ETA
from synthorax.families.denoising.adaptation import WAYS
from synthorax.judges.classifiers import CLASSIFIERS
from synthorax.judges.features import CHEST, FEATURES, XRAYVISION
from synthorax.protocols import PARTS, VIEWS
from synthorax.steps.export.images import Format
from synthorax.steps.screening.filters import FILTERS
from synthorax.types import LabelPolicy

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
POLICY = {name: get_args(kind) for name, kind in get_type_hints(LabelPolicy).items()}
CHOICES: dict[tuple[str, str], Collection[str]] = {
    ("augment", "--adapt"): {*WAYS, "auto"},
    ("benefit", "--classifier"): CLASSIFIERS,
    ("compare", "--adapt"): WAYS,
    ("evaluate", "--features"): {*FEATURES, CHEST, XRAYVISION},
    ("export", "--format"): {*get_args(Format), "diffusers"},
    ("generate", "--eta"): USUAL_ETA,
    ("generate", "--part-guidance"): PARTS,
    ("generate", "--sampler"): SAMPLERS,
    ("generate", "--schedule"): SCHEDULES,
    ("generate", "--side"): SIDES,
    ("generate", "--view"): VIEWS,
    ("ingest", "--adapter"): ADAPTERS,
    ("prepare", "--uncertain"): POLICY["uncertain"],
    ("prepare", "--unlisted"): POLICY["unlisted"],
    ("screen", "--filter"): {*FILTERS, "all"},
    ("train", "--adapt"): {*WAYS, "auto"},
}
"""verb and option -> the words that it takes"""
ENUMERATIONS: dict[type[StrEnum], Collection[str]] = {
    cli.options.Way: {*WAYS, "auto"}, cli.jobs.BaseWay: WAYS, cli.options.Device: get_args(engine.Device),
    cli.synthesis.Format: {*get_args(Format), "diffusers"}}
OTHER_WORDS = frozenset(re.findall(r"\w+", """
    128 a absent adds all also an ancestral and are as at base both but by check classifier condition count default does exactly
    feature file files looks own px size finding for format fraction fresh from frozen guidance how if image images in is it label
    labelled layout list lists low
    metrics model more needs noise not number of on one onnx or others part patient pt rank recognised repeat run sampler schedule
    several side source space stays such that the to trained uncertain updates view weight weights what where which with"""))


@pytest.mark.parametrize(("verb", "option"), CHOICES, ids=lambda value: value)
def test_help_lists_the_choices_of_an_option(verb: str, option: str) -> None:
    told = help_of(verb, option)
    missing = [name for name in CHOICES[verb, option] if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", told)]
    assert not missing, told
    words = {word for word in re.findall(r"\w[\w-]*", told) if word not in {part for name in CHOICES[verb, option] for part in
                                                                           (name, *name.split())}}
    assert {part for word in words for part in word.lower().split("-")} <= OTHER_WORDS, told


@pytest.mark.parametrize("choices", ENUMERATIONS, ids=lambda kind: kind.__name__)
def test_what_can_be_typed_is_what_the_table_holds(choices: type[StrEnum]) -> None:
    assert set(choices) == set(ENUMERATIONS[choices])


def test_no_other_option_lists_names_of_a_table() -> None:
    """A help text that lists names belongs into the table of this test, or it goes stale."""
    tables = {"classifiers": CLASSIFIERS, "filters": FILTERS, "samplers": SAMPLERS, "schedules": SCHEDULES, "ways": WAYS}
    for verb, command in COMMANDS.items():
        for parameter in command.params:
            told = re.findall(r"[\w-]+", parameter.help or "")
            listed = [name for name, table in tables.items() if len(set(told) & set(table)) >= 2]
            assert not listed or any((verb, option) in CHOICES for option in parameter.opts), (verb, parameter.opts, listed)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_has_a_sentence_of_help(verb: str) -> None:
    for parameter in COMMANDS[verb].params:
        if not getattr(parameter, "hidden", False):
            assert re.fullmatch(r"(?s)[A-Zc].*\.", parameter.help or ""), (verb, parameter.opts, parameter.help)


def test_commands_and_options_stand_under_headings_as_plain_text() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    headings = re.findall(r"(?m)^(\w.*):$", listed)
    assert headings == ["Options", "Whole jobs", "Data", "Training", "Synthesis", "Evidence", "Catalogue"]
    told = CliRunner().invoke(app, ["generate", "--help"]).output
    request, sampling, running = (told.index(heading) for heading in ("\nRequest", "\nSampling", "\nRunning"))
    assert request < told.index("--severity") < sampling < told.index("--guidance ") < running < told.index("--threads")
    assert "\x1b" not in listed + told


def help_of(verb: str, option: str) -> str:
    text: str = next(parameter.help for parameter in COMMANDS[verb].params if option in parameter.opts)
    return text


def test_the_views_that_help_lists_are_read() -> None:
    assert [parse_view(name)[0] for name in CHOICES["generate", "--view"]] == list(CHOICES["generate", "--view"])


@pytest.mark.parametrize(("page", "table"), [("explanation/benefit", CLASSIFIERS), ("reference/data", ADAPTERS),
                                             ("reference/diffusion", PARAMETERISATIONS),
                                             ("reference/diffusion", SAMPLERS), ("reference/diffusion", SCHEDULES),
                                             ("how-to/screen-and-refine", FILTERS),
                                             ("reference/metrics", FEATURES)])
def test_a_page_names_everything_in_its_table(page: str, table: Collection[str]) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert [name for name in table if f"`{name}`" not in text] == []
