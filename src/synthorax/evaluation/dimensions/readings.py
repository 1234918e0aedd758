"""The file of a reader study: one row a reading, checked against the images' own tables before anything is computed."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthorax.data.tables import Row, Table, read_table
from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError
from synthorax.former_names import COLUMNS as COLUMNS_BEFORE
from synthorax.types import Study

NEEDED = ("reader", "image", "said")
COLUMNS = (*NEEDED, "confidence", "acceptable", "finding", "finding_seen", "assisted", "answer", "truth")
DIAGNOSIS = ("assisted", "answer", "truth")
"""columns that make a row one of the assisted-reading part"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Impression:
    """What one reader made of one image, without knowing whether it is real."""

    row: int
    reader: str
    image: str
    synthetic: bool
    """the truth, from the table that the image stands in"""
    said_synthetic: bool
    confidence: int | None
    """1 to 5"""
    acceptable: int | None
    """1, definitely unacceptable, to 5, definitely acceptable"""
    finding: str
    """what the reader was asked about, or empty"""
    finding_seen: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What one reader found on one real image, with or without assistance."""

    row: int
    reader: str
    image: str
    finding: str
    assisted: bool
    answer: bool
    truth: bool
    """by the reference, such as a consensus or a biopsy"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """A reader study, checked."""

    path: Path
    digest: str
    """SHA-256 of the file"""
    impressions: tuple[Impression, ...]
    diagnoses: tuple[Diagnosis, ...]
    unused: tuple[str, ...] = ()
    """columns that nothing is computed from"""


def read_readings(path: str | Path, *, real: Iterable[Study], synthetic: Iterable[Study], findings: Sequence[str]) -> Readings:
    """Read a table of readings; which images are real follows from the tables alone, whatever the file says.

    `findings` are names that may be asked about beside those of the vocabulary. Raises InputError with file, row and remedy for a missing
    column, an unknown image, a value out of range, a reading given twice, or a reader who was shown real or synthetic images only.
    """
    table = read_table(path, former_columns=COLUMNS_BEFORE)
    unused = _check_columns(table)
    truth = _truth(table.path, real, synthetic)
    impressions, diagnoses = [], []
    for row in table.rows:
        reader, image = (_needed(table, row, column) for column in ("reader", "image"))
        if image not in truth:
            close = difflib.get_close_matches(image, truth, n=1)
            raise InputError(f"no image '{image}' among the real or the synthetic ones", file=table.path, row=row.number,
                             remedy=f"did you mean '{close[0]}'?" if close else
                             "write it as its table does; real images that preparation left out cannot be used")
        finding = row.cells.get("finding", "")
        finding = canonical(finding, allow=findings, file=table.path, row=row.number) if finding else ""
        if any(row.cells.get(column) for column in DIAGNOSIS):
            diagnoses.append(_diagnosis(table, row, reader=reader, image=image, finding=finding, synthetic=truth[image]))
        else:
            impressions.append(_impression(table, row, reader=reader, image=image, finding=finding, synthetic=truth[image]))
    _check_once(table.path, impressions)
    _check_both_kinds(table.path, impressions)
    _check_diagnoses(table.path, diagnoses)
    return Readings(path=table.path, digest=hashlib.sha256(table.path.read_bytes()).hexdigest(), impressions=tuple(impressions),
                    diagnoses=tuple(diagnoses), unused=unused)


def _check_columns(table: Table) -> tuple[str, ...]:
    """Columns of the user's own; a slip of the pen in a name of ours is no such column."""
    for name in NEEDED:
        if name not in table.columns:
            raise InputError(f"there is no column '{name}'", file=table.path, row=1, remedy=f"the columns are {', '.join(COLUMNS)}")
    unused = tuple(name for name in table.columns if name not in COLUMNS)
    for name in unused:
        if close := difflib.get_close_matches(name.casefold(), set(COLUMNS) - set(table.columns), n=1, cutoff=0.75):
            raise InputError(f"unknown column '{name}'", file=table.path, row=1, remedy=f"did you mean '{close[0]}'?")
    return unused


def _truth(path: Path, real: Iterable[Study], synthetic: Iterable[Study]) -> dict[str, bool]:
    """Image -> whether it is synthetic."""
    truth = {study.file_name: True for study in synthetic}
    for study in real:
        if study.file_name in truth:
            raise InputError(f"the image '{study.file_name}' is in the real table and in the synthetic one: which one was read?",
                             file=path, remedy="rename the images of one of them")
        if study.origin != "real":
            raise InputError(f"the image '{study.file_name}' of the real table is marked {study.origin}", file=path,
                             remedy="evaluate against a prepared folder of real images only")
        truth[study.file_name] = False
    return truth


def _needed(table: Table, row: Row, column: str) -> str:
    value = row.cells.get(column, "")
    if not value:
        raise InputError(f"'{column}' is empty", file=table.path, row=row.number, remedy="fill it in or delete the row")
    return value


def _impression(table: Table, row: Row, *, reader: str, image: str, finding: str, synthetic: bool) -> Impression:
    answer = _needed(table, row, "said").casefold()
    if answer not in ("real", "synthetic"):
        raise InputError(f"said '{answer}'", file=table.path, row=row.number, remedy="write real or synthetic")
    seen = _yes_or_no(table, row, "finding_seen")
    if seen is not None and not finding:
        raise InputError("'finding_seen' is filled in but not which finding", file=table.path, row=row.number,
                         remedy="name it under 'finding'")
    return Impression(row=row.number, reader=reader, image=image, synthetic=synthetic, said_synthetic=answer == "synthetic",
                      confidence=_one_to_five(table, row, "confidence"), acceptable=_one_to_five(table, row, "acceptable"),
                      finding=finding, finding_seen=seen)


def _diagnosis(table: Table, row: Row, *, reader: str, image: str, finding: str, synthetic: bool) -> Diagnosis:
    mixed = [column for column in ("said", "confidence", "acceptable", "finding_seen") if row.cells.get(column)]
    if mixed:
        raise InputError(f"'{mixed[0]}' stands beside 'assisted', 'answer' or 'truth'", file=table.path, row=row.number,
                         remedy="ask whether an image is real and what it shows in two rows")
    if synthetic:
        raise InputError(f"'{image}' is synthetic: no reference says what it shows", file=table.path, row=row.number,
                         remedy="measure assisted reading on real images")
    values = {column: _yes_or_no(table, row, column) for column in DIAGNOSIS if _needed(table, row, column)}
    return Diagnosis(row=row.number, reader=reader, image=image, finding=finding,
                     **{column: bool(value) for column, value in values.items()})


def _yes_or_no(table: Table, row: Row, column: str) -> bool | None:
    value = row.cells.get(column, "")
    if value not in ("", "0", "1"):
        raise InputError(f"'{column}' is '{value}'", file=table.path, row=row.number, remedy="write 1 for yes or 0 for no")
    return None if value == "" else value == "1"


def _one_to_five(table: Table, row: Row, column: str) -> int | None:
    value = row.cells.get(column, "")
    if value and not re.fullmatch(r"[1-5]", value):
        raise InputError(f"'{column}' is '{value}'", file=table.path, row=row.number, remedy="write a whole number from 1 to 5, or nothing")
    return int(value) if value else None


def _check_once(path: Path, impressions: Sequence[Impression]) -> None:
    """No reader is shown an image twice: the second look is not blind to the first."""
    first: dict[tuple[str, str], Impression] = {}
    for reading in impressions:
        before = first.setdefault((reading.reader, reading.image), reading)
        if before is not reading:
            twice = "says the same as" if before.said_synthetic == reading.said_synthetic else "contradicts"
            raise InputError(f"reader '{reading.reader}' read '{reading.image}' before; this row {twice} row {before.row}", file=path,
                             row=reading.row, remedy="keep the first reading only: a reader judges an image once")


def _check_both_kinds(path: Path, impressions: Sequence[Impression]) -> None:
    """A reader who sees one kind only can be right without looking."""
    for reader in dict.fromkeys(reading.reader for reading in impressions):
        own = [reading for reading in impressions if reading.reader == reader]
        if len({reading.synthetic for reading in own}) == 1:
            kind = "synthetic" if own[0].synthetic else "real"
            raise InputError(f"reader '{reader}' was shown {kind} images only, so the reading was not blind", file=path, row=own[0].row,
                             remedy="show every reader real and synthetic images mixed, or delete this reader's rows")


def _check_diagnoses(path: Path, diagnoses: Sequence[Diagnosis]) -> None:
    """One reference for each image and finding, one answer for each reader and way of reading."""
    truth: dict[tuple[str, str], Diagnosis] = {}
    given: dict[tuple[str, str, str, bool], Diagnosis] = {}
    for reading in diagnoses:
        before = truth.setdefault((reading.image, reading.finding), reading)
        if before.truth != reading.truth:
            raise InputError(f"the truth of '{reading.image}' contradicts row {before.row}", file=path, row=reading.row,
                             remedy="an image has one reference for each finding")
        before = given.setdefault((reading.reader, reading.image, reading.finding, reading.assisted), reading)
        if before is not reading:
            raise InputError(f"reader '{reading.reader}' gave this answer before, in row {before.row}", file=path, row=reading.row,
                             remedy="keep the first answer with and the first without assistance")
