"""What an insertion returns: the image with the lesion, where the lesion is, and all that is needed to repeat it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
PixelBox = tuple[int, int, int, int]
"""left, top, width and height in pixels of the host"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Insertion:
    """An image with an inserted lesion. Pixels outside the rim of the mask, whose width the record states, are those of the host."""

    pixels: Pixels
    """[H, W], shape and type of the host"""
    mask: NDArray[np.uint8]
    """[H, W] in {0, 255}: where the lesion adds more than the threshold that the record states"""
    box: PixelBox
    """left, top, width and height of the mask in pixels"""
    record: Mapping[str, Any]
    """JSON-ready: method, seed, place, every option, digest of the host and of what was inserted; the same record makes the same bits"""


def box_of(mask: NDArray[np.uint8]) -> PixelBox:
    """The smallest box that holds a mask [H, W]. InputError for an empty one.

    >>> box_of(np.pad(np.full((2, 3), 255, np.uint8), 1))
    (1, 1, 3, 2)
    """
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not len(rows):
        raise InputError("the mask of the lesion is empty", remedy="ask for a larger or denser lesion")
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1


def digest_of(array: NDArray[Any]) -> str:
    """16 hexadecimal digits of an array: its type, its shape and its bytes."""
    text = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.blake2b(text + np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()


def check_host(host: NDArray[Any]) -> None:
    """Raise InputError for what no lesion can be inserted into: colour, other types than 8 and 16 bit, and images of one grey level."""
    if host.ndim != 2 or 0 in host.shape:
        raise InputError(f"a host of shape {host.shape} is not a grey image [height, width]", remedy="convert it to one channel")
    if np.issubdtype(host.dtype, np.floating) and not np.isfinite(host).all():
        raise InputError("the host has pixels that are not finite numbers")
    if host.dtype not in (np.uint8, np.uint16):
        raise InputError(f"a host of type {host.dtype} is neither 8 nor 16 bit", remedy="give its pixels as uint8 or uint16")
    if host.min() == host.max():
        raise InputError("the host has a single grey level, so it is no radiograph")


def check_mask(mask: NDArray[Any], host: NDArray[Any], *, name: str) -> NDArray[np.bool_]:
    """A mask of the host's shape as bool [H, W], whatever its type; InputError where it does not fit or is empty."""
    if mask.shape != host.shape:
        raise InputError(f"{name} of shape {mask.shape} does not fit a host of {host.shape}", remedy="bring it to the host's size")
    if np.issubdtype(mask.dtype, np.floating) and not np.isfinite(mask).all():
        raise InputError(f"{name} has values that are not finite numbers")
    inside: NDArray[np.bool_] = mask > (0 if mask.dtype == np.bool_ else np.max(mask) / 2)
    if not inside.any():
        raise InputError(f"{name} is empty")
    return inside
