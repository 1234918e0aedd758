"""Many images decoded side by side, in order and in bounded memory."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.image_files import read_image
from synthorax.data.pixels import letterbox
from synthorax.errors import InputError
from synthorax.threads import available_cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One image, or why it cannot be used."""

    pixels: NDArray[np.uint16] | None = None
    """[S, S]; 8-bit images are widened by 257, so that white stays white"""
    bits: int = 8
    shape: tuple[int, int] = (0, 0)
    """height and width before resizing"""
    digest: str = ""
    """SHA-256 of `pixels`: equal for copies of an image in whatever file format, once they decode alike"""
    reason: str = ""
    """what is wrong with it, empty where nothing is"""
    remedy: str = ""


def decode_images(paths: Sequence[Path], *, size: int, max_pixels: int) -> Iterator[Decoded]:
    """Decode files to [size, size] in the order of `paths`, on as many threads as this process may use cores.

    An image that cannot be read, or has one grey value, comes back with its `reason`: nothing is raised and none left out.
    Pillow and numpy let other threads work while they decode. At most two images a thread are waiting at any time.
    """
    cores = available_cores()
    # Readers silence warnings of their libraries while they decode; threads that do so side by side can leave the filters
    # changed, so they are put back here once all have ended.
    with warnings.catch_warnings(), ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(_decode, path, size, max_pixels))
                if len(waiting) > 2 * cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(path: Path, size: int, max_pixels: int) -> Decoded:
    try:
        image = read_image(path, max_pixels=max_pixels)
    except InputError as error:
        reason = str(error).removeprefix(f"{error.file}: ").removesuffix(f"; {error.remedy}" if error.remedy else "")
        return Decoded(reason=reason, remedy=error.remedy)
    if image.min() == image.max():
        return Decoded(reason="has one grey value only", remedy="export the image again")
    bits = 8 if image.dtype == np.uint8 else 16
    boxed = letterbox(image, size)
    pixels = boxed.astype(np.uint16) * (257 if bits == 8 else 1)
    return Decoded(pixels=pixels, bits=bits, shape=(image.shape[0], image.shape[1]), digest=hashlib.sha256(pixels.data).hexdigest())
