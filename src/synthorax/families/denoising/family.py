"""The diffusion family: one model, and two ways to train it, from images or from a teacher."""

from __future__ import annotations

from synthorax.capabilities import Adaptable, Denoiser, HasConditionInputs, Resampler, StartsFromBase
from synthorax.families.denoising.distillation_objective import StudentObjective
from synthorax.families.denoising.model import DiffusionConfig, DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective, DiffusionObjectiveConfig
from synthorax.losses.perceptual import is_scripted
from synthorax.nets.text import TEXT_ENCODERS
from synthorax.protocols import Family, Needs, Objective


def _objective(model: DiffusionModel, config: DiffusionObjectiveConfig) -> Objective[DiffusionModel]:
    return DiffusionObjective(model, config) if model.config.distilled is None else StudentObjective(model, config)


def _needs(model: DiffusionConfig, objective: DiffusionObjectiveConfig) -> Needs:
    return Needs(compressor=model.compressor, lesion_masks=objective.lesion.active, crops=objective.crop > 0,
                 halved_base=bool(model.detail_sigma_data),
                 own_files=model.text_encoder not in TEXT_ENCODERS or is_scripted(objective.lesion.perceptual))


FAMILY = Family(model_config=DiffusionConfig, objective_config=DiffusionObjectiveConfig, build_model=DiffusionModel,
                build_objective=_objective, conditions=lambda config: tuple(config.parts),
                can=(Denoiser, Resampler, HasConditionInputs, StartsFromBase, Adaptable), needs=_needs)
