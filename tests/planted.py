"""A generator in which it is known what a code does: two numbers of it are findings, and the rest is how the image looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthorax.capabilities import LatentGenerator
from synthorax.protocols import Condition, ModelSpec

SIDE, NUMBERS = 64, 12
NAMES = ("Effusion", "Mass")
BLOCKS = {"Effusion": (slice(32, 48), slice(14, 30)), "Mass": (slice(6, 20), slice(44, 60))}
"""rows and columns that a finding brightens"""


class Planted(nn.Module, LatentGenerator):
    """Images [B, 1, 64, 64] that are linear in a code [B, 12], about [-1, 1]; the axes of the two findings are 60 degrees apart."""

    axes: Tensor
    patterns: Tensor

    def __init__(self, *, leak: float = 0.0) -> None:
        """With `leak` every finding also tilts the whole image."""
        super().__init__()
        self.spec = ModelSpec(family="planted", image_size=SIDE, findings=NAMES, conditions=())
        rng = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(NUMBERS, NUMBERS, generator=rng)).Q.T
        self.register_buffer("axes", torch.stack([basis[0], 0.5 * basis[0] + math.sqrt(0.75) * basis[1]]))
        line = torch.linspace(-1, 1, SIDE)
        looks = [torch.outer(torch.cos(math.pi * i * line / 2), torch.cos(math.pi * j * line / 2)) for i in range(3) for j in range(4)]
        findings = []
        for rows, columns in BLOCKS.values():
            bright = torch.full((SIDE, SIDE), 0.0)
            bright[rows, columns] = 0.3
            findings.append(bright + leak * line[:, None])
        # Two rows of the code speak through the findings' axes, the others through what every image has.
        self.register_buffer("patterns", torch.stack([*findings, *(0.05 * look for look in looks[: NUMBERS - 2])]))
        self.register_buffer("reading", torch.cat([self.axes, basis[2:]]))
        self.eval()

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((NUMBERS,),)

    def latent_weights(self) -> Tensor:
        return self.reading  # type: ignore[return-value]

    def decode_latents(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        amounts = codes[0] @ self.reading.T  # type: ignore[operator]
        return torch.einsum("bk,khw->bhw", amounts, self.patterns)[:, None]


def score(images: Tensor, name: str) -> Tensor:
    """How bright the block of a finding is, [B, 1, 64, 64] -> [B]."""
    rows, columns = BLOCKS[name]
    return images[:, 0, rows, columns].mean((1, 2))


def judged(images: Tensor) -> Tensor:
    """Whether each finding is there, told from the image by a judge who knows how the block looks without, [B, 2] of 0 and 1."""
    edges = []
    for name in NAMES:
        rows, columns = BLOCKS[name]
        inner = images[:, 0, rows, columns]
        # the step across the block's border is the finding's alone: what else an image shows is smooth
        edges.append((inner[:, 0] - images[:, 0, rows.start - 1, columns]).mean(1))
    return (torch.stack(edges, dim=1) > 0).float()
