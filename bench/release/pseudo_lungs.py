"""Outlines for images that have none: what the lung model says of them, kept where it says the same of four variations of an image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from lung_images import OutlinedImages
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from synthorax.judges.segmenter import dice
from synthorax.nets.affine import affine_matrix, resample

LOWEST_AGREEMENT = (0.94, 0.94, 0.91)
"""Dice of a variation's outline with that of the mean of all, which the worst of them must reach: right lung, left lung, heart"""
LARGEST_HORN = 0.05
"""part of a lung's upper third that a disc of nine pixels does not fit into: more is an outline that laps over the clavicle"""
LARGEST_LUNG, SMALLEST_LUNG = 0.30, 0.025
"""part of the image"""
HELD_OUT = 0.3
"""part of the patients without outlines who train nothing, so that the guard can be measured on their images"""
PER_PATIENT = 3
"""images of one patient"""
LOOKED_AT = 500
"""images of one source, drawn at random"""
VARIATIONS = ((0, 1.0, 0, 0, 1.0, False), (6, 1.1, 0.03, 0.02, 0.7, False), (-6, 0.92, -0.04, -0.03, 1.4, False),
              (2, 1.03, 0, 0.03, 0.9, True))
"""degrees, zoom out, shift across and down, gamma, mirrored"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How many images of a source were looked at, and how many lend an outline of each structure."""

    looked_at: int
    lungs: int
    hearts: int


def is_held_out(patient: str) -> bool:
    """Whether a patient without outlines trains nothing: by the digest of the name, so that every script says the same."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


def pseudo_outlines(images: OutlinedImages, network: nn.Module) -> tuple[OutlinedImages, Agreement]:
    """The images of training patients whose outlines the variations agree on; hearts are stated apart from lungs."""
    seen: dict[str, int] = {}
    rows = []
    for row, patient in enumerate(images.patients):
        seen[patient] = seen.get(patient, 0) + 1
        if not is_held_out(patient) and seen[patient] <= PER_PATIENT:
            rows.append(row)
    part = images.take(np.sort(np.random.default_rng(0).permutation(rows)[:LOOKED_AT]))
    masks, stated = np.zeros_like(part.masks), np.zeros_like(part.stated)
    for start in range(0, len(part.pixels), 32):
        batch = torch.from_numpy(part.pixels[start : start + 32].astype(np.float32))[:, None] / 255
        answers = torch.stack([_answer(network, batch, *how) for how in VARIATIONS])  # [4, B, 3, S, S]
        mean = answers.mean(dim=0).numpy()
        agreement = np.nanmin(np.nan_to_num(dice(answers.numpy() >= 0.5, np.broadcast_to(mean >= 0.5, answers.shape))), axis=0)  # [B, 3]
        for number in range(len(batch)):
            outlines = np.stack([_cleaned(mean[number, one] >= 0.5) for one in range(3)])
            good = agreement[number] >= LOWEST_AGREEMENT
            good &= dice(outlines, mean[number] >= 0.5) >= 0.97  # nothing but crumbs was cleaned away
            good[:2] &= np.array([horn(one) <= LARGEST_HORN for one in outlines[:2]])
            sizes = outlines[:2].mean(axis=(1, 2))
            lungs = bool(good[:2].all() and sizes.min() >= SMALLEST_LUNG and sizes.max() <= LARGEST_LUNG)
            masks[start + number], stated[start + number] = outlines, (lungs, lungs, bool(good[2]) and lungs)
    kept = np.flatnonzero(stated[:, 0])
    found = replace(part, masks=masks, stated=stated).take(kept)
    return found, Agreement(looked_at=len(part.patients), lungs=len(kept),
                            hearts=int(found.stated[:, 2].sum()))


def horn(mask: NDArray[np.bool_]) -> float:
    """Part of the upper third of a lung [S, S] that opening by a disc of nine pixels takes away, 0 to 1."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 1.0
    upper = mask.copy()
    upper[rows[0] + (rows[-1] - rows[0]) // 3 :] = False
    disc = np.hypot(*np.mgrid[-4:5, -4:5]) < 4.5
    return 1 - float(ndimage.binary_opening(np.pad(upper, 8), structure=disc).sum()) / float(upper.sum())


def _answer(network: nn.Module, images: Tensor, degrees: float, zoom: float, across: float, down: float, gamma: float,
            mirrored: bool) -> Tensor:
    """Probabilities [B, 3, S, S] for one variation of images in [0, 1], where the images were before it."""
    num, angle = len(images), np.deg2rad(degrees)
    matrix = affine_matrix(torch.full((num,), float(np.cos(angle) * zoom)), torch.full((num,), float(np.sin(angle) * zoom)),
                           torch.tensor([[across, down]]).expand(num, 2))
    if mirrored:
        matrix = matrix * torch.tensor([[-1.0], [1.0]])
    varied = resample(images, matrix, padding="zeros") ** gamma
    centre, spread = varied.mean(dim=(1, 2, 3), keepdim=True), varied.std(dim=(1, 2, 3), keepdim=True)
    with torch.inference_mode():
        answer = torch.sigmoid(network((varied - centre) / spread.clamp_min(1e-3)))
    square = torch.cat([matrix, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(num, 1, 3)], dim=1)
    return resample(answer, torch.linalg.inv(square)[:, :2], padding="border")


def _cleaned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece without holes and without spikes thinner than five pixels."""
    ball = np.hypot(*np.mgrid[-2:3, -2:3]) < 2.5
    pieces, count = ndimage.label(ndimage.binary_opening(mask, structure=ball))
    if count == 0:
        return np.zeros_like(mask)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())
    return filled
