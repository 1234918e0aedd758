"""CSV tables as people really save them: any usual delimiter, byte-order mark or none, safe in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthorax.errors import InputError

MAX_CELL_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table."""

    number: int
    """as a spreadsheet counts: the header is row 1"""
    cells: Mapping[str, str]
    """column -> stripped text, empty where the cell is empty"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table that has a header and at least one row."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: str | Path, *, former_columns: Mapping[str, str] | None = None) -> Table:
    """Read a CSV table: UTF-8 or UTF-16, comma, semicolon or tab, any line ends, header in its first line.

    A line such as `sep=;` before the header, which Excel understands, says the delimiter.

    Cells that `table_bytes` protected from being run as formulas come back as they were. Columns without a name and
    without content are dropped. Raises `InputError` naming file and row for anything that would have to be guessed:
    another encoding, an open quotation mark, a row longer than the header, two columns of one name, no rows. `former_columns` are names
    that columns had in earlier versions, and those that they have now.
    """
    path = Path(path)
    text = _decode(path)
    separator = re.match(r'"?sep=([^\r\n"])"?[,;\t]*(\r\n|\r|\n)', text, flags=re.IGNORECASE)
    text = text[separator.end():] if separator else text  # spreadsheets do not show this line, so it does not count as a row
    records = _records(path, text, separator[1] if separator else _delimiter(text))
    if not records:
        raise InputError("the table is empty", file=path, remedy="a header line and one row for each image are needed")
    header = [(former_columns or {}).get(cell.strip(), cell.strip()) for cell in records[0][1]]
    body = [(number, record) for number, record in records[1:] if any(cell.strip() for cell in record)]
    if not body:
        raise InputError("the table has a header but no rows", file=path)
    _check_lengths(path, len(header), body, whole=text.endswith(("\n", "\r")))
    named = [index for index, name in enumerate(header) if name]
    for index, name in enumerate(header):
        if not name and any(index < len(record) and record[index].strip() for _, record in body):
            raise InputError(f"column {index + 1} has content but no name", file=path, row=1, remedy="name it")
        if name and name in header[:index]:
            raise InputError(f"two columns are named '{name}'", file=path, row=1, remedy="rename or delete one")
    rows = tuple(
        Row(number=number, cells={header[i]: _unprotect(record[i].strip()) if i < len(record) else "" for i in named})
        for number, record in body
    )
    return Table(path=path, columns=tuple(header[i] for i in named), rows=rows)


def table_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """A table as UTF-8 CSV with commas; a cell that a spreadsheet would run as a formula gets a leading apostrophe.

    Plain numbers, such as -2.5, are left alone. `read_table` undoes it, so that any text survives the round trip.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_protect(row.get(column, "")) for column in columns] for row in rows)
    return buffer.getvalue().encode("utf-8")


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such table", file=path) from None
    except OSError as error:
        raise InputError(f"the table cannot be read ({error.strerror})", file=path) from None
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError("the text is not UTF-8", file=path, row=line,
                         remedy="save the table as 'CSV UTF-8'; reading another encoding would be a guess") from None
    if "\0" in text:
        raise InputError("this is not a text file", file=path, remedy="save the table as CSV")
    return text


def _delimiter(text: str) -> str:
    header = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return max((",", ";", "\t"), key=header.count)


def _records(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    records: list[tuple[int, list[str]]] = []
    number = 0
    previous_limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for number, record in enumerate(reader, start=1):
            if record:
                records.append((number, record))
    except csv.Error as error:
        raise InputError(f"the row cannot be read ({error})", file=path, row=number + 1,
                         remedy="look for a quotation mark that is not closed") from None
    finally:
        csv.field_size_limit(previous_limit)
    return records


def _check_lengths(path: Path, width: int, body: Sequence[tuple[int, Sequence[str]]], *, whole: bool) -> None:
    for number, record in body:
        if any(cell.strip() for cell in record[width:]):
            raise InputError(f"{len(record)} cells under {width} columns", file=path, row=number,
                             remedy="put quotation marks around cells that contain the delimiter")
    number, last = body[-1]
    if len(last) < width and not whole:  # spreadsheets drop empty cells at the end of a row, but they end the row
        raise InputError(f"the last row has {len(last)} of {width} cells and no line end", file=path, row=number,
                         remedy="the file was cut off: copy it again")


_FORMULA = re.compile(r"'*[=+\-@]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _protect(cell: str) -> str:
    cell = cell.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _unprotect(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
