"""Verbs that bring images and lesions in: ingest, prepare and prepare_nodules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthorax.data.adapters import ADAPTERS, detect
from synthorax.data.adapters.assembly import what_from
from synthorax.data.dataset import COUNTED_FACTS, TABLE_NAME, Dataset, read_dataset, write_dataset
from synthorax.data.prepared import Prepared, prepare_dataset
from synthorax.data.prepared_volumes import PreparedVolumes, prepare_volumes
from synthorax.data.rejects import Rejected, stop_if_too_many
from synthorax.folders import claimed
from synthorax.progress import progress_line
from synthorax.registry import lookup
from synthorax.steps.cache import cache, cached_folder, content_of
from synthorax.steps.models.trained_model import PathLike
from synthorax.types import LabelPolicy


def ingest(source: PathLike, *, adapter: str = "", out: PathLike | None = None, label_table: PathLike | None = None,
           allow: Sequence[str] = (), patient_per_image: bool = False, allow_rejects: bool = False) -> Dataset:
    """Turn images as downloaded or exported into a dataset folder; `adapter` is recognised from the files if empty.

    Without `out` the folder is kept in the cache and found again as long as the source does not change. A source that is a dataset folder
    already is copied to `out`, and without `out` read where it lies. Raises InputError, also where more than a tenth of the images were
    rejected, unless `allow_rejects`: the folder then holds the others, and rejects.csv the reasons.
    """
    source = Path(source)
    name = adapter or detect(source)
    if name == "dataset":
        dataset = read_dataset(source, label_table=label_table, allow=allow, patient_per_image=patient_per_image)
        return dataset if out is None else _copied(dataset, Path(out), label_table=label_table, allow=allow,
                                                   patient_per_image=patient_per_image)
    out = Path(out) if out is not None else cached_folder("ingest", source, name, *content_of(label_table), *allow, str(patient_per_image))
    if (out / "dataset.json").exists() and out.is_relative_to(cache()):
        return _without_many_rejects(read_dataset(out, allow=allow), allow_rejects)
    convert = lookup(ADAPTERS, name, kind="adapter")
    table = Path(label_table) if label_table is not None else None
    with progress_line("ingest") as progress:
        dataset = convert(source, out, label_table=table, allow=allow, patient_per_image=patient_per_image, progress=progress)
    return _without_many_rejects(dataset, allow_rejects)


def _copied(dataset: Dataset, out: Path, *, label_table: PathLike | None, allow: Sequence[str], patient_per_image: bool) -> Dataset:
    """Write a dataset folder that was read as one of its own: files, table and facts."""
    source = {**what_from(dataset.path, out, label_table=None if label_table is None else Path(label_table), allow=allow),
              "adapter": "dataset", "patient_per_image": patient_per_image}
    with claimed(out, kind="a dataset folder", inputs=source) as folder, progress_line("ingest") as progress:
        if not folder.done:
            facts = {key: value for key, value in dataset.facts.items() if key not in COUNTED_FACTS}
            write_dataset(folder.work, dataset.studies, name=dataset.name, synthetic=bool(dataset.facts.get("synthetic")),
                          source=dataset.path, facts=facts, progress=progress)
            folder.deliver(last=(TABLE_NAME,))
    return replace(read_dataset(out, allow=allow), notes=dataset.notes)


def _without_many_rejects(made: Dataset, allowed: bool) -> Dataset:
    stop_if_too_many(Rejected.of_folder(made.path, made.facts), at=made.path, allowed=allowed)
    return made


def prepare(dataset: Dataset | PathLike, *, size: int = 256, out: PathLike | None = None,
            split: tuple[float, float, float] = (0.7, 0.1, 0.2), images_per_patient: int = 5, seed: int = 0,
            policy: LabelPolicy | None = None, allow: Sequence[str] = (), patient_per_image: bool = False,
            allow_rejects: bool = False) -> Prepared:
    """Decode, check, split by patient and cache a dataset folder. Without `out` it is kept in the cache.

    Raises InputError where more than a tenth of the images were rejected, unless `allow_rejects`: the same call with it then uses what
    was prepared.
    """
    if not isinstance(dataset, Dataset):
        dataset = read_dataset(dataset, allow=allow, patient_per_image=patient_per_image)
    policy = policy or LabelPolicy()
    if out is None:
        labels = hashlib.sha256(repr(dataset.studies).encode()).hexdigest()  # a label table may lie elsewhere
        out = cached_folder("prepared", dataset.path, str(size), repr(split), str(images_per_patient), str(seed), repr(policy), labels)
    with progress_line("prepare") as progress:
        made = prepare_dataset(dataset, Path(out), size=size, fractions=split, seed=seed, images_per_patient=images_per_patient,
                               policy=policy, progress=progress)
    stop_if_too_many(made.rejected, at=made.path, allowed=allow_rejects)
    return made


def prepare_nodules(bank: PathLike, *, out: PathLike, side: int = 32, held_out: float = 0.2, seed: int = 0, licence: str = "",
                    attribution: str = "", allow_rejects: bool = False) -> PreparedVolumes:
    """Resample, measure and split the lesions of a bank, cut from CT with a mask each, for the training of a model of volumes.

    `bank` is an npz file of flat arrays or a folder of npz or NIfTI volumes, see `data.nodule_bank.read_bank`. Each lesion comes onto a
    grid of `side` voxels that is two diameters wide, without the vessels and the chest wall around it; diameter, margin and solidity are
    measured. A part `held_out` of the scans is kept for tests. `licence` and `attribution` are those of the bank. Raises InputError,
    also where more than a tenth of the lesions were rejected, unless `allow_rejects`.

    >>> prepare_nodules("nodules.npz", out="nodules/")  # doctest: +SKIP
    """
    with progress_line("prepare-nodules") as progress:
        made = prepare_volumes(Path(bank), Path(out), side=side, held_out=held_out, seed=seed, licence=licence, attribution=attribution,
                               progress=progress)
    stop_if_too_many(made.rejected, at=made.path, allowed=allow_rejects)
    return made
