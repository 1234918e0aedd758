"""Membership inference: can the images, or the model, tell who was trained on? An AUROC of one half says no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.errors import UsageError
from synthorax.evaluation.statistics.roc import AurocInterval, delong_interval
from synthorax.protocols import Condition, ModelSpec
from synthorax.rng import Draws, derive

NOISE_LEVELS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""at which a model is asked to denoise, in units of its data's standard deviation"""
DRAWS = 4
"""noises an image and level"""
BATCH_IMAGES = 32


class Denoiser(Protocol):
    """A diffusion model as the loss-based attack sees it."""

    spec: ModelSpec
    sigma_data: float
    compressor: Any
    """`encode` turns images [B, 1, S, S] in [-1, 1] into what is diffused"""

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean latents."""


def one_image_each(patients: Sequence[str] | NDArray[np.str_], *, seed: int) -> NDArray[np.intp]:
    """A random image of each patient, as sorted rows: images of one patient are not independent, and intervals take them to be."""
    order = np.random.default_rng(derive(seed, "one film each")).permutation(len(patients))
    _, first = np.unique(np.asarray(patients)[order], return_index=True)
    return np.sort(order[first]).astype(np.intp)


def distance_auroc(train: NDArray[np.floating], held_out: NDArray[np.floating], synthetic: NDArray[np.floating], *,
                   reference: NDArray[np.floating] | None = None) -> AurocInterval:
    """How well closeness to the nearest synthetic image tells training images from held-out ones (Chen et al. 2020, GAN-Leaks, Sec. 4).

    All are features [N, F] of one space. Some images are close to everything: with `reference`, features of real images of other
    patients that were not trained on, closeness to their nearest is subtracted, as the attack's calibration does (Sec. 4.6).
    """
    centre = (synthetic if reference is None else reference).mean(axis=0)

    def closeness(images: NDArray[np.floating]) -> NDArray[np.float64]:
        value = _nearest_cosine(images - centre, synthetic - centre)
        return value if reference is None else value - _nearest_cosine(images - centre, reference - centre)

    return member_auroc(closeness(train), closeness(held_out))


def loss_auroc(losses_train: NDArray[np.float64], losses_held_out: NDArray[np.float64]) -> AurocInterval:
    """How well a low denoising loss tells training images from held-out ones (Carlini et al. 2023, Sec. 5).

    Losses are [N, L] as `denoising_losses` gives them, or differences to those of a reference model, which takes out how hard a
    image is: then this is a likelihood-ratio attack. Levels count equally, each in standard deviations over all images.
    """
    both = np.concatenate([losses_train, losses_held_out])
    standard = (both - both.mean(axis=0)) / np.maximum(both.std(axis=0), 1e-12)
    score = -standard.mean(axis=1)
    return member_auroc(score[:len(losses_train)], score[len(losses_train):])


def member_auroc(train: NDArray[np.float64], held_out: NDArray[np.float64]) -> AurocInterval:
    """AUROC of scores, higher for members, of training against held-out images, with DeLong's interval."""
    return delong_interval(np.repeat([1, 0], [len(train), len(held_out)]), np.concatenate([train, held_out]))


def denoising_losses(model: Denoiser, images: Tensor, condition: Condition | None = None, *, seed: int, num_draws: int = DRAWS,
                     ) -> NDArray[np.float64]:
    """Logarithm of a diffusion model's mean squared denoising error at each of `NOISE_LEVELS`, float64 [N, L].

    `images` [N, 1, S, S] in [-1, 1]. The noise of image i depends on `seed` and i alone, so another model sees the same noise.
    Raises UsageError for images of another size than the model's.
    """
    size = model.spec.image_size
    if images.shape[1:] != (1, size, size):
        raise UsageError(f"the model denoises images of {size} px, not {list(images.shape[1:])}")
    condition = condition or Condition.unstated(len(images), num_labels=len(model.spec.findings), num_sites=len(model.spec.sites))
    losses = np.zeros((len(images), len(NOISE_LEVELS)))
    with torch.inference_mode():
        for start in range(0, len(images), BATCH_IMAGES):
            rows = slice(start, min(start + BATCH_IMAGES, len(images)))
            clean = model.compressor.encode(images[rows])
            draws = Draws([derive(seed, "membership", row) for row in range(rows.start, rows.stop)], device=clean.device)
            for level, scale in enumerate(NOISE_LEVELS):
                sigma = torch.full((len(clean),), scale * model.sigma_data, device=clean.device)
                errors = [(model.denoise(clean + draws.normal(*clean.shape[1:]) * sigma[:, None, None, None], sigma, condition[rows])
                           - clean).square().flatten(1).mean(1) for _ in range(num_draws)]
                losses[rows, level] = torch.stack(errors).mean(0).double().clamp_min(1e-12).log().cpu().numpy()
    return losses


def _nearest_cosine(images: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine to the nearest of `others` [M, F] for each of `images` [N, F], in chunks: [N]."""
    unit = others / np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-6)
    rows = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-6)
    nearest = [(rows[start:start + 1024] @ unit.T).max(axis=1) for start in range(0, len(rows), 1024)]
    return np.concatenate(nearest).astype(np.float64)
