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
    """Precision, recall, density and coverage (see `neighbours.Neighbours`), in one pass over the distances between the sets.

    `real_part` [N] and `synthetic_part` [M] number the parts that are left out one at a time. An image's ball then reaches to its k-th
    neighbour among those that stay. Parts that leave no more than k images are left out of the answer.
    """
    x, y = as_tensors(real, synthetic, centre=True)
    balls_x = _Balls(x, _parts(real_part, len(x)), k=k, others=_parts(synthetic_part, len(y)))
    balls_y = _Balls(y, _parts(synthetic_part, len(y)), k=k, others=_parts(real_part, len(x)))
    for rows, block in distance_blocks(x, y):
        squared = block.numpy()
        i, j = np.nonzero((squared < balls_x.reach[rows, None]) | (squared < balls_y.reach))
        distance, i = squared[i, j], i + rows.start
        balls_x.add(i, j, distance)
        balls_x.add_without_others(i, j, distance)
        balls_y.add(j, i, distance)
    whole = np.array([balls_x.holds_other[-1].mean(), balls_y.holds_other[-1].mean(), balls_x.count[-1] / (k * len(y)),
                      balls_x.occupied[-1].mean()])
    return PRDC(whole, _without_real(balls_x, balls_y, k=k), _without_synthetic(balls_x, balls_y, k=k))


class _Balls:
    """The balls around the images of one set, whole and with each of its parts left out, and what they hold of the other set.

    With G parts, row g < G of an array is without part g, and the last row is of the whole set.
    """

    def __init__(self, images: Tensor, part: NDArray[np.intp], *, k: int, others: NDArray[np.intp]) -> None:
        self.part, self.part_of_other = part, others
        self.radius = _radii(images, part, k=k)
        """squared, [G + 1, N]"""
        self.reach = self.radius.max(axis=0)
        self.holds_other = np.zeros((len(self.radius), len(others)), dtype=np.bool_)
        """[G + 1, M]: whether an image of the other set lies in some ball"""
        self.occupied = np.zeros((len(self.radius), len(part)), dtype=np.bool_)
        """[G + 1, N]: whether a ball holds some image of the other set"""
        self.count = np.zeros(len(self.radius))
        """[G + 1]: pairs of a ball and an image of the other set in it"""
        self.occupied_without = np.zeros((int(others.max()) + 2, len(part)), dtype=np.bool_)
        """[H + 1, N]: the same as the last row of `occupied` without each of the H parts of the other set"""
        self.balls_around = np.zeros(len(others))
        """[M]: balls in which an image of the other set lies"""

    def add(self, own: NDArray[np.intp], other: NDArray[np.intp], distance: Matrix) -> None:
        """Count pairs of an own image and one of the other set, [P] each, by their squared distance."""
        for number, radius in enumerate(self.radius):
            inside = (distance < radius[own]) & (self.part[own] != number)
            self.holds_other[number, other[inside]] = self.occupied[number, own[inside]] = True
            self.count[number] += inside.sum()

    def add_without_others(self, own: NDArray[np.intp], other: NDArray[np.intp], distance: Matrix) -> None:
        """Count the same pairs for when parts of the other set leave: the balls stay as they are."""
        inside = distance < self.radius[-1][own]
        self.balls_around += np.bincount(other[inside], minlength=len(self.balls_around))
        for number, occupied in enumerate(self.occupied_without):
            occupied[own[inside & (self.part_of_other[other] != number)]] = True


def _without_real(real: _Balls, synthetic: _Balls, *, k: int) -> Matrix:
    """[G, 4]: real images leave, so their balls change, and fewer are asked for in recall and coverage."""
    num_synthetic, rows = len(synthetic.part), []
    for number in range(len(real.radius) - 1):
        if (stays := real.part != number).sum() > k:
            rows.append([real.holds_other[number].mean(), synthetic.holds_other[-1][stays].mean(), real.count[number] / (k * num_synthetic),
                         real.occupied[number][stays].mean()])
    return np.array(rows).reshape(-1, 4)


def _without_synthetic(real: _Balls, synthetic: _Balls, *, k: int) -> Matrix:
    """[H, 4]: synthetic images leave, so their balls change, and fewer lie in the real ones."""
    rows = []
    for number in range(len(synthetic.radius) - 1):
        if (stays := synthetic.part != number).sum() > k:
            rows.append([real.holds_other[-1][stays].mean(), synthetic.holds_other[number].mean(),
                         real.balls_around[stays].sum() / (k * stays.sum()), real.occupied_without[number].mean()])
    return np.array(rows).reshape(-1, 4)


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
