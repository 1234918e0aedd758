"""Lesions in the table: one image's columns `lesion_label`, `lesion_mask`, `lesion_side` and so on as records, and back.

Every column is a list with `|`; its items belong together by their position. An empty item, and a column that is not there, state nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError
from synthorax.types import Lesion, Study

PROPERTIES = ("left", "size", "severity", "x", "y")
"""Last axis of `lesion_matrix`; the same as `protocols.LESION_PROPERTIES`, which needs torch to be imported."""
SIDES = ("left", "right")
NUMBERS = ("size", "severity", "x", "y")
MASK_COLUMNS = ("lesion_mask", "lesion_masks")
EXTRA_COLUMNS = tuple(f"lesion_{name}" for name in ("side", *NUMBERS, "box"))
"""columns of lesions that `Study.extra` holds"""
UNSIDED = frozenset({"Cardiomegaly"})
"""findings of an organ in the middle, which have no side"""
BOTH_SIDES = 0.25
"""a lesion that has more than this part of its area on each side of the midline has no side"""


def lesions_of(study: Study, *, file: str | Path | None = None, row: int | None = None) -> tuple[Lesion, ...]:
    """The lesions that a row lists, in its order; a finding may be listed several times.

    Names that the vocabulary knows get their one spelling, others are kept. A lone mask without `lesion_label` is a lesion
    without a name. Raises `InputError` naming `file`, `row`, the column and the remedy for lists of different lengths, and for numbers,
    sides and boxes that cannot be.

    >>> lesions_of(Study(file_name="a.png", lesion_label="Nodule|Mass", extra={"lesion_side": "left|", "lesion_size": "|0.5"}))[0].side
    'left'
    """
    columns = {"label": study.lesion_label.split("|"), "mask": list(_mask_paths(study))}
    columns |= {name: study.extra.get(f"lesion_{name}", "").split("|") for name in ("side", *NUMBERS, "box")}
    count = len(columns["label"])
    for name, items in columns.items():
        if len(items) != count and items != [""]:
            labels = f"{count} name{'s' if count > 1 else ''}" if study.lesion_label else "no names"
            raise InputError(f"lesion_{name} has {len(items)} items and lesion_label {labels}", file=file, row=row,
                             remedy="write one item for each lesion, separated by |; an item may be empty")
    if not any(item.strip() for items in columns.values() for item in items):
        return ()
    lesions = []
    for number in range(count):
        item = _Item({name: items[number].strip() if len(items) == count else "" for name, items in columns.items()}, file=file, row=row)
        stated = {name: item.number(name) for name in NUMBERS}
        lesions.append(Lesion(finding=_name(item.cells["label"]), side=item.side(), box=item.box(), mask=item.cells["mask"], **stated))
    return tuple(lesions)


def _mask_paths(study: Study) -> tuple[str, ...]:
    return next((study.masks[column] for column in MASK_COLUMNS if column in study.masks), ("",))


class _Item:
    """One lesion's cells, read with errors that say where they stand."""

    def __init__(self, cells: dict[str, str], *, file: str | Path | None, row: int | None) -> None:
        self.cells, self.file, self.row = cells, file, row

    def refuse(self, column: str, remedy: str) -> InputError:
        return InputError(f"lesion_{column} '{self.cells[column]}' cannot be", file=self.file, row=self.row, remedy=remedy)

    def side(self) -> str:
        side = self.cells["side"].lower()
        if side not in ("", *SIDES):
            raise self.refuse("side", "write left or right, the patient's, or nothing")
        return side

    def number(self, column: str) -> float:
        if not self.cells[column]:
            return math.nan
        number = _float(self.cells[column])
        if not 0 <= number <= 1:
            raise self.refuse(column, "write a number from 0 to 1, or nothing")
        return number

    def box(self) -> tuple[float, float, float, float] | None:
        if not self.cells["box"]:
            return None
        numbers = [_float(part) for part in self.cells["box"].split(",")]
        remedy = "write left,top,width,height in parts of the image, such as 0.1,0.2,0.3,0.3, or nothing"
        if len(numbers) != 4 or not all(0 <= number <= 1 for number in numbers):
            raise self.refuse("box", remedy)
        left, top, width, height = numbers
        if min(width, height) <= 0 or max(left + width, top + height) > 1 + 1e-5:  # the table keeps six digits
            raise self.refuse("box", remedy)
        return left, top, width, height


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


@functools.cache
def _name(cell: str) -> str:
    try:
        return canonical(cell)
    except InputError:
        return cell  # labels of lesions need not be findings: `Ground_Glass_Opacities`


def lesion_cells(lesions: Sequence[Lesion]) -> dict[str, str]:
    """The cells that `lesions_of` reads back, six digits a number; columns that state nothing are left out.

    >>> lesion_cells([Lesion(finding="Nodule", side="left", size=0.25), Lesion(finding="Mass")])
    {'lesion_label': 'Nodule|Mass', 'lesion_side': 'left|', 'lesion_size': '0.25|'}
    """
    cells = {"lesion_label": "|".join(lesion.finding for lesion in lesions), "lesion_mask": "|".join(lesion.mask for lesion in lesions),
             "lesion_side": "|".join(lesion.side for lesion in lesions)}
    for name in NUMBERS:
        cells[f"lesion_{name}"] = "|".join(_cell(getattr(lesion, name)) for lesion in lesions)
    cells["lesion_box"] = "|".join(",".join(map(_cell, lesion.box or ())) for lesion in lesions)
    # Several lesions without a name still need the list of names, which says how many there are.
    return {column: cell for column, cell in cells.items() if cell.strip("|") or (column == "lesion_label" and cell)}


def _cell(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"


def with_lesions(study: Study, lesions: Sequence[Lesion]) -> Study:
    """The row with these lesions in place of those that it lists; its other masks and columns stay."""
    cells = lesion_cells(lesions)
    label, paths = cells.pop("lesion_label", ""), cells.pop("lesion_mask", "")
    masks = {column: names for column, names in study.masks.items() if column not in MASK_COLUMNS}
    masks |= {"lesion_mask": tuple(paths.split("|"))} if paths else {}
    extra = {column: cell for column, cell in study.extra.items() if column not in EXTRA_COLUMNS}
    return replace(study, lesion_label=label, masks=masks, extra=extra | cells)


def measure_lesion(lesion: Lesion, mask: NDArray[np.uint8] | None = None) -> Lesion:
    """The lesion with what it does not state filled from its mask [S, S], as `Masks.pixels` holds them, or else from its box.

    Size and box are those of the area, x and y its centroid. The right of the image is the patient's left; a lesion that lies on both sides
    has none. An empty mask fills nothing.
    """
    if mask is not None and mask.any():
        found = _from_mask(mask)
    elif lesion.box is not None:
        left, top, width, height = lesion.box
        found = Lesion(finding="", size=min(1.0, 2 * math.sqrt(width * height)), x=left + width / 2, y=top + height / 2, box=lesion.box,
                       side=_side(min(1.0, max(0.0, (0.5 - left) / width))))
    else:
        return lesion
    numbers = {name: getattr(found if math.isnan(getattr(lesion, name)) else lesion, name) for name in NUMBERS}
    side = "" if lesion.finding in UNSIDED else lesion.side or found.side
    return replace(lesion, side=side, box=lesion.box or found.box, **numbers)


def _from_mask(mask: NDArray[np.uint8]) -> Lesion:
    # 128 is all of a pixel in a box; on outlines values are the covered part of a pixel.
    inside = np.where(mask == 128, 1.0, mask / 255.0)
    size = len(mask)
    columns, rows = inside.sum(axis=0), inside.sum(axis=1)
    area = float(columns.sum())
    centres = (np.arange(size) + 0.5) / size
    right_half = float(columns[size // 2 + size % 2:].sum() + (columns[size // 2] / 2 if size % 2 else 0))
    across, down = np.nonzero(columns)[0], np.nonzero(rows)[0]
    box = (int(across[0]) / size, int(down[0]) / size, int(across[-1] + 1 - across[0]) / size, int(down[-1] + 1 - down[0]) / size)
    return Lesion(finding="", size=min(1.0, 2 * math.sqrt(area) / size), x=float(columns @ centres) / area, y=float(rows @ centres) / area,
                  side=_side(1 - right_half / area), box=box)


def _side(left_half: float) -> str:
    """The patient's side of a lesion that has this part of its area in the left half of the image."""
    if BOTH_SIDES < left_half < 1 - BOTH_SIDES:
        return ""
    return "right" if left_half >= 0.5 else "left"


def lesion_matrix(rows: Sequence[Sequence[Lesion]], findings: Sequence[str]) -> NDArray[np.float32]:
    """Place, size and severity of each image's findings, [N, K, P] in [0, 1] or NaN; the last axis as in `PROPERTIES`.

    Several lesions of one finding count as one of their joint area (sizes add in squares); it has a side where all have the same,
    and the largest one's severity and centre. What one of them leaves open that this needs is NaN.

    >>> lesion_matrix([[Lesion(finding="Nodule", side="left", size=0.5)]], ["Mass", "Nodule"])[0, 1].tolist()
    [1.0, 0.5, nan, nan, nan]
    """
    matrix = np.full((len(rows), len(findings), len(PROPERTIES)), np.nan, dtype=np.float32)
    for number, lesions in enumerate(rows):
        for column, finding in enumerate(findings):
            matrix[number, column] = _sum_of_lesions([lesion for lesion in lesions if lesion.finding == finding])
    return matrix


def _sum_of_lesions(lesions: Sequence[Lesion]) -> list[float]:
    if not lesions:
        return [math.nan] * len(PROPERTIES)
    sides = {lesion.side for lesion in lesions}
    side = {"left": 1.0, "right": 0.0}.get(sides.pop(), math.nan) if len(sides) == 1 else math.nan
    sizes = [lesion.size for lesion in lesions]
    unknown = any(math.isnan(size) for size in sizes)
    size = math.nan if unknown else min(1.0, math.sqrt(sum(size**2 for size in sizes)))
    if unknown and len(lesions) > 1:
        return [side, size, math.nan, math.nan, math.nan]
    largest = max(lesions, key=lambda lesion: lesion.size)
    return [side, size, largest.severity, largest.x, largest.y]
