"""DICOM files made from known pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

RAMP12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
FULL12 = {"WindowCenter": 2048, "WindowWidth": 4096}
"""a window over all 12 bits"""


def dicom(path: Path, stored: np.ndarray[Any, Any], *, bits: int, syntax: str = ExplicitVRLittleEndian, **header: object) -> Path:
    """An image with these stored values, [H, W] or [H, W, 3]; `header` sets or, with None, deletes elements."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
    image.PatientName, image.PatientID = "Canary^Yellow", "CANARY"
    image.Rows, image.Columns = stored.shape[:2]
    image.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    image.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        image.PlanarConfiguration = 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    image.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    values = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    image.add_new("PixelData", "OW" if stored.dtype.itemsize == 2 else "OB", values + b"\0" * (len(values) % 2))
    for keyword, value in header.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path
