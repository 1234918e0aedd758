"""One entry for all insertions: a finding, a host and a region in, an image with the finding out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from synthorax.bounds import Fraction, NotNegative, Positive
from synthorax.data.lesions import UNSIDED
from synthorax.editing.insertion.insertion import Insertion, Pixels, box_of, check_host, check_mask, digest_of
from synthorax.editing.insertion.masked_diffusion import DiffusionOptions, insert_by_diffusion
from synthorax.editing.insertion.nodules import NoduleOptions, clutter_around, insert_nodule, rim_px
from synthorax.editing.insertion.outlines import count_parts, largest_parts, smooth_outline
from synthorax.editing.insertion.seams import seam_ratio, window_around
from synthorax.editing.insertion.templates import LEAST_MM, TEMPLATES, Site, apply_template, rising, with_water
from synthorax.errors import InputError, UsageError, nearest
from synthorax.physics.grey_curve import LUNGS_WIDTH_MM, estimate_grey_curve, estimate_spacing_mm
from synthorax.physics.volumes import LesionVolume
from synthorax.protocols import Model
from synthorax.rng import derive
from synthorax.types import Study

METHODS = ("auto", "physics", "diffusion")
REACH_MM = 30.0
"""of the host around a region, which templates may look at"""
RIM_MM = 15.0
"""beyond the mask of a template, over which its change fades out"""
CLOSE_MM = 4.0
"""half the width of gaps in what a template changes that count as part of the finding: ribs, and lines of a net"""
CHEST_DEPTH_MM = 180.0
"""of an adult's chest, inside its walls, from front to back"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateOptions:
    """How strong a finding is, and how the system shows it."""

    severity: Fraction = 0.5
    """from subtle to obvious, along the range of mm of water of the finding"""
    spacing_mm: Positive | None = None
    """side of a pixel at the detector; estimated from the lungs, with a note, where not given"""
    levels_per_mm: Positive | None = None
    """grey levels per mm of water, in the host's own; estimated from the image where not given"""
    blur_px: NotNegative = 1.0
    """standard deviation of the blur of the system, in pixels of the host"""
    threshold_mm: Positive = 0.5
    """of water: the mask is where more is added or taken away"""


def insert_template(host: Pixels, *, finding: str, region: NDArray[Any], lungs: NDArray[Any], seed: int,
                    options: TemplateOptions | None = None) -> Insertion:
    """Make a finding inside a region [H, W] of a host [H, W] of 8 or 16 bits (white is dense), by its physics template.

    Raises InputError for a region outside the body, one that covers no lung, and hosts that are no grey radiograph.

    >>> insert_template(host, finding="Effusion", region=region, lungs=lungs, seed=1).record["peak_water_mm"]  # doctest: +SKIP
    """
    options = options or TemplateOptions()
    check_host(host)
    inside = check_mask(lungs, host, name="the mask of the lungs")
    outline = check_mask(region, host, name="the region")
    spacing, spacing_note = (options.spacing_mm, "given") if options.spacing_mm else estimate_spacing_mm(inside)
    curve = estimate_grey_curve(host, inside, levels_per_mm=options.levels_per_mm, spacing_mm=spacing)
    check_region(host, outline, inside)
    rng = np.random.default_rng(derive(seed, "template", finding))
    parts = count_parts(largest_parts(outline))
    region_used = smooth_outline(outline, spacing_mm=spacing)
    window = window_around(region_used, margin=round(REACH_MM / spacing))
    grey = host[window].astype(np.float64)
    site = Site(grey=grey, region=region_used[window], lungs=inside[window], curve=curve, spacing_mm=spacing,
                solid=solid_level(host, inside), cavity_mm=cavity_depth_mm(inside, spacing_mm=spacing)[window])
    water, faded = apply_template(finding, site, severity=options.severity, rng=rng, blur_px=options.blur_px)
    dense = np.abs(water) > options.threshold_mm
    if not dense.any():
        raise InputError(f"the region is so dense or so small that {finding} changes nothing in it", remedy="give another region")
    shown = site.region if finding == "Pneumothorax" else dense | site.region if finding in UNSIDED else dense
    inner = smooth_outline(np.asarray(shown), spacing_mm=spacing, close_mm=CLOSE_MM, parts=parts)
    water *= 1 - rising(distance_transform_edt(~inner) * spacing, RIM_MM)
    water[np.abs(water) < LEAST_MM] = 0
    made = with_water(site, water, faded * (water != 0))
    rounded = np.floor(made + rng.random(made.shape)).clip(0, np.iinfo(host.dtype).max)
    pixels = host.copy()
    pixels[window] = np.where(water != 0, rounded, grey).astype(host.dtype)
    mask = np.zeros(host.shape, np.uint8)
    mask[window][inner] = 255
    peak = float(water.flat[np.abs(water).argmax()])
    changed = np.zeros(host.shape, dtype=bool)
    changed[window] = water != 0
    clutter = clutter_around(host, changed, radius_px=10 / spacing, blur_px=options.blur_px)
    levels = float(np.abs(made - grey)[water != 0].max())
    record = {"method": "physics", "finding": finding, "seed": seed, "options": asdict(options), "spacing_mm": spacing,
              "spacing": spacing_note, "curve": asdict(curve), "rim_px": rim_px(changed, mask > 0), "peak_water_mm": peak,
              "peak_levels": levels, "contrast_to_clutter": levels / clutter if clutter else None, "seam": seam_ratio(host, pixels),
              "host": digest_of(host), "lungs": digest_of(inside), "region": digest_of(outline)}
    return Insertion(pixels=pixels, mask=mask, box=box_of(mask), record=record)


def insert_lesion(host: Pixels, *, finding: str, lungs: NDArray[Any], seed: int, method: str = "auto", region: NDArray[Any] | None = None,
                  lesion: LesionVolume | None = None, model: Model | None = None, study: Study | None = None,
                  nodule: NoduleOptions | None = None, template: TemplateOptions | None = None,
                  diffusion: DiffusionOptions | None = None) -> Insertion:
    """Insert any finding that is known into a host [H, W] of 8 or 16 bits (white is dense); the seed decides all that is not given.

    `lungs` [H, W] are those without the heart. A nodule or a mass is a volume, `lesion`; every other finding is made in a `region` [H, W].
    `method` is one of `METHODS`: physics, diffusion (with a `model`, from the physics template on where there is one), or auto, which is
    diffusion for a region with a model that knows the finding, and physics otherwise. Raises InputError for what cannot be, and UsageError
    for a method without what it needs.

    >>> insert_lesion(host, finding="Effusion", lungs=lungs, region=region, seed=1).record["method"]  # doctest: +SKIP
    'physics'
    """
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}'; {nearest(method, METHODS)}")
    if lesion is not None and region is not None:
        raise UsageError("a volume is given and a region; give the one or the other")
    if lesion is not None and method != "diffusion":
        return insert_nodule(host, lesion, lungs=lungs, seed=seed, finding=finding, options=nodule)
    if region is None:
        raise UsageError(f"{finding} needs {'a volume or ' if method != 'diffusion' else ''}a region")
    if method == "diffusion" and model is None:
        raise UsageError("the method diffusion needs a model")
    if model is None or method == "physics" or (method == "auto" and finding not in model.spec.findings):
        return insert_template(host, finding=finding, region=region, lungs=lungs, seed=seed, options=template)
    drawn = None
    if finding in TEMPLATES:
        drawn = insert_template(host, finding=finding, region=region, lungs=lungs, seed=seed, options=template)
    check_region(host, check_mask(region, host, name="the region"), check_mask(lungs, host, name="the mask of the lungs"))
    made = insert_by_diffusion(host, finding=finding, region=region if drawn is None else drawn.mask, model=model, seed=seed, study=study,
                               template=None if drawn is None else drawn.pixels, options=diffusion)
    return made if drawn is None else replace(made, record={**made.record, "drawn": dict(drawn.record)})


def check_region(host: Pixels, region: NDArray[np.bool_], lungs: NDArray[np.bool_]) -> None:
    """Raise InputError for a region outside the body, or one that touches no lung."""
    outside = host <= np.quantile(host, 0.002)
    if outside[region].mean() > 0.5 and not (region & lungs).any():
        raise InputError("the region lies outside the body", remedy="give a region in the chest")
    if not (region & lungs).any():
        raise InputError("the region covers no lung", remedy="check that region and lungs are of the same image")


def solid_level(host: Pixels, lungs: NDArray[np.bool_]) -> float:
    """Grey level of solid tissue: the median between the lungs, in the lower half of their height, or the brightest twentieth of them."""
    rows, columns = (np.nonzero(lungs.any(axis=axis))[0] for axis in (1, 0))
    low, high = rows[0] + len(rows) // 2, rows[-1] + 1
    part, inside = host[low:high, columns[0]:columns[-1] + 1], lungs[low:high, columns[0]:columns[-1] + 1]
    middle = np.zeros_like(inside)
    for number, row in enumerate(inside):
        at = np.nonzero(row)[0]
        if len(at):
            middle[number, at[0]:at[-1] + 1] = True
    between = part[middle & ~inside]
    return float(np.quantile(host[lungs], 0.95) if len(between) < 16 else np.quantile(between, 0.4))


def cavity_depth_mm(lungs: NDArray[np.bool_], *, spacing_mm: float) -> NDArray[np.float64]:
    """How deep the chest is along each ray, [H, W] in mm: an ellipse across, `CHEST_DEPTH_MM` deep in the middle and 0 at the wall."""
    first, last = lungs.argmax(axis=1), lungs.shape[1] - lungs[:, ::-1].argmax(axis=1)
    columns = np.arange(lungs.shape[1])
    cavity = (columns >= first[:, None]) & (columns < last[:, None]) & np.asarray(lungs.any(axis=1))[:, None]
    half = LUNGS_WIDTH_MM / 2
    deep = np.clip(distance_transform_edt(np.pad(cavity, 1))[1:-1, 1:-1] * spacing_mm, 0, half)
    return np.asarray(CHEST_DEPTH_MM * np.sqrt(np.clip(1 - (1 - deep / half) ** 2, 0, 1)))
