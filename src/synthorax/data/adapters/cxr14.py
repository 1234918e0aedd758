"""ChestX-ray14 as the NIH Clinical Center lays it out (Wang et al., CVPR 2017): its two tables, and images below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.adapters.assembly import IMAGE_SUFFIXES, Source, assemble, files_below, leaves, place_image, results_below, what_from
from synthorax.data.adapters.foreign_table import translate_columns
from synthorax.data.dataset import Dataset, Note, parse_study
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.data.tables import Row, read_table
from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError
from synthorax.files import safe_name
from synthorax.progress import Progress, quiet
from synthorax.types import Study

TABLE_PATTERN = "Data_Entry_2017*.csv"
BOX_FRAME_PX = 1024
"""boxes are given in pixels of the 1024 x 1024 images that were released"""
FACTS = {
    "name": "ChestX-ray14",
    "licence": "NIH Clinical Center: unrestricted use with attribution; cite Wang et al., CVPR 2017",
    "label_policy": {"unlisted": "absent"},
}

Box = tuple[float, float, float, float]
"""x, y, width, height, all in pixels of the released image"""


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    label_table: str | Path | None = None,
    allow: Sequence[str] = (),
    patient_per_image: bool = False,
    progress: Progress = quiet,
) -> Dataset:
    """Make a dataset folder of `Data_Entry_2017*.csv` (or `label_table`), `BBox_List_2017*.csv` and the images below.

    A finding that a row does not list is absent: the labels were mined for all 14. Boxes become one lesion mask for
    each image and finding, scaled to the image. Rows whose image was not downloaded go to `rejects.csv`.

    >>> ingest("CXR8", "dataset")  # doctest: +SKIP
    """
    source, out = Path(source), Path(out)
    path = Path(label_table) if label_table is not None else _table(source, TABLE_PATTERN)
    table = translate_columns(read_table(path), allow=allow)
    for needed in ("file_name", "patient_id"):
        if needed not in table.columns:
            raise InputError(f"there is no column that is the NIH's for {needed}", file=path, row=1,
                             remedy="this adapter reads Data_Entry_2017.csv; `folder` reads other tables")
    boxes, notes = _boxes(source, allow)
    images = _images(source)
    sources: list[Source] = []
    rejects: list[Note] = []
    seen: dict[str, int] = {}
    for row in table.rows:
        study, reasons = parse_study(row.cells, allow=allow, file=path, row=row.number)
        name = study.file_name
        if seen.setdefault(name, row.number) != row.number:
            raise InputError(f"'{name}' is already in row {seen[name]}", file=path, row=row.number, remedy="delete one")
        if name not in images:
            rejects.append(Note(row=row.number, file_name=name, reason="no such image in the folder",
                                lost=False))  # the set comes in twelve parts, and one of them is a set too
            continue
        notes += [Note(row=row.number, file_name=name, reason=reason) for reason in reasons]
        sources.append(Source(path=images[name], row=row.number, name=name, study=_nih_study(study, row)))

    def place(image: Source, folder: Path) -> Study:
        file_name = place_image(image.path, folder, name=image.path.stem)
        return _with_lesions(replace(image.study, file_name=file_name), boxes.get(image.name, {}), folder)

    return assemble(out, sources, place=place, rejects=rejects, notes=[*results_below(source), *notes], facts=FACTS,
                    made_from=what_from(source, out, label_table=label_table, allow=allow) | {"adapter": "cxr14"},
                    patient_per_image=patient_per_image, progress=progress)


def mask_of_boxes(boxes: Sequence[Box], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The boxes as a mask [H, W] in {0, 255} of an image of `shape`; every pixel that a box touches belongs to it.

    >>> mask_of_boxes([(512.0, 0.0, 512.0, 256.0)], (4, 4)).tolist()[0]
    [0, 0, 255, 255]
    """
    mask = np.zeros(shape, dtype=np.uint8)
    scale_y, scale_x = shape[0] / BOX_FRAME_PX, shape[1] / BOX_FRAME_PX
    for x, y, width, height in boxes:
        top, bottom = math.floor(y * scale_y), math.ceil((y + height) * scale_y)
        left, right = math.floor(x * scale_x), math.ceil((x + width) * scale_x)
        mask[top:bottom, left:right] = 255
    return mask


def _table(source: Path, pattern: str) -> Path:
    found = sorted(source.glob(pattern))
    if len(found) != 1:
        raise InputError(f"there are {len(found)} tables {pattern}", file=source,
                         remedy="name the one to read (label_table)")
    return found[0]


def _images(source: Path) -> dict[str, Path]:
    """File name -> image. Where there are folders `images` or `images_001`, only theirs: masks may share the names."""
    found = [path for path in files_below(source) if path.suffix.lower() in IMAGE_SUFFIXES and not leaves(path, source)]
    own = [path for path in found if any(part.startswith("images") for part in path.relative_to(source).parts[:-1])]
    images: dict[str, Path] = {}
    for path in own or found:
        if images.setdefault(path.name, path) != path:
            raise InputError(f"'{path.name}' is there twice", file=source,
                             remedy=f"delete {images[path.name].relative_to(source)} or {path.relative_to(source)}")
    return images


def _boxes(source: Path, allow: Sequence[str]) -> tuple[dict[str, dict[str, list[Box]]], list[Note]]:
    """Image -> finding -> boxes; a box that is not inside the released image is left out with a note."""
    boxes: dict[str, dict[str, list[Box]]] = {}
    notes = []
    for path in sorted(source.glob("BBox_List_2017*.csv")):
        table = read_table(path)
        if len(table.columns) < 6 or table.columns[:2] != ("Image Index", "Finding Label"):
            raise InputError("the columns are not those of the NIH's list of boxes", file=path, row=1,
                             remedy="expected Image Index, Finding Label, Bbox [x, y, w, h]")
        for row in table.rows:
            name = row.cells["Image Index"]
            finding = canonical(row.cells["Finding Label"], allow=allow, file=path, row=row.number)
            box = _box([row.cells[column] for column in table.columns[2:6]])
            if box is None:
                notes.append(Note(row=row.number, file_name=name, reason=f"box of {finding} in {path.name} left out: "
                                  f"not inside {BOX_FRAME_PX} x {BOX_FRAME_PX} pixels"))
            else:
                boxes.setdefault(name, {}).setdefault(finding, []).append(box)
    return boxes, notes


def _box(cells: Sequence[str]) -> Box | None:
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError:
        return None
    inside = min(x, y) >= 0 and max(x + width, y + height) <= BOX_FRAME_PX + 1  # + 1: the NIH's own rounding
    return (x, y, width, height) if inside and min(width, height) > 0 else None


def _nih_study(study: Study, row: Row) -> Study:
    """Names as in the rest of the field: `nih_00013`, which a spreadsheet does not turn into the number 13."""
    number = study.patient_id
    follow_up = row.cells.get("Follow-up #", "")
    return replace(study, patient_id=f"nih_{number.zfill(5)}" if number else "", site="nih",
                   study_id=f"nih-{Path(study.file_name).stem}", extra={"follow_up": follow_up} if follow_up else {})


def _with_lesions(study: Study, boxes: dict[str, list[Box]], folder: Path) -> Study:
    if not boxes:
        return study
    shape = read_image(folder / study.file_name).shape
    place = folder / "masks" / "lesion"
    paths = []
    for finding in sorted(boxes):
        path = place / f"{Path(study.file_name).stem}_{safe_name(finding)}.png"
        write_png(path, mask_of_boxes(boxes[finding], (shape[0], shape[1])))
        paths.append(path.relative_to(folder).as_posix())
    return replace(study, masks={"lesion_mask": tuple(paths)}, lesion_label="|".join(sorted(boxes)),
                   extra={**study.extra, "lesion_kind": "box"})
