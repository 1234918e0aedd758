"""Pictures in and out: what is read, what is refused, and that geometry and ranges survive."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synthorax.data.image_files import read_image
from synthorax.data.pixels import content_box, from_unit, letterbox, to_unit, write_png
from synthorax.errors import InputError

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "formats"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def png_of(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG made by hand: `rows` is the packed content of IDAT."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_round_trip_is_exact(tmp_path: Path, dtype: type[np.uint8] | type[np.uint16]) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (31, 17), dtype=dtype, endpoint=True)
    write_png(tmp_path / "a.png", image, provenance={"seed": "7", "Herkunft": "künstlich ✓"})
    again = read_image(tmp_path / "a.png")
    assert again.dtype == dtype and np.array_equal(again, image)
    with Image.open(tmp_path / "a.png") as file:
        file.load()
        assert file.text == {"seed": "7", "Herkunft": "künstlich ✓"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_every_kind_of_png_becomes_one_grey_channel(tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP)
    bits = RAMP >= 128
    alpha = Image.merge("LA", (grey, Image.fromarray(np.full_like(RAMP, 51))))  # 51 / 255 is a fifth
    alone = np.zeros((16, 16, 3), np.uint8)
    alone[..., 1] = 200  # pure green
    expected = {
        saved(tmp_path / "bit.png", Image.fromarray(bits)): bits * 255,
        saved(tmp_path / "rgb.png", grey.convert("RGB")): RAMP,
        saved(tmp_path / "rgba.png", grey.convert("RGBA")): RAMP,
        saved(tmp_path / "palette.png", grey.convert("P")): RAMP,
        saved(tmp_path / "la.png", alpha): RAMP / 5,
        saved(tmp_path / "green.png", Image.fromarray(alone)): np.full((16, 16), 0.587 * 200),
    }
    for path, wanted in expected.items():
        image = read_image(path)
        assert image.dtype == np.uint8 and image.shape == (16, 16)
        assert np.abs(image - wanted).max() <= 1, path.name


def test_four_bit_png_fills_the_range(tmp_path: Path) -> None:
    (tmp_path / "4.png").write_bytes(png_of(2, 1, zlib.compress(b"\0\x0f"), depth=4))
    assert read_image(tmp_path / "4.png").tolist() == [[0, 255]]


def test_jpeg_grey_and_colour(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    for mode in ("L", "RGB"):
        path = saved(tmp_path / f"{mode}.jpg", smooth.convert(mode), quality=95)
        assert np.abs(read_image(path).astype(int) - np.asarray(smooth)).max() <= 4


def test_a_suffix_does_not_decide(tmp_path: Path) -> None:
    path = saved(tmp_path / "film.dcm", Image.fromarray(RAMP), format="PNG")
    assert np.array_equal(read_image(path), RAMP)


def refused(tmp_path: Path) -> dict[str, bytes]:
    """Content of files that cannot be images, by a word that the message must have."""
    saved(tmp_path / "t.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
    saved(tmp_path / "t.jpg", Image.fromarray(RAMP).resize((64, 64)))
    saved(tmp_path / "c.jpg", Image.fromarray(RAMP).convert("CMYK"))
    saved(tmp_path / "t.tif", Image.fromarray(RAMP))
    saved(tmp_path / "t.gif", Image.fromarray(RAMP))
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(tmp_path / "m.png", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "o.jpg", Image.fromarray(RAMP), exif=exif)
    png, jpeg = (tmp_path / "t.png").read_bytes(), (tmp_path / "t.jpg").read_bytes()
    return {
        "is empty": b"", "not a PNG": b"file_name,findings\n" * 20, "cannot be decoded": png[:len(png) // 2],
        "truncated": jpeg[:len(jpeg) * 3 // 4], "CMYK": (tmp_path / "c.jpg").read_bytes(), "TIFF": (tmp_path / "t.tif").read_bytes(),
        "GIF": (tmp_path / "t.gif").read_bytes(), "several frames": (tmp_path / "m.png").read_bytes(),
        "EXIF orientation 6": (tmp_path / "o.jpg").read_bytes(), "as PNG": png_of(8, 8, b"no zlib"),
    }


def test_bad_files_are_refused_with_name_and_remedy(tmp_path: Path) -> None:
    for problem, content in refused(tmp_path).items():
        path = tmp_path / "film.png"
        path.write_bytes(content)
        with pytest.raises(InputError, match=problem) as caught:
            read_image(path)
        assert caught.value.file == path and caught.value.remedy
    for path, problem in ((tmp_path, "folder"), (tmp_path / "none.png", "does not exist"), (Path("a\0b"), "cannot be opened")):
        with pytest.raises(InputError, match=problem):
            read_image(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(10_001)) for _ in range(10_000)) + packer.flush()
    (tmp_path / "bomb.png").write_bytes(png_of(10_000, 10_000, rows))
    assert (tmp_path / "bomb.png").stat().st_size < 150_000
    (tmp_path / "larger.png").write_bytes(png_of(20_000, 20_000, rows))
    read_image(saved(tmp_path / "warm.png", Image.fromarray(RAMP)))
    tracemalloc.start()
    start = time.process_time()
    for name in ("bomb.png", "larger.png"):
        with pytest.raises(InputError, match="40,000,000"):
            read_image(tmp_path / name)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    with pytest.raises(InputError, match="16 x 16"):
        read_image(tmp_path / "warm.png", max_pixels=255)


def test_only_input_errors_escape_from_damaged_files(tmp_path: Path) -> None:
    originals = [saved(tmp_path / f"a.{kind}", Image.fromarray(RAMP)).read_bytes() for kind in ("png", "jpg")]
    draw, path, read = random.Random(0), tmp_path / "damaged", 0
    for number in range(200):
        content = bytearray(originals[number % 2])
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read += read_image(path).ndim == 2
        except InputError as error:
            assert str(path) in str(error)
    assert 0 < read < 200


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (700, 1000), (1000, 700), (33, 97), (1, 50), (64, 64)])
def test_letterbox_keeps_aspect_and_centre(height: int, width: int) -> None:
    boxed = letterbox(np.full((height, width), 200, np.uint8), 64)
    rows, columns = np.flatnonzero(boxed.any(axis=1)), np.flatnonzero(boxed.any(axis=0))
    assert boxed.shape == (64, 64) and set(np.unique(boxed)) <= {0, 200}
    assert max(len(rows), len(columns)) == 64
    assert abs(len(rows) / len(columns) - height / width) <= 1 / min(len(rows), len(columns))
    assert abs((rows[0] + rows[-1]) / 2 - 31.5) <= 0.5 and abs((columns[0] + columns[-1]) / 2 - 31.5) <= 0.5
    assert content_box((height, width), 64) == (rows[0], columns[0], len(rows), len(columns))


def test_letterbox_never_flips_and_resizing_to_the_same_size_is_exact() -> None:
    image = np.zeros((90, 60), np.uint16)
    image[:20, :20] = 60000  # upper left
    boxed = letterbox(image, 45)
    assert boxed[:10, 7:17].mean() > 50000 and boxed[30:].max() < 100 and boxed[:, 30:].max() < 100
    assert np.array_equal(letterbox(RAMP, 16), RAMP)


def test_letterbox_keeps_sixteen_bits() -> None:
    slope = np.tile(np.linspace(1000, 3000, 512), (512, 1)).astype(np.uint16)
    boxed = letterbox(slope, 256)
    assert len(np.unique(boxed)) > 250
    assert np.abs(boxed[5, 4:-4] - np.linspace(1000, 3000, 512).reshape(256, 2).mean(axis=1)[4:-4]).max() < 2


@given(st.integers(8, 120), st.integers(8, 120), st.sampled_from([16, 48, 64, 150]))
def test_masks_stay_on_their_image(height: int, width: int, size: int) -> None:
    row, column = np.mgrid[:height, :width]
    mask = ((row < 0.7 * height) & (column > 0.3 * width)).astype(np.uint8) * 255
    as_image, as_mask = letterbox(mask, size), letterbox(mask, size, nearest=True)
    assert set(np.unique(as_mask)) <= {0, 255}
    assert (np.abs(as_image.astype(int) - as_mask) > 128).mean() <= 2.2 / min(content_box((height, width), size)[2:])


def test_unit_range_round_trips_exactly() -> None:
    for dtype in (np.uint8, np.uint16):
        values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
        unit = to_unit(values)
        assert unit.dtype == np.float32 and unit[0] == -1 and unit[-1] == 1 and (np.diff(unit) > 0).all()
        assert np.array_equal(from_unit(unit, dtype), values)
    assert from_unit(np.array([-3.0, 0.0, 3.0])).tolist() == [0, 128, 255]
    with pytest.raises(InputError, match="finite"):
        from_unit(np.array([0.0, np.nan]))


@pytest.mark.images
@pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside this checkout")
def test_real_originals_agree_with_their_small_copies() -> None:
    for line in (IMAGES / "index.csv").read_text().splitlines()[1:]:
        original, copy = line.split(",")
        small = IMAGES.parent / copy
        if original.startswith(("nih", "kermany")) and small.exists():  # one of the others was cropped at its source
            ours, theirs = letterbox(read_image(IMAGES / original), 256), read_image(small)
            assert np.abs(ours.astype(int) - theirs).mean() < 1.0, original
