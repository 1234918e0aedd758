"""What verbs take: a dataset folder or a prepared one, given as a path or as what another verb returned."""

from __future__ import annotations

from pathlib import Path

from synthorax.data.dataset import TABLE_NAME, Dataset, read_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError
from synthorax.steps.models.trained_model import PathLike
from synthorax.types import Study


def dataset_of(value: Dataset | PathLike) -> Dataset:
    """A dataset folder, or a folder of nothing but images by any generator, which then state no findings."""
    if isinstance(value, Dataset):
        return value
    folder = Path(value)
    if (folder / TABLE_NAME).exists() or not folder.is_dir():
        return read_dataset(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise InputError("holds neither metadata.csv nor images", file=folder, remedy="give a dataset folder or a folder of PNG files")
    studies = tuple(Study(file_name=path.relative_to(folder).as_posix(), origin="synthetic") for path in files)
    return Dataset(path=folder, name=folder.name, studies=studies, findings=(), facts={"synthetic": True})


def prepared_of(value: Prepared | PathLike) -> Prepared:
    """A prepared folder, read where it is given as a path."""
    return value if isinstance(value, Prepared) else Prepared.load(Path(value))
