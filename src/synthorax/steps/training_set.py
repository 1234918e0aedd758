"""The training set that the main job leaves: every real training image and every synthetic one that passed, in one dataset folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthorax.data.dataset import (
    COUNTED_FACTS,
    FACTS_NAME,
    TABLE_NAME,
    Dataset,
    copy_files,
    digest_of,
    read_dataset,
    write_dataset,
)
from synthorax.data.derived import provenance_of
from synthorax.data.image_files import read_image
from synthorax.data.lesions import lesions_of, with_lesions
from synthorax.data.masks import black_and_white, image_shape, in_square, read_mask
from synthorax.data.pixels import letterbox, with_bits_of, write_png
from synthorax.data.prepared import Prepared
from synthorax.files import safe_name
from synthorax.folders import claimed
from synthorax.progress import Progress, quiet
from synthorax.types import Study


def join_training_set(prepared: Prepared, synthetic: Dataset, *, out: Path, name: str, facts: dict[str, str],
                      progress: Progress = quiet) -> Dataset:
    """Write the training images of `prepared`, and those of `synthetic`, to the folder `out`; one that is whole is returned as it is.

    Real rows keep their masks, lesions and own columns, on the grid of the images as they were prepared: square, all of one size. `facts`
    go into dataset.json. Raises InputError for a mask that does not fit its image.
    """
    inputs = {"prepared images": prepared.digest, "synthetic images": digest_of(synthetic), "name": name, **facts}
    with claimed(out, kind="a joined training set", inputs=inputs) as folder:
        if not folder.done:
            _join(prepared, synthetic, out=folder.work, name=name, facts=facts, progress=progress)
            folder.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _join(prepared: Prepared, synthetic: Dataset, *, out: Path, name: str, facts: dict[str, str], progress: Progress) -> None:
    """Write the training set into the empty folder `out`."""
    (out / "images").mkdir()
    train, rows = prepared.images("train"), [row for row, study in enumerate(prepared.studies, start=2) if study.split == "train"]
    studies: list[Study] = []
    total = len(train) + len(synthetic)
    for number, (study, row, image) in enumerate(zip(train.studies, rows, train.pixels, strict=True)):
        stem = f"real-{number:06d}"
        write_png(out / f"images/{stem}.png", image)
        placed = _with_masks(study, prepared.source, table=prepared.path / TABLE_NAME, stem=stem, size=len(image), row=row, out=out)
        studies.append(replace(placed, file_name=f"images/{stem}.png", split="train"))
        progress(len(studies) / total, f"{len(studies)} of {total} images")
    for study in synthetic.studies:
        studies.append(replace(copy_files(study, source=synthetic.path, out=out), split="train"))
        progress(len(studies) / total, f"{len(studies)} of {total} images")
    write_dataset(out, studies, name=name, synthetic=False, facts={"labels": list(prepared.findings), "mixed": True, **facts})


def join_synthetic_set(generated: Dataset | None, inserted: Sequence[Dataset], prepared: Prepared, *, out: Path) -> Dataset:
    """Generated images as they are and inserted ones brought to the prepared size, in the dataset folder `out`.

    The private manifests stay where they are. One that is whole is returned.
    """
    parts = [*([generated] if generated is not None else []), *inserted]
    inputs = {"images": [digest_of(part) for part in parts], "prepared images": prepared.digest}
    with claimed(out, kind="a set of synthetic images", inputs=inputs) as folder:
        if not folder.done:
            studies = [copy_files(study, source=generated.path, out=folder.work) for study in generated.studies] if generated else []
            dtype = prepared.images("train").pixels.dtype
            rows = [(own, row, study) for own in inserted for row, study in enumerate(own.studies, start=2)]
            for number, (own, row, study) in enumerate(rows):
                stem = f"synthetic-derived-{number:06d}"
                image = with_bits_of(letterbox(read_image(own.path / study.file_name), prepared.size), dtype)
                write_png(folder.work / f"images/{stem}.png", image, provenance=provenance_of(study))
                placed = _with_masks(study, own.path, table=own.path / TABLE_NAME, stem=stem, size=prepared.size, row=row,
                                     out=folder.work)
                studies.append(replace(placed, file_name=f"images/{stem}.png", study_id=f"{own.path.name}-{study.study_id}"))
            facts = {} if generated is None else {key: value for key, value in generated.facts.items() if key not in COUNTED_FACTS}
            labels = sorted({*facts.get("labels", ()), *(name for part in inserted for name in part.facts.get("labels", ()))})
            write_dataset(folder.work, studies, name=out.name, synthetic=True, facts={**facts, "labels": labels})
            folder.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _with_masks(study: Study, source: Path, *, table: Path, stem: str, size: int, row: int, out: Path) -> Study:
    """The row with its masks drawn on the square grid of its prepared image, and its lesions in parts of that square."""
    lesions = lesions_of(study, file=table, row=row)
    if not study.masks and not lesions:
        return study
    shape = image_shape(source / study.file_name, file=table, row=row)
    if shape[0] != shape[1]:
        study = with_lesions(study, [in_square(lesion, shape, size) for lesion in lesions])

    def placed(column: str, paths: Sequence[str]) -> tuple[str, ...]:
        kind = safe_name(re.sub("_masks?$", "", column))
        names = [path and f"masks/{kind}/{stem}{f'-{number}' if len(paths) > 1 else ''}.png" for number, path in enumerate(paths, start=1)]
        for name, path in zip(names, paths, strict=True):
            if path:
                mask = read_mask(source / path, size, image_shape=shape, file=table, row=row)
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                write_png(out / name, black_and_white(mask))
        return tuple(names)

    return replace(study, masks={column: placed(column, paths) for column, paths in study.masks.items()})
