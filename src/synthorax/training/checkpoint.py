"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from synthorax.config import read_record
from synthorax.errors import InputError
from synthorax.files import read_with_digest, remove_temporaries, safetensors_metadata, write_with_digest
from synthorax.former_names import with_present_facts, with_present_weights

KEEP = 2


@dataclass(kw_only=True, slots=True)
class Position:
    """How far a run is."""

    step: int = 0
    batches: int = 0
    images: int = 0
    elapsed_seconds: float = 0.0
    threads: int = 0
    """of the processor, where the training chose them; 0 where it did not"""


def save_checkpoint(folder: Path, *, position: Position, modules: Mapping[str, nn.Module],
                    optimizers: Mapping[str, torch.optim.Optimizer]) -> Path:
    """Write `checkpoint-<step>.safetensors` atomically with its SHA-256 beside it; all but the newest two are removed."""
    tensors: dict[str, Tensor] = {"random_state": torch.get_rng_state()}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
    path = folder / f"checkpoint-{position.step:08d}.safetensors"
    content = save({key: value.contiguous() for key, value in tensors.items()}, {"progress": json.dumps(asdict(position))})
    write_with_digest(path, content)
    for old in _newest_first(folder)[KEEP:]:
        old.unlink()
        old.with_name(old.name + ".sha256").unlink(missing_ok=True)
    remove_temporaries(folder)
    return path


def load_checkpoint(folder: Path, *, modules: Mapping[str, nn.Module],
                    optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[Position, list[str]]:
    """Restore the newest checkpoint that is whole, and say which were passed over; a fresh `Position` where there is none at all.

    InputError where all of them are damaged: to begin anew would throw the training's record away.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        try:
            content = read_with_digest(path)
            stated = with_present_facts(json.loads(safetensors_metadata(content, file=path)["progress"]))
            position = read_record(Position, stated, what="progress", where=path, remedy="")
            _restore(with_present_weights(load(content)), modules=modules, optimizers=optimizers)
        except InputError as error:
            damaged.append(str(error))
        except (LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            damaged.append(f"{path}: is not a checkpoint of this training ({' '.join(str(error).split())[:100]})")
        else:
            return position, damaged
    if damaged:
        raise InputError(f"no checkpoint is whole ({damaged[0]})", file=folder,
                         remedy="restore one of them with its .sha256, or delete this folder to begin anew")
    return Position(), damaged


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def _restore(tensors: dict[str, Tensor], *, modules: Mapping[str, nn.Module],
             optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    torch.set_rng_state(tensors["random_state"])
    for name, module in modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{name}/"):
                _, _, index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
