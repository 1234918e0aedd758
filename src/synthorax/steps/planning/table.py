"""plan.csv: the rows of a plan as a table with the column names of a dataset folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthorax.data.attributes import MAX_AGE_YEARS, parse_sex
from synthorax.data.lesions import lesions_of
from synthorax.data.tables import read_table, table_bytes
from synthorax.data.vocabulary import canonical, parse_findings
from synthorax.errors import InputError, nearest
from synthorax.folders import write_once
from synthorax.protocols import VIEWS
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Lesion, Study

MASK = "_mask"
LESION_COLUMNS = tuple(f"lesion_{name}" for name in ("label", "side", "size", "severity", "x", "y", "box", "mask"))
METHODS = ("generate", "insert")
COLUMNS = ("seed", "findings", "view", "sex", "age_years", "site", "text", *LESION_COLUMNS, "method", "pair_of")
"""All columns but those of organ masks, `<organ>_mask`, which follow them."""


def columns_of(rows: Sequence[PlanRow]) -> tuple[str, ...]:
    """The columns that any of the rows uses, and `seed`."""
    used = {name for row in rows for name, cell in row.cells().items() if cell}
    organs = dict.fromkeys(f"{organ}{MASK}" for row in rows for organ in row.masks)
    return (*(name for name in COLUMNS if name in used or name == "seed"), *organs)


def write_rows(path: Path, rows: Sequence[PlanRow]) -> None:
    """Write plan.csv, whole or not at all; an InputError where another file is in its place.

    Masks below its folder are written relative to it, so that both can be moved together.
    """
    folder = path.parent.resolve()

    def from_plan(name: str) -> str:
        mask = Path(name).resolve()
        return mask.relative_to(folder).as_posix() if mask.is_relative_to(folder) else str(mask)

    write_once(path, table_bytes(columns_of(rows), [row.with_paths(from_plan).cells() for row in rows]))


def read_rows(path: Path, *, allow: Sequence[str] = ()) -> tuple[PlanRow, ...]:
    """Read plan.csv; every bad cell is an InputError with its row. Relative paths of masks start at the plan's folder."""
    table = read_table(path)
    if "seed" not in table.columns:
        raise InputError("has no column 'seed'", file=path, row=1, remedy=f"columns are {', '.join(COLUMNS)}")
    return tuple(_row(row.cells, allow=allow, path=path, number=row.number) for row in table.rows)


def _row(cells: Mapping[str, str], *, allow: Sequence[str], path: Path, number: int) -> PlanRow:
    view = cells.get("view", "").upper()
    if view not in ("", *VIEWS):
        raise InputError(f"unknown view '{view}'", file=path, row=number, remedy=nearest(view, VIEWS))
    try:
        seed, age = int(cells["seed"]), float(cells.get("age_years") or "nan")
    except ValueError as error:
        raise InputError(f"not a number ({error})", file=path, row=number) from error
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is outside 0 to 2^63 - 1", file=path, row=number)
    if not (math.isnan(age) or 0 <= age <= MAX_AGE_YEARS):
        raise InputError(f"age {age:g} is outside 0 to {MAX_AGE_YEARS} years", file=path, row=number)
    organs = {name.removesuffix(MASK): cell for name, cell in cells.items() if name.endswith(MASK) and name != f"lesion{MASK}" and cell}
    for organ, cell in organs.items():
        if "|" in cell:
            raise InputError(f"{organ}{MASK} lists several masks", file=path, row=number, remedy="join them in one image")
    method = cells.get("method", "")
    if method not in ("", *METHODS):
        raise InputError(f"unknown method '{method}'", file=path, row=number, remedy=nearest(method, METHODS))
    row = PlanRow(seed=seed, labels=parse_findings(cells.get("findings", ""), allow=allow, file=path, row=number), view=view,
                  sex=parse_sex(cells.get("sex", ""), file=path, row=number), age_years=age, site=cells.get("site", ""),
                  text=cells.get("text", ""), lesions=_lesions(cells, allow=allow, path=path, number=number), masks=organs,
                  method=method, pair_of=cells.get("pair_of", ""), number=number)
    return row.with_paths(lambda name: str((path.parent / name).resolve()))


def _lesions(cells: Mapping[str, str], *, allow: Sequence[str], path: Path, number: int) -> tuple[Lesion, ...]:
    masks = {f"lesion{MASK}": tuple(cells.get(f"lesion{MASK}", "").split("|"))}
    image = Study(file_name="", lesion_label=cells.get("lesion_label", ""), masks=masks,
                 extra={name: cells.get(name, "") for name in LESION_COLUMNS[1:-1]})
    lesions = lesions_of(image, file=path, row=number)
    if not all(lesion.finding for lesion in lesions):
        raise InputError("asks for a lesion without a name", file=path, row=number, remedy="fill lesion_label")
    return tuple(replace(lesion, finding=canonical(lesion.finding, allow=allow, file=path, row=number)) for lesion in lesions)
