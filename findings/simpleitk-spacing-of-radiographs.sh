#!/usr/bin/env bash
# SimpleITK ignores the calibrated pixel spacing of CR and DX images.
#
# Packages: SimpleITK 2.5.7, pydicom 3.0.2, numpy 2.4.6
# Expected: GetSpacing() is Pixel Spacing (0028,0030), the calibrated one, where an image has it, and Imager Pixel
#   Spacing (0018,1164) otherwise.
# Seen: Imager Pixel Spacing always wins, also beside a Pixel Spacing whose calibration type is stated; an image that
#   has nothing but Pixel Spacing gets 1.0 mm without a warning. The Estimated Radiographic Magnification Factor is not
#   used.
# Why it matters: Lesion sizes, heart sizes and resampling to a common spacing are wrong by the magnification, or by a
#   factor of six.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
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


import SimpleITK as sitk

print("SimpleITK", sitk.Version.VersionString(), sitk.Version.ITKVersionString())
CASES = {
    "CR, Imager Pixel Spacing 0.2": (CR, {"ImagerPixelSpacing": [0.2, 0.2]}, 0.2),
    "CR, Imager 0.2 and calibrated Pixel Spacing 0.15": (CR, {"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.15, 0.15]}, 0.2),
    "CR, Pixel Spacing 0.15 alone": (CR, {"PixelSpacing": [0.15, 0.15]}, 1.0),
    "DX, Imager 0.2, Pixel Spacing 0.15 calibrated by geometry": (
        DX, {"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.15, 0.15], "PixelSpacingCalibrationType": "GEOMETRY"}, 0.2),
    "DX, Pixel Spacing 0.15 alone": (DX, {"PixelSpacing": [0.15, 0.15]}, 1.0),
    "DX, Imager 0.2, magnified 1.25 times": (DX, {"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 1.25}, 0.2),
}
for name, (sop, elements, seen) in CASES.items():
    spacing = sitk.ReadImage(write("image.dcm", sop, **elements)).GetSpacing()[0]
    print(f"{name}: {spacing} mm")
    assert spacing == seen, (name, spacing, seen)
PY
