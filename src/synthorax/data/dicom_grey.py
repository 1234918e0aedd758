"""Stored DICOM values -> grey with bone bright: modality LUT, then VOI LUT or window, then MONOCHROME1 and padding."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue

from synthorax.data.pixels import Pixels

PERCENTILES = (0.5, 99.5)
"""grey range of an image of more than 8 bits whose header says nothing of how to show it"""
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
UNUSABLE = "; unusable: "
"""before what the header says of how to show an image, where that is not defined"""


def show(image: FileDataset, stored: NDArray[Any]) -> tuple[Pixels, str]:
    """Grey of one image as a light box shows it, and how it was found: `window 2048/4096 LINEAR`, `VOI LUT`, `as stored`, ...

    A window that is not defined is passed over, and a function of another name taken as LINEAR; how it was found then says so behind
    `UNUSABLE`.

    `stored` is [H, W] as decoded; the result is [H, W], uint8 up to 8 bits stored, else uint16, full range. Every value that the
    image can store is mapped once and the pixels are looked up: exact, and quick for large images. Raises ValueError where the
    header contradicts itself or the pixels.
    """
    bits = whole(image, "BitsStored")
    lowest = -(1 << (bits - 1)) if whole(image, "PixelRepresentation", 0) else 0
    levels = np.arange(lowest, lowest + (1 << bits))
    if stored.min() < levels[0] or stored.max() > levels[-1]:
        raise ValueError(f"it has values that do not fit in {bits} bits")
    index = (stored.astype(np.int32) - lowest).astype(np.uint16)
    padding = _padding(image, levels)
    counts = np.where(padding, 0, np.bincount(index.ravel(), minlength=len(levels)))
    unit, how = _voi(image, _modality(image, levels), counts, bits)
    if image.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    dtype: type[np.uint8] | type[np.uint16] = np.uint8 if bits <= 8 else np.uint16
    table = np.rint(np.where(padding, 0.0, unit) * np.iinfo(dtype).max).astype(dtype)
    return table[index], how


def whole(header: Dataset, keyword: str, default: int | None = None) -> int:
    """A header value that is a whole number; ValueError where it is missing and there is no `default`."""
    value = header.get(keyword)
    if value is None or value == "":
        value = default
    if value is None:
        raise ValueError(f"it has no {keyword}")
    return int(value)


def window(values: NDArray[np.float64], *, center: float, width: float, function: str = "LINEAR") -> NDArray[np.float64]:
    """The three window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, as grey in [0, 1].

    >>> window(np.array([0.0, 127.5, 255.0]), center=128, width=256).tolist()
    [0.0, 0.5, 1.0]
    """
    narrowest_allowed = width >= 1 if function == "LINEAR" else width > 0
    if function not in FUNCTIONS or not narrowest_allowed or not np.isfinite([center, width]).all():
        raise ValueError(f"its window {center:g}/{width:g} {function} is not defined")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))  # beyond 700 exp overflows
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _padding(image: Dataset, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which stored values only fill the frame (PS3.3 C.7.5.1.1.2)."""
    if image.get("PixelPaddingValue") is None:
        return np.zeros(len(levels), dtype=np.bool_)
    first = whole(image, "PixelPaddingValue")
    last = whole(image, "PixelPaddingRangeLimit", first)
    return (levels >= min(first, last)) & (levels <= max(first, last))


def _modality(image: FileDataset, levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Stored values -> the manufacturer's units (PS3.3 C.11.1)."""
    if image.get("ModalityLUTSequence"):
        return _look_up(image, image.ModalityLUTSequence[0], levels)[0]
    slope, intercept = _number(image, "RescaleSlope"), _number(image, "RescaleIntercept")
    return np.asarray(levels * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept), dtype=np.float64)


def _voi(image: FileDataset, values: NDArray[np.float64], counts: NDArray[Any], bits: int) -> tuple[NDArray[np.float64], str]:
    """Units -> grey in [0, 1] (PS3.3 C.11.2), and how it was chosen; `counts` are pixels per value without padding."""
    if image.get("VOILUTSequence"):
        table, bits_out = _look_up(image, image.VOILUTSequence[0], np.rint(values).astype(np.int64))
        return np.clip(table / (2**bits_out - 1), 0, 1), "VOI LUT"
    unusable = ""
    try:
        center, width = _number(image, "WindowCenter"), _number(image, "WindowWidth")
    except ValueError:
        center, width, unusable = None, None, f"{UNUSABLE}a window that is no number"
    if center is not None and width is not None:
        stated = str(image.get("VOILUTFunction") or "LINEAR").strip()
        function = stated.upper() if stated.upper() in FUNCTIONS else "LINEAR"
        note = "" if function == stated.upper() else f"{UNUSABLE}the function '{stated}', taken as LINEAR"
        with contextlib.suppress(ValueError):
            return window(values, center=center, width=width, function=function), f"window {center:g}/{width:g} {function}{note}"
        unusable = f"{UNUSABLE}the window {center:g}/{width:g} {function}"
    if bits <= 8:
        low, high, how = float(values.min()), float(values.max()), "as stored"
    else:
        order = np.argsort(values, kind="stable")
        share = np.cumsum(counts[order]) / max(1, int(counts.sum()))
        low, high = (float(values[order][min(int(np.searchsorted(share, p / 100)), len(values) - 1)]) for p in PERCENTILES)
        how = f"percentiles {PERCENTILES[0]} to {PERCENTILES[1]}"
    if not high > low:
        raise ValueError("it has one grey value only")
    return np.clip((values - low) / (high - low), 0, 1), how + unusable


def _look_up(image: FileDataset, item: Dataset, values: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """Apply one LUT item (PS3.3 C.11.1.1), and its bits per entry.

    Not pydicom's `apply_voi`: with 8-bit entries its index wraps at 256, so that a longer table is read wrongly.
    """
    entries, first, bits = (int(part) for part in item.LUTDescriptor)
    entries = entries or 2**16  # the standard's way of writing 65,536 in 16 bits
    if values.min() < 0 and first >= 2**15:
        first -= 2**16
    if not 8 <= bits <= 16:
        raise ValueError(f"its LUT has {bits} bits an entry")
    data = item.LUTData
    if isinstance(data, bytes):
        two_bytes = "<u2" if image.original_encoding[1] else ">u2"
        data = np.frombuffer(data, dtype=two_bytes if len(data) >= 2 * entries else np.uint8)
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    if len(table) < entries:
        raise ValueError("its LUT is shorter than it says")
    return table[np.clip(values - first, 0, entries - 1)], bits


def _number(image: Dataset, keyword: str) -> float | None:
    """The value, or the first of several; None where there is none."""
    value = image.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
