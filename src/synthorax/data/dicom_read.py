"""DICOM radiographs in: checked before they are decoded, shown in grey with bone bright, with the facts of the header."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from synthorax.data.attributes import parse_age_years, parse_view
from synthorax.data.dicom_grey import show, whole
from synthorax.data.pixels import MAX_PIXELS, Pixels
from synthorax.errors import InputError

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DECODERS = {RLELossless: "pydicom", **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg")}
"""where one decoder is preferred: pylibjpeg's for RLE panics on damaged data, Pillow's for JPEG 2000 may change deep values"""
INFANT_MONTHS = 24
"""below this age months are kept"""
_COPY_AGAIN = "copy the file again from its source, or leave it out"


def is_dicom(path: str | Path) -> bool:
    """Whether the file starts as DICOM does, with the 128-byte preamble or, as some archives write it, without."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError):
        return False
    if head[128:] == b"DICM":
        return True
    length = int.from_bytes(head[4:8], "little")
    plausible = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None or 0 < length <= 256
    return len(head) == 132 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0 and plausible


def read_dicom(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, dict[str, str]]:
    """Decode one image: pixels [H, W] (uint8 up to 8 bits stored, else uint16; full range, bone bright) and header facts.

    Grey follows PS3.3 C.11: modality LUT or rescale, then the first VOI LUT or window. Without either, or with a window that is not
    defined, 8-bit images are shown as they are stored and deeper ones between two percentiles; `facts["grey"]` says which. Padding is
    black and does not count. Colour becomes luminance. Other facts, empty where the header is silent: patient_id, study_id, sop_uid
    (identifiers!), view (PA, AP, LATERAL), sex, age_years, spacing_mm, modality, laterality. Raises `InputError` naming the file.

    >>> pixels, facts = read_dicom("image.dcm")  # doctest: +SKIP
    >>> facts["view"], facts["grey"]  # doctest: +SKIP
    ('PA', 'window 2048/4096 LINEAR')
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every departure from the standard; what matters is checked here
            _check_bytes(path, limit=4 * max_pixels + 2**24)
            _check_header(_parse(path, stop_before_pixels=True), path, max_pixels)
            image = _parse(path)
            pixels, grey = _decode(image, path)
            return pixels, {**_facts(image), "grey": grey}
    except InputError:
        raise
    except Exception as error:  # a parser and six decoders, fed with damaged bytes, raise nearly any class
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise InputError(f"cannot be read as DICOM ({reason})", file=path, remedy=_COPY_AGAIN) from error


def modality_of(path: str | Path) -> str | None:
    """The modality that a header states, empty where it is silent; None for a file without an image, such as a report or a presentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = _parse(Path(path), stop_before_pixels=True)
            return _text(header, "Modality") if "Rows" in header else None
        except Exception:  # as in `read_dicom`
            return ""


def synthetic_mark(path: str | Path) -> str:
    """What a header says of the making of its pixels: `derived` from a patient's image, `generated`, or nothing.

    Only files that say `SyntheticData` YES or that Synthorax wrote are marked; a file of another program that merely calls itself DERIVED
    is a processed radiograph.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = _parse(Path(path), stop_before_pixels=True)
        except Exception:  # as in `read_dicom`, which refuses the file
            return ""
    if _text(header, "SyntheticData") != "YES":
        return ""
    return "derived" if "derived from a patient" in _text(header, "DeidentificationMethod") else "generated"


def stored_inverted(path: str | Path) -> bool:
    """Whether a header says that low values are shown bright (MONOCHROME1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _text(_parse(Path(path), stop_before_pixels=True), "PhotometricInterpretation") == "MONOCHROME1"
        except Exception:  # as in `read_dicom`, which refuses the file
            return False


def _check_bytes(path: Path, *, limit: int) -> None:
    """Refuse files that hold more than an image of the allowed size can, and deflated files that unpack to more."""
    problem = InputError(f"unpacks to more than {limit:,} bytes", file=path, remedy="leave it out")
    if path.stat().st_size > limit:
        raise problem
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        packed = file.read()
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and not inflater.eof:
        total += len(inflater.decompress(packed, 2**20))
        packed = inflater.unconsumed_tail
        if total > limit:
            raise problem


def _parse(path: Path, *, stop_before_pixels: bool = False) -> FileDataset:
    image = pydicom.dcmread(path, force=True, stop_before_pixels=stop_before_pixels)
    if "TransferSyntaxUID" not in getattr(image, "file_meta", {}):
        implicit, little = image.original_encoding
        image.file_meta = getattr(image, "file_meta", FileMetaDataset())
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return image


def _check_header(header: Dataset, path: Path, max_pixels: int) -> None:
    if "Rows" not in header or "Columns" not in header:
        raise InputError("is a DICOM file without an image", file=path, remedy="leave it out")
    rows, columns, frames = whole(header, "Rows"), whole(header, "Columns"), whole(header, "NumberOfFrames", 1)
    colour = str(header.get("PhotometricInterpretation", ""))
    allocated, stored = whole(header, "BitsAllocated"), whole(header, "BitsStored")
    problem, remedy = "", "export it again as 16-bit MONOCHROME2"
    if rows < 1 or columns < 1 or rows * columns > max_pixels:
        problem, remedy = f"has {columns} x {rows} pixels; at most {max_pixels:,} are read", "save it smaller, or leave it out"
    elif frames > 1:
        problem, remedy = f"has {frames} frames; a radiograph has one", "leave out cine and volume series"
    elif colour not in (_GREY if whole(header, "SamplesPerPixel", 1) == 1 else _COLOUR):
        problem = f"has photometric interpretation '{colour}'"
    elif allocated not in (8, 16) or not 1 <= stored <= allocated or (colour in _COLOUR and allocated != 8):
        problem = f"stores {stored} bits in {allocated}; up to 16 bits of grey and 8 of colour are read"
    elif whole(header, "HighBit", stored - 1) != stored - 1:
        problem = "does not keep its values in the low bits"
    if problem:
        raise InputError(problem, file=path, remedy=remedy)


def _decode(image: FileDataset, path: Path) -> tuple[Pixels, str]:
    if "PixelData" not in image:
        raise InputError("is a DICOM file without pixel data", file=path, remedy="leave it out")
    syntax = image.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        size = _codestream_size(next(generate_frames(image.PixelData, number_of_frames=1)))
        if size not in (None, (image.Rows, image.Columns)):
            problem = f"says {image.Columns} x {image.Rows} pixels but its {syntax.name} stream has another size"
            raise InputError(problem, file=path, remedy=_COPY_AGAIN)
    try:
        stored = pixel_array(image, decoding_plugin=_DECODERS.get(syntax, ""))
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise _undecodable(syntax, path, error) from error
    if image.PhotometricInterpretation in _COLOUR:
        return np.rint(stored @ np.array([0.299, 0.587, 0.114])).astype(np.uint8), "luminance"  # ITU-R BT.601
    return show(image, stored)


def _undecodable(syntax: Any, path: Path, error: Exception) -> InputError:
    twelve_bit = "12-bit" in str(error)
    if twelve_bit or syntax in (JPEGLossless, JPEGLosslessSV1):
        remedy = "unpack it with `dcmdjpeg IN OUT` of DCMTK" + ("" if twelve_bit else ", or `pip install 'synthorax[jpeg-lossless]'`")
        return InputError(f"is compressed as {syntax.name}, which no installed decoder reads", file=path, remedy=remedy)
    return InputError(f"has damaged or unsupported {syntax.name} pixel data", file=path, remedy=_COPY_AGAIN)


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream announces; None where it announces none, as in RLE."""
    if frame.startswith(b"\xff\x4f\xff\x51"):  # SIZ: Xsiz, Ysiz, XOsiz, YOsiz (ISO/IEC 15444-1 A.5.1)
        x_size, y_size, x_offset, y_offset = (int.from_bytes(frame[at:at + 4], "big") for at in (8, 12, 16, 20))
        return y_size - y_offset, x_size - x_offset
    for marker, at in _jpeg_segments(frame):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # SOFn; SOF55 of JPEG-LS
            return int.from_bytes(frame[at + 5:at + 7], "big"), int.from_bytes(frame[at + 7:at + 9], "big")
    return None


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment before the entropy-coded data."""
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != 0xDA:
        if frame[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        yield frame[at + 1], at
        at += 2 + int.from_bytes(frame[at + 2:at + 4], "big")


def _facts(image: Dataset) -> dict[str, str]:
    sex = _text(image, "PatientSex").upper()
    return {
        "patient_id": _text(image, "PatientID"),
        "study_id": _text(image, "StudyInstanceUID"),
        "sop_uid": _text(image, "SOPInstanceUID"),
        "view": _view(image),
        "sex": sex if sex in ("M", "F") else "",
        "age_years": _age_years(image),
        "spacing_mm": _spacing_mm(image),
        "modality": _text(image, "Modality"),
        "laterality": _text(image, "ImageLaterality") or _text(image, "Laterality"),
    }


def _text(image: Dataset, keyword: str) -> str:
    """A header value as text. For a fact, a value that breaks its own format is the same as none."""
    try:
        value = image.get(keyword)
    except Exception:
        return ""
    return "" if value is None else str(value).replace("\0", "").strip()


_VIEW_CODES = {"399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-10214": "PA", "399173006": "LATERAL", "R-10236": "LATERAL",
               "399198007": "LATERAL", "R-10232": "LATERAL", "49370004": "LATERAL"}
"""SNOMED CT and its older SRT codes for the views of PS3.16 CID 4010"""
_VIEW_WORDS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LAT": "LATERAL", "LL": "LATERAL", "RL": "LATERAL",
               "LLD": "", "RLD": "", "DECUB": "", "DECUBITUS": ""}
"""decubitus images are neither PA, AP nor LATERAL: their words keep `LAT DECUB` from becoming LATERAL"""


def _view(image: Dataset) -> str:
    """PA, AP or LATERAL from the position, the view code or the series description; empty where they are silent or name two."""
    position = _text(image, "ViewPosition")
    codes = {_VIEW_CODES[code] for item in image.get("ViewCodeSequence") or [] if (code := _text(item, "CodeValue")) in _VIEW_CODES}
    for named in ({parse_view(position)[0]} - {""}, _views_in(position), codes, _views_in(_text(image, "SeriesDescription"))):
        if named:
            return named.pop() if len(named) == 1 else ""
    return ""


def _views_in(text: str) -> set[str]:
    return {_VIEW_WORDS[word] for word in re.findall(r"[A-Z]+", text.upper()) if word in _VIEW_WORDS}


def _age_years(image: Dataset) -> str:
    """From the age (062Y, 006M, 62), or else in completed years, of infants months, from the dates of birth and of the study."""
    years = parse_age_years(_text(image, "PatientAge"))[0]
    if not np.isnan(years):
        return f"{years:.4g}"
    try:
        birth, study = (datetime.strptime(_text(image, name), "%Y%m%d") for name in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return ""
    months = 12 * (study.year - birth.year) + study.month - birth.month - (study.day < birth.day)
    years = parse_age_years(f"{months}M" if months < INFANT_MONTHS else f"{months // 12}Y")[0]
    return "" if np.isnan(years) else f"{years:.4g}"


def _spacing_mm(image: Dataset) -> str:
    """Calibrated spacing, or else that at the detector: `0.168`, or `rows|columns` where they differ."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        numbers = re.findall(r"\d+\.?\d*(?:[eE]-?\d+)?", _text(image, keyword))
        if len(numbers) == 2 and all(float(number) > 0 for number in numbers):
            row, column = (f"{float(number):g}" for number in numbers)
            return row if row == column else f"{row}|{column}"
    return ""
