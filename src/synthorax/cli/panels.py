"""Help in panels: commands and options under headings, as plain text on every terminal. Importing this file imports no verb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from synthorax.cli.from_records import Command

Row = tuple[str, str]


class PanelCommand(TyperCommand):
    """A command whose help has its options under the headings that they name."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options without a heading, then the others, each heading once."""
        panels: dict[str, list[Row]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or f"{parameter.param_type_name.capitalize()}s"
            if (row := parameter.get_help_record(ctx)) is not None:
                panels.setdefault(heading, []).append(row)
        _write(panels, formatter)


class PanelGroup(TyperGroup):
    """A group whose help has its commands under the headings that they name."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, each heading once."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) and not command.hidden}
        panels: dict[str, list[Row]] = {}
        limit = formatter.width - 6 - max(map(len, commands))
        for name, command in commands.items():
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, command.get_short_help_str(limit)))
        _write(panels, formatter)


def add(app: typer.Typer, panel: str, function: Callable[..., None], *, example: str, name: str | None = None) -> None:
    """Add a function to the command line, under a heading and with an example."""
    app.command(name=name, cls=PanelCommand, rich_help_panel=panel, epilog=f"Example: synthorax {example}")(Command(function))


def _write(panels: dict[str, list[Row]], formatter: Any) -> None:
    """Write all panels, their second columns in one line."""
    width = max((len(first) for rows in panels.values() for first, _ in rows if len(first) <= WIDEST), default=0)
    for heading, rows in panels.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl([(first.ljust(width), second) for first, second in rows], col_max=WIDEST)


WIDEST = 30
"""characters of a first column; a longer cell has a line of its own"""
