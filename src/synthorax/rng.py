"""Random numbers that depend on a seed and a purpose alone, never on batch size, worker count or order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, derived from `seed` by hashing, so that streams never overlap by accident.

    >>> derive(0, "noise") == derive(0, "noise") != derive(0, "split")
    True
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Draws:
    """One random stream per image: row i of every draw depends on `seeds[i]` and the order of calls, nothing else.

    Numbers are drawn on the CPU in float32 and moved, so that a seed gives the same image on every device.
    """

    def __init__(self, seeds: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, [B, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), [B, *shape]."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators]).to(self.device)

    def gamma(self, shape: Tensor) -> Tensor:
        """Gamma numbers of scale 1, [B, ...] as `shape` above 0; their gradients follow the shape (Sec. 3, Figurnov et al. 2018)."""
        rows = zip(shape.cpu(), self._generators, strict=True)
        drawn = torch.stack([torch._standard_gamma(row, generator=g) for row, g in rows])
        return drawn.to(self.device)
