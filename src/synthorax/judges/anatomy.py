"""Sizes, shapes and places of lungs and heart, from outlines: what anatomy scores and the anatomy guard measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from synthorax.judges.fitting import ImageArray
from synthorax.judges.lungs import SMALLEST_PART, Outlines, load_lung_model, model_inputs, outline
from synthorax.judges.segmenter import Segmenter

Masks = NDArray[np.bool_]
Vector = NDArray[np.float64]
MIN_ORGAN_AREA = 1 / 200
"""part of the image from which on an organ counts as found"""


def measure_anatomy(lungs: Masks, hearts: Masks | None = None) -> dict[str, Vector]:
    """Sizes from outlines [N, S, S], in parts of the image, [N] each; NaN where the organ is not found.

    The right lung is in the left half of the image. The cardiothoracic ratio is the heart's greatest width over that of both lungs
    (Danzer 1919), here between the outermost columns that hold a hundredth of the outline each side, so that single pixels do not count.

    >>> box = np.zeros((1, 10, 10), bool); box[0, 2:8, 1:9] = True
    >>> float(measure_anatomy(box)["lung_area"][0])
    0.48
    """
    side = lungs.shape[-1]
    there = lungs.mean(axis=(1, 2)) >= MIN_ORGAN_AREA
    left, right = _ends(lungs.sum(axis=1))
    top, bottom = _ends(lungs.sum(axis=2))
    columns = lungs.sum(axis=1)
    middle = (left + right) / 2
    on_image_left = np.where(np.arange(side)[None] + 0.5 < middle[:, None], columns, 0).sum(axis=1)
    sizes = {"lung_area": lungs.mean(axis=(1, 2)), "lung_width": (right - left) / side, "lung_height": (bottom - top) / side,
             "right_lung_share": on_image_left / np.maximum(1, columns.sum(axis=1))}
    if hearts is not None:
        heart_left, heart_right = _ends(hearts.sum(axis=1))
        heart = np.where(hearts.mean(axis=(1, 2)) >= MIN_ORGAN_AREA, heart_right - heart_left, np.nan)
        sizes |= {"heart_width": heart / side, "cardiothoracic_ratio": heart / np.maximum(right - left, 1)}
    return {name: np.where(there, values, np.nan) for name, values in sizes.items()}


def _ends(counts: NDArray[np.integer]) -> tuple[Vector, Vector]:
    """First and last position [N] between which all but a hundredth at either end of the counts [N, S] lies, as pixel edges."""
    share = counts.cumsum(axis=1) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return (share > 0.01).argmax(axis=1).astype(np.float64), (share >= 0.99).argmax(axis=1) + 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trait:
    """One number of an image's anatomy."""

    name: str
    """in words, as a reason for a rejection calls it"""
    counts: bool = False
    """whether it is a number of pieces, of which every image has the same"""


TRAITS = {
    "right_lungs": Trait(name="pieces of lung on the patient's right", counts=True),
    "left_lungs": Trait(name="pieces of lung on the patient's left", counts=True),
    "hearts": Trait(name="hearts", counts=True),
    "mirrored": Trait(name="part of the lungs that looks like the other lung"),
    "lung_area": Trait(name="area of the lungs, part of the image"),
    "lung_width": Trait(name="width of the lungs, part of the image"),
    "lung_height": Trait(name="height of the lungs, part of the image"),
    "right_share": Trait(name="right lung's part of the area of both"),
    "aspect": Trait(name="width over height of the lungs"),
    "apex_difference": Trait(name="right apex below the left one, part of the lungs' height"),
    "base_difference": Trait(name="right base below the left one, part of the lungs' height"),
    "cardiothoracic_ratio": Trait(name="cardiothoracic ratio"),
    "heart_area": Trait(name="area of the heart over that of the lungs"),
    "heart_to_left": Trait(name="part of the heart's width on the patient's left of the middle between the lungs"),
    "solidity": Trait(name="area of the more ragged lung over that of its convex hull"),
    "slenderness": Trait(name="height over width of the more slender lung"),
    "cut_off": Trait(name="part of the image's sides and bottom that the lungs touch"),
    "apices_cut_off": Trait(name="part of the lungs' width that touches the top of the image"),
    "doubt": Trait(name="doubt of the outlines"),
    "air": Trait(name="how much darker the less dark lung is than the image"),
    "air_difference": Trait(name="how much darker the right lung is than the left one"),
    "opaque": Trait(name="part of the lungs that is as bright as the heart"),
    "dark_below": Trait(name="part of the image below the lungs that is as dark as they are"),
}
"""every number that `traits_of` measures, by its key"""


def traits_of(pixels: ImageArray, *, model: Segmenter | None = None) -> dict[str, Vector]:
    """The numbers of `TRAITS` for frontal images [N, H, W], [N] each; NaN where one has no meaning, such as the ratio without a heart."""
    model = model or load_lung_model()
    rows: list[dict[str, float]] = []
    for start in range(0, len(pixels), 32):
        batch = pixels[start : start + 32]
        seen = outline(batch, model=model)
        grey = model_inputs(batch, size=model.image_size)[:, 0].numpy()
        rows += [_traits(seen, number, grey[number], (model.thresholds[0], model.thresholds[2])) for number in range(len(batch))]
    return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in TRAITS}


def cardiothoracic_ratio(lungs: Masks, hearts: Masks) -> Vector:
    """Greatest transverse width of the heart over that of the thorax, here of both lungs (Danzer 1919), [N]; NaN where one is missing."""
    ratio: Vector = measure_anatomy(lungs, hearts)["cardiothoracic_ratio"]
    return ratio


def _traits(seen: Outlines, number: int, grey: NDArray[np.float32], cuts: tuple[float, float]) -> dict[str, float]:
    lung, heart = seen.lung[number] >= cuts[0], seen.heart[number] >= cuts[1]
    pieces, sizes = _pieces(lung)
    sides = [seen.side[number][pieces == piece].mean() > 0.5 for piece in range(1, len(sizes) + 1)]
    hearts, heart_sizes = _pieces(heart)
    found = {key: float("nan") for key in TRAITS}
    found |= {"right_lungs": float(len(sizes) - sum(sides)), "left_lungs": float(sum(sides)),
              "hearts": float(len(heart_sizes)), "mirrored": float(seen.mirrored[number]),
              "doubt": float((seen.lung[number] * (1 - seen.lung[number])).sum() / max(1.0, np.sqrt(lung.sum())))}
    right, left = (_largest(pieces, sizes, sides, wanted) for wanted in (False, True))
    both = right | left
    if not right.any() or not left.any():
        return found
    side = lung.shape[-1]
    boxes = [_box(mask) for mask in (right, left, both)]
    width, height = boxes[2][2] - boxes[2][0], boxes[2][3] - boxes[2][1]
    spread = float(grey.std()) or 1.0
    air = [float(grey.mean() - grey[mask].mean()) / spread for mask in (right, left)]
    edge = np.concatenate([both[-1], both[:, 0], both[:, -1]])
    found |= {
        "lung_area": both.mean(), "lung_width": width / side, "lung_height": height / side, "right_share": right.sum() / both.sum(),
        "aspect": width / height, "apex_difference": (boxes[0][1] - boxes[1][1]) / height,
        "base_difference": (boxes[0][3] - boxes[1][3]) / height, "solidity": min(_solidity(right), _solidity(left)),
        "slenderness": max((box[3] - box[1]) / (box[2] - box[0]) for box in boxes[:2]), "cut_off": edge.mean(),
        "apices_cut_off": both[0].sum() / width,
        "air": min(air), "air_difference": air[0] - air[1],
    }
    found |= _shades(grey, both & ~heart, boxes[2])
    if len(heart_sizes):
        organ = hearts == 1 + int(np.argmax(heart_sizes))
        columns = np.flatnonzero(organ.any(axis=0))
        middle = (np.flatnonzero(right.any(axis=0)).mean() + np.flatnonzero(left.any(axis=0)).mean()) / 2
        found |= {"cardiothoracic_ratio": float(cardiothoracic_ratio(both[None], organ[None])[0]), "heart_area": organ.sum() / both.sum(),
                  "heart_to_left": (columns[-1] + 1 - middle) / len(columns)}
    return found


def _shades(grey: NDArray[np.float32], aerated: Masks, box: tuple[int, int, int, int]) -> dict[str, float]:
    """How much of the lungs is bright and how much below them dark, by a border halfway between their grey and that beside them.

    What is as dark as the darkest of the image is padding or air around the patient, and no part of him.
    """
    left, top, right, bottom = box
    beside = ~aerated[top:bottom, left:right]
    if not aerated.any() or not beside.any():
        return {}
    border = (float(np.median(grey[aerated])) + float(np.median(grey[top:bottom, left:right][beside]))) / 2
    below = grey[bottom:, left:right]
    body = below > grey.min() + 0.02 * float(np.ptp(grey))
    dark = float((body & (below < border)).sum() / body.sum()) if body.sum() >= SMALLEST_PART * grey.size else float("nan")
    return {"opaque": float((grey[aerated] > border).mean()), "dark_below": dark}


def _pieces(mask: Masks) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Pieces [S, S] of a mask that are large enough, numbered from 1, and their sizes."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALLEST_PART * mask.size)
    renumbered = np.zeros(len(sizes) + 1, dtype=np.int32)
    renumbered[large + 1] = np.arange(1, len(large) + 1)
    return renumbered[pieces], sizes[large]


def _largest(pieces: NDArray[np.int32], sizes: NDArray[np.intp], sides: list[np.bool_], wanted: bool) -> Masks:
    """The largest piece [S, S] of one side; empty where there is none."""
    there = [number for number in range(len(sizes)) if bool(sides[number]) == wanted]
    if not there:
        return np.zeros(pieces.shape, dtype=np.bool_)
    return np.asarray(pieces == 1 + max(there, key=lambda number: int(sizes[number])))


def _box(mask: Masks) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _solidity(mask: Masks) -> float:
    """Area over that of the convex hull of the pixels."""
    y, x = np.nonzero(mask ^ ndimage.binary_erosion(mask))
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    try:
        hull = float(ConvexHull(corners).volume)
    except QhullError:
        return 1.0
    return float(mask.sum()) / hull

