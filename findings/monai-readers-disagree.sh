#!/usr/bin/env bash
# Two readers of MONAI load one radiograph with opposite polarity, other axes and other spacing.
#
# Packages: monai 1.6.1, torch 2.13.0, itk 5.4.7, pydicom 3.0.2
# Expected: LoadImage gives the same array whichever reader is installed; MONOCHROME1 is either turned over or left
#   alone by both.
# Seen: With PydicomReader a MONOCHROME1 image keeps its stored values, has two axes and a spacing of 1.0; with
#   ITKReader the same file is turned over (4095 - stored), has three axes and the spacing of the detector. Both put
#   columns first, so a radiograph lies on its side.
# Why it matters: Bone is black or white according to which optional package is installed; a network trained with one is
#   useless with the other.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check monai==1.6.1 torch==2.13.0 itk==5.4.7 pydicom==3.0.2 numpy==2.4.6
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


import monai
import torch
from monai.transforms import LoadImage

print("monai", monai.__version__)
name = write("image.dcm", DX, photometric="MONOCHROME1", ImagerPixelSpacing=[0.2, 0.3])
seen = {reader: LoadImage(image_only=True, reader=reader)(name) for reader in ("PydicomReader", "ITKReader")}
for reader, image in seen.items():
    print(f"{reader}: shape {tuple(image.shape)}, first value {float(image.flatten()[0]):g}, spacing {[float(side) for side in image.pixdim]}")
by_pydicom, by_itk = seen["PydicomReader"], seen["ITKReader"]
stored = torch.as_tensor(STORED.astype(np.float32))
assert by_pydicom.shape == (32, 24) and by_itk.shape == (32, 24, 1), "columns come first in both, and one of them has three axes"
assert torch.equal(by_pydicom.as_tensor(), stored.T), "values as stored"
assert torch.equal(by_itk.as_tensor()[..., 0], 4095 - stored.T), "turned over"
assert [float(side) for side in by_pydicom.pixdim] == [1.0, 1.0]
assert [round(float(side), 6) for side in by_itk.pixdim][:2] == [0.3, 0.2]
PY
