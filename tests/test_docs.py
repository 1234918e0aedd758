"""What the documents tell a user to type: every command is read to its end by the command line, each kind is run, and so is the Python."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
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


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```(?:{language})\n(.*?)^```", page.read_text(encoding="utf-8"))


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words after `synthorax` in the page's shell blocks."""
    for block in blocks(page, "sh|bash|console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "synthorax" and words[1:2] != ["--version"]:
                yield words[1:]


def kind_of(words: list[str]) -> tuple[str, frozenset[str]]:
    """The verb and its options."""
    return words[0], frozenset(word.partition("=")[0] for word in words if word.startswith("--"))


ALL = [(where(page), words) for page in PAGES for words in commands_in(page)]
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


NOT_RUN = {
    "augment": "the main job has its own line in test_every_verb.py; from a base it is run in test_adaptation.py",
    "compare": "minutes for each; test_compare.py has several families, jobs, few images, a base and trainings made elsewhere",
    "train student": "its teacher has to fit; test_student.py",
    "export runs/a --format diffusers": "needs a network that diffusers has; test_export_diffusers.py",
    "audit": "the shipped model on 256 px takes minutes; test_audit.py",
    "evaluate --real base/prepared/": "learns a feature space for minutes; test_feature_spaces.py",
}
"""beginning of a command -> why it is read to its end, but not run here"""
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
RUN = [(page, words) for page, words in kinds() if not any(" ".join(words).startswith(start) for start in NOT_RUN)]


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


def test_what_is_not_run_is_in_a_document() -> None:
    assert [start for start in NOT_RUN if not any(" ".join(words).startswith(start) for _, words in kinds())] == []


NOT_RUN_IN_PYTHON = {
    "docs/how-to/use-diffusers-models.md": "needs a folder that diffusers saved; test_diffusers_models.py",
    "docs/how-to/ship-a-model.md": "needs a run with snapshots; test_power_ema.py",
}
PYTHON_PAGES = [page for page in PAGES if blocks(page, "python") and where(page) not in NOT_RUN_IN_PYTHON]
INSTEAD_IN_PYTHON = {
    "size=64": "size=16", '"edm-64"': '"small.toml"', 'budget="30m"': 'budget="2s"', "num=400, size=16": "num=4, size=32", "num=8": "num=2",
    'out="kept/")': 'out="kept/", config=sx.ScreenConfig(filters=("copy",)))', 'text="nodule in': 'num=2, text="nodule in',
    "seeds=5": "seeds=3, classifier=BenefitConfig().brief().classifier",
}
"""text in Python blocks that is replaced, to be quick"""


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=where)
def test_python_in_a_document_runs(page: Path, runner: CommandRunner, things: Path, tmp_path: Path) -> None:
    """Block after block, as a reader would who types all of a page."""
    code = "\n".join(blocks(page, "python"))
    for text, new in INSTEAD_IN_PYTHON.items():
        code = code.replace(text, new)
    folder = tmp_path / "here"
    folder.mkdir()
    made = re.findall(r'(?:out=|write\()"([^"]+)"', code)
    laid_out([name for name in re.findall(r'"([^"]+)"', code) if name not in made], things, folder)
    Report(inputs={"real": {"digest": "none"}, "synthetic": {"digest": "none"}}).write(folder / "out")
    (folder / "page.py").write_text(code, encoding="utf-8")
    check_result(runner.call("page.py", folder=folder, defaults=FEW_UPDATES), code=(0,))
