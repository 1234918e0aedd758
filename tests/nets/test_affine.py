"""Affine changes of images: a turn, a zoom and a shift do what they say, and nothing changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from synthorax.nets.affine import affine_matrix, resample

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def matrix(*, cosine: float = 1.0, sine: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    return affine_matrix(torch.full((2,), cosine), torch.full((2,), sine), torch.tensor([shift, shift]))


def test_no_change_is_no_change() -> None:
    torch.testing.assert_close(resample(IMAGES, matrix(), padding="zeros"), IMAGES)


def test_a_quarter_turn_is_exact() -> None:
    turned = resample(IMAGES, matrix(cosine=0.0, sine=1.0), padding="zeros")
    torch.testing.assert_close(turned, torch.rot90(IMAGES, 1, dims=(2, 3)))


def test_a_shift_looks_to_the_right_and_what_lies_outside_is_padded() -> None:
    shifted = resample(IMAGES, matrix(shift=(0.25, 0.0)), padding="zeros")  # a grid of 2 over 8 pixels: one pixel
    torch.testing.assert_close(shifted[..., :-1], IMAGES[..., 1:])
    assert not shifted[..., -1].any()
    torch.testing.assert_close(resample(IMAGES, matrix(shift=(0.25, 0.0)), padding="border")[..., -1], IMAGES[..., -1])


def test_a_zoom_shows_more_of_the_image() -> None:
    disc = torch.zeros(2, 1, 32, 32)
    disc[..., 8:24, 8:24] = 1
    assert resample(disc, matrix(cosine=2.0), padding="zeros").mean() < 0.3 * disc.mean()
