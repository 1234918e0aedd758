"""How a call begins and ends: whose options are read, and what is said of errors. Importing this file imports no verb."""

from __future__ import annotations

import contextlib
import copy
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

import typer
from typer.models import CommandInfo

STOPPED, TERMINATED = 130, 143
"""exit codes after Ctrl-C and after SIGTERM, as shells have them"""
UNFORESEEN = "this is an error in Synthorax itself: please report it, with the lines above, the command and what `synthorax doctor` prints"


def with_options_of(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """The same command line, where only the command named among `words` has its options; of the others the help is all that is needed.

    Reading the options of every command would take a third of the time of `synthorax --help`.
    """
    quick = copy.copy(app)
    quick.registered_commands = [info if _name(info) in words else _without_options(info) for info in app.registered_commands]
    return quick


@contextlib.contextmanager
def told_on_stderr(command: Sequence[str]) -> Iterator[None]:
    """Errors become one line on stderr and an exit code; what nobody foresaw keeps its traceback and says how to report it."""
    from synthorax.errors import OutOfMemoryError, SynthoraxError, explain_os_error

    try:
        with _sigterm_as_ctrl_c() as terminated:
            yield
    except SynthoraxError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _stopped(terminated())
    except SystemExit as stop:
        if stop.code == STOPPED:  # what Typer makes of Ctrl-C
            _stopped(terminated())
        raise
    except MemoryError:
        _end("not enough memory; close other programs, or ask for less at a time", OutOfMemoryError.exit_code)
    except Exception as error:
        known = explain_os_error(error, place=_out(command)) if isinstance(error, OSError) else None
        if known is not None:
            _end(str(known), known.exit_code)
        traceback.print_exc()
        _end(UNFORESEEN, 1)


def print_version(wanted: bool) -> None:
    """Print the version and stop, where it is wanted."""
    if wanted:
        from synthorax import __version__

        print(f"synthorax {__version__}")
        raise typer.Exit


def command_line() -> str:
    """The command line of this call, as a report records it."""
    return shlex.join(["synthorax", *sys.argv[1:]])


def _name(info: CommandInfo) -> str:
    return info.name or getattr(info.callback, "__name__", "").replace("_", "-")


def _without_options(info: CommandInfo) -> CommandInfo:
    bare = copy.copy(info)
    bare.name, bare.help, bare.callback = _name(info), info.help or getattr(info.callback, "__doc__", ""), _nothing
    return bare


def _nothing() -> None:
    """Stands for a command that is listed and not called."""


def _out(command: Sequence[str]) -> str:
    """The folder that a call was to write to, for errors that name no file."""
    for number, word in enumerate(command):
        if word == "--out" and number + 1 < len(command):
            return command[number + 1]
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return ""


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM, as Slurm, Docker and a shutdown send it, end a call as Ctrl-C does; gives a question whether it came."""
    came = False

    def heed(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        interrupt = signal.getsignal(signal.SIGINT)  # a training has one of its own, which waits for a safe moment
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(number, frame)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, heed)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(terminated: bool) -> NoReturn:
    _end("stopped; call the same command again", TERMINATED if terminated else STOPPED)


def _end(message: str, code: int) -> NoReturn:
    print(f"synthorax: {message}", file=sys.stderr)
    sys.exit(code)
