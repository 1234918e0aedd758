"""Exponential moving average of the weights that ship."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Averages a model's weights; the half-life is counted in images and grows with the images seen.

    After n images the half-life is min(`halflife_images`, `rampup` n), so that early, poor weights are forgotten quickly
    (Karras et al. 2022, Appendix F). A half-life of 0 keeps a plain copy. Buffers are copied, not averaged.
    """

    def __init__(self, model: nn.Module, *, halflife_images: int, rampup: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.halflife_images, self.rampup = halflife_images, rampup

    @torch.no_grad()
    def update(self, model: nn.Module, *, images_seen: int, images_in_step: int) -> None:
        """Move the average towards `model` after a step that saw `images_in_step` images, `images_seen` in all."""
        halflife = min(self.halflife_images, self.rampup * images_seen)
        keep = 0.5 ** (images_in_step / halflife) if halflife > 0 else 0.0
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(weight, 1 - keep)
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
