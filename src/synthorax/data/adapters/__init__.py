"""Adapters: one file for each way in which public data is laid out; each leaves a dataset folder.

An adapter is a module with one function, `ingest(source, out, *, label_table=None, allow=(), patient_per_image=False,
progress=quiet) -> Dataset`. A new one is a file here, a line in `ADAPTERS` and a section in `docs/reference/data.md`.
"""

from __future__ import annotations

from pathlib import Path

from synthorax.data.adapters.assembly import DOCUMENT_SUFFIXES, IMAGE_SUFFIXES, files_below, passed_over
from synthorax.data.dataset import FACTS_NAME, TABLE_NAME
from synthorax.data.tables import read_table
from synthorax.errors import InputError

ADAPTERS = {
    "cxr14": "synthorax.data.adapters.cxr14:ingest",
    "dicom": "synthorax.data.adapters.dicom:ingest",
    "folder": "synthorax.data.adapters.folder:ingest",
}
"""name -> "module:function", for `registry.lookup`"""


def detect(source: str | Path) -> str:
    """Which adapter reads `source`, or `dataset` where it is a dataset folder already.

    Decided by marks, never by trial: `dataset.json`; the NIH's table; DICOM files; a `metadata.csv` with `file_name`
    whose first file is there; else a plain folder of images. Raises `InputError` where nothing or two things fit.
    """
    from synthorax.data.dicom_read import is_dicom  # keeps pydicom out of runs that have no DICOM

    source = Path(source)
    if not source.is_dir():
        raise InputError("no such folder", file=source)
    if (source / FACTS_NAME).exists():
        return "dataset"
    if any(source.glob("Data_Entry_2017*.csv")):
        return "cxr14"
    files = files_below(source)
    has_pictures = any(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
    others = (path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES | DOCUMENT_SUFFIXES)
    has_dicom = any(is_dicom(path) for path in others)
    if has_pictures and has_dicom:
        raise InputError("there are DICOM files and PNG or JPEG files", file=source,
                         remedy="choose the adapter: dicom or folder")
    if not has_pictures and not has_dicom:
        raise InputError("there is no PNG, JPEG or DICOM file", file=source, remedy=passed_over(source))
    if has_dicom:
        return "dicom"
    return "dataset" if _is_dataset_table(source / TABLE_NAME) else "folder"


def _is_dataset_table(path: Path) -> bool:
    if not path.exists():
        return False
    first = read_table(path).rows[0].cells.get("file_name", "")
    return bool(first) and (path.parent / first).is_file()
