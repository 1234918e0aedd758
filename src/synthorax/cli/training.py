"""Commands that train and assemble models: train and pack. Importing this file imports no verb."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import (
    BUDGET,
    LAST_SEED,
    RUNNING,
    Adapt,
    Base,
    Budget,
    BudgetImages,
    Clock,
    ClockOption,
    Compressor,
    Device,
    DeviceOption,
    Json,
    Threads,
)
from synthorax.cli.output import finish
from synthorax.cli.panels import add
from synthorax.cli.values import images_of, setting_of

PANEL = "Training"
PAUSED = 75
"""exit code of a training that `--pause-after` ended: not wrong, not done (EX_TEMPFAIL of sysexits.h)"""


class Precision(StrEnum):
    """Numbers of the weights in a file."""

    bf16 = "bf16"
    fp32 = "fp32"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, train, example="train edm-64 --data prepared/ --budget 30m --out runs/a")
    add(app, PANEL, pack, example="pack runs/base-64 runs/super-256 --out models/cxr-256")


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a setting of the recipe; repeat for "
                                                                                            "more.")] = None,
    budget: Budget = None,
    budget_images: BudgetImages = None,
    clock: ClockOption = Clock.wall,
    pause_after: Annotated[str | None, typer.Option(rich_help_panel=BUDGET, help="Save and stop after this time, with exit code 75; the "
                                                                                 "same command continues.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run, even with another number of steps or learning rate.")] = False,
    base: Base = None,
    adapt: Adapt = None,
    compressor: Compressor = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LAST_SEED, rich_help_panel=RUNNING,
                                             help="Seed of all random numbers; by default the recipe's.")] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a generator.

    Under `torchrun` the same command uses several processes.
    """
    from synthorax.verbs.training import train as verb

    run = verb(recipe, data, out=out, overrides=set_ or (), budget=budget, pause_after=pause_after, resume=resume, base=base,
               adapt=adapt and adapt.value, compressor=compressor, seed=seed, device=device.value, threads=threads,
               clock=clock.value, budget_images=images_of(budget_images))
    finish(run, json)
    if not run.finished:
        raise typer.Exit(PAUSED)


def pack(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or model files: the base model, then its super-resolution stages in "
                                                    "order.")],
    out: Annotated[Path, typer.Option(help="Folder for the packed model.")],
    guide: Annotated[Path | None, typer.Option(help="Weaker version of the base model, for autoguidance.")] = None,
    sample: Annotated[list[str] | None, typer.Option(metavar="SETTING=VALUE", help="Sampling setting that becomes the model's default, "
                                                                                   "such as autoguidance=2; repeat for more.")] = None,
    precision: Annotated[Precision, typer.Option(help="Precision of the weights: bf16 halves the file, fp32 keeps every "
                                                      "bit.")] = Precision.bf16,
    json: Json = False,
) -> None:
    """Pack a model and its super-resolution stages as one."""
    from synthorax.verbs.training import pack as verb

    finish(verb(runs, out=out, guide=guide, sample=dict(setting_of(given) for given in sample or ()),
                precision="bf16" if precision is Precision.bf16 else "fp32"), json)
