"""The field's words: names in code, on the command line, in recipes and in reports are those a researcher would search for."""

from __future__ import annotations

import ast
import re
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from synthorax.cli.app import app
from synthorax.metric_table import METRICS

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*.py"))
OLD_NAMES = ("former_names.py", "tests/earlier_version.py", "tests/verbs/test_earlier_version.py", "tests/test_words.py")
"""files that must name what is named otherwise now"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Words that names are not made of, and what to write."""

    words: str
    better: str
    within: tuple[str, ...] = ("src/", "tests/", "bench/")
    """beginnings of the paths in which it holds"""
    allowed: tuple[str, ...] = ()
    """names that have such a word for a good reason"""


LATENTS = ("src/synthorax/families/adversarial/", "src/synthorax/editing/", "src/synthorax/evaluation/metrics/latents.py",
           "src/synthorax/steps/training/inversion_encoder.py", "src/synthorax/nets/autoencoder.py")
"""where a code is a latent; elsewhere codes are those of vector quantisation, of DICOM, or with which a process ends"""
RULES = (
    Rule(words="film films filmed", better="image"),
    Rule(words="hear hears hearing", better="is_conditional, conditioned_on, conditions"),
    Rule(words="heard", better="conditions, codes_in"),
    Rule(words="critic critics", better="discriminator, except where the loss is Wasserstein's",
         allowed=("critic_schedule", "CriticSchedule", "test_the_critic_schedule_follows_the_distance")),
    Rule(words="code codes coded coder", better="latent", within=LATENTS, allowed=("exit_code",)),
    Rule(words="twin twins", better="duplicate"),
    Rule(words="sight", better="augmentation (of what the discriminator gets)"),
    Rule(words="certainty", better="ada_target", within=("src/synthorax/families/",)),
    Rule(words="leaning leans leant", better="origin_reliance"),
    Rule(words="yardstick obeyed obedience", better="RealReference, condition_adherence"),
    Rule(words="guesser guessers", better="label_classifier"),
    Rule(words="lesson lessons", better="distillation, target"),
    Rule(words="surprise", better="negative_log_likelihood"),
    Rule(words="silence silenced", better="zero_unvaried_inputs"),
    Rule(words="admit admits", better="check_data"),
    Rule(words="adopt adopts adopted", better="load_matching"),
    Rule(words="begin", better="start_from", within=("src/synthorax/families/", "src/synthorax/protocols.py")),
    Rule(words="timetable timetables", better="noise_schedule"),
    Rule(words="nought noughts", better="zero"),
    Rule(words="kin greys", better="variants, intensities"),
    Rule(words="outliner outliners outlining", better="segmenter"),
    Rule(words="s4", better="kumar (S4 is the structured state space model)"),
    Rule(words="vet vets vetted", better="check_poisoning"),
    Rule(words="enlarge enlarges enlarging enlargement", better="super_resolution", within=("bench/", "tests/")),
    Rule(words="four", better="prdc", within=("src/",)),
    Rule(words="look", better="appearance, snapshot", within=("src/synthorax/judges/",)),
)
BARE = ("asked begun compared counted drawn given guessed heard joined kept known made measured seen shown taught told")
"""participles that say too little as the name of a function or a class"""
PROSE = {
    r"\bfilms?\b": "image or radiograph", r"\bhears?\b|\bheard\b": "is conditioned on", r"turn the same screw": "change the same setting",
    r"drawn from habit": "by default", r"by heart": "memorised", r"\bgreys\b": "intensities", r"\btimetables?\b": "noise schedule",
    r"\bnought\b": "zero", r"\byardsticks?\b": "reference", r"\btwins?\b": "duplicate", r"\bS4\b": "Kumar et al."}
"""pattern in what users read -> what to write"""
WORDS_OF_REPORTS = ("data/describe.py", "data/language.py")
"""these read and write what radiologists write, and that says film"""


def parts_of(name: str) -> list[str]:
    """The words of a name.

    >>> parts_of("HeadStart_ofCode")
    ['head', 'start', 'of', 'code']
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_").split("_")


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module defines or uses, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.keyword(arg=str(name)):
                yield name, node.value.lineno
            case ast.alias(name=name, asname=alias):
                yield from ((part, node.lineno) for part in (*name.split("."), *([alias] if alias else [])))


def complaints(path: str, names: Iterable[tuple[str, int]]) -> list[str]:
    """File, line, name and the better word of all names that break a rule."""
    rules = [(set(rule.words.split()), rule) for rule in RULES if path.startswith(rule.within)]
    found = []
    for name, line in dict.fromkeys(names):
        parts = set(parts_of(name))
        found += [f"{path}:{line}: '{name}'; better: {rule.better}" for words, rule in rules
                  if words & parts and name.strip("_") not in rule.allowed]
    return found


def bare_definitions(path: str, tree: ast.AST) -> list[str]:
    """Functions and classes that are called by a participle and nothing else."""
    return [f"{path}:{node.lineno}: '{node.name}' says too little; call it what it returns, or what it does" for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.strip("_").lower() in BARE.split()]


def texts_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What users may read: strings with a space in them, docstrings too, but no names from which random numbers derive."""
    seeds = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("derive", "code.of"))
             for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip() and id(node) not in seeds:
            yield node.value, node.lineno


def prose_complaints(path: str, texts: Iterable[tuple[str, int]]) -> list[str]:
    """File, line, word and the better one."""
    return [f"{path}:{line + text[: match.start()].count(chr(10))}: '{match[0]}'; better: {better}" for text, line in texts
            for pattern, better in PROSE.items() for match in re.finditer(pattern, text)]


def checked(path: str, text: str) -> list[str]:
    """All complaints about one module."""
    tree = ast.parse(text)
    found = complaints(path, names_in(tree)) + bare_definitions(path, tree)
    read = path.startswith("src/") and not path.endswith(WORDS_OF_REPORTS)
    return found + (prose_complaints(path, texts_in(tree)) if read else [])


def test_names_are_those_of_the_field() -> None:
    start, found = time.process_time(), []
    for file in FILES:
        path = file.relative_to(ROOT).as_posix()
        if not path.endswith(OLD_NAMES):
            found += checked(path, file.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(("path", "code", "better"), [
    ("src/synthorax/data/x.py", "def read_films(path): ...", "image"),
    ("src/synthorax/data/x.py", "class FilmReader: ...", "image"),
    ("src/synthorax/data/x.py", "x.num_films", "image"),
    ("src/synthorax/data/x.py", "f(num_films=3)", "image"),
    ("src/synthorax/data/x.py", "def f(*, train_films): ...", "image"),
    ("src/synthorax/data/x.py", "from a import films as images", "image"),
    ("src/synthorax/nets/x.py", "hears_labels = True", "is_conditional"),
    ("src/synthorax/losses/x.py", "critic = build()", "discriminator"),
    ("src/synthorax/editing/x.py", "codes = encode(images)", "latent"),
    ("src/synthorax/privacy/x.py", "twins = find()", "duplicate"),
    ("src/synthorax/families/adversarial/x.py", "class GanObjective:\n    def begin(self): ...", "start_from"),
    ("src/synthorax/families/x.py", "class S4Gan: ...", "kumar"),
    ("src/synthorax/evaluation/metrics/x.py", "class Four: ...", "prdc"),
    ("tests/x.py", "def test_an_image_is_heard(): ...", "conditions"),
    ("bench/x.py", "def told(record): ...", "too little"),
    ("src/synthorax/x.py", 'raise InputError("no film states this")', "image or radiograph"),
    ("src/synthorax/x.py", 'def f():\n    """What the model hears of it."""', "is conditioned on"),
])
def test_a_planted_word_is_found_with_the_better_one(path: str, code: str, better: str) -> None:
    found = checked(path, code)
    assert found and all(line.startswith(f"{path}:") for line in found) and any(better in line for line in found)


@pytest.mark.parametrize(("path", "code"), [
    ("src/synthorax/nets/quantizer.py", "codes = look_up(x)"), ("src/synthorax/data/dicom_write.py", "item.CodeValue = 1"),
    ("src/synthorax/cli/app.py", "raise SystemExit(error.exit_code)"), ("src/synthorax/families/adversarial/x.py", "critic_schedule = 1"),
    ("src/synthorax/steps/x.py", "def begin(objective): ..."), ("src/synthorax/x.py", "derive(seed, 'few films')"),
    ("src/synthorax/x.py", "filmstrip = 1")])
def test_words_in_their_own_meaning_are_left_alone(path: str, code: str) -> None:
    assert checked(path, code) == []


def test_documents_and_pages_speak_the_words_of_the_field() -> None:
    """But for the changelog, the decision about words, and cards of shipped models, whose text is that of their own day."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.html"),
             *(ROOT / "findings").iterdir()]
    found = [line for page in pages if page.is_file() and page.name != "0010-words-and-rooms.md"
             for line in prose_complaints(page.relative_to(ROOT).as_posix(), [(page.read_text(encoding="utf-8"), 1)])]
    assert not found, "\n" + "\n".join(found)


def test_commands_and_options_are_those_of_the_field() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [(word, 0) for name, command in commands.items()
             for word in (name, *(option.strip("-") for parameter in command.params for option in parameter.opts))]
    assert complaints("src/synthorax/cli/", [(name.replace("-", "_"), line) for name, line in names]) == []


def test_recipes_and_their_keys_are_those_of_the_field() -> None:
    found = []
    for path in sorted((ROOT / "src" / "synthorax" / "recipes").glob("*.toml")):
        keys = [*_keys(tomllib.loads(path.read_text(encoding="utf-8"))), path.stem.replace("-", "_")]
        found += complaints(f"src/synthorax/recipes/{path.name}", [(key, 0) for key in keys])
    assert found == []


def test_metrics_are_those_of_the_field() -> None:
    assert complaints("src/synthorax/metric_table.py", [(name, 0) for name in METRICS]) == []
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in METRICS)


def _keys(table: dict[str, object]) -> Iterator[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)
