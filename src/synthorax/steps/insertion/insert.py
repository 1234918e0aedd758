"""Insert: images without a finding in, a dataset folder of the same images with an inserted lesion out; a stopped call goes on.

The folder says everywhere that its images are derived from patients. Which image each was made from stands in `pair_of` of the table, and
with its path, digest and the whole record in `private_manifest.jsonl`, which only its owner can read and which is never exported.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.dataset import TABLE_NAME, Dataset, as_formerly, read_dataset, write_dataset
from synthorax.data.derived import COLUMN, HOST_COLUMNS, MANIFEST, OWNER_ONLY, PAIR_COLUMN, provenance_of, read_manifest, write_manifest
from synthorax.data.lesions import UNSIDED, lesions_of, with_lesions
from synthorax.data.masks import mask_pixels
from synthorax.data.pixels import write_png
from synthorax.data.tables import table_bytes
from synthorax.data.vocabulary import NO_FINDING
from synthorax.editing.insertion.insertion import Insertion
from synthorax.errors import InputError, SynthoraxError
from synthorax.files import safe_name, sha256, write_atomic
from synthorax.folders import claimed, file_stamp
from synthorax.judges.lungs import LungMasks
from synthorax.progress import Progress, quiet
from synthorax.rng import derive
from synthorax.steps.insertion.acceptance import MOST_BEYOND, MOST_BEYOND_BY_HAND, check_place, check_side, refusal, within_rim
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import (
    FILE_COLUMNS,
    ROW_COLUMNS,
    Dropped,
    Host,
    Hosts,
    choose,
    commonest,
    dropped,
    images,
    read_host,
    summary,
)
from synthorax.steps.insertion.lesions import FindLungs, LesionMaker, identity, lesion_seed
from synthorax.steps.insertion.spacing import estimated, spacing_of
from synthorax.types import Lesion, Stated, Study

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
KEPT_COLUMNS = ("spacing_mm", "modality", "licence")
"""of the host's own columns; others may name the patient"""
Guard = Callable[[Pixels, Pixels, NDArray[np.bool_]], str | None]
DROPPED_NAME = "dropped.csv"
DROPPED_FILES_NAME = "private_dropped.csv"
"""names the files that dropped.csv only numbers, since names of DICOM files are often identifiers; as private as the manifest"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inserted:
    """What an insertion left: the dataset folder, and the images into which nothing was inserted."""

    dataset: Dataset
    finding: str
    dropped: Mapping[str, int]
    """reason -> images"""
    estimated_spacing: int
    """images whose pixel spacing was estimated"""
    num_derived: int
    """images that show a patient; the others were generated"""

    def __len__(self) -> int:
        return len(self.dataset)

    def __str__(self) -> str:
        one = len(self) == 1
        source = ("derived from a patient's image" if self.num_derived else "generated and of no patient") if one else \
            ("each derived from a patient's image" if self.num_derived else "all generated and of no patient")
        lines = [f"{self.dataset.path}: {images(len(self))} with an inserted {self.finding}, {source}"]
        if self.estimated_spacing:
            lines.append(f"the pixel spacing of {images(self.estimated_spacing)} was estimated from the lungs")
        if left_out := sum(self.dropped.values()):
            named = f"; {DROPPED_FILES_NAME} names the files" if (self.dataset.path / DROPPED_FILES_NAME).exists() else ""
            were = "was" if left_out == 1 else "were"
            lines.append(f"{images(left_out)} {were} left out, see {DROPPED_NAME}: {commonest(self.dropped)}{named}")
        return "\n  ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Paths and counts, JSON-ready."""
        return {"dataset": str(self.dataset.path), "images": len(self), "finding": self.finding, "dropped": dict(self.dropped),
                "estimated_spacing": self.estimated_spacing, "derived_from_patient": self.num_derived > 0}


def insert_images(hosts: Hosts, maker: LesionMaker, *, out: Path, seed: int, find_lungs: FindLungs, lungs_digest: str = "",
                  guard: Guard | None = None, progress: Progress = quiet) -> Inserted:
    """Insert one lesion into each chosen host; images and masks as PNG of the host's size and bits.

    `guard` says of an image before and after, and of the region that may differ, what of the anatomy is not kept (None: not checked). A row
    depends on its seed, its host and the settings, and not on the other rows. Each image is accepted, or made again with the next
    seed, or listed in dropped.csv. Raises InputError where `out` holds something else, or where not one image could be made.
    """
    config = maker.config
    chosen = choose(hosts, num=config.num, seed=seed)
    inputs = _inputs(chosen, maker, seed=seed, lungs_digest=lungs_digest)
    former_hosts = _hosts_digest([replace(host, study=as_formerly(host.study)) for host in chosen])

    def former(noted: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**noted, "hosts": inputs["hosts"]} if noted.get("hosts") == former_hosts else noted

    with claimed(out, kind="an insertion", inputs=inputs, former=former):
        for note in hosts.notes:
            print(f"  note: {note}", file=sys.stderr)
        lines = {line["number"]: line for line in read_manifest(out) if _is_whole(line, out)}
        if lines:
            write_manifest(out, [lines[number] for number in sorted(lines)])
        for number, host in enumerate(chosen):
            if number not in lines:
                maker.prepare(seed, number)
                lines[number] = _one(number, host, hosts, maker, out=out, seed=seed, find_lungs=find_lungs, guard=guard)
                _append(out / MANIFEST, lines[number])
            progress((number + 1) / len(chosen), f"{number + 1} of {images(len(chosen))}")
        done = [lines[number] for number in sorted(lines)]
        failed = [Dropped(**line["dropped"]) for line in done if "dropped" in line]
        if len(failed) == len(done):
            first = failed[0]
            (out / MANIFEST).unlink()  # so that the folder is as it was
            raise InputError(f"nothing could be inserted into {_any_of(len(done))}; '{first.host}': {first.reason}",
                             file=Path(first.file) if first.file else hosts.folder / TABLE_NAME if first.row else hosts.folder,
                             row=first.row, remedy=first.remedy)
        if failed:
            print(f"  note: {len(failed)} of {images(len(done))} could not be made, see {DROPPED_NAME}; '{failed[0].host}': "
                  f"{failed[0].reason}", file=sys.stderr)
        _finish(hosts, maker, done, [*hosts.dropped, *failed], out=out, seed=seed)
    made = [line["study"]["extra"] for line in done if "study" in line]
    _tell_spacing(made)
    return Inserted(dataset=read_dataset(out), finding=maker.finding, dropped=summary([*hosts.dropped, *failed]),
                    estimated_spacing=sum(extra["spacing_from"] == "estimated" for extra in made),
                    num_derived=sum(bool(extra.get(COLUMN)) for extra in made))


def _any_of(count: int) -> str:
    return "the one image" if count == 1 else f"any of the {count} images"


def _tell_spacing(made: Sequence[Mapping[str, str]]) -> None:
    """Say of how many images the spacing was estimated, for whom their lungs were taken, and whose tags were not used."""
    guessed = [extra for extra in made if extra["spacing_from"] == "estimated"]
    if guessed:
        children = sum("those of a child" in extra["host_note"] for extra in guessed)
        silent = sum("no age is stated" in extra["host_note"] for extra in guessed)
        whom = [f"{count} {words}" for count, words in (
            (children, "as a child's of its age"), (silent, "as an adult's because no age is stated"),
            (len(guessed) - children - silent, "as an adult's")) if count]
        print(f"  note: the pixel spacing of {images(len(guessed))} is not stated and was estimated from the lungs, +/- 10 % "
              f"({', '.join(whom)}); --spacing states it", file=sys.stderr)
    wrong = [extra["host_note"] for extra in made if "it cannot be right" in extra["host_note"]]
    if wrong:
        print(f"  note: the pixel spacing that {images(len(wrong))} {'states' if len(wrong) == 1 else 'state'} was not used; the first: "
              f"{wrong[0]}", file=sys.stderr)


def _one(number: int, host: Host, hosts: Hosts, maker: LesionMaker, *, out: Path, seed: int, find_lungs: FindLungs,
         guard: Guard | None) -> dict[str, Any]:
    """Make one image and write its files; returns its line of the private manifest."""
    line: dict[str, Any] = {"number": number, "pair_of": host.reference, "host": str(host.path.resolve()), "host_sha256": sha256(host.path)}
    try:
        pixels, note, stored = read_host(host)
        spacing, spacing_from, wrong = spacing_of(host, pixels.shape, given=maker.config.spacing_mm)
        lungs = _lungs(host, hosts.folder, pixels, find_lungs)
        whose = ""
        if spacing is None:
            spacing, whose = estimated(lungs.both[0], host)
        note = "; ".join(part for part in (note, wrong, whose) if part)
        mask = _mask(maker.config, pixels, lungs)
        made, own_seed, attempts = _accepted(pixels, lungs, maker, spacing_mm=spacing, mask=mask, study=host.study,
                                             seed=lesion_seed(seed, maker.finding, number), guard=guard)
    except SynthoraxError as error:
        return line | {"dropped": asdict(dropped(host, error))}
    study = _study(number, host, hosts, maker, made, lungs, seed=own_seed, spacing_from=spacing_from or "estimated", note=note)
    study = _with_masks(replace(study, extra={**study.extra, **stored}), host, hosts, made, out=out)
    write_png(out / study.file_name, made.pixels, provenance=provenance_of(study))
    return line | {"file_name": study.file_name, "seed": own_seed, "attempts": attempts, "spacing": spacing_from or "estimated",
                   "record": dict(made.record), "study": _as_json(study)}


def _accepted(pixels: Pixels, lungs: LungMasks, maker: LesionMaker, *, spacing_mm: float | None, mask: NDArray[np.bool_] | None,
              study: Study, seed: int, guard: Guard | None) -> tuple[Insertion, int, int]:
    """The first insertion that is accepted, its seed and its number of attempts; InputError with the last reason where none is."""
    problem = SynthoraxError("was not tried")
    guard = guard or (lambda before, after, region: None)
    for attempt in range(maker.config.tries):
        own = seed if attempt == 0 else derive(seed, "again", attempt)
        try:
            made = maker.insert(pixels, lungs, spacing_mm=spacing_mm, mask=mask, seed=own, study=study)
        except SynthoraxError as error:
            problem = error
            continue
        reason = refusal(pixels, made, lungs, most_beyond=MOST_BEYOND if mask is None else MOST_BEYOND_BY_HAND)
        broken = None if reason else guard(pixels, made.pixels, within_rim(made))
        if not (reason or broken):
            return replace(made, record={**made.record, "anatomy": "not checked" if broken is None else "kept"}), own, attempt + 1
        reason = reason or f"the anatomy is not kept: {broken}"
        remedy = "raise --tries, or ask for another size or place" if mask is None else "draw the mask elsewhere, or raise --tries"
        problem = InputError(f"{reason} ({attempt + 1} attempts)", remedy=remedy)
    raise problem


def _lungs(host: Host, folder: Path, pixels: Pixels, find_lungs: FindLungs) -> LungMasks:
    """Lungs and heart of the host: from the masks that its row names, else as they are found."""
    drawn = {name: np.zeros(pixels.shape, dtype=np.bool_) for name in ("lung", "heart")}
    for name, both in drawn.items():
        for path in host.study.masks.get(f"{name}_mask", host.study.masks.get(f"{name}_masks", ())):
            mask = mask_pixels(folder / path) > 0
            if mask.shape != pixels.shape:
                raise InputError(f"its {name}_mask is {mask.shape[1]} x {mask.shape[0]} pixels and the image "
                                 f"{pixels.shape[1]} x {pixels.shape[0]}", remedy="save the mask at the size of the image")
            both |= mask
    if not drawn["lung"].any():
        return find_lungs(pixels[None])
    middle = round(float(np.nonzero(drawn["lung"])[1].mean()))
    right, left = drawn["lung"].copy(), drawn["lung"].copy()
    right[:, middle:] = left[:, :middle] = False  # the patient's right is on the left of the image
    return LungMasks(right=right[None], left=left[None], heart=drawn["heart"][None])


def _mask(config: InsertConfig, pixels: Pixels, lungs: LungMasks) -> NDArray[np.bool_] | None:
    """The user's mask for this host, checked."""
    if config.mask is None:
        return None
    mask = mask_pixels(config.mask) > 0
    if mask.shape != pixels.shape:
        raise InputError(f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels and the image {pixels.shape[1]} x {pixels.shape[0]}",
                         remedy="give a mask of the image's size, and images of one size")
    if not mask.any():
        raise InputError("the mask is empty", remedy="draw white where the lesion goes")
    check_place(mask, lungs)
    check_side(mask, lungs, config.side)
    return mask


def _study(number: int, host: Host, hosts: Hosts, maker: LesionMaker, made: Insertion, lungs: LungMasks, *, seed: int, spacing_from: str,
           note: str) -> Study:
    """The row of the image: all that is known of its host's patient, the new finding, and how it was made."""
    config, record, labels = maker.config, made.record, dict(host.study.labels)
    if labels.pop(NO_FINDING, None) is Stated.PRESENT:
        labels = {name: Stated.ABSENT for name in hosts.findings if name not in (NO_FINDING, maker.finding)} | labels
    labels[maker.finding] = Stated.PRESENT
    asked = {item.name: value for item in fields(config) if item.name in ("size", "diameter_mm", "side", "severity")
             and (value := getattr(config, item.name)) != "" and not (isinstance(value, float) and math.isnan(value))}
    extra = {name: host.study.extra[name] for name in KEPT_COLUMNS if host.study.extra.get(name)
             and (name != "spacing_mm" or spacing_from == "stated")}
    generated = host.study.origin != "real"
    made_by = {name: host.study.extra.get(name.removeprefix("host_"), "") for name in HOST_COLUMNS}
    mark = {name: cell for name, cell in made_by.items() if cell} if generated else {COLUMN: "yes"}
    extra |= {**mark, PAIR_COLUMN: host.reference, "method": str(record["method"]), **maker.facts, "seed": str(seed)}
    numbers = ("diameter_mm", "spacing_mm", "seam", "contrast_to_clutter", "visibility")
    extra |= {name: f"{record[name]:.6g}" for name in numbers if record.get(name)}
    extra |= {"anatomy": str(record.get("anatomy", ""))}
    extra |= {"spacing_from": spacing_from, "rim_px": str(record.get("rim_px", 0)), "host_note": note,
              "condition": json.dumps({"labels": {maker.finding: 1}, **asked}, sort_keys=True)}
    name = f"synthetic-{'inserted' if generated else 'derived'}-{number:06d}"
    masks = {column: paths for column, paths in host.study.masks.items() if not column.startswith("lesion_")}
    study = replace(host.study, file_name=f"images/{name}.png", study_id=name, labels=labels, text="", lesion_label="", split="train",
                    origin="synthetic", masks=masks, extra=extra)
    return with_lesions(study, [*lesions_of(host.study), _lesion(maker.finding, made.mask > 0, lungs, config)])


def _lesion(finding: str, mask: NDArray[np.bool_], lungs: LungMasks, config: InsertConfig) -> Lesion:
    """The lesion as the table has it, measured on its mask [H, W]; its file comes later."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    box = (columns.min() / width, rows.min() / height, (columns.max() + 1 - columns.min()) / width, (rows.max() + 1 - rows.min()) / height)
    right, left = (int((mask & lung[0]).sum()) for lung in (lungs.right, lungs.left))
    side = "" if finding in UNSIDED or right == left else "right" if right > left else "left"
    return Lesion(finding=finding, side=side, size=min(1.0, 2 * math.sqrt(mask.mean())), severity=config.severity,
                  x=float(columns.mean() + 0.5) / width, y=float(rows.mean() + 0.5) / height,
                  box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])), mask=".")


def _with_masks(study: Study, host: Host, hosts: Hosts, made: Insertion, *, out: Path) -> Study:
    """The row with its masks in `out`: those of the host, and that of the new lesion last."""
    stem = Path(study.file_name).stem

    def placed(kind: str, number: int, pixels: Pixels) -> str:
        target = f"masks/{safe_name(kind)}/{stem}{f'-{number}' if number else ''}.png"
        write_png(out / target, pixels)
        return target

    masks = {}
    for column, paths in study.masks.items():
        kind = column.removesuffix("s").removesuffix("_mask")
        if kind == "lesion":
            *earlier, _ = paths
            masks[column] = (*(path and placed(kind, number, mask_pixels(hosts.folder / path)) for number, path in enumerate(earlier, 1)),
                             placed(kind, 0, made.mask))
        else:
            masks[column] = tuple(path and placed(kind, number, mask_pixels(hosts.folder / path)) for number, path in enumerate(paths))
    return replace(study, masks=masks)


def _finish(hosts: Hosts, maker: LesionMaker, done: Sequence[Mapping[str, Any]], left_out: Sequence[Dropped], *, out: Path,
            seed: int) -> None:
    """Write the manifest in its order, dropped.csv, dataset.json and, last of all, metadata.csv."""
    write_manifest(out, done)
    write_atomic(out / DROPPED_NAME, table_bytes(ROW_COLUMNS, [one.cells() for one in left_out]))
    if hidden := [one.file_cells() for one in left_out if one.file]:
        write_atomic(out / DROPPED_FILES_NAME, table_bytes(FILE_COLUMNS, hidden), mode=OWNER_ONLY)
    facts = {"labels": [name for name in (*hosts.findings, maker.finding) if name != NO_FINDING], "inserted": maker.finding, "seed": seed,
             "settings": _settings(maker.config), **maker.facts, **({"licence": hosts.licence} if hosts.licence else {})}
    studies = [_from_json(line["study"]) for line in done if "study" in line]
    write_dataset(out, studies, name=out.resolve().name, synthetic=True, facts=facts)


def _inputs(chosen: Sequence[Host], maker: LesionMaker, *, seed: int, lungs_digest: str) -> dict[str, Any]:
    """All that the images depend on, for the claim of their folder; no path and no name of a host."""
    return {**identity(maker), "settings": _settings(maker.config), "seed": seed, "hosts": _hosts_digest(chosen),
            "mask": maker.config.mask and sha256(Path(maker.config.mask)),
            "lungs": lungs_digest}


def _hosts_digest(chosen: Sequence[Host]) -> str:
    return hashlib.sha256(repr([(file_stamp(host.path), repr(host.study)) for host in chosen]).encode()).hexdigest()


def _settings(config: InsertConfig) -> dict[str, Any]:
    """The settings without paths, JSON-ready."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(config).items()
            if name not in ("mask", "layouts")}


def _is_whole(line: Mapping[str, Any], out: Path) -> bool:
    """Whether a line of the manifest stands for work that is all there."""
    if not isinstance(line.get("number"), int):
        return False
    return "dropped" in line or (isinstance(line.get("study"), dict) and (out / str(line.get("file_name"))).is_file())


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to the private manifest and flush it: from then on the image counts as made."""
    with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, OWNER_ONLY)) as file:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _as_json(study: Study) -> dict[str, Any]:
    record = asdict(study)
    return record | {"labels": {name: stated.value for name, stated in study.labels.items()},
                     "age_years": None if math.isnan(study.age_years) else study.age_years}


def _from_json(record: Mapping[str, Any]) -> Study:
    age = record["age_years"]
    return Study(**{**record, "labels": {name: Stated(value) for name, value in record["labels"].items()},
                    "masks": {column: tuple(paths) for column, paths in record["masks"].items()},
                    "age_years": math.nan if age is None else float(age)})

