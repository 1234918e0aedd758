"""From rows of a plan to the numbers that a model is conditioned on: every part checked against what the model knows, masks read from their
files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.data.attributes import MAX_AGE_YEARS
from synthorax.data.language import check_text
from synthorax.data.lesions import NUMBERS, SIDES, lesion_matrix, measure_lesion
from synthorax.data.masks import IN_BOX, INSIDE, box_mask, image_shape, is_organ, mask_class, read_mask
from synthorax.data.vocabulary import NO_FINDING, label_matrix
from synthorax.errors import InputError, SynthoraxError, UsageError, nearest
from synthorax.prompts import split_prompt
from synthorax.protocols import COARSE, EXACT, UNCERTAIN, VIEWS, Condition, ModelSpec, condition_of
from synthorax.steps.planning.row import PlanRow
from synthorax.types import LabelPolicy, Lesion, Stated, Study

STATED_ONLY = LabelPolicy(unlisted="not stated")


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """The row that a complaint is about; without a table it is a wrong call, not a wrong file."""

    file: Path | None = None
    row: int | None = None

    def refuse(self, problem: str, remedy: str) -> SynthoraxError:
        """The error to raise."""
        return UsageError(f"{problem}; {remedy}") if self.file is None else InputError(problem, file=self.file, row=self.row, remedy=remedy)


def check_row(row: PlanRow, spec: ModelSpec, *, file: Path | None = None) -> None:
    """Refuse, with the row's place, what cannot be or what the model is not conditioned on. Masks are not read: see `draw_masks`."""
    where = Where(file=file, row=row.number)
    _check_values(row, where)
    for part in row.parts():
        if part not in spec.conditions:
            accepted = f"it is conditioned on {', '.join(spec.conditions)}" if spec.conditions else "it takes no conditions at all"
            accepted += "; leave this out, or choose a model that is conditioned on it (`synthorax models` lists them)"
            raise where.refuse(f"the model is not conditioned on {part}, which {_source_of(part, row)} asks for", accepted)
    if "labels" in spec.conditions:
        for name in row.labels:
            if name not in spec.findings and name != NO_FINDING:
                raise where.refuse(f"the model was not trained on '{name}'", nearest(name, spec.findings))
    if row.site and row.site not in spec.sites:
        raise where.refuse(f"the model does not know the site '{row.site}'",
                           _choice(row.site, spec.sites) + ("" if file is None else "; plan with --for MODEL to leave such sites out"))
    for name in _classes(row, spec):
        if name not in spec.masks:
            raise where.refuse(f"the model is conditioned on no masks of '{name}'", _choice(name, spec.masks))
    for lesion in row.lesions:
        if "lesions" in spec.conditions and lesion.finding not in spec.findings:
            raise where.refuse(f"the model was not trained on '{lesion.finding}'", nearest(lesion.finding, spec.findings))
    if row.text.strip():
        for text, _ in split_prompt(row.text, file=file, row=row.number):
            check_text(text, file=file, row=row.number, extra_words=frozenset(spec.findings))


def _choice(name: str, choices: Sequence[str]) -> str:
    return nearest(name, choices) if choices else "it knows none"


def _check_values(row: PlanRow, where: Where) -> None:
    if not 0 <= row.seed < 2**63:
        raise where.refuse(f"seed {row.seed} is outside 0 to 2^63 - 1", "choose another one")
    if row.view not in ("", *VIEWS):
        raise where.refuse(f"unknown view '{row.view}'", nearest(row.view, VIEWS))
    if row.sex not in ("", "M", "F"):
        raise where.refuse(f"unknown sex '{row.sex}'", "write M or F")
    if not (math.isnan(row.age_years) or 0 <= row.age_years <= MAX_AGE_YEARS):
        raise where.refuse(f"age {row.age_years:g} is outside 0 to {MAX_AGE_YEARS} years", "leave it out if it does not matter")
    for lesion in row.lesions:
        _check_lesion(lesion, row, where)


def _check_lesion(lesion: Lesion, row: PlanRow, where: Where) -> None:
    if row.labels.get(lesion.finding) is Stated.ABSENT or row.labels.get(NO_FINDING) is Stated.PRESENT:
        raise where.refuse(f"a lesion of '{lesion.finding}' is asked for, which is stated absent", "leave out one of the two")
    if lesion.side not in ("", *SIDES):
        raise where.refuse(f"side '{lesion.side}' of {lesion.finding} is not the patient's left or right", nearest(lesion.side, SIDES))
    for name in NUMBERS:
        value = getattr(lesion, name)
        if not (math.isnan(value) or 0 <= value <= 1):
            raise where.refuse(f"{name} {value:g} of {lesion.finding} is outside 0 to 1", "give a part of the whole")
    if lesion.box is not None:
        left, top, width, height = lesion.box
        if not (min(left, top) >= 0 and min(width, height) > 0 and max(left + width, top + height) <= 1 + 1e-5):
            raise where.refuse(f"the box {','.join(f'{value:g}' for value in lesion.box)} of {lesion.finding} leaves the image",
                               "give left, top, width and height in parts of the image, from 0 to 1")


def _source_of(part: str, row: PlanRow) -> str:
    """What in the row made it state the part, in words of the table and the command line."""
    if part == "attributes":
        return "view, sex, age or site"
    if part == "mask":
        return "a box" if not row.masks and not any(lesion.mask for lesion in row.lesions) else "a mask"
    return {"labels": "a finding", "lesions": "side, size, severity or place", "text": "a text"}[part]


def _classes(row: PlanRow, spec: ModelSpec) -> tuple[str, ...]:
    """Classes of which the row has a mask or box: organs, then findings."""
    return (*row.masks, *(mask_class(lesion.finding, findings=spec.findings) for lesion in row.lesions
                          if lesion.mask or lesion.box is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnMasks:
    """The masks of one row as they were read, each [S, S] with the values of `types.Masks.pixels`."""

    organs: Mapping[str, NDArray[np.uint8]]
    lesions: tuple[NDArray[np.uint8] | None, ...]
    """one for each lesion of the row; None where it has neither mask nor box"""

    def __bool__(self) -> bool:
        return bool(self.organs) or any(mask is not None for mask in self.lesions)


def draw_masks(row: PlanRow, *, size: int, file: Path | None = None) -> DrawnMasks:
    """Read every mask of a row and draw its boxes. Raises InputError for what is no mask, not square, or smaller than `size`."""
    where = Where(file=file, row=row.number)
    organs = {organ: _read(path, size=size, where=where) for organ, path in row.masks.items()}
    lesions: list[NDArray[np.uint8] | None] = []
    for lesion in row.lesions:
        if lesion.mask:
            mask = _read(lesion.mask, size=size, where=where)
            if not mask.any():
                raise where.refuse(f"the mask of {lesion.finding} is empty", "draw the lesion, or leave out the mask")
            lesions.append(mask)
        else:
            lesions.append(None if lesion.box is None else box_mask(lesion.box, size))
    return DrawnMasks(organs=organs, lesions=tuple(lesions))


def _read(path: str, *, size: int, where: Where) -> NDArray[np.uint8]:
    """A mask at `size` pixels. The model makes square images, so it must be square, and not smaller, because edges would be guessed."""
    mask = read_mask(path, size, file=where.file, row=where.row)
    height, width = image_shape(path, file=where.file, row=where.row)
    name, file = ("the mask", Path(path)) if where.file is None else (f"mask '{Path(path).name}'", where.file)
    if height != width:
        raise InputError(f"{name} is {width} x {height} pixels, not square", file=file, row=where.row, remedy="draw it on a square image")
    if height < size:
        raise InputError(f"{name} has {height} x {height} pixels, the model's images {size} x {size}", file=file, row=where.row,
                         remedy=f"draw it with at least {size} x {size} pixels")
    return mask


def measured_lesions(row: PlanRow, masks: DrawnMasks) -> tuple[Lesion, ...]:
    """The row's lesions with what they do not state filled in from their masks and boxes."""
    return tuple(measure_lesion(lesion, mask if lesion.mask else None) for lesion, mask in zip(row.lesions, masks.lesions, strict=True))


def condition_of_rows(rows: Sequence[PlanRow], spec: ModelSpec, *, file: Path | None = None,
                      masks: Sequence[DrawnMasks] | None = None) -> Condition:
    """Rows that `check_row` let pass as the condition of a model; what a row does not state is NaN or empty, what none states is None.

    `masks` are those of the rows, where they have been read already.
    """
    studies = [row.study("") for row in rows]
    labels = label_matrix(studies, spec.findings, policy=STATED_ONLY)
    for number, row in enumerate(rows):
        for name, stated in row.labels.items():
            if stated is Stated.UNCERTAIN and name in spec.findings:
                labels[number, spec.findings.index(name)] = UNCERTAIN
    if "labels" not in spec.conditions:
        labels[:] = np.nan
    condition = condition_of(studies, labels, sites=spec.sites)
    masks = [draw_masks(row, size=spec.image_size, file=file) for row in rows] if masks is None else masks
    texts = tuple(row.text.strip() for row in rows)
    return replace(condition, text=texts if any(texts) else None, mask=_mask_tensor(rows, masks, studies, spec),
                   lesions=_lesion_tensor(rows, masks, spec))


def _lesion_tensor(rows: Sequence[PlanRow], masks: Sequence[DrawnMasks], spec: ModelSpec) -> Tensor | None:
    if "lesions" not in spec.conditions:
        return None
    matrix = lesion_matrix([measured_lesions(row, given) for row, given in zip(rows, masks, strict=True)], spec.findings)
    return None if np.isnan(matrix).all() else torch.from_numpy(matrix)


def _mask_tensor(rows: Sequence[PlanRow], masks: Sequence[DrawnMasks], studies: Sequence[Study], spec: ModelSpec) -> Tensor | None:
    """[B, M, S, S] in [0, 1], or None if no row has a mask. In a row that has one, findings stated absent are nowhere: 0."""
    if not any(masks):
        return None
    absent = label_matrix(studies, [name for name in spec.masks if not is_organ(name)], policy=STATED_ONLY) == 0
    tensor = np.full((len(rows), len(spec.masks), spec.image_size, spec.image_size), np.nan, dtype=np.float32)
    for number, (row, given) in enumerate(zip(rows, masks, strict=True)):
        if given:
            tensor[number, [not is_organ(name) for name in spec.masks]] = np.where(absent[number], 0, np.nan)[:, None, None]
        names = [mask_class(lesion.finding, findings=spec.findings) for lesion in row.lesions]
        for name, mask in (*given.organs.items(), *zip(names, given.lesions, strict=True)):
            if mask is not None:
                channel = tensor[number, spec.masks.index(name)]
                np.fmax(channel, np.where(mask == IN_BOX, COARSE, mask * np.float32(EXACT / INSIDE)), out=channel)
    return torch.from_numpy(tensor)


def restricted_to(row: PlanRow, spec: ModelSpec) -> PlanRow:
    """The row with only those parts that the model is conditioned on, for sheets that show any family what real images show."""
    parts = spec.conditions
    if "attributes" not in parts:
        row = replace(row, view="", sex="", age_years=math.nan, site="")
    lesions = row.lesions if "mask" in parts else tuple(replace(lesion, mask="", box=None) for lesion in row.lesions)
    if "lesions" not in parts:
        lesions = tuple(Lesion(finding=lesion.finding, mask=lesion.mask, box=lesion.box) for lesion in lesions
                        if lesion.mask or lesion.box is not None)
    return replace(row, lesions=lesions, labels=row.labels if "labels" in parts else {}, text=row.text if "text" in parts else "",
                   masks=row.masks if "mask" in parts else {}, site=row.site if row.site in spec.sites else "")
