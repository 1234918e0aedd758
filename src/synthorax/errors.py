"""Errors that a user can act on: each names the file, the row and the remedy."""

from __future__ import annotations

import difflib
import errno
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
    """The machine or its GPU has too little memory for what was asked; what was finished before is kept (exit code 3)."""

    exit_code = 3


GO_ON = "what was finished is kept, and the same command goes on"
_ROOM = f"make room: {GO_ON}"
_PLACE = "choose another place"
_OF_THE_SYSTEM = {
    "ENOSPC": ("no space left", _ROOM),
    "EDQUOT": ("your quota of this disk is used up", _ROOM),
    "EFBIG": ("the file would be larger than this disk or this account allows", f"raise the limit or {_PLACE}: {GO_ON}"),
    "EROFS": ("lies on a disk that cannot be written to", _PLACE),
    "EACCES": ("you may not open this", f"change the permissions, or {_PLACE}"),
    "EPERM": ("you may not change this", f"change the permissions, or {_PLACE}"),
    "EEXIST": ("is a file, or a link to nothing, where a folder is needed", _PLACE),
    "ENOTDIR": ("lies below a file, where a folder is needed", _PLACE),
    "EISDIR": ("is a folder where a file is needed", _PLACE),
    "ENOENT": ("there is no such file or folder", "check the name, or restore it"),
    "ENAMETOOLONG": ("the name is too long for this disk", "choose a shorter one"),
    "ELOOP": ("is a link that leads back to itself", _PLACE),
    "EBUSY": ("is in use, or is where a disk is mounted", "close what uses it, or choose a folder inside it"),
    "EMFILE": ("too many files are open", f"raise the limit (ulimit -n 4096): {GO_ON}"),
    "ENFILE": ("too many files are open on this machine", f"close other programs: {GO_ON}"),
    "EIO": ("the disk cannot be read or written here", f"check the disk and its connection: {GO_ON}"),
    "ESTALE": ("the network disk has lost this", f"mount it again: {GO_ON}"),
}
"""What the errors of the operating system mean for somebody who called a verb, and what to do."""


def explain_os_error(error: OSError, *, place: str | Path = "") -> InputError | None:
    """An error of the operating system as one of ours; `place` is named where the error names no file. None if it says nothing known.

    >>> print(explain_os_error(OSError(errno.ENOSPC, "No space left on device"), place="runs/a"))
    runs/a: no space left; make room: what was finished is kept, and the same command goes on
    """
    name = errno.errorcode.get(error.errno or 0, "")
    if not name and "requested and" in str(error) and "written" in str(error):  # how NumPy says that a disk is full
        name = "ENOSPC"
    if not name:
        return None
    problem, remedy = _OF_THE_SYSTEM.get(name, (str(error.strerror), "check the file and the disk"))
    return InputError(problem, file=error.filename2 or error.filename or place or None, remedy=remedy)


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
