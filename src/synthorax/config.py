"""Checked config objects from plain tables, and durations such as `20m`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from synthorax.errors import InputError, UsageError, nearest

C = TypeVar("C")
AtLeastOne = Annotated[int, Field(ge=1)]
WholeNotNegative = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1)]


def build(kind: type[C], table: Mapping[str, Any], *, where: str, prefix: str) -> C:
    """A config dataclass from a table; unknown keys and wrong types are errors that name the key and the nearest one."""
    _check_names(kind, table, where=where, prefix=prefix)
    try:
        return TypeAdapter(kind).validate_python(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (prefix, *first["loc"]))
        raise InputError(f"{key}: {first['msg']} (got {repr(first['input'])[:80]})", file=where) from error


def _check_names(kind: Any, table: Mapping[str, Any], *, where: str, prefix: str) -> None:
    """Refuse unknown keys, also in tables of tables."""
    names, hints = [field.name for field in fields(kind)], get_type_hints(kind)
    for key, value in table.items():
        if key not in names:
            raise InputError(f"unknown key '{prefix}.{key}'", file=where, remedy=nearest(key, names))
        for inner in (hints[key], *get_args(hints[key])):
            if is_dataclass(inner) and isinstance(value, Mapping):
                _check_names(inner, value, where=where, prefix=f"{prefix}.{key}")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `20m`, `1.5h` or `1h30m`.

    >>> parse_duration("1h30m")
    5400.0
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hms])", text)
    if not parts or re.sub(r"\d+(?:\.\d+)?\s*[hms]|\s", "", text):
        raise UsageError(f"'{text}' is not a duration; write for example 90s, 20m or 1h30m")
    seconds = sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"the duration '{text}' is not above zero")
    return seconds
