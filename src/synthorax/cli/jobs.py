"""Commands that do a whole job in one go: augment, demo and compare. Importing this file imports no verb."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import (
    BUDGET,
    START,
    Adapt,
    Allow,
    AllowRejects,
    BudgetImages,
    Clock,
    ClockOption,
    Compressor,
    Device,
    DeviceOption,
    Json,
    LabelTable,
    PerImage,
    Seed,
    Threads,
)
from synthorax.cli.output import finish
from synthorax.cli.panels import add
from synthorax.cli.values import images_of, split_seeds

PANEL, DIVIDING = "Whole jobs", "Dividing the work"


class Making(StrEnum):
    """How images are made."""

    generate = "generate"
    insert = "insert"
    both = "both"


class BaseWay(StrEnum):
    """Which weights of a base model are trained."""

    full = "full"
    lora = "lora"
    trunk = "trunk"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, augment, example="augment images/ --finding Pneumothorax --budget 20m --out augmented/")
    add(app, PANEL, demo, example="demo --out demo/")
    add(app, PANEL, compare, example="compare edm-64 vae-64 dcgan-64 --data prepared/ --budget 10m --out comparison/")


def augment(
    dataset: Annotated[Path, typer.Argument(help="Folder of PNG, JPEG or DICOM with a label table, or a dataset folder.")],
    finding: Annotated[list[str], typer.Option(help="Rare finding to augment; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder for the training set and the report.")],
    budget: Annotated[str | None, typer.Option(rich_help_panel=BUDGET, help="Time for the whole job, such as 90m, divided among its "
                                                                            "stages by the measured speed of this machine; 20m by "
                                                                            "default.")] = None,
    budget_images: BudgetImages = None,
    num: Annotated[int | None, typer.Option(min=1, help="Synthetic images of each finding; by default as many as balance the "
                                                        "data.")] = None,
    mode: Annotated[Making, typer.Option(help="How images are made: generate, by the generator; insert, lesions put into training images, "
                                              "which trains nothing; or both.")] = Making.generate,
    base: Annotated[Path | None, typer.Option(rich_help_panel=START, help="Shipped model, run or model file to start from; cxr-256 by "
                                                                          "default.")] = None,
    adapt: Adapt = None,
    recipe: Annotated[str | None, typer.Option(rich_help_panel=START, help="Recipe of the generator, such as edm-64 to train from "
                                                                           "scratch; by default the base's.")] = None,
    compressor: Compressor = None,
    label_table: LabelTable = None,
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Generate a rare finding and test whether it helps.

    The main job in one go: learn from your images, generate more of a rare finding, screen the new images, and test on held-out patients
    whether they help a classifier.

    Exit code 4: the training of the generator fell short, as the first lines of the report say. The verdict "no evidence" is no
    failure.
    """
    from synthorax.verbs.augmentation import augment as verb

    made = verb(dataset, findings=finding, out=out, budget=budget, budget_images=images_of(budget_images), num=num, base=base,
                adapt=adapt and adapt.value, recipe=recipe, compressor=compressor, label_table=label_table,
                allow=allow or (), patient_per_image=patient_per_image, allow_rejects=allow_rejects, seed=seed, device=device.value,
                threads=threads, mode=mode.value)
    finish(made, json)
    if made.fell_short:
        raise typer.Exit(4)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demonstration writes.")],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run the main job on built-in drawings of a phantom.

    Needs no network; the work and the verdict are the same on every machine.
    """
    from synthorax.verbs.demonstration import demo as verb

    finish(verb(out=out, seed=seed, device=device.value, threads=threads), json)


def compare(
    recipe: Annotated[list[str], typer.Argument(help="Shipped recipes or TOML files, all of one image size.")],
    data: Annotated[Path, typer.Option(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.json, .md, .html and .png, and all trainings.")],
    budget: Annotated[str | None, typer.Option(rich_help_panel=BUDGET, help="Time of each training, such as 10m.")] = None,
    budget_images: BudgetImages = None,
    clock: ClockOption = Clock.wall,
    seeds: Annotated[list[str] | None, typer.Option(help="Seeds of the trainings of each recipe; 0 1 2 by default. Fewer than 3 show "
                                                         "little.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Number of images to generate from each training.")] = 400,
    train_images: Annotated[int | None, typer.Option(min=2, help="Train on a random subset of this many images.")] = None,
    finding: Annotated[str, typer.Option(help="With --train-images: finding that half of them show, and whose downstream benefit is "
                                              "measured.")] = "",
    base: Annotated[Path | None, typer.Option(rich_help_panel=START, help="Also fine-tune this shipped model, run or model file.")] = None,
    adapt: Annotated[list[BaseWay] | None, typer.Option(rich_help_panel=START, help="Which weights of the base are trained: full, lora or "
                                                                                   "trunk; full and lora by default. Repeat for "
                                                                                   "more.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="RECIPE:TABLE.KEY=VALUE", help="Override a setting of a recipe; repeat "
                                                                                                   "for more.")] = None,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Augment the training images slightly, in all trainings or in "
                                                                         "none.")] = True,
    features: Annotated[str, typer.Option(help="Feature space of the metrics, see synthorax evaluate.")] = "efficientnet-lite0",
    only: Annotated[tuple[str, int] | None, typer.Option(metavar="RECIPE SEED", rich_help_panel=DIVIDING,
                                                                 help="Do this one training and stop.")] = None,
    jobs: Annotated[int, typer.Option(min=1, rich_help_panel=DIVIDING, help="Number of simultaneous trainings; more than 1 needs --clock "
                                                                          "processor.")] = 1,
    also: Annotated[list[Path] | None, typer.Option(rich_help_panel=DIVIDING, help="Include the trainings of this comparison.json from "
                                                                                 "elsewhere; repeat for more.")] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compare generators on the same data and budget.

    Every generator is trained on the same images, with the same budget, and measured by the same metrics. The same command continues after
    a stop.
    """
    recipes, numbers = split_seeds(recipe, seeds)

    from synthorax.verbs.comparison import compare as verb

    finish(verb(recipes, data, out=out, budget=budget, budget_images=images_of(budget_images), clock=clock.value,
                seeds=numbers, num=num, train_images=train_images, finding=finding, base=base, ways=[way.value for way in adapt or ()],
                overrides=set_ or (), features=features, augment=augment, only=only, jobs=jobs, also=also or (),
                device=device.value, threads=threads), json)
