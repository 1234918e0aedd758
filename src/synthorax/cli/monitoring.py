"""Commands that watch over data and rounds: loop, vet and drift. Importing this file imports no verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import Device, DeviceOption, Json, Seed, Threads, finish


def add_checks(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: synthorax refine-loop runs/a --real prepared/ --finding Pneumothorax --out rounds/")(refine_loop)
    app.command(epilog="Example: synthorax check-poisoning synthetic/ --against prepared/ --out vetted/ --gate")(check_poisoning)
    app.command(epilog="Example: synthorax drift 2024/ 2025/ --out drift/ --gate")(drift)


def refine_loop(
    model: Annotated[Path, typer.Argument(help="Run folder, model file or name of a shipped model.")],
    real: Annotated[Path, typer.Option(help="Prepared folder; its test split is not opened.")],
    finding: Annotated[list[str], typer.Option(help="Finding to get right; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder for the rounds and synthetic/.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the first draws training images evenly.")] = 2,
    num: Annotated[int, typer.Option(min=1, help="Images with a finding in each round; as many without are made too.")] = 100,
    filter: Annotated[list[str] | None, typer.Option(help="Of screening, see synthorax screen; repeat for more.")] = None,
    subtype: Annotated[list[str] | None, typer.Option(help="Column of the table that names kinds of a finding; repeat for more.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Let a classifier's errors on validation patients say which images to make next, round after round."""
    from synthorax.steps.feedback.rounds import RefineLoopConfig
    from synthorax.verbs.synthesis import refine_loop as verb

    config = RefineLoopConfig(rounds=rounds, num=num, filters=tuple(filter or ()), subtypes=tuple(subtype or ()), seed=seed)
    finish(verb(model, real=real, findings=finding, out=out, config=config, seed=seed, device=device.value, threads=threads), json)


def check_poisoning(
    suspects: Annotated[Path, typer.Argument(help="Dataset folder to look at, synthetic or real.")],
    against: Annotated[Path, typer.Option(help="Prepared folder whose training images are trusted.")],
    out: Annotated[Path, typer.Option(help="Folder for flagged.csv and poisoning.json.")],
    drop: Annotated[bool, typer.Option("--drop", help="Also leave clean/, a dataset folder without the flagged images.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 if more images are flagged than clean ones would be.")] = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Flag images that would poison a training: shared triggers, adversarial noise, labels that the image contradicts."""
    from synthorax.verbs.evidence import check_poisoning as verb

    found = verb(suspects, against=against, out=out, drop=drop, seed=seed, device=device.value, threads=threads)
    finish(found, json)
    if gate and found.suspicious:
        print(f"synthorax: the gate says no: {found.num_flagged} of {found.num_images} images are flagged", file=sys.stderr)
        raise typer.Exit(4)


def drift(
    old: Annotated[Path, typer.Argument(help="Dataset or prepared folder of the images known so far.")],
    new: Annotated[Path, typer.Argument(help="Folder of newer images.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")],
    features: Annotated[str, typer.Option(help="Feature space, see synthorax evaluate.")] = "efficientnet-lite0",
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 on an alarm.")] = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find out whether newer images differ from older ones: looks, people, findings."""
    from synthorax.verbs.evidence import drift as verb

    found = verb(old, new, out=out, features=features, seed=seed, device=device.value, threads=threads)
    finish(found, json)
    if gate and found.alarm:
        print("synthorax: the gate says no: the newer images differ", file=sys.stderr)
        raise typer.Exit(4)
