"""How alike two images are, pixel for pixel: PSNR and SSIM, in float64 on batches; for multi-scale SSIM see `ms_ssim`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.errors import InputError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""images [N, H, W], full range of the type"""

WINDOW_PX = 11
WINDOW_SIGMA_PX = 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # beta_1 to beta_5, Wang, Simoncelli and Bovik 2003


def to_intensity(images: Pixels) -> Tensor:
    """Integer images [N, H, W] as float64 [N, 1, H, W] in [0, 1]: the range that these measures expect.

    SSIM compares mean brightness by ratio, so a range around zero, such as [-1, 1], would give another number.
    """
    return torch.from_numpy(images.astype(np.float64) / np.iinfo(images.dtype).max)[:, None]


def psnr(first: Tensor, second: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each pair, [B], in dB; higher is more alike, infinite for equal images."""
    first, second = check_pair(first, second)
    return 10 * torch.log10(data_range**2 / (first - second).square().mean(dim=(1, 2, 3)))


def ssim(first: Tensor, second: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each pair, [B] in [-1, 1]; 1 for equal images (Wang et al. 2004, Eq. 13).

    Images are [B, 1, H, W] in [0, data_range], at least 11 x 11; Gaussian window of 11 px, sigma 1.5 px, no padding.

    >>> ssim(torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16)).item()
    1.0
    """
    first, second = check_pair(first, second)
    scale_weights(min(first.shape[-2:]))  # refuses images smaller than the window
    return luminance_and_structure(first, second, data_range)[0]


def scale_weights(size_px: int) -> tuple[float, ...]:
    """Weights of the scales that an image of this size has room for; they sum to that of the five.

    >>> len(scale_weights(64)), len(scale_weights(256))
    (3, 5)
    """
    num = sum(size_px >> scale >= WINDOW_PX for scale in range(len(SCALE_WEIGHTS)))
    if num == 0:
        raise InputError(f"images of {size_px} px are smaller than the window of {WINDOW_PX} px")
    full, kept = sum(SCALE_WEIGHTS), SCALE_WEIGHTS[:num]
    return tuple(weight * full / sum(kept) for weight in kept)


def luminance_and_structure(first: Tensor, second: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part without brightness, each averaged over the image: [B], [B]."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    maps = torch.cat([first, second, first * first, second * second, first * second], dim=1)  # [B, 5, H, W]
    mean_1, mean_2, square_1, square_2, product = _window_means(maps).unbind(dim=1)
    variances = square_1 - mean_1**2 + square_2 - mean_2**2
    structure = (2 * (product - mean_1 * mean_2) + c2) / (variances + c2)
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return (luminance * structure).mean(dim=(1, 2)), structure.mean(dim=(1, 2))


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian means of [B, C, H, W] down the columns and along the rows: [B, C, H - 10, W - 10].

    As two products with banded matrices: several times faster than a convolution in float64.
    """
    height, width = maps.shape[-2:]
    return _window_matrix(height, maps.device) @ maps @ _window_matrix(width, maps.device).T


def _window_matrix(size_px: int, device: torch.device) -> Tensor:
    """Row i holds the Gaussian window over pixels i to i + 10: [size - 10, size]."""
    offsets = torch.arange(WINDOW_PX, dtype=torch.float64, device=device) - WINDOW_PX // 2
    window = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA_PX**2))
    starts = torch.arange(size_px - WINDOW_PX + 1, device=device)[:, None]
    matrix = torch.zeros(len(starts), size_px, dtype=torch.float64, device=device)
    return matrix.scatter_(1, starts + torch.arange(WINDOW_PX, device=device),
                           (window / window.sum()).expand(len(starts), -1))


def check_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches in float64. Raises InputError unless they are [B, 1, H, W] of one shape."""
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 1:
        raise InputError(f"images must be two batches [B, 1, H, W] of one shape, got {tuple(first.shape)} and "
                         f"{tuple(second.shape)}")
    return first.to(torch.float64), second.to(torch.float64)
