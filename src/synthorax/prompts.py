"""Prompts: several descriptions joined by upper-case AND and NOT."""

from __future__ import annotations

import re
from pathlib import Path

from synthorax.errors import InputError


def split_prompt(text: str, *, file: str | Path | None = None, row: int | None = None) -> tuple[tuple[str, float], ...]:
    """The parts of a prompt that `AND` and `NOT` join, each with its weight: 1, or -1 behind `NOT`.

    Only upper case joins; `and` and `not` are ordinary words, and so are all words of a prompt that is in upper case throughout.
    `InputError` for an operator without words behind it, or `AND` without words before it.

    >>> split_prompt("small left effusion AND cardiomegaly NOT pneumothorax")
    (('small left effusion', 1.0), ('cardiomegaly', 1.0), ('pneumothorax', -1.0))
    """
    text = " ".join(text.split())
    first, *rest = re.split(r"\b(AND NOT|AND|NOT)\b", text) if re.search("[a-z]", text) else [text]
    parts = [("", first), *zip(rest[::2], rest[1::2], strict=True)]
    if parts[0][1].strip() == "" and len(parts) > 1 and parts[1][0] == "NOT":
        del parts[0]
    for number, (operator, part) in enumerate(parts):
        if not part.strip(" ,;.") and len(parts) > 1:
            problem = f"'{operator or parts[number + 1][0]}' stands without words {'behind' if operator else 'before'} it in '{text[:80]}'"
            raise InputError(problem, file=file, row=row, remedy="write for example 'effusion AND nodule NOT pneumothorax'")
    return tuple((part.strip(" ,;"), -1.0 if "NOT" in operator else 1.0) for operator, part in parts)
