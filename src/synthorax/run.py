"""A run folder: what one training leaves behind, and how its model is read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from synthorax.errors import InputError, SynthoraxError
from synthorax.files import read_with_digest, write_with_digest
from synthorax.protocols import ModelSpec

WEIGHTS_NAME = "model.safetensors"
METADATA_KEY = "synthorax"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A folder with config.toml, metrics.jsonl, checkpoints/, samples/ and, once training has ended, model.safetensors."""

    path: Path

    @property
    def weights(self) -> Path:
        """Where the finished model lies."""
        return self.path / WEIGHTS_NAME

    def __str__(self) -> str:
        return f"run {self.path} ({'finished' if self.weights.exists() else 'not finished'})"

    def to_dict(self) -> dict[str, Any]:
        """Paths and digest, JSON-ready."""
        return {"run": str(self.path), "weights": str(self.weights), "model_digest": weights_digest(self.weights)}


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold a folder for one process; a second one is told at once instead of spoiling the first one's files."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SynthoraxError(f"{folder} is in use by another process; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def save_model(path: Path, model: nn.Module, *, spec: ModelSpec, facts: Mapping[str, Any],
               precision: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write the weights of a model with everything needed to rebuild it, atomically, its SHA-256 beside it.

    `bf16` halves the file: kernels and matrices are rounded to bfloat16, while biases, norms and measured scales, which are few and
    matter more, stay as they are. Loading makes float32 of it again.
    """
    metadata = json.dumps({"spec": asdict(spec), **facts}, sort_keys=True)
    tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    if precision == "bf16":
        tensors = {key: value.bfloat16() if value.dtype == torch.float32 and value.ndim > 1 else value for key, value in tensors.items()}
    write_with_digest(path, save(tensors, {METADATA_KEY: metadata}))


def read_spec(path: Path) -> tuple[ModelSpec, dict[str, Any]]:
    """Spec and facts of a saved model. InputError if the file is not one of ours or not whole."""
    read_with_digest(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise InputError(f"is not a safetensors file ({error})", file=path) from error
    if metadata is None:
        raise InputError("is a safetensors file without a Synthorax model description", file=path)
    facts = json.loads(metadata)
    return ModelSpec.from_dict(facts.pop("spec")), facts


def weights_digest(path: Path) -> str:
    """SHA-256 of a model file: the name by which its images call it."""
    return hashlib.sha256(read_with_digest(path)).hexdigest()
