"""Ways to adapt a trained diffusion model to other images: which of its weights move, as rules over their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from synthorax.errors import UsageError
from synthorax.nets.lora import add_low_rank, highest_rank, merge_low_rank

WAYS = {
    "full": "every weight moves",
    "lora": "low-rank updates of the network's inner layers, and what is conditioned on the condition",
    "trunk": "norms, modulations, the last layers, and what is conditioned on the condition; the trunk stays as it was",
}
ADAPTABLE = ("diffusion",)
"""families whose weights have the names of these rules"""
STARTABLE = (*ADAPTABLE, "gan", "spade-gan", "stylegan2")
"""families whose trainings can start from a trained model, all of whose weights then move"""
CONDITION_INPUTS = ("embeddings.", "text.", "text_parser.")
"""What is conditioned on the condition. The text encoder is among it because it learns from descriptions, of which there is no lack."""
ENDS = ("network.first.", "network.last.")
"""Layers from and to pixels or latents: too narrow for an update of low rank."""
_MODULATION = re.compile(r"\.(norm\w*|affine)\.")  # U-Net: norm, norm_in, norm_out, affine; transformer: affine, cross.norm
_LOW_RANK = (".reduce.weight", ".expand.weight")


def adapt(model: nn.Module, way: str, *, rank: int, alpha: float) -> None:
    """Freeze what does not move in `way`, and for `lora` add the updates; call it once the base's weights are in `model`.

    Weights with columns for findings, sites or mask classes (`named_axes`) always move: new columns start fresh and must be learned.
    """
    if way == "full":
        return
    named: Any = model.named_axes()  # type: ignore[operator]
    if way == "lora":
        check_rank({name: weight.shape for name, weight in model.named_parameters()}, rank)
        network: Any = model.network
        add_low_rank(network, rank=rank, alpha=alpha, chosen=lambda name: not f"network.{name}.".startswith(ENDS))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in named or moves(name, way))


def merge(model: nn.Module) -> None:
    """Put low-rank updates, if there are any, into the weights: the model then has the base's shape and needs no code of this file."""
    merge_low_rank(model)


def moves(name: str, way: str) -> bool:
    """Whether the weight of this name is trained.

    >>> [moves(f"network.blocks.3.{layer}.weight", "trunk") for layer in ("affine", "qkv")]
    [True, False]
    """
    if way == "full" or name.startswith(CONDITION_INPUTS):
        return True
    if way == "lora":
        return name.endswith(_LOW_RANK)
    if way == "trunk":
        return name.startswith("network.") and (name.startswith("network.last.") or bool(_MODULATION.search(name)))
    raise UsageError(f"unknown way to adapt '{way}'; choose from: {', '.join(WAYS)}")


def low_rank_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Layers that get an update, and the highest rank that each can have, from the names and shapes of a model's weights."""
    return {name.removesuffix(".weight"): highest_rank(shape) for name, shape in shapes.items()
            if name.startswith("network.") and not name.startswith(ENDS) and name.endswith(".weight") and len(shape) > 1}


def check_rank(shapes: Mapping[str, Sequence[int]], rank: int) -> None:
    """Refuse a rank that some layer cannot have, with a UsageError that names the narrowest one."""
    layers = low_rank_layers(shapes)
    narrowest = min(layers, key=lambda name: layers[name])
    if rank > layers[narrowest]:
        raise UsageError(f"train.adapt_rank {rank} is larger than a layer: '{narrowest}' has a rank of {layers[narrowest]}; "
                         f"choose at most {layers[narrowest]}, better a quarter of it")
