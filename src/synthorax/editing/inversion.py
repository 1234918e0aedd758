"""GAN inversion: latents from which a generator makes given images, found by optimisation (Zhu et al. 2016, Abdal et al. 2019).

The search begins at the latent of the model's encoder, if it has one (Sec. 3.3, Zhu et al. 2016), or else at the best of some random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from synthorax.capabilities import LatentEncoder, LatentGenerator, StyledGenerator
from synthorax.config import AtLeastOne, NotNegative, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.protocols import Condition, Model
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionConfig:
    """How latents are optimised, and how typical they must be."""

    candidates: AtLeastOne = 64
    """random latents, at the best of which the search begins for each image"""
    steps: WholeNotNegative = 500
    """steps of Adam; 0 leaves the latents where the search would begin"""
    learning_rate: NotNegative = 0.05
    """step size at the start; it falls to 0 along a cosine"""
    prior: NotNegative = 1e-5
    """weight of the squared latent, beside the mean squared error of a pixel"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inversion:
    """Latents of images, what the generator makes of them, and how close that is."""

    latents: tuple[Tensor, ...]
    """each [B, *size]"""
    images: Tensor
    """[B, 1, S, S]"""
    psnr: Tensor
    """[B], in dB; higher is closer"""


def editable(model: object) -> LatentGenerator:
    """The latent space in which images of a model are best inverted and edited: that of its styles where it has some, or else its latents.

    Raises UsageError for a model that makes no images of latents.
    """
    return model.style_space() if isinstance(model, StyledGenerator) else check_has_latents(model)


def check_has_latents(model: object) -> LatentGenerator:
    """The model, if it makes images of latents; otherwise UsageError."""
    if not isinstance(model, LatentGenerator):
        raise UsageError(f"a model of family '{cast(Model, model).spec.family}' makes no images of latents; choose an adversarial family")
    return model


def invert(model: LatentGenerator, images: Tensor, *, seeds: Sequence[int], condition: Condition | None = None,
               start: Sequence[Tensor] | None = None, config: InversionConfig | None = None) -> Inversion:
    """Latents from which `model` best reproduces `images` [B, 1, S, S] in [-1, 1]; each image has a seed and a search of its own.

    The model must be in evaluation mode; its weights stay as they are. `condition` is what is known of the images. `start` are latents to
    begin with, each [B, *size]; without any, a model with an encoder begins with its latents.
    """
    config = config or InversionConfig()
    check_images(model, images)
    if len(seeds) != len(images):
        raise UsageError(f"images of shape {tuple(images.shape)} need as many seeds, not {len(seeds)}")
    if start is None:
        begun: Sequence[Tensor] = model.encode_latents(images) if isinstance(model, LatentEncoder) else \
            _best_of(model, images, seeds=seeds, condition=condition, config=config)
    else:
        begun = check_latents(model, start, size=len(images))
    latents = [latent.detach().clone().requires_grad_() for latent in begun]
    optimizer = torch.optim.Adam(latents, lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    with torch.enable_grad():
        for _ in range(config.steps):
            error = (model.decode_latents(latents, condition) - images).square().flatten(1).mean(1)
            atypical = torch.stack([latent.square().flatten(1).mean(1) for latent in latents]).sum(0)
            total = (error + config.prior * atypical).sum()  # a sum: no image slows another one down
            for latent, gradient in zip(latents, torch.autograd.grad(total, latents, materialize_grads=True), strict=True):
                latent.grad = gradient
            optimizer.step()
            cosine.step()
    with torch.inference_mode():
        made = model.decode_latents(latents, condition)
        error = (made - images).square().flatten(1).mean(1)
    return Inversion(latents=tuple(latent.detach() for latent in latents), images=made, psnr=10 * torch.log10(4 / error))  # the range is 2


def check_images(model: LatentGenerator, images: Tensor) -> None:
    """Refuse with a UsageError a model without latents or in training mode, and images of another size than it makes."""
    check_has_latents(model)
    side = model.spec.image_size
    if images.shape[1:] != (1, side, side):
        raise UsageError(f"a model of {side} px needs images of shape {(len(images), 1, side, side)}, not {tuple(images.shape)}")
    if model.training:
        raise UsageError("the model is in training mode, where an image may depend on others; call model.eval() first")


def check_latents(model: LatentGenerator, latents: Sequence[Tensor], *, size: int) -> Sequence[Tensor]:
    """The latents, if they are such as this model makes `size` images of; otherwise UsageError."""
    wanted, given = [(size, *shape) for shape in model.latent_shapes], [tuple(latent.shape) for latent in latents]
    if wanted != given:
        raise UsageError(f"latents of shapes {given} are not those of {size} images of this model, {wanted}; latents belong to the space "
                         "in which they were found: editable(model) or the model itself")
    return latents


@torch.no_grad()
def _best_of(model: LatentGenerator, images: Tensor, *, seeds: Sequence[int], condition: Condition | None,
             config: InversionConfig) -> list[Tensor]:
    """The best of some random latents for each image."""
    draws = Draws(seeds, device=images.device)
    best: list[Tensor] = []
    lowest = torch.full((len(images),), torch.inf, device=images.device)
    for _ in range(config.candidates):
        latents = model.draw_latents(draws, condition)
        error = (model.decode_latents(latents, condition) - images).square().flatten(1).mean(1)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        best = [torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(latents, best or latents, strict=True)]
    return best
