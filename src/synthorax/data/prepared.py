"""Prepared folders: images decoded once, checked, split by patient and cached as one array, with a reason for each reject.

A prepared folder holds `images.npy` [N, S, S], `metadata.csv` (the accepted rows in the same order, `split` filled; its
paths are inside the source), `rejects.csv`, `fingerprint.json` and `prepared.json` (settings and digests).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from synthorax.config import read_record
from synthorax.data.dataset import TABLE_NAME, Dataset, as_formerly, digest_of, files_of, write_table
from synthorax.data.decode import Decoded, decode_images
from synthorax.data.fingerprint import fingerprint
from synthorax.data.lesions import lesion_matrix
from synthorax.data.masks import load_lesions, mask_classes
from synthorax.data.pixels import MAX_PIXELS
from synthorax.data.rejects import FACT, Rejected, count_reasons
from synthorax.data.sources import Origin, origins_of
from synthorax.data.splits import DEFAULT_FRACTIONS, SPLITS, cap_images, split_patients
from synthorax.data.tables import read_table, table_bytes
from synthorax.data.vocabulary import label_matrix, parse_findings
from synthorax.errors import InputError, UsageError
from synthorax.files import check_kind, read_json_object, reserve, write_json
from synthorax.folders import CLAIM_NAME, claimed, file_stamp
from synthorax.former_names import with_present_claims
from synthorax.progress import Progress, portion, quiet
from synthorax.types import ImageSet, LabelPolicy, Study

SCHEMA = "synthorax.prepared/1"
VOLUMES_SCHEMA = "synthorax.volumes/1"
"""of a prepared folder of lesions, see `data.prepared_volumes`"""
FACTS_NAME = "prepared.json"
FACTS: dict[str, type] = {"settings": dict, "findings": list, "digest": str, "source": str, "num_rejected": int}
AGAIN = "delete the folder and prepare it again"
SIZES_PX = (8, 2048)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A prepared folder whose digest was checked; pixels stay on disk until `images` asks for them."""

    path: Path
    size: int
    """side of the square images in pixels"""
    findings: tuple[str, ...]
    policy: LabelPolicy
    digest: str
    """SHA-256 over pixels, table, findings and label policy"""
    source: Path
    """the dataset folder, where the masks named in the table are"""
    studies: tuple[Study, ...] = field(repr=False)
    fingerprint: Mapping[str, Any] = field(repr=False)
    num_rejected: int
    """all lines of `rejects.csv`"""
    rejected: Rejected = field(default_factory=Rejected, repr=False)
    """the images that could not be used, with reasons; empty in folders that were prepared before this was noted"""
    sources: tuple[Origin, ...] = field(default=(), repr=False)
    """the data sets that the images come from, with their terms; empty in folders that were prepared before this was noted"""

    def __len__(self) -> int:
        return len(self.studies)

    def __str__(self) -> str:
        return self.summary()

    @classmethod
    def load(cls, path: str | Path) -> Prepared:
        """Open a prepared folder; `InputError` where it is none, or where a file is damaged or was edited."""
        path = Path(path)
        facts = _read_facts(path)
        settings = facts["settings"]
        findings = read_record(tuple[str, ...], facts["findings"], what="findings", where=path / FACTS_NAME, remedy=AGAIN)
        policy = read_record(LabelPolicy, settings.get("policy"), what="policy", where=path / FACTS_NAME, remedy=AGAIN)
        check_kind(settings, "size", int, where=path / FACTS_NAME, remedy=AGAIN)
        edited = facts.get("settings_digest", _settings_digest(settings)) != _settings_digest(settings)  # older folders have none
        if edited or _digest(path, findings, policy) != facts["digest"]:
            raise InputError("the prepared folder is damaged or was edited", file=path, remedy="delete it and prepare it again")
        return cls(path=path, size=settings["size"], findings=findings, policy=policy, digest=facts["digest"],
                   source=Path(facts["source"]), studies=_read_studies(path / TABLE_NAME, findings),
                   fingerprint=read_json_object(path / "fingerprint.json", {"warnings": list}, remedy=AGAIN),
                   num_rejected=facts["num_rejected"],
                   rejected=Rejected.of_folder(path, facts),
                   sources=read_record(tuple[Origin, ...], facts.get("sources", ()), what="sources", where=path / FACTS_NAME, remedy=AGAIN))

    def images(self, split: str | None = None, *, size: int | None = None, masks: bool = False) -> ImageSet:
        """The images of one split, or of all, at `size` pixels (the prepared size by default).

        Smaller sizes are means over square blocks, so they must divide the prepared size; else `InputError`. With `masks`, the
        masks and the lesions of the images are read from the source, in `mask_classes`; `InputError` where a file does not fit.

        >>> train = Prepared.load("prepared").images("train", size=64)  # doctest: +SKIP
        """
        if split is not None and split not in SPLITS:
            raise UsageError(f"there is no split '{split}'; choose from: {', '.join(SPLITS)}")
        size = size or self.size
        if self.size % size:
            sizes = ", ".join(str(self.size // part) for part in (1, 2, 4, 8) if self.size % part == 0)
            raise InputError(f"images of {self.size} pixels cannot become {size}", file=self.path,
                             remedy=f"use {sizes}, or prepare the dataset again with size {size}")
        rows = [row for row, study in enumerate(self.studies) if split is None or study.split == split]
        stored = np.load(self.path / "images.npy", mmap_mode="r")
        images = _block_means(stored, rows, self.size // size)
        image_set = _images(images, [self.studies[row] for row in rows], self.findings, self.policy)
        if not masks:
            return image_set
        return _with_masks(image_set, self.source, classes=self.mask_classes(), table=self.path / TABLE_NAME,
                           rows=[row + 2 for row in rows],
                           blocks=self.size // size)

    def mask_classes(self) -> tuple[str, ...]:
        """Names of the masks of `images`: those that training images have, whatever split is asked for."""
        return mask_classes([study for study in self.studies if study.split == "train"], self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Where it is, what is in it and what was rejected, JSON-ready."""
        images = {split: sum(study.split == split for study in self.studies) for split in SPLITS}
        return {"prepared": str(self.path), "images": len(self), "size": self.size, "splits": images, "findings": list(self.findings),
                "digest": self.digest, "rejected": self.rejected.to_dict(), "warnings": list(self.fingerprint["warnings"])}

    def summary(self) -> str:
        """A few lines for people: images and patients by split, rejects, warnings."""
        lines = [f"{self.path}: {len(self)} images of {self.size} x {self.size} pixels, {self.num_rejected} rejected"]
        for split in SPLITS:
            chosen = [study.patient_id for study in self.studies if study.split == split]
            lines.append(f"  {split:<5} {len(chosen):>6} images of {len(set(chosen))} patients")
        lines += [f"  warning: {warning}" for warning in self.fingerprint["warnings"]]
        return "\n".join([*lines, f"  rejected: {self.rejected}"])


def prepare_dataset(
    dataset: Dataset, out: str | Path, *, size: int = 256, fractions: Sequence[float] = DEFAULT_FRACTIONS, seed: int = 0,
    images_per_patient: int = 5, policy: LabelPolicy | None = None, max_pixels: int = MAX_PIXELS,
    progress: Progress = quiet,
) -> Prepared:
    """Decode, check, split by patient and cache `dataset` in the folder `out`, whole or not at all.

    Rejected, each with its row, reason and remedy in `rejects.csv`: what cannot be decoded, images of one grey value, second
    copies of an image (a copy under another patient would leak over the split), and training images beyond `images_per_patient`.
    A folder that was made from the same table, files (by size and time of change, masks too) and arguments is used again; any other
    one that is not empty is refused with `InputError`.

    >>> prepared = prepare_dataset(read_dataset("images"), "prepared", size=64)  # doctest: +SKIP
    """
    out, policy = Path(out), policy or LabelPolicy()
    if not SIZES_PX[0] <= size <= SIZES_PX[1]:
        raise UsageError(f"images are prepared at {SIZES_PX[0]} to {SIZES_PX[1]} pixels, not {size}")
    settings = _Settings(size=size, fractions=tuple(fractions), seed=seed, images_per_patient=images_per_patient, policy=policy,
                         max_pixels=max_pixels)
    # Before the slow part, and with the row numbers of the whole table: a wrong split must not cost an hour of decoding.
    settings.split(dataset.studies, file=dataset.path / TABLE_NAME)
    inputs = _inputs(dataset, settings)
    duplicate = _unclaimed_duplicate(out, dataset, settings)
    formerly = replace(dataset, studies=tuple(as_formerly(study) for study in dataset.studies))

    def former(noted: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**noted, "labels": inputs["labels"]} if noted.get("labels") == _inputs(formerly, settings)["labels"] else noted

    with claimed(out, kind="a prepared folder", inputs=inputs, take_over=duplicate, former=former) as folder:
        if duplicate:
            folder.finish()
        elif not folder.done:
            _build(dataset, folder.work, settings, progress=progress)
            folder.deliver(last=("prepared.json",))
    return Prepared.load(out)


def load_images(
    dataset: Dataset, *, size: int, findings: Sequence[str] | None = None, policy: LabelPolicy | None = None, max_pixels: int = MAX_PIXELS,
    masks: bool = False, classes: Sequence[str] | None = None, progress: Progress = quiet,
) -> ImageSet:
    """Decode a whole dataset folder into memory, whatever its splits; `findings` default to those of the dataset.

    With `masks`, also its masks and lesions; `classes` are their names, by default all that the dataset has.
    Raises `InputError` at the first image or mask that cannot be decoded.

    >>> synthetic = load_images(read_dataset("synthetic"), size=64, findings=prepared.findings)  # doctest: +SKIP
    """
    images = np.zeros((len(dataset), size, size), dtype=np.uint16)
    bits = 8
    for row, image in enumerate(decode_images(_paths(dataset), size=size, max_pixels=max_pixels)):
        if image.pixels is None:
            raise InputError(f"'{dataset.studies[row].file_name}' {image.reason}", file=dataset.path / TABLE_NAME, row=row + 2,
                             remedy=image.remedy)
        images[row], bits = image.pixels, max(bits, image.bits)
        progress((row + 1) / len(dataset), f"reading {row + 1} of {len(dataset)} images")
    image_set = _images(_narrow(images, bits), dataset.studies, tuple(findings or dataset.findings), policy or LabelPolicy())
    if not masks:
        return image_set
    classes = mask_classes(image_set.studies, image_set.findings) if classes is None else classes
    return _with_masks(image_set, dataset.path, classes=classes, table=dataset.path / TABLE_NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    """The arguments of `prepare_dataset` that decide what is in the folder."""

    size: int
    fractions: tuple[float, ...]
    seed: int
    images_per_patient: int
    policy: LabelPolicy
    max_pixels: int

    def split(self, studies: Sequence[Study], *, file: Path | None = None) -> list[str]:
        return split_patients(studies, fractions=self.fractions, seed=self.seed, label_policy=self.policy,
                              images_per_patient=self.images_per_patient, file=file)


def _build(
    dataset: Dataset, partial: Path, settings: _Settings, *, progress: Progress
) -> None:
    """Fill the folder `partial`."""
    decoded, scratch = _decode(dataset, partial, settings, progress=portion(progress, 0, 0.95))
    rejects = _rejects(dataset, decoded)
    rows = [row for row in range(len(dataset)) if row not in rejects]
    if not rows:
        raise InputError("no image can be used", file=dataset.path, remedy=f"the first one {rejects[0][0]}: {rejects[0][1]}")
    accepted = [dataset.studies[row] for row in rows]
    splits = settings.split(accepted)
    keep = cap_images(accepted, splits, images_per_patient=settings.images_per_patient, seed=settings.seed, label_policy=settings.policy)
    too_many = (f"is beyond {settings.images_per_patient} training images of one patient", "raise images_per_patient to keep it")
    rejects |= {row: (*too_many, False) for row, kept in zip(rows, keep, strict=True) if not kept}
    studies = [replace(study, split=split) for study, split, kept in zip(accepted, splits, keep, strict=True) if kept]
    rows = [row for row, kept in zip(rows, keep, strict=True) if kept]

    _write_images(partial, scratch, rows, bits=max(decoded[row].bits for row in rows))
    write_table(partial, studies)
    _write_rejects(partial, dataset, rejects)
    facts = fingerprint(studies, dataset.findings, policy=settings.policy, image_sizes=[decoded[row].shape for row in rows],
                        bit_depths=[decoded[row].bits for row in rows])
    facts |= {"num_rejected": len(rejects), "notes": [asdict(note) for note in dataset.notes]}
    write_json(partial / "fingerprint.json", facts)
    write_json(partial / "prepared.json", {
        "schema": SCHEMA, "name": dataset.name, "settings": asdict(settings), "findings": dataset.findings,
        "settings_digest": _settings_digest(asdict(settings)),
        "digest": _digest(partial, dataset.findings, settings.policy), "num_images": len(rows), "num_rejected": len(rejects),
        FACT: _count_rejects(rejects, num_accepted=len(rows)).to_facts(),
        "source": str(dataset.path.resolve()), "source_digest": digest_of(dataset),
        "sources": [origin.to_dict() for origin in origins_of(dataset)]})
    progress(1.0, f"{len(rows)} images prepared")


_Reject = tuple[str, str, bool]
"""why an image is rejected, what to do, and whether an image is lost by it"""


def _count_rejects(rejects: Mapping[int, _Reject], *, num_accepted: int) -> Rejected:
    lost, others = ([reason for reason, _, is_lost in rejects.values() if is_lost is wanted] for wanted in (True, False))
    return count_reasons(lost, others, accepted=num_accepted)


def _images(
    images: NDArray[np.uint8] | NDArray[np.uint16], studies: Sequence[Study], findings: tuple[str, ...], policy: LabelPolicy
) -> ImageSet:
    labels = label_matrix(studies, findings, policy=policy)
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(labels.tobytes())
    return ImageSet(pixels=images, studies=tuple(studies), findings=findings, labels=labels, digest=digest.hexdigest())


def _with_masks(
    images: ImageSet, folder: Path, *, classes: Sequence[str], table: Path, rows: Sequence[int] | None = None, blocks: int = 1
) -> ImageSet:
    masks, lesions = load_lesions(images.studies, folder, size=images.pixels.shape[1], classes=classes, labels=images.labels,
                                  findings=images.findings, table=table, rows=rows, blocks=blocks)
    return replace(images, masks=masks if masks.names else None, lesions=lesion_matrix(lesions, images.findings))


def _paths(dataset: Dataset) -> list[Path]:
    return [dataset.path / study.file_name for study in dataset.studies]


def _decode(
    dataset: Dataset, partial: Path, settings: _Settings, *, progress: Progress
) -> tuple[list[Decoded], NDArray[np.uint16]]:
    """All images into one scratch array of 16 bits on disk, because only the last image tells whether 8 are enough."""
    scratch = _on_disk(partial / "scratch.npy", np.uint16, (len(dataset), settings.size, settings.size))
    decoded = []
    for row, image in enumerate(decode_images(_paths(dataset), size=settings.size, max_pixels=settings.max_pixels)):
        if image.pixels is not None:
            scratch[row] = image.pixels
        decoded.append(replace(image, pixels=None))
        progress((row + 1) / len(dataset), f"{row + 1} of {len(dataset)} images")
    return decoded, scratch


def _rejects(dataset: Dataset, decoded: Sequence[Decoded]) -> dict[int, _Reject]:
    """By row, why it is rejected: images that cannot be decoded, have one grey value or are second copies."""
    rejects: dict[int, _Reject] = {}
    first: dict[str, int] = {}
    for row, image in enumerate(decoded):
        if image.reason:
            rejects[row] = (image.reason, image.remedy, True)
            continue
        duplicate = first.setdefault(image.digest, row)
        if duplicate != row:
            same = dataset.studies[duplicate].patient_id == dataset.studies[row].patient_id
            reason = f"has the same pixels as '{dataset.studies[duplicate].file_name}' in row {duplicate + 2}"
            rejects[row] = (reason + ("" if same else ", which is said to be another patient"),
                            "delete one of the two" if same else "find out whose image it is and delete the other", not same)
    return rejects


def _narrow(images: NDArray[np.uint16], bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """8-bit images were widened by 257, which is undone without loss."""
    return (images // 257).astype(np.uint8) if bits == 8 else images


def _write_images(partial: Path, scratch: NDArray[np.uint16], rows: Sequence[int], *, bits: int) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    images = _on_disk(partial / "images.npy", dtype, (len(rows), *scratch.shape[1:]))
    for position, row in enumerate(rows):
        images[position] = _narrow(scratch[row], bits)
    images.flush()
    (partial / "scratch.npy").unlink()


def _on_disk(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array in a file whose whole space is taken from the disk already."""
    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    reserve(path, path.stat().st_size)
    return array


def _block_means(stored: NDArray[Any], rows: Sequence[int], factor: int) -> NDArray[Any]:
    """The images at `rows`, each block of `factor` x `factor` pixels averaged and rounded, same dtype."""
    side = stored.shape[1] // factor
    images = np.empty((len(rows), side, side), dtype=stored.dtype)
    for position, row in enumerate(rows):
        image = stored[row]
        images[position] = image if factor == 1 else np.rint(image.reshape(side, factor, side, factor).mean(axis=(1, 3)))
    return images


def _write_rejects(partial: Path, dataset: Dataset, rejects: Mapping[int, _Reject]) -> None:
    rows = [{"file": dataset.studies[row].file_name, "row": str(row + 2), "reason": reason, "remedy": remedy}
            for row, (reason, remedy, _) in sorted(rejects.items())]
    (partial / "rejects.csv").write_bytes(table_bytes(("file", "row", "reason", "remedy"), rows))


def _inputs(dataset: Dataset, settings: _Settings) -> dict[str, Any]:
    """All that decides what a prepared folder contains; files by size and time of change, so that asking is quick."""
    rows, images, masks = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for study in dataset.studies:
        rows.update(repr(study).encode())
        for number, name in enumerate(files_of(study)):
            (masks if number else images).update(f"{name}\0{file_stamp(dataset.path / name)}\0".encode("utf-8", "surrogateescape"))
    place = hashlib.sha256(os.fsencode(dataset.path.resolve())).hexdigest()  # a path may name a patient
    return {"place of the data set": place, "labels": rows.hexdigest(), "findings": dataset.findings, "images": images.hexdigest(),
            "masks": masks.hexdigest(), **asdict(settings)}


def _unclaimed_duplicate(out: Path, dataset: Dataset, settings: _Settings) -> bool:
    """Whether `out` is a prepared folder of the same data and settings that was made before folders had claims."""
    if not (out / "prepared.json").is_file() or (out / CLAIM_NAME).exists():
        return False
    facts = _read_facts(out)
    asked = json.loads(json.dumps([asdict(settings), dataset.findings]))
    return [with_present_claims(facts["settings"]), facts["findings"]] == asked and bool(facts["source_digest"] == digest_of(dataset))


def _settings_digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _digest(folder: Path, findings: Sequence[str], policy: LabelPolicy) -> str:
    digest = hashlib.sha256(json.dumps([list(findings), asdict(policy)]).encode())
    for name in ("images.npy", TABLE_NAME):
        try:
            with (folder / name).open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        except FileNotFoundError:
            raise InputError(f"{name} is missing", file=folder, remedy="delete the folder and prepare it again") from None
    return digest.hexdigest()


def _read_facts(path: Path) -> dict[str, Any]:
    if not (path / FACTS_NAME).is_file():
        raise InputError("this is not a prepared folder", file=path, remedy="`synthorax prepare` makes one")
    facts = read_json_object(path / FACTS_NAME, {"schema": str}, remedy=AGAIN)
    if facts["schema"] == VOLUMES_SCHEMA:
        raise InputError("is a prepared folder of lesions, not of images", file=path, remedy="`synthorax prepare` makes one of images")
    if facts["schema"] != SCHEMA:
        raise InputError(f"the folder is not of schema {SCHEMA}", file=path, remedy="delete it and prepare it again")
    for key, kind in FACTS.items():
        check_kind(facts, key, kind, where=path / FACTS_NAME, remedy=AGAIN)
    return facts


def _read_studies(path: Path, findings: Sequence[str]) -> tuple[Study, ...]:
    """The table of a prepared folder; its digest was checked, so only the types have to be restored."""
    studies = []
    for row in read_table(path).rows:
        cells = dict(row.cells)
        masks = {name: tuple(cells.pop(name).split("|")) for name in list(cells) if name.endswith(("_mask", "_masks")) and cells[name]}
        plain = {name: cells.pop(name, "") for name in ("file_name", "study_id", "patient_id", "site", "view", "sex", "text",
                                                        "lesion_label", "split", "origin")}
        age, stated = cells.pop("age_years"), cells.pop("findings")
        extra = {name: value for name, value in cells.items() if not name.endswith(("_mask", "_masks"))}
        studies.append(Study(**plain, age_years=float(age) if age else math.nan, masks=masks, extra=extra,
                             labels=parse_findings(stated, allow=findings, file=path, row=row.number)))
    return tuple(studies)
