"""Ways to fine-tune a trained diffusion model: which of its groups of weights move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from synthorax.capabilities import Adaptable
from synthorax.errors import UsageError
from synthorax.families.denoising.model import FIRST, LAST
from synthorax.nets.lora import LowRank, add_low_rank, highest_rank, merge_low_rank

WAYS = {
    "full": "every weight moves",
    "lora": "low-rank updates of the network's inner layers, and the embeddings of the condition",
    "trunk": "norms, modulations, the last layers, and the embeddings of the condition; the trunk stays as it was",
}
MOVING = {"full": ("condition", "norms", "first", "last", "trunk"), "lora": ("condition",), "trunk": ("condition", "norms", "last")}
"""groups of weights, as `Adaptable.parameter_groups` names them, that are trained in each way"""


def adapt(model: nn.Module, way: str, *, rank: int, alpha: float) -> None:
    """Freeze what does not move in `way`, and for `lora` add the updates; call it once the base's weights are in `model`.

    Weights with columns for findings, sites or mask classes (`named_axes`) always move: new columns start fresh and must be learned.
    """
    if way == "full":
        return
    if not isinstance(model, Adaptable):
        raise UsageError(f"a {type(model).__name__} cannot be adapted by '{way}'")
    moving = moving_weights(model, way) | set(model.named_axes())
    if way == "lora":
        check_rank({name: weight.shape for name, weight in model.named_parameters()}, rank)
        add_low_rank(model, rank=rank, alpha=alpha, chosen=lambda name: _is_inner(f"{name}."))
    updates = {id(weight) for part in model.modules() if isinstance(part, LowRank) for weight in part.trained()}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in moving or id(weight) in updates)


def merge(model: nn.Module) -> None:
    """Put low-rank updates, if there are any, into the weights: the model then has the base's shape and needs no code of this file."""
    merge_low_rank(model)


def moving_weights(model: Adaptable, way: str) -> set[str]:
    """Names of the weights that are trained in `way`, beside low-rank updates. Raises UsageError for an unknown way."""
    if way not in MOVING:
        raise UsageError(f"unknown way to adapt '{way}'; choose from: {', '.join(WAYS)}")
    groups = model.parameter_groups()
    return {name for group in MOVING[way] for name in groups[group]}


def low_rank_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Layers that get an update, and the highest rank that each can have, from the names and shapes of a model's weights."""
    return {name.removesuffix(".weight"): highest_rank(shape) for name, shape in shapes.items()
            if _is_inner(name) and name.endswith(".weight") and len(shape) > 1}


def _is_inner(name: str) -> bool:
    """Whether a layer is of the network and not its first or last, which are too narrow for an update of low rank."""
    return name.startswith("network.") and not name.startswith((FIRST, LAST))


def check_rank(shapes: Mapping[str, Sequence[int]], rank: int) -> None:
    """Refuse a rank that some layer cannot have, with a UsageError that names the narrowest one."""
    layers = low_rank_layers(shapes)
    narrowest = min(layers, key=lambda name: layers[name])
    if rank > layers[narrowest]:
        raise UsageError(f"train.adapt_rank {rank} is larger than a layer: '{narrowest}' has a rank of {layers[narrowest]}; "
                         f"choose at most {layers[narrowest]}, better a quarter of it")
