"""Guidance: wrap `denoise` so that the condition counts more than it did in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthorax.diffusion.samplers import Denoise
from synthorax.protocols import Condition

ConditionalDenoise = Callable[[Tensor, Tensor, Condition], Tensor]


def classifier_free(denoise: ConditionalDenoise, condition: Condition, *, weight: float) -> Denoise:
    """D_free + weight (D_asked - D_free) (Ho and Salimans 2022, in terms of denoised images); weight 1 is plain conditioning.

    The two estimates are one network call on a doubled batch.
    """
    if weight == 1:
        return lambda x, sigma: denoise(x, sigma, condition)
    nothing = Condition.unstated(len(condition), num_labels=condition.labels.shape[1], device=condition.labels.device)
    both = Condition.join(condition, nothing)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        asked, free = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return free + weight * (asked - free)

    return guided
