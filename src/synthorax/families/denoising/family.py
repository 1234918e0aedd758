"""The diffusion family: one model, and two ways to train it, from images or from a teacher."""

from __future__ import annotations

from torch import nn

from synthorax.families.denoising.distillation_objective import StudentObjective
from synthorax.families.denoising.model import DiffusionConfig, DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective, DiffusionObjectiveConfig
from synthorax.protocols import Family, Objective


def _objective(model: nn.Module, config: DiffusionObjectiveConfig) -> Objective:
    assert isinstance(model, DiffusionModel)
    return DiffusionObjective(model, config) if model.config.distilled is None else StudentObjective(model, config)


FAMILY = Family(model_config=DiffusionConfig, objective_config=DiffusionObjectiveConfig, build_model=DiffusionModel,
                build_objective=_objective, conditions=lambda config: tuple(config.parts))
