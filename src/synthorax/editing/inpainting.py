"""Inpainting by an autoencoder: an image is encoded and decoded again and again until the missing region fits the known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from synthorax.errors import UsageError
from synthorax.protocols import Condition
from synthorax.rng import Draws

ROUNDS = 20


class Rebuilder(Protocol):
    """An autoencoder whose latent is drawn from its posterior."""

    def rebuild(self, images: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        """Images through a latent and back, [B, 1, S, S] in [-1, 1] -> the same."""


def impute(model: Rebuilder, images: Tensor, known: Tensor, seeds: Sequence[int], *, condition: Condition | None = None,
           rounds: int = ROUNDS) -> Tensor:
    """Images with their missing pixels filled in, [B, 1, S, S] in [-1, 1]; known pixels stay as they are, to the bit.

    `known` [B, 1, S, S] of bool says where an image is to be trusted; elsewhere it may hold anything, also NaN. Each round draws a latent
    for the image as it is and takes the missing pixels from its image: a Markov chain that converges to the model's distribution of the
    missing pixels (Sec. 5.3 and Appendix F, Rezende et al. 2014). Other seeds give other answers; each image depends on its own seed.
    """
    if images.shape != known.shape or known.dtype != torch.bool:
        raise UsageError(f"known must be a bool for every pixel of {list(images.shape)}, not be {known.dtype} of {list(known.shape)}")
    if len(seeds) != len(images) or rounds < 1:
        raise UsageError(f"imputing {len(images)} images needs as many seeds, and at least one round, not {len(seeds)} and {rounds}")
    if not bool(images[known].isfinite().all()):
        raise UsageError("known pixels are NaN or infinite: mark them as not known")
    draws = Draws(seeds, device=images.device)
    with torch.inference_mode():
        image = torch.where(known, images, _mean_of_known(images, known))
        for _ in range(rounds):
            image = torch.where(known, images, model.rebuild(image, condition, draws).to(images))
    return image


def _mean_of_known(images: Tensor, known: Tensor) -> Tensor:
    """The initial intensity, [B, 1, 1, 1]: the mean of the known pixels of an image, 0 where none is known."""
    total = images.where(known, 0.0).flatten(1).sum(1)
    return (total / known.flatten(1).sum(1).clamp_min(1))[:, None, None, None]
