"""Grey images in memory: their ranges, their fit into a square, and PNG files of them; only this file changes ranges."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image, PngImagePlugin

from synthorax.errors import InputError
from synthorax.files import write_atomic

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
AnyPixels = TypeVar("AnyPixels", bound=NDArray[Any])

MAX_PIXELS = 40_000_000
"""larger pictures are refused before they are decoded; the largest flat detectors in use have about 20 million pixels"""

COMPRESSION = 4
"""of zlib: as small as its usual 6 for radiographs, in half of the time for 8 bits and a quarter for 16"""


def content_box(shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Where `letterbox` puts an image of `shape` (height, width): top, left, height, width in pixels of the [size, size] result.

    >>> content_box((200, 100), 64)
    (0, 16, 64, 32)
    """
    scale = size / max(shape)
    height, width = (max(1, min(size, round(side * scale))) for side in shape)
    return (size - height) // 2, (size - width) // 2, height, width


def letterbox(image: AnyPixels, size: int, *, nearest: bool = False) -> AnyPixels:
    """Fit [H, W] into [size, size]: aspect kept, centred on black, never cropped, turned or flipped; same dtype.

    Lanczos with antialiasing in float32, so that 16 bits stay 16 bits. `nearest=True` is for masks: it makes no new values,
    and a mask of the image's shape stays on the image.

    >>> letterbox(np.full((4, 2), 9, np.uint8), 4)[0].tolist()
    [0, 9, 9, 0]
    """
    if image.ndim != 2 or 0 in image.shape:
        raise InputError(f"an image of shape {image.shape} is not [height, width]")
    top, left, height, width = content_box((image.shape[0], image.shape[1]), size)
    if nearest or image.shape == (height, width):
        rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(np.intp)
        content = image[np.ix_(rows, columns)]
    else:
        smooth = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
        content = np.clip(np.rint(np.asarray(smooth)), 0, np.iinfo(image.dtype).max).astype(image.dtype)
    boxed = np.zeros((size, size), dtype=image.dtype)
    boxed[top:top + height, left:left + width] = content
    return boxed  # type: ignore[return-value]


def write_png(path: str | Path, image: Pixels, *, provenance: Mapping[str, str] | None = None) -> None:
    """Write [H, W] uint8 or uint16 as grey PNG, whole or not at all; `provenance` becomes PNG text, one chunk a key.

    >>> write_png("/tmp/image.png", np.zeros((2, 2), np.uint16), provenance={"seed": "7"})
    """
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"an image of shape {image.shape} and type {image.dtype} cannot be written as grey PNG", file=path)
    text = PngImagePlugin.PngInfo()
    for key, value in (provenance or {}).items():
        text.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=text, compress_level=COMPRESSION)
    write_atomic(Path(path), buffer.getvalue())


def with_bits_of(images: Pixels, dtype: DTypeLike) -> Pixels:
    """Images of full range in another unsigned integer type: 8 bits times 257 are 16 bits, without loss; 16 bits are rounded to 8.

    >>> with_bits_of(np.array([0, 255], np.uint8), np.uint16).tolist(), with_bits_of(np.array([300], np.uint16), np.uint8).tolist()
    ([0, 65535], [1])
    """
    if images.dtype == dtype:
        return images
    return np.rint(images / 257.0).astype(np.uint8) if images.dtype == np.uint16 else images.astype(np.uint16) * np.uint16(257)


def to_unit(images: Pixels) -> NDArray[np.float32]:
    """Integers of full range -> float32 in [-1, 1], any shape.

    >>> to_unit(np.array([0, 255], np.uint8)).tolist()
    [-1.0, 1.0]
    """
    half = np.float32(np.iinfo(images.dtype).max / 2)
    return np.asarray(images.astype(np.float32) / half - np.float32(1))


def from_unit(images: NDArray[np.floating[Any]], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
    """Floats in [-1, 1] -> full range of an unsigned integer `dtype`, rounded to nearest, clipped; undoes `to_unit`.

    >>> from_unit(np.array([-1.0, 0.0, 2.0]), np.uint8).tolist()
    [0, 128, 255]
    """
    if not np.isfinite(images).all():
        raise InputError("the image has values that are not finite numbers", remedy="the model is broken: use earlier weights")
    top = np.iinfo(np.dtype(dtype)).max
    return np.asarray(np.rint((np.clip(images, -1, 1).astype(np.float64) + 1) * (top / 2)).astype(dtype))
