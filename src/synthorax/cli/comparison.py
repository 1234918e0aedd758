"""The command `compare`, with its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import Clock, ClockOption, Device, DeviceOption, Json, Threads, finish
from synthorax.cli.values import count_of, split_seeds


class BaseWay(StrEnum):
    """What of a base moves."""

    full = "full"
    lora = "lora"
    trunk = "trunk"


def compare(
    recipe: Annotated[list[str], typer.Argument(help="Shipped recipes or TOML files, of one image size.")],
    data: Annotated[Path, typer.Option(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.json, .md, .html, .png and all pieces.")],
    budget: Annotated[str | None, typer.Option(help="Time that each training gets, such as 10m.")] = None,
    budget_images: Annotated[str | None, typer.Option(help="Images that each training draws, such as 50k, in place of a time.")] = None,
    clock: ClockOption = Clock.wall,
    seeds: Annotated[list[str] | None, typer.Option(help="Trainings of each recipe, 0 1 2 by default; fewer than 3 say little.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Images that each training makes.")] = 400,
    train_images: Annotated[int | None, typer.Option(min=2, help="Train on so many images only, drawn by the seed.")] = None,
    finding: Annotated[str, typer.Option(help="With --train-images: shown by half of them; does a classifier of it gain?")] = "",
    base: Annotated[Path | None, typer.Option(help="Also train from this shipped model, run or file.")] = None,
    adapt: Annotated[list[BaseWay] | None, typer.Option(help="What of the base moves, full and lora by default; repeat for more.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: RECIPE:table.key=value; repeat for more.")] = None,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Vary training images slightly, in all or in none.")] = True,
    features: Annotated[str, typer.Option(help="Feature space of the judges.")] = "efficientnet-lite0",
    only: Annotated[tuple[str, int] | None, typer.Option(metavar="RECIPE SEED", help="Do this one training and stop.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time; more than 1 needs --clock processor.")] = 1,
    also: Annotated[list[Path] | None, typer.Option(help="comparison.json of trainings done elsewhere; repeat for more.")] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train generators on the same images for the same budget, and measure them side by side; the same command goes on after a stop."""
    recipes, numbers = split_seeds(recipe, seeds)
    images = None if budget_images is None else count_of("budget-images", budget_images)

    from synthorax.verbs.comparison import compare as verb

    finish(verb(recipes, data, out=out, budget=budget, budget_images=images, clock=clock.value,
                seeds=numbers, num=num, train_images=train_images, finding=finding, base=base, ways=[way.value for way in adapt or ()],
                overrides=set_ or (), features=features, augment=augment, only=only, jobs=jobs, also=also or (),
                device=device.value, threads=threads), json)
