"""Label tables of other people, turned into the columns of `metadata.csv`: other names, or a column for each finding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from synthorax.data.dataset import TABLE_NAME
from synthorax.data.tables import Row, Table
from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError

ALIASES = {
    "file_name": ("file_name", "filename", "file", "image_index", "image_path", "image_file", "image_name", "image_id",
                  "image", "path"),
    "study_id": ("study_id", "study", "study_uid", "study_instance_uid", "studyinstanceuid"),
    "patient_id": ("patient_id", "patientid", "patient", "subject_id", "subject"),
    "site": ("site", "hospital", "institution"),
    "view": ("view", "view_position", "viewposition", "projection", "ap/pa"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "age_years": ("age_years", "age", "patient_age"),
    "findings": ("findings", "finding", "finding_labels", "finding_label", "labels", "label", "diagnosis", "class"),
    "text": ("text", "report", "impression"),
    "split": ("split", "subset"),
}
"""column of `metadata.csv` -> what other tables call it, the surest first"""

_STATED = {"1": "{}", "1.0": "{}", "0": "!{}", "0.0": "!{}", "-1": "{}?", "-1.0": "{}?", "": ""}
"""a column for each finding, as in CheXpert (Irvin et al. 2019), where -1 is uncertain"""


def translate_columns(table: Table, *, allow: Iterable[str] = ()) -> Table:
    """The table with the column names of `metadata.csv`; columns that mean nothing here keep their names.

    Where there is no column of findings, columns named after findings and filled with 1, 0, -1 (uncertain) or nothing
    become one. Raises `InputError` where labels stand in both ways, because they could disagree, or in neither.
    """
    ours = _our_columns(table)
    single = {column: name for column in table.columns if (name := _finding_of(table, column, tuple(allow)))}
    if single and "findings" in ours.values():
        column = next(theirs for theirs, name in ours.items() if name == "findings")
        raise InputError(f"labels stand in the column '{column}' and in columns such as '{next(iter(single))}'",
                         file=table.path, row=1, remedy="delete one or the other")
    if not single and "findings" not in ours.values():
        raise InputError("there is no column of findings", file=table.path, row=1,
                         remedy=f"name one 'findings', empty if nothing is known, among {', '.join(table.columns)}")
    rows = tuple(Row(number=row.number, cells=_cells(row, ours, single)) for row in table.rows)
    return replace(table, columns=tuple(rows[0].cells), rows=rows)


def only_table(source: Path) -> Path | None:
    """`metadata.csv`, or the only other CSV directly in `source`; `InputError` where there are several."""
    if (source / TABLE_NAME).exists():
        return source / TABLE_NAME
    tables = sorted(path for path in source.glob("*.csv") if path.name not in ("rejects.csv", "notes.csv"))
    if len(tables) > 1:
        raise InputError(f"there are several tables: {', '.join(path.name for path in tables)}", file=source,
                         remedy="say which one holds the labels (label_table)")
    return tables[0] if tables else None


def fold_column(column: str) -> str:
    """A column name without case, with underscores for spaces and hyphens.

    >>> fold_column("View Position")
    'view_position'
    """
    return re.sub(r"[\s_-]+", "_", column.strip()).casefold()


def _our_columns(table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, aliases in ALIASES.items():
        by_alias = {fold_column(column): column for column in reversed(table.columns)}
        theirs = name if name in table.columns else next((by_alias[a] for a in aliases if a in by_alias), None)
        if theirs is not None:
            found[theirs] = name
    return found


def _finding_of(table: Table, column: str, allow: tuple[str, ...]) -> str:
    """The finding that a column of 1, 0, -1 and nothing is named after, or an empty string."""
    if any(row.cells[column] not in _STATED for row in table.rows):
        return ""
    try:
        return canonical(column, allow=allow)
    except InputError:
        return ""


def _cells(row: Row, ours: Mapping[str, str], single: Mapping[str, str]) -> dict[str, str]:
    cells = {ours.get(column, column): cell for column, cell in row.cells.items() if column not in single}
    if single:
        stated = (_STATED[row.cells[column]].format(name) for column, name in single.items())
        cells["findings"] = "|".join(part for part in stated if part)
    return cells
