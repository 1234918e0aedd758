"""Every verb as a user types it, in a folder of its own: the example of its `--help`, stopped by Ctrl-C, continued, and called again."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main

from command_runner import FEW_UPDATES, CommandRunner, check_result
from synthorax.cli.app import app
from tiny_job import EDM, THINGS, TINY, lay_out, settings

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
STOPPED = "synthorax: stopped; call the same command again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """How a verb is tried: its example, made small."""

    takes: tuple[str, ...] = ()
    """what its example takes, see `tiny_job.THINGS`"""
    smaller: tuple[str, ...] = ()
    """options after those of the example: a later one overrules"""
    defaults: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """defaults of configs that no option reaches, see `CommandRunner.call`"""
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """words of the example that no later option can overrule, and what takes their place"""
    gate: bool = False
    """whether code 4 is an answer, too: a gate of the example says no, or a training as short as here falls short"""
    stop_at: str
    """it gets Ctrl-C as it opens a file with this in its path: in the middle of its work"""
    leaves: str = ""
    """file that is there in the end"""


VERBS = {
    "augment": Verb(takes=("images", "small.toml"), instead={"--budget": ("--budget-images",), "20m": ("8",)},
                    smaller=("--recipe", "small.toml", "--num", "3"), defaults=FEW_UPDATES, gate=True, stop_at="/generated/",
                    leaves="augmented/report.html"),
    "audit": Verb(takes=("prepared", "kept"), smaller=("--features", "radiomics", "--planted", "1"), defaults=FEW_UPDATES,
                  gate=True, stop_at="synthetic-000010", leaves="audit/report.html"),
    "benefit": Verb(takes=("prepared", "kept"), smaller=("--updates", "2", "--seeds", "3"), stop_at="/trainings/",
                    leaves="report/report.html"),
    "compare": Verb(takes=("prepared",), instead={"vae-64": (), "dcgan-64": (), "--budget": ("--budget-images",), "10m": ("8",)},
                    smaller=("--seeds", "0", "--num", "20", "--features", "radiomics",
                             *settings(*(f"edm-64:model.{text}" for text in EDM), ":train.batch_size=4", "edm-64:sample.steps=2")),
                    stop_at="/pieces/", leaves="comparison/comparison.html"),
    "demo": Verb(defaults={"synthorax.verbs.demonstration:DemoConfig": {
        "population": "tuple(PhantomSplit(split=part.split, num=40, prevalence=COMMON) for part in POPULATION)", "num": "6",
        "work": "replace(WORK, steps=2, judge=replace(SMALL, updates=2), "
                "benefit=replace(WORK.benefit, classifier=replace(SMALL, updates=2), resamples=100))",
        "radiographs": "RADIOGRAPHS[:1]"}}, gate=True, stop_at="/generated/", leaves="demo/report.html"),
    "doctor": Verb(stop_at="cpuinfo"),
    "drift": Verb(takes=("2024", "2025"), smaller=("--features", "radiomics"), gate=True, stop_at="report.json",
                  leaves="drift/report.html"),
    "evaluate": Verb(takes=("prepared", "kept"), smaller=("--features", "radiomics", "--quick"), stop_at="synthetic-000010",
                     leaves="report/report.html"),
    "export": Verb(takes=("kept",), stop_at="000009", leaves="dicom/index.csv"),
    "generate": Verb(takes=("runs/a", "plan.csv"), smaller=("--steps", "2", "--batch-size", "2"), stop_at="000003",
                     leaves="synthetic/metadata.csv"),
    "ingest": Verb(takes=("CXR14",), stop_at="00000050", leaves="cxr14/metadata.csv"),
    "insert": Verb(takes=("prepared",), instead={"Nodule": ("Mass",)}, smaller=("--diameter-mm", "80", "--num", "6"), stop_at="000003",
                   leaves="inserted/metadata.csv"),
    "lesion-noise": Verb(takes=("prepared",), smaller=("--size", "32"), stop_at="lesion_noise.md", leaves="noise/lesion_noise.svg"),
    "refine-loop": Verb(takes=("runs/a", "prepared"), smaller=("--rounds", "1", "--num", "4", "--filter", "copy"), defaults=FEW_UPDATES,
                 stop_at="rounds/round", leaves="rounds/synthetic/metadata.csv"),
    "models": Verb(takes=("runs/a",), stop_at="cxr-256.safetensors"),
    "pack": Verb(takes=("runs/base-64", "runs/super-256"), stop_at="models/", leaves="models/cxr-256/model.safetensors"),
    "plan": Verb(takes=("prepared",), stop_at="plan.csv", leaves="plan.csv"),
    "prepare": Verb(takes=("cxr14",), smaller=("--size", "16"), stop_at="phantom-00050", leaves="prepared/fingerprint.json"),
    "prepare-nodules": Verb(takes=("nodules.npz",), smaller=("--side", "8"), stop_at="volumes.npy", leaves="nodules/lesions.csv"),
    "recipes": Verb(stop_at="table.json"),
    "screen": Verb(takes=("synthetic", "prepared"), defaults=FEW_UPDATES, stop_at="dropped.csv", leaves="kept/metadata.csv"),
    "train": Verb(takes=("prepared",), smaller=settings(*TINY, "train.steps=4", "train.checkpoint_every=1"), stop_at="checkpoints",
                   leaves="runs/a/model.safetensors"),
    "check-poisoning": Verb(takes=("synthetic", "prepared"), defaults=FEW_UPDATES, gate=True, stop_at="flagged.csv",
                            leaves="vetted/poisoning.json"),
}


def example_of(name: str) -> tuple[str, ...]:
    """The words of the example in a verb's help, and what makes it small."""
    words = shlex.split(COMMANDS[name].epilog.removeprefix("Example: synthorax "))
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    everywhere = (("--device", "cpu") if "--device" in known else ()) + (("--threads", "1") if "--threads" in known else ())
    words = [new for word in words for new in VERBS[name].instead.get(word, (word,))]
    return (*words, *VERBS[name].smaller, *everywhere)


def test_every_verb_has_its_line_here() -> None:
    shown = subprocess.run([sys.executable, "-m", "synthorax", "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"(?m)^  ([a-z][a-z-]*) {2,}", shown.partition("Options:")[2])
    assert set(listed) == set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_its_help_is_stopped_continued_and_called_again(
        name: str, runner: CommandRunner, things: Path, tmp_path: Path) -> None:
    verb, words, folder = VERBS[name], example_of(name), tmp_path / "here"
    done = (0, 4) if verb.gate else (0,)
    folder.mkdir()
    lay_out(things, verb.takes, folder)
    stopped = runner.call(*words, folder=folder, stop_at=verb.stop_at, defaults=verb.defaults)
    check_result(stopped, code=(130,))
    assert stopped.err.splitlines()[-1] == STOPPED and not stopped.out, str(stopped)

    finished = runner.call(*words, "--json", folder=folder, defaults=verb.defaults)
    check_result(finished, code=done)
    assert finished.json() and finished.out.count("\n") == 1
    assert not verb.leaves or (folder / verb.leaves).is_file()

    again = runner.call(*words, folder=folder, defaults=verb.defaults)
    check_result(again, code=done)
    assert again.out
    print(f"{name}: {finished.cpu_seconds:.1f} s of one core, with the stopped and the second call "
          f"{stopped.cpu_seconds + finished.cpu_seconds + again.cpu_seconds:.1f} s")  # shown by pytest -rP


def test_the_installed_command_is_the_same(things: Path, tmp_path: Path) -> None:
    lay_out(things, ["cxr14"], tmp_path)
    command = shutil.which("synthorax", path=str(Path(sys.executable).parent))
    for program in ([sys.executable, "-m", "synthorax"], *([[command]] if command else [])):
        done = subprocess.run([*program, "prepare", "cxr14", "--size", "16", "--out", "prepared", "--json"], cwd=tmp_path,
                              capture_output=True, text=True, check=True)
        assert "prepared" in done.stdout and done.stdout.count("\n") == 1


assert set(THINGS) >= {name for verb in VERBS.values() for name in verb.takes}
