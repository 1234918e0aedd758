"""Help in panels: commands and options under headings, as plain text on every terminal. Importing this file imports no verb."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from synthorax.cli.options import Fields

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

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`, false unless given: a value of none Typer would check with pydantic, which takes long to import."""
        option = super().get_help_option(ctx)
        if option is not None and option.default is None:
            option.default = False
        return option

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, each heading once."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) and not command.hidden}
        panels: dict[str, list[Row]] = {}
        limit = formatter.width - 6 - max(map(len, commands))
        for name, command in commands.items():
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, command.get_short_help_str(limit)))
        _write(panels, formatter)


class Command:
    """A function of the command line whose parameters marked with `Fields` became options, which are read when they are asked for."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__
        self.__annotations__: dict[str, Any] = {}

    @functools.cached_property
    def _parameters(self) -> tuple[list[inspect.Parameter], dict[str, dict[str, tuple[str, Callable[[Any], Any]]]]]:
        from synthorax.cli.from_records import options_of  # here, because the list of commands needs no options

        parameters, groups = [], {}
        for parameter in inspect.signature(self.function, eval_str=True).parameters.values():
            mark = next((mark for mark in getattr(parameter.annotation, "__metadata__", ()) if isinstance(mark, Fields)), None)
            if mark is None:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            options = list(options_of(mark))
            parameters += [option for _, option, _ in options]
            groups[parameter.name] = {name: (option.name, read) for name, option, read in options}
        return parameters, groups

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        return inspect.Signature(self._parameters[0])

    def __call__(self, **values: Any) -> None:
        """Call the function with what the parser found, that of each record as one mapping of what was given."""
        given = {group: {name: (values.pop(option), read) for name, (option, read) in fields.items()}
                 for group, fields in self._parameters[1].items()}
        self.function(**values, **{group: {name: read(value) for name, (value, read) in fields.items() if value is not None}
                                   for group, fields in given.items()})


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
