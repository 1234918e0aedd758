"""Image files in: PNG, JPEG or DICOM, each becomes one grey channel with bone bright."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from synthorax.data.pixels import MAX_PIXELS, Pixels
from synthorax.errors import InputError

_PILLOW_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_REFUSED_MAGIC = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP", b"\x1f\x8b": "gzip",
                  b"PK\x03\x04": "zip", b"\0\0\0\x0cjP": "JPEG 2000", b"%PDF": "PDF"}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a PNG, JPEG or DICOM image as [H, W], one grey channel, full range of uint8 or uint16, bone bright.

    The kind of file is recognised by its first bytes, never by its name. Colour becomes luminance (ITU-R BT.601), transparency is
    laid over black. The size is checked before decoding. An image with an EXIF orientation other than upright is refused, because
    turning it and leaving it are both guesses about where the heart is. Raises `InputError` naming the file and the remedy.

    >>> from synthorax.data.pixels import write_png
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
