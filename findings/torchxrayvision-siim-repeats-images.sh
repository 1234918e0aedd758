#!/usr/bin/env bash
# torchxrayvision counts a SIIM image once for each outline, so one image is in training and test at a time.
#
# Packages: torchxrayvision 1.5.7, torch 2.13.0
# Expected: SIIM_Pneumothorax_Dataset has one item an image: 12,047, of which 2,669 show a pneumothorax;
#   unique_patients=True (the default) sees to that.
# Seen: It has one item a row of the outline table: 12,954 items, 3,576 of them positive. 624 images come 2 to 10 times,
#   `unique_patients` does nothing here.
# Why it matters: The prevalence rises from 22 to 28 %, and a random split puts the same image on both sides.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pandas==3.1.1 scikit-image==0.26.0 requests==2.34.2 imageio==2.38.1 pillow==13.0.0 tqdm==4.70.1 && venv/bin/pip install --quiet --no-deps --disable-pip-version-check torchxrayvision==1.5.7 torchvision==0.28.0
venv/bin/python - <<'PY'
import tempfile
import warnings

import torch

warnings.simplefilter("ignore")
try:
    import torchvision
except RuntimeError:  # built for another build of torch; none of its compiled operators is called here
    for name, signature in (("nms", "(Tensor dets, Tensor scores, float threshold) -> Tensor"), ("qnms", "(Tensor dets, Tensor scores, float threshold) -> Tensor")):
        torch.library.define(f"torchvision::{name}", signature)
import torchxrayvision

data = torchxrayvision.datasets.SIIM_Pneumothorax_Dataset(imgpath=tempfile.mkdtemp())
images = data.csv["ImageId"].nunique()
positive = data.csv.loc[data.labels[:, 0] == 1, "ImageId"]
print(f"{len(data)} items, {images} images; {len(positive)} positive items, {positive.nunique()} positive images")
assert (len(data), images, len(positive), positive.nunique()) == (12954, 12047, 3576, 2669)
PY
