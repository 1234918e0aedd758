"""Would another inference engine be faster? Each stage of a model as OpenVINO runs it beside PyTorch, one thread, processor time.

  pip install openvino
  python bench/speed/engines.py --model cxr-256 [--batch 1 2 16] [--rounds 9]
  ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python bench/speed/engines.py    # as on a processor with AVX2 alone

One network call each, in turn, without what is around it; medians in ms an image. The PSNR is that of the network's output to PyTorch's in
float32, its largest value being the peak. OpenVINO takes the limit on instructions from the same variable.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from synthorax.engine import started
from synthorax.families.denoising import openvino_network
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import Condition
from synthorax.steps.models.trained_model import open_model


def main() -> int:
    """One line a stage and a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cxr-256")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    trained = open_model(options.model)
    print("| stage | images | PyTorch fp32 | PyTorch bf16 | OpenVINO fp32 | OpenVINO bf16 | PSNR, dB |\n" + "|---" * 7 + "|")
    with started(threads=1) as engine:
        for number, stage in enumerate(trained.stages, start=1):
            network = stage.network
            assert isinstance(network, DiffusionModel)
            for batch in options.batch:
                print(line(f"{number}, {stage.spec.image_size} px", network, batch, rounds=options.rounds, bf16=engine.bf16), flush=True)
    return 0


def line(title: str, model: DiffusionModel, batch: int, *, rounds: int, bf16: bool) -> str:
    """A row of the table."""
    inputs = network_inputs(model, batch)
    ways: dict[str, Callable[[], Tensor]] = {"torch fp32": lambda: model.network(*inputs)}
    if bf16:
        def halved() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                made: Tensor = model.network(*inputs)
            return made

        ways["torch bf16"] = halved
    ways["openvino fp32"] = openvino(model.network, inputs, "f32")
    if bf16:
        ways["openvino bf16"] = openvino(model.network, inputs, "bf16")
    took: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        made = {name: call().float() for name, call in ways.items()}
        for _ in range(rounds):
            for name, call in ways.items():
                begin = time.process_time()
                call()
                took[name].append(1000 * (time.process_time() - begin) / batch)
    order = ("torch fp32", "torch bf16", "openvino fp32", "openvino bf16")
    cells = [f"{statistics.median(took[name]):.1f}" if name in took else "" for name in order]
    exact = made["torch fp32"]
    errors = {name: (made[name] - exact).square().mean() for name in order[1:] if name in made}
    nearness = [f"{10 * torch.log10(exact.abs().max() ** 2 / error):.0f}" for error in errors.values()]
    return f"| {title} | {batch} | {' | '.join(cells)} | {', '.join(nearness)} |"


def network_inputs(model: DiffusionModel, batch: int) -> list[Tensor]:
    """What the network is called with for images that state nothing."""
    spec, side = model.spec, model.config.image_size
    images = 0.3 * torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(0))
    condition = Condition.unstated(batch, num_labels=len(spec.findings), num_sites=len(spec.sites))
    if "image" in model.config.parts:
        condition = replace(condition, image=torch.cat([images / 2, torch.zeros_like(images)], dim=1))
    seen: list[Sequence[Any]] = []
    hook = model.network.register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.inference_mode(False), torch.no_grad():
        model.denoise(images, torch.full((batch,), 0.3), condition)
    hook.remove()
    return [one for one in seen[0] if one is not None]


def openvino(network: nn.Module, inputs: Sequence[Tensor], precision: str) -> Callable[[], Tensor]:
    """The network as OpenVINO compiles it for these shapes."""
    ov = openvino_network.openvino()

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    with torch.no_grad():
        converted = ov.convert_model(network, example_input=tuple(inputs), input=[list(one.shape) for one in inputs])
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    arrays = [one.numpy() for one in inputs]
    return lambda: torch.from_numpy(next(iter(request.infer(arrays, share_inputs=True).values())))


if __name__ == "__main__":
    sys.exit(main())
