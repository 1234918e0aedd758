"""Feature spaces of others: a TorchScript or ONNX file by its path, and torchxrayvision by name where it is installed.

A `.json` of the same stem beside a file says what its network was trained to see: `input_px` (224), `channels` (3 or 1), `low` and
`high` (0 and 1: the grey range), `mean` and `std` (one number a channel, subtracted and divided by after that).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthorax.errors import InputError, UsageError
from synthorax.files import sha256

BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class InputContract:
    """What a network wants to see; part of what is measured, so the digest covers it."""

    input_px: int = 224
    channels: int = 3
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def prepare(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> Tensor:
        """Images [B, S, S] -> float32 [B, C, P, P]."""
        grey = torch.from_numpy(images.astype(np.float32) / np.iinfo(images.dtype).max)[:, None]
        if grey.shape[-1] != self.input_px or grey.shape[-2] != self.input_px:
            grey = functional.interpolate(grey, (self.input_px, self.input_px), mode="bicubic", antialias=True)
        inputs = (grey.clamp(0, 1) * (self.high - self.low) + self.low).expand(-1, self.channels, -1, -1)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (inputs - mean) / std


class ForeignFeatures:
    """A feature space around somebody's network: images in, one vector an image out; maps [B, F, h, w] are averaged over the image."""

    def __init__(self, *, name: str, digest: str, contract: InputContract, network: Callable[[Tensor], Tensor]) -> None:
        """`network` takes float32 [B, C, P, P]."""
        self.name, self._contract, self._network, self.input_px = name, contract, network, contract.input_px
        self.digest = hashlib.sha256(f"{digest} {contract}".encode()).hexdigest()
        self.num_features = self(np.zeros((1, 32, 32), dtype=np.uint8)).shape[1]

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Features [N, F] of images [N, S, S]."""
        if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16):
            raise InputError(f"features need images [N, S, S] of uint8 or uint16, got {images.dtype} {images.shape}")
        parts = []
        with torch.inference_mode():
            for start in range(0, max(1, len(images)), BATCH):
                seen = self._network(self._contract.prepare(images[start : start + BATCH])).float()
                if seen.ndim == 4:
                    seen = seen.mean(dim=(2, 3))
                if seen.ndim != 2 or not bool(torch.isfinite(seen).all()):
                    raise InputError(f"the network '{self.name}' gives {tuple(seen.shape)} or numbers that are not finite",
                                     remedy="export a network that gives one vector [B, F] an image")
                parts.append(seen)
        return np.asarray(torch.cat(parts).numpy())


def from_file(path: str | Path) -> ForeignFeatures:
    """A TorchScript (`.pt`, `.ts`) or ONNX (`.onnx`) file. A TorchScript file is a program: give only files that you trust."""
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file", file=path, remedy="give the path of a TorchScript or ONNX file")
    contract = _contract(path.with_suffix(".json"))
    load = _onnx if path.suffix == ".onnx" else _torchscript
    return ForeignFeatures(name=path.stem, digest=sha256(path), contract=contract, network=load(path))


def torchxrayvision(weights: str) -> ForeignFeatures:
    """DenseNet features of torchxrayvision (Cohen et al. 2022) by the name of its weights; it fetches them by itself."""
    if importlib.util.find_spec("torchxrayvision") is None:
        raise UsageError("this feature space needs torchxrayvision; pip install torchxrayvision")
    library: Any = importlib.import_module("torchxrayvision")
    model = library.models.DenseNet(weights=weights).eval()
    contract = InputContract(channels=1, low=-1024.0, high=1024.0, mean=(0.0,), std=(1.0,))
    parts = b"".join(value.detach().cpu().numpy().tobytes() for value in model.state_dict().values())
    return ForeignFeatures(name=f"torchxrayvision-{weights}", digest=hashlib.sha256(parts).hexdigest(), contract=contract,
                           network=model.features)


def _contract(path: Path) -> InputContract:
    if not path.is_file():
        return InputContract()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        channels = int(told.get("channels", 3))
        usual = InputContract() if channels == 3 else InputContract(channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        contract = InputContract(input_px=int(told.get("input_px", 224)), channels=channels, low=float(told.get("low", 0)),
                                 high=float(told.get("high", 1)), mean=tuple(map(float, told.get("mean", usual.mean))),
                                 std=tuple(map(float, told.get("std", usual.std))))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"is no input contract ({error})", file=path) from error
    if len(contract.mean) != channels or len(contract.std) != channels or min(contract.std) <= 0 or contract.input_px < 1:
        raise InputError(f"mean and std need {channels} numbers each, std above 0", file=path)
    return contract


def _torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what others have saved, whatever its future
            module: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"is no TorchScript file ({str(error).splitlines()[0]})", file=path) from error
    return lambda images: module(images)


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError("ONNX files need onnxruntime; pip install 'synthorax[onnx]'")
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(np.asarray(session.run(None, {entry: images.numpy()})[0]))
