#!/usr/bin/env bash
# torchmetrics' SSIM of one image changes with the images beside it.
#
# Packages: torchmetrics 1.9.0, torch 2.13.0
# Expected: StructuralSimilarityIndexMeasure() takes the range of the number format, 1.0, and scores each pair by
#   itself.
# Seen: Without data_range the range is that of the whole batch. A low-contrast pair (as of a lung field) scores far
#   lower alone than beside an image that holds black and white, and the mean over two updates differs from the mean over
#   one.
# Why it matters: Results depend on batch size and order. Give data_range, always.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
import torchmetrics
from torchmetrics.image import StructuralSimilarityIndexMeasure

print("torchmetrics", torchmetrics.__version__)
draw = torch.Generator().manual_seed(0)
flat = torch.rand(1, 1, 64, 64, generator=draw) * 0.05 + 0.5
noisy = flat + 0.01 * torch.randn(flat.shape, generator=draw)
contrasted = torch.rand(1, 1, 64, 64, generator=draw)
each = {"alone": StructuralSimilarityIndexMeasure(reduction="none")(noisy, flat).flatten()[0],
        "beside an image of full contrast": StructuralSimilarityIndexMeasure(reduction="none")(torch.cat([noisy, contrasted]), torch.cat([flat, contrasted]))[0],
        "alone, data_range=1": StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none")(noisy, flat).flatten()[0]}
for how, value in each.items():
    print(f"SSIM {how}: {float(value):.4f}")
alone, beside, stated = (float(value) for value in each.values())
assert beside - alone > 0.005 and abs(beside - stated) < 0.001
PY
