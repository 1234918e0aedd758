"""Directions among the latents of a generator: along one of them images gain or lose a finding.

They are learned from latents and labels (InterFaceGAN, Shen et al. 2020), or are those that the generator amplifies most (SeFa, Shen and
Zhou 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.capabilities import LatentGenerator
from synthorax.config import NotNegative
from synthorax.editing.inversion import check_latents, editable
from synthorax.errors import UsageError, nearest
from synthorax.protocols import Condition
from synthorax.rng import Draws

BATCH = 64
ITERATIONS = 50
RIDGE = 1e-6
"""smallest penalty, without which linearly separable findings would have no best weights"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionConfig:
    """How a direction is learned from latents and labels."""

    method: Literal["logistic", "means"] = "logistic"
    """logistic: the normal of a logistic regression's boundary; means: the difference of the class means, whitened"""
    ridge: NotNegative = 0.01
    """logistic: half of this times the squared length of the normal is added to the mean cross-entropy; means: fraction of the mean
    variance that is added to every variance"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Directions:
    """Directions by name. A step of 1 along one is a standard deviation of the latents that it was learned from."""

    names: tuple[str, ...]
    vectors: Tensor
    """[K, *size of the first latent]"""

    def of(self, name: str, *, keep: Sequence[str] = ()) -> Tensor:
        """The direction called `name`, [*size]; less what it shares with those called `keep`, whose scores then stay unchanged.

        That is conditional manipulation (Sec. 3.2, Shen et al. 2020): the projection onto the subspace of the others' normals is
        subtracted. UsageError for an unknown name, and for a direction that is nothing but those to keep.

        >>> found.of("Effusion", keep=["Cardiomegaly"])  # doctest: +SKIP
        """
        own = self._flat(name)
        if name in keep:
            raise UsageError(f"a step along '{name}' cannot keep '{name}' as it is")
        if keep:
            others = torch.linalg.qr(torch.stack([self._flat(other) for other in keep], dim=1)).Q  # [F, others]
            left = own - others @ (others.T @ own)
            if left.norm() < 1e-4 * own.norm():
                raise UsageError(f"nothing of the direction '{name}' is left beside {', '.join(keep)}")
            own = left
        return own.reshape(self.vectors.shape[1:]).to(self.vectors)

    def _flat(self, name: str) -> Tensor:
        if name not in self.names:
            raise UsageError(f"no direction is known for '{name}'; {nearest(name, self.names)}")
        return self.vectors[self.names.index(name)].flatten().double()


def directions(latents: Tensor, labels: Tensor, *, names: Sequence[str], config: DirectionConfig | None = None) -> Directions:
    """A direction a finding, from latents [N, *size] and labels of their images, [N, K] in [0, 1] or NaN where not stated.

    Labels may be a judge's probabilities. Raises UsageError where a finding is not both present and absent among the images.
    """
    config = config or DirectionConfig()
    if labels.shape != (len(latents), len(names)):
        raise UsageError(f"{len(latents)} latents and {len(names)} findings need labels of shape {(len(latents), len(names))}, "
                         f"not {tuple(labels.shape)}")
    flat, found = latents.flatten(1).double().cpu(), []
    for column, name in enumerate(names):
        truth = labels[:, column].double().cpu()
        stated = ~truth.isnan()
        known, truth = flat[stated], truth[stated]
        present = int((truth > 0.5).sum())
        if not 0 < present < len(truth):
            raise UsageError(f"'{name}' is present in {present} of the {len(truth)} images that state it; a direction needs images with it "
                             "and images without")
        normal = (_logistic_normal if config.method == "logistic" else _whitened_difference)(known, truth, ridge=config.ridge)
        unit = normal / normal.norm()
        found.append(unit * (known @ unit).std())
    return Directions(names=tuple(names), vectors=torch.stack(found).reshape(len(names), *latents.shape[1:]).to(latents))


def generated_images(model: LatentGenerator, judge: Callable[[Tensor], Tensor], *, seeds: Sequence[int], condition: Condition | None = None,
               device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Latents of random images, [N, *size], and a judge's probabilities for the images, [N, K]: what `directions` needs where images
    have no labels.

    `judge` maps images [B, 1, S, S] in [-1, 1] to probabilities [B, K]. `condition` has a row a seed. `device` is the model's.
    """
    latents, probabilities = [], []
    with torch.inference_mode():
        for first in range(0, len(seeds), BATCH):
            rows = slice(first, first + BATCH)
            asked = None if condition is None else condition[rows]
            drawn = model.draw_latents(Draws(seeds[rows], device=device), asked)
            latents.append(drawn[0])
            probabilities.append(judge(model.decode_latents(drawn, asked).float().clamp(-1, 1)))
    return torch.cat(latents).clone(), torch.cat(probabilities).clone()


def own_directions(model: object, *, num: int) -> Directions:
    """The directions that a generator amplifies most, strongest first, called '1', '2' and so on; their meaning is unknown.

    They are the eigenvectors of A^T A with the largest eigenvalues, where A are the weights of the first layer that reads the latent, or
    of all layers that read a style (Eq. 6, Shen and Zhou 2021). UsageError for a model without latents, or with latents shorter than
    `num`.
    """
    space = editable(model)
    weights = space.latent_weights().double()
    if not 1 <= num <= weights.shape[1]:
        raise UsageError(f"{num} directions of latents of {weights.shape[1]} numbers")
    vectors = torch.linalg.eigh(weights.T @ weights).eigenvectors.flip(1)[:, :num].T  # [num, F], largest first
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector has no sign; the largest number is to be positive
    size = space.latent_shapes[0]
    if len(size) == 2:
        vectors = vectors[:, None].expand(-1, *size)  # the same step for the style of each layer
    return Directions(names=tuple(str(number + 1) for number in range(num)), vectors=vectors.float().contiguous())


def move(latents: Sequence[Tensor], direction: Tensor, amount: float | Tensor) -> tuple[Tensor, ...]:
    """Latents with the first moved along a direction [*size] by an amount for all images, or one each, [B]; noises stay."""
    first, *noises = latents
    if first.shape[1:] != direction.shape:
        raise UsageError(f"a direction of shape {tuple(direction.shape)} does not lie among latents of shape {tuple(first.shape[1:])}; "
                         f"latents "
                         "and directions must come from the same space of the same model")
    steps = torch.as_tensor(amount, dtype=first.dtype, device=first.device)
    if steps.ndim:
        steps = steps.reshape(-1, *[1] * direction.ndim)
    return (first + steps * direction.to(first), *noises)


def moved_images(model: LatentGenerator, latents: Sequence[Tensor], direction: Tensor, amounts: Sequence[float], *,
                condition: Condition | None = None) -> Tensor:
    """Images at several amounts along a direction, [B, amounts, 1, S, S] in [-1, 1]: a row an image of a sheet."""
    check_latents(model, latents, size=len(latents[0]))
    with torch.inference_mode():
        images = [model.decode_latents(move(latents, direction, amount), condition).float().clamp(-1, 1) for amount in amounts]
    return torch.stack(images, dim=1)


def _logistic_normal(latents: Tensor, truth: Tensor, *, ridge: float) -> Tensor:
    """Weights of a logistic regression with a penalty, [N, F], [N] in [0, 1] -> [F]; the offset is free. Newton's method."""
    inputs = torch.cat([latents - latents.mean(0), torch.ones(len(latents), 1, dtype=latents.dtype)], dim=1)
    penalty = torch.full((inputs.shape[1],), max(ridge, RIDGE), dtype=latents.dtype)
    penalty[-1] = 0.0

    def loss(weights: Tensor) -> Tensor:
        total: Tensor = F.binary_cross_entropy_with_logits(inputs @ weights, truth) + (penalty * weights.square()).sum() / 2
        return total

    weights = torch.zeros_like(penalty)
    for _ in range(ITERATIONS):
        said = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (said - truth) / len(truth) + penalty * weights
        curvature = (inputs * (said * (1 - said))[:, None]).T @ inputs / len(truth) + torch.diag(penalty + RIDGE)
        step, length = torch.linalg.solve(curvature, gradient), 1.0
        while length > RIDGE and loss(weights - length * step) > loss(weights):
            length /= 2
        weights = weights - length * step
        if step.abs().max() < 1e-8:
            break
    return weights[:-1]


def _whitened_difference(latents: Tensor, truth: Tensor, *, ridge: float) -> Tensor:
    """Inverse pooled covariance times the difference of the class means, weighted by probabilities, [N, F], [N] -> [F] (Fisher 1936)."""
    means = [(weight @ latents) / weight.sum() for weight in (1 - truth, truth)]
    within = latents - (1 - truth)[:, None] * means[0] - truth[:, None] * means[1]
    covariance = within.T @ within / len(latents)
    lift = max(ridge * covariance.diagonal().mean().item(), math.ulp(1.0))
    whitened: Tensor = torch.linalg.solve(covariance + lift * torch.eye(len(covariance), dtype=covariance.dtype), means[1] - means[0])
    return whitened
