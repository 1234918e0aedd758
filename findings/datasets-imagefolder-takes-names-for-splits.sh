#!/usr/bin/env bash
# datasets' imagefolder drops the table and all other images if one file name holds a word such as test.
#
# Packages: datasets 5.2.0, pillow 13.0.0
# Expected: With a metadata.csv that lists every image, load_dataset('imagefolder', data_dir=...) gives these rows with
#   their columns.
# Seen: So it does, until one image is called e.g. images/chest_test_3.png: then the result is one split 'test' with
#   that one image and without any column of the table. The other images are left out without a warning. The words test,
#   train, val, dev, eval and their kin count where blanks, dots, dashes, underscores or digits stand around them, and as
#   folders.
# Why it matters: Names from hospitals and from public sets (Kermany's folders are called train and test) decide what is
#   loaded; labels vanish.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PY'
import os

os.environ["HF_HOME"] = os.path.abspath("cache")
import datasets
import numpy as np
from PIL import Image


def folder(name, files):
    """A folder of small images with a table that lists them."""
    os.makedirs(f"{name}/images")
    for number, file in enumerate(files):
        Image.fromarray(np.full((32, 32), 40 * number, np.uint8)).save(f"{name}/{file}")
    with open(f"{name}/metadata.csv", "w") as table:
        table.write("file_name,findings\n" + "".join(f"{file},Nodule\n" for file in files))
    return datasets.load_dataset("imagefolder", data_dir=os.path.abspath(name))


datasets.disable_progress_bars()
print("datasets", datasets.__version__)
plain = folder("plain", [f"images/chest_{number}.png" for number in range(4)])
named = folder("named", [*(f"images/chest_{number}.png" for number in range(3)), "images/chest_test_3.png"])
for name, found in (("plain names", plain), ("one name with 'test'", named)):
    print(f"{name}:", {split: (len(rows), rows.column_names) for split, rows in found.items()})
assert {split: len(rows) for split, rows in plain.items()} == {"train": 4} and plain["train"].column_names == ["image", "findings"]
assert {split: len(rows) for split, rows in named.items()} == {"test": 1} and named["test"].column_names == ["image"]
PY
