"""What help and pages say can be chosen is what the tables hold."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer.main

from synthorax.cli.app import app
from synthorax.data.adapters import ADAPTERS
from synthorax.data.attributes import parse_view
from synthorax.data.lesions import SIDES
from synthorax.diffusion.noise import SCHEDULES
from synthorax.diffusion.precondition import PARAMETERISATIONS
from synthorax.diffusion.samplers import SAMPLERS
from synthorax.judges.classifiers import CLASSIFIERS
from synthorax.judges.features import CHEST, FEATURES, XRAYVISION
from synthorax.steps.screening.filters import FILTERS
from synthorax.types import LabelPolicy

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
POLICY = {name: get_args(kind) for name, kind in get_type_hints(LabelPolicy).items()}
CHOICES: dict[tuple[str, str], Collection[str]] = {
    ("benefit", "--classifier"): CLASSIFIERS,
    ("evaluate", "--features"): {*FEATURES, CHEST, XRAYVISION},
    ("generate", "--sampler"): SAMPLERS,
    ("generate", "--schedule"): SCHEDULES,
    ("generate", "--side"): SIDES,
    ("generate", "--view"): {"PA", "AP", "LATERAL"},
    ("ingest", "--adapter"): ADAPTERS,
    ("prepare", "--uncertain"): POLICY["uncertain"],
    ("prepare", "--unlisted"): POLICY["unlisted"],
    ("screen", "--filter"): {*FILTERS, "all"},
}
"""verb and option -> the words that it takes"""
OTHER_WORDS = frozenset(re.findall(r"\w+", """
    a absent also an and are as beside by choose counts default does falls feature file files image images finding for from grades how if
    image images in is it label labelled list lists more noise not of one onnx or others patient pt recognised repeat several space such
    that the to uncertain usual what where"""))


@pytest.mark.parametrize(("verb", "option"), CHOICES, ids=lambda value: value)
def test_help_lists_the_choices_of_an_option(verb: str, option: str) -> None:
    told = next(parameter.help for parameter in COMMANDS[verb].params if option in parameter.opts)
    missing = [name for name in CHOICES[verb, option] if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", told)]
    assert not missing, told
    words = {word for word in re.findall(r"\w[\w-]*", told) if word not in {part for name in CHOICES[verb, option] for part in
                                                                           (name, *name.split())}}
    assert {word.lower() for word in words} <= OTHER_WORDS, told


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
