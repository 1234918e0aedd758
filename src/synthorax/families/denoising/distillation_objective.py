"""What trains a student: one evaluation for the teacher's guided ones, and one step for several of the teacher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.diffusion.distillation import landing_target, snr_weight, student_levels
from synthorax.diffusion.guidance import autoguided, guided
from synthorax.diffusion.samplers import ALWAYS_NOISY, SAMPLERS, USUAL_ETA, Denoise, solve
from synthorax.errors import UsageError
from synthorax.families.denoising.distillation import STUDENT_SAMPLER
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective, DiffusionObjectiveConfig
from synthorax.protocols import Batch, Condition, ModelSpec, Objective, Phase, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws


class StudentObjective(Objective[DiffusionModel]):
    """Distillation of guidance (Meng et al. 2023), also of that by a weaker model (Karras et al. 2024), and of steps.

    Steps are those of Salimans and Ho 2022, with several teacher steps in one round.
    Conditions are those of `DiffusionObjective`: parts are dropped at random, so that the student also accepts any subset.
    A super-resolution model learns steps alone, on crops where `crop` says so.
    Without steps of its own it learns the teacher's guided estimate at every noise level. With steps it learns, at each of its levels
    alone, the estimate with which one step lands where the guided teacher lands. The teacher is frozen, and neither shipped nor in
    checkpoints.
    """

    phases = (Phase(name="distil", updates=("model",)),)
    held_out_phase = "distil"

    def __init__(self, model: DiffusionModel, config: DiffusionObjectiveConfig) -> None:
        super().__init__()
        assert model.config.distilled is not None
        self.players = nn.ModuleDict({"model": model})
        self.model = model
        self.config, self.distilled = config, model.config.distilled
        self.images = DiffusionObjective(model, config)
        self.teacher: DiffusionModel | None = None
        self.guide: DiffusionModel | None = None
        if config.distillation.sampler in ALWAYS_NOISY or USUAL_ETA.get(config.distillation.sampler):
            raise UsageError(f"objective.distillation.sampler: '{config.distillation.sampler}' adds fresh noise, and a student can only "
                             "learn from a deterministic sampler; choose unipc, dpmpp-2m, heun, ddim or euler")
        if config.lesion.active:
            raise UsageError("objective.lesion: a student has no lesion terms, because it learns from its teacher and not from real "
                             "images; leave it out")
        if model.config.centred and (self.distilled.guides or self.distilled.autoguidance != 1):
            raise UsageError("model.distilled.guidance: the student of a super-resolution model learns steps alone; set it to 1, without "
                             "part_guidance and autoguidance")
        lookup(SAMPLERS, config.distillation.sampler, kind="sampler")
        self.levels = torch.zeros(1, dtype=torch.float64)  # of the teacher's sampling
        if self.distilled.steps:
            self.levels = self.distilled.teacher_levels(sigma_min=model.config.sigma_min, sigma_max=model.config.sigma_max)

    def start_from(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Take `base` for the teacher, and start from its weights. UsageError where it is no teacher for these images or this student."""
        if self.distilled.autoguidance != 1:
            if not isinstance(guide, DiffusionModel):
                raise UsageError("model.distilled.autoguidance: the teacher has no weaker model packed with it; add one "
                                 "(synthorax pack --guide)")
            guiding = DiffusionModel(replace(guide.spec, findings=self.model.spec.findings, sites=self.model.spec.sites,
                                             masks=self.model.spec.masks))
            guiding.load_matching(guide)
            self.guide = guiding.requires_grad_(False).eval()
        if not isinstance(base, DiffusionModel):
            raise UsageError("the teacher of a student must be a diffusion model of this package")
        if base.config.distilled is not None and base.config.distilled.steps:
            raise UsageError(f"a student of {base.config.distilled.steps} steps cannot teach another one; give the model that it "
                             "learned from")
        own, theirs = self.model.spec, base.spec
        for kind, names, known in (("finding", own.findings, theirs.findings), ("site", own.sites, theirs.sites),
                                   ("mask", own.masks, theirs.masks)):
            new = [name for name in names if name not in known]
            if new:
                raise UsageError(f"the teacher knows no {kind} '{new[0]}', so it cannot teach it; give images that state "
                                 f"{', '.join(known) or f'no {kind}'}")
        teacher = DiffusionModel(_with_distilled(own, distilled=theirs.config.get("distilled")))
        teacher.load_matching(base)
        self.teacher = teacher.requires_grad_(False).eval()
        self.model.load_matching(base)

    @property
    def told_augmentation(self) -> bool:
        """As the model says; the teacher is told the same."""
        return self.model.config.told_augmentation

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """Nothing to do: the weights are those of the teacher."""

    def train(self, mode: bool = True) -> StudentObjective:
        """The teacher stays as it was trained."""
        super().train(mode)
        for frozen in (self.teacher, self.guide):
            if frozen is not None:
                frozen.eval()
        return self

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        crop = self.images.crop(batch.draws)
        condition = crop.of_condition(self.images.condition(batch))
        with torch.no_grad():
            clean = model.compressor.encode(crop.of(batch.images))
            targets = self._step_targets if self.distilled.steps else self._guidance_targets
            noisy, sigma, wanted = targets(clean, condition, batch.draws)
        made = model.denoise(noisy, sigma, condition)
        if model.bands is None:
            loss = snr_weight(sigma, sigma_data=model.sigma_data) * F.mse_loss(made, wanted, reduction="none").flatten(1).mean(1)
        else:
            loss = model.bands.error(made - wanted, sigma)  # 1 / c_out^2 is the same weight
        return {"distil": loss} | self.images.text_statements(batch)

    def _guidance_targets(self, clean: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images [B, C, h, w], their levels [B], and the teacher's guided estimate of the image (Eq. 2, Meng et al. 2023)."""
        sigma = self.images.noise_levels(draws)
        noisy = clean + draws.normal(*clean.shape[1:]) * sigma[:, None, None, None]
        return noisy, sigma, self._guided_teacher(condition)(noisy, sigma)

    def _step_targets(self, clean: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, C, h, w] at levels [B] of the student's, each equally often, and the estimates that land where the teacher does."""
        count, substeps = self.distilled.steps, self.distilled.substeps
        number = (draws.uniform() * count).long()  # [B]: which step
        noise = draws.normal(*clean.shape[1:])
        sigma = self.levels.to(clean.device)[number * substeps].to(clean)
        state = clean + noise * sigma[:, None, None, None]
        own = (draws.uniform() < self.config.distillation.own).nonzero()[:, 0]
        if len(own):
            state[own] = self._own_states(noise[own], number[own], condition[own])
        wanted = torch.empty_like(state)
        for step in sorted(set(number.tolist())):  # solvers walk over the same levels in all rows
            rows = (number == step).nonzero()[:, 0]
            levels = self.levels[step * substeps: (step + 1) * substeps + 1]
            landed = solve(self._guided_teacher(condition[rows]), state[rows], levels, sampler=self.config.distillation.sampler)
            wanted[rows] = landing_target(state[rows], landed, sigma=levels[0].item(), sigma_next=levels[-1].item())
        return state, sigma, wanted

    def _guided_teacher(self, condition: Condition) -> Denoise:
        """The teacher's guided estimate; a teacher that has guidance built in is not guided again."""
        if self.teacher is None:
            raise UsageError("a student learns from a trained model: give the run of its teacher with --base")
        built_in = self.teacher.config.distilled is not None and self.teacher.config.distilled.guides
        teacher = guided(self.teacher.denoise, condition, SampleSettings(guidance=1.0) if built_in else self.distilled.teacher_settings())
        if self.guide is None:
            return teacher
        weak = guided(self.guide.denoise, condition.only(self.guide.config.parts), SampleSettings(guidance=1.0))
        return autoguided(teacher, weak, weight=self.distilled.autoguidance)

    def _own_states(self, noise: Tensor, number: Tensor, condition: Condition) -> Tensor:
        """States that the student reaches from pure noise before step `number` [B], so that it learns from its own errors."""
        levels = student_levels(self.levels, substeps=self.distilled.substeps)
        state = noise * levels[0].item()
        if self.model.config.centred and condition.image is not None:  # where sampling starts
            state = state + condition.image[:, :1]
        training = self.model.training
        self.model.eval()
        for step in range(int(number.max())):
            rows = (number > step).nonzero()[:, 0]
            denoise = guided(self.model.denoise, condition[rows], SampleSettings(guidance=1.0))
            state[rows] = solve(denoise, state[rows], levels[step: step + 2], sampler=STUDENT_SAMPLER)
        self.model.train(training)
        return state


def _with_distilled(spec: ModelSpec, *, distilled: Any) -> ModelSpec:
    return replace(spec, config={**spec.config, "distilled": distilled})
