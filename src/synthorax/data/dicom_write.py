"""Synthetic images out as DICOM: Secondary Capture, marked as synthetic three times over, and without a word that names a patient.

An image that is derived from a patient's (`Study.derived_from_patient`) says so: no file that shows a patient says that there is none.
"""

from __future__ import annotations

import io
import math
import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from synthorax.data.derived import HOST_COLUMNS, INVERTED, PHOTOMETRIC
from synthorax.data.pixels import Pixels
from synthorax.errors import InputError
from synthorax.files import write_atomic
from synthorax.types import Study

Compression = Literal["none", "rle", "jpeg-ls", "jpeg-2000"]
COMPRESSIONS = {"none": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg-ls": JPEGLSLossless, "jpeg-2000": JPEG2000Lossless}
"""all of them give every pixel back exactly"""
PROVENANCE_COLUMNS = ("model", "model_digest", "seed", "plan_row", "sampler", "steps", "guidance", "condition")
"""what a synthetic row says of its making; other columns are not written, whatever they hold"""
INSERTION_COLUMNS = ("method", *HOST_COLUMNS)
"""what it says besides where a lesion was inserted into a generated image"""

_UID_NAMESPACE = uuid.UUID("2c0a3c5e-5d0b-5b43-9f0e-4e6a4f7f2b11")
"""arbitrary and fixed for good: it makes UIDs repeatable, and keeps them apart from those of other programs"""


def write_dicom(path: str | Path, image: Pixels, *, study: Study, provenance: Mapping[str, str], dataset_key: str,
                created: datetime | None = None, compression: Compression = "none", text_checked: bool = False) -> str:
    """Write a synthetic image [H, W], uint8 or uint16, as a DICOM file, whole or not at all, and return its SOP Instance UID.

    UIDs come from `dataset_key` (such as the data set's digest) and `study.file_name` alone: writing again gives the same ones.
    Of `study` only the requested view, sex and age are written, of `provenance` only `PROVENANCE_COLUMNS` and `INSERTION_COLUMNS`; never
    its source. `created` is when the image was made; without it the file has no dates and equal input gives equal bytes. `text_checked`
    says that somebody has looked for text in the picture and found none. Raises `InputError` for an image that is not synthetic.

    >>> study = Study(file_name="images/synthetic-000001.png", origin="synthetic", view="PA")
    >>> made_by = {"model": "cxr-64", "seed": "7"}
    >>> write_dicom("/tmp/image.dcm", np.zeros((4, 4), np.uint8), study=study, provenance=made_by, dataset_key="a")[:5]
    '2.25.'
    """
    if study.origin != "synthetic":
        raise InputError(f"'{study.file_name}' is a real image; only synthetic images are written as DICOM", file=path,
                         remedy="export the synthetic folder, or export as PNG")
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"an image of shape {image.shape} and type {image.dtype} cannot be written as DICOM", file=path)
    known = {name: provenance[name] for name in (*PROVENANCE_COLUMNS, *INSERTION_COLUMNS) if provenance.get(name)}
    radiograph = Dataset()
    radiograph.SpecificCharacterSet = "ISO_IR 192"
    _identify(radiograph, study, dataset_key)
    _date(radiograph, created)
    _declare_synthetic(radiograph, known, created, derived=study.derived_from_patient)
    if text_checked:  # absent means nobody looked: a generator that learned from images with markers may draw some
        radiograph.BurnedInAnnotation = "NO"
    _set_pixels(radiograph, image, inverted=study.extra.get(PHOTOMETRIC) == INVERTED)
    radiograph.file_meta = FileMetaDataset()
    radiograph.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if compression != "none":
        radiograph.compress(COMPRESSIONS[compression], generate_instance_uid=False)
    buffer = io.BytesIO()
    radiograph.save_as(buffer, enforce_file_format=True)
    write_atomic(Path(path), buffer.getvalue())
    return str(radiograph.SOPInstanceUID)


def uid_of(study: Study, *, dataset_key: str, keyword: str = "SOPInstanceUID") -> UID:
    """The UID that `write_dicom` gives an image: 2.25 and a name-based UUID (PS3.5 B.2), the same whenever and wherever asked."""
    return UID(f"2.25.{uuid.uuid5(_UID_NAMESPACE, f'{keyword} {dataset_key} {study.file_name}').int}")


def _identify(image: Dataset, study: Study, dataset_key: str) -> None:
    """A patient of its own for every image, so that nobody takes two for the same person."""
    name = uuid.uuid5(_UID_NAMESPACE, f"PatientID {dataset_key} {study.file_name}").hex[:12].upper()
    image.SOPClassUID = SecondaryCaptureImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(image, keyword, uid_of(study, dataset_key=dataset_key, keyword=keyword))
    image.PatientName = f"SYNTHETIC^{name}"
    image.PatientID = f"SYN-{name}"
    image.PatientBirthDate = ""
    image.PatientSex = study.sex if study.sex in ("M", "F") else ""
    if not math.isnan(study.age_years):
        image.PatientAge = f"{min(999, max(0, int(study.age_years))):03d}Y"
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = ("lesion inserted; derived from a patient; source kept apart" if study.derived_from_patient else
                                    "synthetic: no source patient; made by Synthorax")
    image.AccessionNumber = image.ReferringPhysicianName = image.PatientOrientation = ""
    image.StudyID = "1"
    image.SeriesNumber = image.InstanceNumber = 1
    image.Modality = "OT"  # no X-ray was taken
    image.BodyPartExamined = "CHEST"
    if study.view:
        image.ViewPosition = study.view


def _date(image: Dataset, created: datetime | None) -> None:
    image.StudyDate = image.ContentDate = f"{created:%Y%m%d}" if created else ""
    image.StudyTime = image.ContentTime = f"{created:%H%M%S}" if created else ""


def _declare_synthetic(image: Dataset, provenance: Mapping[str, str], created: datetime | None, *, derived: bool) -> None:
    image.SyntheticData = "YES"  # of some of the pixels is enough
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD" if derived else "SYN"
    image.SeriesDescription = "SYNTHETIC lesion in a patient's radiograph" if derived else "SYNTHETIC chest radiograph, not a patient"
    if not derived:  # of a patient's anatomy nobody can promise that
        image.RecognizableVisualFeatures = "NO"
    image.DerivationDescription = _fitting(
        "Synthetic lesion in the radiograph of a patient, whose anatomy it shows. For training and research." if derived else
        "Synthetic image, made by a generative model; not an image of a patient. For research.", 1024)
    image.ImageComments = _fitting("\n".join(f"{key}: {value}" for key, value in provenance.items()), 10240)
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109100", "DCM", "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = "Synthorax"
    equipment.ManufacturerModelName = _fitting(provenance.get("model", "not stated"), 64)
    equipment.SoftwareVersions = f"synthorax {version('synthorax')}"
    short = [f"{key} {provenance[key]}" for key in ("model_digest", "seed", "sampler", "steps") if key in provenance]
    made = "synthesis of one lesion" if derived else "synthesis of the whole image"
    equipment.ContributionDescription = _fitting(", ".join([made, *short]), 1024)
    if created:
        equipment.ContributionDateTime = f"{created:%Y%m%d%H%M%S%z}"
    image.ContributingEquipmentSequence = [equipment]


def _fitting(text: str, max_characters: int) -> str:
    """Text without characters that DICOM forbids; longer than its element allows is an error, as a cut would change its meaning."""
    text = re.sub(r"[\0-\x09\x0b-\x1f\x7f]", " ", text).replace("\\", "/" if max_characters <= 64 else "\\")
    if len(text) > max_characters:
        raise InputError(f"'{text[:40]}...' is longer than the {max_characters} characters that DICOM allows", remedy="shorten it")
    return text


def _set_pixels(radiograph: Dataset, image: Pixels, *, inverted: bool) -> None:
    """`inverted` stores low values for bright pixels, as the file did that the image was derived from; both look the same."""
    bits = 8 * image.dtype.itemsize
    image = (2**bits - 1 - image).astype(image.dtype) if inverted else image
    radiograph.SamplesPerPixel = 1
    radiograph.PhotometricInterpretation = INVERTED if inverted else "MONOCHROME2"
    radiograph.Rows, radiograph.Columns = image.shape
    radiograph.BitsAllocated = radiograph.BitsStored = bits
    radiograph.HighBit = bits - 1
    radiograph.PixelRepresentation = 0
    radiograph.WindowCenter, radiograph.WindowWidth = 2 ** (bits - 1), 2**bits  # PS3.3 C.11.2.1.2: full range, black to white
    radiograph.VOILUTFunction = "LINEAR"
    values = image.astype("<u2" if bits == 16 else np.uint8).tobytes()
    radiograph.add_new("PixelData", "OW" if bits == 16 else "OB", values + b"\0" * (len(values) % 2))
