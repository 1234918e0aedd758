"""Checked config objects from plain tables, and durations such as `20m`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from synthorax.bounds import (
    AtLeastOne,
    Depth,
    Dropout,
    Finite,
    Fraction,
    Multipliers,
    NotNegative,
    Patch,
    Positive,
    Seed,
    Side,
    WholeNotNegative,
    Width,
    one_of,
)
from synthorax.errors import InputError, UsageError, nearest
from synthorax.former_names import SETTINGS, with_present_keys

__all__ = ["AtLeastOne", "Depth", "Dropout", "Finite", "Fraction", "Multipliers", "NotNegative", "Patch", "Positive", "Seed", "Side",
           "WholeNotNegative", "Width", "build", "one_of", "parse_duration", "read_record"]
C = TypeVar("C")


def build(kind: type[C], table: Mapping[str, Any], *, where: str, prefix: str) -> C:
    """A config dataclass from a table; unknown keys, wrong types and values out of bounds are errors that name the key.

    Bounds of a field are in its type. Rules that tie fields to one another are in a method `faults` of the class, which yields
    pairs of a key and what is wrong with it.
    """
    table = _present(kind, table, where=where, prefix=prefix)
    _check_names(kind, table, where=where, prefix=prefix)
    try:
        config = TypeAdapter(kind).validate_python(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (prefix, *first["loc"]))
        raise InputError(f"{key}: {first['msg'].removeprefix('Value error, ')} (got {repr(first['input'])[:80]})", file=where) from error
    for key, problem in _faults(config):
        raise InputError(f"{prefix}.{key}: {problem}", file=where)
    return config


def read_record(kind: type[C], value: Any, *, what: str, where: Path | str, remedy: str) -> C:
    """A record that Synthorax wrote, as what it was; InputError with `remedy` where it is damaged. `what` names it there."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (what, *first["loc"]))
        raise InputError(f"is damaged: {key} ({first['msg']})", file=where, remedy=remedy) from None


def _faults(config: Any) -> Iterator[tuple[str, str]]:
    """What the fields of a config, and of configs in it, have to do with one another and do not."""
    yield from getattr(config, "faults", lambda: ())()
    for field in fields(config):
        if is_dataclass(inner := getattr(config, field.name)):
            yield from ((f"{field.name}.{key}", problem) for key, problem in _faults(inner))


def _present(kind: Any, table: Any, *, where: str, prefix: str) -> Any:
    """The table with the present names of keys that earlier versions called otherwise, also in tables of tables."""
    if not isinstance(table, Mapping):
        return table
    names, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
    former = {before: now for before, now in SETTINGS.items() if before not in names and now in names}
    for before in former.keys() & table.keys():
        if former[before] in table:
            raise InputError(f"'{prefix}.{before}' and '{prefix}.{former[before]}' are the same setting", file=where,
                             remedy=f"keep '{former[before]}', its present name")
    table = with_present_keys(table, former)
    inner = {key: next((one for one in (hints[key], *get_args(hints[key])) if is_dataclass(one)), None) for key in names & table.keys()}
    return {key: value if inner.get(key) is None else _present(inner[key], value, where=where, prefix=f"{prefix}.{key}")
            for key, value in table.items()}


def _check_names(kind: Any, table: Mapping[str, Any], *, where: str, prefix: str) -> None:
    """Refuse unknown keys, also in tables of tables."""
    if not isinstance(table, Mapping):
        raise InputError(f"'{prefix}' must be a table", file=where)
    names, hints = [field.name for field in fields(kind)], get_type_hints(kind)
    for key, value in table.items():
        if key not in names:
            raise InputError(f"unknown key '{prefix}.{key}'", file=where, remedy=nearest(str(key), names))
        for inner in (hints[key], *get_args(hints[key])):
            if is_dataclass(inner) and isinstance(value, Mapping):
                _check_names(inner, value, where=where, prefix=f"{prefix}.{key}")


LONGEST_SECONDS = 366 * 24 * 3600


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
    if seconds > LONGEST_SECONDS:
        raise UsageError(f"the duration '{text}' is longer than a year")
    return seconds
