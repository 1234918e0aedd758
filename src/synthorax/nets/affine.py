"""Affine changes of a batch of images, for augmentation: each image turned, zoomed and shifted by amounts of its own."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_matrix(cosine: Tensor, sine: Tensor, shift: Tensor) -> Tensor:
    """Matrices [B, 2, 3] that lead from a place in each new image to the place in the old one from which its grey value is taken.

    `cosine` and `sine` [B] are those of the angle times the zoom by which the new image shows more of the old one; `shift` [B, 2] is in the
    units of the grid, on which an image reaches from -1 to 1 in x and in y.

    >>> affine_matrix(torch.ones(1), torch.zeros(1), torch.tensor([[0.5, 0.0]])).tolist()
    [[[1.0, -0.0, 0.5], [0.0, 1.0, 0.0]]]
    """
    return torch.stack([torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)], dim=1)


def resample(images: Tensor, matrix: Tensor, *, padding: Literal["zeros", "border", "reflection"]) -> Tensor:
    """Images or masks [B, C, H, W] as the matrices [B, 2, 3] show them, bilinear; `padding` is what lies outside of them."""
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
