"""Progress: the callback that every long piece of work reports through, and the line on stderr that shows it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Progress = Callable[[float, str], None]
"""Takes the fraction of the work that is done, in [0, 1] and never falling, and a short text."""
Listener = Callable[[str, float, str], None]
"""Takes the title of the work, and what a `Progress` takes."""

PLAIN_INTERVAL_SECONDS = 10.0
_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextlib.contextmanager
def progress_line(title: str) -> Iterator[Progress]:
    """Show how far a piece of work is and how long it will still take, if it takes more than two seconds.

    On a terminal the line is redrawn (by Rich, which respects NO_COLOR); elsewhere plain lines appear, about one each 10 s.
    """
    listeners = _LISTENERS.get()
    with (_live if sys.stderr.isatty() else _plain)(title) as show:
        def progress(fraction: float, text: str) -> None:
            show(fraction, text)
            for listener in listeners:
                listener(title, fraction, text)

        yield progress


@contextlib.contextmanager
def follow_progress(listener: Listener) -> Iterator[None]:
    """Also tell `listener` how far every piece of work is that shows a line meanwhile: for notebooks and user interfaces.

    >>> with follow_progress(lambda title, fraction, text: print(title, fraction, text)), progress_line("train") as progress:
    ...     progress(0.5, "step 10")
    train 0.5 step 10
    """
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def quiet(fraction: float, text: str) -> None:
    """A `Progress` that shows nothing."""


def portion(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work: its fractions 0 to 1 are `start` to `end` of the whole.

    >>> portion(lambda fraction, text: print(fraction, text), 0.5, 1.0)(0.5, "judge")
    0.75 judge
    """
    return lambda fraction, text: progress(start + (end - start) * fraction if fraction < 1 else end, text)


def format_seconds(seconds: float) -> str:
    """Seconds as a person says them.

    >>> format_seconds(3700), format_seconds(75), format_seconds(9)
    ('1 h 01 min', '1 min 15 s', '9 s')
    """
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@contextlib.contextmanager
def _live(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(title, total=1.0, text="")
        yield lambda fraction, text: bar.update(task, completed=fraction, text=text)
        bar.update(task, completed=1.0)


@contextlib.contextmanager
def _plain(title: str) -> Iterator[Progress]:
    start = last = time.monotonic()
    first: tuple[float, float] | None = None  # time and fraction of the first report: all of that fraction may be from before a kill

    def show(fraction: float, text: str) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (now, fraction)
        if now - start < 2 or now - last < PLAIN_INTERVAL_SECONDS:
            return
        last = now
        since, before = now - first[0], first[1]
        left = f", {format_seconds(since * (1 - fraction) / (fraction - before))} left" if fraction > before else ""
        print(f"{title}: {fraction:.0%}{left}  {text}".rstrip(), file=sys.stderr, flush=True)

    yield show
    taken = time.monotonic() - start
    if taken > 2:
        print(f"{title}: done in {format_seconds(taken)}", file=sys.stderr, flush=True)
