"""What is distilled into a student: its teacher's guidance and, for sampling in few steps, the noise levels that it visits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthorax.config import AtLeastOne, Finite, Fraction, NotNegative, WholeNotNegative, one_of
from synthorax.diffusion.distillation import student_levels
from synthorax.diffusion.noise import sampling_sigmas
from synthorax.errors import UsageError
from synthorax.protocols import SampleSettings

STUDENT_SAMPLER = "ddim"


@dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """What one evaluation of a student stands for, and so how the student is sampled."""

    guidance: Finite = 1.5
    """the teacher's guidance weight of every part that has none of its own; 1 is none"""
    part_guidance: Mapping[str, Finite] = field(default_factory=dict)
    """the teacher's weights of single parts"""
    guidance_from: NotNegative = 0.0
    """lowest noise level at which the teacher is guided"""
    guidance_to: NotNegative = 1e6
    """highest noise level at which the teacher is guided"""
    autoguidance: Finite = 1.0
    """weight of the teacher's autoguidance by a weaker model that is packed with it; 1 is none. Alone, it gives a student that can be
    guided and fine-tuned as any other model: its estimates are better, and mean the same"""
    steps: Annotated[WholeNotNegative, Field(le=1000)] = 0
    """steps of the student; 0 distils guidance alone, and any sampler and number of steps can be used"""
    substeps: Annotated[AtLeastOne, Field(le=1000)] = 4
    """steps of the teacher for one of the student's; 16 in all are enough"""
    schedule: Annotated[str, one_of("synthorax.diffusion.noise:SCHEDULES")] = "karras"
    """how the levels of the teacher's steps * substeps steps fall; the student visits the first of every `substeps`"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.guidance_from > self.guidance_to:
            yield "guidance_from", f"{self.guidance_from:g} is above guidance_to, {self.guidance_to:g}"

    @property
    def guides(self) -> bool:
        """Whether classifier-free guidance is distilled, which must not be applied again."""
        return any(weight != 1 for weight in (self.guidance, *self.part_guidance.values()))

    def teacher_settings(self) -> SampleSettings:
        """The guidance of the teacher."""
        return SampleSettings(guidance=self.guidance, part_guidance=self.part_guidance, guidance_from=self.guidance_from,
                              guidance_to=self.guidance_to)

    def settings(self, wish: SampleSettings | None = None) -> SampleSettings:
        """Sampling settings of the student: its own, or as wished where these leave it open; never guided where guidance is distilled."""
        usual = wish or SampleSettings()
        if self.guides:
            usual = replace(usual, guidance=1.0, part_guidance={}, guidance_from=0.0, guidance_to=1e6)
        return replace(usual, sampler=STUDENT_SAMPLER, steps=self.steps, schedule=self.schedule, eta=None) if self.steps else usual

    def teacher_levels(self, *, sigma_min: float, sigma_max: float) -> Tensor:
        """All noise levels of the teacher's sampling, [steps * substeps + 1], float64, falling to 0."""
        return sampling_sigmas(self.schedule, self.steps * self.substeps, sigma_min=sigma_min, sigma_max=sigma_max)

    def levels(self, *, sigma_min: float, sigma_max: float) -> Tensor:
        """The student's noise levels, [steps + 1], float64, falling to 0."""
        return student_levels(self.teacher_levels(sigma_min=sigma_min, sigma_max=sigma_max), substeps=self.substeps)

    def check(self, settings: SampleSettings) -> None:
        """Refuse settings that would guide twice, or visit noise levels that the student has not learned."""
        if self.guides and any(weight != 1 for weight in (settings.guidance, *settings.part_guidance.values())):
            raise UsageError(f"this model has guidance {self.description()} built in, and more on top of it would guide twice; "
                             "ask for guidance 1 and no part_guidance, or take its teacher")
        if not self.steps:
            return
        for name in ("sampler", "steps", "schedule"):
            own, asked = getattr(self.settings(), name), getattr(settings, name)
            if asked != own:
                raise UsageError(f"{name} {asked}: this model was distilled to {self.steps} steps of its own ({name} {own}) and knows no "
                                 f"others; leave '{name}' out, or take its teacher")
        if settings.eta:
            raise UsageError(f"eta {settings.eta}: a student of few steps adds no noise; leave it out, or take its teacher")

    def description(self) -> str:
        """The distilled guidance in words."""
        parts = "".join(f", {part} {weight:g}" for part, weight in sorted(self.part_guidance.items()))
        weaker = "" if self.autoguidance == 1 else f", away from a weaker model {self.autoguidance:g}"
        return f"{self.guidance:g}{parts}{weaker}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSettings:
    """How a student of few steps learns from its teacher."""

    sampler: Annotated[str, one_of("synthorax.diffusion.samplers:SAMPLERS")] = "unipc"
    """the teacher's: unipc, dpmpp-2m, heun, ddim or euler"""
    own: Fraction = 0.5
    """fraction of training states that the student's own sampling reaches from pure noise; the others are noisy real images"""
