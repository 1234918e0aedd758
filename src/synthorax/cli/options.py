"""Options that several commands share. Importing this file imports no verb."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthorax.threads import MAX_THREADS

LAST_SEED = 2**63 - 1
READING, START, BUDGET, RUNNING = "Reading images", "Starting point", "Budget", "Running"
"""headings in the help, of options on what is read, on the weights to begin with, on how long, and on where and how a command runs"""


Given = Mapping[str, Any]
"""what was given of a record's fields, by their names"""


class Fields:
    """Mark of a command's parameter that stands for a record: in its place there is one option for each field."""

    def __init__(self, record: str | type, *, panel: str, leave_out: tuple[str, ...] = (), names: Mapping[str, str] | None = None,
                 usual: bool = True) -> None:
        """`record` may be `module:class`, which is imported when the options are asked for; `panel` is their heading in the help.

        Fields in `leave_out` are no options, and `names` has the options that are not called as their field. What is not given has the
        value that the record says, or with `usual` False is not passed on, since what is usual is said elsewhere.
        """
        self.record, self.panel, self.leave_out, self.names, self.usual = record, panel, leave_out, names or {}, usual


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Clock(StrEnum):
    """What a budget of time is counted in."""

    wall = "wall"
    processor = "processor"


class Way(StrEnum):
    """Which weights of a base model are trained."""

    auto = "auto"
    full = "full"
    lora = "lora"
    trunk = "trunk"


Json = Annotated[bool, typer.Option("--json", rich_help_panel=RUNNING,
                                    help="Print one JSON object on stdout at the end, and nothing else there.")]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, rich_help_panel=RUNNING, help="Seed of all random numbers.")]
DeviceOption = Annotated[Device, typer.Option("--device", rich_help_panel=RUNNING, help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, rich_help_panel=RUNNING,
                                             help="Processor threads; by default all cores, or fewer where training is faster with them.")]
ClockOption = Annotated[Clock, typer.Option("--clock", rich_help_panel=BUDGET, help="Clock of the time budget; processor time is fair on a "
                                                                                     "busy machine.")]
Budget = Annotated[str | None, typer.Option(rich_help_panel=BUDGET, help="Training time, such as 90s, 20m or 1h30m.")]
BudgetImages = Annotated[str | None, typer.Option(rich_help_panel=BUDGET, help="Number of images to train on, such as 50k, in place of a "
                                                                               "time: the same result on every machine.")]
Base = Annotated[Path | None, typer.Option(rich_help_panel=START, help="Shipped model, run or model file to start from.")]
Adapt = Annotated[Way | None, typer.Option(rich_help_panel=START, help="Which weights of the base are trained: full (all), lora (low-rank "
                                                                       "updates), trunk (all but the trunk, which stays frozen), or auto "
                                                                       "(by the number of images).")]
Compressor = Annotated[Path | None, typer.Option(rich_help_panel=START, help="Run of the autoencoder whose latents are diffused.")]
LabelTable = Annotated[Path | None, typer.Option(rich_help_panel=READING, help="Table of labels, if it is not metadata.csv in the folder.")]
Allow = Annotated[list[str] | None, typer.Option(rich_help_panel=READING, help="Accept this finding although the vocabulary lacks it; "
                                                                               "repeat for more.")]
PerImage = Annotated[bool, typer.Option("--patient-per-image", rich_help_panel=READING,
                                        help="Treat every image as a patient of its own, where no column names the patient.")]
AllowRejects = Annotated[bool, typer.Option("--allow-rejects", rich_help_panel=READING,
                                            help="Continue even if more than a tenth of the images are rejected.")]
Synthetic = Annotated[Path, typer.Option(help="Dataset folder of synthetic images, from any generator.")]
