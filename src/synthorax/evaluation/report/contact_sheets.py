"""Contact sheets: many images on one picture, for a reader's eye; and how the report's files reach the disk."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from synthorax.data.pixels import with_bits_of
from synthorax.errors import UsageError
from synthorax.files import write_atomic

GAP_PX = 3
BACKGROUND, CAPTION, TITLE = 20, 205, 245  # grey levels; a dark ground keeps the eye on the images

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(images: NDArray[np.uint8] | NDArray[np.uint16], *, columns: int = 4,
                  captions: Sequence[str] | None = None, tile_px: int = 128, title: str = "") -> Image.Image:
    """Lay images out row by row on one grey picture, each under its own size `tile_px`, with its caption below.

    `images` is [N, S, S], full range of its integer type, bone bright; 16-bit images are shown in 8 bits without any
    stretching. A caption that is wider than its image is shortened with an ellipsis. Raises UsageError for no images,
    another shape or type, or a number of captions that is not N.

    >>> contact_sheet(np.zeros((3, 8, 8), np.uint8), columns=2, tile_px=16).size
    (41, 41)
    """
    _refuse_unusable(images, columns=columns, captions=captions, tile_px=tile_px)
    caption_font, title_font = _font(max(10, min(16, tile_px // 9))), _font(max(13, min(22, tile_px // 6)))
    caption_px = _line_px(caption_font) + 2 if captions is not None else 0
    title_px = _line_px(title_font) + 6 if title else 0
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    step_x, step_y = tile_px + GAP_PX, tile_px + caption_px + GAP_PX

    sheet = Image.new("L", (columns * step_x + GAP_PX, rows * step_y + GAP_PX + title_px), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP_PX + 2, GAP_PX), _fitted(title, title_font, sheet.width - 2 * GAP_PX - 4), TITLE, title_font)
    for number, image in enumerate(images):
        left, top = GAP_PX + number % columns * step_x, title_px + GAP_PX + number // columns * step_y
        tile = Image.fromarray(eight_bit(image))
        sheet.paste(tile.resize((tile_px, tile_px), Image.Resampling.LANCZOS), (left, top))
        if captions is not None:
            text = _fitted(captions[number], caption_font, tile_px - 2)
            draw.text((left + 1, top + tile_px), text, CAPTION, caption_font)
    return sheet


def png_bytes(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, image: Image.Image) -> Path:
    """Write the picture as a PNG file that is either whole or not there at all."""
    write_atomic(Path(path), png_bytes(image))
    return Path(path)


def _refuse_unusable(images: NDArray[np.uint8] | NDArray[np.uint16], *, columns: int, captions: Sequence[str] | None,
                     tile_px: int) -> None:
    if images.ndim != 3 or len(images) == 0:
        raise UsageError(f"a contact sheet needs images of shape [N, S, S] with N at least 1, not {list(images.shape)}")
    if images.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"a contact sheet needs uint8 or uint16 images, not {images.dtype}")
    if columns < 1 or tile_px < 8:
        raise UsageError(f"a contact sheet needs at least 1 column and tiles of 8 pixels, not {columns} and {tile_px}")
    if captions is not None and len(captions) != len(images):
        raise UsageError(f"{len(captions)} captions for {len(images)} images")


def eight_bit(image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Images of any shape in 8 bits, without any stretching."""
    return np.asarray(with_bits_of(image, np.uint8), dtype=np.uint8)


def _font(size_px: int) -> Font:
    """The font that comes with Pillow, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size_px)


def _line_px(font: Font) -> int:
    return math.ceil(font.getbbox("Ág|")[3])


def _fitted(text: str, font: Font, width_px: int) -> str:
    """The text on one line, shortened at its end until it is no wider than `width_px`."""
    text = " ".join(text.split())
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"
