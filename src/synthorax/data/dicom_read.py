"""DICOM radiographs in: stored values -> modality LUT -> VOI LUT or window -> grey with bone bright, and the facts of the header."""

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
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
)

from synthorax.data.pixels import MAX_PIXELS, Pixels
from synthorax.errors import InputError

PERCENTILES = (0.5, 99.5)
"""grey range of a film of more than 8 bits whose header says nothing of how to show it"""

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_COPY_AGAIN = "copy the file again from its source, or leave it out"


def is_dicom(path: str | Path) -> bool:
    """Whether the file starts as a DICOM file does, with the 128-byte preamble or, as some archives write it, without."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    if head[128:132] == b"DICM":
        return True
    group, length = head[:2], int.from_bytes(head[4:8], "little")
    plausible = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None or 0 < length <= 256
    return len(head) == 132 and group in (b"\x02\x00", b"\x08\x00") and head[3] == 0 and plausible


def read_dicom(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, dict[str, str]]:
    """Decode one film: pixels [H, W] (uint8 up to 8 bits stored, else uint16; full range, bone bright) and the header's facts.

    Grey values follow PS3.3 C.11: modality LUT or rescale, then the first VOI LUT or window. Without either, 8-bit films are
    shown as they are stored and deeper ones from `PERCENTILES`; `facts["grey"]` says which. Padding is black and does not count.
    Colour becomes luminance. Facts, empty where the header is silent: patient_id, study_id, sop_uid, view (PA, AP, LATERAL), sex,
    age_years, spacing_mm, modality, laterality. Raises `InputError` naming the file; sizes are checked before decoding.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every departure from the standard; what matters is checked here
            _check_bytes(path, limit=4 * max_pixels + 2**24)
            header = _parse(path, stop_before_pixels=True)
            _check_header(header, path, max_pixels)
            film = _parse(path)
            grey, how = _decode(film, path)
            return grey, {**_facts(film), "grey": how}
    except InputError:
        raise
    except Exception as error:  # a parser and six decoders, fed with damaged bytes, raise nearly any class
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise InputError(f"cannot be read as DICOM ({reason})", file=path, remedy=_COPY_AGAIN) from error


def _check_bytes(path: Path, *, limit: int) -> None:
    """Refuse files that could not hold a film of the allowed size, and deflated files that unpack to more."""
    problem = InputError(f"unpacks to more than {limit:,} bytes", file=path, remedy="leave it out, or raise max_pixels")
    if path.stat().st_size > limit:
        raise problem
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        packed, inflater, total = file.read(), zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and not inflater.eof:
        total += len(inflater.decompress(packed, 2**20))
        packed = inflater.unconsumed_tail
        if total > limit:
            raise problem


def _parse(path: Path, *, stop_before_pixels: bool = False) -> FileDataset:
    film = pydicom.dcmread(path, force=True, stop_before_pixels=stop_before_pixels)
    if "TransferSyntaxUID" not in getattr(film, "file_meta", {}):
        implicit, little = film.original_encoding
        film.file_meta = getattr(film, "file_meta", FileMetaDataset())
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        film.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return film


def _check_header(header: Dataset, path: Path, max_pixels: int) -> None:
    if "Rows" not in header or "Columns" not in header:
        raise InputError("is a DICOM file without an image", file=path, remedy="leave it out")
    rows, columns, frames = _whole(header, "Rows"), _whole(header, "Columns"), _whole(header, "NumberOfFrames", 1)
    colour = str(header.get("PhotometricInterpretation", ""))
    allocated, stored = _whole(header, "BitsAllocated"), _whole(header, "BitsStored")
    if rows < 1 or columns < 1 or rows * columns > max_pixels:
        raise InputError(f"has {columns} x {rows} pixels; at most {max_pixels:,} are read", file=path, remedy="leave it out, or raise max_pixels")
    if frames > 1:
        raise InputError(f"has {frames} frames; a radiograph has one", file=path, remedy="leave out cine and volume series")
    if colour not in (_GREY if _whole(header, "SamplesPerPixel", 1) == 1 else _COLOUR):
        raise InputError(f"has photometric interpretation '{colour}'", file=path, remedy="export it as MONOCHROME2")
    if allocated not in (8, 16) or not 1 <= stored <= allocated or (colour in _COLOUR and allocated != 8):
        raise InputError(f"stores {stored} bits in {allocated}; 8 to 16 bits are read", file=path, remedy="export it as 16-bit MONOCHROME2")
    if _whole(header, "HighBit", stored - 1) != stored - 1:
        raise InputError("does not keep its values in the low bits", file=path, remedy="export it again as 16-bit MONOCHROME2")


def _whole(header: Dataset, keyword: str, default: int | None = None) -> int:
    value = header.get(keyword)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"it has no {keyword}")
    return int(value)


def _decode(film: FileDataset, path: Path) -> tuple[Pixels, str]:
    if "PixelData" not in film:
        raise InputError("is a DICOM file without pixel data", file=path, remedy="leave it out")
    syntax = film.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        frame = next(generate_frames(film.PixelData, number_of_frames=1))
        size = _codestream_size(frame)
        if size not in (None, (film.Rows, film.Columns)):
            raise InputError(f"says {film.Columns} x {film.Rows} pixels but its {syntax.name} stream is of another size", file=path, remedy=_COPY_AGAIN)
    try:
        stored = pixel_array(film, decoding_plugin="pylibjpeg" if syntax in JPEG2000TransferSyntaxes else "")
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise _undecodable(syntax, path, error) from error
    if film.PhotometricInterpretation in _COLOUR:
        weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
        return np.rint(stored @ weights).astype(np.uint8), "luminance"
    return _show(film, stored)


def _undecodable(syntax: Any, path: Path, error: Exception) -> InputError:
    if "12-bit" in str(error) or syntax in (JPEGLossless, JPEGLosslessSV1):
        remedy = "unpack it with `dcmdjpeg IN OUT` of DCMTK" + ("" if "12-bit" in str(error) else ", or run `pip install python-gdcm`")
        return InputError(f"is compressed as {syntax.name}, which no installed decoder reads", file=path, remedy=remedy)
    return InputError(f"has damaged or unsupported {syntax.name} pixel data", file=path, remedy=_COPY_AGAIN)


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream announces; None where it announces none (RLE)."""
    if frame.startswith(b"\xff\x4f\xff\x51"):  # SIZ: Xsiz, Ysiz, XOsiz, YOsiz after marker, length, capabilities (ISO 15444-1 A.5.1)
        x_size, y_size, x_offset, y_offset = (int.from_bytes(frame[i:i + 4], "big") for i in (8, 12, 16, 20))
        return y_size - y_offset, x_size - x_offset
    for marker, at in _jpeg_segments(frame):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # SOFn; SOF55 of JPEG-LS
            return int.from_bytes(frame[at + 5:at + 7], "big"), int.from_bytes(frame[at + 7:at + 9], "big")
    return None


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment before the entropy-coded data."""
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != 0xDA:
        if frame[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        yield frame[at + 1], at
        at += 2 + int.from_bytes(frame[at + 2:at + 4], "big")


def _show(film: FileDataset, stored: NDArray[Any]) -> tuple[Pixels, str]:
    """Map every value that the film can store to its grey once, then look the pixels up: exact, and quick for large films."""
    bits = _whole(film, "BitsStored")
    lowest = -(1 << (bits - 1)) if _whole(film, "PixelRepresentation", 0) else 0
    levels = np.arange(lowest, lowest + (1 << bits))
    if stored.min() < levels[0] or stored.max() > levels[-1]:
        raise ValueError(f"it has values that do not fit in {bits} bits")
    index = (stored.astype(np.int32) - lowest).astype(np.uint16)
    padding = _padding(film, levels)
    counts = np.where(padding, 0, np.bincount(index.ravel(), minlength=len(levels)))
    unit, how = _voi(film, _modality(film, levels), counts, bits)
    if film.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    unit = np.where(padding, 0.0, unit)
    dtype: type[np.uint8] | type[np.uint16] = np.uint8 if bits <= 8 else np.uint16
    table = np.rint(unit * np.iinfo(dtype).max).astype(dtype)
    return table[index], how


def _padding(film: Dataset, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which stored values only fill the frame (PS3.3 C.7.5.1.1.2)."""
    if film.get("PixelPaddingValue") is None:
        return np.zeros(len(levels), dtype=np.bool_)
    first = _whole(film, "PixelPaddingValue")
    last = _whole(film, "PixelPaddingRangeLimit", first)
    return (levels >= min(first, last)) & (levels <= max(first, last))


def _modality(film: FileDataset, levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Stored values -> the manufacturer's units (PS3.3 C.11.1)."""
    if film.get("ModalityLUTSequence"):
        return _look_up(film, film.ModalityLUTSequence[0], levels)[0]
    slope, intercept = film.get("RescaleSlope"), film.get("RescaleIntercept")
    return levels * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)


def _voi(film: FileDataset, values: NDArray[np.float64], counts: NDArray[np.int64], bits: int) -> tuple[NDArray[np.float64], str]:
    """Units -> grey in [0, 1] (PS3.3 C.11.2), and how it was chosen; `counts` are pixels per value without padding."""
    if film.get("VOILUTSequence"):
        table, bits_out = _look_up(film, film.VOILUTSequence[0], np.rint(values).astype(np.int64))
        return np.clip(table / (2**bits_out - 1), 0, 1), "VOI LUT"
    center, width = _first(film, "WindowCenter"), _first(film, "WindowWidth")
    if center is not None and width is not None:
        function = str(film.get("VOILUTFunction") or "LINEAR")
        return window(values, center=center, width=width, function=function), f"window {center:g}/{width:g} {function}"
    if bits <= 8:
        low, high, how = float(values.min()), float(values.max()), "as stored"
    else:
        order = np.argsort(values, kind="stable")
        share = np.cumsum(counts[order]) / max(1, counts.sum())
        low, high = (float(values[order][np.searchsorted(share, p / 100)]) for p in PERCENTILES)
        how = f"percentiles {PERCENTILES[0]}-{PERCENTILES[1]}"
    if not high > low:
        raise ValueError("it has one grey value only")
    return np.clip((values - low) / (high - low), 0, 1), how


def window(values: NDArray[np.float64], *, center: float, width: float, function: str = "LINEAR") -> NDArray[np.float64]:
    """The three window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, as grey in [0, 1].

    >>> window(np.array([0.0, 127.5, 255.0]), center=128, width=256).tolist()
    [0.0, 0.5, 1.0]
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not (width >= 1 or (width > 0 and function != "LINEAR")):
        raise ValueError(f"its window of width {width:g} and function {function} is not defined")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _look_up(film: FileDataset, item: Dataset, values: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """Apply one LUT item; also its bits per entry. Not pydicom's `apply_voi`, whose index wraps at 256 in 8-bit tables."""
    entries, first, bits = (int(part) for part in item.LUTDescriptor)
    entries = entries or 2**16  # the standard's way of writing 65,536 in 16 bits
    if values.min() < 0 and first >= 2**15:
        first -= 2**16
    if not 8 <= bits <= 16:
        raise ValueError(f"its LUT has {bits} bits an entry")
    data = item.LUTData
    if isinstance(data, bytes):
        wide = "<u2" if film.original_encoding[1] else ">u2"
        data = np.frombuffer(data, dtype=wide if len(data) >= 2 * entries else np.uint8)
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    if len(table) < entries:
        raise ValueError("its LUT is shorter than it says")
    return table[np.clip(values - first, 0, entries - 1)], bits


def _first(film: Dataset, keyword: str) -> float | None:
    value = film.get(keyword)
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _facts(film: Dataset) -> dict[str, str]:
    sex = _text(film, "PatientSex").upper()
    return {"patient_id": _text(film, "PatientID"), "study_id": _text(film, "StudyInstanceUID"), "sop_uid": _text(film, "SOPInstanceUID"),
            "view": _view(film), "sex": sex if sex in ("M", "F") else "", "age_years": _age_years(film), "spacing_mm": _spacing_mm(film),
            "modality": _text(film, "Modality"), "laterality": _text(film, "ImageLaterality") or _text(film, "Laterality")}


def _text(film: Dataset, keyword: str) -> str:
    """A header value as text; a value that breaks its own format is the same as none, for facts only."""
    try:
        value = film.get(keyword)
    except Exception:
        return ""
    return "" if value is None else str(value).replace("\0", "").strip()


_VIEW_CODES = {"399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-10214": "PA", "399173006": "LATERAL", "R-10236": "LATERAL",
               "399198007": "LATERAL", "R-10232": "LATERAL", "49370004": "LATERAL"}  # SNOMED CT and its older SRT codes, CID 4010
_VIEW_WORDS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LAT": "LATERAL", "LL": "LATERAL", "RL": "LATERAL"}


def _view(film: Dataset) -> str:
    """PA, AP or LATERAL from the position, the view code or the series description; empty where they are silent or name two."""
    codes = film.get("ViewCodeSequence") or []
    by_code = {_VIEW_CODES.get(_text(item, "CodeValue"), "") for item in codes} - {""}
    for found in (_views_named(_text(film, "ViewPosition")), by_code, _views_named(_text(film, "SeriesDescription"))):
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""


def _views_named(text: str) -> set[str]:
    return {_VIEW_WORDS[word] for word in re.findall(r"[A-Z]+", text.upper()) if word in _VIEW_WORDS}


def _age_years(film: Dataset) -> str:
    """From the age (062Y, 006M, 62) or else from the dates of birth and study."""
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", _text(film, "PatientAge").upper())
    if match:
        years = int(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]]
        return f"{years:.4g}"
    try:
        birth, study = (datetime.strptime(_text(film, name), "%Y%m%d") for name in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return ""
    years = (study - birth).days / 365.25
    return f"{years:.4g}" if 0 <= years < 120 else ""


def _spacing_mm(film: Dataset) -> str:
    """Calibrated spacing, or else that at the detector; `0.168`, or `rows|columns` where they differ."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        numbers = re.findall(r"\d+\.?\d*(?:[eE]-?\d+)?", _text(film, keyword))
        if len(numbers) == 2 and all(float(number) > 0 for number in numbers):
            row, column = (f"{float(number):g}" for number in numbers)
            return row if row == column else f"{row}|{column}"
    return ""
