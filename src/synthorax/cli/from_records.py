"""Options made of the fields of records: name, type, bounds, default and help are written once, beside the field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from synthorax.cli.options import Fields
from synthorax.cli.values import named, numbers_of

SCALARS = (bool, int, float, str, Path)
UNBOUNDED = 1e9
"""bounds from here on keep a file from being absurd; nobody needs to read them in a help"""


def options_of(mark: Fields) -> Iterator[tuple[str, inspect.Parameter, Callable[[Any], Any]]]:
    """Name of each field, the parameter of a command for it, and how its value is read."""
    record = _record(mark.record)
    texts, hints = docstrings(record), get_type_hints(record, include_extras=True)
    for field in dataclasses.fields(record):
        if field.name not in mark.leave_out:
            yield field.name, *_option(field, hints[field.name], texts.get(field.name, ""), mark)


def docstrings(record: type) -> dict[str, str]:
    """Field -> its docstring in one line, also of fields that are inherited."""
    texts: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        for field, text in itertools.pairwise(_classes(kind.__module__)[kind.__name__].body):
            if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)):
                texts[field.target.id] = " ".join(text.value.value.split())
    return texts


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes that a module defines, as its source says; docstrings of fields are nowhere else."""
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(parsed) if isinstance(node, ast.ClassDef)}


def _record(record: str | type) -> Any:
    if isinstance(record, str):
        module, _, name = record.partition(":")
        return getattr(importlib.import_module(module), name)
    return record


def _option(field: dataclasses.Field[Any], hint: Any, text: str, group: Fields) -> tuple[inspect.Parameter, Callable[[Any], Any]]:
    """The parameter of a command for one field, and how its value is read."""
    if not text:
        raise TypeError(f"field '{field.name}' has no docstring, which is the help of its option")
    option = group.names.get(field.name, f"--{field.name.replace('_', '-')}")
    kind, marks = _plain(hint)
    form = next((mark for mark in marks if hasattr(mark, "example")), None)
    given, read = _kind(kind, form, option)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = inspect.Parameter.empty if required and group.usual else _default_of(field.default) if group.usual else None
    names = f"{option}/--no-{option[2:]}" if given is bool and default is not False else option
    help_text = text[0].upper() + text[1:].replace("`", "") + ("; repeat for more." if get_origin(given) is list else ".")
    lowest = [mark.ge for mark in marks if hasattr(mark, "ge") and mark.ge > -UNBOUNDED]
    highest = [mark.le for mark in marks if hasattr(mark, "le") and mark.le < UNBOUNDED]
    info = typer.Option(names, help=help_text, metavar=form and form.text, rich_help_panel=group.panel, min=max(lowest, default=None),
                        max=min(highest, default=None))
    annotation = given if required and group.usual else given | None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]), read


def _default_of(default: Any) -> Any:
    """A default that can be shown and passed on; None for what means "not given"."""
    shown = default != "" if isinstance(default, str) else isinstance(default, (bool, int, float)) and not math.isnan(default)
    return default if shown else None


def _plain(hint: Any) -> tuple[Any, list[Any]]:
    """A type without None and without its marks, and these."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks += more
        elif get_origin(hint) in (Union, types.UnionType):
            kinds = [kind for kind in get_args(hint) if kind is not type(None)]
            hint = kinds[0] if len(kinds) == 1 else Path if set(kinds) == {str, Path} else hint
            if len(kinds) > 1 and hint is not Path:
                raise TypeError(f"no option can be made of {hint}")
        else:
            return hint, marks


def _kind(kind: Any, form: Any, option: str) -> tuple[Any, Callable[[Any], Any]]:
    """The type that the parser of the command line is given, and how what it gives becomes the field's value."""
    if kind in SCALARS:
        return kind, lambda value: value
    if get_origin(kind) is Literal:
        return str, lambda value: value
    arguments = [_plain(argument)[0] for argument in get_args(kind) if argument is not Ellipsis]
    many = get_origin(kind) in (Sequence, list) or (get_origin(kind) is tuple and Ellipsis in get_args(kind))
    if many and arguments[0] in SCALARS:
        return list[arguments[0]], tuple  # type: ignore[valid-type]
    if form is not None and many and get_origin(arguments[0]) is tuple:
        value = _value(_plain(get_args(arguments[0])[1])[0], form, option)
        return list[str], lambda texts: tuple((name, value(text)) for name, text in map(named, texts))
    if form is not None and get_origin(kind) is Mapping:
        value = _value(arguments[1], form, option)
        return list[str], lambda texts: {name: value(text) for name, text in map(named, texts)}
    if form is not None and get_origin(kind) is tuple:
        return str, _value(kind, form, option)
    raise TypeError(f"no option can be made of {kind}; several values in one word need a Form")


def _value(kind: Any, form: Any, option: str) -> Callable[[str], Any]:
    """How one value is read, `kind` being a number, several numbers, a path or a word."""
    if kind in (str, Path):
        return Path if kind is Path else str
    count = 1 if kind in (int, float) else len(get_args(kind))

    def read(text: str) -> Any:
        numbers = numbers_of(option, text, count=count, form=form)
        return numbers if get_origin(kind) is tuple else numbers[0]

    return read
