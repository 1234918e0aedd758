"""A few training images as a prepared folder of their own, so that a training sees nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.dataset import FACTS_NAME, TABLE_NAME, read_dataset, write_dataset
from synthorax.data.prepared import Prepared, prepare_dataset
from synthorax.folders import claimed
from synthorax.rng import derive
from synthorax.types import ImageSet, Study


def training_set(studies: Sequence[Study], *, like: Prepared, findings: Sequence[str], out: Path) -> Prepared:
    """These images of a prepared folder as the training images of another, `out`-prepared, with these names of findings.

    The files are copied to `out` and prepared in the size and by the label policy of `like`. A finished folder is used again.
    """
    chosen = hashlib.sha256(repr(studies).encode()).hexdigest()
    inputs = {"prepared images": like.digest, "chosen": chosen, "findings": list(findings)}
    with claimed(out, kind="a few training images", inputs=inputs, wait_seconds=600) as folder:  # trainings side by side share them
        if not folder.done:
            write_dataset(folder.work, studies, name=out.name, synthetic=False, source=like.source, facts={"labels": list(findings)})
            folder.deliver(last=(TABLE_NAME, FACTS_NAME))
    return prepare_dataset(read_dataset(out, allow=findings), out.with_name(f"{out.name}-prepared"), size=like.size,
                           fractions=(1.0, 0.0, 0.0), images_per_patient=len(studies), policy=like.policy)


def drawn_images(images: ImageSet, *, num: int, seed: int, finding: str = "") -> list[Study]:
    """`num` images drawn by the seed; fewer are part of more. With a `finding` every other one shows it, and the rest state it absent.

    The caller sees to it that there are so many.
    """
    if not finding:
        return [images.studies[row] for row in _shuffled(np.arange(len(images)), seed, "all")[:num]]
    with_it, without = (_shuffled(np.flatnonzero(images.column(finding) == value), seed, name)
                        for name, value in (("with", 1), ("without", 0)))
    return [images.studies[(with_it, without)[place % 2][place // 2]] for place in range(num)]


def _shuffled(rows: NDArray[np.intp], seed: int, purpose: str) -> list[int]:
    return [int(row) for row in np.random.default_rng(derive(seed, "few films", purpose)).permutation(rows)]
