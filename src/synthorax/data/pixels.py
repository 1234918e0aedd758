"""Pictures in and out: every file becomes one grey channel with bone bright, and only this file changes ranges."""

from __future__ import annotations

import io
import warnings
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

_PILLOW_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_REFUSED_MAGIC = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP", b"\x1f\x8b": "gzip",
                  b"PK\x03\x04": "zip", b"\0\0\0\x0cjP": "JPEG 2000", b"%PDF": "PDF"}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a PNG, JPEG or DICOM image as [H, W], one grey channel, full range of uint8 or uint16, bone bright.

    The kind of file is told from its first bytes, never from its name. Colour becomes luminance (ITU-R BT.601), transparency is
    laid over black. The size is checked before decoding. An image with an EXIF orientation other than upright is refused, because
    turning it and leaving it are both guesses about where the heart is. Raises `InputError` naming the file and the remedy.

    >>> write_png("/tmp/image.png", np.full((2, 3), 7, np.uint8)); read_image("/tmp/image.png").tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    path = Path(path)
    head = _first_bytes(path)
    if head[128:132] != b"DICM":
        for magic, kind in _PILLOW_MAGIC.items():
            if head.startswith(magic):
                return _read_with_pillow(path, kind=kind, max_pixels=max_pixels)
        for magic, kind in _REFUSED_MAGIC.items():
            if head.startswith(magic):
                raise InputError(f"{kind} files are not read", file=path, remedy="save it as grey PNG, 8 or 16 bit, or give the DICOM file")
    from synthorax.data.dicom_read import is_dicom, read_dicom  # keeps pydicom out of runs that have no DICOM

    if not is_dicom(path):
        raise InputError("is not a PNG, JPEG or DICOM file", file=path, remedy="remove it from the folder or convert it to PNG")
    return read_dicom(path, max_pixels=max_pixels)[0]


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError("is a folder, not an image", file=path, remedy="name the file inside it")
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except FileNotFoundError:
        raise InputError("does not exist", file=path, remedy="correct the path in the table") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be opened ({type(error).__name__})", file=path, remedy="check the path and its permissions") from error
    if not head:
        raise InputError("is empty", file=path, remedy="copy the file again from its source")
    return head


def _read_with_pillow(path: Path, *, kind: str, max_pixels: int) -> Pixels:
    try:
        # `catch_warnings` because Pillow only warns of pictures that unpack to gigabytes; our own limit is the one that counts.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=(kind,)) as image:
                _check_before_decoding(image, path, max_pixels)
                image.load()
                _check_upright(image, path)
                return _grey(image, path)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "too many", max_pixels) from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others on damaged files
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise InputError(f"cannot be decoded as {kind} ({reason})", file=path, remedy="copy the file again from its source") from error


def _check_before_decoding(image: Image.Image, path: Path, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _too_large(path, f"{image.width} x {image.height}", max_pixels)
    if getattr(image, "n_frames", 1) > 1:
        raise InputError("has several frames", file=path, remedy="save the one image that is meant as a still image")


def _too_large(path: Path, size: str, max_pixels: int) -> InputError:
    return InputError(f"has {size} pixels; at most {max_pixels:,} are read", file=path, remedy="save it smaller")


def _check_upright(image: Image.Image, path: Path) -> None:
    orientation = image.getexif().get(0x0112, 1)
    if orientation not in (0, 1):
        raise InputError(f"carries EXIF orientation {orientation}, so programs disagree on which side is left", file=path,
                         remedy="check it against the original and save it upright without the tag")


def _grey(image: Image.Image, path: Path) -> Pixels:
    if image.mode in ("CMYK", "YCCK", "LAB", "HSV", "F"):
        raise InputError(f"has colour mode {image.mode}", file=path, remedy="save it as grey PNG")
    if image.mode in ("I;16", "I;16B", "I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise InputError("has values outside 0 to 65535", file=path, remedy="save it as 16-bit grey PNG")
        return values.astype(np.uint16)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.array(image.convert("L"), dtype=np.uint8)
    colour = image.convert("RGBA")
    over_black = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    return np.array(over_black.convert("L"), dtype=np.uint8)


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
