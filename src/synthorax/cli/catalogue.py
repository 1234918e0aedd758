"""Commands that list what there is: recipes, models, and what this machine can do. Importing this file imports no verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.options import Json, finish


def add_lists(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: synthorax recipes --json")(recipes)
    app.command(epilog="Example: synthorax models runs/")(models)
    app.command(epilog="Example: synthorax doctor")(doctor)


def recipes(json: Json = False) -> None:
    """List the recipes that ship with the package: size, parameters that are trained, and what else each one needs."""
    from synthorax.steps.models.recipe_table import recipes as verb

    finish({"recipes": verb()}, json)


def models(
    folder: Annotated[list[Path] | None, typer.Argument(help="Folders in which to look for runs as well.")] = None,
    json: Json = False,
) -> None:
    """List the models that ship with the package and the runs in a folder."""
    from synthorax.steps.models.catalogue import models as verb

    finish({"models": verb(*folder or ())}, json)


def doctor(json: Json = False) -> None:
    """Say what this machine can do."""
    import platform

    from synthorax import __version__
    from synthorax.engine import describe_machine

    finish({"synthorax": __version__, "python": platform.python_version(), "system": platform.platform(), **describe_machine()}, json)
