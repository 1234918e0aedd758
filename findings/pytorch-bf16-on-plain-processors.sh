#!/usr/bin/env bash
# PyTorch's bfloat16 autocast makes a convolution thirty times slower on a processor with AVX2 alone.
#
# Packages: torch 2.13.0
# Expected: autocast to bfloat16 is faster where the processor multiplies bfloat16, and about as fast as float32 elsewhere.
# Seen: A training step of one convolution takes 0.6 times the float32 time with AVX-512 BF16, twice that time with AVX-512
#   without BF16, and 34 times that time with AVX2, where oneDNN falls back to a reference kernel. Nothing warns.
# Why it matters: Laptops and many servers have AVX2 alone. A training that asks for bf16 there takes a day in place of an
#   hour. Ask /proc/cpuinfo for avx512_bf16 or amx_bf16 first, and remember that ONEDNN_MAX_CPU_ISA may switch them off.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > step.py <<'PY'
import time

import torch

torch.set_num_threads(1)
network, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(4, 64, 32, 32)


def seconds(bf16):
    """Processor time of one step, the mean of two after a first one."""
    for number in range(3):
        if number == 1:
            start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(images).float().square().mean().backward()
    return (time.process_time() - start) / 2


print(seconds(True) / seconds(False))
PY
ratio=$(ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 venv/bin/python step.py)
echo "torch 2.13.0, instruction sets limited to AVX2: bfloat16 takes $ratio times as long as float32"
venv/bin/python -c "assert $ratio > 5"
