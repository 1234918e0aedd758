"""What is inserted: a lesion of the finding that is asked for, of a size, a side and a density, into the lungs of one host.

A nodule or mass is a volume of a model, projected. Every other finding is made inside an outline, which a mask gives or a model or bank
draws for these lungs: by its physics template, and with a diffusion model by sampling the region again from the template on.
"""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from synthorax.capabilities import LayoutMaker
from synthorax.data.dataset import TABLE_NAME
from synthorax.data.layout_bank import LayoutBank, read_bank, unknown_finding
from synthorax.data.layouts import Box
from synthorax.data.lesions import UNSIDED
from synthorax.data.prepared import FACTS_NAME as PREPARED_FACTS
from synthorax.data.vocabulary import canonical
from synthorax.editing.insertion.insert import TemplateOptions, insert_lesion
from synthorax.editing.insertion.insertion import Insertion
from synthorax.editing.insertion.masked_diffusion import stages_of
from synthorax.editing.insertion.nodules import NoduleOptions, check_place, insert_nodule
from synthorax.editing.insertion.outlines import enlarged_heart, fluid_below, largest_parts, pleural_gap
from synthorax.editing.insertion.templates import TEMPLATES
from synthorax.editing.insertion.visibility import LEAST_OWN, LEAST_VISIBLE, Visibility, visibility
from synthorax.editing.layouts import draw_placed, size_in_lung
from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.folders import stamps
from synthorax.judges.lungs import LungMasks
from synthorax.physics.grey_curve import estimate_spacing_mm, noise_of
from synthorax.physics.volumes import LesionVolume
from synthorax.progress import quiet
from synthorax.rng import derive
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.models.recipe import makes_volumes
from synthorax.steps.models.trained_model import ModelLike, TrainedModel, open_model
from synthorax.steps.nodules import sample_nodules
from synthorax.types import Study
from synthorax.zoo import shipped

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
DIAMETERS_MM = {"Nodule": (10.0, 30.0), "Mass": (30.0, 60.0)}
"""range from which the diameter is drawn, evenly on a scale of ratios; 30 mm is where a nodule becomes a mass (Bankier et al. 2024)"""
SOLIDITY: dict[str, str | None] = {"Nodule": None, "Mass": "solid"}
"""what is asked of the model; the few large lesions that it learned from are of all kinds, and a mass is solid"""
MODEL_MM = (3.0, 60.0)
"""diameters that the model of lesions knows"""
USUAL, USUAL_OUTLINES, TEMPLATE = "nodule-3d", "layout", "template"
"""shipped models of lesions and of outlines, and the name of lesions by a formula"""
FindLungs = Callable[[Pixels], LungMasks]
"""lungs and hearts of images [N, H, W]"""
SOFT_TISSUE = 0.8
"""mm of water per mm of path that a solid lesion has more than the lung"""
USUAL_LEAST, LEAST_OF_LUNGS = 0.005, {"Pneumothorax": 0.015, "Effusion": 0.015}
"""part of both lungs that a drawn outline covers at least where no size is asked for; less is a speck that nobody sees"""
DRAWS = 6
"""outlines drawn for one lesion until one is that large"""
LEAST_CHANGE = 2.0
"""times the noise of a pixel, by which the strongest quarter of a finding other than a nodule changes the image at least"""
GROUP = 4
"""volumes that are sampled at once"""
PLACES, PLACES_EACH, GROWTH = 12, 4, 1.3
"""places that are tried for a nodule until it can be seen, how many for one diameter, and by how much the next is larger"""
VOXELS = 32
"""across a lesion of the template"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionMaker:
    """Makes the lesions of one call; the same seed and host give the same bits."""

    finding: str
    config: InsertConfig
    model: TrainedModel | None = None
    """of volumes, for nodules and masses; None for the template of a formula"""
    outlines: LayoutMaker | LayoutBank | None = None
    """of the other findings; None where a mask is given"""
    painter: TrainedModel | None = None
    """diffusion model that samples the region of another finding again, from its template on"""
    facts: Mapping[str, str] = field(default_factory=dict)
    """of the row: model and model_digest"""
    volumes: dict[int, LesionVolume] = field(default_factory=dict, repr=False, compare=False)
    """by seed of `insert`: those that `prepare` sampled"""

    def insert(self, host: Pixels, lungs: LungMasks, *, spacing_mm: float | None, mask: NDArray[np.bool_] | None, seed: int,
               study: Study | None = None) -> Insertion:
        """The host with one lesion; `lungs` are of this host alone, `study` says of whom it is. InputError where it cannot be."""
        if self.finding in DIAMETERS_MM:
            return self._nodule(host, lungs, spacing_mm=spacing_mm, mask=mask, seed=seed)
        region = mask if mask is not None else self._outline(lungs, seed=derive(seed, "outline"))
        options = TemplateOptions(severity=0.5 if math.isnan(self.config.severity) else self.config.severity, spacing_mm=spacing_mm)
        inside = lungs.both[0] & ~lungs.heart[0]
        made = insert_lesion(host, finding=self.finding, region=region, lungs=inside, seed=seed, template=options,
                             model=None if self.painter is None else self.painter.network, study=study)
        change = float(np.quantile(np.abs(made.pixels.astype(np.float64) - host)[made.mask > 0], 0.75))
        if change < (least := LEAST_CHANGE * noise_of(host, inside)):
            raise InputError(f"the {self.finding} could not be seen: it changes the image by {change:.1f} grey levels, and {least:.1f}, "
                             f"{LEAST_CHANGE:g} times the noise, are asked for",
                             remedy="ask for a larger or more severe one (--size, --severity), or take another place or image")
        return made

    def _outline(self, lungs: LungMasks, *, seed: int) -> NDArray[np.bool_]:
        """An outline in these lungs; where no size is asked for, the first of a few that is large enough to be seen."""
        assert self.outlines is not None
        config, side = self.config, self.config.side
        size = math.nan if math.isnan(config.size) else size_in_lung(config.size, finding=self.finding, side=side or "right", lungs=lungs)
        least = 0.0 if not math.isnan(size) or self.finding in UNSIDED else LEAST_OF_LUNGS.get(self.finding, USUAL_LEAST)
        part = 0.0
        for attempt in range(DRAWS):
            own = seed if attempt == 0 else derive(seed, "larger", attempt)
            region = draw_placed(self.outlines, self.finding, lungs, side=side, size=size, seed=own)[1]
            part = float((region & lungs.both[0]).sum() / max(1, lungs.both[0].sum()))
            if part >= least:
                return self._settled(region, lungs)
        raise InputError(f"the outline that was drawn covers {part:.2%} of the lungs, and {least:.1%} is the least",
                         remedy="ask for a size (--size), or give more outlines (--layouts)")

    def _settled(self, region: NDArray[np.bool_], lungs: LungMasks) -> NDArray[np.bool_]:
        """One body; air and fluid in the form that they have in a chest that stands upright, a large heart in that of the patient's own."""
        if self.finding == "Cardiomegaly":
            return enlarged_heart(region, lungs.heart[0])
        settle = {"Pneumothorax": pleural_gap, "Effusion": fluid_below}.get(self.finding)
        if settle is None:
            return largest_parts(region, parts=1)
        own = max((lungs.right[0], lungs.left[0]), key=lambda lung: int((region & lung).sum()))
        return settle(region, own & ~lungs.heart[0])

    def prepare(self, seed: int, number: int) -> None:
        """Sample the volume of image `number` of a call together with those of its group: a fifth of the time of one by one.

        Groups are the same whatever was made before, and full, so a row does not depend on how many others there are.
        """
        config = self.config
        own = lesion_seed(seed, self.finding, number)
        if self.model is None or own in self.volumes or config.mask is not None or not math.isnan(config.size):
            return
        first = number // GROUP * GROUP
        seeds = [lesion_seed(seed, self.finding, each) for each in range(first, first + GROUP)]
        diameters = [self._drawn_diameter_mm(np.random.default_rng(derive(each, "lesion"))) for each in seeds]
        made = sample_nodules(self.model, diameters_mm=[float(np.clip(each, *MODEL_MM)) for each in diameters],
                              seeds=[derive(each, "volume") for each in seeds], solidity=SOLIDITY[self.finding], progress=quiet)
        self.volumes.clear()
        self.volumes.update(zip(seeds, made, strict=True))

    def _nodule(self, host: Pixels, lungs: LungMasks, *, spacing_mm: float | None, mask: NDArray[np.bool_] | None, seed: int) -> Insertion:
        """A nodule that can be seen: at the first of a few places, and, if its diameter may vary, enlarged, until it stands out."""
        both = lungs.both[0]
        inside = both & ~lungs.heart[0]
        spacing = spacing_mm or estimate_spacing_mm(both)[0]
        rng = np.random.default_rng(derive(seed, "lesion"))
        diameter = self._diameter_mm(host, mask, spacing, rng)
        place = _place_of(mask) if mask is not None else self._place(lungs, radius_px=diameter / spacing / 2, rng=rng)
        options = NoduleOptions(place=place, diameter_mm=diameter, spacing_mm=spacing_mm, dense=mask is not None)
        if mask is not None:
            check_place(host, inside, options=options)
        volume = self._volume(diameter, seed=seed)
        if not math.isnan(self.config.severity):
            volume = replace(volume, water=volume.water * np.float32(2 ** (2 * self.config.severity - 1)))
        largest = diameter if self._states_size() else DIAMETERS_MM[self.finding][1]
        best, problem = Visibility(after=-math.inf, before=-math.inf), SynthoraxError("was not tried")
        for turn in range(1 if mask is not None else PLACES):
            if turn:
                diameter = min(largest, diameter * (GROWTH if turn % PLACES_EACH == 0 else 1))
                place = self._place(lungs, radius_px=diameter / spacing / 2, rng=rng, anywhere=True)
                options = replace(options, place=place, diameter_mm=diameter)
            try:
                made = insert_nodule(host, volume, lungs=inside, seed=seed, finding=self.finding, options=options)
            except InputError as error:  # at this place; others may do
                problem = error
                continue
            seen = visibility(host, made.pixels, inside, place=made.record["place"], radius_px=diameter / spacing / 2)
            if seen.enough:
                return replace(made, record={**made.record, "visibility": seen.after, "visibility_before": seen.before,
                                             "least_visible": LEAST_VISIBLE, "places": turn + 1})
            best = max(best, seen, key=lambda one: one.margin)
        if best.after == -math.inf:
            raise problem
        raise InputError(f"the {self.finding.lower()} could not be seen: at best it stands out by {best.after:.1f} standard deviations of "
                         f"the clutter, {best.after - best.before:.1f} of them its own; at least {LEAST_VISIBLE:g}, "
                         f"{LEAST_OWN * LEAST_VISIBLE:.1f} of them its own, are asked for",
                         remedy="ask for a larger or denser one (--diameter-mm, --severity), or take another place or image")

    def _states_size(self) -> bool:
        return self.config.mask is not None or not (math.isnan(self.config.diameter_mm) and math.isnan(self.config.size))

    def _diameter_mm(self, host: Pixels, mask: NDArray[np.bool_] | None, spacing: float, rng: np.random.Generator) -> float:
        area = float(mask.sum()) if mask is not None else (self.config.size / 2) ** 2 * host.size
        if math.isnan(self.config.diameter_mm) and not math.isnan(area):
            return 2 * math.sqrt(area / math.pi) * spacing
        return self._drawn_diameter_mm(rng)

    def _drawn_diameter_mm(self, rng: np.random.Generator) -> float:
        """The diameter that is asked for, or else one from the range of the finding."""
        low, high = DIAMETERS_MM[self.finding]
        asked = self.config.diameter_mm
        return asked if not math.isnan(asked) else math.exp(float(rng.uniform(math.log(low), math.log(high))))

    def _place(self, lungs: LungMasks, *, radius_px: float, rng: np.random.Generator, anywhere: bool = False) -> tuple[float, float] | None:
        """A place in the lung of the side that is asked for; where any will do, None, or with `anywhere` a place in one of the two."""
        if not (self.config.side or anywhere):
            return None
        own = {"left": lungs.left[0], "right": lungs.right[0]}.get(self.config.side, lungs.both[0]) & ~lungs.heart[0]
        if not own.any():
            raise InputError(f"the patient's {self.config.side or 'right or left'} lung was not found",
                             remedy="leave out --side, or give a lung_mask")
        deep = distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1]
        if radius_px > deep.max():
            raise InputError(f"a lesion of {2 * radius_px:.0f} px is larger than the lung, which is {2 * deep.max():.0f} px wide",
                             remedy="ask for a smaller one")
        rows, columns = np.nonzero(deep >= 0.8 * radius_px)
        at = int(rng.integers(len(rows)))
        return (columns[at] + 0.5) / own.shape[1], (rows[at] + 0.5) / own.shape[0]

    def _volume(self, diameter_mm: float, *, seed: int) -> LesionVolume:
        if seed in self.volumes:
            return self.volumes[seed]
        own = derive(seed, "volume")
        if self.model is None:
            return template_volume(diameter_mm, seed=own)
        asked = float(np.clip(diameter_mm, *MODEL_MM))  # beyond that, the nearest is enlarged or shrunk
        return sample_nodules(self.model, diameters_mm=[asked], seeds=[own], solidity=SOLIDITY[self.finding], progress=quiet)[0]


def lesion_seed(seed: int, finding: str, number: int) -> int:
    """The seed of one image: findings have streams of their own, so that one seed does not give all of them the same side.

    Nodules keep the stream that they had before there were others.
    """
    return derive(seed, "insert", number) if finding == "Nodule" else derive(seed, "insert", finding, number)


def lesion_maker(finding: str, config: InsertConfig, *, model: ModelLike | None = None, find_lungs: FindLungs | None = None) -> LesionMaker:
    """The maker of a finding; `model` is a run or shipped model of lesions, or `template`; by default the one that ships, if it does.

    Outlines of findings other than nodule and mass come from `config.layouts` or the shipped model, unless a mask is given. Raises
    UsageError for a finding that nothing inserts, naming those that can be, for a model that makes no lesions, and where outlines are
    missing.
    """
    name, known = canonical(finding), sorted({*DIAMETERS_MM, *TEMPLATES})
    if name not in known:
        raise UsageError(f"nothing inserts '{name}'; choose from: {', '.join(known)}")
    if name in DIAMETERS_MM:
        return _nodule_maker(name, config, model)
    if not math.isnan(config.diameter_mm):
        raise UsageError(f"a diameter is of a nodule or mass; ask for {name} by --size")
    painter = _painter(name, model)
    facts = {"model": TEMPLATE} if painter is None else {"model": painter.name, "model_digest": painter.digest}
    if config.mask is not None:
        return LesionMaker(finding=name, config=config, painter=painter, facts=facts)
    outlines, digest = _outlines(config, find_lungs)
    known_here = outlines.findings if isinstance(outlines, LayoutBank) else outlines.spec.findings
    if name not in known_here:
        raise unknown_finding(name, among=known_here, what="the source of outlines")
    return LesionMaker(finding=name, config=config, outlines=outlines, painter=painter, facts={**facts, "outlines_digest": digest})


def _painter(name: str, model: ModelLike | None) -> TrainedModel | None:
    """The diffusion model that is to paint a finding; None for the template alone."""
    if model is None or str(model) == TEMPLATE:
        return None
    opened = open_model(model)
    stages_of(opened.network)  # or a UsageError
    if name not in opened.spec.findings:
        raise UsageError(f"{opened.name} does not know '{name}'; choose from: {', '.join(opened.spec.findings)}")
    return opened


def _nodule_maker(name: str, config: InsertConfig, model: ModelLike | None) -> LesionMaker:
    if config.layouts is not None:
        raise UsageError(f"{name} is made of volumes; leave out --layouts")
    chosen = model if model is not None else USUAL if USUAL in shipped() else TEMPLATE
    if str(chosen) == TEMPLATE:
        return LesionMaker(finding=name, config=config, facts={"model": TEMPLATE})
    opened = open_model(chosen)
    if not makes_volumes(opened.spec):
        raise UsageError(f"{opened} makes no lesions in three dimensions; take one of the recipe nodule-3d, or {TEMPLATE}")
    return LesionMaker(finding=name, config=config, model=opened, facts={"model": opened.name, "model_digest": opened.digest})


def _outlines(config: InsertConfig, find_lungs: FindLungs | None) -> tuple[LayoutMaker | LayoutBank, str]:
    """The source of outlines, and what identifies it."""
    given = config.layouts
    if given is None and USUAL_OUTLINES not in shipped():
        raise UsageError("no model of outlines ships; give a mask (--mask) or outlines of your own (--layouts)")
    if given is not None and ((given / TABLE_NAME).is_file() or (given / PREPARED_FACTS).is_file()):
        def boxes(images: Pixels) -> list[tuple[Box, Box]]:
            assert find_lungs is not None
            frame = find_lungs(images).frame()
            return [(tuple(right), tuple(left)) for right, left in zip(frame.right.tolist(), frame.left.tolist(), strict=True)]

        return read_bank(given, find_lungs=boxes if find_lungs is not None else None), hashlib.sha256(
            json.dumps(stamps(given), sort_keys=True).encode()).hexdigest()
    if given is not None and given.is_dir() and not any(given.iterdir()):
        raise InputError("the folder of outlines is empty", file=given,
                         remedy="give a data set with lesion masks, or a run of the recipe layout-128")
    opened = open_model(given or USUAL_OUTLINES)
    if not isinstance(opened.network, LayoutMaker):
        raise UsageError(f"{opened} draws no outlines; take a run of the recipe layout-128, or a data set with lesion masks")
    return opened.network, opened.digest


def template_volume(diameter_mm: float, *, seed: int) -> LesionVolume:
    """A solid lesion by a formula: an ellipsoid with a lobulated surface and a soft rim, of the diameter of the sphere of its volume.

    The surface is r(u) = 1 + sum over 6 random directions v of 0.08 a cos(3 u.v + b), a and b random: no data, no network.
    """
    rng = np.random.default_rng(derive(seed, "template"))
    half = VOXELS * 0.75
    axis = np.arange(-math.ceil(half), math.ceil(half) + 1, dtype=np.float64)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1) / rng.uniform(0.85, 1.15, 3)
    distance = np.linalg.norm(grid, axis=-1)
    unit = grid / np.maximum(distance, 1e-9)[..., None]
    directions = rng.standard_normal((6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = 0.08 * rng.standard_normal(6) * np.cos(3 * unit @ directions.T + rng.uniform(0, 2 * math.pi, 6))
    depth = (1 + waves.sum(axis=-1)) * VOXELS / 2 - distance  # voxels inside the surface
    mask = depth > 0
    water = SOFT_TISSUE * np.clip(depth / 2 + 0.5, 0, 1) * mask
    spacing = diameter_mm / float(np.cbrt(6 * mask.sum() / math.pi))
    return LesionVolume(water=water.astype(np.float32), mask=mask, spacing_mm=spacing)


def _place_of(mask: NDArray[np.bool_]) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5) / mask.shape[1], float(rows.mean() + 0.5) / mask.shape[0]


def identity(maker: LesionMaker) -> dict[str, Any]:
    """What the lesions depend on beside the settings, for the claim of a folder."""
    return {"finding": maker.finding, "lesions": maker.facts.get("model_digest", maker.facts["model"]),
            "outlines": maker.facts.get("outlines_digest", "")}
