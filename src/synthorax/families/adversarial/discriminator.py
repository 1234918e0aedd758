"""The discriminator of adversarial families: a network of choice and a head that scores its features, also against a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.families.adversarial.label_conditioning import DiscriminatorHead
from synthorax.nets.convolutional_gan import ConvolutionalDiscriminator, DiscriminatorNorm, ResidualDiscriminator
from synthorax.nets.progressive import GrowingDiscriminator
from synthorax.nets.stylegan2 import ScaledLinear, StyleDiscriminator

Trunk = Literal["plain", "residual", "progressive", "stylegan2"]
TRUNKS: dict[str, Callable[..., ConvolutionalDiscriminator | ResidualDiscriminator | GrowingDiscriminator | StyleDiscriminator]] = {
    "plain": ConvolutionalDiscriminator, "residual": ResidualDiscriminator, "progressive": GrowingDiscriminator,
    "stylegan2": StyleDiscriminator}
SCALED = ("progressive", "stylegan2")
"""discriminators whose layers are scaled as they are used, and not normalised"""


class Discriminator(nn.Module):
    """Features of images and their head: scores, and guesses of statements."""

    def __init__(self, trunk: Trunk, *, channels: int, norm: DiscriminatorNorm, image_size: int, inputs: int, statements: int,
                 conditioning: str) -> None:
        super().__init__()
        if trunk in SCALED and norm != "none":
            raise UsageError(f"objective.discriminator_norm={norm}: a {trunk} discriminator has none")
        size: dict[str, Any] = {"image_size": image_size, "inputs": inputs, "channels": channels}
        if trunk not in SCALED:
            size["norm"] = norm
        self.trunk = TRUNKS[trunk](**size)
        self.head = DiscriminatorHead(features=self.trunk.features, statements=statements, conditioning=conditioning,
                                      spectral=norm == "spectral", linear=ScaledLinear if trunk in SCALED else nn.Linear)

    def forward(self, images: Tensor, stated: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [B, 1] of images [B, C, S, S] against statements [B, K + A], and logits of the statements where they are guessed."""
        features = self.trunk(images).float()
        with torch.autocast(images.device.type, enabled=False):  # a score of bfloat16 has three digits
            return self.head(features, stated), self.head.label_head(features) if self.head.label_head is not None else None
