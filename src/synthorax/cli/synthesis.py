"""Commands that make images and choose among them: plan, generate, insert, screen, refine-loop and export.

Importing this file imports no verb.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import RUNNING, Device, DeviceOption, Fields, Given, Json, Seed, Threads
from synthorax.cli.output import finish
from synthorax.cli.panels import add
from synthorax.cli.values import counts_of

PANEL = "Synthesis"


class Format(StrEnum):
    """File format of an export."""

    dicom = "dicom"
    png = "png"
    diffusers = "diffusers"


class Inference(StrEnum):
    """What runs networks at sampling."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, plan, example="plan prepared/ --balance Pneumothorax --out plan.csv")
    add(app, PANEL, generate, example="generate runs/a --plan plan.csv --out synthetic/")
    add(app, PANEL, insert, example="insert prepared/ --finding Nodule --seed 1 --out inserted/")
    add(app, PANEL, screen, example="screen synthetic/ --against prepared/ --out kept/")
    add(app, PANEL, refine_loop, example="refine-loop runs/a --real prepared/ --finding Pneumothorax --out rounds/")
    add(app, PANEL, export, example="export kept/ --format dicom --out dicom/")


def plan(
    prepared: Annotated[Path, typer.Argument(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="File to write, such as plan.csv.")],
    balance: Annotated[str, typer.Option(help="Findings to make as frequent as the most frequent one, comma-separated, or all.")] = "",
    count: Annotated[list[str] | None, typer.Option(metavar="FINDING=N", help="Number of images to make of a finding; repeat for "
                                                                              "more.")] = None,
    companions: Annotated[float, typer.Option(min=0, max=1, help="Images without the finding per image with it.")] = 1.0,
    for_: Annotated[Path | None, typer.Option("--for", help="Model that will generate the images; the plan leaves out what it is not "
                                                            "conditioned on, such as sites.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Decide which images to make, before any exists."""
    from synthorax.verbs.synthesis import plan as verb

    names = [name.strip() for name in balance.split(",") if name.strip()]
    finish(verb(prepared, balance=names, count=counts_of(count or ()), companions=companions, model=for_, seed=seed, out=out), json)


def generate(
    model: Annotated[Path, typer.Argument(help="Shipped model, run folder, model file, or folder saved by diffusers.")],
    *,
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    plan: Annotated[Path | None, typer.Option(help="Plan of the images, one row per image.")] = None,
    request: Annotated[Given, Fields("synthorax.options:Request", panel="Request, in place of a plan")],
    settings: Annotated[Given, Fields("synthorax.options:SampleSettings", panel="Sampling, by default as the model's recipe says",
                                      usual=False)],
    batch_size: Annotated[int | None, typer.Option(min=1, rich_help_panel=RUNNING, help="Images made at a time; by default one per thread, "
                                                                                        "but at least 2, and 16 on a GPU.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    inference: Annotated[Inference | None, typer.Option(rich_help_panel=RUNNING, help="What runs the networks on a CPU; auto, or the "
                                                        "variable SYNTHORAX_INFERENCE: OpenVINO where it is installed.")] = None,
    json: Json = False,
) -> None:
    """Generate images from a plan or a request."""
    from synthorax.errors import UsageError
    from synthorax.options import Request
    from synthorax.verbs.synthesis import generate as verb

    wanted = Request(**request)
    asked = [*wanted.stated(), *(["image_size"] if wanted.image_size else [])]
    if plan is not None and asked:
        raise UsageError(f"the plan says what to make, and so does {', '.join(asked)}; leave out one of the two")
    dataset = verb(model, plan or wanted, out=out, settings=settings, batch_size=batch_size, seed=seed, device=device.value,
                   threads=threads, inference=inference.value if inference else None)
    finish({"dataset": str(dataset.path), "images": len(dataset), "model_digest": dataset.facts["model_digest"]}, json)


def insert(
    hosts: Annotated[Path, typer.Argument(help="Images without the finding: a folder of PNG, JPEG or DICOM, a dataset folder or a prepared "
                                               "folder.")],
    *,
    finding: Annotated[str, typer.Option(help="Finding to insert, such as Nodule, Mass or Effusion.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    from_: Annotated[Path | None, typer.Option("--from", metavar="MODEL", help="Model of the lesions: of volumes for nodules and masses, a "
                                                                               "diffusion model for other findings, or template for "
                                                                               "a formula.")] = None,
    config: Annotated[Given, Fields("synthorax.steps.insertion.config:InsertConfig", panel="Lesions",
                                    names={"spacing_mm": "--spacing"})],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Insert a lesion into radiographs that lack it.

    The images stay those of their patients: they are marked as derived from a patient, may only train, and export refuses them.
    """
    from synthorax.steps.insertion.config import InsertConfig
    from synthorax.verbs.synthesis import insert as verb

    finish(verb(hosts, finding=finding, out=out, from_=from_, config=InsertConfig(**config), seed=seed, device=device.value,
                threads=threads), json)


def screen(
    synthetic: Annotated[Path, typer.Argument(help="Dataset folder of synthetic images.")],
    *,
    against: Annotated[Path, typer.Option(help="Prepared folder that the generator was trained on.")],
    out: Annotated[Path, typer.Option(help="Dataset folder for the images that pass.")],
    config: Annotated[Given, Fields("synthorax.steps.screening.config:ScreenConfig", panel="Checks", leave_out=("classifier",),
                                    names={"findings": "--finding", "filters": "--filter"})],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Drop near-duplicates and images that miss the request."""
    from synthorax.steps.screening.config import ScreenConfig
    from synthorax.verbs.synthesis import screen as verb

    finish(verb(synthetic, against=against, out=out, config=ScreenConfig(**config), seed=seed, device=device.value, threads=threads), json)


def refine_loop(
    model: Annotated[Path, typer.Argument(help="Run folder, model file or name of a shipped model.")],
    *,
    real: Annotated[Path, typer.Option(help="Prepared folder; the labels of its test split are not used.")],
    finding: Annotated[list[str], typer.Option(help="Finding that the classifier should learn; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder for the rounds and synthetic/.")],
    config: Annotated[Given, Fields("synthorax.steps.feedback.config:RefineLoopConfig", panel="Rounds",
                                    leave_out=("trainings", "classifier", "judge", "seed"),
                                    names={"filters": "--filter", "subtypes": "--subtype"})],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Generate, in rounds, what a classifier still gets wrong.

    Its errors on validation patients decide which images the next round makes; then it is trained again.
    """
    from synthorax.steps.feedback.config import RefineLoopConfig
    from synthorax.verbs.synthesis import refine_loop as verb

    finish(verb(model, real=real, findings=finding, out=out, config=RefineLoopConfig(**config, seed=seed), seed=seed, device=device.value,
                threads=threads), json)


def export(
    source: Annotated[Path, typer.Argument(help="Dataset folder, or for diffusers a run folder or model file.")],
    format: Annotated[Format, typer.Option(help="Format: dicom or png for images, diffusers for a model.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    finding: Annotated[list[str] | None, typer.Option(help="With diffusers: finding that the exported model always shows; repeat for "
                                                           "more.")] = None,
    allow_derived: Annotated[bool, typer.Option("--allow-derived", help="Also export images derived from a patient's image, such as "
                                                                        "inserted lesions. They show that patient.")] = False,
    json: Json = False,
) -> None:
    """Export images as DICOM or PNG, or a model to diffusers."""
    from synthorax.errors import UsageError

    if format is Format.diffusers:
        from synthorax.verbs.synthesis import export_model

        finish({"out": str(export_model(source, out=out, finding=finding or ()))}, json)
    elif finding:
        raise UsageError("--finding is for --format diffusers; images are exported as they are")
    else:
        from synthorax.verbs.inputs import dataset_of
        from synthorax.verbs.synthesis import export as verb

        folder = verb(source, format="dicom" if format is Format.dicom else "png", out=out, allow_derived=allow_derived)
        finish({"out": str(folder), "images": len(dataset_of(source))}, json)
