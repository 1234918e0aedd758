"""Batches of volumes whose content depends on the seed and the batch number alone, turned and mirrored at random."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from synthorax.engine import Engine
from synthorax.protocols import Batch, Condition, ModelSpec
from synthorax.rng import Draws, derive
from synthorax.types import VolumeSet

SYMMETRIES = tuple((axes, flips) for axes in itertools.permutations((0, 1, 2)) for flips in itertools.product((False, True), repeat=3))
"""the 48 rotations and reflections of a cube: the order of its axes, and which of them run backwards"""


class VolumeFeed:
    """Draws volumes with replacement, evenly, in one of the 48 positions of a cube each: a lesion cut from CT has no side."""

    def __init__(self, volumes: VolumeSet, *, spec: ModelSpec, batch_size: int, augment: bool, seed: int, engine: Engine) -> None:
        self.volumes, self.spec, self.augment, self.seed, self.engine = volumes, spec, augment, seed, engine
        self.batch_size = batch_size  # of one process

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run, [B, C, S, S, S]; each process gets its own part of the global batch."""
        total = self.batch_size * self.engine.world_size
        generator = torch.Generator().manual_seed(derive(self.seed, "volumes", number))
        rows = torch.randint(len(self.volumes), (total,), generator=generator)
        mine = range(self.engine.rank * self.batch_size, (self.engine.rank + 1) * self.batch_size)
        chosen = rows[list(mine)].numpy()
        draws = Draws([derive(self.seed, "draw", number, position) for position in mine], device=self.engine.device)
        volumes = unit_volumes(self.volumes, chosen).to(self.engine.device)
        if self.augment:
            positions = (draws.uniform().cpu() * len(SYMMETRIES)).long().tolist()
            volumes = torch.stack([turned(volume, position) for volume, position in zip(volumes, positions, strict=True)])
        return Batch(images=volumes, condition=condition_of(self.volumes, chosen, spec=self.spec).to(self.engine.device), draws=draws)


def unit_volumes(volumes: VolumeSet, rows: slice | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """Stored volumes as float32 [N, C, S, S, S] in [-1, 1]."""
    return torch.from_numpy(volumes.volumes[rows].astype(np.float32))


def condition_of(volumes: VolumeSet, rows: slice | np.ndarray[tuple[int], np.dtype[np.int64]], *, spec: ModelSpec) -> Condition:
    """What was measured of the volumes at `rows`, and nothing else."""
    measured = torch.from_numpy(volumes.measurements[rows])
    nothing = Condition.unstated(len(measured), num_labels=len(spec.findings), num_sites=len(spec.sites))
    return Condition(labels=nothing.labels, attributes=nothing.attributes, measurements=measured)


def varying_measurements(volumes: VolumeSet, *, spec: ModelSpec) -> Condition:
    """What the volumes differ in, as a condition of one row: 1 where at least two values were measured, NaN elsewhere."""
    known = torch.from_numpy(volumes.measurements)
    lowest, highest = known.nan_to_num(math.inf).amin(0), known.nan_to_num(-math.inf).amax(0)
    nothing = Condition.unstated(1, num_labels=len(spec.findings), num_sites=len(spec.sites))
    return Condition(labels=nothing.labels, attributes=nothing.attributes, measurements=torch.where(lowest < highest, 1.0, math.nan)[None])


def turned(volume: Tensor, position: int) -> Tensor:
    """A volume [C, S, S, S] in one of the positions of `SYMMETRIES`."""
    axes, flips = SYMMETRIES[position]
    return volume.permute(0, *(axis + 1 for axis in axes)).flip([axis + 1 for axis in range(3) if flips[axis]])
