"""How many mm a pixel of a host is: stated, given, or estimated from its lungs; never more or less than a chest allows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.physics.grey_curve import ADULT_YEARS, estimate_spacing_mm
from synthorax.steps.insertion.hosts import Host

FIELD_MM = (150.0, 500.0)
"""longer side of what a radiograph of a chest can show, from a newborn to the largest detector; ChestX-ray14 has 303 to 428 mm"""
SITES_OF_CHILDREN = {"kermany": 3.0}
"""sites whose images are all of children and state no age -> the middle of their ages in years (Kermany et al. 2018: one to five)"""


def spacing_of(host: Host, shape: tuple[int, ...], *, given: float) -> tuple[float | None, str, str]:
    """mm a pixel, where that is from (`stated` by the row or file, or `given`) and a note; None where nobody says it.

    `shape` is that of the image. What a table or `given` says and no chest is as large or small is an InputError; a file's own tag that
    cannot be right is left out, and the note says so.
    """
    cell, note = host.study.extra.get("spacing_mm", ""), ""
    if cell:
        problem, remedy, spacing = _read(cell, shape)
        if not problem:
            return spacing, "stated", ""
        if host.row is not None or math.isnan(spacing):
            raise InputError(problem, remedy=remedy)
        note = f"not used, as it cannot be right: the file states {problem}"
    if math.isnan(given):
        return None, "", note
    if problem := _beyond(given, shape):
        raise InputError(f"--spacing {given:g} mm cannot be: {problem}", remedy=_likely(given, shape))
    return given, "given", note


def estimated(lungs: NDArray[np.bool_], host: Host) -> tuple[float | None, str]:
    """mm a pixel from the lungs [H, W] of a child, and whose lungs they are taken for; None for those of adults, whose width says it."""
    age = host.study.age_years
    if math.isnan(age) and host.study.site.lower() in SITES_OF_CHILDREN:
        age = SITES_OF_CHILDREN[host.study.site.lower()]
        return estimate_spacing_mm(lungs, age_years=age)[0], f"lungs taken for those of a child of {age:g} years, as its site is " \
                                                             f"{host.study.site}"
    if age < ADULT_YEARS:
        return estimate_spacing_mm(lungs, age_years=age)[0], f"lungs taken for those of a child of {age:.3g} years"
    return None, "no age is stated: lungs taken for an adult's" if math.isnan(age) else ""


def _read(cell: str, shape: tuple[int, ...]) -> tuple[str, str, float]:
    """What is wrong with a stated spacing and what to do, or two empty words, and the spacing in mm, NaN where it is no one number."""
    numbers = [_number(part) for part in cell.split("|")]
    if not all(number > 0 for number in numbers):
        return f"spacing_mm '{cell}' cannot be", "write mm per pixel, such as 0.168, or empty the cell", math.nan
    if max(numbers) > 1.01 * min(numbers):
        return f"its pixels are {cell} mm, not square", "resample the image to square pixels", math.nan
    spacing = float(np.mean(numbers))
    if problem := _beyond(spacing, shape):
        return f"spacing_mm {cell} cannot be: {problem}", f"{_likely(spacing, shape)}, or empty the cell to have it estimated", spacing
    return "", "", spacing


def _beyond(spacing: float, shape: tuple[int, ...]) -> str:
    """Why an image of a chest cannot have pixels of so many mm, or nothing."""
    side = spacing * max(shape)
    low, high = FIELD_MM
    if low <= side <= high:
        return ""
    return (f"the longer side of {max(shape)} pixels would be {side / 10:.3g} cm, and radiographs of a chest are {low / 10:.0f} to "
            f"{high / 10:.0f} cm")


def _likely(spacing: float, shape: tuple[int, ...]) -> str:
    """What to give instead; what is wrong by ten is named."""
    low, high = (field / max(shape) for field in FIELD_MM)
    for slip in (0.1, 10.0):
        if low <= spacing * slip <= high:
            return f"write mm per pixel of the file as it is, such as {spacing * slip:.3g}"
    return f"write mm per pixel of the file as it is, {low:.2g} to {high:.2g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
