"""Progress on stderr: a live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[float, str], None]
"""Takes the part done in [0, 1] and a short text."""

PLAIN_INTERVAL_SECONDS = 10.0


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Show how far a piece of work is and how long it will still take, if it takes more than two seconds.

    On a terminal the line is redrawn (by Rich, which respects NO_COLOR); elsewhere plain lines appear, about one each 10 s.
    """
    if sys.stderr.isatty():
        yield from _live(title)
    else:
        yield from _plain(title)


def quiet(part: float, text: str) -> None:
    """A `Report` that says nothing."""


def format_seconds(seconds: float) -> str:
    """Seconds as a person says them.

    >>> format_seconds(3700), format_seconds(75), format_seconds(9)
    ('1 h 01 min', '1 min 15 s', '9 s')
    """
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _live(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(title, total=1.0, text="")
        yield lambda part, text: bar.update(task, completed=part, text=text)
        bar.update(task, completed=1.0)


def _plain(title: str) -> Iterator[Report]:
    start = last = time.monotonic()
    first: tuple[float, float] | None = None  # when work was first told of, and how much was behind it: all of it may be from before a kill

    def report(part: float, text: str) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (now, part)
        if now - start < 2 or now - last < PLAIN_INTERVAL_SECONDS:
            return
        last = now
        since, before = now - first[0], first[1]
        left = f", {format_seconds(since * (1 - part) / (part - before))} left" if part > before else ""
        print(f"{title}: {part:.0%}{left}  {text}".rstrip(), file=sys.stderr, flush=True)

    yield report
    taken = time.monotonic() - start
    if taken > 2:
        print(f"{title}: done in {format_seconds(taken)}", file=sys.stderr, flush=True)
