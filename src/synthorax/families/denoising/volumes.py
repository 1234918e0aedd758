"""Diffusion of volumes: a denoiser in three dimensions, conditioned on what is measured of a lesion, with the samplers of images.

A volume has a few quantities a voxel, such as the signed distance to a lesion's surface and its attenuation, so that shape and content are
drawn together. The network is the U-Net of images in three dimensions (Cicek et al. 2016; Ho et al. 2022, "Video diffusion models"); the
noise levels are those of Karras et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from synthorax.capabilities import Denoiser, HasConditionInputs, StartsFromBase
from synthorax.config import Depth, Dropout, Finite, Fraction, Multipliers, NotNegative, Patch, Positive, Side, Width, one_of
from synthorax.diffusion.guidance import clip_denoised, guided_by_prompts
from synthorax.diffusion.noise import lognormal_levels, sampling_sigmas
from synthorax.diffusion.precondition import PARAMETERISATIONS, Scalings, output_weight
from synthorax.diffusion.samplers import Denoise, solve
from synthorax.errors import UsageError
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.unet import UNet, UNetConfig, smallest_multiple
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws

PART = "measurements"
"""of a condition, on which these models are conditioned"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeDiffusionConfig:
    """Shape of the denoiser, what it is conditioned on, and the range of its noise levels."""

    image_size: Side = 32
    """side of the cubic volumes in voxels"""
    quantities: Annotated[tuple[str, ...], MinLen(1)] = ("shape", "attenuation")
    """meaning of the channels of a volume; those of the prepared folder"""
    measurements: tuple[str, ...] = ("diameter", "margin", "solidity")
    """what the model is conditioned on; those of the prepared folder"""
    parameterisation: Annotated[str, one_of("synthorax.diffusion.precondition:PARAMETERISATIONS")] = "x0"
    """what the network estimates: edm, eps, x0, v or flow; the clean volume itself (x0) is smooth, and so a small network can give it"""
    channels: Width = 24
    """feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2, 3)
    """feature maps of each level, in units of `channels`"""
    blocks: Depth = 1
    """residual blocks a level"""
    attention: tuple[bool, ...] = (False, False, False)
    """whether each level has self-attention"""
    middle_attention: bool = True
    """self-attention at the lowest resolution, whatever `attention` says"""
    patch: Patch = 2
    """voxels of a side folded into channels"""
    dropout: Dropout = 0.0
    """probability of dropping a feature in training"""
    embedding: Width = 96
    """width of the noise and condition embedding"""
    sigma_data: Positive = 0.4
    """standard deviation of the values in [-1, 1]"""
    sigma_min: Positive = 0.005
    """lowest noise level of sampling"""
    sigma_max: Positive = 80.0
    """highest noise level of sampling"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.sigma_min >= self.sigma_max:
            yield "sigma_min", f"{self.sigma_min:g} is not below sigma_max, {self.sigma_max:g}"


class VolumeDiffusionModel(nn.Module, Denoiser, HasConditionInputs, StartsFromBase):
    """A denoiser D(x; sigma, condition) of volumes, and the samplers that turn it into lesions."""

    needs_image = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, VolumeDiffusionConfig(**spec.config)
        c = self.config
        self.scalings: Callable[..., Scalings] = lookup(PARAMETERISATIONS, c.parameterisation, kind="parameterisation")
        if len(c.multipliers) != len(c.attention):
            raise UsageError("model.multipliers and model.attention must have the same length")
        shape = UNetConfig(channels=c.channels, multipliers=tuple(c.multipliers), blocks=c.blocks, attention=tuple(c.attention),
                           patch=c.patch, dropout=c.dropout, embedding=c.embedding, middle_attention=c.middle_attention, dims=3)
        if c.image_size % smallest_multiple(shape):
            raise UsageError(f"model.image_size {c.image_size}: this network needs a multiple of {smallest_multiple(shape)}")
        self.embedding = StatementEmbedding(len(c.measurements), c.embedding)
        self.network = UNet(shape, inputs=len(c.quantities), outputs=len(c.quantities))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a volume, [C, S, S, S]."""
        side = self.config.image_size
        return len(self.config.quantities), side, side, side

    @property
    def usual_settings(self) -> SampleSettings:
        """The settings where none are given."""
        return SampleSettings()

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean volumes given noisy ones, x [B, C, S, S, S], sigma [B] -> [B, C, S, S, S]."""
        s = self.scalings(sigma, sigma_data=self.config.sigma_data).like(x)
        stated = condition.measurements
        if stated is None:
            stated = x.new_full((len(x), len(self.config.measurements)), math.nan)
        if stated.shape != (len(x), len(self.config.measurements)):
            raise UsageError(f"condition.measurements has shape {tuple(stated.shape)}, and this model takes one row a volume of "
                             f"{', '.join(self.config.measurements)}")
        raw = self.network(s.c_in * x, s.c_noise, self.embedding(stated.to(x)))
        clean: Tensor = s.c_skip * x + s.c_out * raw.to(x)
        return clean

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One volume a seed, [B, C, S, S, S] in [-1, 1]; the noise depends on the seed alone.

        `condition` has one row a seed, of which `measurements` counts; None is unconditional.
        """
        settings = settings or self.usual_settings
        self.check_settings(settings)
        if condition is None:
            condition = Condition.unstated(len(seeds), num_labels=len(self.spec.findings), num_sites=len(self.spec.sites))
        with torch.inference_mode():
            device = next(self.network.parameters()).device
            denoise: Denoise = guided_by_prompts(self.denoise, condition.to(device), settings, parts=(PART,))
            draws = Draws(seeds, device=device)
            sigmas = sampling_sigmas(settings.schedule, settings.steps, sigma_min=self.config.sigma_min, sigma_max=self.config.sigma_max)
            volumes = solve(clip_denoised(denoise, settings), draws.normal(*self.shape) * sigmas[0].item(), sigmas,
                            sampler=settings.sampler, eta=settings.eta, noise=lambda: draws.normal(*self.shape))
        return volumes.clamp(-1, 1)

    def check_settings(self, settings: SampleSettings) -> None:
        """See `Denoiser`; these models follow all of them."""

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        if varied.measurements is not None:
            self.embedding.zero_unvaried_inputs(varied.measurements[0].isnan())

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; measurements are matched by name."""
        load_matching(self, base, what="a diffusion model of volumes")

    def named_axes(self) -> dict[str, Names]:
        """See `StartsFromBase`."""
        return {"embedding.linear.weight": (1, [f"{half} {name}" for half in ("stated", "value") for name in self.config.measurements])}


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeObjectiveConfig:
    """Which noise levels are trained, and how often parts of the condition are dropped."""

    sigma_mean: Finite = -0.4
    """mean of ln sigma in training; higher than for images, because neighbouring voxels share more"""
    sigma_std: NotNegative = 1.4
    """standard deviation of ln sigma in training"""
    part_dropout: Fraction = 0.15
    """probability of dropping the whole condition: what classifier-free guidance needs"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each measurement: a partial condition is then nothing new"""


class VolumeObjective(Objective[VolumeDiffusionModel]):
    """The denoising loss of Karras et al. 2022 on volumes."""

    phases = (Phase(name="denoise", updates=("model",)),)

    def __init__(self, model: VolumeDiffusionModel, config: VolumeObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        """lambda(sigma) |D(y + sigma n; sigma, c) - y|^2, the mean over voxels of each volume (Eq. 2 and 8, Karras et al. 2022)."""
        clean, draws, config = batch.images, batch.draws, self.config
        sigma = lognormal_levels(draws.uniform(), draws.normal(), mean=config.sigma_mean, std=config.sigma_std,
                                   sigma_min=self.model.config.sigma_min, sigma_max=self.model.config.sigma_max)
        noisy = clean + draws.normal(*clean.shape[1:]) * sigma.reshape(-1, 1, 1, 1, 1)
        estimate = self.model.denoise(noisy, sigma, self._condition(batch))
        weight = output_weight(self.model.scalings(sigma, sigma_data=self.model.config.sigma_data))
        return {"denoise": weight * F.mse_loss(estimate, clean, reduction="none").flatten(1).mean(1)}

    def _condition(self, batch: Batch) -> Condition:
        """The condition with all or single measurements dropped at random."""
        condition = batch.condition.only((PART,))
        if condition.measurements is None:
            return condition
        gone = (batch.draws.uniform(1) < self.config.part_dropout) | \
            (batch.draws.uniform(condition.measurements.shape[1]) < self.config.statement_dropout)
        return replace(condition, measurements=condition.measurements.masked_fill(gone, math.nan))


_build_objective: Callable[[VolumeDiffusionModel, VolumeObjectiveConfig], Objective[VolumeDiffusionModel]] = VolumeObjective
FAMILY = Family(model_config=VolumeDiffusionConfig, objective_config=VolumeObjectiveConfig, build_model=VolumeDiffusionModel,
                build_objective=_build_objective, conditions=lambda config: (PART,) if config.measurements else (),
                can=(Denoiser, HasConditionInputs, StartsFromBase), volumes=True)
