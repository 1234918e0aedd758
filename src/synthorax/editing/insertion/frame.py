"""A host of any size and bit depth as a model sees it, and a model's change brought back to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.data.pixels import content_box
from synthorax.editing.insertion.insertion import Pixels

Plane = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """How a host [H, W] lies in a model's square, as `data.pixels.letterbox` puts it, and which grey level is 1 to the model."""

    shape: tuple[int, int]
    size: int
    """side of the model's square in pixels"""
    white: float
    """grey level of the host that is 1; 0 is -1"""

    @staticmethod
    def of(host: Pixels, *, size: int) -> Frame:
        """The frame of a host. Images of 10 to 14 bits in 16 are scaled by the number of bits that they use."""
        white = float(np.iinfo(host.dtype).max)
        if host.dtype == np.uint16 and (most := int(host.max()).bit_length()) < 16:
            white = float(2 ** max(most, 8) - 1)
        return Frame(shape=(host.shape[0], host.shape[1]), size=size, white=white)

    def shrunk(self, values: NDArray[Any], *, padding: float = 0.0) -> Plane:
        """Values [H, W] at the model's size, [size, size]: Lanczos with antialiasing, in float32."""
        top, left, height, width = content_box(self.shape, self.size)
        boxed = np.full((self.size, self.size), padding, dtype=np.float32)
        content = Image.fromarray(np.asarray(values, dtype=np.float32))
        if content.size != (width, height):
            content = content.resize((width, height), Image.Resampling.LANCZOS)
        boxed[top:top + height, left:left + width] = np.asarray(content)
        return boxed

    def model_image(self, grey: NDArray[Any]) -> Plane:
        """Grey levels [H, W] as the model sees them, [size, size] in [-1, 1]; padding is black."""
        return np.asarray(np.clip(self.shrunk(grey) * np.float32(2 / self.white) - 1, -1, 1), dtype=np.float32)

    def host_change(self, change: Plane) -> NDArray[np.float64]:
        """A change [size, size] of an image in [-1, 1] as grey levels of the host, [H, W]: cubic interpolation."""
        top, left, height, width = content_box(self.shape, self.size)
        content = Image.fromarray(np.ascontiguousarray(change[top:top + height, left:left + width], dtype=np.float32))
        if (height, width) != self.shape:
            content = content.resize((self.shape[1], self.shape[0]), Image.Resampling.BICUBIC)
        return np.asarray(content, dtype=np.float64) * self.white / 2
