"""A tree of DICOM files and, if there is one, a label table; no identifier of the source is kept."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from synthorax.data.adapters.assembly import (
    DOCUMENT_SUFFIXES,
    NothingLostError,
    Source,
    assemble,
    files_below,
    leaves,
    reason_of,
    results_below,
    what_from,
)
from synthorax.data.adapters.foreign_table import ALIASES, fold_column, only_table, translate_columns
from synthorax.data.attributes import parse_age_years, parse_view
from synthorax.data.dataset import Dataset, Note, parse_study
from synthorax.data.derived import COLUMN as DERIVED
from synthorax.data.derived import marked_by_file
from synthorax.data.pixels import Pixels, write_png
from synthorax.data.tables import Table, read_table
from synthorax.errors import InputError
from synthorax.progress import Progress, quiet
from synthorax.types import Study

RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "RF", "OT", ""})
"""modalities taken; OT and none are what scanned images and research exports carry"""
DICOM_SUFFIXES = frozenset({"", ".dcm", ".dic", ".dicom", ".ima"})
"""of files that should be DICOM; other files, such as the viewer on a disc from a hospital, are no loss"""
_KEYS = {
    "sop_uid": frozenset({"sop_instance_uid", "sopinstanceuid", "sop_uid"}),
    "study_id": frozenset({"study_instance_uid", "studyinstanceuid", "study_uid"}),
    "file_name": frozenset(ALIASES["file_name"]),
}
"""how a table names images, the surest first"""


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    label_table: str | Path | None = None,
    allow: Sequence[str] = (),
    patient_per_image: bool = False,
    pseudonym_key: bytes | None = None,
    progress: Progress = quiet,
) -> Dataset:
    """Make a dataset folder of the DICOM images anywhere below `source`, as 8- or 16-bit grey PNG.

    `label_table` (else `metadata.csv` or the only CSV in `source`, else no labels) names images by SOPInstanceUID,
    StudyInstanceUID or file name. Patient, view, sex and age come from the file where the table is silent.

    Identifiers become HMAC-SHA256 codes under `pseudonym_key`: by default a random key that is thrown away, so that
    codes differ from one run to the next; with a key of your own (keep it apart) they stay. File names are not kept, so
    `rejects.csv` counts files in the order of their sorted paths. A table's free text is kept as it is, its columns
    without a meaning here are not. Raises `InputError`.

    >>> ingest("pacs_export", "dataset", label_table="labels.csv")  # doctest: +SKIP
    """
    from synthorax.data.dicom_grey import UNUSABLE  # keeps pydicom out of runs that have no DICOM
    from synthorax.data.dicom_read import is_dicom, modality_of, read_dicom

    source, out = Path(source), Path(out)
    code = _Code(key=secrets.token_bytes(32) if pseudonym_key is None else pseudonym_key)
    path = Path(label_table) if label_table is not None else only_table(source)
    labels = _read_labels(path, allow) if path else _Labels()
    images, rejects = [], []
    for number, file in enumerate(files_below(source), start=1):
        if leaves(file, source):
            rejects.append(Note(row=number, file_name="", reason="is a link that leaves the folder"))
        elif is_dicom(file) and file.name.upper() != "DICOMDIR":
            study = Study(file_name=file.relative_to(source).as_posix())
            images.append(Source(path=file, row=number, name="", study=study))
        elif file.suffix.lower() not in DOCUMENT_SUFFIXES and file.name.upper() != "DICOMDIR":
            rejects.append(Note(row=number, file_name="", reason="is not a DICOM file", lost=file.suffix.lower() in DICOM_SUFFIXES))
    labels.notes.extend(results_below(source))
    used: set[str] = set()
    seen: set[tuple[str, str]] = set()

    def place(image: Source, folder: Path) -> Study:
        try:
            pixels, facts = read_dicom(image.path)
        except InputError as error:
            if modality_of(image.path) in RADIOGRAPHS:
                raise
            raise NothingLostError(reason_of(error, image)) from error
        _check_image(pixels, facts, image, seen)
        key, stated = labels.of(facts, image.study.file_name)
        if UNUSABLE in facts["grey"]:
            labels.notes.append(Note(row=image.row, file_name="", reason=f"shown by {facts['grey']}"))
        used.add(key)
        name = code.of("film", facts["sop_uid"] or image.study.file_name)
        target = folder / "images" / f"f{name}.png"
        if target.exists():  # two images under one UID: both are kept
            target = folder / "images" / f"f{name}_{image.row}.png"
        write_png(target, pixels)
        return marked_by_file(_study(stated, facts, code, target.relative_to(folder).as_posix()), image.path)

    made_from = what_from(source, out, label_table=label_table, allow=allow) | {"adapter": "dicom"}
    if pseudonym_key is not None:
        made_from["pseudonym key"] = code.of("claim", "")
    return assemble(out, images, made_from=made_from, place=place, rejects=rejects, notes=labels.notes, patient_per_image=patient_per_image,
                    afterwards=lambda: labels.unused(used), progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Code:
    """Keyed one-way codes: without the key, trying all patient numbers does not lead back."""

    key: bytes = field(repr=False)

    def of(self, kind: str, value: str) -> str:
        return hmac.new(self.key, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """A label table, looked up by the key that it has."""

    kind: str = "sop_uid"
    rows: dict[str, tuple[int, Study]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def of(self, facts: dict[str, str], path: str) -> tuple[str, Study]:
        """The key that fits this file, empty where none does, and what the table states."""
        keys = [path, Path(path).name, Path(path).stem] if self.kind == "file_name" else [facts[self.kind]]
        key = next((key for key in keys if key in self.rows), "")
        return key, self.rows[key][1] if key else Study(file_name="")

    def unused(self, used: set[str]) -> list[Note]:
        return [Note(row=number, file_name="", reason="row of the label table without an image that could be read", lost=False)
                for key, (number, _) in self.rows.items() if key not in used]


def _read_labels(path: Path, allow: Sequence[str]) -> _Labels:
    raw = read_table(path)
    kind, column = _key_column(raw)
    table = translate_columns(raw, allow=allow)
    rows: dict[str, tuple[int, Study]] = {}
    notes = []
    for row, original in zip(table.rows, raw.rows, strict=True):
        key = original.cells[column].replace("\\", "/")
        if not key:
            raise InputError(f"the cell under {column} is empty", file=path, row=row.number,
                             remedy="fill it, or delete the row")
        if key in rows:
            raise InputError(f"this image is already in row {rows[key][0]}", file=path, row=row.number,
                             remedy="one row for each image")
        study, reasons = parse_study(row.cells, allow=allow, file=path, row=row.number)
        notes += [Note(row=row.number, file_name="", reason=reason) for reason in reasons]
        rows[key] = (row.number, study)
    dropped = sorted({name for _, study in rows.values() for name in study.extra} - {column, "view_as_stated"})
    if dropped:
        notes.append(Note(row=1, file_name="", reason=f"columns not taken over: {', '.join(dropped)}"))
    return _Labels(kind=kind, rows=rows, notes=notes)


def _key_column(table: Table) -> tuple[str, str]:
    for kind, names in _KEYS.items():
        for column in table.columns:
            if fold_column(column) in names:
                return kind, column
    raise InputError("there is no column that names the image", file=table.path, row=1,
                     remedy="name one SOPInstanceUID, StudyInstanceUID or file_name")


def _check_image(pixels: Pixels, facts: dict[str, str], image: Source, seen: set[tuple[str, str]]) -> None:
    """Refuse what is no radiograph, and the second copy of an image; `seen` remembers the images so far."""
    if facts.get("modality", "") not in RADIOGRAPHS:
        raise NothingLostError(f"modality {facts['modality']} is not a radiograph", file=image.path)
    mark = (facts["sop_uid"], hashlib.sha256(pixels.tobytes()).hexdigest())
    if mark in seen:
        raise NothingLostError("is the same image as an earlier file", file=image.path)
    seen.add(mark)


def _study(stated: Study, facts: dict[str, str], code: _Code, file_name: str) -> Study:
    """What the table states, completed from the header, with codes for identifiers."""
    patient, study = stated.patient_id or facts["patient_id"], facts["study_id"]
    age_years = parse_age_years(facts["age_years"])[0] if math.isnan(stated.age_years) else stated.age_years
    kept = {"spacing_mm": facts["spacing_mm"]} if facts["spacing_mm"] else {}
    kept |= {DERIVED: "yes"} if stated.derived_from_patient else {}
    return replace(
        stated, file_name=file_name, study_id=f"s{code.of('study', study)}" if study else "",
        patient_id=f"p{code.of('patient', patient)}" if patient else "",
        view=stated.view or parse_view(facts["view"])[0], sex=stated.sex or facts["sex"], age_years=age_years,
        masks={}, lesion_label="", extra=kept,
    )
