"""How a command prints its result: for a person, for a file, or as one JSON object. Importing this file imports no verb."""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def finish(result: Any, as_json: bool) -> None:
    """Print what a verb returned: its own text, or one JSON object; of several processes only the first one speaks."""
    if int(os.environ.get("RANK", 0)):
        return
    facts: Callable[[], dict[str, Any]] | None = getattr(result, "to_dict", None)
    if as_json:
        import json  # here, because most calls print no JSON

        record = facts() if facts is not None else result
        text = json.dumps(without_nan(record), default=str, allow_nan=False)
    elif isinstance(result, dict):
        text = "\n".join(_table(value) if _is_table(value) else f"{key}: {_words(value)}" for key, value in result.items())
    else:
        text = str(result)
    try:
        print(text, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def without_nan(value: Any) -> Any:
    """The same record with null for every number that is none, which JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a person: a table, or paragraphs where the terminal is too narrow. For a file or a program: one line a row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_words(row.get(name) or "") for name in columns] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    if sys.stdout.isatty():
        return _grid(cells) if sum(widths) + 3 * len(widths) < shutil.get_terminal_size().columns else _paragraphs(cells)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def _grid(cells: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for name, values in zip(cells[0], zip(*cells[1:], strict=True), strict=True):
        digits = all(value[:1].isdecimal() for value in values if value)
        table.add_column(Text(name.replace("_", " ")), justify="right" if digits else "left")
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def _paragraphs(cells: Sequence[Sequence[str]]) -> str:
    names, width = cells[0], shutil.get_terminal_size().columns
    lines = []
    for row in cells[1:]:
        lines += [row[0], *(textwrap.fill(f"{name.replace('_', ' ')}: {cell}", width, initial_indent="  ", subsequent_indent="    ",
                                          break_long_words=False, break_on_hyphens=False)
                            for name, cell in zip(names[1:], row[1:], strict=True) if cell)]
    return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "" if value is None else str(value)
