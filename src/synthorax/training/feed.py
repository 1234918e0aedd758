"""Batches of films whose content depends on the seed and the batch number alone, so that any run can be continued exactly."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthorax.data.pixels import to_unit
from synthorax.engine import Engine
from synthorax.protocols import Batch, condition_of
from synthorax.rng import Draws, derive
from synthorax.types import Films

MAX_ROTATION_DEGREES = 3.0
MAX_ZOOM = 0.05
MAX_SHIFT = 0.03  # of the film's side
MAX_EXPOSURE = 0.08  # of the grey range
BLACK = -0.999  # interpolation leaves black borders a rounding error above -1


class Feed:
    """Draws films with replacement, weighted by `balance`, and augments them slightly.

    With `balance` b a film's weight is the largest (1 / prevalence)^b of the findings that it shows. Weighting by labels leaves
    the distribution of films given their labels unchanged, which is what a conditional model learns.
    """

    def __init__(self, films: Films, *, batch_size: int, balance: float, augment: bool, seed: int, engine: Engine) -> None:
        self.films, self.augment, self.seed, self.engine = films, augment, seed, engine
        self.batch_size = batch_size  # of one process
        self.condition = condition_of(films.studies, films.labels)
        self.weights = torch.from_numpy(film_weights(films.labels, balance=balance))

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run, [B, 1, S, S]; each process gets its own part of the global batch."""
        total = self.batch_size * self.engine.world_size
        generator = torch.Generator().manual_seed(derive(self.seed, "films", number))
        rows = torch.multinomial(self.weights, total, replacement=True, generator=generator)
        mine = range(self.engine.rank * self.batch_size, (self.engine.rank + 1) * self.batch_size)
        rows = rows[list(mine)]
        draws = Draws([derive(self.seed, "draw", number, position) for position in mine], device=self.engine.device)
        images = unit_images(self.films.images[rows.numpy()]).to(self.engine.device)
        if self.augment:
            images = augmented(images, draws)
        return Batch(images=images, condition=self.condition[rows].to(self.engine.device), draws=draws)


def unit_images(images: NDArray[np.uint8] | NDArray[np.uint16]) -> Tensor:
    """Integer films [N, S, S] as float32 [N, 1, S, S] in [-1, 1]."""
    return torch.from_numpy(to_unit(images))[:, None]


def film_weights(labels: NDArray[np.float32], *, balance: float) -> NDArray[np.float64]:
    """Probability of drawing each film, [N, K] labels -> [N], as `Feed` describes."""
    present = labels == 1
    prevalence = present.mean(axis=0)
    rarity = np.where(prevalence > 0, np.maximum(prevalence, 1e-9) ** -balance, 0.0)
    weights = np.where(present, rarity, 0.0).max(axis=1, initial=0.0)
    weights[weights == 0] = 1.0  # nothing stated present: as a finding that every film shows
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def augmented(images: Tensor, draws: Draws) -> Tensor:
    """Rotate, zoom, shift and expose each film a little, [B, 1, S, S] in [-1, 1]; never a flip, which would move the heart."""
    amount = draws.uniform(6) * 2 - 1  # [B, 6] in [-1, 1)
    angle = amount[:, 0] * math.radians(MAX_ROTATION_DEGREES)
    zoom = 1 + amount[:, 1] * MAX_ZOOM
    shift = amount[:, 2:4] * 2 * MAX_SHIFT  # the grid spans 2
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)], dim=1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain, offset = 1 + amount[:, 4] * MAX_EXPOSURE, amount[:, 5] * MAX_EXPOSURE
    return ((moved + 1) * gain[:, None, None, None] + offset[:, None, None, None] * (moved > BLACK) - 1).clamp(-1, 1)
