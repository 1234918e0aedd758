"""Train the lung model that ships: a U-Net that outlines right lung, left lung and heart.

  python bench/release/train_lungs.py --outlined hannover/ --unlabelled nih/ kermany/ hannover/ --out lungs

First round: human lung masks, and drawn thoraces with exact lungs and hearts. Second round, from the first one's weights: also images
without masks, where the first round says the same of four variations of the image. Kill it at any time: the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from lung_images import SIZE_PX, OutlinedImages, draw_images, read_images, varied
from pseudo_lungs import pseudo_outlines

from synthorax.files import write_json
from synthorax.judges.lungs import STRUCTURES
from synthorax.judges.residual import initialise
from synthorax.judges.segmenter import SegmentationNetwork, Segmenter, SegmenterConfig, outline_loss, save_segmenter
from synthorax.training.checkpoint import Position, load_checkpoint, save_checkpoint

WIDTH = 12
LEARNING_RATE = 4e-3
BATCH = 12
TAKEN = {"nih": 4, "kermany": 2, "hannover": 1}
"""images of each source without masks in a batch of the second round"""
EMPHASIS = torch.ones(3)


def train(sources: dict[str, tuple[OutlinedImages, int]], *, out: Path, updates: int, seed: int,
          start: Path | None = None) -> SegmentationNetwork:
    """One round: each update takes so many images of every source, varied afresh; stopped, it goes on where it was."""
    network = SegmentationNetwork(num_classes=len(STRUCTURES), width=WIDTH, input_size=SIZE_PX)
    generator = torch.Generator().manual_seed(seed)
    initialise(network, head=network.head, bias=-2.0, generator=generator)
    if start is not None:
        load_checkpoint(start, modules={"network": network}, optimizers={})
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    position, _ = load_checkpoint(out, modules={"network": network}, optimizers={"adam": optimizer})
    began = time.monotonic()
    for step in range(position.step, updates):
        generator.manual_seed(seed * 1_000_003 + step)  # every update's draws are its own, whenever it is made
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / updates))
        parts = [(source, torch.randint(len(source.pixels), (num,), generator=generator).numpy()) for source, num in sources.values()]
        pixels, masks, stated = (torch.from_numpy(np.concatenate([getattr(source, name)[rows] for source, rows in parts]))
                                 for name in ("pixels", "masks", "stated"))
        images, targets = varied(pixels[:, None].float() / 255, masks.float(), generator=generator)
        logits = network(images.to(memory_format=torch.channels_last))
        loss = outline_loss(logits, targets, stated, EMPHASIS)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == updates:
            save_checkpoint(out, position=Position(step=step + 1, elapsed_seconds=time.monotonic() - began), modules={"network": network},
                            optimizers={"adam": optimizer})
            seconds = (time.monotonic() - began) / (step + 1 - position.step)
            print(f"{out.name} {step + 1} of {updates}: loss {loss.item():.3f}, {seconds:.2f} s an update", flush=True)
    return network.eval()


def write(network: SegmentationNetwork, path: Path, *, updates: int, thresholds: tuple[float, float, float]) -> None:
    """Write the network as a segmenter in float16."""
    config = SegmenterConfig(updates=updates, batch_size=BATCH, learning_rate=LEARNING_RATE, width=WIDTH, input_size=SIZE_PX)
    model = Segmenter(name=f"lungs-{SIZE_PX}px-w{WIDTH}", digest="", classes=STRUCTURES, thresholds=thresholds, image_size=SIZE_PX,
                      config=config, network=network)
    save_segmenter(path, model, half=True)


def _outlined(folder: Path, network: SegmentationNetwork, *, human: OutlinedImages, out: Path) -> tuple[OutlinedImages, dict[str, int]]:
    """The images of a folder that the first round outlines reliably, and how many were looked at; kept in `out` for the next call."""
    if not out.exists():
        images = read_images(folder, outlined=False)
        found, agreement = pseudo_outlines(images.take(np.flatnonzero([name not in human.names for name in images.names])), network)
        np.savez_compressed(out, pixels=found.pixels, masks=found.masks, stated=found.stated, names=found.names, patients=found.patients,
                            looked_at=agreement.looked_at)
    kept = np.load(out)
    images = OutlinedImages(pixels=kept["pixels"], masks=kept["masks"], stated=kept["stated"], names=tuple(kept["names"].tolist()),
                            patients=tuple(kept["patients"].tolist()))
    facts = {"looked_at": int(kept["looked_at"]), "lungs": len(images.names), "hearts": int(images.stated[:, 2].sum())}
    print(folder.name, facts, flush=True)
    return images, facts


def main() -> None:
    """Both rounds, each from where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outlined", type=Path, required=True, help="dataset folder with human lung masks")
    parser.add_argument("--unlabelled", type=Path, nargs="+", required=True,
                        help="dataset folders whose images are outlined by the first round")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, nargs=2, default=(900, 1300), help="of the first and the second round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    human, drawn = read_images(args.outlined, outlined=True), draw_images(400, seed=1)
    first = train({"human": (human, 6), "drawn": (drawn, 6)}, out=args.out / "first", updates=args.updates[0], seed=1)
    sources, facts = {"human": (human, 3), "drawn": (drawn, 2)}, {}
    for folder in args.unlabelled:
        found, facts[folder.name] = _outlined(folder, first, human=human, out=args.out / f"{folder.name}.npz")
        sources[folder.name] = (found, TAKEN[folder.name])
    second = train(sources, out=args.out / "second", updates=args.updates[1], seed=2, start=args.out / "first")
    write(second, args.out / "lungs.safetensors", updates=sum(args.updates), thresholds=(0.5, 0.5, 0.5))
    write_json(args.out / "facts.json", {"updates": list(args.updates), "outlined": len(human.names), "patients": len(set(human.patients)),
                                         "drawn": len(drawn.names), "unlabelled": facts})


if __name__ == "__main__":
    main()
