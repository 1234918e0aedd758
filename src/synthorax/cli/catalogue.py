"""Commands that list what there is: recipes, models, and what this machine can do. Importing this file imports no verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import Json
from synthorax.cli.output import finish
from synthorax.cli.panels import add

PANEL = "Catalogue"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, recipes, example="recipes --json")
    add(app, PANEL, models, example="models runs/")
    add(app, PANEL, doctor, example="doctor")


def recipes(json: Json = False) -> None:
    """List the shipped recipes.

    With image size, number of trained parameters, and what else each recipe needs.
    """
    from synthorax.steps.models.recipe_table import recipes as verb

    finish({"recipes": verb()}, json)


def models(
    folder: Annotated[list[Path] | None, typer.Argument(help="Folders in which to look for runs, too.")] = None,
    json: Json = False,
) -> None:
    """List the shipped models and the runs in a folder."""
    from synthorax.steps.models.catalogue import models as verb

    finish({"models": verb(*folder or ())}, json)


def doctor(json: Json = False) -> None:
    """Show what this machine can do."""
    import platform

    from synthorax import __version__
    from synthorax.engine import describe_machine

    finish({"synthorax": __version__, "python": platform.python_version(), "system": platform.platform(), **describe_machine()}, json)
