"""What verbs take: a dataset folder or a prepared one, given as a path or as what another verb returned."""

from __future__ import annotations

from pathlib import Path

from synthorax.data.dataset import TABLE_NAME, Dataset, read_dataset
from synthorax.data.derived import marked_by_file
from synthorax.data.prepared import Prepared
from synthorax.data.prepared_volumes import PreparedVolumes
from synthorax.errors import InputError, UsageError
from synthorax.steps.models.recipe import Recipe, learns_volumes
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
    studies = tuple(marked_by_file(Study(file_name=path.relative_to(folder).as_posix(), origin="synthetic"), path) for path in files)
    return Dataset(path=folder, name=folder.name, studies=studies, findings=(), facts={"synthetic": True})


def prepared_of(value: Prepared | PathLike) -> Prepared:
    """A prepared folder, read where it is given as a path."""
    return value if isinstance(value, Prepared) else Prepared.load(Path(value))


def training_data_of(recipe: Recipe, value: Prepared | PreparedVolumes | PathLike) -> Prepared | PreparedVolumes:
    """What a recipe learns from, images or lesions, read where it is given as a path. Raises UsageError for the other kind."""
    if isinstance(value, Prepared | PreparedVolumes):
        check_kind_of_data(recipe, value)
        return value
    return PreparedVolumes.load(value) if learns_volumes(recipe) else Prepared.load(value)


def check_kind_of_data(recipe: Recipe, prepared: Prepared | PreparedVolumes) -> None:
    """Raise UsageError where a recipe of volumes is given images, or the other way round."""
    if learns_volumes(recipe) != isinstance(prepared, PreparedVolumes):
        wanted = "lesions, of `synthorax prepare-nodules`" if learns_volumes(recipe) else "images, of `synthorax prepare`"
        raise UsageError(f"the recipe '{recipe.name}' learns from a prepared folder of {wanted}; choose another recipe or folder")
