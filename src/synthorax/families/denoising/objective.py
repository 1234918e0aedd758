"""What trains a diffusion model: denoising at random noise levels with condition dropout, and lesion terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import Finite, Fraction, NotNegative, WholeNotNegative, one_of
from synthorax.diffusion.noise import TRAINING_LEVELS, level_below
from synthorax.diffusion.precondition import output_weight
from synthorax.diffusion.variance import vlb_terms
from synthorax.errors import UsageError, nearest
from synthorax.families.denoising.conditioning_augmentation import blurred, crop_at, resized, with_noise
from synthorax.families.denoising.distillation import DistillationSettings
from synthorax.families.denoising.model import DiffusionModel
from synthorax.losses.lesion import LesionLossConfig, lesion_terms
from synthorax.losses.perceptual import perceptual_features
from synthorax.protocols import COARSE, PARTS, Batch, Condition, Objective, Phase
from synthorax.registry import lookup
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionObjectiveConfig:
    """Which noise levels are trained, how often parts of the condition are dropped, and how much lesions count."""

    levels: Annotated[str, one_of("synthorax.diffusion.noise:TRAINING_LEVELS")] = "lognormal"
    """how training noise levels are drawn: lognormal, linear, cosine, flow-uniform or flow-logit-normal"""
    sigma_mean: Finite = -0.8
    """mean of ln sigma in training; higher than Karras's -1.2 because images of one body part share so much at low noise"""
    sigma_std: NotNegative = 1.4
    """standard deviation of ln sigma in training"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole, independently: what classifier-free guidance needs"""
    dropout: Mapping[str, Fraction] = field(default_factory=dict)
    """other probabilities for single parts, such as mask = 0.5"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label, attribute, lesion property and mask class: a partial condition is then nothing new"""
    box: Fraction = 0.25
    """probability of showing a lesion's box in place of its mask"""
    crop: WholeNotNegative = 0
    """side in pixels of the random square of each image that is trained on; 0 is the whole image. With model.coordinates the network is
    told where in the image it lies (Wang et al. 2023, "Patch Diffusion")
    """
    conditioning_noise: NotNegative = 0.1
    """highest level of the noise in the image of the part image; each image has its own, from 0 on, which the network is conditioned on"""
    image_blur: Fraction = 0.6
    """strongest blur of that image: a standard deviation in its own pixels; each image has its own, from 0 on, which the network is not
    conditioned on
    """
    text_statements_weight: NotNegative = 1.0
    """weight of learning to read what a text states, for models conditioned on text"""
    vlb_weight: NotNegative = 1e-3
    """weight of the variational bound, which trains a learned variance"""
    lesion: LesionLossConfig = field(default_factory=LesionLossConfig)
    """the terms that keep lesions; all weights 0 is the plain loss"""
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    """how a student learns from its teacher; unused by a model that learns from images"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """Noisy images and what the network made of them; images are pixels or latents, [B, C, h, w]."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    """[B]: noise levels"""
    estimate: Tensor
    """D(noisy; sigma, condition)"""
    fraction: Tensor | None
    """interpolation exponent of a learned variance, in [0, 1]"""
    weight: Tensor
    """[B]: lambda(sigma)"""
    loss: Tensor
    """[B]"""


def denoise(model: DiffusionModel, clean: Tensor, *, noise: Tensor, sigma: Tensor, condition: Condition) -> Denoised:
    """lambda(sigma) |D(y + sigma n; sigma, c) - y|^2, the mean over pixels of each image (Eq. 2 and 8, Karras et al. 2022).

    lambda = 1 / c_out^2, so that the network's own output has the same weight at every noise level; with bands of detail, in each band.
    """
    noisy = clean + noise * sigma[:, None, None, None]
    estimate, fraction = model.estimate(noisy, sigma, condition)
    weight = output_weight(model.scalings(sigma, sigma_data=model.sigma_data))
    if model.bands is None:
        loss = weight * F.mse_loss(estimate, clean, reduction="none").flatten(1).mean(1)
    else:
        loss = model.bands.error(estimate - clean, sigma)
    return Denoised(clean=clean, noisy=noisy, sigma=sigma, estimate=estimate, fraction=fraction, weight=weight, loss=loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A square of each image, or the whole of it."""

    side: int
    """in pixels"""
    corners: Tensor | None = None
    """[B, 2]: upper left pixels; None: the whole image"""
    place: Tensor | None = None
    """[B, 2, 2] as in `Condition`, for networks that know places"""

    def of(self, images: Tensor) -> Tensor:
        """Its part of images or maps, [B, C, H, W] -> [B, C, side, side]."""
        return images if self.corners is None else crop_at(images, self.corners, self.side)

    def of_condition(self, condition: Condition) -> Condition:
        """The condition with its mask and image cropped, and with the place of the crop."""
        return replace(condition, mask=None if condition.mask is None else self.of(condition.mask),
                       image=None if condition.image is None else self.of(condition.image), place=self.place)


class DiffusionObjective(Objective[DiffusionModel]):
    """The denoising loss, and with it the bound of a learned variance, the text parser's loss, and the lesion terms of Papadopoulos and
    Georgiou 2024.
    """

    phases = (Phase(name="denoise", updates=("model",)),)
    held_out_phase = "denoise"

    def __init__(self, model: DiffusionModel, config: DiffusionObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})
        self.draw_levels: Callable[..., Tensor] = lookup(TRAINING_LEVELS, config.levels, kind="way to draw noise levels")
        for part in config.dropout:
            if part not in PARTS:
                raise UsageError(f"objective.dropout: unknown part '{part}'; {nearest(part, PARTS)}")
        _check_crop(config.crop, model)
        self.features: Any = perceptual_features(config.lesion.perceptual) if config.lesion.perceptual_weight else None

    @property
    def told_augmentation(self) -> bool:
        """As the model says."""
        return self.model.config.told_augmentation

    def prepare(self, images: Tensor) -> None:
        """Measure the scale of the latents."""
        self.model.compressor.fit(images)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        draws, crop = batch.draws, self.crop(batch.draws)
        images = crop.of(batch.images)
        clean = self.model.compressor.encode(images)
        sigma, noise = self.noise_levels(draws), draws.normal(*clean.shape[1:])
        denoised = denoise(self.model, clean, noise=noise, sigma=sigma, condition=crop.of_condition(self.condition(batch)))
        return {"denoise": denoised.loss, **self._variance_terms(denoised), **self.text_statements(batch),
                **self._lesion_terms(denoised, images, None if batch.lesion is None else crop.of(batch.lesion))}

    def _variance_terms(self, denoised: Denoised) -> dict[str, Tensor]:
        """The variational bound, [B], for models with a learned variance."""
        if denoised.fraction is None:
            return {}
        sigma = denoised.sigma
        sigma_next = level_below(sigma, kind="cosine" if self.config.levels == "cosine" else "linear").to(sigma)
        return {"vlb": self.config.vlb_weight * vlb_terms(denoised.clean, denoised.noisy, sigma, denoised.estimate.detach(),
                                                          denoised.fraction, sigma_next=sigma_next)}

    def _lesion_terms(self, denoised: Denoised, images: Tensor, lesion: Tensor | None) -> dict[str, Tensor]:
        """The terms that keep lesions, each [B], for images [B, 1, H, W] with lesions [B, 1, H, W] in [0, 1]."""
        if not self.config.lesion.active or lesion is None:
            return {}
        return lesion_terms(self.model.compressor.decode(denoised.estimate), images, lesion, denoised.sigma, error_weight=denoised.weight,
                            config=self.config.lesion, features=self.features)

    def noise_levels(self, draws: Draws) -> Tensor:
        """The level of each image, [B]."""
        config, model = self.config, self.model.config
        return self.draw_levels(draws.uniform(), draws.normal(), mean=config.sigma_mean, std=config.sigma_std, sigma_min=model.sigma_min,
                                sigma_max=model.sigma_max)

    def condition(self, batch: Batch) -> Condition:
        """The condition of each image: the parts that the model is conditioned on, some of them dropped."""
        condition = self.condition_dropout(batch.condition.only(self.model.config.parts), batch.draws)
        return replace(condition, image=self._low_resolution(batch.images, batch.draws)) if "image" in self.model.config.parts \
            else condition

    def text_statements(self, batch: Batch) -> dict[str, Tensor]:
        """The term of reading what texts state, [B], for models conditioned on text."""
        text, text_parser = self.model.text, self.model.text_parser
        if text is None or text_parser is None or batch.text_statements is None:
            return {}
        tokens, stated = text(batch.text_statements.texts)
        return {"reading": self.config.text_statements_weight * text_parser.loss(tokens, stated, labels=batch.text_statements.labels,
                                                                    lesions=batch.text_statements.lesions)}

    def condition_dropout(self, condition: Condition, draws: Draws) -> Condition:
        """The condition with parts and single statements dropped at random, and some outlines replaced by boxes."""
        config = self.config
        parts: dict[str, Any] = {}
        for part in PARTS:
            value = getattr(condition, part)
            if value is None or part == "image":
                continue
            whole = draws.uniform(1) < config.dropout.get(part, config.part_dropout)  # [B, 1]
            if part == "text":
                parts[part] = tuple("" if gone else text for text, gone in zip(value, whole[:, 0].tolist(), strict=True))
                continue
            if part == "mask":
                value = self._with_boxes(value, draws)
            axes = value.shape[1:2] if part == "mask" else value.shape[1:]
            gone = draws.uniform(*axes) < config.statement_dropout
            gone = gone | whole.reshape(-1, *[1] * len(axes))
            parts[part] = value.masked_fill(gone[..., None, None] if part == "mask" else gone, float("nan"))
        return replace(condition, **parts)

    def _with_boxes(self, mask: Tensor, draws: Draws) -> Tensor:
        """Some lesion channels of [B, M, H, W] replaced by the box around them; organs keep their outlines."""
        lesions = torch.tensor([name in self.model.spec.findings for name in self.model.spec.masks], dtype=torch.bool, device=mask.device)
        chosen = (draws.uniform(mask.shape[1]) < self.config.box) & lesions & mask.isfinite().flatten(2).all(2)
        inside = mask.nan_to_num(0.0) > 0
        rows, columns = inside.any(3), inside.any(2)  # [B, M, H], [B, M, W]
        box = COARSE * (_span(rows)[..., :, None] & _span(columns)[..., None, :])
        return torch.where(chosen[..., None, None], box.to(mask), mask)

    def _low_resolution(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image at low resolution, blurred and noisy by chance, enlarged again, with its noise level, [B, 2, H, W]; some rows
        NaN.
        """
        small = F.avg_pool2d(images, self.model.config.reduction)
        level = self.config.conditioning_noise * draws.uniform(1)[:, 0]
        noise = draws.normal(*small.shape[1:])
        gone = draws.uniform(1) < self.config.dropout.get("image", self.config.part_dropout)
        small = blurred(small, self.config.image_blur * draws.uniform(1)[:, 0])
        large = resized(with_noise(small, level=level, noise=noise), (images.shape[2], images.shape[3]))
        if self.model.config.centred:
            return large  # it cannot do without
        return large.masked_fill(gone[:, :, None, None], float("nan"))

    def crop(self, draws: Draws) -> Crop:
        """Squares to train on: they begin where a pixel of the small image and a patch of the network begin."""
        if not self.config.crop:
            return Crop(side=0)
        model = self.model.config
        folded = model.patch * self.model.compressor.factor * (1 if self.model.bands is None else 2)
        step = math.lcm(model.reduction if "image" in model.parts else 1, folded)
        corners = (draws.uniform(2).double() * ((model.image_size - self.config.crop) // step + 1)).long() * step
        if not model.coordinates:
            return Crop(side=self.config.crop, corners=corners)
        corner = (corners.double() / model.image_size).float()
        place = torch.stack([corner, torch.full_like(corner, self.config.crop / model.image_size)], dim=2)
        return Crop(side=self.config.crop, corners=corners, place=place)


def _check_crop(crop: int, model: DiffusionModel) -> None:
    """Refuse crops where a network uses attention or lesions' places, which crops would change."""
    if not crop:
        return
    c = model.config
    reasons = {"model.network=unet": c.network != "unet", "model.attention of false alone": any(c.attention),
               "model.middle_attention=false": c.middle_attention,
               "model.parts without lesions, whose places are those of the whole image": "lesions" in c.parts}
    if wanting := [reason for reason, breached in reasons.items() if breached]:
        raise UsageError(f"objective.crop={crop} needs {', '.join(wanting)}")
    if crop % model.size_multiple or crop > c.image_size:
        raise UsageError(f"objective.crop={crop} is not a multiple of {model.size_multiple} of at most {c.image_size}")


def _span(inside: Tensor) -> Tensor:
    """From the first true position to the last along the last axis, of bool."""
    forward, backward = inside.cumsum(-1) > 0, inside.flip(-1).cumsum(-1).flip(-1) > 0
    return forward & backward

