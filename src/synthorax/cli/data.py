"""Commands that bring images and lesions in: ingest, prepare and prepare-nodules. Importing this file imports no verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import Allow, AllowRejects, Json, LabelTable, PerImage, Seed
from synthorax.cli.output import finish
from synthorax.cli.panels import add
from synthorax.cli.values import fractions_of

PANEL = "Data"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, ingest, example="ingest CXR14/ --adapter cxr14 --out cxr14/")
    add(app, PANEL, prepare, example="prepare cxr14/ --size 256 --out prepared/")
    add(app, PANEL, prepare_nodules, example="prepare-nodules nodules.npz --out nodules/")


def ingest(
    source: Annotated[Path, typer.Argument(help="Folder of images as their owner distributes them.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    adapter: Annotated[str, typer.Option(help="Layout of the source: folder, dicom or cxr14; by default recognised from the files.")] = "",
    label_table: LabelTable = None,
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    json: Json = False,
) -> None:
    """Turn images and their labels into a dataset folder."""
    from synthorax.data.rejects import Rejected
    from synthorax.verbs.data import ingest as verb

    dataset = verb(source, adapter=adapter, out=out, label_table=label_table, allow=allow or (), patient_per_image=patient_per_image,
                   allow_rejects=allow_rejects)
    rejected = Rejected.of_folder(dataset.path, dataset.facts)
    finish({"dataset": str(dataset.path), "images": len(dataset), "findings": list(dataset.findings),
            "notes": [(f"row {note.row}: " if note.row else "") + note.reason for note in dataset.notes],
            "rejected": rejected.to_dict() if json else rejected}, json)


def prepare(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the cache, rejects.csv and fingerprint.json.")],
    size: Annotated[int, typer.Option(min=8, max=2048, help="Side of the square images in pixels.")] = 256,
    split: Annotated[str, typer.Option(help="Fractions of the patients for training, validation and test.")] = "0.7,0.1,0.2",
    images_per_patient: Annotated[int, typer.Option(min=1, help="Maximum number of training images per patient.")] = 5,
    uncertain: Annotated[str, typer.Option(help="How to count an uncertain label: ignore, positive or negative.")] = "ignore",
    unlisted: Annotated[str, typer.Option(help="How to count a finding that a labelled image does not list: absent or 'not stated'.")]
    = "absent",
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Decode, check, split by patient and cache a dataset."""
    from synthorax.config import build
    from synthorax.types import LabelPolicy
    from synthorax.verbs.data import prepare as verb

    policy = build(LabelPolicy, {"uncertain": uncertain, "unlisted": unlisted}, where="the command line", prefix="labels")
    finish(verb(dataset, size=size, out=out, split=fractions_of(split), images_per_patient=images_per_patient, policy=policy,
                seed=seed, allow=allow or (), patient_per_image=patient_per_image, allow_rejects=allow_rejects), json)


def prepare_nodules(
    bank: Annotated[Path, typer.Argument(help="Lesions cut from CT with a mask each: an npz file, or a folder of npz or NIfTI files.")],
    out: Annotated[Path, typer.Option(help="Folder for the lesions on one grid and rejects.csv.")],
    side: Annotated[int, typer.Option(min=8, max=64, help="Voxels of a side of the grid, which is two diameters wide.")] = 32,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="Fraction of the scans that is kept for tests.")] = 0.2,
    licence: Annotated[str, typer.Option(help="Terms of the bank, for the card of a model.")] = "",
    attribution: Annotated[str, typer.Option(help="Whom to name, and where they published.")] = "",
    allow_rejects: AllowRejects = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Resample, measure and split lung nodules cut from CT."""
    from synthorax.verbs.data import prepare_nodules as verb

    finish(verb(bank, out=out, side=side, held_out=held_out, licence=licence, attribution=attribution, seed=seed,
                allow_rejects=allow_rejects), json)
