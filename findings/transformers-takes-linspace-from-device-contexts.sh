#!/usr/bin/env bash
# After transformers has loaded one model, torch.linspace ignores `with torch.device(...)` for the rest of the process.
#
# Packages: torch 2.13.0, transformers 5.23.0
# Expected: `with torch.device("meta")` (or "cuda") places what torch.linspace makes, like torch.zeros and all other
#   factory functions, whatever was loaded before.
# Seen: In a fresh process it does. If the first use of a device context in the process is transformers' own, inside
#   from_pretrained, torch.linspace makes tensors on the CPU from then on, and the other factory functions do not.
#   transformers replaces torch.linspace for the time of the loading, and PyTorch remembers the factory functions that
#   it finds at the first use of a device context, so that it never learns of the real one.
# Why it matters: Noise schedules are linspaces. A diffusion model that is built under a device context mixes devices, or
#   silently computes its levels on another device, if a text encoder was loaded before, and not otherwise. State the
#   device of a schedule.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > loaded.py <<'PY'
import sys

import torch
from transformers import CLIPTextConfig, CLIPTextModel

if sys.argv[1] == "context first":
    with torch.device("cpu"):
        torch.zeros(1)
config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
CLIPTextModel(config).save_pretrained("model")
CLIPTextModel.from_pretrained("model")
with torch.device("meta"):
    print(torch.linspace(0, 1, 3).device, torch.zeros(1).device, torch.arange(3).device)
PY
for order in "model first" "context first"; do
  printf '%s: ' "$order" | tee -a seen.txt
  venv/bin/python loaded.py "$order" 2> /dev/null | tail -1 | tee -a seen.txt
done
grep -q '^model first: cpu meta meta$' seen.txt
grep -q '^context first: meta meta meta$' seen.txt
