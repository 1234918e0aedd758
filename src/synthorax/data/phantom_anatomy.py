"""The healthy drawn thorax behind `phantom.py`: what each X-ray crosses, as smooth fields over patient coordinates.

Coordinates: `u` runs from -1 to 1 across the image, `v` from -1 (top) to 1 (bottom), before the patient's tilt, scale and
shift. The patient's left is at positive `u`. Thickness 1 is the soft tissue of an average chest from front to back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.floating[Any]]
"""[H, W] over the image"""
View = Literal["PA", "AP"]

SIGN = {"right": -1.0, "left": 1.0}
"""direction of each of the patient's sides along `u`"""
NUM_RIBS = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """One person's anatomy. Lengths and places are in image half-widths, `_v` and `_u` say along which axis; the rest has no unit."""

    middle: float
    lung_width: float
    apex_v: float
    dome_v: dict[str, float]
    heart_width: float
    heart_height: float
    heart_tilt: float
    aorta: float
    rib_v: float
    rib_spacing: float
    rib_slope: float
    rib_radius: float
    rib_jitter: NDArray[np.float32]
    bone: float
    clavicle_v: dict[str, float]
    scapula_u: float
    stoutness: float
    breast: float
    breast_v: float
    bubble: float
    texture_seed: int


def draw_body(seed: int, *, view: View, sex: str, age_years: float) -> Body:
    """The anatomy of patient `seed`. The view changes the projection, never the person."""
    rng = np.random.default_rng([seed, 1])
    spread = rng.uniform(-1, 1, 24).tolist()
    woman, supine = sex == "F", view == "AP"
    old = float(np.clip((age_years - 50) / 40, -1, 1))
    stoutness = 1 + 0.14 * spread[0] + 0.03 * woman
    dome = 0.44 + 0.10 * spread[1] - 0.13 * supine - 0.02 * woman
    return Body(
        middle=0.015 * spread[2],
        lung_width=0.685 + 0.035 * spread[3] - 0.03 * woman,
        apex_v=-0.72 + 0.05 * spread[4] + 0.04 * supine,
        dome_v={"right": dome, "left": dome + 0.06 + 0.025 * spread[5]},
        heart_width=(0.315 + 0.035 * spread[6] + 0.02 * old) * (1.13 if supine else 1.0),
        heart_height=0.335 + 0.03 * spread[7],
        heart_tilt=0.66 + 0.14 * spread[8] - 0.10 * old - 0.10 * supine,
        aorta=0.075 + 0.012 * spread[9] + 0.018 * old,
        rib_v=-0.80 + 0.03 * spread[10],
        rib_spacing=0.128 + 0.008 * spread[11],
        rib_slope=0.10 + 0.06 * spread[12] - 0.07 * supine,
        rib_radius=0.029 + 0.004 * spread[13] - 0.003 * woman,
        rib_jitter=rng.uniform(-0.010, 0.010, (2, NUM_RIBS)).astype(np.float32),
        bone=1.0 + 0.22 * spread[14] - 0.22 * old - 0.06 * woman,
        clavicle_v={"right": -0.60 + 0.03 * spread[15] - 0.06 * supine, "left": -0.60 + 0.03 * spread[16] - 0.06 * supine},
        scapula_u=(0.63 if supine else 0.735) + 0.03 * spread[17],
        stoutness=stoutness,
        breast=max(0.0, 0.20 + 0.12 * spread[18]) if woman else max(0.0, 0.04 * spread[18]),
        breast_v=0.34 + 0.08 * spread[19],
        bubble=max(0.0, 0.11 + 0.09 * spread[20]),
        texture_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lung:
    """One lung as fields over the image, [H, W]."""

    a: Field
    """distance from the midline towards this side"""
    inside: Field
    """0 to 1: the lung above its diaphragm dome, behind the heart too"""
    depth: Field
    """thickness of aerated lung along the ray"""
    wall_distance: Field
    """distance from the chest wall and the apex, along the image"""
    recess: Field
    """0 to 1: `inside` and a little of the lung that shows through the top of the dome"""


def draw_lung(body: Body, u: Field, v: Field, *, side: str) -> Lung:
    """The lung of one side of the patient."""
    a = SIGN[side] * (u - body.middle)
    dome_v = body.dome_v[side]
    t, medial, lateral = _lung_edges(body, v, side=side)
    outward = np.clip((a - 0.30) / (body.lung_width - 0.30), 0, 1.2)
    dome = dome_v + 0.20 * outward**2 * outward**0.5 + 0.07 * np.clip((0.30 - a) / 0.30, 0, 1.3) ** 2
    sides = _edge(lateral - a, 0.015) * _edge(a - medial, 0.035) * _edge(v - body.apex_v, 0.02)
    inside = sides * _edge(dome - v, 0.012)
    across = np.clip((a - 0.02) / np.maximum(lateral - 0.02, 1e-3), 0, 1)
    depth = (1 - across**2 * across) ** 0.5 * np.clip((t + 0.01) / 0.42, 0, 1) ** 0.5
    # The lung goes on behind and below the dome and thins out there.
    behind = 0.20 * np.clip(1 - (v - dome) / 0.25, 0, 1) ** 2
    depth = depth * (inside + (sides - inside) * behind)
    beside, above = np.maximum(lateral - a, 1e-3), np.maximum(v - body.apex_v, 1e-3)
    wall = beside * above / (beside**2 + above**2) ** 0.5
    recess = sides * _edge(dome + 0.03 - v, 0.06)
    return Lung(a=a, inside=inside, depth=0.92 * depth, wall_distance=wall, recess=recess)


def _lung_edges(body: Body, v: Field, *, side: str) -> tuple[Field, Field, Field]:
    """How far down the lung each height `v` is, from 0 at the apex, and its borders there, towards the midline and the chest wall."""
    t = np.clip((v - body.apex_v) / (body.dome_v[side] + 0.25 - body.apex_v), 0, 1.1)
    apex_a = 0.46 * body.lung_width
    # Square roots and products in place of other powers make the drawing twice as quick.
    above_base = 1 - np.clip(t / 0.8, 0, 1)
    bulge = 1 - above_base**2 * above_base**0.5
    lateral = apex_a + (body.lung_width - apex_a) * (0.6 * bulge**0.5 + 0.4 * bulge)
    medial = apex_a - (apex_a - 0.075) * (1 - (1 - np.clip(t / 0.32, 0, 1)) ** 2) ** 0.5
    return t, medial, lateral


def place_in_lung(body: Body, place: tuple[float, float], *, side: str, margin: float = 0.08) -> tuple[float, float]:
    """The point of one side's lung field at `place`, as (distance from the midline, v).

    `place` is (across, along), each 0 to 1: from the midline to the chest wall, and from the apex to the diaphragm. All such points are
    in the lung, `margin` or more from its borders across and along; some of the left lung's are behind the heart.
    """
    across, along = place
    v = body.apex_v + margin + along * (body.dome_v[side] - body.apex_v - 2 * margin)
    _, medial, lateral = _lung_edges(body, np.array(v), side=side)
    return float(medial + margin + across * (lateral - medial - 2 * margin)), v


def draw_heart(body: Body, u: Field, v: Field, *, scale: float = 1.0) -> Field:
    """Thickness of the heart from 0 to 1; `scale` enlarges it, mostly towards the patient's left."""
    grown = scale - 1
    x, y = u - body.middle, v - body.dome_v["left"] + 0.68 * body.heart_height
    cos, sin = math.cos(body.heart_tilt), math.sin(body.heart_tilt)
    x_left = x - 0.105 - 0.13 * grown
    along = (x_left * cos + y * sin) / (1.12 * body.heart_width * scale)
    across = (y * cos - x_left * sin) / (0.74 * body.heart_height * (1 + 0.8 * grown))
    left = _dome_profile(along**2 + across**2)
    right_atrium = _dome_profile(((x + 0.005) / (0.155 * scale)) ** 2 + ((y - 0.02) / (0.27 + 0.1 * grown)) ** 2)
    root = _dome_profile(((x - 0.035) / 0.125) ** 2 + ((y + 0.26) / 0.30) ** 2)
    core = _dome_profile(((x - 0.04) / 0.19) ** 2 + ((y - 0.05) / 0.24) ** 2)
    heart: Field = np.maximum.reduce([left, right_atrium, root, core])
    return heart


def draw_mediastinum(body: Body, u: Field, v: Field) -> Field:
    """Great vessels and the soft tissue between the lungs, 0 to 1."""
    x = u - body.middle
    knob = _dome_profile(((x - 0.085) / body.aorta) ** 2 + ((v + 0.30) / (body.aorta * 1.15)) ** 2)
    pulmonary = _dome_profile(((x - 0.10) / 0.085) ** 2 + ((v + 0.10) / 0.15) ** 2)
    descending = _edge(0.045 + body.aorta - x, 0.02) * _edge(x, 0.03) * _edge(v + 0.30, 0.05) * 0.8
    cava = _edge(x + 0.115, 0.04) * _edge(0.10 - x, 0.04) * _edge(v + 0.70, 0.3)
    hila = 0.8 * np.exp(-(((np.abs(x - 0.01) - 0.15) / 0.055) ** 2) - ((v + 0.04) / 0.11) ** 2)
    tissue: Field = np.maximum.reduce([knob, 0.9 * pulmonary, descending, 0.9 * cava, hila])
    return tissue


def draw_wall(body: Body, u: Field, v: Field) -> Field:
    """Soft tissue from front to back without the lungs: trunk, neck, shoulders, arms, breasts, abdomen."""
    x = np.abs(u - body.middle)
    slope = -0.97 + 0.36 * np.clip((x - 0.16) / 0.75, 0, 2) - 0.12 * (body.stoutness - 1)
    below_skin = np.clip((v - slope) / 0.62, 0, 1) ** 0.5
    trunk = _slab(x / (0.845 * body.stoutness**0.6 + 0.03 * v)) * below_skin
    neck = 0.66 * _slab(x / (0.20 * body.stoutness + 0.25 * np.clip(v + 0.85, 0, 1)))
    armpit = 1.28 - 1.2 * np.clip(v + 0.40, 0, 1)
    shoulder = 0.78 * below_skin * np.clip((armpit - x) / 0.25, 0, 1) ** 0.5
    arm = 0.66 * _tube(x, v, (1.00, -0.45), (1.16, 0.75), 0.17 * body.stoutness)
    tissue = np.maximum.reduce([trunk, neck, shoulder, arm])
    belly = 0.16 * np.clip((v - 0.25) / 0.6, 0, 1) * np.clip(trunk, 0, 1)
    inner = ((x - 0.46) / 0.36) ** 2
    droop = v - body.breast_v
    below = np.clip(np.maximum(droop / 0.20, -droop / 0.42), 0, 1) ** 2
    breast = body.breast * np.clip(1 - inner - below, 0, 1)
    wall: Field = body.stoutness * (tissue + belly) + breast
    return wall


def draw_bones(body: Body, u: Field, v: Field, lungs: dict[str, Lung]) -> Field:
    """Ribs, clavicles, scapulae, humeri and spine."""
    bones = _spine(body, u - body.middle, v)
    for row, (side, lung) in enumerate(lungs.items()):
        bones = bones + _ribs(body, lung, v, body.rib_jitter[row]) + _girdle(body, lung.a, v, body.clavicle_v[side])
    return body.bone * bones


def _ribs(body: Body, lung: Lung, v: Field, jitter: NDArray[np.float32]) -> Field:
    """Posterior ribs run outwards and down from the spine, anterior ribs inwards and down from the side."""
    r = np.clip(lung.a / body.lung_width, 0, 1.1)
    r_cubed = r**2 * r
    steep = 0.55 + 0.55 * np.clip(v + 0.7, 0, 1.3)
    back = body.rib_slope * r + 0.24 * r_cubed * r**0.5 - 0.045 * np.sin(np.pi * np.clip(1.6 * r, 0, 1))
    front = body.rib_slope + 0.24 + 0.42 * (np.clip(1.02 - r, 0, 1) ** 0.5 + np.clip(1.02 - r, 0, 1)) / 2
    cage = _edge(body.lung_width + 0.03 - lung.a, 0.03) * _edge(lung.wall_distance + 0.05, 0.03)
    ribs = 0.145 * (1 + 0.6 * r_cubed**2) * _edge(lung.a - 0.09, 0.05) * _ribbon(body, v - steep * back, jitter, 1.0)
    ribs += 0.085 * _edge(r - 0.52, 0.25) * _ribbon(body, v - steep * front, jitter, 1.2)
    bone: Field = ribs * cage
    return bone


def _ribbon(body: Body, level: Field, jitter: NDArray[np.float32], width: float) -> Field:
    """Profile across all ribs at once: hollow tubes, so that the cortex at their edges is brightest."""
    number = np.clip(np.round((level - body.rib_v) / body.rib_spacing), 0, NUM_RIBS - 1)
    middle = body.rib_v + number * body.rib_spacing + jitter[number.astype(np.intp)]
    offset = (level - middle) / (body.rib_radius * width)
    outer, inner = np.clip(1 - offset**2, 0, 1), np.clip(1 - (offset / 0.72) ** 2, 0, 1)
    return 1.25 * outer**0.5 - 0.55 * inner**0.5


def _girdle(body: Body, a: Field, v: Field, clavicle_v: float) -> Field:
    """Clavicle, scapula and humerus of one side."""
    reach = np.clip((a - 0.07) / 0.68, 0, 1)
    middle = clavicle_v + 0.10 * (1 - reach) ** 2 - 0.075 * reach + 0.018 * np.sin(2 * np.pi * reach)
    radius = 0.034 + 0.012 * (2 * reach - 1) ** 2
    ends = _edge(a - 0.06, 0.03) * _edge(0.76 - a, 0.12)
    offset = (v - middle) / radius
    clavicle = 0.22 * ends * (1.2 * np.clip(1 - offset**2, 0, 1) ** 0.5 - 0.4 * np.clip(1 - (offset / 0.7) ** 2, 0, 1) ** 0.5)
    border = body.scapula_u - 0.22 * np.clip(v + 0.55, -0.1, 0.5) + 0.5 * np.clip(v + 0.05, 0, 1)
    blade = _edge(a - border, 0.012) * _edge(v + 0.60, 0.05) * _edge(0.02 - v - 1.0 * np.clip(a - border, 0, 1), 0.05)
    scapula = 0.07 * blade + 0.06 * blade * np.clip(1 - (a - border) / 0.035, 0, 1)
    head = 0.16 * _dome_profile(((a - 0.92) / 0.10) ** 2 + ((v + 0.52) / 0.10) ** 2)
    shaft = 0.22 * _tube(a, v, (0.96, -0.45), (1.15, 0.60), 0.052) - 0.10 * _tube(a, v, (0.96, -0.45), (1.15, 0.60), 0.03)
    bone: Field = clavicle + scapula + np.maximum(head, shaft)
    return bone


def _spine(body: Body, x: Field, v: Field) -> Field:
    """Vertebral bodies with darker discs between them, and the trachea's air in front of the upper ones."""
    width = 0.088 + 0.014 * np.clip(v + 0.6, 0, 2)
    column = np.clip(1 - ((x / width) ** 2) ** 2, 0, 1)
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * (v - body.rib_v) / (1.02 * body.rib_spacing))
    spine = column * (0.11 - 0.05 * disc**2) + 0.04 * np.clip(1 - (x / 0.022) ** 2, 0, 1) * (1 - disc)
    bend = 0.02 * np.clip((v + 0.6) / 0.4, 0, 1)
    trachea = np.clip(1 - ((x + bend) / 0.047) ** 2, 0, 1) ** 0.5 * _edge(-0.20 - v, 0.06)
    bronchi = _tube(np.abs(x + bend), v, (0.0, -0.21), (0.13, -0.07), 0.03)
    column_and_air: Field = spine - 0.26 * np.maximum(trachea, 0.35 * bronchi)
    return column_and_air


def draw_bubble(body: Body, u: Field, v: Field) -> Field:
    """Gas in the stomach under the left dome, 0 to 1, flat below where the fluid begins."""
    if body.bubble < 0.05:
        return np.zeros_like(u)
    x, y = u - body.middle - 0.36, v - body.dome_v["left"] - 0.07 - 0.55 * body.bubble
    gas = _dome_profile((x / (1.5 * body.bubble)) ** 2 + (y / (0.75 * body.bubble)) ** 2)
    return gas * _edge(0.30 * body.bubble - y, 0.012)


def draw_vessels(body: Body, matrix: NDArray[np.float64], *, size: int) -> Field:
    """Branching lung vessels, 0 to 1, [size, size]; `matrix` [2, 3] takes (u, v, 1) to image coordinates."""
    scale = 2 if size < 400 else 1
    canvas = Image.new("L", (size * scale, size * scale))
    pen = ImageDraw.Draw(canvas)
    unit = size * scale / 2  # pixels in one image half-width
    for row, (side, sign) in enumerate(SIGN.items()):
        hilum = np.array([body.middle + sign * 0.14, -0.06 if side == "left" else -0.02])
        rng = np.random.default_rng([body.texture_seed, 2, row])
        angle = np.linspace(-1.25, 1.30, 8) + rng.normal(0, 0.08, 8)
        start = hilum + np.stack([np.zeros(8), 0.09 * np.sin(angle)], axis=1)  # [branches, 2] as (u, v)
        length = rng.uniform(0.12, 0.18, 8)
        for generation in range(5 if size > 200 else 4):  # the thinnest twigs cannot be seen on small images
            width = 0.026 * 0.66**generation * unit
            bend = angle + rng.normal(0, 0.2, len(angle))
            tip = start + length[:, None] * np.stack([sign * np.cos(bend), np.sin(bend)], axis=1)
            ends = np.concatenate([start @ matrix[:, :2].T, tip @ matrix[:, :2].T], axis=1) + np.tile(matrix[:, 2], 2)
            shade = int(235 * min(1.0, width) * (0.89 - 0.11 * generation))
            for line in ((ends + 1) * unit).tolist():
                pen.line(line, fill=shade, width=max(1, round(width)))
            fork = rng.uniform(0.15, 0.45, len(angle))
            angle = np.concatenate([bend - fork, bend + fork * rng.uniform(0.5, 1.2, len(angle))])
            length = np.tile(length, 2) * rng.uniform(0.72, 0.95, len(angle))
            start = np.tile(tip, (2, 1))
    return np.asarray(canvas.reduce(scale) if scale > 1 else canvas, dtype=np.float32) / 255


def draw_texture(body: Body, matrix: NDArray[np.float64], *, size: int) -> Field:
    """Smooth random mottle of lung and soft tissue, about -1 to 1, fixed to the patient, [size, size]."""
    rng = np.random.default_rng([body.texture_seed, 3])
    cells = 72
    grid = np.zeros((cells, cells), dtype=np.float32)
    for coarse, weight in ((10, 0.8), (28, 0.55), (cells, 0.45)):
        mottle = Image.fromarray(rng.normal(0, weight, (coarse, coarse)).astype(np.float32))
        grid += np.asarray(mottle.resize((cells, cells), Image.Resampling.BICUBIC))
    # From output pixels to grid cells; the grid covers -1.3 to 1.3 so that a tilted patient stays inside.
    pixel, to_grid, reach = 2 / size, cells / 2.6, 1.3
    coefficients: list[float] = []
    for row in np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2].tolist():
        offset = row[2] + reach + (row[0] + row[1]) * (pixel / 2 - 1)
        coefficients += [row[0] * pixel * to_grid, row[1] * pixel * to_grid, offset * to_grid]
    warped = Image.fromarray(grid).transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(warped, dtype=np.float32)


def _edge(distance: Field, softness: float) -> Field:
    """0 outside, 1 inside, a straight ramp of width `softness` centred where `distance` is 0."""
    inside: Field = np.clip(distance / softness + 0.5, 0, 1)
    return inside


def _dome_profile(radius_squared: Field) -> Field:
    """Thickness of a rounded body across its outline, 0 to 1: steep at the edge, flat in the middle."""
    thickness: Field = np.clip(1 - radius_squared**2, 0, 1) ** 0.5
    return thickness


def _slab(distance: Field) -> Field:
    """Thickness of a trunk of elliptic cross-section, `distance` 1 at its skin."""
    thickness: Field = np.clip(1 - (np.clip(distance, 0, 1) ** 2) ** 2, 0, 1) ** 0.5
    return thickness


def _tube(x: Field, v: Field, start: tuple[float, float], end: tuple[float, float], radius: float) -> Field:
    """Thickness of a rod between two points, 0 to 1."""
    along_x, along_v = end[0] - start[0], end[1] - start[1]
    t = np.clip(((x - start[0]) * along_x + (v - start[1]) * along_v) / (along_x**2 + along_v**2), 0, 1)
    distance = ((x - start[0] - t * along_x) ** 2 + (v - start[1] - t * along_v) ** 2) / radius**2
    thickness: Field = np.clip(1 - distance, 0, 1) ** 0.5
    return thickness
