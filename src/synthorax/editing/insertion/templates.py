"""Physics templates of findings that are no nodules: from a region and the lungs to mm of water more or less, and vanished lung markings.

Each template is a recipe with a closed form, not a model: how a radiologist would explain the look of the finding by what attenuates. Fluid
and consolidated lung replace air, so they raise the image to at most the level of solid tissue, and where it was solid before they add
nothing: borders of the heart and the diaphragm vanish beside them (the silhouette sign). Air in the pleural space takes lung, with its
markings, away. Ribs stay visible through all of them. A severity from 0 to 1 runs along the range of mm of water of the finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, uniform_filter

from synthorax.errors import InputError, nearest
from synthorax.physics.grey_curve import LUNG_DENSITY, GreyCurve

Map = NDArray[np.float64]
Template = Callable[["Site", float, np.random.Generator], "Change"]
LEAST_MM = 0.05
"""of water: less than that is nothing"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The part of a host in which a finding is made."""

    grey: Map
    """[h, w] grey levels, white is dense"""
    region: NDArray[np.bool_]
    """[h, w]: outline of the finding"""
    lungs: NDArray[np.bool_]
    """[h, w]"""
    curve: GreyCurve
    spacing_mm: float
    solid: float
    """grey level of solid tissue as thick as the lungs are: that of heart and diaphragm"""
    cavity_mm: Map
    """[h, w]: how deep the chest is along the ray, from its inner wall in front to that behind; 0 outside"""

    def depth_mm(self) -> Map:
        """Distance from the nearest pixel outside the region; 0 outside."""
        return np.asarray(distance_transform_edt(np.pad(self.region, 1))[1:-1, 1:-1] * self.spacing_mm)

    def aerated(self) -> NDArray[np.bool_]:
        """Lung outside the region, without slivers thinner than 6 mm, which two outlines of one border leave between them."""
        outside = self.lungs & ~self.region
        deep = distance_transform_edt(np.pad(outside, 1, mode="edge"))[1:-1, 1:-1] * self.spacing_mm >= 3
        return outside & (distance_transform_edt(~deep) * self.spacing_mm <= 4.5) if deep.any() else deep

    def from_lung_mm(self) -> Map:
        """Distance from the nearest pixel of aerated lung; far where there is none."""
        aerated = self.aerated()
        return np.asarray(distance_transform_edt(~aerated) * self.spacing_mm) if aerated.any() else np.full(self.grey.shape, 1e3)

    def beyond_pleura_mm(self) -> Map:
        """Distance from the border between the region and the lung that is left, positive in the region; smooth to less than a pixel."""
        aerated, pixel = self.aerated(), self.spacing_mm
        if not aerated.any():
            return np.full(self.grey.shape, 1e3)
        beyond, before = (distance_transform_edt(~part) * pixel for part in (aerated, self.region))
        signed = np.where(aerated, pixel / 2 - before, beyond - pixel / 2)
        return np.asarray(gaussian_filter(signed, min(1.0, 1.6 / pixel)))

    def missing_mm(self, *, detail: float = 1.0) -> Map:
        """mm of water that each place lacks to be solid; `detail` in [0, 1] is what is left of ribs and vessels once they are added.

        Means over 6 mm keep detail, and finer ones level it; beside what is solid already they are always fine.
        """
        coarse, fine = ((self.solid - gaussian_filter(self.grey, sigma / self.spacing_mm)) / self.curve.levels_per_mm for sigma in (6, 0.8))
        keeping = np.minimum(coarse, fine + 4 * np.clip(fine / 20, 0, 1))
        return np.asarray(np.clip(fine + detail * (keeping - fine), 0, None))

    def texture(self, scale_mm: float | tuple[float, float], rng: np.random.Generator) -> Map:
        """Gaussian texture of mean 0 and standard deviation 1, of structures of `scale_mm` (down, across)."""
        made = gaussian_filter(rng.standard_normal(self.grey.shape), np.array(scale_mm) / self.spacing_mm, mode="wrap")
        return np.asarray((made - made.mean()) / made.std())


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a finding changes."""

    water: Map
    """[h, w] mm of water added, or taken away where negative"""
    faded: Map
    """[h, w] in [0, 1]: part of the fine lung markings that is gone"""
    part: Map | None = None
    """[h, w] in [0, 1]: how much of what the ray passes in the finding, where `most` limits it"""
    most: Map | None = None
    """[h, w] mm of water that fill all of it, as sharp as the image: what lies beside solid tissue ends where that begins"""
    line: Map | None = None
    """[h, w] mm of water of a line as thin as the image can show, which is not blurred again"""


def rising(distance: Map, width: float) -> Map:
    """From 0 at a distance of 0 to 1 at `width`, with no kink at either end."""
    part = np.clip(distance / width, 0, 1)
    return np.asarray(part * part * (3 - 2 * part))


def _mm(severity: float, low: float, high: float) -> float:
    return low + (high - low) * severity


def effusion(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Fluid: a layer that thickens from the meniscus down and out to the wall, until nothing of the lung shows; the angle is gone."""
    extended = _beyond_lungs(without_markings(site), 4)
    height = site.from_lung_mm()
    inner = height[site.region]
    layer = np.where(extended.region, rising(height, min(_mm(severity, 34, 18), 0.8 * float(inner.max() if inner.size else 1))), 0)
    full = _mm(severity, 30, 90) * np.clip(height / 60, 1, 2.5)  # the more fluid lies above, the thicker the layer
    layer *= rising(extended.depth_mm(), 3)
    return Change(water=layer * full, part=layer, most=extended.missing_mm(detail=0.35), faded=layer)


def consolidation(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Airspaces filled in patches that flow together, densest in the middle, with a soft and uneven border."""
    uneven = site.depth_mm() * (1 + 0.35 * site.texture(9, rng))
    reach = max(float(site.depth_mm().max()), 1.0)
    fill = rising(uneven, min(0.95 * reach, 30)) * np.clip(0.72 + 0.13 * site.texture(8, rng) + 0.07 * site.texture(2.5, rng), 0.2, 1)
    fill *= rising(site.depth_mm(), 3)
    return Change(water=fill * _mm(severity, 14, 60), part=fill, most=site.missing_mm(), faded=0.5 * fill)


def atelectasis(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Collapsed lung: denser bands, mostly across, in a haze."""
    bands = np.clip(0.55 + 0.18 * site.texture((3.5, 18), rng) + 0.12 * site.texture(6, rng), 0.15, 1)
    reach = max(float(site.depth_mm().max()), 1.0)
    fill = rising(site.depth_mm() * (1 + 0.25 * site.texture(8, rng)), min(0.8 * reach, 14)) * bands
    fill *= rising(site.depth_mm(), 3)
    return Change(water=fill * _mm(severity, 12, 50), part=fill, most=site.missing_mm(), faded=0.4 * fill)


def infiltration(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Ill-defined patches, thinner than a consolidation."""
    made = consolidation(site, severity, rng)
    return replace(made, water=0.5 * made.water, faded=0.3 * made.faded)


def pleural_thickening(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """A band along the wall with a smooth inner border."""
    extended = _beyond_lungs(site, 4)
    band = np.where(extended.region, rising(site.from_lung_mm(), 5), 0) * (1 + 0.12 * site.texture(8, rng))
    band *= rising(extended.depth_mm(), 2.5)
    return Change(water=band * _mm(severity, 8, 30), part=band, most=extended.missing_mm(), faded=np.clip(0.6 * band, 0, 1))


def pneumothorax(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Air in the place of lung, without markings, up to the visceral pleura: a thin line, behind which the lung is a little denser.

    The air lacks the water of the lung that was there, `LUNG_DENSITY` of the depth of the chest. The pleura is seen where the ray grazes
    it; per mm of its length that makes 9 to 18 mm² of water: on NIH images at 256 px lines of 6 to 15 grey levels, one to two pixels wide.
    """
    into = site.beyond_pleura_mm()
    air = rising(into + 1 - 0.5 * site.spacing_mm, 2.5)
    width = max(0.6, 0.5 * site.spacing_mm)  # standard deviation
    amount = _mm(severity, 9, 18) * np.clip(1 + 0.2 * site.texture(12, rng), 0.5, 1.5)
    shape = np.exp(-0.5 * ((into + 0.5 * site.spacing_mm) / width) ** 2)  # half a pixel within the lung
    line = amount / (width * math.sqrt(2 * math.pi)) * shape * (site.lungs | site.region)
    haze = _mm(severity, 1.5, 4) * np.where((into < 0) & site.lungs, rising(12 + into, 12), 0) * (1 - air)
    lost = _mm(severity, 0.7, 1.3) * LUNG_DENSITY * site.cavity_mm
    return Change(water=np.where(site.region, -lost * air, haze), faded=np.where(site.region, rising(into, 1.5), 0), line=line)


def emphysema(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """Lost lung tissue: darker, with fewer markings; it ends nowhere in particular."""
    reach = max(float(site.depth_mm().max()), 1.0)
    lost = rising(site.depth_mm(), min(reach, 30)) * np.clip(0.8 + 0.15 * site.texture(10, rng), 0, 1)
    return Change(water=-_mm(severity, 6, 20) * lost, faded=_mm(severity, 0.3, 0.8) * lost)


def fibrosis(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """A net of fine lines around airspaces of 3 to 8 mm, over a slight haze."""
    soft = rising(site.depth_mm() * (1 + 0.3 * site.texture(8, rng)), min(0.8 * max(float(site.depth_mm().max()), 1.0), 14))
    net = sum(np.exp(-0.5 * (site.texture(scale, rng) / 0.35) ** 2) - 0.3 for scale in (1.6, 2.8))
    amount = _mm(severity, 2.5, 9)
    water = soft * amount * (0.9 * net + 0.5 + 0.35 * site.texture(6, rng))
    return Change(water=np.minimum(water, site.missing_mm() + 2) * rising(site.depth_mm(), 2), faded=np.zeros_like(soft))


def mass(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """A solid body as deep as it is wide: an ellipsoid of revolution, lobed as its outline is."""
    depth = site.depth_mm()
    radius = max(float(depth.max()), 1e-6)
    body = 2 * np.sqrt(np.clip(depth * (2 * radius - depth), 0, None)) * np.clip(1 + 0.05 * site.texture(5, rng), 0.5, 1.3)
    return Change(water=_mm(severity, 0.3, 0.85) * body, faded=np.zeros_like(body))


def cardiomegaly(site: Site, severity: float, rng: np.random.Generator) -> Change:
    """The heart's own density out to a wider outline, thinning towards the border as a round heart does."""
    aerated = site.from_lung_mm()
    body = np.sqrt(np.clip(1 - (1 - np.clip(aerated / 24, 0, 1)) ** 2, 0, 1)) * rising(aerated, 3)
    body = np.where(site.region, body, 0) * _mm(severity, 0.6, 1) * rising(site.depth_mm(), 3)
    return Change(water=90 * body, part=body, most=without_markings(site).missing_mm(detail=0.4), faded=body)


TEMPLATES: dict[str, Template] = {
    "Effusion": effusion, "Pneumothorax": pneumothorax, "Consolidation": consolidation, "Pneumonia": consolidation,
    "Infiltration": infiltration, "Atelectasis": atelectasis, "Pleural_Thickening": pleural_thickening, "Mass": mass,
    "Cardiomegaly": cardiomegaly, "Fibrosis": fibrosis, "Emphysema": emphysema}
"""finding -> template"""


def apply_template(finding: str, site: Site, *, severity: float, rng: np.random.Generator, blur_px: float = 1.0) -> tuple[Map, Map]:
    """The mm of water [h, w] that a finding adds, as the system shows them, and the part of the lung markings that is gone.

    Raises InputError for a finding without a template.
    """
    if finding not in TEMPLATES:
        raise InputError(f"no physics template knows '{finding}'", remedy=nearest(finding, TEMPLATES))
    change = TEMPLATES[finding](site, severity, rng)
    water = gaussian_filter(change.water, blur_px)
    if change.part is not None and change.most is not None:
        water = np.minimum(water, gaussian_filter(change.part, blur_px) * change.most)
    if change.line is not None:
        water = water + change.line
    water[np.abs(water) < LEAST_MM] = 0
    faded = np.clip(gaussian_filter(change.faded, blur_px), 0, 1) * np.clip(np.abs(water) / 4, 0, 1)
    return water, faded


def with_water(site: Site, water: Map, faded: Map) -> Map:
    """Grey levels [h, w] behind the mm of water, which are not rounded, less that part of the lung markings that is gone."""
    grey = site.grey - faded * markings(site) if faded.any() else site.grey
    return site.curve.add(grey, water)


def markings(site: Site) -> Map:
    """The fine lung markings, [h, w]: what a filter removes that is guided by the image without them (He et al. 2013), less noise.

    The guide is the image blurred by 2.2 mm, and then what the filter made of it, as in rolling guidance (Zhang et al. 2014): vessels are
    gone, and borders of ribs come back. The grain of the image, what changes from pixel to pixel by no more than the noise, stays.
    """
    radius, limit = max(1, round(4 / site.spacing_mm)), (3 * site.curve.levels_per_mm) ** 2 / 4

    def mean(values: Map) -> Map:
        return np.asarray(uniform_filter(values, 2 * radius + 1))

    smooth, level = gaussian_filter(site.grey, 2.2 / site.spacing_mm), mean(site.grey)
    for _ in range(3):
        centre = mean(smooth)
        slope = (mean(smooth * site.grey) - centre * level) / (mean(smooth * smooth) - centre * centre + limit)
        smooth = mean(slope) * smooth + mean(level - slope * centre)
    detail = site.grey - smooth
    grain = np.clip(detail - gaussian_filter(detail, 1.0), -site.curve.noise, site.curve.noise)
    return np.asarray(detail - grain)


def without_markings(site: Site) -> Site:
    """The site as if no lung markings were left, for what is as dense as it is whatever lies behind."""
    return replace(site, grey=site.grey - markings(site))


def _beyond_lungs(site: Site, reach_mm: float) -> Site:
    """The site with its region extended outside the lungs, so that nothing dark is left between it and wall or diaphragm."""
    steps = max(1, math.ceil(reach_mm / site.spacing_mm))
    inside = site.region & site.lungs
    wide = distance_transform_edt(~inside) <= steps if inside.any() else inside
    region: Any = inside | (wide & ~site.lungs)
    return replace(site, region=region)
