"""A bank of a user's own outlines: the lesions that a data set has masks or boxes of, in coordinates of its patients' lungs.

A patient's outline is a shape that may be recognised, so the bank never gives one out as it is: it is moved, scaled, turned and bent, as
`layouts.Variation` says, and drawn again where the result still covers the original almost exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.dataset import TABLE_NAME, Dataset, read_dataset
from synthorax.data.layouts import Box, Layout, Variation, frame_of, layout_of_mask, overlap, shape_of, varied
from synthorax.data.lesions import UNSIDED, lesions_of, measure_lesion
from synthorax.data.masks import box_mask, image_shape, in_square, load_masks, read_mask
from synthorax.data.prepared import FACTS_NAME, Prepared, load_images
from synthorax.data.vocabulary import label_matrix
from synthorax.errors import InputError, UsageError, nearest
from synthorax.types import Lesion, Study

SIZE_PX = 256
"""side at which images and masks are read"""
NEAREST = 8
"""outlines nearest in size among which one is chosen, where a size is asked for"""
MOST_ALIKE = 0.9
"""Dice coefficient with the original above which an outline is varied again"""
TRIES = 20
LUNG = "lung"
FindLungs = Callable[[NDArray[np.uint8] | NDArray[np.uint16]], Sequence[tuple[Box, Box]]]
"""boxes of the patient's right and left lungs on images [N, S, S], in pixels; NaN where none was found"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BankOutline:
    """One outline of a bank."""

    layout: Layout
    size: float
    """as in `layouts.Shape`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutBank:
    """Outlines of findings in coordinates of the lungs, and what could not be used."""

    path: Path
    outlines: tuple[BankOutline, ...] = field(repr=False)
    left_out: dict[str, int] = field(default_factory=dict)
    """reason -> lesions"""

    def __len__(self) -> int:
        return len(self.outlines)

    @property
    def findings(self) -> tuple[str, ...]:
        """Those that it has an outline of, by name."""
        return tuple(sorted({one.layout.finding for one in self.outlines}))

    def draw(self, findings: Sequence[str], sides: Sequence[str], sizes: Sequence[float], seeds: Sequence[int], *,
             variation: Variation | None = None) -> list[Layout]:
        """One outline a row: of the finding, of a lesion on the same side, of the size where that is stated, and never the original.

        `sides` are left, right or empty (any), `sizes` as in `layouts.Shape` or NaN. A row depends on its seed alone. Raises UsageError
        for a finding or a side that the bank has no outline of.
        """
        return [self._draw(*row, variation=variation) for row in zip(findings, sides, sizes, seeds, strict=True)]

    def _draw(self, finding: str, side: str, size: float, seed: int, *, variation: Variation | None) -> Layout:
        chosen = self._candidates(finding, side)
        if not math.isnan(size):
            chosen = sorted(chosen, key=lambda one: abs(math.log(one.size / size)))[:NEAREST]
        rng = np.random.default_rng([seed, 23])
        for _ in range(TRIES):
            original = chosen[int(rng.integers(len(chosen)))].layout
            made = varied(original, rng, size=size, variation=variation)
            if made.mask.any() and overlap(made, original) < MOST_ALIKE:
                return made
        raise UsageError(f"no outline of {finding} differs enough from its original after {TRIES} tries; vary more")

    def _candidates(self, finding: str, side: str) -> list[BankOutline]:
        of_finding = [one for one in self.outlines if one.layout.finding == finding]
        if not of_finding:
            raise unknown_finding(finding, among=self.findings, what=f"the bank {self.path}")
        if finding in UNSIDED or not side:
            return of_finding
        on_side = [one for one in of_finding if one.layout.side == side]
        if not on_side:
            raise UsageError(f"the bank {self.path} has no outline of {finding} on the {side}; ask for the other side")
        return on_side


def read_bank(path: str | Path, *, find_lungs: FindLungs | None = None) -> LayoutBank:
    """The outlines of a dataset folder or of the training split of a prepared folder.

    Lungs come from the column `lung_mask`, and from `find_lungs` for images without it. A lesion with a box and no mask counts as the
    ellipse in it. Raises InputError where no lesion can be used, naming why.
    """
    folder = Path(path)
    rows, source = _rows(folder)
    marked = [(study, [lesion for lesion in lesions_of(study, file=source / TABLE_NAME)
                       if lesion.finding and (lesion.mask or lesion.box)]) for study in rows]
    marked = [(study, lesions) for study, lesions in marked if lesions]
    boxes = _lungs([study for study, _ in marked], source, find_lungs)
    kept, left_out = [], Counter[str]()
    for (study, lesions), lungs in zip(marked, boxes, strict=True):
        for lesion in lesions:
            if lungs is None:
                left_out["its image has no lung mask, or lungs were not found on it"] += 1
                continue
            try:
                layout = _layout(study, lesion, source, *lungs)
            except (InputError, UsageError) as error:
                left_out[str(error)] += 1
                continue
            kept.append(BankOutline(layout=layout, size=shape_of(layout).size))
    if not kept:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in left_out.most_common(3))
        raise InputError(f"has no outline that can be used{': ' + reasons if reasons else ''}", file=folder,
                         remedy="give lesions a `lesion_mask` or `lesion_box` and a `lesion_label`, and images a `lung_mask`")
    return LayoutBank(path=folder, outlines=tuple(kept), left_out=dict(left_out))


def _rows(folder: Path) -> tuple[list[Study], Path]:
    """The rows whose outlines may be used, and where their masks are: nothing of a validation or test split."""
    if (folder / FACTS_NAME).is_file():
        prepared = Prepared.load(folder)
        return [study for study in prepared.studies if study.split == "train"], prepared.source
    return [study for study in read_dataset(folder, patient_per_image=True).studies if study.split in ("", "train")], folder


def _lungs(studies: Sequence[Study], source: Path, find_lungs: FindLungs | None) -> list[tuple[Box, Box] | None]:
    """Boxes of the right and left lung of each image on a square of `SIZE_PX`; None where not known."""
    if not studies:
        return []
    masks = load_masks(studies, source, size=SIZE_PX, classes=(LUNG,), labels=label_matrix(studies, ()), findings=())
    found: list[tuple[Box, Box] | None] = [None if row < 0 else _halves(masks.pixels[row] >= 128) for row in masks.index[:, 0]]
    missing = [number for number, boxes in enumerate(found) if boxes is None]
    if find_lungs is not None and missing:
        rows = tuple(studies[number] for number in missing)
        images = load_images(Dataset(path=source, name=source.name, studies=rows, findings=(), facts={}), size=SIZE_PX, findings=())
        for number, boxes in zip(missing, find_lungs(images.pixels), strict=True):
            found[number] = boxes if np.isfinite(boxes).all() else None
    return found


def _halves(lungs: NDArray[np.bool_]) -> tuple[Box, Box] | None:
    """Boxes of the two lungs of one mask [S, S], parted at the column of its centre; None where one side is empty."""
    columns = np.flatnonzero(lungs.any(0))
    if len(columns) < 2:
        return None
    middle = round(float(np.nonzero(lungs)[1].mean()) + 0.5)
    right, left = lungs.copy(), lungs.copy()
    right[:, middle:] = left[:, :middle] = False
    return (_box(right), _box(left)) if right.any() and left.any() else None


def _box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _layout(study: Study, lesion: Lesion, source: Path, right: Box, left: Box) -> Layout:
    shape = image_shape(source / study.file_name)
    lesion = in_square(lesion, shape, SIZE_PX)
    if lesion.mask:
        pixels = read_mask(source / lesion.mask, SIZE_PX, image_shape=shape, file=source / TABLE_NAME)
    else:
        assert lesion.box is not None
        pixels = _ellipse(lesion.box)
    inside = pixels >= min(128, max(1, int(pixels.max())))
    side = measure_lesion(replace(lesion, side=""), pixels).side or lesion.side
    if lesion.finding not in UNSIDED and not side:
        raise InputError(f"{lesion.finding} lies on both sides", remedy="draw one mask for each lung")
    side = "" if lesion.finding in UNSIDED else side
    frame = frame_of(lesion.finding, side, right=right, left=left)
    return layout_of_mask(inside, frame, finding=lesion.finding, side=side)


def _ellipse(box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """The ellipse in a box (left, top, width, height in parts of the image), [S, S]; at least the pixels of the box's middle."""
    left, top, width, height = (number * SIZE_PX for number in box)
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5
    inside = ((x - left - width / 2) / (width / 2)) ** 2 + ((y - top - height / 2) / (height / 2)) ** 2 <= 1
    return np.where(inside if inside.any() else box_mask(box, SIZE_PX) > 0, np.uint8(255), np.uint8(0))


def unknown_finding(finding: str, *, among: Sequence[str], what: str) -> UsageError:
    """What to say of a finding that a model or bank has no outline of: those that it knows."""
    meant = nearest(finding, among)
    others = f" (it knows {', '.join(among)})" if meant.endswith("?") else ""
    return UsageError(f"{what} knows no outline of '{finding}'; {meant}{others}")
