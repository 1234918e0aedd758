"""Balls around images in feature space: who lies in whose, for whole sets and with a part of either set left out, in little memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthorax.evaluation.metrics.kernels import as_tensors, distance_blocks
from synthorax.evaluation.statistics.intervals import Matrix

SORTED_WHOLE = 1024
"""images up to which an image's neighbours are all kept in order; of larger sets the nearest 8 k"""


@dataclass(frozen=True, slots=True)
class PRDC:
    """Precision, recall, density and coverage, [4]: of the whole sets, and with each part of one set left out, [G, 4] each."""

    whole: Matrix
    without_real: Matrix
    without_synthetic: Matrix


def prdc(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, k: int, real_part: NDArray[np.intp] | None = None,
         synthetic_part: NDArray[np.intp] | None = None) -> PRDC:
    """The four of `diversity.neighbours`, in one pass over the distances between the sets.

    `real_part` [N] and `synthetic_part` [M] number the parts that are left out one at a time. An image's ball then reaches to its k-th
    neighbour among those that stay. Parts that leave no more than k images are left out of the answer.
    """
    x, y = as_tensors(real, synthetic, centre=True)
    parts_x, parts_y = _parts(real_part, len(x)), _parts(synthetic_part, len(y))
    radius_x, radius_y = _radii(x, parts_x, k=k), _radii(y, parts_y, k=k)  # [G + 1, N]: the last row leaves nobody out
    reach_x, reach_y = radius_x.max(axis=0), radius_y.max(axis=0)
    in_real_ball = np.zeros((len(radius_x), len(y)), dtype=np.bool_)
    has_synthetic, has_without = np.zeros((len(radius_x), len(x)), dtype=np.bool_), np.zeros((len(radius_y), len(x)), dtype=np.bool_)
    in_synthetic_ball = np.zeros((len(radius_y), len(x)), dtype=np.bool_)
    balls_around, balls = np.zeros(len(y)), np.zeros(len(radius_x))
    for rows, block in distance_blocks(x, y):
        squared = block.numpy()
        i, j = np.nonzero((squared < reach_x[rows, None]) | (squared < reach_y))
        distance, i = squared[i, j], i + rows.start
        for number, radius in enumerate(radius_x):
            inside = (distance < radius[i]) & (parts_x[i] != number)
            in_real_ball[number, j[inside]] = has_synthetic[number, i[inside]] = True
            balls[number] += inside.sum()
        inside = distance < radius_x[-1][i]
        balls_around += np.bincount(j[inside], minlength=len(y))
        for number, radius in enumerate(radius_y):
            stays = parts_y[j] != number
            has_without[number, i[inside & stays]] = True
            in_synthetic_ball[number, i[stays & (distance < radius[j])]] = True
    whole = np.array([in_real_ball[-1].mean(), in_synthetic_ball[-1].mean(), balls[-1] / (k * len(y)), has_synthetic[-1].mean()])
    without_real, without_synthetic = [], []
    for number in range(len(radius_x) - 1):
        if (stays := parts_x != number).sum() > k:
            without_real.append([in_real_ball[number].mean(), in_synthetic_ball[-1][stays].mean(), balls[number] / (k * len(y)),
                                 has_synthetic[number][stays].mean()])
    for number in range(len(radius_y) - 1):
        if (stays := parts_y != number).sum() > k:
            without_synthetic.append([in_real_ball[-1][stays].mean(), in_synthetic_ball[number].mean(),
                                      balls_around[stays].sum() / (k * stays.sum()), has_without[number].mean()])
    return PRDC(whole, np.array(without_real).reshape(-1, 4), np.array(without_synthetic).reshape(-1, 4))


def _parts(part: NDArray[np.intp] | None, num: int) -> NDArray[np.intp]:
    """The part of each image; without parts nobody is ever left out."""
    return np.full(num, -1, dtype=np.intp) if part is None else part


def _radii(images: Tensor, part: NDArray[np.intp], *, k: int) -> Matrix:
    """Squared distance to the k-th neighbour in the own set, [G + 1, N]: with each part left out, and last with all.

    The list of neighbours starts with the image itself, hence rank k and not k - 1.
    """
    num_groups = int(part.max()) + 1
    kept = len(images) if len(images) <= SORTED_WHOLE else min(len(images), 1 + 8 * k)
    radii = np.empty((num_groups + 1, len(images)))
    for rows, block in distance_blocks(images, images):
        near = block.topk(kept, dim=1, largest=False, sorted=True)
        squared, owner = near.values.numpy(), part[near.indices.numpy()]
        for number in range(num_groups + 1):
            rank = (owner != number).cumsum(axis=1) == k + 1
            last = np.where(rank.any(axis=1), rank.argmax(axis=1), kept - 1)
            radii[number, rows] = np.take_along_axis(squared, last[:, None], axis=1)[:, 0]
    return radii
