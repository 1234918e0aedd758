"""How fast is our U-Net beside the same one of diffusers and of MONAI? A training step, a call of the network, and one image.

  python bench/studies/against_peers.py --out bench-peers [--size 64] [--threads 1] [--device cpu] [--rounds 9] [--steps 16]

Each contender is a library in a precision and a memory layout; "as it comes" is diffusers in float32 with channels first. All run in one
process, in turn, round after round. Given are the median and the shortest time, and how many times as long as ours the contender took:
the median over rounds, and the middle half of them. Weights are random, which changes no time. One image is made by our sampler in
--steps steps, and by the DDIM pipeline of diffusers in --peer-steps. Whether so few steps are as good is for `bench/speed/steps.py` to
say of a trained model: its images must differ from those of 50 steps by at most 5 % in KID. A library that is not installed is left out and
named. --clock cpu counts processor time, for machines that are busy with other work; take one thread then.
Writes peers.json and peers.md into --out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.engine import describe_machine, started
from synthorax.families.denoising.model import DiffusionConfig, DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.protocols import ModelSpec, SampleSettings
from synthorax.threads import available_cores

HEAD = 64
"""channels of an attention head"""
WHAT = ("training step", "network call", "one image")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do one of the three things."""

    what: str
    library: str
    precision: str
    layout: str
    run: Callable[[], object]


def main() -> int:
    """Time all, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--call-batch", type=int, default=1, help="images of a network call")
    parser.add_argument("--steps", type=int, default=16, help="of our sampler")
    parser.add_argument("--peer-steps", type=int, default=50, help="of the DDIM pipeline of diffusers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    with started(device=options.device, threads=options.threads) as engine:
        networks = dict(built(options))
        record: dict[str, Any] = {
            "machine": describe_machine(), "threads": options.threads, "clock": options.clock, "size": options.size,
            "batch": options.batch, "call_batch": options.call_batch, "rounds": options.rounds,
            "parameters": {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()},
            "not_installed": [name for name in ("diffusers", "monai") if name not in networks], "rows": []}
        ours = "bf16" if engine.bf16 else "fp32"
        for what in options.only:
            ways = [way for way in contenders(networks, options, device=engine.device, ours=ours) if way.what == what]
            record["rows"] += timed(ways, options, device=engine.device)
            print(what, file=sys.stderr, flush=True)
    write_json(options.out / "peers.json", record)
    write_atomic(options.out / "peers.md", table(record))
    print(table(record))
    return 0


def built(options: argparse.Namespace) -> Iterator[tuple[str, nn.Module]]:
    """The same U-Net of each library: levels, blocks, attention at the lowest level, scales and shifts by the embedding."""
    widths = [options.channels * multiplier for multiplier in options.multipliers]
    attends = [False] * (len(widths) - 1) + [True]
    groups = min(32, max(1, options.channels // 4))
    config = DiffusionConfig(image_size=options.size, parts=(), channels=options.channels, multipliers=tuple(options.multipliers),
                             blocks=options.blocks, attention=tuple(attends), patch=1, embedding=4 * options.channels)
    yield "ours", DiffusionModel(ModelSpec(family="diffusion", image_size=options.size, findings=(), conditions=(), config=asdict(config)))
    if installed("diffusers"):
        from diffusers import UNet2DModel

        yield "diffusers", UNet2DModel(
            sample_size=options.size, in_channels=1, out_channels=1, block_out_channels=widths, layers_per_block=options.blocks,
            down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)], norm_num_groups=groups,
            attention_head_dim=min(HEAD, widths[-1]), resnet_time_scale_shift="scale_shift")
    if installed("monai"):
        from monai.networks.nets import DiffusionModelUNet

        yield "monai", DiffusionModelUNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=widths, attention_levels=attends, num_res_blocks=options.blocks,
            norm_num_groups=groups, num_head_channels=min(HEAD, widths[-1]))


def installed(name: str) -> bool:
    """Whether there is such a package, rather than a mere folder of that name."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def contenders(networks: dict[str, nn.Module], options: argparse.Namespace, *, device: torch.device, ours: str) -> Iterator[Contender]:
    """Ours first, in the precision `ours` that it chooses itself, for each of the three things."""
    ways = [("ours", ours, "own"), *[("ours", "fp32", "own")] * (ours != "fp32")]
    for library in networks:
        if library != "ours":
            ways += [(library, "fp32", "channels first"), (library, "bf16", "channels first"), (library, "bf16", "channels last")]
    for library, precision, layout in ways:
        network = networks[library].to(device)
        forward: nn.Module = network.network if isinstance(network, DiffusionModel) else network  # type: ignore[assignment]
        kind = {"precision": precision, "layout": layout, "library": library}
        yield Contender(what="training step", run=training(network, forward, options, device=device, **kind), **kind)
        yield Contender(what="network call", run=calling(network, forward, options, device=device, **kind), **kind)
        if library != "monai":
            yield Contender(what="one image", run=sampling(network, options, device=device, **kind), **kind)


def answer_of(network: nn.Module, *, library: str, x: Tensor) -> Tensor:
    """The network's answer."""
    level = torch.full((len(x),), 10.0, device=x.device)
    answer = network(x, level, x.new_zeros(len(x), network.config.embedding)) if library == "ours" else network(x, level)
    made: Tensor = answer if isinstance(answer, Tensor) else answer.sample
    return made


@contextlib.contextmanager
def prepared(module: nn.Module, *, precision: str, layout: str, device: torch.device, training: bool) -> Iterator[None]:
    """Layout, mode and precision for one run, as no other contender notices."""
    module.train(training)
    module.to(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)  # type: ignore[call-overload]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def training(module: nn.Module, network: nn.Module, options: argparse.Namespace, *, device: torch.device, library: str, precision: str,
             layout: str) -> Callable[[], object]:
    """Forward, mean squared error, backward, gradient norm and a step of Adam."""
    x, target = torch.randn(2, options.batch, 1, options.size, options.size, device=device)
    weights = list(network.parameters())

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with prepared(module, precision=precision, layout=layout, device=device, training=True):
            loss = F.mse_loss(answer_of(network, library=library, x=laid(x, layout)).float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    optimizer = torch.optim.Adam(weights, lr=1e-5, fused=True)
    return run


def calling(module: nn.Module, network: nn.Module, options: argparse.Namespace, *, device: torch.device, library: str, precision: str,
            layout: str) -> Callable[[], object]:
    """The network once, without gradients."""
    x = torch.randn(options.call_batch, 1, options.size, options.size, device=device)

    def run() -> None:
        with torch.inference_mode(), prepared(module, precision=precision, layout=layout, device=device, training=False):
            answer_of(network, library=library, x=laid(x, layout))

    return run


def sampling(module: nn.Module, options: argparse.Namespace, *, device: torch.device, library: str, precision: str,
             layout: str) -> Callable[[], object]:
    """One image from noise."""
    if isinstance(module, DiffusionModel):
        model, settings = module, SampleSettings(steps=options.steps, guidance=1.0)

        def draw() -> object:
            return model.sample(None, [0], settings)
    else:
        from diffusers import DDIMPipeline, DDIMScheduler

        pipeline = DDIMPipeline(unet=module, scheduler=DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)

        def draw() -> object:
            return pipeline(batch_size=1, num_inference_steps=options.peer_steps, output_type="np")

    def run() -> None:
        with prepared(module, precision=precision, layout=layout, device=device, training=False):
            draw()

    return run


def laid(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels last" else x


def timed(ways: Sequence[Contender], options: argparse.Namespace, *, device: torch.device) -> list[dict[str, Any]]:
    """One row a contender; the first is what the others are compared with."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def seconds(way: Contender) -> float:
        start = clock()
        way.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    for way in ways:
        seconds(way)  # the first run of each also allocates and chooses algorithms
    rounds = [[seconds(way) for way in ways] for _ in range(options.rounds)]
    rows = []
    for number, way in enumerate(ways):
        mine, ratios = [times[number] for times in rounds], sorted(times[number] / times[0] for times in rounds)
        rows.append({"what": way.what, "library": way.library, "precision": way.precision, "layout": way.layout,
                     "median_ms": 1000 * statistics.median(mine), "shortest_ms": 1000 * min(mine),
                     "ratio": [statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]})
    return rows


def table(record: dict[str, Any]) -> str:
    """The rows in Markdown."""
    sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in record["parameters"].items())
    lines = [f"{record['size']} px, {record['rounds']} rounds, {record['clock']} time. Parameters: {sizes}. A training step has "
             f"{record['batch']} images, a network call {record['call_batch']}.",
             *(f"Left out, because it is not installed: {name}." for name in record["not_installed"]), "",
             "| | library | precision | layout | threads | median, ms | shortest, ms | times ours |", "|---" * 8 + "|"]
    for row in record["rows"]:
        middle, low, high = row["ratio"]
        lines.append(f"| {row['what']} | {row['library']} | {row['precision']} | {row['layout']} | {record['threads']} | "
                     f"{row['median_ms']:.1f} | {row['shortest_ms']:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
