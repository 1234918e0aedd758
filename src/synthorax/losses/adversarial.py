"""Adversarial losses on discriminator scores and penalties on discriminator gradients, one number an image; a higher score is more real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialLoss:
    """Losses of discriminator and generator, from scores [B, ...] -> [B] each."""

    real: Callable[[Tensor], Tensor]
    """the discriminator on real images"""
    made: Callable[[Tensor], Tensor]
    """the discriminator on generated images"""
    generator: Callable[[Tensor], Tensor]
    """the generator"""
    boundary: float | None
    """score at which an image is as likely real as generated; None where scores have no zero"""


ADVERSARIAL = {name: f"synthorax.losses.adversarial:{name.replace('-', '_').upper()}"
               for name in ("minimax", "non-saturating", "least-squares", "hinge", "wasserstein")}
"""losses by name"""


def least_squares(scores: Tensor, *, target: float) -> Tensor:
    """(score - target)^2 / 2, averaged over the score map, [B, ...] -> [B] (Eq. 9, Mao et al. 2017, with a = 0, b = c = 1)."""
    return 0.5 * (scores - target).square().flatten(1).mean(1)


def log_loss(scores: Tensor, *, real: bool) -> Tensor:
    """-log D for real images, -log(1 - D) otherwise, with D = sigmoid(score), [B, ...] -> [B] (Eq. 1, Goodfellow et al. 2014)."""
    return F.softplus(-scores if real else scores).flatten(1).mean(1)


def mean_score(scores: Tensor) -> Tensor:
    """The score averaged over its map, [B, ...] -> [B] (Eq. 2, Arjovsky et al. 2017)."""
    return scores.flatten(1).mean(1)


def hinge_real(scores: Tensor) -> Tensor:
    """The discriminator's hinge loss on real images, max(0, 1 - score), [B, ...] -> [B] (Eq. 16, Miyato et al. 2018)."""
    return F.relu(1 - scores).flatten(1).mean(1)


def hinge_generated(scores: Tensor) -> Tensor:
    """The discriminator's hinge loss on generated images, max(0, 1 + score), [B, ...] -> [B] (Eq. 16, Miyato et al. 2018)."""
    return F.relu(1 + scores).flatten(1).mean(1)


def hinge_generator(scores: Tensor) -> Tensor:
    """The generator's hinge loss, minus the score, [B, ...] -> [B] (Eq. 17, Miyato et al. 2018)."""
    return -scores.flatten(1).mean(1)


MINIMAX = AdversarialLoss(real=lambda scores: log_loss(scores, real=True), made=lambda scores: log_loss(scores, real=False),
                          generator=lambda scores: -log_loss(scores, real=False), boundary=0.0)
"""the generator lowers log(1 - D), whose gradient vanishes where the discriminator is sure"""
NON_SATURATING = AdversarialLoss(real=MINIMAX.real, made=MINIMAX.made, generator=lambda scores: log_loss(scores, real=True), boundary=0.0)
"""the generator raises log D instead (Sec. 3, Goodfellow et al. 2014)"""
LEAST_SQUARES = AdversarialLoss(real=lambda scores: least_squares(scores, target=1), made=lambda scores: least_squares(scores, target=0),
                                generator=lambda scores: least_squares(scores, target=1), boundary=0.5)
HINGE = AdversarialLoss(real=hinge_real, made=hinge_generated, generator=hinge_generator, boundary=0.0)
WASSERSTEIN = AdversarialLoss(real=lambda scores: -mean_score(scores), made=mean_score, generator=lambda scores: -mean_score(scores),
                              boundary=None)


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, *, share: Tensor) -> Tensor:
    """(|gradient| - 1)^2 of the score, at `share` [B] in [0, 1] of the way from generated to real images, [B, 1, H, W] twice -> [B].

    Eq. 3, Gulrajani et al. 2017. Images must not share statistics inside `score` [B, 1, H, W] -> [B, ...].
    """
    share = share[:, None, None, None].to(real)
    between = (share * real + (1 - share) * made).detach()
    return (_squared_gradient(score, between).sqrt() - 1).square()


def zero_centred_penalty(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """|gradient|^2 / 2 of the score at images, [B, 1, H, W] -> [B]: R1 on real images (Eq. 9, Mescheder et al. 2018), before gamma."""
    return 0.5 * _squared_gradient(score, images.detach())


def _squared_gradient(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Squared norm of each image's gradient, [B]; itself differentiable, and in float32 because it is small."""
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        images = images.float().requires_grad_()
        total = mean_score(score(images)).sum()
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
        return gradient.square().flatten(1).sum(1) + 1e-12  # the root of 0 has no gradient
