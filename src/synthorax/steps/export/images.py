"""Export: the images of a dataset folder as PNG or DICOM files that say of themselves where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from synthorax.data.dataset import COUNTED_FACTS, Dataset, digest_of, relative_path, write_dataset
from synthorax.data.derived import COLUMN as DERIVED_COLUMN
from synthorax.data.derived import TEXT_KEY, derived_rows, mark_text, without_private
from synthorax.data.dicom_write import INSERTION_COLUMNS, PROVENANCE_COLUMNS, uid_of, write_dicom
from synthorax.data.image_files import read_image
from synthorax.data.masks import mask_pixels
from synthorax.data.pixels import write_png
from synthorax.data.tables import table_bytes
from synthorax.data.vocabulary import format_findings
from synthorax.errors import InputError, UsageError, nearest
from synthorax.files import write_atomic
from synthorax.folders import claimed
from synthorax.progress import Progress, quiet
from synthorax.types import Study

Format = Literal["dicom", "png"]


def export_dataset(dataset: Dataset, *, format: Format, out: Path, allow_derived: bool = False, progress: Progress = quiet) -> Path:
    """Write every image of `dataset` below `out`, and return `out`.

    `png` makes a dataset folder again (8- or 16-bit grey, masks, metadata.csv, dataset.json); `dicom` makes one Secondary Capture
    file an image, and index.csv, of synthetic images only. Each file is whole or absent and the table comes last: a killed export,
    called again, writes what is missing. Names of synthetic images say so. Images that are derived from a patient's are exported with
    `allow_derived` alone, without a pseudonym, the name of their source or the private manifest, and with the mark that they are derived.
    Raises `InputError`, before an image is written, for derived images otherwise, for real images as DICOM, for two images of one name,
    and for an `out` that holds something else.

    >>> export_dataset(read_dataset("kept"), format="dicom", out=Path("dicom"))  # doctest: +SKIP
    """
    if format not in get_args(Format):
        raise UsageError(f"unknown format '{format}'; {nearest(format, get_args(Format))}")
    if format == "dicom":
        _refuse_real(dataset)
    if not allow_derived:
        _refuse_derived(dataset)
    names = _names(dataset, suffix=".dcm" if format == "dicom" else ".png")
    digest = digest_of(dataset)
    with claimed(out, kind="an export", inputs={"format": format, "data set": digest}):
        for number, (study, name) in enumerate(zip(dataset.studies, names, strict=True), start=1):
            if not (out / name).exists():
                _write_image(dataset, study, out / name, key=digest)
            progress(number / len(names), f"{number} of {len(names)} images")
        if format == "png":
            _write_dataset(dataset, names, out)
        else:
            _write_index(dataset, names, out, key=digest)
    return out


def _refuse_real(dataset: Dataset) -> None:
    for row, study in enumerate(dataset.studies, start=2):
        if study.origin != "synthetic":
            problem = "is a real image, and files marked as synthetic must not hold one"
            raise InputError(f"'{study.file_name}' {problem}", file=dataset.path / "metadata.csv", row=row,
                             remedy="export the folder of synthetic images, or use --format png")


def _refuse_derived(dataset: Dataset) -> None:
    """An export promises images of no patient; these show one."""
    rows = derived_rows(dataset.studies)
    if rows:
        raise InputError(f"'{dataset.studies[rows[0]].file_name}' is derived from a patient's image, as are {len(rows)} of {len(dataset)}: "
                         "the patient can be recognised in it", file=dataset.path / "metadata.csv", row=rows[0] + 2,
                         remedy="keep the set in house, or export it where real images may go, with --allow-derived")


def _names(dataset: Dataset, *, suffix: str) -> list[str]:
    """Where each image goes, inside `out`."""
    table, taken = dataset.path / "metadata.csv", dict[str, str]()
    names = []
    for row, study in enumerate(dataset.studies, start=2):
        path = PurePosixPath(relative_path(study.file_name, file=table, row=row))
        mark = "synthetic-" if study.origin == "synthetic" and "synthetic" not in path.name.lower() else ""
        name = str(path.with_name(f"{mark}{path.stem}{suffix}"))
        earlier = taken.setdefault(name.lower(), study.file_name)  # some file systems do not tell upper from lower case
        if earlier != study.file_name:
            raise InputError(f"'{study.file_name}' and '{earlier}' would both become '{name}'", file=table, row=row,
                             remedy="rename one of them")
        names.append(name)
    return names


def _write_image(dataset: Dataset, study: Study, path: Path, *, key: str) -> None:
    image = read_image(dataset.path / study.file_name)
    provenance = {name: study.extra[name] for name in _provenance_columns(study) if study.extra.get(name)}
    if path.suffix == ".dcm":
        write_dicom(path, image, study=study, provenance=provenance, dataset_key=key, created=_created(dataset))
    else:
        provenance_text = {TEXT_KEY: mark_text(study), **provenance}
        write_png(path, image, provenance=provenance_text if study.origin == "synthetic" else None)


def _provenance_columns(study: Study) -> tuple[str, ...]:
    """A derived image says that it is, and a generated one with a lesion inserted how each of the two was made."""
    if study.derived_from_patient:
        return (DERIVED_COLUMN, *PROVENANCE_COLUMNS)
    return (*PROVENANCE_COLUMNS, *INSERTION_COLUMNS) if study.extra.get("host_model") else PROVENANCE_COLUMNS


def _created(dataset: Dataset) -> datetime | None:
    """When the data set says it was made, never the time of the export: exporting again gives the same files."""
    stated = dataset.facts.get("created")
    try:
        return datetime.fromisoformat(stated) if stated else None
    except (TypeError, ValueError):
        raise InputError(f"created '{stated}' is not a date", file=dataset.path / "dataset.json",
                         remedy="write it as 2026-01-31T12:00:00, or delete it") from None


def _write_dataset(dataset: Dataset, names: Sequence[str], out: Path) -> None:
    studies = [replace(without_private(study), file_name=name) for study, name in zip(dataset.studies, names, strict=True)]
    for row, study in enumerate(studies, start=2):
        for mask in (mask for masks in study.masks.values() for mask in masks if mask):
            target = relative_path(mask, file=dataset.path / "metadata.csv", row=row)
            if not (out / target).exists():
                write_png(out / target, mask_pixels(dataset.path / mask))
    facts = {key: value for key, value in dataset.facts.items() if key not in COUNTED_FACTS}
    synthetic = all(study.origin == "synthetic" for study in studies)
    write_dataset(out, studies, name=dataset.name, synthetic=synthetic, facts=facts)


def _write_index(dataset: Dataset, names: Sequence[str], out: Path, *, key: str) -> None:
    """What a spreadsheet needs to find a file: its name, UID, finding and how it was made."""
    derived = (DERIVED_COLUMN,) if derived_rows(dataset.studies) else ()
    inserted = INSERTION_COLUMNS if any(study.extra.get("host_model") for study in dataset.studies) else ()
    columns = ("file_name", "sop_instance_uid", "source_file_name", "view", "findings", *derived, *PROVENANCE_COLUMNS, *inserted)
    rows = [{**study.extra, "file_name": name, "sop_instance_uid": str(uid_of(study, dataset_key=key)),
             "source_file_name": study.file_name, "view": study.view, "findings": format_findings(study.labels)}
            for study, name in zip(dataset.studies, names, strict=True)]
    write_atomic(out / "index.csv", table_bytes(columns, rows))
