"""Options that most commands share, and how a command prints its result. Importing this file imports no verb."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Clock(StrEnum):
    """What a budget of time is counted in."""

    wall = "wall"
    processor = "processor"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout at the end, and nothing else there.")]
Seed = Annotated[int, typer.Option(help="All random numbers follow from it.")]
ClockOption = Annotated[Clock, typer.Option(help="What the budget is counted in; processor is fair on a busy machine.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; all cores by default.")]


def finish(result: Any, as_json: bool) -> None:
    """Print what a verb returned: its own text, or one JSON object; of several processes only the first one speaks."""
    if int(os.environ.get("RANK", 0)):
        return
    facts: Callable[[], dict[str, Any]] | None = getattr(result, "to_dict", None)
    if as_json:
        print(json_module.dumps(facts() if facts is not None else result, default=str))
    elif isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                print("\n".join("  ".join(f"{name} {_words(part)}" for name, part in row.items()) for row in value))
            else:
                print(f"{key}: {'none' if value == [] else _words(value)}")
    else:
        print(result)


def _words(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
