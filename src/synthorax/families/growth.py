"""The schedule of progressive growing, counted in images and saved with the players."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from synthorax.nets.progressive import Growing


def growing(module: nn.Module) -> list[Growing]:
    """The networks within that have a level."""
    return [part for part in module.modules() if isinstance(part, Growing)]


def level_after(images: int, *, pace: int, doublings: int) -> float:
    """Doublings in use after so many images: `pace` images at each level, then `pace` images in which the next one fades in.

    >>> [level_after(images, pace=10, doublings=2) for images in (0, 10, 15, 20, 35, 99)]
    [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    """
    whole, rest = divmod(images, 2 * pace)
    return min(float(doublings), whole + max(0, rest - pace) / pace)


class Growth(nn.Module):
    """Counts the images of this process, and sets the level of networks by them."""

    images: Tensor

    def __init__(self, pace: int) -> None:
        super().__init__()
        self.pace = pace
        self.register_buffer("images", torch.tensor(0))

    def grow(self, networks: Iterable[Growing], *, images: int) -> None:
        """Set the level of the networks before they learn from so many more images."""
        for network in networks:
            network.level.fill_(level_after(int(self.images), pace=self.pace, doublings=network.doublings))
        self.images += images

    def go_on_from(self, level: float) -> None:
        """Set the count to that of networks that have just reached this level."""
        whole, fade = divmod(level, 1)
        self.images.fill_(round(self.pace * (2 * whole + (1 + fade if fade else 0))))
