"""Images that are derived from a patient's image: how table, PNG and DICOM say so, and the manifest that alone knows the source.

A lesion inserted into a radiograph leaves the rest of it as it was, so the patient can be recognised in it. Such an image is synthetic
(it may only train), but it is not free of patients. The public mark is the column `derived_from_patient`, which names nobody; `pair_of`
and the patient's pseudonym stay in the lab; the file of the source and its digest stand only in the private manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from synthorax.errors import InputError
from synthorax.files import json_line, write_atomic
from synthorax.types import ImageSet, Study

COLUMN = "derived_from_patient"
PAIR_COLUMN = "pair_of"
"""`file_name` of the image that this one was made from, as the table of that image has it"""
PRIVATE_COLUMNS = (PAIR_COLUMN,)
"""columns that tell which patient it is; they stay in the lab"""
MADE_BY_COLUMNS = ("method", "model", "model_digest", "seed", "diameter_mm", "spacing_from", "rim_px", "condition")
"""columns that say how a lesion was inserted"""
HOST_COLUMNS = ("host_model", "host_model_digest", "host_seed", "host_condition")
"""columns that say how the image around an inserted lesion was generated, where it was"""
PHOTOMETRIC, INVERTED = "photometric", "MONOCHROME1"
"""column of how the host's DICOM file shows its values, and its word for low values that are bright; an export as DICOM keeps it"""
MANIFEST = "private_manifest.jsonl"
OWNER_ONLY = 0o600
TEXT_KEY = "Synthorax"
"""of the PNG text that says what an image is"""
GENERATED_TEXT = "synthetic radiograph, of no patient; for research"
DERIVED_TEXT = "synthetic lesion in the radiograph of a patient; for training in house; for research"
_YES, _NO = frozenset({"yes", "true", "1"}), frozenset({"", "no", "false", "0"})


def checked_mark(cells: Mapping[str, str], *, origin: str, file: Path, row: int) -> dict[str, str]:
    """The cell of `COLUMN` in its one spelling, or nothing where it says no; `origin` is what the row says, perhaps nothing.

    InputError for another word, and for an image that is said to be real.
    """
    said = cells.get(COLUMN, "").strip().lower()
    if said not in _YES | _NO:
        raise InputError(f"{COLUMN} '{cells[COLUMN]}' is not known", file=file, row=row, remedy="write yes, or leave it empty")
    if said in _NO:
        return {}
    if origin not in ("", "synthetic"):
        raise InputError(f"an image that is {COLUMN.replace('_', ' ')} says that its origin is {origin}", file=file, row=row,
                         remedy="write synthetic under origin: a changed image may only train")
    return {COLUMN: "yes"}


def mark_text(study: Study) -> str:
    """What a PNG file says of itself under `TEXT_KEY`."""
    return DERIVED_TEXT if study.derived_from_patient else GENERATED_TEXT


def provenance_of(study: Study) -> dict[str, str]:
    """What a PNG file with an inserted lesion says of itself: how it was made, and nothing that leads to its source if that is a patient's.
    """
    columns = (COLUMN, *MADE_BY_COLUMNS, *HOST_COLUMNS)
    return {TEXT_KEY: mark_text(study), **{name: study.extra[name] for name in columns if study.extra.get(name)}}


def marked_by_file(study: Study, path: Path) -> Study:
    """The row with what the file says of itself: a PNG or DICOM file that says that it is synthetic is never taken for a real image.

    A row without the mark of a file that says it is derived gets it; nothing is taken away.
    """
    said = _said_by(path)
    if not said:
        return study
    marks = {COLUMN: "yes"} if said == "derived" else {}
    return replace(study, origin="synthetic", extra={**study.extra, **marks})


def without_private(study: Study) -> Study:
    """The row without what tells whose image it was derived from; other rows stay as they are."""
    if not study.derived_from_patient:
        return study
    extra = {name: cell for name, cell in study.extra.items() if name not in PRIVATE_COLUMNS}
    return replace(study, patient_id="", study_id="", extra=extra)


def derived_rows(studies: Iterable[Study]) -> list[int]:
    """Positions of the rows that are derived from a patient's image."""
    return [number for number, study in enumerate(studies) if study.derived_from_patient]


def told_apart(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Those made from nothing, of whom privacy can be measured, and those derived from a patient's image, which show that patient."""
    derived = derived_rows(images.studies)
    return images.take([number for number in range(len(images)) if number not in set(derived)]), images.take(derived)


def refuse_held_out_hosts(studies: Sequence[Study], held_out: Mapping[str, Iterable[Study]], *, file: Path | str | None = None) -> None:
    """InputError where an image is derived from nobody in particular, or from a patient among the `held_out` images, by split."""
    patients = {split: {study.patient_id for study in images} - {""} for split, images in held_out.items()}
    for number in derived_rows(studies):
        study, row = studies[number], None if file is None else number + 2
        if not study.patient_id:
            raise InputError(f"'{study.file_name}' is derived from a patient, and no patient_id says from whom", file=file, row=row,
                             remedy="use the folder as synthorax insert wrote it: its table keeps the patient for checks of leaks")
        for split, known in patients.items():
            if study.patient_id in known:
                raise InputError(f"'{study.file_name}' is derived from a patient who has {split} images", file=file, row=row,
                                 remedy="insert lesions into images of training patients only")


def write_manifest(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write `private_manifest.jsonl` beside a set, readable by its owner alone; each line holds `file_name` and its source."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_atomic(folder / MANIFEST, text, mode=OWNER_ONLY)


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of a private manifest; none where there is no file. A line that a kill cut off is left out."""
    path = folder / MANIFEST
    if not path.exists():
        return []
    return [found for line in path.read_text(encoding="utf-8").splitlines() if (found := json_line(line))]


def _said_by(path: Path) -> str:
    """`derived` or `generated` where the file itself says so."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError):
        return ""
    if head[128:132] == b"DICM":
        from synthorax.data.dicom_read import synthetic_mark  # keeps pydicom out of runs that have no DICOM

        return synthetic_mark(path)
    if not head.startswith(b"\x89PNG"):
        return ""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = str(image.info.get(TEXT_KEY, ""))  # a chunk before the pixels, as we write it
    except Exception:  # a damaged file is refused where its pixels are read
        return ""
    return "derived" if text == DERIVED_TEXT else "generated" if text else ""
