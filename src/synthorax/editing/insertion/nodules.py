"""Nodules and masses inserted by physics: a volume is projected, and its mm of water become grey levels of the host's own curve."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter

from synthorax.bounds import NotNegative, Positive
from synthorax.editing.insertion.insertion import Insertion, Pixels, box_of, check_host, check_mask, digest_of
from synthorax.editing.insertion.seams import seam_ratio, window_around
from synthorax.errors import InputError
from synthorax.physics.beer_lambert import noise_gain
from synthorax.physics.grey_curve import GreyCurve, estimate_grey_curve, estimate_spacing_mm, noise_of
from synthorax.physics.projection import Projection, project
from synthorax.physics.volumes import LesionVolume, random_rotation, resampled
from synthorax.rng import derive

FOOTPRINT_MM = 0.05
"""of water: what a lesion adds less of than this is nothing"""
DENSE_MM = 30.0
"""of water: places in the lungs that much denser than their median, with ribs or vessels, are dense"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoduleOptions:
    """Where a nodule goes, how large it is, and how the system shows it."""

    place: tuple[float, float] | None = None
    """centre in parts of the image's width and height; drawn inside the lungs where none is given"""
    diameter_mm: Positive | None = None
    """on the image, of the sphere that has the lesion's volume; its own where neither this nor `diameter_px` is given"""
    diameter_px: Positive | None = None
    """the same in pixels of the host"""
    spacing_mm: Positive | None = None
    """side of a pixel at the detector; estimated from the lungs, with a note, where not given"""
    levels_per_mm: Positive | None = None
    """grey levels per mm of water, in the host's own; estimated from the image where not given"""
    blur_px: NotNegative = 1.0
    """standard deviation of the blur of the system, in pixels of the host"""
    threshold_mm: Positive = 0.5
    """of water: the mask is where the lesion adds more"""
    rotate: bool = True
    """turn the lesion by a random rotation"""
    dense: bool = False
    """also in front of and behind dense places: the heart, the middle, ribs"""
    noise: bool = True
    """add the quantum noise that the weaker signal behind the lesion has more"""


def insert_nodule(host: Pixels, lesion: LesionVolume, *, lungs: NDArray[Any], seed: int, finding: str = "Nodule",
                  options: NoduleOptions | None = None) -> Insertion:
    """Insert a lesion into a host [H, W] of 8 or 16 bits (white is dense), inside the lungs, a mask of the host's shape.

    Its line integrals in mm of water, blurred as the system blurs, are added along the host's grey curve, so that the image's texture
    stays, and white stays white. Pixels to which it adds less than 0.05 mm of water are those of the host. Values between two grey levels
    are rounded up or down at random in proportion, so that faint borders have no steps. Raises InputError for a lesion larger than the
    lung, a place outside the lungs (or a dense one, unless `dense`), and hosts that are no grey radiograph.

    >>> insert_nodule(host, lesion, lungs=lungs, seed=1, options=NoduleOptions(diameter_mm=18)).box  # doctest: +SKIP
    """
    options = options or NoduleOptions()
    check_host(host)
    inside = check_mask(lungs, host, name="the mask of the lungs")
    rng = np.random.default_rng(derive(seed, "nodule"))
    spacing, spacing_note = (options.spacing_mm, "given") if options.spacing_mm else estimate_spacing_mm(inside)
    curve = estimate_grey_curve(host, inside, levels_per_mm=options.levels_per_mm, spacing_mm=spacing)
    diameter = _diameter_mm(lesion, options, spacing)
    rotation = random_rotation(rng) if options.rotate else np.eye(3)
    place = _place(host, inside, curve, options, radius_px=diameter / spacing / 2, rng=rng)
    water, corner = _water(lesion, host.shape, place, rotation=rotation, scale=diameter / lesion.diameter_mm, spacing=spacing,
                           blur_px=options.blur_px)
    pixels, levels = _added(host, water, corner, curve, noise=options.noise, rng=rng)
    full = np.zeros(host.shape)
    full[_window(corner, water.shape)] = water
    mask = np.where(full > options.threshold_mm, np.uint8(255), np.uint8(0))
    if not mask.any():
        raise InputError(f"the lesion adds {water.max():.2f} mm of water at most, below the threshold of {options.threshold_mm:g} mm",
                         remedy="ask for a larger or denser one, or lower the threshold")
    clutter = clutter_around(host, full > 0, radius_px=diameter / spacing / 2, blur_px=options.blur_px)
    record = {"method": "physics", "finding": finding, "seed": seed, "options": asdict(options), "place": list(place),
              "diameter_mm": diameter, "rotation": rotation.tolist(), "spacing_mm": spacing, "spacing": spacing_note,
              "curve": asdict(curve), "rim_px": rim_px(full > 0, mask > 0), "peak_water_mm": float(water.max()),
              "peak_levels": float(levels), "contrast_to_clutter": float(levels) / clutter if clutter else None,
              "seam": seam_ratio(host, pixels), "host": digest_of(host), "lungs": digest_of(inside), "lesion": digest_of(lesion.water)}
    return Insertion(pixels=pixels, mask=mask, box=box_of(mask), record=record)


def check_place(host: Pixels, lungs: NDArray[np.bool_], *, options: NoduleOptions) -> None:
    """Raise InputError where `insert_nodule` would, for the place and the diameter of options that state both; before a lesion is made."""
    spacing = options.spacing_mm or estimate_spacing_mm(lungs)[0]
    curve = estimate_grey_curve(host, lungs, levels_per_mm=options.levels_per_mm, spacing_mm=spacing)
    diameter = options.diameter_mm / spacing if options.diameter_mm else options.diameter_px or 0.0
    _place(host, lungs, curve, options, radius_px=diameter / 2, rng=np.random.default_rng(0))


def clutter_around(host: Pixels, changed: NDArray[np.bool_], *, radius_px: float, blur_px: float) -> float:
    """Standard deviation of the blurred host in a ring of `radius_px` around what was changed: what the lesion has to be told from."""
    near = window_around(changed, margin=math.ceil(radius_px + 4 * blur_px))
    distance = distance_transform_edt(~changed[near])
    ring = (distance > 0) & (distance <= radius_px)
    return float(gaussian_filter(host[near].astype(np.float64), blur_px)[ring].std()) if ring.any() else 0.0


def rim_px(changed: NDArray[np.bool_], mask: NDArray[np.bool_]) -> int:
    """How far from the mask pixels may have changed: the largest distance of a changed pixel, rounded up."""
    if not (changed.any() and mask.any()):
        return 0
    near = window_around(changed | mask, margin=1)
    return math.ceil(float(distance_transform_edt(~mask[near])[changed[near]].max()))


def _diameter_mm(lesion: LesionVolume, options: NoduleOptions, spacing: float) -> float:
    if options.diameter_mm is not None and options.diameter_px is not None:
        raise InputError("the diameter is given in mm and in pixels", remedy="give one of them")
    return options.diameter_mm or (options.diameter_px * spacing if options.diameter_px else lesion.diameter_mm)


def _place(host: Pixels, lungs: NDArray[np.bool_], curve: GreyCurve, options: NoduleOptions, *, radius_px: float,
           rng: np.random.Generator) -> tuple[float, float]:
    """Centre in parts of the image: the one that is given, or any where most of the lesion lies inside the lungs."""
    height, width = host.shape
    deep = distance_transform_edt(np.pad(lungs, 1))[1:-1, 1:-1]
    if radius_px > deep.max():
        raise InputError(f"a lesion of {2 * radius_px:.0f} px is larger than the lung, which is {2 * deep.max():.0f} px wide",
                         remedy="ask for a smaller one")
    smooth = gaussian_filter(host.astype(np.float64), max(radius_px / 2, 1))
    dense = smooth > np.median(host[lungs]) + DENSE_MM * curve.levels_per_mm
    allowed = lungs & (deep >= 0.7 * radius_px)
    if options.dense:
        columns = np.nonzero(lungs.any(axis=0))[0]
        rows = np.nonzero(lungs.any(axis=1))[0]
        allowed |= _box_mask(host.shape, rows, columns) & dense
    else:
        allowed &= ~dense
    if options.place is not None:
        x, y = options.place
        if not (0 <= x < 1 and 0 <= y < 1):
            raise InputError(f"the place {x:g}, {y:g} lies outside the image", remedy="give parts of its width and height, from 0 to 1")
        row, column = int(y * height), int(x * width)
        if not lungs[row, column] and not allowed[row, column]:
            raise InputError(f"the place {x:g}, {y:g} lies outside the lungs", remedy="give one inside, or allow dense places")
        if dense[row, column] and not options.dense:
            raise InputError(f"the place {x:g}, {y:g} is dense, so a lesion hardly shows", remedy="allow dense places, or give another")
        return options.place
    rows, columns = np.nonzero(allowed)
    if not len(rows):
        raise InputError("no place inside the lungs is large enough for the lesion", remedy="ask for a smaller one, or allow dense places")
    chosen = rng.integers(len(rows))
    return (columns[chosen] + float(rng.random())) / width, (rows[chosen] + float(rng.random())) / height


def _box_mask(shape: tuple[int, ...], rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.bool_]:
    """The box of the lungs, without the part below their bases."""
    mask = np.zeros(shape, dtype=bool)
    mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = True
    return mask


def _water(lesion: LesionVolume, shape: tuple[int, ...], place: tuple[float, float], *, rotation: NDArray[Any], scale: float,
           spacing: float, blur_px: float) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """mm of water in a window around the place, [h, w], 0 where hardly anything, and the window's first row and column in the host."""
    fine = max(spacing, lesion.spacing_mm * scale / 2)
    turned = resampled(lesion, rotation=rotation, scale=scale, spacing_mm=fine)
    margin = math.ceil(4 * blur_px) + 2
    rows, columns = (math.ceil(side * fine / spacing) + 2 * margin for side in turned.water.shape[1:])
    centre = place[1] * shape[0], place[0] * shape[1]  # rows, columns; pixel r covers r to r + 1
    corner = round(centre[0] - rows / 2), round(centre[1] - columns / 2)
    shift = centre[0] - corner[0] - rows / 2, centre[1] - corner[1] - columns / 2
    if fine <= 2 * spacing:
        moved = torch.tensor([0.0, shift[0] * spacing, shift[1] * spacing])
        flat = project(torch.from_numpy(turned.water), spacing_mm=fine, shift_mm=moved,
                       projection=Projection(rows=rows, columns=columns, pixel_mm=spacing)).numpy().astype(np.float64)
    else:
        flat = _summed(turned, rows=rows, columns=columns, shift=shift, step=spacing / fine)
    water = gaussian_filter(flat, blur_px, mode="constant")
    water[water < FOOTPRINT_MM] = 0
    low = max(corner[0], 0), max(corner[1], 0)
    high = min(corner[0] + rows, shape[0]), min(corner[1] + columns, shape[1])
    return water[low[0] - corner[0]:high[0] - corner[0], low[1] - corner[1]:high[1] - corner[1]], low


def _summed(volume: LesionVolume, *, rows: int, columns: int, shift: tuple[float, float], step: float) -> NDArray[np.float64]:
    """Line integrals of a volume whose voxels are larger than two pixels, interpolated by cubic splines; `step` is pixels in voxels.

    Voxels half as large as those of a lesion lose nothing, and rays through voxels as small as pixels would take minutes.
    """
    flat = volume.water.sum(axis=0, dtype=np.float64) * volume.spacing_mm
    offset = [(side - 1) / 2 + (0.5 - length / 2 - moved) * step
              for side, length, moved in zip(flat.shape, (rows, columns), shift, strict=True)]
    return np.asarray(affine_transform(flat, [step, step], offset, output_shape=(rows, columns), order=3, mode="constant").clip(0, None))


def _window(corner: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + shape[0]), slice(corner[1], corner[1] + shape[1])


def _added(host: Pixels, water: NDArray[np.float64], corner: tuple[int, int], curve: GreyCurve, *, noise: bool,
           rng: np.random.Generator) -> tuple[Pixels, float]:
    """The host with the water added in its window, in its own type, and the largest rise in grey levels."""
    window = _window(corner, water.shape)
    old = host[window]
    risen = curve.add(old, water)
    top = float((risen - old).max())
    if noise:
        local = noise_of(old, water == 0) or curve.noise
        gain = noise_gain(torch.from_numpy(water)).numpy()
        risen = risen + local * np.sqrt(gain**2 - 1) * rng.standard_normal(water.shape)
    rounded = np.floor(risen + rng.random(water.shape)).clip(0, np.iinfo(host.dtype).max)
    pixels = host.copy()
    pixels[window] = np.where(water > 0, rounded, old).astype(host.dtype)
    return pixels, top
