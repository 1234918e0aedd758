"""A run folder: what one training leaves behind, and how its model is read back."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from synthorax.config import build
from synthorax.errors import InputError
from synthorax.files import check_kind, json_object, read_verified, safetensors_metadata, write_with_digest
from synthorax.former_names import with_present_weights
from synthorax.protocols import ModelSpec

WEIGHTS_NAME = "model.safetensors"
SO_FAR_NAME = "so-far.safetensors"
METADATA_KEY = "synthorax"
FORMAT = 2
"""version of the model format; to be raised when older versions of synthorax would read a new file wrongly"""
DESCRIBED: dict[str, type] = {
    "format": int, "recipe": str, "settings": str, "sample": dict, "support": dict, "sources": list, "data": dict, "tool": str,
    "data_digest": str, "stages": list, "guide": dict}
"""types of what a model file says of itself beside its spec, where it says it"""
ANOTHER_COPY = "take another copy of the file, or train again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A folder with config.toml, metrics.jsonl, checkpoints/, samples/ and, once training has ended, model.safetensors."""

    path: Path

    @property
    def weights(self) -> Path:
        """Where the finished model lies."""
        return self.path / WEIGHTS_NAME

    @property
    def finished(self) -> bool:
        """Whether training has ended; one that goes on with other settings has not, though its earlier model is there."""
        return self.weights.exists() and not self.continued.exists()

    @property
    def continued(self) -> Path:
        """A note that the finished model is that of earlier settings, and that the training goes on with those of config.toml."""
        return self.path / "continued.json"

    @property
    def so_far(self) -> Path:
        """Where a paused training leaves its model."""
        return self.path / SO_FAR_NAME

    def __str__(self) -> str:
        if not self.finished:
            return f"run {self.path} (not finished)"
        facts = read_spec(self.weights)[1]
        known, seen = facts.get("data", {}).get("images"), facts.get("images_seen")
        how = f": {facts.get('steps', 0):,} steps, each of {known:,} images seen about {seen / known:.2g} times" if known and seen else ""
        return f"run {self.path} (finished{how})"

    def to_dict(self) -> dict[str, Any]:
        """Paths and digest, JSON-ready."""
        if not self.finished:
            return {"run": str(self.path), "finished": False}
        return {"run": str(self.path), "finished": True, "weights": str(self.weights), "model_digest": weights_digest(self.weights)}


def save_model(path: Path, model: nn.Module, *, spec: ModelSpec, facts: Mapping[str, Any],
               precision: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write the weights of a model with everything needed to rebuild it, atomically, its SHA-256 beside it.

    `bf16` halves the file. Loading makes float32 of it again.
    """
    weights = model.state_dict()
    save_weights(path, halve(weights, torch.bfloat16, file=path) if precision == "bf16" else weights, spec=spec, facts=facts)


def halve(weights: Mapping[str, Tensor], dtype: torch.dtype, *, file: Path) -> dict[str, Tensor]:
    """The weights with every matrix and kernel in `dtype`; biases, norms and measured scales, which are few and matter more, stay.

    Raises InputError where a number is too large for `dtype`.
    """
    small = {}
    for key, value in weights.items():
        small[key] = value.to(dtype) if value.is_floating_point() and value.ndim >= 2 else value
        if not torch.isfinite(small[key]).all():
            raise InputError(f"'{key}' holds numbers that are not finite in {dtype}", file=file, remedy="use bfloat16 or float32")
    return small


def save_weights(path: Path, weights: Mapping[str, Tensor], *, spec: ModelSpec, facts: Mapping[str, Any]) -> None:
    """`save_model` for weights that are not in a network, for instance because they are in half precision."""
    metadata = json.dumps({"spec": asdict(spec), "format": FORMAT, **facts}, sort_keys=True)
    tensors = {key: value.cpu().contiguous() for key, value in weights.items()}
    write_with_digest(path, save(tensors, {METADATA_KEY: metadata}))


class ModelFile:
    """A model file that was read and verified once: what it says of its model, and the weights in the bytes that were verified.

    The bytes are kept until the weights are made of them, when they are first asked for. So nothing that happens to the file later, and
    no second reading, can put other weights in their place.
    """

    def __init__(self, path: Path, content: bytes, *, digest: str) -> None:
        self.path, self.digest = path, digest
        self.spec, self.facts, self.format = _read_description(content, file=path)
        self._content = content
        self._weights: dict[str, Tensor] | None = None
        self._once = threading.Lock()

    @staticmethod
    def read(path: Path) -> ModelFile:
        """Read a file with its SHA-256 beside it. InputError if it is not one of ours, not whole, or of a newer format."""
        content, digest = read_verified(path)
        return ModelFile(path, content, digest=digest)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its weights, by the names that they have now. InputError where they are damaged."""
        with self._once:
            if self._weights is None:
                try:
                    weights = load(self._content)
                    self._weights = weights if self.format > 1 else with_present_weights(weights)
                except (SafetensorError, ValueError, KeyError) as error:
                    raise InputError(f"is not a safetensors file ({error})", file=self.path) from error
                self._content = b""
            return self._weights


def read_spec(path: Path) -> tuple[ModelSpec, dict[str, Any]]:
    """Spec and facts of a saved model. Raises as `ModelFile.read`."""
    file = ModelFile.read(path)
    return file.spec, file.facts


def weights_digest(path: Path) -> str:
    """SHA-256 of a model file: the name by which its images call it."""
    return read_verified(path)[1]


def _read_description(content: bytes, *, file: Path) -> tuple[ModelSpec, dict[str, Any], int]:
    metadata = safetensors_metadata(content, file=file).get(METADATA_KEY)
    if metadata is None:
        raise InputError("is a safetensors file without a Synthorax model description", file=file)
    facts = json_object(metadata, {"spec": dict}, where=file, remedy=ANOTHER_COPY)
    for key in DESCRIBED.keys() & facts.keys():
        check_kind(facts, key, DESCRIBED[key], where=file, remedy=ANOTHER_COPY)
    if not all(isinstance(source, dict) and isinstance(source.get("licence"), str) for source in facts.get("sources", ())):
        raise InputError("is damaged: a source without its licence", file=file, remedy=ANOTHER_COPY)
    if (written := facts.pop("format", 1)) > FORMAT:
        raise InputError(f"has model format {written}, and this version of synthorax reads up to {FORMAT}", file=file,
                         remedy="update synthorax")
    try:
        return build(ModelSpec, facts.pop("spec"), where="its description", prefix="spec"), facts, written
    except InputError as error:
        raise InputError(f"describes a model that this version of synthorax does not know ({error})", file=file,
                         remedy="use the version that wrote it" + (f", {facts['tool']}" if "tool" in facts else "")) from error
