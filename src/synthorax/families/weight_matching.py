"""Starting from a base model: weights whose columns mean findings, sites or mask classes are matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from synthorax.errors import UsageError

Names = tuple[int, Sequence[str]]
"""an axis, and what each of its entries means"""


class NamedWeights(Protocol):
    """A model that says which axes of its weights have a meaning by name."""

    def named_axes(self) -> dict[str, Names]:
        """Weights with an axis whose entries mean something by name: the axis and the names."""


def load_matching(model: nn.Module, base: nn.Module, *, what: str, optional: str | None = None) -> None:
    """Start from the weights of `base`, a model of the same class and shape, `what`; entries of named axes are matched by name.

    Weights whose name begins with `optional` stay what they are where the base lacks them. Raises UsageError for another class or shape.
    """
    if not isinstance(base, type(model)):
        raise UsageError(f"{what} can only start from another one")
    own, theirs = cast(NamedWeights, model), cast(NamedWeights, base)
    weights, given = model.state_dict(), base.state_dict()
    kept = {key: weight for key, weight in weights.items() if optional is not None and key.startswith(optional) and key not in given}
    model.load_state_dict(matched_weights(weights, {**given, **kept}, own_names=own.named_axes(), base_names=theirs.named_axes()))


def matched_weights(own: Mapping[str, Tensor], base: Mapping[str, Tensor], *, own_names: Mapping[str, Names],
            base_names: Mapping[str, Names]) -> dict[str, Tensor]:
    """A state dict with the base's weights; entries along named axes that the base lacks, or in which all its weights are 0, keep their own
    values.

    Raises UsageError where a weight is missing or has another shape.
    """
    result: dict[str, Tensor] = {}
    for key, weight in own.items():
        if key not in base:
            raise UsageError(f"the base model has another shape (it has no weight '{key}')")
        if key not in own_names:
            if base[key].shape != weight.shape:
                raise UsageError(f"the base model has another shape ('{key}' is {tuple(base[key].shape)} there, "
                                 f"{tuple(weight.shape)} here)")
            result[key] = base[key].clone()
            continue
        axis, names = own_names[key]
        result[key] = _matched(weight, base[key], axis=axis, own=list(names), base=list(base_names[key][1]), key=key)
    return result


def _matched(weight: Tensor, theirs: Tensor, *, axis: int, own: list[str], base: list[str], key: str) -> Tensor:
    if [*theirs.shape[:axis], len(own), *theirs.shape[axis + 1:]] != [*weight.shape] or theirs.shape[axis] != len(base):
        raise UsageError(f"the base model has another shape ('{key}')")
    result = weight.clone()
    for column, name in enumerate(own):
        if name in base and (weights := theirs.select(axis, base.index(name))).any():
            result.select(axis, column).copy_(weights)
    return result

