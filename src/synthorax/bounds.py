"""Types of settings with the bounds of their values, and names out of a table. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from synthorax.errors import nearest

AtLeastOne = Annotated[int, Ge(1), Le(10**9)]
WholeNotNegative = Annotated[int, Ge(0), Le(10**12)]
Finite = Annotated[float, Ge(-1e9), Le(1e9)]
NotNegative = Annotated[float, Ge(0), Le(1e9)]
Positive = Annotated[float, Gt(0), Le(1e9)]
Fraction = Annotated[float, Ge(0), Le(1)]
Dropout = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Side = Annotated[int, Ge(4), Le(8192)]
"""of a square image, in pixels"""
Width = Annotated[int, Ge(1), Le(2**16)]
"""numbers in a vector, or maps of a layer"""
Depth = Annotated[int, Ge(1), Le(256)]
"""layers on top of each other"""
Patch = Annotated[int, Ge(1), Le(64)]
Multipliers = Annotated[tuple[Annotated[int, Ge(1), Le(256)], ...], MinLen(1), MaxLen(10)]
"""feature maps of each level, in units of the first"""


@dataclass(frozen=True, slots=True)
class Form:
    """How a value of several parts is written in one word on the command line."""

    text: str
    """such as x,y"""
    example: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """Bound of a name: it stands in the table `module:attribute`, which is imported when a name is checked, or among `more`."""

    table: str
    more: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The names there are."""
        module, _, attribute = self.table.partition(":")
        return [*getattr(importlib.import_module(module), attribute), *self.more]

    def check(self, name: str) -> str:
        """The name; ValueError that says which is nearest where there is no such name."""
        names = self.names()
        if name not in names:
            raise ValueError(f"there is no '{name}'; {nearest(name, names)}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """How pydantic asks for the check."""
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.check, handler(source))


def one_of(table: str, *more: str) -> OneOf:
    """Names of a table `module:attribute`, which is imported when a name is checked, and `more` names.

    >>> build_one = Annotated[str, one_of("synthorax.families:FAMILIES")]
    """
    return OneOf(table, more)
