"""How every adapter leaves its dataset folder: built in a hidden folder inside, moved at the end, its rejects listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthorax.data.attributes import age_to_publish
from synthorax.data.dataset import FACTS_NAME, Dataset, Note, read_dataset, with_own_patient, write_dataset
from synthorax.data.image_files import read_image
from synthorax.data.masks import mask_pixels
from synthorax.data.pixels import write_png
from synthorax.data.rejects import FACT, TABLE_NAME, count_reasons
from synthorax.data.tables import table_bytes
from synthorax.errors import InputError
from synthorax.files import readable_name, safe_name, write_atomic
from synthorax.folders import CLAIM_NAME, claimed, file_stamp, stamps
from synthorax.progress import Progress, quiet
from synthorax.types import Study

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
DOCUMENT_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".json", ".xml", ".md", ".html", ".pdf", ".xlsx"})
"""what lies beside images and is not worth a line in `rejects.csv`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One image of a source, before it is taken over."""

    path: Path
    row: int
    """row of the source's table, or number of the file where there is none"""
    name: str
    """what `rejects.csv` calls it"""
    study: Study
    """all that the table says; `file_name` and `masks` are still those of the source"""


class NothingLostError(InputError):
    """Rejects a file by which no image is lost: a second copy, or no radiograph at all."""


Place = Callable[[Source, Path], Study]
"""Writes an image and its masks into the folder given and returns its row; an `InputError` rejects this image only."""


def assemble(
    out: Path,
    sources: Sequence[Source],
    *,
    made_from: Mapping[str, Any],
    place: Place,
    rejects: Iterable[Note] = (),
    notes: Iterable[Note] = (),
    afterwards: Callable[[], Iterable[Note]] = tuple,
    facts: Mapping[str, Any] | None = None,
    patient_per_image: bool = False,
    progress: Progress = quiet,
) -> Dataset:
    """Write the dataset folder `out`, whole or not at all, with `rejects.csv` and `notes.csv` (row, file_name, reason).

    One that is there and was `made_from` the same is used again. `afterwards` gives the rejects that show only once every image was
    placed. Raises `InputError` where `out` holds something else, or where no image is left.
    """
    with claimed(out, kind="a dataset folder", inputs={**made_from, "patient per image": patient_per_image}) as claim:
        if claim.done:
            return replace(read_dataset(out), notes=tuple(notes))
        building = claim.work
        (building / "images").mkdir()
        rejected, studies = [*rejects], []
        for number, source in enumerate(sources, start=1):
            try:
                study = place(source, building)
                study = replace(study, age_years=age_to_publish(study.age_years))
                studies.append(with_own_patient(study) if patient_per_image else study)
            except OSError:  # of the disk that is written to: whatever an image raises when it is read is an InputError
                raise
            except Exception as error:  # no single image may end the work, whatever is wrong with it
                rejected.append(Note(row=source.row, file_name=source.name, reason=reason_of(error, source),
                                     lost=not isinstance(error, NothingLostError)))
            progress(number / len(sources), f"{number} of {len(sources)} images, {len(rejected)} rejected")
        rejected += afterwards()
        if not studies:
            raise InputError(f"no image could be taken over ({len(rejected)} rejected)",
                             remedy=f"the first because: {rejected[0].reason}" if rejected else "there are no images")
        lost, others = ([note.reason for note in rejected if note.lost is wanted] for wanted in (True, False))
        counts = count_reasons(lost, others, accepted=len(studies))
        facts = {**(facts or {}), FACT: counts.to_facts()}
        write_dataset(building, studies, name=facts.pop("name", out.name), synthetic=False, facts=facts)
        _write_notes(building / TABLE_NAME, rejected)
        _write_notes(building / "notes.csv", notes)
        dataset = read_dataset(building)
        claim.deliver(last=("metadata.csv", "dataset.json"))
    return replace(dataset, path=out, notes=tuple(notes))


def what_from(source: Path, out: Path, *, label_table: Path | str | None, allow: Iterable[str]) -> dict[str, Any]:
    """What a dataset folder is made from, for its claim; without paths, because it may be given away."""
    table = {} if label_table is None else {"label table": file_stamp(Path(label_table))}
    return {**stamps(source, without=out), **table, "allowed findings": sorted(allow)}


def place_image(path: Path, folder: Path, *, name: str) -> str:
    """Take the pixels of an image over as a grey PNG of 8 or 16 bits; returns its path in the dataset folder.

    No byte of the file itself is copied, because text in it may name a patient. The image is never flipped, turned or scaled; a
    damaged file is an `InputError`.
    """
    pixels = read_image(path)
    target = _free_path(folder / "images", readable_name(name))
    write_png(target, pixels)
    return target.relative_to(folder).as_posix()


def place_mask(path: Path, folder: Path, *, column: str, name: str) -> str:
    """Take the values of a mask over as a grey PNG; returns its path in the dataset folder."""
    pixels = mask_pixels(path)
    target = _free_path(folder / "masks" / safe_name(re.sub("_masks?$", "", column)), readable_name(name))
    write_png(target, pixels)
    return target.relative_to(folder).as_posix()


def files_below(source: Path) -> list[Path]:
    """Every file below, sorted, without hidden ones, what is left by archive programs, and `results_below`.

    Links to folders are not followed.
    """
    if not source.is_dir():
        raise InputError("no such folder", file=source)
    inner = ((path, path.relative_to(source).parts) for path in source.rglob("*"))
    files = sorted(path for path, parts in inner
                   if path.is_file() and not any(part.startswith(".") or part == "__MACOSX" for part in parts))
    results = _results_among(files, source)
    return [path for path in files if results.isdisjoint(path.parents)]


def results_below(source: Path) -> list[Note]:
    """A note for every folder below that holds what a verb has made, which is no source of images."""
    marks = (path for name in (CLAIM_NAME, FACTS_NAME) for path in source.rglob(name))
    found = sorted(folder.relative_to(source).as_posix() for folder in _results_among(marks, source))
    return [Note(row=0, file_name=name, reason=f"the folder '{name}' holds a result of Synthorax and was passed over", lost=False)
            for name in found]


def passed_over(source: Path) -> str:
    """What to do where nothing but results is there, as the remedy of an error; empty where there are none."""
    found = results_below(source)
    return f"{found[0].reason}; name that folder itself to use its images" if found else ""


def _results_among(files: Iterable[Path], source: Path) -> set[Path]:
    """Folders below `source` that say that a verb made them."""
    return {path.parent for path in files if path.parent != source and (
        path.name == CLAIM_NAME or (path.name == FACTS_NAME and b'"tool": "synthorax' in path.read_bytes()))}


def reason_of(error: Exception, source: Source) -> str:
    """What was wrong, without the path: `rejects.csv` has a column for it, and a path can name a patient."""
    if not isinstance(error, InputError):
        return f"cannot be read ({type(error).__name__})"
    where = "" if error.file is None else str(error.file) + (f" row {error.row}" if error.row is not None else "")
    reason = str(error).removeprefix(f"{where}: ")
    return reason.replace(str(source.path), "the file").replace(source.path.name, "the file")


def leaves(path: Path, source: Path) -> bool:
    """Whether a file is a link to a place outside the source."""
    return not path.resolve().is_relative_to(source.resolve())


def _write_notes(path: Path, notes: Iterable[Note]) -> None:
    rows = [{"row": str(note.row or ""), "file_name": note.file_name.encode("utf-8", "backslashreplace").decode(),
             "reason": note.reason} for note in sorted(notes, key=lambda note: note.row)]
    write_atomic(path, table_bytes(("row", "file_name", "reason"), rows))


def _free_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.png"
    return path
