"""No byte of a user's image file is copied: text planted in every carrier that a file has does not come out of any adapter or verb."""

import base64
import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from synthorax.data.adapters import cxr14, dicom, folder
from synthorax.data.dataset import copy_files, read_dataset
from synthorax.data.image_files import read_image
from synthorax.data.sources import merge_datasets
from synthorax.verbs import data, synthesis

WORD = b"CANARY^NAME"
PLANTED = (WORD, WORD.decode().encode("utf-16-le"), WORD.decode().encode("utf-16-be"), base64.b64encode(WORD), WORD[::-1])
SECRET = b" ".join(PLANTED)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


EXIF = b"II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0" + struct.pack("<II", len(SECRET), 26) + b"\0\0\0\0" + SECRET
PNG_CHUNKS = {
    "tEXt": b"Comment\0" + SECRET, "zTXt": b"Comment\0\0" + zlib.compress(SECRET), "iTXt": b"Comment\0\0\0\0\0" + SECRET,
    "iTXt-packed": b"Comment\0\1\0\0\0" + zlib.compress(SECRET), "eXIf": EXIF, "prVt": SECRET, "sPLT": SECRET + b"\0\x08", "hIST": SECRET,
    "pCAL": SECRET + b"\0" + bytes(12), "sCAL": b"\1" + SECRET + b"\0001", "iCCP": b"profile\0\0" + zlib.compress(SECRET),
}
JPEG_SEGMENTS = {"COM": (0xFE, SECRET), "JFXX": (0xE0, b"JFXX\0\x13" + SECRET), "EXIF": (0xE1, b"Exif\0\0" + EXIF),
                 "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET), "APP1": (0xE1, SECRET), "APP2": (0xE2, SECRET),
                 "APP5": (0xE5, SECRET), "APP12": (0xEC, SECRET), "APP13": (0xED, b"Photoshop 3.0\0" + SECRET), "APP14": (0xEE, SECRET)}


def carriers(pixels: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """File name -> a whole image of these pixels with the secret in one place."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    png = buffer.getvalue()
    head, end = png[:33], png[-12:]
    for name, content in PNG_CHUNKS.items():
        kind = name[:4].encode()
        yield f"{name}-before.png", head + chunk(kind, content) + png[33:]
        yield f"{name}-after.png", png[:-12] + chunk(kind, content) + end
    yield "trailing.png", png + SECRET
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    yield "behind-the-stream.png", head + chunk(b"IDAT", zlib.compress(raw) + SECRET) + end
    yield "below-the-image.png", head + chunk(b"IDAT", zlib.compress(raw + SECRET)) + end
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    jpeg = buffer.getvalue()
    for name, (marker, content) in JPEG_SEGMENTS.items():
        yield f"{name}.jpg", jpeg[:20] + segment(marker, content) + jpeg[20:]
    yield "behind-the-end.jpg", jpeg + SECRET
    yield "dicom.png", dicom_bytes(pixels)


def dicom_bytes(pixels: NDArray[np.uint8]) -> bytes:
    record = Header()
    record.file_meta = FileMetaDataset()
    record.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.SOPClassUID, record.SOPInstanceUID, record.StudyInstanceUID = SecondaryCaptureImageStorage, generate_uid(), generate_uid()
    record.file_meta.MediaStorageSOPClassUID, record.file_meta.MediaStorageSOPInstanceUID = record.SOPClassUID, record.SOPInstanceUID
    record.PatientID = record.PatientName = record.PatientComments = WORD.decode()
    record.Modality = "DX"
    record.Rows, record.Columns = pixels.shape
    record.SamplesPerPixel, record.PhotometricInterpretation, record.PixelRepresentation = 1, "MONOCHROME2", 0
    record.BitsAllocated = record.BitsStored = 8
    record.HighBit = 7
    record.private_block(0x0009, "SITE", create=True).add_new(1, "UN", SECRET)
    record.PixelData = pixels.tobytes()
    record.add_new(0xFFFCFFFC, "OB", SECRET)
    buffer = io.BytesIO()
    record.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    return SECRET[:128].ljust(128, b"\0") + content[128:] + SECRET


def image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 12), dtype=np.uint8)


MASK = np.zeros((16, 12), np.uint8)
MASK[4:9, 3:8] = 255


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every carrier as an image and as a mask, with a table: a folder of the user, and a dataset folder as it is."""
    root = tmp_path_factory.mktemp("images")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rows = ["file_name,patient_id,findings,lung_mask"]
    masks = dict(carriers(MASK))
    for number, name in enumerate(masks):
        (root / "images" / name).write_bytes(dict(carriers(image(number)))[name])
        (root / "masks" / name).write_bytes(masks[name])
        rows.append(f"images/{name},p{number},{('Mass', 'No Finding')[number % 2]},masks/{name}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    assert set(leaks(root)) == {f"{place}/{name}" for place in ("images", "masks") for name in masks}  # the search finds what was planted
    return root


def leaks(out: Path) -> list[str]:
    """The files below that hold the secret in any form, also packed in a chunk."""
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        texts = [content]
        for start in [at for at in range(len(content) - 1) if content[at] == 0x78 and content[at + 1] in (0x01, 0x5E, 0x9C, 0xDA)]:
            with contextlib.suppress(zlib.error):
                texts.append(zlib.decompressobj().decompress(content[start:]))
        if any(word in text for text in texts for word in PLANTED):
            found.append(path.relative_to(out).as_posix())
    return found


def test_the_folder_adapter_takes_over_pixels_alone(images: Path, tmp_path: Path) -> None:
    made = folder.ingest(images, tmp_path / "out")
    assert leaks(made.path) == []
    assert len(made) == len(dict(carriers(MASK))) > 30, (made.path / "rejects.csv").read_text()
    for study in made.studies:
        with Image.open(made.path / study.file_name) as picture:
            assert (picture.format, picture.mode, picture.info) == ("PNG", "L", {})
        name = Path(study.file_name).stem
        if name.endswith(("before", "after")):
            np.testing.assert_array_equal(read_image(made.path / study.masks["lung_mask"][0]), MASK)


def test_the_nihs_adapter_takes_over_pixels_alone(images: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((images / "images").iterdir())]
    source = tmp_path / "CXR8"
    (source / "images").mkdir(parents=True)
    for name in names:
        (source / "images" / name).write_bytes((images / "images" / name).read_bytes())
    (source / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n" + "".join(f"{name},Mass,{row}\n"
                                                                                                  for row, name in enumerate(names)))
    made = cxr14.ingest(source, tmp_path / "out")
    assert len(made) > 30 and leaks(made.path) == []


def test_the_dicom_adapter_takes_over_pixels_alone(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    for number in range(3):
        (tmp_path / "pacs" / f"IM{number}").write_bytes(dicom_bytes(image(number)))
    assert len(leaks(tmp_path / "pacs")) == 3
    made = dicom.ingest(tmp_path / "pacs", tmp_path / "out")
    assert len(made) == 3 and leaks(made.path) == []


def test_what_is_made_of_a_dataset_folder_holds_pixels_alone(images: Path, tmp_path: Path) -> None:
    real = read_dataset(images)
    copied = [copy_files(study, source=real.path, out=tmp_path / "copy") for study in real.studies]
    assert leaks(tmp_path) == [] and len({study.file_name for study in copied}) == len(copied)
    for before, after in zip(real.studies, copied, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / "copy" / after.file_name), read_image(real.path / before.file_name))
        assert (tmp_path / "copy" / after.masks["lung_mask"][0]).read_bytes().startswith(b"\x89PNG")
    synthesis.export(real, format="png", out=tmp_path / "png")
    data.prepare(real, size=16, out=tmp_path / "prepared", allow_rejects=True)
    assert leaks(tmp_path) == []


def test_joined_sets_hold_pixels_alone(images: Path, tmp_path: Path) -> None:
    (images / "dataset.json").write_text('{"name": "a/../../b"}')
    try:
        made = merge_datasets([images], tmp_path / "joined", name="joined")
    finally:
        (images / "dataset.json").unlink()
    assert leaks(tmp_path) == [] and {path.name for path in tmp_path.iterdir()} == {"joined"}
    assert {study.site for study in made.studies} == {"a/../../b"}


@pytest.mark.parametrize(("mode", "values"), [("1", {0, 255}), ("P", {0, 76, 200}), ("L", {0, 128, 255}), ("I;16", {0, 40_000}),
                                              ("RGB", {0, 200})])
def test_masks_keep_what_they_say_whatever_their_kind(tmp_path: Path, mode: str, values: set[int]) -> None:
    (tmp_path / "images/Mass").mkdir(parents=True)
    Image.fromarray(image(1)).save(tmp_path / "images/Mass/a.png")
    Image.fromarray(image(1)).save(tmp_path / "images/a.png")
    grey = np.array(sorted(values), np.uint16)[np.arange(16 * 12).reshape(16, 12) % len(values)]
    if mode == "RGB":  # dark blue is inside as well
        picture = Image.fromarray(np.stack([np.zeros_like(grey), np.zeros_like(grey), grey], axis=-1).astype(np.uint8))
    elif mode == "P":
        picture = Image.fromarray((grey > 0).astype(np.uint8) + (grey > 100)).convert("L")
        picture.putpalette([0, 0, 0, 76, 0, 0, 0, 0, 200])
    else:
        picture = Image.fromarray(grey if mode == "I;16" else grey.astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "images/mask.png")
    (tmp_path / "images/metadata.csv").write_text("file_name,findings,lung_mask\na.png,Mass,mask.png\n")
    made = folder.ingest(tmp_path / "images", tmp_path / "out")
    mask = read_image(made.path / made.studies[0].masks["lung_mask"][0])
    np.testing.assert_array_equal(mask, grey.astype(mask.dtype))
