"""What a training of volumes has of its own: its objective, what it measures before the first step, and its sheets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from synthorax.data.pixels import from_unit
from synthorax.data.prepared_volumes import PreparedVolumes
from synthorax.engine import Engine
from synthorax.errors import InputError
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.protocols import Objective, as_model
from synthorax.rng import derive
from synthorax.run import Run
from synthorax.steps.models.recipe import Recipe, build_objective
from synthorax.training import loop
from synthorax.training.volume_feed import condition_of, unit_volumes, varying_measurements
from synthorax.types import VolumeSet

SHEET = 8
"""volumes of a sample sheet"""
MEASURED = 256
"""volumes that an objective may look at before the first step"""


def fresh_volume_objective(recipe: Recipe, prepared: PreparedVolumes) -> tuple[Objective[nn.Module], VolumeSet]:
    """The objective of a recipe with fresh weights, and the training volumes. InputError where they do not fit one another."""
    volumes = prepared.volumes("train")
    if not len(volumes):
        raise InputError("holds no training lesions", file=prepared.path, remedy="prepare the bank with a smaller held_out")
    for what, theirs, own in (("voxels a side", prepared.side, recipe.model.image_size),
                              ("quantities", volumes.quantities, tuple(recipe.model.quantities)),
                              ("measurements", volumes.names, tuple(recipe.model.measurements))):
        if theirs != own:
            raise InputError(f"has the {what} {theirs}, and the recipe '{recipe.name}' {own}", file=prepared.path,
                             remedy="prepare the bank for this recipe, or change its [model]")
    return build_objective(recipe, findings=()), volumes


def begin_volumes(objective: Objective[nn.Module], volumes: VolumeSet) -> None:
    """What must be measured before the first step."""
    objective.prepare(unit_volumes(volumes, slice(MEASURED)))
    objective.zero_unvaried_inputs(varying_measurements(volumes, spec=as_model(objective.model).spec))


def volume_sheet_writer(run: Run, volumes: VolumeSet, recipe: Recipe, engine: Engine) -> loop.Look:
    """Writes a sheet of eight training volumes and, below each, one made for the same measurements: the middle slice of every quantity."""
    rows = np.random.default_rng(derive(recipe.train.seed, "sheet")).choice(len(volumes), size=SHEET, replace=len(volumes) < SHEET)
    real = unit_volumes(volumes, rows)

    def write(model: Any, step: int) -> Mapping[str, float | str] | None:
        made = as_model(model)
        with engine.autocast():
            condition = condition_of(volumes, rows, spec=made.spec).to(engine.device)
            generated = made.sample(condition, [derive(recipe.train.seed, "sheet", number) for number in range(SHEET)], recipe.sample)
        middle = real.shape[2] // 2
        slices = torch.cat([part[:, :, middle].transpose(0, 1).flatten(0, 1) for part in (real, generated.float().cpu())])
        sheet = contact_sheet(from_unit(slices.numpy()), columns=SHEET, tile_px=96,
                              title=f"{recipe.name} step {step}: {', '.join(volumes.quantities)} of real and of made")
        save_png(run.path / "samples" / f"step-{step:08d}.png", sheet)
        return None

    return write
