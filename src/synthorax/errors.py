"""Errors that a user can act on: each names the file, the row and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SynthoraxError(Exception):
    """Base of all errors that Synthorax raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SynthoraxError):
    """A verb was called in a way that cannot work (exit code 2)."""

    exit_code = 2


class InputError(SynthoraxError):
    """Input was refused (exit code 3). The message reads `file row N: what is wrong; remedy`."""

    exit_code = 3

    def __init__(self, problem: str, *, file: str | Path | None = None, row: int | None = None, remedy: str = "") -> None:
        """`row` counts as a spreadsheet does: the header is row 1."""
        where = str(file) if file is not None else ""
        if row is not None:
            where += f" row {row}"
        super().__init__((f"{where}: " if where else "") + problem + (f"; {remedy}" if remedy else ""))
        self.file, self.row, self.remedy = file, row, remedy


class TrainingError(SynthoraxError):
    """Training cannot go on, for instance because the loss is not a number; the last good weights are kept."""


class OutOfMemoryError(SynthoraxError):
    """The machine or its GPU has too little memory for what was asked; what was finished before is kept."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of `choices` was probably meant, as the tail of an error message.

    >>> nearest("Efusion", ["Effusion", "Mass"])
    "did you mean 'Effusion'?"
    """
    choices = list(choices)
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    return "choose from: " + ", ".join(sorted(set(choices)))
