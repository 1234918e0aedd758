"""Images of the study of inserted lesions: read, folded by patient, inserted into and generated once, and kept as arrays."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from analytic_outlines import region  # beside this file
from numpy.typing import NDArray
from PIL import Image

import synthorax as sx
from synthorax.errors import SynthoraxError
from synthorax.judges.classifier import CLASSIC
from synthorax.judges.fitting import standardise, vary
from synthorax.judges.lungs import LungMasks, segment_lungs
from synthorax.judges.marks import LesionBoxes
from synthorax.options import Request
from synthorax.rng import derive
from synthorax.steps.insertion.acceptance import refusal
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.lesions import DIAMETERS_MM, lesion_maker

Array = NDArray[Any]
NO_BOX = (np.nan,) * 4
TRIES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """N images of one kind; a lesion, where it is known, is one box."""

    images: NDArray[np.uint8]
    """[N, S, S]"""
    lungs: NDArray[np.bool_]
    """[N, S, S]: where lesions are sought"""
    boxes: NDArray[np.float64]
    """[N, 4] left, top, width, height in pixels; NaN without a known lesion"""
    patients: Array
    """[N] of the patient, or of the host's; empty for generated images"""
    source: NDArray[np.intp]
    """[N] row of the image that this one was made from, in the cases that it was made from; -1 for none"""
    findings: Array
    """[N] joined by |"""
    views: Array
    """[N] PA or AP, empty where it is not known"""
    splits: Array
    """[N] of the patient in the training of the base model: train, val, test, or empty"""
    folds: NDArray[np.intp]
    """[N] in which the patient is tested; -1 for never"""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Array) -> Cases:
        """Some of the images."""
        return Cases(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def having(self, finding: str) -> NDArray[np.bool_]:
        """Which images show a finding, [N]."""
        return np.array([finding in text.split("|") for text in self.findings], dtype=np.bool_)

    def lesions(self, *, least_px: float = 1.0) -> LesionBoxes:
        """The known lesions, their sides at least `least_px` long."""
        rows = np.flatnonzero(~np.isnan(self.boxes[:, 0]))
        left, top, width, height = self.boxes[rows].T
        return LesionBoxes(image=rows, x=left + width / 2, y=top + height / 2, width=np.maximum(width, least_px),
                           height=np.maximum(height, least_px), outlined=np.ones(len(rows), np.bool_))

    def save(self, path: Path) -> None:
        """As .npz; arrays alone, no pickle."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{field.name: getattr(self, field.name) for field in fields(self)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cases:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as kept:
            return cls(**{field.name: kept[field.name] for field in fields(cls)})

    @classmethod
    def of(cls, images: Array, *, lungs: Array | None = None, boxes: Array | None = None, patients: Sequence[str] | Array | None = None,
           source: Array | None = None, findings: Sequence[str] | Array | None = None, views: Sequence[str] | Array | None = None,
           splits: Sequence[str] | Array | None = None, folds: Array | None = None) -> Cases:
        """Cases of which not everything is known."""
        num = len(images)

        def words(given: Sequence[str] | Array | None) -> Array:
            return np.array([""] * num if given is None else list(given), dtype=np.str_)

        return cls(images=images, lungs=np.ones(images.shape, np.bool_) if lungs is None else lungs, patients=words(patients),
                   boxes=np.full((num, 4), np.nan) if boxes is None else np.asarray(boxes, np.float64), findings=words(findings),
                   source=np.full(num, -1) if source is None else np.asarray(source), views=words(views), splits=words(splits),
                   folds=np.full(num, -1) if folds is None else np.asarray(folds))


def join(*parts: Cases) -> Cases:
    """All images of several sets, in this order."""
    return Cases(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Cases)})


def read_cases(folder: Path, *, base: Path | None = None, boxes: bool = False) -> Cases:
    """A dataset folder of 256 px images with the lungs that the lung model finds; splits are those of a base's prepared folder."""
    with (folder / "metadata.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["view"] in ("PA", "AP")]
    splits: dict[str, str] = {}
    if base is not None:
        with (base / "metadata.csv").open(encoding="utf-8") as table:
            splits = {row["patient_id"].rpartition(":")[2]: row["split"] for row in csv.DictReader(table)}
    images = np.stack([_grey(folder / row["file_name"]) for row in rows])
    found = [_box(_grey(folder / row["lesion_mask"])) if boxes and row["lesion_mask"] else NO_BOX for row in rows]
    return Cases.of(images, lungs=segment_lungs(images).both, boxes=np.array(found), patients=[row["patient_id"] for row in rows],
                    findings=[row["findings"] for row in rows], views=[row["view"] for row in rows],
                    splits=[splits.get(row["patient_id"], "") for row in rows])


def _grey(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("L"))


def _box(mask: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    rows, columns = (np.flatnonzero((mask > 127).any(axis=axis)) for axis in (1, 0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))


def subtleties(folder: Path) -> dict[str, int]:
    """Subtlety of the nodule of each JSRT patient, 1 to 5; 0 without a nodule."""
    with (folder / "metadata.csv").open(encoding="utf-8") as table:
        return {row["patient_id"]: int(json.loads(row["extra"]).get("sub") or 0) for row in csv.DictReader(table)}


def folds_of(cases: Cases, *, strata: Mapping[str, int], folds: int, seed: int) -> NDArray[np.intp]:
    """The fold in which each patient is tested, [N]: patients of a stratum are dealt out in random order."""
    rng = np.random.default_rng(seed)
    chosen: dict[str, int] = {}
    at = 0
    for stratum in sorted({strata[patient] for patient in cases.patients}):
        people = sorted({str(patient) for patient in cases.patients if strata[patient] == stratum})
        for person in rng.permutation(people):
            chosen[str(person)], at = at % folds, at + 1
    return np.array([chosen[patient] for patient in cases.patients])


def capped(cases: Cases, *, most: int, seed: int) -> NDArray[np.intp]:
    """Rows with at most so many images of a patient that state the same findings; which ones is random."""
    rng = np.random.default_rng(seed)
    so_far: dict[tuple[str, str], int] = {}
    kept = []
    for row in rng.permutation(len(cases)):
        name = str(cases.patients[row]), str(cases.findings[row])
        so_far[name] = so_far.get(name, 0) + 1
        if so_far[name] <= most:
            kept.append(int(row))
    return np.array(sorted(kept), dtype=np.intp)


def insert_into(hosts: Cases, *, finding: str, model: str | None, times: int, seed: int,
                analytic: bool = False) -> tuple[Cases, dict[str, str]]:
    """One lesion in each host, `times` times: by the shipped models, or with `analytic` shapes alone; and what made them.

    A host into which nothing can be inserted is left out. Severity of findings other than nodule is drawn from 0.2 to 0.8.
    """
    maker = lesion_maker(finding, InsertConfig() if not analytic or finding == "Nodule" else InsertConfig(mask=Path("formula")),
                         model="template" if analytic else model)
    if not analytic and finding in DIAMETERS_MM and maker.facts["model"] == "template":
        raise SystemExit("no model of nodules ships, so the arm 'inserted' would be the arm 'template'")
    lungs, rng = segment_lungs(hosts.images), np.random.default_rng(derive(seed, finding))
    made, boxes, sources = [], [], []
    for row in range(len(hosts)):
        own = LungMasks(right=lungs.right[row : row + 1], left=lungs.left[row : row + 1], heart=lungs.heart[row : row + 1])
        for turn in range(times):
            for attempt in range(TRIES):
                one, severity = derive(seed, finding, row, turn, attempt), float(rng.uniform(0.2, 0.8))
                changed = maker if finding == "Nodule" else replace(maker, config=replace(maker.config, severity=severity))
                try:
                    outline = region(finding, (own.both & ~own.heart)[0], rng) if analytic and finding != "Nodule" else None
                    inserted = changed.insert(hosts.images[row], own, spacing_mm=None, mask=outline, seed=one)
                except (SynthoraxError, ValueError):  # a formula may find no lung to draw in
                    continue
                if not refusal(hosts.images[row], inserted):
                    made.append(inserted.pixels)
                    boxes.append(inserted.box)
                    sources.append(row)
                    break
    at = np.array(sources, dtype=np.intp)
    return replace(hosts.take(at), images=np.stack(made), boxes=np.array(boxes, np.float64), source=at,
                   findings=np.array([finding] * len(made))), dict(maker.facts)


def generate(finding: str, *, model: str, num: int, places: Array | None, out: Path, seed: int) -> Cases:
    """Images of a finding by a shipped model, PA; with `places` [M, 3] (x, y, size in parts of the image) also where it lies.

    The box is what was asked for: no outline is drawn by the model.
    """
    requests = [(Request(finding=[finding], view="PA", num=num), NO_BOX)]
    if places is not None:
        each = num // len(places)
        requests = [(Request(finding=[finding], view="PA", num=each, box=[(finding, (x - size / 2, y - size / 2, size, size))]),
                     (256 * (x - size / 2), 256 * (y - size / 2), 256 * size, 256 * size)) for x, y, size in places.tolist()]
    images, boxes = [], []
    for number, (request, box) in enumerate(requests):
        folder = out / f"{finding.replace(' ', '-')}-{number:03d}"
        made = sx.generate(model, request, out=folder, seed=derive(seed, finding, number), threads=1)
        images += [_grey(folder / study.file_name) for study in made.studies]
        boxes += [box] * len(made.studies)
    return Cases.of(np.stack(images), lungs=segment_lungs(np.stack(images)).both, boxes=np.array(boxes), findings=[finding] * len(images),
                    views=["PA"] * len(images))


def varied(cases: Cases, *, times: int, seed: int) -> Cases:
    """Classic copies of each image: small rotation, scale, shift, contrast, brightness, noise; the box moves along. Never a flip."""
    generator = torch.Generator().manual_seed(seed)
    side, images, boxes, kept = cases.images.shape[1], [], [], []
    for row in range(len(cases)):
        area = np.zeros((1, side, side), np.float32)
        if not np.isnan(cases.boxes[row, 0]):
            left, top, width, height = cases.boxes[row].round().astype(int)
            area[0, top : top + height, left : left + width] = 1
        for _ in range(times):
            moved, place = vary(standardise(cases.images[row : row + 1], size=side), torch.from_numpy(area)[None], by=CLASSIC,
                                generator=generator)
            where = (place[0, 0] > 0.5).numpy()
            if area.any() and not where.any():  # moved off the image
                continue
            images.append((96 + 48 * moved[0, 0].numpy()).clip(0, 255).round().astype(np.uint8))
            boxes.append(_box(np.where(where, 255, 0).astype(np.uint8)) if area.any() else NO_BOX)
            kept.append(row)
    at = np.array(kept, dtype=np.intp)
    return replace(cases.take(at), images=np.stack(images), boxes=np.array(boxes, np.float64), source=at)
