"""What the documents tell a user to type: every command is read to its end by the command line, each kind is run, and so is the Python.

A block that is not run says why in a comment before it: `<!-- not run: REASON -->`. Where the reason names beginnings of commands in
backticks, the block's other commands are run.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from command_runner import FEW_UPDATES, CommandRunner, check_result
from synthorax.cli.app import app
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.evaluation.report.record import Report
from tiny_job import TINY, lay_out, settings, things_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
VERB_MODULES = ("synthorax.verbs.data", "synthorax.verbs.training", "synthorax.verbs.synthesis", "synthorax.verbs.evidence",
                "synthorax.verbs.augmentation", "synthorax.verbs.comparison",
                "synthorax.steps.models.recipe_table", "synthorax.steps.models.catalogue")


def where(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block of code of a page, and why it is not run, if it is not."""

    language: str
    code: str
    reason: str

    def runs(self, words: list[str]) -> bool:
        """Whether this command of the block is run here."""
        starts = re.findall(r"`([^`]+)`", self.reason)
        return not self.reason or (bool(starts) and not any(" ".join(words).startswith(start) for start in starts))

    def lines(self) -> list[list[str]]:
        """The words of each line."""
        return [words for line in self.code.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]

    def commands(self) -> list[list[str]]:
        """The words after `synthorax` of each of its commands."""
        return [words[1:] for words in self.lines() if Path(words[0]).name == "synthorax" and words[1:2] != ["--version"]]


def blocks(page: Path, language: str) -> list[Block]:
    found = re.findall(rf"(?ms)^(?:<!-- not run: ([^\n]*?) -->\n)?^```({language})\n(.*?)^```", page.read_text(encoding="utf-8"))
    return [Block(language=kind, code=code, reason=reason) for reason, kind, code in found]


SHELL = "sh|bash|console"


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words after `synthorax` in the page's shell blocks."""
    for block in blocks(page, SHELL):
        yield from block.commands()


def kind_of(words: list[str]) -> tuple[str, frozenset[str]]:
    """The verb and its options."""
    return words[0], frozenset(word.partition("=")[0] for word in words if word.startswith("--"))


ALL = [(where(page), words) for page in PAGES for block in blocks(page, SHELL) for words in block.commands() if block.runs(words)]
"""those that are run, or of whose kind another is run"""
EXAMPLES = [kind_of(shlex.split(command.epilog.removeprefix("Example: synthorax "))) for command in COMMANDS.values()]


def kinds() -> Iterator[tuple[str, list[str]]]:
    """The first command of each kind: one whose verb and options are not all in an earlier one, or in the example of its help."""
    seen = list(EXAMPLES)
    for page, words in ALL:
        verb, options = kind_of(words)
        if not any(verb == other and options <= those for other, those in seen):
            seen.append((verb, options))
            yield page, words


class ReachedError(Exception):
    """The command line has come to the verb."""


def in_place_of(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes what the verb takes, and ends the command."""
    signature = inspect.signature(verb)

    def reached(*arguments: Any, **options: Any) -> None:
        signature.bind(*arguments, **options)
        raise ReachedError

    return reached


@pytest.fixture
def verbs_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name.replace("-", "_") for name in COMMANDS} | {"export_model"}
    for module in map(importlib.import_module, VERB_MODULES):
        for name in names & set(vars(module)):
            monkeypatch.setattr(module, name, in_place_of(getattr(module, name)))


@pytest.mark.usefixtures("verbs_end_at_once")
@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_command_in_a_document_reaches_its_verb(page: Path) -> None:
    for words in commands_in(page):
        with pytest.raises(ReachedError):
            app(words, standalone_mode=False)


SMALLER = {
    "benefit": ("--updates", "2", "--seeds", "3", "--repeats", "1"),
    "evaluate": ("--quick", "--features", "radiomics"),
    "generate": ("--steps", "2", "--num", "2", "--batch-size", "2"),
    "refine-loop": ("--rounds", "1", "--num", "4", "--filter", "copy"),
    "train": settings(*TINY, "train.steps=2"),
}
"""options that are added; a later one overrules"""
INSTEAD = {
    "benefit": {"Hernia": ("Nodule",), "10": ("5",), "20": ("10",), "50": (), "100": ()},
    "generate": {"Edema": ("Cardiomegaly",)},
    "train": {"edm-64": ("controlled-64",), "train.adapt_rank=16": ("train.adapt_rank=2",)},
}
"""words that are replaced: findings that the drawings have, fewer of them, and the recipe of the base"""
SHIPPED = ("--steps", "1", "--super-resolution-steps", "1", "--num", "1", "--batch-size", "1")
"""what makes the shipped model quick"""
RUN = list(kinds())


def small(words: list[str]) -> list[str]:
    """The command at tiny size."""
    if "cxr-256" in words:
        return [*words, *SHIPPED, "--device", "cpu", "--threads", "1"]
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    everywhere = [*(("--device", "cpu") if "--device" in known else ()), *(("--threads", "1") if "--threads" in known else ())]
    return [*(new for word in words for new in INSTEAD.get(words[0], {}).get(word, (word,))), *SMALLER.get(words[0], ()), *everywhere]


def laid_out(words: list[str], things: Path, folder: Path) -> None:
    """Put there whatever a command or a script names, but what it makes."""
    lay_out(things, things_of(words), folder)
    for name in ("effusion.png", "nodule.png", "lung.png"):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 18:28] = 255
        write_png(folder / name, mask)
    images = [f"images/synthetic-{number:06d}.png" for number in range(8)] + [study.file_name for study in Prepared.load(
        things / "prepared").studies[:8]]
    rows = [f"R{reader},{image},synthetic,{4 + reader % 2}" for reader in range(3) for image in images]
    (folder / "readings.csv").write_text("\n".join(["reader,film,said,acceptable", *rows, ""]))


@pytest.mark.parametrize(("page", "words"), RUN, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in RUN])
def test_a_command_of_each_kind_does_what_the_document_says(page: str, words: list[str], runner: CommandRunner, things: Path,
                                                            tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    laid_out(words, things, folder)
    done = runner.call(*small(words), folder=folder, defaults=FEW_UPDATES)
    check_result(done, code=(0, 4) if "--gate" in words else (0,))
    assert "--out" not in words or (folder / words[words.index("--out") + 1]).exists()


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_reason_stands_before_a_block_that_it_is_for(page: Path) -> None:
    marked = [block for block in blocks(page, r"\w+") if block.reason]
    assert page.read_text(encoding="utf-8").count("<!-- not run:") == len(marked)
    for block in marked:
        assert block.language in [*SHELL.split("|"), "python"] and len(block.reason.split()) > 2
        for start in re.findall(r"`([^`]+)`", block.reason):
            assert any(" ".join(words).startswith(start) for words in block.commands()), start


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_other_command_in_a_document_is_one_of_dev_py_or_says_why_it_is_not_run(page: Path) -> None:
    for block in blocks(page, SHELL):
        for words in block.lines():
            known = Path(words[0]).name == "synthorax" or words[:2] == ["python3", "dev.py"]  # test_house.py knows what dev.py can do
            assert known or block.reason, words


def scripts() -> dict[str, set[str]]:
    """Script of bench/ -> every option that a document gives it."""
    found: dict[str, set[str]] = {}
    for block in (block for page in PAGES for block in blocks(page, SHELL)):
        for words in block.lines():
            at = next((number for number, word in enumerate(words) if word.startswith("bench/") and word.endswith(".py")), None)
            if at is not None and "python" in words[:at]:
                found.setdefault(words[at], set()).update(word for word in words[at + 1:] if word.startswith("--"))
    return found


@pytest.mark.parametrize(("script", "options"), sorted(scripts().items()), ids=sorted(scripts()))
def test_a_script_of_the_documents_has_the_options_that_they_give_it(script: str, options: set[str], runner: CommandRunner,
                                                                     tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    done = runner.call(str(ROOT / script), "--help", folder=folder)
    check_result(done, code=(0,))
    assert options <= set(re.findall(r"--[\w-]+", done.out)), done.out


PYTHON_PAGES = [page for page in PAGES if any(not block.reason for block in blocks(page, "python"))]
INSTEAD_IN_PYTHON = {
    "size=64": "size=16", '"edm-64"': '"small.toml"', 'budget="30m"': 'budget="2s"', "num=400, size=16": "num=4, size=32", "num=8": "num=2",
    'out="kept/")': 'out="kept/", config=sx.ScreenConfig(filters=("copy",)))', 'text="nodule in': 'num=2, text="nodule in',
    "seeds=5": "seeds=3, classifier=BenefitConfig().brief().classifier",
}
"""text in Python blocks that is replaced, to be quick"""


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=where)
def test_python_in_a_document_runs(page: Path, runner: CommandRunner, things: Path, tmp_path: Path) -> None:
    """Block after block, as a reader would who types all of a page."""
    code = "\n".join(block.code for block in blocks(page, "python") if not block.reason)
    for text, new in INSTEAD_IN_PYTHON.items():
        code = code.replace(text, new)
    folder = tmp_path / "here"
    folder.mkdir()
    made = re.findall(r'(?:out=|write\()"([^"]+)"', code)
    laid_out([name for name in re.findall(r'"([^"]+)"', code) if name not in made], things, folder)
    Report(inputs={"real": {"digest": "none"}, "synthetic": {"digest": "none"}}).write(folder / "out")
    (folder / "page.py").write_text(code, encoding="utf-8")
    check_result(runner.call("page.py", folder=folder, defaults=FEW_UPDATES), code=(0,))


TUTORIALS = sorted((ROOT / "examples").glob("*.py"))
REDUCED = {
    "TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES": "160, 30, 60", "TRAINING_STEPS": "2", "SYNTHETIC_IMAGES": "6",
    "CLASSIFIER_UPDATES": "2", "NUM": "1", "STEPS, SUPER_RESOLUTION_STEPS": "1, 1", "MASK_MODEL_STEPS": "2",
}
"""variable of a tutorial's first cell -> the value that makes it quick"""


@pytest.mark.parametrize("page", TUTORIALS, ids=where)
def test_a_tutorial_runs_to_its_end(page: Path, runner: CommandRunner, tmp_path: Path) -> None:
    code = page.read_text(encoding="utf-8")
    for name, value in REDUCED.items():
        code = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", code)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / page.name).write_text(code, encoding="utf-8")
    check_result(runner.call(page.name, folder=folder, defaults=FEW_UPDATES), code=(0,))


def test_every_setting_that_is_reduced_is_one_of_a_tutorial() -> None:
    code = "".join(page.read_text(encoding="utf-8") for page in TUTORIALS)
    assert [name for name in REDUCED if not re.search(rf"(?m)^{name} = ", code)] == []
