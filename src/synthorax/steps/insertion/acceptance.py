"""Whether an inserted lesion is accepted: nothing changed outside, no seam where it ends, a mark that is inside the chest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from synthorax.editing.insertion.insertion import Insertion
from synthorax.errors import InputError
from synthorax.judges.lungs import LungMasks

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
MOST_SEAM = 1.5
"""steepness across the border of what was changed, in that of the host along the same line"""
CHEST_WALL = 0.05
"""thickness of the wall and the diaphragm into which a lesion may reach, in the width of both lungs: 15 mm of an adult"""
MOST_BEYOND = 0.03
"""part of a lesion's mask that may lie farther out"""
MOST_BEYOND_BY_HAND = 0.15
"""the same where the user drew the mask, and the outlines of the lungs are the less certain of the two"""
AROUND_LUNGS = 0.1
"""of the box of both lungs: a mask may reach so far beyond it"""
MOST_OUTSIDE = 0.5
"""part of a mask that may lie outside that box"""


def refusal(host: Pixels, made: Insertion, lungs: LungMasks | None = None, *, most_beyond: float = MOST_BEYOND) -> str:
    """Why an insertion is not accepted, or nothing; with `lungs`, those of the host, also where it lies outside the chest."""
    if made.pixels.shape != host.shape or made.pixels.dtype != host.dtype:
        return f"the result is {made.pixels.dtype} {made.pixels.shape} and the host {host.dtype} {host.shape}"
    changed = made.pixels != host
    if not changed.any():
        return "the lesion changes no pixel: the place is white or black already"
    if beyond := int((changed & ~within_rim(made)).sum()):
        return f"{beyond} pixels outside the mask and its rim were changed"
    if lungs is not None and (beyond_chest := _beyond_chest(made.mask > 0, lungs)) > most_beyond:
        return f"{beyond_chest:.0%} of the lesion lies away from lungs and heart, and {most_beyond:.0%} is allowed"
    seam = float(made.record.get("seam", 1.0))
    if seam > MOST_SEAM:
        return f"a seam shows: the border is {seam:.2f} times as steep as the image there, and {MOST_SEAM:g} is allowed"
    return ""


def _beyond_chest(mask: NDArray[np.bool_], lungs: LungMasks) -> float:
    """Part of a mask [H, W] that is farther from lungs and heart than a twentieth of the width of the lungs: the chest wall."""
    chest = lungs.both[0] | lungs.heart[0]
    columns = np.nonzero(lungs.both[0].any(axis=0))[0]
    if not len(columns):
        return 0.0
    reach = CHEST_WALL * (columns[-1] - columns[0] + 1)
    return float((distance_transform_edt(~chest)[mask] > reach).mean())


def within_rim(made: Insertion) -> NDArray[np.bool_]:
    """The mask and the rim around it in which pixels may differ from the host, [H, W]."""
    inside = made.mask > 0
    rim = int(made.record.get("rim_px", 0))
    return inside if rim == 0 else np.asarray(distance_transform_edt(~inside) <= rim)


def check_place(mask: NDArray[np.bool_], lungs: LungMasks) -> None:
    """InputError for a mask [H, W] that lies outside the chest, as the lungs of one image show where that is."""
    left, top, right, bottom = lungs.frame().both[0]
    if np.isnan(left):
        raise InputError("no lungs were found", remedy="give a frontal chest radiograph, or a lung_mask in its row")
    across, down = AROUND_LUNGS * (right - left), AROUND_LUNGS * (bottom - top)
    rows, columns = np.nonzero(mask)
    outside = (columns < left - across) | (columns >= right + across) | (rows < top - down) | (rows >= bottom + down)
    if outside.mean() > MOST_OUTSIDE:
        raise InputError(f"{outside.mean():.0%} of the mask lies outside the chest", remedy="draw it on the image it is used with")


def check_side(mask: NDArray[np.bool_], lungs: LungMasks, side: str) -> None:
    """InputError for a mask [H, W] that covers more of the other lung than of that of the `side` asked for; any goes with no side."""
    right, left = (int((mask & lung[0]).sum()) for lung in (lungs.right, lungs.left))
    shown = "right" if right > left else "left"
    if side and right != left and side != shown:
        raise InputError(f"the mask lies in the patient's {shown} lung, and --side asks for the {side} one",
                         remedy="leave out --side; the patient's left is on the right of the image")
