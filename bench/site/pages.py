"""Pages that are generated: the command line from the Typer app, the API from the docstrings, tutorials from their Python files."""

from __future__ import annotations

import enum
import importlib
import re
from typing import Any, get_args

import typer.main


def command_line() -> str:
    """Every command with its arguments, its options by panel, and its example, as Markdown."""
    from synthorax.cli.app import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    panels: dict[str, list[str]] = {}
    for name, command in commands.items():
        panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(name)
    contents = "\n".join(f"- {panel}: " + ", ".join(f"[`{name}`](#{name})" for name in names) for panel, names in panels.items())
    return "\n\n".join([contents, *(_command(name, command) for name, command in commands.items())])


def _command(name: str, command: Any) -> str:
    """One command of the Typer app; its parameters are read by what they are called, since Typer brings a Click of its own."""
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    usage = " ".join(["synthorax", name, *(_argument(parameter) for parameter in arguments), "[OPTIONS]"])
    parts = [f"## {name}", _paragraphs(command.help or ""), f"```text\n{usage}\n```"]
    if arguments:
        rows = [f"| `{_argument(parameter)}` | {_cell(parameter.help or '')} |" for parameter in arguments]
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    panels: dict[str, list[Any]] = {}
    for parameter in shown:
        if parameter.param_type_name == "option":
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(parameter)
    for panel, options in panels.items():
        parts.append("\n".join([f"| {panel} | default | |", "|---|---|---|", *map(_option, options)]))
    example = (command.epilog or "").removeprefix("Example: ")
    return "\n\n".join([*parts, f"```sh\n{example}\n```"] if example else parts)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).strip("[]{}").upper() + ("..." if parameter.nargs != 1 else "")
    return name if parameter.required else f"[{name}]"


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else " " + " or ".join(f"`{_cell(choice)}`" for choice in (option.metavar or _value(option)).split("|"))
    unset = (option.default is None or option.default is False or option.default == "" or callable(option.default)
             or "UNSET" in repr(option.default).upper())  # 0 is a default like any other
    default = "required" if option.required else "" if unset else f"`{_plain(option.default)}`"
    return f"| {names}{value} | {default} | {_cell(option.help or '')} |"


def _value(option: Any) -> str:
    """What stands behind an option: the choices of an enum, or the kind of value."""
    kind = option.type_descriptor.annotation if hasattr(option, "type_descriptor") else getattr(option, "type", str)
    kind = next(iter(get_args(kind)), kind)  # list[str] is an option that may be repeated
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(_plain(choice) for choice in kind)
    return {"str": "TEXT", "Path": "PATH", "int": "INTEGER", "float": "NUMBER"}.get(getattr(kind, "__name__", ""), "VALUE")


def _plain(value: object) -> str:
    return str(getattr(value, "value", value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip())


def public_names() -> dict[str, list[tuple[str, str]]]:
    """Theme -> (public name of `synthorax`, dotted path of what it names), in the order of `__all__`."""
    import synthorax

    themes: dict[str, list[tuple[str, str]]] = {}
    for name in synthorax.__all__:
        if name == "__version__":
            continue
        thing: Any = getattr(synthorax, name)
        module = importlib.import_module(thing.__module__)
        verbs = thing.__module__.startswith("synthorax.verbs.")
        heading = (module.__doc__ or "").partition("\n")[0].partition(":")[0].rstrip(".") if verbs else (
            "Records and errors" if isinstance(thing, type) else "Models and recipes")
        themes.setdefault(heading, []).append((name, f"{thing.__module__}.{thing.__qualname__}"))
    return themes


def api() -> str:
    """Headings and directives for everything in `synthorax.__all__`; mkdocstrings writes the docstrings in their place."""
    return "\n\n".join(part for heading, names in public_names().items()
                       for part in (f"## {heading}", *(f"::: {path}" for _, path in names)))


def canonical(path: str) -> str:
    """Where the thing is defined that a dotted path names, which may have been imported there."""
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    return f"{thing.__module__}.{thing.__qualname__}"


def tutorial(code: str) -> str:
    """A Python file of percent cells as Markdown: comments of `# %% [markdown]` cells as text, all else as code."""
    parts = []
    for cell in re.split(r"(?m)^# %%", code)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"
