"""Tables of named parts: literal dicts of `name -> "module:attribute"`, imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from synthorax.errors import UsageError, nearest


def lookup(table: Mapping[str, str], name: str, *, kind: str) -> Any:
    """Import the part called `name` from `table`; an unknown name is an error that lists the choices.

    >>> lookup({"sqrt": "math:sqrt"}, "sqrt", kind="function")(4.0)
    2.0
    """
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'; {nearest(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
