"""The hinge loss of adversarial training on maps of scores, one number an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hinge_real(scores: Tensor) -> Tensor:
    """What a discriminator pays on real images, max(0, 1 - score), [B, ...] -> [B] (Eq. 16, Miyato et al. 2018)."""
    return F.relu(1 - scores).flatten(1).mean(1)


def hinge_generated(scores: Tensor) -> Tensor:
    """What a discriminator pays on made images, max(0, 1 + score), [B, ...] -> [B] (Eq. 16, Miyato et al. 2018)."""
    return F.relu(1 + scores).flatten(1).mean(1)


def hinge_generator(scores: Tensor) -> Tensor:
    """What the maker of images pays, minus the score, [B, ...] -> [B] (Eq. 17, Miyato et al. 2018)."""
    return -scores.flatten(1).mean(1)
