"""Outlines as findings have them: one body without holes, specks and steps, and the gap of a pneumothorax along the wall of the chest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.editing.insertion.seams import window_around
from synthorax.editing.insertion.templates import rising

Mask = NDArray[np.bool_]
SMOOTH_MM = 2.0
"""standard deviation of the blur that takes the steps and spikes off an outline"""
SPECK = 0.1
"""parts of an outline smaller than this part of its largest are specks"""
GAP_DEGREES = 14.0
"""standard deviation of the blur of a pneumothorax along the wall, in degrees around the hilum"""
GAP_SPAN = (-55.0, 100.0)
"""degrees around the hilum, 0 to the side and 90 upwards, between which air lies along the wall"""
GAP_ENDS = 20.0
"""degrees over which the gap narrows to nothing at those"""
DEEPEST_GAP = 0.6
"""of the way from wall to hilum"""
MENISCUS, MENISCUS_POWER = 0.22, 2.5
"""by how much, in parts of the lung's height, fluid stands higher at the wall than at the mediastinum, and how late it rises"""
LEAST_ENLARGED, MOST_ENLARGED = 1.25, 2.2
"""times the area of the patient's heart, between which that of a large heart lies"""


def smooth_outline(mask: Mask, *, spacing_mm: float, close_mm: float = 0.0, parts: int | None = None) -> Mask:
    """A mask [H, W] without holes, specks, steps and thin spikes; `parts` is how many bodies stay, by default all that are no specks.

    Gaps narrower than twice `close_mm` are closed first. A mask too thin for the blur stays as it is.
    """
    if not mask.any():
        return mask
    margin = math.ceil((4 * SMOOTH_MM + 2 * close_mm) / spacing_mm) + 1
    window = window_around(mask, margin=margin)
    near = np.pad(mask[window], margin, mode="edge")  # bodies that run out of the image do not bend at its border
    if close_mm > 0:
        reach = close_mm / spacing_mm
        near = np.asarray(ndimage.distance_transform_edt(ndimage.distance_transform_edt(~near) <= reach) > reach)
    soft = ndimage.gaussian_filter(near.astype(np.float32), SMOOTH_MM / spacing_mm) > 0.5
    inner = slice(margin, -margin)
    kept = largest_parts(np.asarray(ndimage.binary_fill_holes(soft[inner, inner])), parts=parts)
    if not kept.any():
        return mask
    result = np.zeros_like(mask)
    result[window] = kept
    return result


def largest_parts(mask: Mask, *, parts: int | None = None) -> Mask:
    """The `parts` largest connected bodies of a mask [H, W]; by default all that are no specks beside the largest."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")
    kept = order[:parts] if parts is not None else order[areas[order] >= SPECK * areas.max()]
    return np.asarray(np.isin(labels, kept + 1))


def count_parts(mask: Mask) -> int:
    """How many connected bodies a mask [H, W] has."""
    return int(ndimage.label(mask)[1])


def pleural_gap(mask: Mask, lung: Mask) -> Mask:
    """A pneumothorax of about the area and place of `mask` [H, W], as a gap along the wall of its lung [H, W] that narrows at its ends.

    In each direction around the hilum the width of the mask is the width of the gap at the wall; blurred along the wall, and scaled to the
    area of the mask, its inner border is the visceral pleura. The mask as it is where no gap along the wall can be made of it.
    """
    if not (mask & lung).any():
        return mask
    rows, columns = np.nonzero(lung)
    middle = lung.shape[1] / 2
    medial = columns.max() if columns.mean() < middle else columns.min()  # the right lung is on the left of the image
    outwards = -1.0 if columns.mean() < middle else 1.0
    hilum = (rows.min() + rows.max()) / 2, float(medial)
    down, across = np.mgrid[:lung.shape[0], :lung.shape[1]].astype(np.float64)
    radius = np.hypot(down - hilum[0], across - hilum[1])
    degree = np.degrees(np.arctan2(hilum[0] - down, outwards * (across - hilum[1])))  # 0 to the side, 90 upwards
    at = np.floor(degree + 180).astype(int) % 360
    wall = np.zeros(360)
    np.maximum.at(wall, at[lung], radius[lung])
    width = np.bincount(at[mask & lung], minlength=360) / np.maximum(np.bincount(at[lung], minlength=360), 1) * wall
    directions = np.arange(360, dtype=np.float64) - 179.5
    span = rising(directions - GAP_SPAN[0], GAP_ENDS) * rising(GAP_SPAN[1] - directions, GAP_ENDS)
    wall = ndimage.gaussian_filter1d(wall, 2.0, mode="wrap")
    gap = ndimage.gaussian_filter1d(width, GAP_DEGREES, mode="wrap") * span
    if gap.sum() < 0.2 * width.sum():
        return mask
    wanted = float((mask & lung).sum())
    low, high, made = 0.0, 16.0, mask
    for _ in range(24):  # of bisection, for the area
        scale = (low + high) / 2
        inner = wall - np.minimum(gap * scale, DEEPEST_GAP * wall)
        made = lung & (radius > np.interp(degree, directions, inner, period=360))
        low, high = (scale, high) if made.sum() < wanted else (low, scale)
    made &= np.interp(degree, directions, gap * high, period=360) > 0.25
    return largest_parts(made, parts=1) if made.any() else mask


def fluid_below(mask: Mask, lung: Mask) -> Mask:
    """An effusion of about the area of `mask` [H, W] at the base of its lung [H, W]: all of the lung below a meniscus.

    The meniscus rises towards the wall by `MENISCUS` of the lung's height times u to the power `MENISCUS_POWER`, u from 0 at the
    mediastinum to 1 at the wall, so a small effusion fills the costophrenic angle alone. The mask as it is where it covers no lung.
    """
    if not (mask & lung).any():
        return mask
    rows, columns = np.nonzero(lung)
    height = float(rows.max() - rows.min() + 1)
    across = (np.arange(lung.shape[1]) - columns.min()) / max(columns.max() - columns.min(), 1)
    outwards = across if columns.mean() > lung.shape[1] / 2 else 1 - across  # the right lung is on the left of the image
    rise = MENISCUS * height * np.clip(outwards, 0, 1) ** MENISCUS_POWER
    flat = np.arange(lung.shape[0])[:, None] + rise[None]  # rows as if the fluid were level
    levels = np.sort(flat[lung])
    wanted = min(int((mask & lung).sum()), len(levels))
    return largest_parts(lung & (flat >= levels[-wanted]), parts=1)


def enlarged_heart(mask: Mask, heart: Mask) -> Mask:
    """The patient's own heart [H, W], so much larger that it covers the area of `mask` [H, W], but `LEAST_ENLARGED` times its own at least.

    It grows across, and half as much upwards, and more to the patient's left, as a left ventricle does. The mask as it is where no heart
    was found.
    """
    if not heart.any():
        return mask
    rows, columns = np.nonzero(heart)
    anchor = float(rows.max()), columns.min() + 0.3 * (columns.max() - columns.min())  # the patient's left is on the right of the image
    down, across = np.mgrid[:heart.shape[0], :heart.shape[1]].astype(np.float64)
    wanted = float(np.clip(mask.sum(), LEAST_ENLARGED * heart.sum(), MOST_ENLARGED * heart.sum()))
    soft, low, high, made = heart.astype(np.float32), 1.0, 3.0, heart
    for _ in range(16):  # of bisection, for the area
        scale = (low + high) / 2
        at = anchor[0] + (down - anchor[0]) / (1 + (scale - 1) / 2), anchor[1] + (across - anchor[1]) / scale
        made = (ndimage.map_coordinates(soft, at, order=1) > 0.5) | heart
        low, high = (scale, high) if made.sum() < wanted else (low, scale)
    return largest_parts(np.asarray(ndimage.binary_fill_holes(made)), parts=1)
