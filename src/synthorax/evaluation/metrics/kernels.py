"""Kernels and distances between two sets of features, a block of rows at a time: memory grows with the images, not with their square."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.evaluation.statistics.intervals import Matrix

BLOCK_NUMBERS = 2**23
"""numbers in one block of products"""
EXACT_IMAGES = 4096
"""images in the larger set up to which products are float64; above, float32, whose sums are still taken in float64"""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes products x.y [b, c], |x|^2 [b, 1] and |y|^2 [1, c], gives the kernel [b, c]."""


def polynomial(num_features: int) -> Kernel:
    """The kernel of KID, (x.y / F + 1)^3 (Binkowski et al. 2018, Eq. 4)."""

    def kernel(products: Tensor, _x: Tensor, _y: Tensor) -> Tensor:
        base = products / num_features + 1
        return base * base * base

    return kernel


def gaussian(bandwidth: float) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2)), in which sets differ unless they are one distribution (Gretton et al. 2012, Theorem 5)."""
    return lambda products, x, y: torch.exp((products - (x + y) / 2).clamp_max(0) / bandwidth**2)


def negative_distance(products: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """-|x - y|: the maximum mean discrepancy with it is the energy distance (Szekely and Rizzo 2013; Sejdinovic et al. 2013)."""
    return -(x + y - 2 * products).clamp_min(0).sqrt()


def as_tensors(first: NDArray[np.floating], second: NDArray[np.floating], *, centre: bool = False) -> tuple[Tensor, Tensor]:
    """Both sets [N, F], [M, F] in the precision of their products; with `centre`, less the mean of the first, which distances forget."""
    kind = np.float64 if max(len(first), len(second)) <= EXACT_IMAGES else np.float32
    shift = first.mean(axis=0, dtype=np.float64) if centre else np.zeros(first.shape[1])
    x = torch.from_numpy((first - shift).astype(kind, copy=False))
    return x, x if second is first else torch.from_numpy((second - shift).astype(kind, copy=False))


def kernel_sums(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[Matrix, Matrix]:
    """Sums of the kernel along the rows, [N], and down the columns, [M]; of one set with itself (`x is y`) each pair is computed once."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    sizes_x, sizes_y = x.square().sum(dim=1)[:, None], y.square().sum(dim=1)[None]
    step = max(1, min(len(x), BLOCK_NUMBERS // max(1, len(y))))
    for start in range(0, len(x), step):
        here = slice(start, start + step)
        there = slice(start if x is y else 0, len(y))
        values = kernel(x[here] @ y[there].T, sizes_x[here], sizes_y[:, there])
        along = values.sum(dim=1, dtype=torch.float64).numpy()
        down = values.sum(dim=0, dtype=torch.float64).numpy()
        rows[here] += along
        if x is y:
            rows[start + step:] += down[len(along):]  # the block below the diagonal is the mirror of this one
        else:
            columns += down
    return rows, rows if x is y else columns


def mmd_and_influences(real: NDArray[np.floating], synthetic: NDArray[np.floating], kernel: Kernel, *, centre: bool = True,
                       ) -> tuple[float, Matrix, Matrix]:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3) and each image's influence on it, [N] and [M].

    An image is never paired with itself. `centre` is for kernels of the distance alone, where it keeps rounding small.
    """
    x, y = as_tensors(real, synthetic, centre=centre)
    within = []
    for images in (x, y):
        sizes = images.square().sum(dim=1)
        itself = kernel(sizes, sizes, sizes).double().numpy()
        within.append((kernel_sums(images, images, kernel)[0] - itself) / (len(images) - 1))
    along, down = kernel_sums(x, y, kernel)
    along, down = along / len(y), down / len(x)
    value = float(within[0].mean() + within[1].mean() - 2 * along.mean())
    return value, 2 * (within[0] - along), 2 * (within[1] - down)


def gaussian_matrix(features: Matrix, *, bandwidth: float) -> Matrix:
    """The kernel of `gaussian` between all of some features [N, F], [N, N]: for sets that are drawn from them again and again."""
    squared = (features**2).sum(axis=1)
    apart = (squared[:, None] + squared[None] - 2 * features @ features.T).clip(0)
    return np.asarray(np.exp(-apart / (2 * bandwidth**2)))


def mmd_from_matrix(kernel: Matrix, first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """`mmd_and_influences` of two sets of rows of a kernel matrix whose diagonal is 1, without influences.

    >>> mmd_from_matrix(np.eye(4), np.array([0, 1]), np.array([2, 3]))
    0.0
    """
    n, m = len(first), len(second)
    within = [(kernel[np.ix_(rows, rows)].sum() - len(rows)) / (len(rows) * (len(rows) - 1)) for rows in (first, second)]
    return float(sum(within) - 2 * kernel[np.ix_(first, second)].sum() / (n * m))


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances [b, M] of a block of rows of `x` [N, F] to all of `y` [M, F], with the slice of these rows.

    The difference of large numbers leaves rounding between equal images; that is set to zero, so that copies have balls of radius
    zero and a collapsed set scores as one.
    """
    sizes_x, sizes_y = x.square().sum(dim=1)[:, None], y.square().sum(dim=1)[None]
    rounding = 1e-12 if x.dtype == torch.float64 else 2e-6
    step = max(1, BLOCK_NUMBERS // max(1, len(y)))
    for start in range(0, len(x), step):
        here = slice(start, min(start + step, len(x)))
        sizes = sizes_x[here] + sizes_y
        squared = torch.addmm(sizes, x[here], y.T, alpha=-2)
        yield here, squared.masked_fill_(squared < sizes * rounding, 0.0)


def median_distance(images: NDArray[np.floating], *, most: int = 1000) -> float:
    """Median distance between two images of a set, over its first images after a fixed shuffle; 1 where all are one point."""
    chosen = images[np.random.default_rng(0).permutation(len(images))[:most]]
    x, _ = as_tensors(chosen, chosen, centre=True)
    squared = torch.cat([block for _, block in distance_blocks(x, x)]).double()
    pairs = squared[tuple(torch.triu_indices(len(x), len(x), offset=1))]
    middle = float(pairs.median().sqrt()) if len(pairs) else 0.0
    return middle if middle > 0 else 1.0
