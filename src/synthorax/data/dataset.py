"""Dataset folders: images, `metadata.csv` and `dataset.json`, the only thing that moves between stages.

Reading refuses what would have to be guessed, naming file, row and remedy. `Dataset.notes` lists what was corrected.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from synthorax.config import read_record
from synthorax.data.attributes import parse_age_years, parse_sex, parse_split, parse_view
from synthorax.data.derived import COLUMN as DERIVED_COLUMN
from synthorax.data.derived import checked_mark, derived_rows
from synthorax.data.image_files import read_image
from synthorax.data.lesions import MASK_COLUMNS, lesions_of
from synthorax.data.masks import mask_pixels
from synthorax.data.pixels import write_png
from synthorax.data.rejects import FACT
from synthorax.data.tables import Table, read_table, table_bytes
from synthorax.data.vocabulary import format_findings, parse_findings
from synthorax.errors import InputError
from synthorax.files import json_object, sha256, write_atomic, write_json
from synthorax.progress import Progress, quiet
from synthorax.types import Study

TABLE_NAME = "metadata.csv"
FACTS_NAME = "dataset.json"
LEADING_COLUMNS = ("file_name", "study_id", "patient_id", "site", "view", "sex", "age_years", "findings", "text")
COUNTED_FACTS = ("name", "synthetic", "num_images", "num_patients", "num_derived_from_patients", "digest", "tool", FACT)
"""facts of `dataset.json` that belong to one folder and are never handed on to one that is made of it"""
TRAILING_COLUMNS = ("lesion_label", "split", "origin")
OWN_PATIENT, FORMER_OWN_PATIENT = "image:", "film:"
"""what the patient_id of an image begins with that counts as a patient of its own, now and in earlier versions"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something in a table that was not taken as it stands, and why."""

    row: int
    file_name: str
    reason: str
    lost: bool = True
    """whether an image was lost by it; False for rows without an image, second copies, and files that are no radiographs"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A dataset folder that has been read: every image and mask exists, every name is known; no pixel was decoded."""

    path: Path
    name: str
    studies: tuple[Study, ...]
    findings: tuple[str, ...]
    """canonical names that the set declares in `dataset.json`, then those that only its rows have"""
    facts: Mapping[str, Any]
    """`dataset.json`, empty where there is none"""
    notes: tuple[Note, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.studies)


def read_dataset(
    path: str | Path,
    *,
    label_table: str | Path | None = None,
    allow: Iterable[str] = (),
    patient_per_image: bool = False,
) -> Dataset:
    """Read a dataset folder; `label_table` takes the place of its `metadata.csv`.

    `allow` are finding names beyond the vocabulary and beyond `labels` of `dataset.json`. `patient_per_image` treats
    each real image without a `patient_id` as its own patient: right only where nobody was filmed twice. Raises
    `InputError`.

    >>> dataset = read_dataset("images")  # doctest: +SKIP
    >>> label_matrix(dataset.studies, dataset.findings)  # doctest: +SKIP
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    facts = read_facts(folder)
    allow = (*allow, *facts.get("labels", ()))
    table = _read_image_table(folder, label_table)
    origin = "synthetic" if facts.get("synthetic") else "real"
    notes: list[Note] = []
    studies = []
    for row in table.rows:
        study, reasons = parse_study(row.cells, allow=allow, file=table.path, row=row.number, origin=origin)
        study = _with_checked_paths(study, folder, table.path, row.number)
        lesions_of(study, file=table.path, row=row.number)
        studies.append(with_own_patient(study) if patient_per_image else study)
        notes += [Note(row=row.number, file_name=study.file_name, reason=reason) for reason in reasons]
    _check_together(table, studies)
    return Dataset(path=folder, name=str(facts.get("name") or folder.resolve().name), studies=tuple(studies),
                   findings=_findings(facts, studies, allow), facts=facts, notes=tuple(notes))


def with_own_patient(study: Study) -> Study:
    """The image as its own patient, where it is real and its patient is not known."""
    if study.patient_id or study.origin != "real":
        return study
    return replace(study, patient_id=f"{OWN_PATIENT}{study.file_name}")


def own_patient(patient_id: str) -> bool:
    """Whether a patient_id is one that `with_own_patient` of this or an earlier version made."""
    return patient_id.startswith((OWN_PATIENT, FORMER_OWN_PATIENT))


def as_formerly(study: Study) -> Study:
    """The image with the patient_id that earlier versions made for it, for digests that they noted."""
    own = study.patient_id.startswith(OWN_PATIENT)
    return replace(study, patient_id=FORMER_OWN_PATIENT + study.patient_id.removeprefix(OWN_PATIENT)) if own else study


def write_table(path: str | Path, studies: Sequence[Study]) -> None:
    """Write `metadata.csv` of the dataset folder `path`, atomically.

    The columns of `Study` come first, masks before `lesion_label`, then every column of `Study.extra`. A file name that
    a spreadsheet would run as a formula is an `InputError`, because it cannot be protected without being changed.
    """
    for number, study in enumerate(studies, start=2):
        if study.file_name.startswith(("=", "+", "-", "@")):
            raise InputError(f"'{study.file_name}' would be a formula in a spreadsheet", file=Path(path) / TABLE_NAME,
                             row=number, remedy="rename the file")
    write_atomic(Path(path) / TABLE_NAME, _table_of(studies))


def write_facts(
    path: str | Path, *, name: str, studies: Sequence[Study], synthetic: bool, extra: Mapping[str, Any] | None = None
) -> None:
    """Write `dataset.json` of the dataset folder `path`, atomically: counts, label names, digest, version and `extra`.

    The images must be there, because the digest covers them. `extra` may hold `licence`, and `labels` to declare names
    that no row has.
    """
    extra = dict(extra or {})
    stated = {name for study in studies for name in study.labels}
    derived = len(derived_rows(studies))
    facts = {
        "name": name,
        "synthetic": synthetic,
        "num_images": len(studies),
        "num_patients": len({study.patient_id for study in studies if study.patient_id}),
        **({"num_derived_from_patients": derived} if derived else {}),
        "labels": sorted(stated | set(extra.pop("labels", ()))),
        "digest": _digest(Path(path), studies),
        "tool": f"synthorax {version('synthorax')}",
    } | extra
    write_json(Path(path) / FACTS_NAME, facts)


def write_dataset(out: str | Path, studies: Sequence[Study], *, name: str, synthetic: bool, source: Path | None = None,
                  facts: Mapping[str, Any] | None = None, progress: Progress = quiet) -> tuple[Study, ...]:
    """Write a dataset folder: the files of `studies`, dataset.json and, last of all, metadata.csv; returns the rows as they stand there.

    The images and masks are copied from the dataset folder `source`, see `copy_files`; without it they lie in `out` already. `facts` are
    what dataset.json says beside the counts, see `write_facts`. Raises the errors of `copy_files` and `write_table`.
    """
    written = tuple(studies)
    if source is not None:
        copied: list[Study] = []
        for study in studies:
            copied.append(copy_files(study, source=source, out=Path(out)))
            progress(len(copied) / len(studies), f"{len(copied)} of {len(studies)} images written")
        written = tuple(copied)
    write_facts(out, name=name, studies=written, synthetic=synthetic, extra=facts)
    write_table(out, written)
    return written


def files_of(study: Study) -> tuple[str, ...]:
    """The image and the masks of one image, paths inside its dataset folder."""
    return study.file_name, *(mask for masks in study.masks.values() for mask in masks if mask)


def copy_files(study: Study, *, source: Path, out: Path) -> Study:
    """Take the image and the masks of one row from one dataset folder into another; returns the row with their names there.

    Synthetic images are copied as they are, with what they say of themselves. Of real ones only pixels are taken over, as PNG,
    because text in a file may name a patient.
    """
    if study.origin == "synthetic":
        for name in files_of(study):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)
        return study
    name = _png_name(study.file_name)
    write_png(out / name, read_image(source / study.file_name))
    masks = {column: tuple(path and _png_name(path) for path in paths) for column, paths in study.masks.items()}
    for column, paths in study.masks.items():
        for path, target in zip(paths, masks[column], strict=True):
            if path:
                write_png(out / target, mask_pixels(source / path))
    return replace(study, file_name=name, masks=masks)


def _png_name(name: str) -> str:
    return name if name.lower().endswith(".png") else f"{name}.png"


def digest_of(dataset: Dataset) -> str:
    """SHA-256 over the table as it would be written, and over every image and mask file."""
    return _digest(dataset.path, dataset.studies)


def _digest(folder: Path, studies: Sequence[Study]) -> str:
    digest = hashlib.sha256(_table_of(studies))
    for study in studies:
        for name in files_of(study):
            digest.update(bytes.fromhex(sha256(folder / name)))
    return digest.hexdigest()


def _table_of(studies: Sequence[Study]) -> bytes:
    masks = dict.fromkeys(column for study in studies for column in study.masks)
    extra = dict.fromkeys(column for study in studies for column in study.extra)
    rows = []
    for study in studies:
        age = "" if math.isnan(study.age_years) else f"{study.age_years:.10g}"
        columns = ("file_name", "study_id", "patient_id", "site", "view", "sex", "text", *TRAILING_COLUMNS)
        plain = {column: getattr(study, column) for column in columns}
        paths = {column: "|".join(names) for column, names in study.masks.items()}
        rows.append({**study.extra, **paths, **plain, "age_years": age, "findings": format_findings(study.labels)})
    return table_bytes(tuple(dict.fromkeys((*LEADING_COLUMNS, *masks, *TRAILING_COLUMNS, *extra))), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Screening:
    not_checked: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judge:
    name: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """Types of what `dataset.json` says, where it says it."""

    name: str | None = None
    labels: tuple[str, ...] = ()
    sources: tuple[Mapping[str, Any], ...] = ()
    licence: str | None = None
    attribution: str | None = None
    digest: str | None = None
    model_digest: str = ""
    judges: tuple[_Judge, ...] = ()
    screening: _Screening = field(default_factory=_Screening)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    not_trained_on: tuple[str, ...] = ()


def read_facts(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a dataset folder; empty where there is none. Raises `InputError` where it is damaged."""
    path = folder / FACTS_NAME
    if not path.exists():
        return {}
    remedy = "correct the file, or delete it if the set is real"
    facts = json_object(path.read_bytes().removeprefix(BOM_UTF8), where=path, remedy=remedy)
    if not isinstance(synthetic := facts.get("synthetic", False), bool):
        raise InputError(f"synthetic is {synthetic!r:.60}", file=path, remedy="write true or false, without quotation marks")
    read_record(_Facts, facts, what="it", where=path, remedy=remedy)
    return facts


def _read_image_table(folder: Path, label_table: str | Path | None) -> Table:
    path = Path(label_table) if label_table is not None else folder / TABLE_NAME
    if not path.exists():
        raise InputError("no such table", file=path,
                         remedy="a dataset folder has a metadata.csv; `synthorax ingest` makes one")
    table = read_table(path)
    if "file_name" not in table.columns:
        raise InputError("there is no column file_name", file=path, row=1,
                         remedy=f"its columns are {', '.join(table.columns)}; `synthorax ingest` reads foreign tables")
    return table


def file_inside(name: str, folder: Path, *, what: str, file: Path, row: int) -> str:
    """A table's path as it is inside `folder`; `InputError` where it leaves the folder, or is missing."""
    name = relative_path(name, file=file, row=row)
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' is a link that leaves the folder", file=file, row=row, remedy="copy the file")
    if not path.is_file():
        raise InputError(f"{what} '{name}' is missing", file=file, row=row,
                         remedy=f"copy it to {folder}, or delete the row")
    return name


def relative_path(name: str, *, file: Path, row: int) -> str:
    """A table's path with forward slashes; `InputError` where it is empty, absolute, or climbs out with `..`."""
    posix = PurePosixPath(name.replace("\\", "/"))
    if not name or not posix.parts:
        raise InputError("the file name is empty", file=file, row=row)
    if posix.is_absolute() or PureWindowsPath(name).drive or ".." in posix.parts:
        raise InputError(f"'{name}' leaves the folder", file=file, row=row, remedy="write a path inside the folder")
    return str(posix)


def parse_study(
    cells: Mapping[str, str], *, allow: Iterable[str], file: Path, row: int, origin: str = "real"
) -> tuple[Study, list[str]]:
    """One row as a study, and the reasons for what was not taken as it stands; paths are not looked at.

    `origin` is what a row without one has. Raises `InputError` naming `file` and `row`.
    """
    rest = dict(cells)
    stated_view = rest.pop("view", "")
    view, view_note = parse_view(stated_view)
    if stated_view != view:
        rest["view_as_stated"] = stated_view  # `AP_SUPINE` says more than AP
    elif not rest.get("view_as_stated", "?"):
        del rest["view_as_stated"]
    age_years, age_note = parse_age_years(rest.pop("age_years", ""))
    mark = checked_mark(rest, origin=rest.get("origin", "").lower(), file=file, row=row)
    origin = rest.pop("origin", "").lower() or ("synthetic" if mark else origin)
    if origin not in ("real", "synthetic"):
        raise InputError(f"origin '{origin}' is not known", file=file, row=row, remedy="write real or synthetic")
    split = parse_split(rest.pop("split", ""), file=file, row=row)
    if origin == "synthetic" and split in ("val", "test"):
        raise InputError(f"a synthetic image is in the split '{split}'", file=file, row=row,
                         remedy="synthetic images may only be in train")
    rest = {name: mark.get(name, cell) for name, cell in rest.items() if name != DERIVED_COLUMN or mark}
    # An empty item of `lesion_mask` is a lesion without a mask: it keeps the others at the place of their labels.
    masks = {column: tuple(part.strip() for part in rest.pop(column).split("|") if part.strip() or column in MASK_COLUMNS)
             for column in cells if column.endswith(("_mask", "_masks"))}
    study = Study(
        file_name=rest.pop("file_name", ""), study_id=rest.pop("study_id", ""), patient_id=rest.pop("patient_id", ""),
        site=rest.pop("site", ""), view=view, sex=parse_sex(rest.pop("sex", ""), file=file, row=row),
        age_years=age_years, labels=parse_findings(rest.pop("findings", ""), allow=allow, file=file, row=row),
        text=rest.pop("text", ""), masks={column: paths for column, paths in masks.items() if any(paths)},
        lesion_label=rest.pop("lesion_label", ""), split=split, origin=origin,
        extra=rest,
    )
    return study, [note for note in (view_note, age_note) if note]


def _with_checked_paths(study: Study, folder: Path, file: Path, row: int) -> Study:
    masks = {column: tuple(name and file_inside(name, folder, what=column, file=file, row=row) for name in names)
             for column, names in study.masks.items()}
    return replace(study, file_name=file_inside(study.file_name, folder, what="image", file=file, row=row), masks=masks)


def _check_together(table: Table, studies: Sequence[Study]) -> None:
    """What only shows across rows: an image twice, a patient in two splits."""
    first_row: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    for row, study in zip(table.rows, studies, strict=True):
        earlier = first_row.setdefault(study.file_name, row.number)
        if earlier != row.number:
            raise InputError(f"'{study.file_name}' is already in row {earlier}", file=table.path, row=row.number,
                             remedy="one row for each image")
        if study.split and study.patient_id:
            split, earlier = split_of.setdefault(study.patient_id, (study.split, row.number))
            if split != study.split:
                raise InputError(f"this patient is in the split '{study.split}' here and in '{split}' in row {earlier}",
                                 file=table.path, row=row.number, remedy="all images of a patient belong to one split")


def _findings(facts: Mapping[str, Any], studies: Sequence[Study], allow: Iterable[str]) -> tuple[str, ...]:
    labels: Sequence[str] = facts.get("labels", ())
    declared = [name for label in labels for name in parse_findings(label, allow=allow)]
    return tuple(dict.fromkeys((*declared, *sorted({name for study in studies for name in study.labels}))))

