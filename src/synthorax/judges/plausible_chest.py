"""Is this a plausible frontal chest? A small network that learned real radiographs, and the same ones with anatomy that is wrong.

Outlines say where a model expects lungs to be, and pass over what it did not expect. This judge looks at the whole image instead. It names
the kind of failure that an image looks most like, of those that it was taught; others it may miss.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from synthorax.errors import InputError
from synthorax.files import read_with_digest, write_with_digest
from synthorax.judges.fitting import ImageArray, network_digest, one_thread
from synthorax.judges.lungs import model_inputs
from synthorax.judges.residual import ResidualBlock, convolution
from synthorax.zoo import judge_weights

MODEL_NAME = "plausible-chest"
"""of the model that ships, in the zoo's table of judges"""
IMAGE_SIZE = 64
WIDTHS = (12, 16, 32, 56, 64)
"""channels of the stem and of the four blocks"""
INTACT = "a frontal chest"
"""the first class"""
METADATA_KEY = "plausible_chest"


class ChestNetwork(nn.Module):
    """A stem and four residual blocks, from 64 px down to 4; mean and maximum of the last map give the classes.

    Two more channels tell each pixel its place, because a lung that is right in one place is wrong in another.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, WIDTHS[0], kernel=5, stride=2), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(
            ResidualBlock(before, after, stride=stride, shortcut=nn.Sequential(nn.AvgPool2d(stride), convolution(before, after, kernel=1)))
            for (before, after), stride in zip(itertools.pairwise(WIDTHS), (2, 2, 2, 1), strict=True)))
        self.head = nn.Linear(2 * WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> logits [B, K]."""
        axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        places = torch.stack([axis[None, :].expand(len(axis), -1), axis[:, None].expand(-1, len(axis))])
        maps = self.blocks(self.stem(torch.cat([images, places.expand(len(images), -1, -1, -1)], dim=1)))
        logits: Tensor = self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return logits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChestJudge:
    """The network and what its classes are called."""

    classes: tuple[str, ...]
    """`INTACT`, then the kinds of failure"""
    network: ChestNetwork
    digest: str
    """SHA-256 of the weights"""

    @property
    def name(self) -> str:
        """Name under which records list this judge."""
        return MODEL_NAME

    def odds(self, pixels: ImageArray) -> NDArray[np.float64]:
        """How much more images [N, H, W] look like each kind of failure than like a chest: natural logarithms of odds, [N, K - 1]."""
        logits = [torch.zeros(0, len(self.classes), dtype=torch.float64)]
        with one_thread(), torch.inference_mode():
            for start in range(0, len(pixels), 64):
                logits.append(self.network(model_inputs(pixels[start : start + 64], size=IMAGE_SIZE)).double())
        found = torch.cat(logits)
        return np.asarray((found[:, 1:] - found[:, :1]).numpy())


@functools.lru_cache(maxsize=4)
def load_chest_judge(path: str | Path | None = None) -> ChestJudge:
    """The judge that ships, or that of `path`. InputError where its file is none, or not whole."""
    chosen = judge_weights(MODEL_NAME) if path is None else Path(path)
    content = read_with_digest(chosen)
    try:
        with safe_open(chosen, framework="pt") as file:
            classes = tuple(json.loads((file.metadata() or {})[METADATA_KEY])["classes"])
        network = ChestNetwork(num_classes=len(classes))
        network.load_state_dict(load(content))
    except (LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"is not the file of a judge of chests ({' '.join(str(error).split())[:100]})", file=chosen,
                         remedy="take another copy, or train it again") from error
    return chest_judge(network, classes=classes)


def chest_judge(network: ChestNetwork, *, classes: tuple[str, ...]) -> ChestJudge:
    """A trained network as a judge."""
    network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return ChestJudge(classes=classes, network=network, digest=network_digest(network, also=repr(classes)))


def save_chest_judge(judge: ChestJudge, path: str | Path) -> None:
    """Write a judge in float16, with a `.sha256` file beside it; `load_chest_judge` reads it, and computes in float32."""
    weights = judge.network.state_dict()
    tensors = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in weights.items()}
    write_with_digest(Path(path), save(tensors, {METADATA_KEY: json.dumps({"classes": judge.classes})}))
