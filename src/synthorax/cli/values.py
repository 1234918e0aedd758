"""What words on the command line mean: numbers, pairs and settings. Importing this file imports no verb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthorax.errors import UsageError

if TYPE_CHECKING:  # for types alone: importing it takes a while
    from synthorax.bounds import Form


def fractions_of(text: str) -> tuple[float, float, float]:
    """Parts of a split, `TRAIN,VAL,TEST`."""
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--split {text}: write three numbers, such as 0.7,0.1,0.2") from None
    if min(train, test) <= 0 or val < 0 or abs(train + val + test - 1) > 1e-6:
        raise UsageError(f"--split {text}: three parts above zero that add up to 1")
    return train, val, test


def named(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, or a value alone with an empty name."""
    name, equals, value = text.partition("=")
    return (name.strip(), value.strip()) if equals else ("", text.strip())


def setting_of(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` with a number or a word as value."""
    import json  # here, because few commands need it

    name, value = named(text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def numbers_of(option: str, text: str, *, count: int, form: Form) -> tuple[float, ...]:
    """As many numbers as the option takes; `form` says how they are written."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} {text}: write {form.text}, such as {form.example}")
    return numbers


def counts_of(texts: Sequence[str]) -> dict[str, int]:
    """How many of each, from `FINDING=N`."""
    counts = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) == 0:
            raise UsageError(f"--count {text}: write Finding=N, such as Pneumothorax=200")
        counts[name.strip()] = int(number)
    return counts


def count_of(option: str, text: str) -> int:
    """A whole number above 0, also written as 50k or 2M."""
    factor = {"k": 1000, "M": 1_000_000}.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdecimal() or int(digits) == 0:
        raise UsageError(f"--{option} {text}: write a whole number above 0, such as 50k")
    return int(digits) * factor


def images_of(budget: str | None) -> int | None:
    """The number of images of `--budget-images`, where it is given."""
    return None if budget is None else count_of("budget-images", budget)


def split_seeds(words: Sequence[str], seeds: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """Names, and the seeds of `--seeds 0 1 2`: of these, the parser takes the first one alone and hands the others on among the names."""
    if seeds is None:
        seeds, names = ["0", "1", "2"], list(words)
    else:
        names = [word for word in words if not word.isdecimal()]
        seeds = [*seeds, *(word for word in words if word.isdecimal())]
    if wrong := [seed for seed in seeds if not seed.isdecimal()]:
        raise UsageError(f"--seeds {wrong[0]}: write whole numbers, such as 0 1 2")
    return names, [int(seed) for seed in seeds]
