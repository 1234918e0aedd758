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
from synthorax.config import Depth, Finite, Fraction, NotNegative, Positive, Side, Width
from synthorax.diffusion.guidance import clip_denoised, guided_by_prompts
from synthorax.diffusion.noise import lognormal_levels, sampling_sigmas
from synthorax.diffusion.samplers import solve
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.affine import affine_matrix, resample
from synthorax.nets.embedding import NoiseEmbedding, PlaceEmbedding, StatementEmbedding
from synthorax.protocols import LESION_PROPERTIES, Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws

SIZE, X, Y = (LESION_PROPERTIES.index(name) for name in ("size", "x", "y"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """Shape of the denoiser of outlines, and the range of its noise levels."""

    image_size: Side = 64
    """cells of a side of the grid"""
    band: Width = 32
    """cosines of the grid's transform that are kept: those whose numbers down and across add up to less"""
    width: Width = 176
    """features of a layer"""
    depth: Depth = 3
    """residual blocks"""
    embedding: Width = 64
    """width of the noise and condition embedding"""
    sigma_min: Positive = 0.01
    """lowest noise level of sampling"""
    sigma_max: Positive = 120.0
    """highest noise level of sampling, well above the spread of the largest coefficient, which is about 15"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.sigma_min >= self.sigma_max:
            yield "sigma_min", f"{self.sigma_min:g} is not below sigma_max, {self.sigma_max:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutObjectiveConfig:
    """Which noise levels are trained, how often statements are dropped, and how outlines are varied."""

    sigma_mean: Finite = 0.5
    """mean of ln sigma in training"""
    sigma_std: NotNegative = 1.8
    """standard deviation of ln sigma in training"""
    label_dropout: Fraction = 0.05
    """probability of dropping the finding"""
    place_dropout: Fraction = 0.6
    """probability of dropping the centre, x and y together; the model then chooses the place"""
    statement_dropout: Fraction = 0.15
    """probability of dropping each of side, size and severity"""
    zoom: Fraction = 0.1
    """largest random change of an outline's size, in parts of it"""
    shift: Fraction = 0.04
    """largest random shift, in parts of the grid's side"""
    turn_degrees: NotNegative = 6.0
    """largest random turn"""


class LayoutModel(nn.Module, LayoutMaker, Denoiser, HasConditionInputs, StartsFromBase):
    """A denoiser of outline maps [B, 1, S, S] in [-1, 1], and the sampler that draws them.

    Maps of outlines are smooth, so the network sees the low frequencies of their cosine transform and nothing else: a few linear layers
    learn the forms of outlines from a hundredth of the arithmetic of a convolutional network.

    A layout holds one finding, so what a condition states of side, size and place holds for whichever finding is asked for.
    """

    basis: Tensor
    kept: Tensor
    centre: Tensor
    """[K]: mean of each coefficient among training maps; that of the first one is large, because most of a map is outside"""
    spread: Tensor
    """[K]: standard deviation of each coefficient"""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, LayoutConfig(**spec.config)
        c = self.config
        self.labels = StatementEmbedding(len(spec.findings), c.embedding)
        self.place = PlaceEmbedding(1, c.embedding)
        side, rows = c.image_size, torch.arange(c.image_size)
        basis = torch.cos(math.pi / side * (rows[None] + 0.5) * rows[:, None]) * (2 / side) ** 0.5  # DCT-II, orthonormal
        basis[0] *= 0.5 ** 0.5
        self.register_buffer("basis", basis, persistent=False)  # [S, S]
        self.register_buffer("kept", rows[:, None] + rows[None] < c.band, persistent=False)
        number = sum(max(0, min(side, c.band - row)) for row in range(side))
        self.register_buffer("centre", torch.zeros(number))
        self.register_buffer("spread", torch.ones(number))
        self.network = SpectrumNetwork(number, width=c.width, depth=c.depth, embedding=c.embedding)

    def fit(self, maps: Tensor) -> None:
        """Measure mean and spread of each coefficient on training maps [N, 1, S, S]: what the network sees and gives is in their units."""
        self.centre.zero_()
        coefficients = self.coefficients(maps.to(self.basis))
        self.centre.copy_(coefficients.mean(0))
        self.spread.copy_(coefficients.std(0).clamp(min=1e-2))

    def coefficients(self, maps: Tensor) -> Tensor:
        """The kept coefficients of the cosine transform without their mean, [B, 1, S, S] -> [B, K]."""
        return (self.basis @ maps[:, 0] @ self.basis.T)[:, self.kept] - self.centre

    def maps(self, coefficients: Tensor) -> Tensor:
        """Maps of coefficients, [B, K] -> [B, 1, S, S]."""
        spectrum = coefficients.new_zeros(len(coefficients), *self.kept.shape)
        spectrum[:, self.kept] = coefficients + self.centre
        return (self.basis.T @ spectrum @ self.basis)[:, None]

    @property
    def needs_image(self) -> bool:
        """Never: outlines come from noise."""
        return False

    def check_settings(self, settings: SampleSettings) -> None:
        """It follows every setting of a sampler."""

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean maps given noisy ones, x [B, 1, S, S], sigma [B] -> [B, 1, S, S]."""
        return self.maps(self.denoised(self.coefficients(x), sigma, condition).to(x))

    def denoised(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean coefficients given noisy ones, [B, K]; each is preconditioned by its own spread.

        c_skip, c_out and c_in of Table 1, Karras et al. 2022, with the coefficient's spread in the place of sigma_data.
        """
        sigma, spread = sigma[:, None].to(noisy), self.spread
        total = (sigma**2 + spread**2).sqrt()
        embedding = self.labels(condition.labels.to(noisy)) + self.place(_one_lesion(condition, like=noisy))
        raw: Tensor = self.network(noisy / total, sigma[:, 0].log() / 4, embedding)
        return spread**2 / total**2 * noisy + sigma * spread / total * raw.to(noisy)

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


CONDITIONS = ("labels", "lesions")


def _one_lesion(condition: Condition, *, like: Tensor) -> Tensor:
    """What is stated of the lesion, whichever finding it is stated of, [B, 1, P] in [0, 1] or NaN; the mean where findings differ."""
    if condition.lesions is None:
        return like.new_full((len(condition), 1, len(LESION_PROPERTIES)), math.nan)
    return condition.lesions.to(like).nanmean(dim=1, keepdim=True)


class SpectrumNetwork(nn.Module):
    """Residual blocks of linear layers, conditioned on noise level and condition, coefficients [B, K] -> [B, K]."""

    def __init__(self, number: int, *, width: int, depth: int, embedding: int) -> None:
        super().__init__()
        self.noise = nn.Sequential(NoiseEmbedding(embedding), nn.Linear(embedding, embedding))
        self.first = nn.Linear(number, width)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(embedding, 2 * width), nn.Linear(width, width)]) for _ in range(depth))
        self.last = nn.Linear(width, number)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, coefficients: Tensor, noise_level: Tensor, embedding: Tensor) -> Tensor:
        embedding, h = F.silu(self.noise(noise_level) + embedding), self.first(coefficients)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            modulate, mix = block[0], block[1]
            scale, shift = modulate(embedding).chunk(2, dim=1)
            h = h + mix(F.silu(F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift))
        output: Tensor = self.last(F.silu(h))
        return output


class LayoutObjective(Objective[LayoutModel]):
    """The denoising loss of Karras et al. 2022 (Eq. 2 and 8) on coefficients, divided by the mean of c_out^2 at each noise level."""

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
        spectrum = self.model.coefficients(clean)
        estimate = self.model.denoised(spectrum + draws.normal(spectrum.shape[1]) * sigma[:, None], sigma, condition)
        scale = (sigma[:, None] * self.model.spread).square() / (sigma[:, None].square() + self.model.spread.square())  # c_out^2
        return {"denoise": (estimate - spectrum).square().mean(1) / scale.mean(1)}

    def prepare(self, images: Tensor) -> None:
        """Measure the spread of coefficients."""
        self.model.fit(images)

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
