#!/usr/bin/env bash
# An image's `info` in Pillow is not all the text that its file holds, and saving keeps some text and drops other.
#
# Packages: pillow 13.0.0
# Expected: `Image.open(path).info` lists the text of a PNG; an image without entries has none. Saving a decoded image either keeps its text or
#   drops it, whatever the format.
# Seen: What stands behind the pixels (text, EXIF) is missing from `info` until `load()`; asking for `.text` loads the file, asking for `.info` does
#   not. Private chunks, JPEG segments such as APP5 and APP12, and bytes behind the end are never in `info`. PNG to PNG drops text and EXIF, JPEG
#   to JPEG keeps the comment.
# Why it matters: A check for names in headers that reads `info` passes files that ImageMagick and others have written, because they put text
#   behind the pixels. Only pixels that are written anew without `info` are free of text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0
venv/bin/python - <<'PY'
import io
import struct
import zlib

from PIL import Image

NAME = b"DOE^JANE"


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content):
    return Image.open(io.BytesIO(content))


plain = saved(Image.new("L", (8, 8), 7), "PNG")
png = plain[:-12] + chunk(b"tEXt", b"Comment\0" + NAME) + chunk(b"prVt", NAME) + plain[-12:] + NAME
before, after = opened(png), opened(png)
after.load()
print(f"PNG: info before load {before.info}, after load {after.info}; the name stands in the file {png.count(NAME)} times")
assert before.info == {} and after.info == {"Comment": NAME.decode()} and png.count(NAME) == 3
assert opened(png).text == after.info, "asking for the text loads the file"
assert NAME not in saved(after, "PNG")

plain = saved(Image.new("L", (8, 8), 7), "JPEG")
jpeg = plain[:20] + segment(0xFE, NAME) + segment(0xE5, NAME) + segment(0xEC, NAME) + plain[20:] + NAME
image = opened(jpeg)
image.load()
told = [name for name, value in image.info.items() if value == NAME]
again = saved(image, "JPEG")
print(f"JPEG: in info {told}; the name stands in the file {jpeg.count(NAME)} times, and {again.count(NAME)} time after it was saved again")
assert told == ["comment"] and jpeg.count(NAME) == 4 and again.count(NAME) == 1
print("PNG saved again: without the name; JPEG saved again: with it")
PY
