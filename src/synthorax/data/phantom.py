"""A drawn thorax: chest radiographs with findings of known place, side, size and severity, for tests and for the demo.

Nothing here comes from a patient. An image is drawn as an X-ray makes one: the soft tissue and bone that each ray crosses
are added up in patient coordinates, lung air is taken away, and the sum passes through the S-shaped curve of an image.
The patient faces the viewer as on a light box: **the patient's left is on the right of the image**.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.data import phantom_anatomy as anatomy
from synthorax.data.dataset import FACTS_NAME, TABLE_NAME, Dataset, read_dataset, write_dataset
from synthorax.data.phantom_anatomy import Body, Field, Lung
from synthorax.data.pixels import write_png
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import UsageError, nearest
from synthorax.folders import claimed
from synthorax.progress import Progress, quiet
from synthorax.types import Stated, Study

FINDINGS = ("Cardiomegaly", "Effusion", "Nodule", "Pneumothorax")
MIN_SIZE_PX, MAX_SIZE_PX = 32, 512


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionSpec:
    """One finding to draw."""

    finding: str
    """one of `FINDINGS`"""
    side: Literal["left", "right"] = "left"
    """the patient's side; Cardiomegaly has none and ignores it"""
    size: float = 0.5
    """0 (smallest) to 1 (largest)"""
    severity: float = 0.7
    """0 (hardly visible) to 1 (full contrast)"""
    place: tuple[float, float] | None = None
    """centre of a nodule in the lung field of its side: from the midline (0) to the chest wall (1), and from the apex (0) to the
    diaphragm (1); None is where this patient has nodules on this side"""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn with a UsageError."""
        if self.finding not in FINDINGS:
            raise UsageError(f"the phantom cannot draw '{self.finding}'; {nearest(self.finding, FINDINGS)}")
        if self.side not in ("left", "right"):
            raise UsageError(f"side is 'left' or 'right', not '{self.side}'")
        if not (0 <= self.size <= 1 and 0 <= self.severity <= 1):
            raise UsageError(f"size and severity lie between 0 and 1, not {self.size} and {self.severity}")
        if self.place is not None and (self.finding != "Nodule" or not all(0 <= part <= 1 for part in self.place)):
            raise UsageError(f"only a nodule can be given a place, two numbers between 0 and 1, not {self.finding} {self.place}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomSpec:
    """One image of one drawn patient."""

    seed: int
    """the patient: the same seed is the same anatomy"""
    image: int = 0
    """which image of the patient: position, exposure and noise"""
    view: Literal["PA", "AP"] = "PA"
    sex: Literal["M", "F"] = "M"
    age_years: float = 50.0
    lesions: tuple[LesionSpec, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomImage:
    """A drawn image and its outlines."""

    image: NDArray[np.uint8]
    """[S, S], bone bright"""
    masks: Mapping[str, NDArray[np.uint8]]
    """[S, S] in {0, 255}: `lung` (fluid and free air included, heart left out), `heart`, and one for each finding drawn"""


def draw_phantom(spec: PhantomSpec, *, size: int) -> PhantomImage:
    """Draw one image of `size` x `size` pixels (32 to 512).

    The same spec always gives the same image. A lesion changes no pixel away from itself: neither noise nor exposure look
    at the lesions. For one patient, the mask of a larger lesion contains that of a smaller one.

    >>> image = draw_phantom(PhantomSpec(seed=7, lesions=(LesionSpec(finding="Nodule", side="left"),)), size=64)
    >>> image.image.shape, sorted(image.masks)
    ((64, 64), ['Nodule', 'heart', 'lung'])
    """
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise UsageError(f"the phantom is drawn at {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels, not {size}")
    body = anatomy.draw_body(spec.seed, view=spec.view, sex=spec.sex, age_years=spec.age_years)
    pose = _draw_pose(spec)
    fine = 1 if size > 200 else 2  # small images are drawn finer and averaged, so that thin lines stay thin
    u, v = _patient_grid(pose.matrix, size * fine)
    lungs = {side: anatomy.draw_lung(body, u, v, side=side) for side in anatomy.SIGN}
    heart = anatomy.draw_heart(body, u, v)
    heart_outline = heart
    air = lungs["left"].depth + lungs["right"].depth
    vessels = anatomy.draw_vessels(body, pose.matrix, size=size * fine)
    opacity = np.zeros_like(u)
    masks: dict[str, Field] = {}
    for lesion in spec.lesions:
        change = _LESIONS[lesion.finding](lesion, body, lungs[lesion.side], u, v)
        strength = 0.3 + 0.7 * lesion.severity
        if change.heart is not None:
            heart = heart + strength * np.clip(change.heart - heart, 0, 1)
            heart_outline = np.maximum(heart_outline, change.heart)
        opacity += strength * (change.opacity - 0.26 * change.free_air * air)
        air = air * (1 - strength * change.fluid)
        vessels = vessels * (1 - np.clip(1.5 * strength, 0, 1) * change.free_air)
        masks[lesion.finding] = np.maximum(masks.get(lesion.finding, np.zeros_like(u)), change.mask)

    air = air * (1 - 0.92 * np.maximum(heart, anatomy.draw_mediastinum(body, u, v)))
    seen_bone = 0.45 + 0.55 * np.clip(air / 0.5, 0, 1)  # scatter hides bone behind dense tissue
    attenuation = anatomy.draw_wall(body, u, v) - 0.80 * air + seen_bone * anatomy.draw_bones(body, u, v, lungs) + opacity
    attenuation += 0.14 * vessels * np.clip(air / 0.5, 0, 1) - 0.45 * anatomy.draw_bubble(body, u, v)
    attenuation += 0.022 * anatomy.draw_texture(body, pose.matrix, size=size * fine) * (0.3 + air)
    image = _shrink(pose.expose(attenuation), fine) + pose.noise(size)
    heart_seen = _shrink(heart_outline, fine) >= 0.3
    lung_seen = _shrink(lungs["left"].inside + lungs["right"].inside, fine) >= 0.5
    outlines = {"lung": lung_seen & ~heart_seen, "heart": heart_seen}
    outlines |= {name: heart_seen if name == "Cardiomegaly" else _shrink(mask, fine) >= 0.5 for name, mask in masks.items()}
    return PhantomImage(image=np.round(255 * np.clip(image, 0, 1)).astype(np.uint8),
                       masks={name: np.where(mask, 255, 0).astype(np.uint8) for name, mask in outlines.items()})


def draw_whole_lungs(spec: PhantomSpec, *, size: int) -> dict[str, NDArray[np.bool_]]:
    """Outlines [S, S] of the `right` and `left` lung of `draw_phantom(spec, size=size)`, with the part behind the heart.

    >>> lungs = draw_whole_lungs(PhantomSpec(seed=7), size=64)
    >>> bool(lungs["right"][:, :32].sum() > lungs["right"][:, 32:].sum())
    True
    """
    body = anatomy.draw_body(spec.seed, view=spec.view, sex=spec.sex, age_years=spec.age_years)
    u, v = _patient_grid(_draw_pose(spec).matrix, size * 2)
    return {side: _shrink(anatomy.draw_lung(body, u, v, side=side).inside, 2) >= 0.5 for side in anatomy.SIGN}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pose:
    """How one image was taken."""

    matrix: NDArray[np.float64]
    """[2, 3], takes patient (u, v, 1) to image coordinates"""
    exposure: float
    contrast: float
    noise_level: float
    noise_seed: tuple[int, ...]

    def expose(self, attenuation: Field) -> Field:
        """Image brightness in 0..1 from what the rays crossed: the S-shaped curve of an image, over a dark background."""
        curve = 1 / (1 + np.exp(-self.contrast * (attenuation - self.exposure)))
        floor = 1 / (1 + np.exp(self.contrast * self.exposure))
        brightness: Field = 0.02 + 0.95 * (curve - floor) / (1 - floor)
        return brightness

    def noise(self, size: int) -> Field:
        """Quantum noise, [size, size]; it never depends on the lesions."""
        rng = np.random.default_rng([*self.noise_seed, size])
        return self.noise_level * rng.standard_normal((size, size))


def _draw_pose(spec: PhantomSpec) -> _Pose:
    rng = np.random.default_rng([spec.seed, 4, spec.image])
    supine = spec.view == "AP"
    angle = np.deg2rad(rng.normal(0, 2.4 if supine else 1.2))
    scale, shift = rng.uniform(0.98, 1.14), rng.uniform(-0.05, 0.05, 2)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return _Pose(matrix=np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]]),
                 exposure=rng.uniform(0.50, 0.66) - 0.08 * supine,
                 contrast=rng.uniform(4.2, 6.2) - 1.0 * supine,
                 noise_level=rng.uniform(0.004, 0.010) + 0.003 * supine, noise_seed=(spec.seed, 5, spec.image))


def _patient_grid(matrix: NDArray[np.float64], size: int) -> tuple[Field, Field]:
    """Patient coordinates u and v of every pixel centre, [size, size] each."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    inverse = np.linalg.inv(matrix[:, :2])
    x, y = axis[None, :] - matrix[0, 2], axis[:, None] - matrix[1, 2]
    return ((inverse[0, 0] * x + inverse[0, 1] * y).astype(np.float32),
            (inverse[1, 0] * x + inverse[1, 1] * y).astype(np.float32))


def _shrink(field: Field, factor: int) -> Field:
    """Average blocks of `factor` x `factor` pixels."""
    if factor == 1:
        return field
    rows: Field = sum(field[start::factor] for start in range(factor))  # type: ignore[assignment]  # far quicker than mean(axis)
    total: Field = sum(rows[:, start::factor] for start in range(factor))  # type: ignore[assignment]
    return total / factor**2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What a lesion of full severity does to the image; every field is [H, W]."""

    mask: Field
    opacity: Field
    fluid: Field
    """share of the lung's air that is replaced by water"""
    free_air: Field
    """share of the lung that is replaced by free air"""
    heart: Field | None = None


def _pneumothorax(lesion: LesionSpec, body: Body, lung: Lung, u: Field, v: Field) -> _Change:
    """Free air between the chest wall and a collapsed lung, widest at the apex, bounded by the thin pleural line."""
    apical = np.clip((0.15 - v) / 0.8, 0, 1)
    width = (0.05 + 0.17 * lesion.size) * (0.25 + 1.25 * apical)
    inward = width - lung.wall_distance
    crescent = lung.inside * np.clip(inward / 0.012 + 0.5, 0, 1)
    line = lung.inside * np.clip(1 - (inward / 0.011) ** 2, 0, 1)
    zero = np.zeros_like(u)
    return _Change(mask=crescent, opacity=0.16 * line, fluid=zero, free_air=crescent)


def _effusion(lesion: LesionSpec, body: Body, lung: Lung, u: Field, v: Field) -> _Change:
    """Fluid at the base with a meniscus that climbs along the chest wall."""
    lateral = np.clip(1 - lung.wall_distance / 0.45, 0, 1)
    level = body.dome_v[lesion.side] + 0.13 - 0.52 * lesion.size - (0.08 + 0.12 * lesion.size) * lateral**2
    below = np.clip((v - level) / 0.03 + 0.5, 0, 1)
    zero = np.zeros_like(u)
    return _Change(mask=lung.inside * below, opacity=zero, fluid=lung.recess * below, free_air=zero)


def _nodule(lesion: LesionSpec, body: Body, lung: Lung, u: Field, v: Field) -> _Change:
    """A round soft opacity; unless it is given, its place belongs to the patient and the side, not to its size."""
    rng = np.random.default_rng([body.texture_seed, 6, lesion.side == "left"])
    centre_a, centre_v = body.lung_width * rng.uniform(0.52, 0.78), rng.uniform(-0.42, 0.12)
    if lesion.place is not None:
        centre_a, centre_v = anatomy.place_in_lung(body, lesion.place, side=lesion.side)
    radius = 0.07 + 0.10 * lesion.size
    distance = ((lung.a - centre_a) ** 2 + (v - centre_v) ** 2) / radius**2
    zero = np.zeros_like(u)
    return _Change(mask=np.clip((1 - distance) / 0.1 + 0.5, 0, 1), opacity=(0.20 + 0.7 * radius) * np.clip(1 - distance, 0, 1) ** 0.6,
                   fluid=zero, free_air=zero)


def _cardiomegaly(lesion: LesionSpec, body: Body, lung: Lung, u: Field, v: Field) -> _Change:
    """The heart's shadow widened by 12 to 45 percent."""
    zero = np.zeros_like(u)
    enlarged = anatomy.draw_heart(body, u, v, scale=1.12 + 0.33 * lesion.size)
    return _Change(mask=enlarged, opacity=zero, fluid=zero, free_air=zero, heart=enlarged)


_LESIONS = {"Cardiomegaly": _cardiomegaly, "Effusion": _effusion, "Nodule": _nodule, "Pneumothorax": _pneumothorax}


DEFAULT_PREVALENCE = {"Effusion": 0.20, "Cardiomegaly": 0.16, "Nodule": 0.14, "Pneumothorax": 0.07}
"""share of the drawn patients who have each finding; pneumothorax is the rare one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomSplit:
    """The images of one split of a drawn set, with a prevalence of its own."""

    split: Literal["train", "val", "test"]
    num: int
    """images"""
    prevalence: Mapping[str, float]
    """share of the patients who have each finding"""


def write_phantom_dataset(
    out: str | Path, *, num: int = 400, size: int = 64, seed: int = 0, prevalence: Mapping[str, float] | None = None, places: bool = False,
    splits: Sequence[PhantomSplit] = (), progress: Progress = quiet
) -> Dataset:
    """Write a dataset folder of `num` drawn images; one patient in four has two or three, with the findings a little changed.

    The number of patients with each finding is `prevalence` (share of patients) rounded, not drawn. Masks, side, size and
    severity of every lesion are in the table, in the order of `lesion_label`. With `places`, each patient's nodule is anywhere in the
    lung field, and all else is the same. `splits`, in place of `num` and `prevalence`, draws the patients of each split apart, and the
    table states the split. Finished drawings are used again; raises `InputError` if `out` holds anything else.

    >>> dataset = write_phantom_dataset("drawn", num=40)  # doctest: +SKIP
    >>> dataset.facts["drawing"]  # doctest: +SKIP
    True
    """
    out = Path(out)
    prevalence = dict(DEFAULT_PREVALENCE if prevalence is None else prevalence)
    inputs = {"num": num, "size": size, "seed": seed, "prevalence": prevalence, "places": places}
    specs: list[tuple[str, PhantomSpec, str]]
    if splits:
        seeds = np.random.default_rng([seed, 9]).integers(2**31, size=len(splits)).tolist()
        specs = [(f"{part.split}-{patient}", spec, part.split) for part, own in zip(splits, seeds, strict=True)
                 for patient, spec in _draw_population(part.num, own, part.prevalence, places=places)]
        inputs = {"splits": [asdict(part) for part in splits], "size": size, "seed": seed, "places": places}
    else:
        specs = [(patient, spec, "") for patient, spec in _draw_population(num, seed, prevalence, places=places)]
    with claimed(out, kind="a set of phantoms", inputs=inputs) as claim:
        if not claim.done:
            for folder in ("images", "masks/lung", "masks/heart", "masks/lesion"):
                (claim.work / folder).mkdir(parents=True)
            studies = []
            for number, (patient, spec, split) in enumerate(specs, start=1):
                studies.append(replace(_write_image(claim.work, patient, spec, size=size), split=split))
                progress(number / len(specs), f"{number} of {len(specs)} drawings")
            write_dataset(claim.work, studies, name="phantom", synthetic=False,
                          facts={"drawing": True, "labels": [*FINDINGS, NO_FINDING], "licence": "Apache-2.0",
                                 "attribution": "the authors of Synthorax",
                                 "description": "drawn chest phantoms: no image, no patient"})
            claim.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _draw_population(num: int, seed: int, prevalence: Mapping[str, float], *, places: bool) -> list[tuple[str, PhantomSpec]]:
    """Patients with their images, as (patient_id, spec)."""
    for finding, share in prevalence.items():
        if finding not in FINDINGS or not 0 <= share <= 1:
            raise UsageError(f"prevalence of '{finding}' is {share}; known are {', '.join(FINDINGS)}, each from 0 to 1")
    rng = np.random.default_rng([seed, 7])
    images: list[int] = []
    while sum(images) < num:
        images.append(min(int(rng.choice([1, 2, 3], p=[0.75, 0.15, 0.10])), num - sum(images)))
    lesions: list[list[LesionSpec]] = [[] for _ in images]
    for finding in FINDINGS:  # a fixed order, so that the table does not depend on the order of `prevalence`
        for patient in rng.permutation(len(images))[:round(prevalence.get(finding, 0.0) * len(images))].tolist():
            side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
            lesions[patient].append(LesionSpec(finding=finding, side=side, size=rng.uniform(0.15, 1), severity=rng.uniform(0.4, 1)))
    if places:  # from a stream of their own, so that everything else is drawn as without
        place_rng = np.random.default_rng([seed, 8])
        centres: list[tuple[float, float]] = [(float(across), float(along)) for across, along in place_rng.uniform(size=(len(images), 2))]
        lesions = [[replace(lesion, place=centre) if lesion.finding == "Nodule" else lesion for lesion in own]
                   for own, centre in zip(lesions, centres, strict=True)]
    specs: list[tuple[str, PhantomSpec]] = []
    for patient, count in enumerate(images):
        sex: Literal["M", "F"] = "M" if rng.random() < 0.54 else "F"
        person = PhantomSpec(seed=int(rng.integers(2**31)), sex=sex, age_years=float(rng.integers(20, 90)))
        for image in range(count):
            view: Literal["PA", "AP"] = "AP" if rng.random() < 0.3 else "PA"
            growth = image * rng.normal(0, 0.12)
            seen = tuple(replace(lesion, size=min(1.0, max(0.0, lesion.size + growth))) for lesion in lesions[patient])
            specs.append((f"phantom-{patient:05d}", replace(person, image=image, view=view, lesions=seen)))
    return specs


def _write_image(folder: Path, patient: str, spec: PhantomSpec, *, size: int) -> Study:
    """Draw one image, write its picture and masks, and return its row."""
    image = draw_phantom(spec, size=size)
    name = f"{patient}-{spec.image}"
    paths = {"image": f"images/{name}.png", "lung": f"masks/lung/{name}.png", "heart": f"masks/heart/{name}.png"}
    paths |= {lesion.finding: f"masks/lesion/{name}-{lesion.finding}.png" for lesion in spec.lesions}
    # Digests of data sets cover these words: with other ones no model would know the phantoms that it has learned from.
    write_png(folder / paths["image"], image.image, provenance={"drawing": f"phantom seed {spec.seed} film {spec.image}"})
    for mask, pixels in image.masks.items():
        Image.fromarray(pixels).save(folder / paths[mask])  # not flushed one by one: the folder appears as a whole
    lesion_masks = {"lesion_mask": tuple(paths[lesion.finding] for lesion in spec.lesions)} if spec.lesions else {}
    present = [lesion.finding for lesion in spec.lesions] or [NO_FINDING]
    extra = {"lesion_side": "|".join("" if lesion.finding == "Cardiomegaly" else lesion.side for lesion in spec.lesions),
             "lesion_size": "|".join(f"{lesion.size:.3f}" for lesion in spec.lesions),
             "lesion_severity": "|".join(f"{lesion.severity:.3f}" for lesion in spec.lesions)}
    return Study(
        file_name=paths["image"], study_id=name, patient_id=patient, site="phantom", view=spec.view, sex=spec.sex,
        age_years=spec.age_years, labels=dict.fromkeys(present, Stated.PRESENT), text=_describe(spec),
        masks={"lung_mask": (paths["lung"],), "heart_mask": (paths["heart"],)} | lesion_masks,
        lesion_label="|".join(lesion.finding for lesion in spec.lesions), extra=extra,
    )


def _describe(spec: PhantomSpec) -> str:
    """The row's `text`, which says that this is a drawing."""
    def phrase(lesion: LesionSpec) -> str:
        extent = ("small", "moderate", "large")[min(2, int(3 * lesion.size))]
        side = "" if lesion.finding == "Cardiomegaly" else f"{lesion.side} "
        return f"{extent} {side}{lesion.finding.lower()}"

    person = f"{spec.age_years:.0f}-year-old {'male' if spec.sex == 'M' else 'female'}"
    return f"Drawn phantom, {spec.view} chest, {person}: {', '.join(map(phrase, spec.lesions)) or 'no finding'}."
