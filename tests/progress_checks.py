"""What the progress of any work must keep to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from synthorax.progress import follow_progress

Result = TypeVar("Result")


def check_progress(work: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Do the work; every line of progress meanwhile has several fractions, never goes back and ends at 1. Gives their titles too."""
    lines: list[tuple[str, list[float]]] = []

    def listen(title: str, fraction: float, text: str) -> None:
        if not lines or lines[-1][0] != title or fraction < lines[-1][1][-1] == 1:  # the next line may have the same title
            lines.append((title, []))
        lines[-1][1].append(fraction)

    with follow_progress(listen):
        result = work()
    for title, fractions in lines:
        assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] == 1, f"{title}: {fractions}"
        assert len(set(fractions)) > 1, f"{title}: {fractions}"
    return result, [title for title, _ in lines]
