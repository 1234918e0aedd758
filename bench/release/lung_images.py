"""Images and outlines from which the lung model learns: human lung masks, drawn thoraces, and how both are varied.

Outlines are [N, 3, S, S]: the patient's right lung, left lung (each with the part behind the heart) and heart.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from synthorax.data.phantom import FINDINGS, LesionSpec, PhantomSpec, draw_phantom, draw_whole_lungs
from synthorax.judges.lungs import STRUCTURES
from synthorax.nets.affine import affine_matrix

SIZE_PX = 128


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutlinedImages:
    """Images of one source with what is known of their outlines."""

    pixels: NDArray[np.uint8]
    """[N, S, S]"""
    masks: NDArray[np.bool_]
    """[N, 3, S, S] in the order of `STRUCTURES`"""
    stated: NDArray[np.bool_]
    """[N, 3] whether an outline is known"""
    names: tuple[str, ...]
    patients: tuple[str, ...]

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> OutlinedImages:
        """The images in these rows."""
        return OutlinedImages(pixels=self.pixels[rows], masks=self.masks[rows], stated=self.stated[rows],
                              names=tuple(self.names[row] for row in rows), patients=tuple(self.patients[row] for row in rows))


def read_images(folder: Path, *, outlined: bool) -> OutlinedImages:
    """The images of a dataset folder, reduced to `SIZE_PX`, with their human lung masks; without masks where not `outlined`.

    Columns and folders named `pseudo` are never read: such outlines stem from data that may not train what ships.
    """
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("lung_mask") or not outlined) and row.get("view") != "LATERAL"]
    pixels = np.stack([_reduced(folder / row["file_name"]) for row in rows])
    masks = np.zeros((len(rows), len(STRUCTURES), SIZE_PX, SIZE_PX), dtype=np.bool_)
    stated = np.zeros((len(rows), 3), dtype=np.bool_)
    if outlined:
        for number, row in enumerate(rows):
            masks[number, :2] = _sides(_reduced(folder / row["lung_mask"].split("|")[0]) >= 128)
        stated[:, :2] = True
    return OutlinedImages(pixels=pixels, masks=masks, stated=stated, names=tuple(row["file_name"] for row in rows),
                          patients=tuple(row["patient_id"] for row in rows))


def draw_images(num: int, *, seed: int) -> OutlinedImages:
    """Drawn thoraces with exact lungs and heart; two in three show one or two findings."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((num, SIZE_PX, SIZE_PX), dtype=np.uint8)
    masks = np.empty((num, 3, SIZE_PX, SIZE_PX), dtype=np.bool_)
    for number in range(num):
        lesions = tuple(_drawn_lesion(rng) for _ in range(int(rng.integers(3))))
        spec = PhantomSpec(seed=int(rng.integers(2**31)), view="AP" if rng.random() < 0.4 else "PA", sex="M" if rng.random() < 0.5 else "F",
                           age_years=float(rng.integers(20, 90)), lesions=lesions)
        image, lungs = draw_phantom(spec, size=SIZE_PX), draw_whole_lungs(spec, size=SIZE_PX)
        pixels[number] = image.image
        masks[number] = np.stack([lungs["right"], lungs["left"], image.masks["heart"] > 0])
    names = tuple(f"drawn-{number}" for number in range(num))
    return OutlinedImages(pixels=pixels, masks=masks, stated=np.ones((num, 3), dtype=np.bool_), names=names, patients=names)


def _drawn_lesion(rng: np.random.Generator) -> LesionSpec:
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    return LesionSpec(finding=FINDINGS[int(rng.integers(len(FINDINGS)))], side=side, size=float(rng.random()), severity=float(rng.random()))


def _reduced(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX))


def _sides(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of both lungs [S, S] -> right and left lung [2, S, S], by the side of the thorax on which each part lies."""
    parts, count = ndimage.label(mask)
    columns = np.flatnonzero(mask.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2
    centres = ndimage.center_of_mass(mask, parts, range(1, count + 1))
    right = np.isin(parts, [number for number, (_, x) in enumerate(centres, start=1) if x < middle])
    return np.stack([right, mask & ~right])


def varied(images: Tensor, masks: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [B, 1, S, S] in [0, 1] and masks [B, 3, S, S], each varied by a draw of its own; images come out standardised.

    Geometry: 15 degrees, zoom, shift, aspect, smooth bending, bars of padding. Grey values: gamma, contrast, uneven exposure, local
    contrast, blur, noise, opaque lung bases as in effusions, opaque boxes. A few images get a lung or heart once more, elsewhere: so the
    model outlines what it sees, and not what a chest has. One image in four is mirrored, and its right lung stays its
    right lung: so the model learns to tell a mirrored image from others, and never that whatever is on the left is the right lung.
    """
    images, masks = _with_another(*_moved(images, masks, generator), generator)
    images = _exposed(_opaque_bases(images, masks, generator), generator)
    keep = _inside_of_bars(len(images), images.shape[-1], generator)
    images, masks = images * keep, masks * keep
    centre, spread = images.mean(dim=(1, 2, 3), keepdim=True), images.std(dim=(1, 2, 3), keepdim=True)
    return (images - centre) / spread.clamp_min(1e-3), masks


def _uniform(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return (low + (high - low) * torch.rand(num, generator=generator)).view(-1, 1, 1, 1)


def _chance(num: int, share: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(num, generator=generator) < share).float().view(-1, 1, 1, 1)


def _moved(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    num = len(images)
    angle = _uniform(num, -math.pi / 12, math.pi / 12, generator).flatten()
    zoom = torch.exp(_uniform(num, -0.3, 0.3, generator)).flatten()
    aspect = torch.exp(_uniform(num, -0.15, 0.15, generator)).flatten()
    mirrored = 1 - 2 * _chance(num, 0.25, generator).flatten()
    shift = torch.stack([_uniform(num, -0.2, 0.2, generator).flatten() for _ in range(2)], dim=1)
    matrix = affine_matrix(torch.cos(angle) * zoom, torch.sin(angle) * zoom, shift)
    matrix = matrix * torch.tensor([1.0, 1.0, 1.0]) * torch.stack([aspect * mirrored, 1 / aspect], dim=1)[:, :, None]
    bend = F.interpolate(torch.randn(num, 2, 5, 5, generator=generator) * 0.025, size=images.shape[-2:], mode="bicubic", align_corners=True)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False) + bend.permute(0, 2, 3, 1)
    bordered = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    padded = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return torch.where(_chance(num, 0.5, generator) > 0, bordered, padded), F.grid_sample(masks, grid, align_corners=False)


def _with_another(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One image in twelve with a copy of one of its lungs or of its heart, a third of the image away or more."""
    num, side = len(images), images.shape[-1]
    steps = [int(step) for step in torch.randint(side // 3, side - side // 3, (2,), generator=generator)]
    chosen = F.one_hot(torch.randint(masks.shape[1], (num,), generator=generator), masks.shape[1]).view(num, -1, 1, 1)
    shape = (masks * chosen).amax(dim=1, keepdim=True) * _chance(num, 1 / 12, generator)
    copied, shape = (torch.roll(part, steps, dims=(2, 3)) for part in (images, shape))
    return images + shape * (copied - images), torch.maximum(masks * (1 - shape), shape * chosen)


def _exposed(images: Tensor, generator: torch.Generator) -> Tensor:
    num, side = len(images), images.shape[-1]
    low = images.amin(dim=(2, 3), keepdim=True)
    images = (images - low) / (images.amax(dim=(2, 3), keepdim=True) - low).clamp_min(1e-3)
    images = images ** torch.exp(_uniform(num, -0.8, 0.8, generator))
    even = F.interpolate(torch.randn(num, 1, 4, 4, generator=generator), size=(side, side), mode="bicubic", align_corners=True)
    images = images + _chance(num, 0.5, generator) * _uniform(num, 0, 0.12, generator) * even
    near = F.avg_pool2d(F.pad(images, (12, 12, 12, 12), mode="replicate"), 25, stride=1)
    images = images - _chance(num, 0.4, generator) * _uniform(num, -0.4, 0.8, generator) * (near - near.mean(dim=(2, 3), keepdim=True))
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images + _chance(num, 0.5, generator) * _uniform(num, -1, 1, generator) * (soft - images)  # blurred or sharpened
    images = (images - 0.5) * _uniform(num, 0.5, 1.6, generator) + 0.5 + _uniform(num, -0.2, 0.2, generator)
    for _ in range(2):  # devices, letters, blackened names
        box, grey = _box(num, side, generator), _uniform(num, -0.2, 1.2, generator)
        images = torch.where(box > 0, grey, images)
    return (images + _uniform(num, 0, 0.06, generator) * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def _box(num: int, side: int, generator: torch.Generator) -> Tensor:
    """A box on a third of the images, up to a quarter of their side, [B, 1, S, S]."""
    axis = (torch.arange(side) + 0.5) / side
    spans = []
    for shape in ((1, 1, 1, side), (1, 1, side, 1)):
        start, length = _uniform(num, -0.1, 1, generator), _uniform(num, 0.03, 0.25, generator)
        place = axis.view(shape)
        spans.append(((place > start) & (place < start + length)).float())
    return spans[0] * spans[1] * _chance(num, 0.33, generator)


def _opaque_bases(images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """The lower part of a lung turned into soft tissue on two lungs of seven; outlines keep it, as radiologists' outlines do."""
    num, side = len(images), images.shape[-1]
    height = torch.arange(side).view(1, 1, side, 1) / side
    across = torch.arange(side).view(1, 1, 1, side) / side - 0.5
    bright = images.flatten(1).quantile(0.85, dim=1).view(-1, 1, 1, 1)
    for lung in (masks[:, :1], masks[:, 1:2]):
        rows = lung.amax(dim=3, keepdim=True) > 0.5
        bottom = torch.where(rows, height, torch.zeros(())).amax(dim=2, keepdim=True)
        level = bottom - _uniform(num, 0.02, 0.4, generator) + _uniform(num, -0.4, 0.4, generator) * across.abs()
        below = ((height - level) / 0.04).clamp(0, 1) * lung * _chance(num, 0.28, generator)
        images = images + below * _uniform(num, 0.5, 1, generator) * (bright - images)
    return images


def _inside_of_bars(num: int, side: int, generator: torch.Generator) -> Tensor:
    """1 where the image is, 0 on bars of padding above and below or on both sides of one image in three, [B, 1, S, S]."""
    width = _chance(num, 0.33, generator) * _uniform(num, 0, 0.2, generator)
    upright = _chance(num, 0.5, generator)
    distance = 0.5 - ((torch.arange(side) + 0.5) / side - 0.5).abs()
    bars = upright * (distance.view(1, 1, side, 1) >= width) + (1 - upright) * (distance.view(1, 1, 1, side) >= width)
    return bars.float()
