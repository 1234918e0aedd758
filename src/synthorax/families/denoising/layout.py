"""Outlines of findings in coordinates of the lungs, drawn by a small diffusion model conditioned on finding, side, size and place.

The first of two stages, as in label-first synthesis: outlines here, images of them by insertion or by a model conditioned on masks. What is
diffused are maps that are positive inside the outline (`data.layouts` makes them of outlines: the tanh of the signed distance), so that the
edge of a sample is as sharp as the map is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.capabilities import Denoiser, HasConditionInputs, LayoutMaker, StartsFromBase
from synthorax.config import Depth, Finite, Fraction, Multipliers, NotNegative, Patch, Positive, Side, Width
from synthorax.diffusion.guidance import clip_denoised, guided_by_prompts
from synthorax.diffusion.noise import lognormal_levels, sampling_sigmas
from synthorax.diffusion.precondition import edm_scalings, output_weight
from synthorax.diffusion.samplers import solve
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.affine import affine_matrix, resample
from synthorax.nets.embedding import PlaceEmbedding, StatementEmbedding
from synthorax.nets.lesion_maps import lesion_maps
from synthorax.nets.unet import UNet, UNetConfig
from synthorax.protocols import LESION_PROPERTIES, Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws

SIZE, X, Y = (LESION_PROPERTIES.index(name) for name in ("size", "x", "y"))
MAPS = 2
"""of a stated place: a soft spot there, and the spot times the stated size"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """Shape of the denoiser of outlines, and the range of its noise levels."""

    image_size: Side = 64
    """cells of a side of the grid"""
    channels: Width = 22
    """feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2)
    """feature maps of each level, in units of `channels`"""
    blocks: Depth = 1
    """residual blocks a level"""
    attention: tuple[bool, ...] = (False, True)
    """whether each level has self-attention"""
    patch: Patch = 4
    """cells of a side folded into channels before the first convolution"""
    embedding: Width = 64
    """width of the noise and condition embedding"""
    sigma_data: Positive = 0.5
    """standard deviation of the maps' values, which lie in [-1, 1]"""
    sigma_min: Positive = 0.01
    """lowest noise level of sampling"""
    sigma_max: Positive = 40.0
    """highest noise level of sampling"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.sigma_min >= self.sigma_max:
            yield "sigma_min", f"{self.sigma_min:g} is not below sigma_max, {self.sigma_max:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutObjectiveConfig:
    """Which noise levels are trained, how often statements are dropped, and how outlines are varied."""

    sigma_mean: Finite = -0.8
    """mean of ln sigma in training"""
    sigma_std: NotNegative = 1.4
    """standard deviation of ln sigma in training"""
    label_dropout: Fraction = 0.05
    """probability of dropping the finding"""
    place_dropout: Fraction = 0.6
    """probability of dropping the centre, x and y together; the model then chooses the place"""
    statement_dropout: Fraction = 0.15
    """probability of dropping each of side, size and severity"""
    edge: NotNegative = 2.0
    """further weight of cells on the outline, where the map is 0, against those far from it"""
    zoom: Fraction = 0.1
    """largest random change of an outline's size, in parts of it"""
    shift: Fraction = 0.04
    """largest random shift, in parts of the grid's side"""
    turn_degrees: NotNegative = 6.0
    """largest random turn"""


class LayoutModel(nn.Module, LayoutMaker, Denoiser, HasConditionInputs, StartsFromBase):
    """A denoiser of outline maps [B, 1, S, S] in [-1, 1], and the sampler that draws them; preconditioned as in Karras et al. 2022.

    A layout holds one finding, so what a condition states of side, size and place holds for whichever finding is asked for.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, LayoutConfig(**spec.config)
        c = self.config
        self.labels = StatementEmbedding(len(spec.findings), c.embedding)
        self.place = PlaceEmbedding(1, c.embedding)
        self.network = UNet(UNetConfig(channels=c.channels, multipliers=tuple(c.multipliers), blocks=c.blocks, attention=tuple(c.attention),
                                       patch=c.patch, embedding=c.embedding, coordinates=True), inputs=1 + MAPS, maps=MAPS)

    @property
    def needs_image(self) -> bool:
        """Never: outlines come from noise."""
        return False

    def check_settings(self, settings: SampleSettings) -> None:
        """It follows every setting of a sampler."""

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean maps given noisy ones, x [B, 1, S, S], sigma [B] -> [B, 1, S, S]."""
        s = edm_scalings(sigma, sigma_data=self.config.sigma_data).like(x)
        lesion = _one_lesion(condition, like=x)  # [B, 1, P]
        placed = ~lesion[:, :, (X, Y)].isnan().any(2)
        spots = lesion_maps(lesion, (x.shape[2], x.shape[3]))[:, [0, 2]] * placed[..., None, None]
        raw = self.network(torch.cat([s.c_in * x, spots.to(x)], dim=1), s.c_noise, self.labels(condition.labels.to(x)) + self.place(lesion))
        denoised: Tensor = s.c_skip * x + s.c_out * raw.to(x)
        return denoised

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One map a seed, [B, 1, S, S] in [-1, 1], positive inside the outline; the noise depends on the seed alone."""
        settings = settings or SampleSettings(guidance=1.0)
        device, side = next(self.parameters()).device, self.config.image_size
        if condition is None:
            condition = Condition.unstated(len(seeds), num_labels=len(self.spec.findings), num_sites=len(self.spec.sites))
        with torch.inference_mode():
            draws = Draws(seeds, device=device)
            sigmas = sampling_sigmas(settings.schedule, settings.steps, sigma_min=self.config.sigma_min, sigma_max=self.config.sigma_max)
            denoise = clip_denoised(guided_by_prompts(self.denoise, condition.to(device), settings, parts=CONDITIONS), settings)
            maps = solve(denoise, draws.normal(1, side, side) * sigmas[0].item(), sigmas, sampler=settings.sampler, eta=settings.eta,
                         noise=lambda: draws.normal(1, side, side))
        return maps.clamp(-1, 1)

    def draw(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Masks [B, 1, S, S] of 0 and 1: the cells inside the outlines that `sample` draws."""
        return (self.sample(condition, seeds, settings) > 0).float()

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a layout model of the same shape; findings are matched by name. Raises UsageError."""
        load_matching(self, base, what="a model of layouts")

    def named_axes(self) -> dict[str, Names]:
        """Weights whose columns mean findings."""
        return {"labels.linear.weight": (1, [f"{half} {name}" for half in ("stated", "value") for name in self.spec.findings])}

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        self.labels.zero_unvaried_inputs(varied.labels[0].isnan())
        lesion = _one_lesion(varied, like=self.labels.linear.weight)[0]  # [1, P]
        self.place.zero_unvaried_inputs(lesion.isnan())
        if bool(lesion[0, [X, Y]].isnan().any()):
            with torch.no_grad():
                self.network.first.weight[:, self.network.maps] = 0.0


CONDITIONS = ("labels", "lesions")


def _one_lesion(condition: Condition, *, like: Tensor) -> Tensor:
    """What is stated of the lesion, whichever finding it is stated of, [B, 1, P] in [0, 1] or NaN; the mean where findings differ."""
    if condition.lesions is None:
        return like.new_full((len(condition), 1, len(LESION_PROPERTIES)), math.nan)
    return condition.lesions.to(like).nanmean(dim=1, keepdim=True)


class LayoutObjective(Objective[LayoutModel]):
    """The denoising loss of Karras et al. 2022 (Eq. 2 and 8), with more weight on the outline."""

    phases = (Phase(name="denoise", updates=("model",)),)

    def __init__(self, model: LayoutModel, config: LayoutObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        config, model, draws = self.config, self.model.config, batch.draws
        clean, condition = self._varied(batch.images, batch.condition, draws)
        condition = self._dropped(condition, draws)
        sigma = lognormal_levels(draws.uniform(), draws.normal(), mean=config.sigma_mean, std=config.sigma_std, sigma_min=model.sigma_min,
                                 sigma_max=model.sigma_max)
        noisy = clean + draws.normal(*clean.shape[1:]) * sigma[:, None, None, None]
        estimate = self.model.denoise(noisy, sigma, condition)
        weight = output_weight(edm_scalings(sigma, sigma_data=model.sigma_data))
        error = F.mse_loss(estimate, clean, reduction="none") * (1 + config.edge * (1 - clean.abs()))
        return {"denoise": weight * error.flatten(1).mean(1)}

    def _varied(self, maps: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Condition]:
        """Outlines turned, zoomed and shifted a little, with what is stated of them moved along."""
        config = self.config
        amount = draws.uniform(4) * 2 - 1  # [B, 4] in [-1, 1)
        angle, zoom = amount[:, 0] * math.radians(config.turn_degrees), 1 + config.zoom * amount[:, 1]
        matrix = affine_matrix(zoom * angle.cos(), zoom * angle.sin(), amount[:, 2:] * 2 * config.shift)  # the grid spans 2
        moved = resample(maps, matrix, padding="border")
        if condition.lesions is None:
            return moved, condition
        lesions = condition.lesions.clone()
        lesions[..., SIZE] = (lesions[..., SIZE] / zoom[:, None]).clamp(0, 1)
        centred = lesions[..., [X, Y]] * 2 - 1 - matrix[:, None, :, 2]
        lesions[..., [X, Y]] = torch.linalg.solve(matrix[:, None, :, :2], centred[..., None])[..., 0].add(1).div(2).clamp(0, 1)
        return moved, replace(condition, lesions=lesions)

    def _dropped(self, condition: Condition, draws: Draws) -> Condition:
        """The condition with the finding, the place and other statements dropped at random."""
        config, chance = self.config, draws.uniform(2 + len(LESION_PROPERTIES))  # [B, 2 + P]
        labels = condition.labels.masked_fill(chance[:, :1] < config.label_dropout, math.nan)
        if condition.lesions is None:
            return replace(condition, labels=labels)
        gone = chance[:, 2:] < config.statement_dropout
        gone[:, [X, Y]] = chance[:, 1:2] < config.place_dropout
        return replace(condition, labels=labels, lesions=condition.lesions.masked_fill(gone[:, None], math.nan))


FAMILY = Family(model_config=LayoutConfig, objective_config=LayoutObjectiveConfig, build_model=LayoutModel, build_objective=LayoutObjective,
                conditions=lambda config: CONDITIONS, can=(LayoutMaker, Denoiser, HasConditionInputs, StartsFromBase))
