"""A folder of PNG or JPEG images: with a label table, or with one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from synthorax.data.adapters.assembly import (
    DOCUMENT_SUFFIXES,
    IMAGE_SUFFIXES,
    Source,
    assemble,
    files_below,
    leaves,
    passed_over,
    place_image,
    place_mask,
    results_below,
    what_from,
)
from synthorax.data.adapters.foreign_table import only_table, translate_columns
from synthorax.data.attributes import parse_split
from synthorax.data.dataset import Dataset, Note, parse_study, read_facts, relative_path
from synthorax.data.derived import marked_by_file
from synthorax.data.tables import read_table
from synthorax.data.vocabulary import parse_findings
from synthorax.errors import InputError
from synthorax.progress import Progress, quiet
from synthorax.types import Study

MASK_FOLDERS = frozenset({"mask", "masks"})
SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    label_table: str | Path | None = None,
    allow: Sequence[str] = (),
    patient_per_image: bool = False,
    progress: Progress = quiet,
) -> Dataset:
    """Make a dataset folder of the images anywhere below `source`.

    Labels come from `label_table`, else from `metadata.csv` or the only other CSV in `source`; where there is none, the
    first folder on the way to an image names its finding (`train`, `val` and `test` above it are its split) and the
    patient is unknown. Rows without an image, images without a row and unreadable images go to `rejects.csv`.
    Raises `InputError` for anything in the table that would have to be guessed.

    >>> ingest("images", "dataset")  # doctest: +SKIP
    """
    source, out = Path(source), Path(out)
    allow = (*allow, *(read_facts(source).get("labels", ()) if source.is_dir() else ()))
    found = _find_images(source)
    table = Path(label_table) if label_table is not None else only_table(source)
    work = _from_table(source, found, table, allow) if table else _from_class_folders(source, found, allow)

    def place(image: Source, folder: Path) -> Study:
        name = PurePosixPath(image.study.file_name).with_suffix("").as_posix().removeprefix("images/")
        masks = {column: tuple(place_mask(source / path, folder, column=column, name=_stem(path)) if path else "" for path in paths)
                 for column, paths in image.study.masks.items()}
        study = marked_by_file(image.study, image.path)
        return replace(study, file_name=place_image(image.path, folder, name=name), masks=masks)

    return assemble(out, work.images, place=place, rejects=work.rejects,
                    notes=[*results_below(source), *work.notes], facts={"labels": work.labels},
                    made_from=what_from(source, out, label_table=label_table, allow=allow) | {"adapter": "folder"},
                    patient_per_image=patient_per_image, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    images: list[Source]
    rejects: list[Note]
    notes: list[Note]
    labels: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    images: dict[str, Path]
    """path inside the source, with forward slashes -> file"""
    by_end: dict[str, list[str]]
    """file name, with and without suffix -> paths, without those below a folder of masks, which share names with images"""
    rejects: list[Note]

    def locate(self, name: str, *, file: Path, row: int) -> str | None:
        """The image that a table calls `name`: by its path, else by the end of a path, else without its suffix."""
        name = relative_path(name, file=file, row=row)
        if name in self.images:
            return name
        ends = [path for path in self.by_end.get(PurePosixPath(name).name, ())
                if f"/{path}".endswith(f"/{name}") or f"/{path}".rpartition(".")[0].endswith(f"/{name}")]
        if len(ends) > 1:
            raise InputError(f"'{name}' may be '{ends[0]}' or '{ends[1]}'", file=file, row=row,
                             remedy="write the path of the image inside the folder")
        return ends[0] if ends else None


def _find_images(source: Path) -> _Found:
    images: dict[str, Path] = {}
    by_end: dict[str, list[str]] = {}
    rejects = []
    for path in files_below(source):
        name = path.relative_to(source).as_posix()
        if path.suffix.lower() in DOCUMENT_SUFFIXES:
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            rejects.append(Note(row=0, file_name=name, reason="is neither PNG nor JPEG"))
        elif leaves(path, source):
            rejects.append(Note(row=0, file_name=name, reason="is a link that leaves the folder"))
        else:
            images[name] = path
            if _below_masks(name):
                continue
            for end in {path.name, path.stem}:
                by_end.setdefault(end, []).append(name)
    if not images:
        raise InputError("there is no PNG or JPEG image", file=source, remedy=passed_over(source))
    return _Found(images=images, by_end=by_end, rejects=rejects)


def _below_masks(name: str) -> bool:
    return not MASK_FOLDERS.isdisjoint(part.lower() for part in PurePosixPath(name).parts[:-1])


def _from_table(source: Path, found: _Found, path: Path, allow: Sequence[str]) -> _Work:
    table = translate_columns(read_table(path), allow=allow)
    if "file_name" not in table.columns:
        raise InputError("there is no column that names the image", file=path, row=1,
                         remedy=f"its columns are {', '.join(table.columns)}; name one 'file_name'")
    images: list[Source] = []
    rejects, notes = [*found.rejects], []
    row_of: dict[str, int] = {}
    for row in table.rows:
        study, reasons = parse_study(row.cells, allow=allow, file=path, row=row.number)
        image = found.locate(study.file_name, file=path, row=row.number)
        if image is None:
            rejects.append(Note(row=row.number, file_name=study.file_name, reason="no such image in the folder"))
            continue
        if row_of.setdefault(image, row.number) != row.number:
            raise InputError(f"'{image}' is already in row {row_of[image]}", file=path, row=row.number,
                             remedy="one row for each image")
        notes += [Note(row=row.number, file_name=study.file_name, reason=reason) for reason in reasons]
        study = replace(study, file_name=image, masks=_located_masks(study, found, path, row.number))
        images.append(Source(path=found.images[image], row=row.number, name=image, study=study))
    used = {*row_of, *(mask for radiograph in images for masks in radiograph.study.masks.values() for mask in masks)}
    rejects += [Note(row=0, file_name=name, reason=f"has no row in {path.name}", lost=not _below_masks(name))
                for name in found.images if name not in used]
    return _Work(images=images, rejects=rejects, notes=notes, labels=_labels(images))


def _located_masks(study: Study, found: _Found, file: Path, row: int) -> dict[str, tuple[str, ...]]:
    located: dict[str, tuple[str, ...]] = {}
    for column, paths in study.masks.items():
        names = [found.locate(name, file=file, row=row) if name else "" for name in paths]
        if None in names:
            raise InputError(f"{column} '{paths[names.index(None)]}' is missing", file=file, row=row,
                             remedy="copy it into the folder, or empty the cell")
        located[column] = tuple(name for name in names if name is not None)
    return located


def _from_class_folders(source: Path, found: _Found, allow: Sequence[str]) -> _Work:
    images = []
    for number, (name, path) in enumerate(found.images.items(), start=1):
        folders = list(PurePosixPath(name).parent.parts)
        split = folders.pop(0) if folders and folders[0].lower() in SPLIT_FOLDERS else ""
        if not folders:
            raise InputError(f"'{name}' has neither a row in a table nor a folder that names its finding", file=source,
                             remedy="add a metadata.csv, or sort the images into folders such as Pneumonia, "
                                    "No Finding or Unlabelled")
        labels = parse_findings(folders[0], allow=allow, file=source / split / folders[0])
        study = Study(file_name=name.removeprefix(f"{split}/"), labels=labels,
                      split=parse_split(split, file=source, row=number))
        images.append(Source(path=path, row=number, name=name, study=study))
    return _Work(images=images, rejects=found.rejects, notes=[], labels=_labels(images))


def _labels(images: Sequence[Source]) -> list[str]:
    return sorted({name for image in images for name in image.study.labels})


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
