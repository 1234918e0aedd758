"""The U-Nets of diffusion models run by OpenVINO in place of PyTorch, for sampling on a CPU: the same images but for rounding, sooner.

Images are computed in pairs, each pair on one thread. A pair is always full, so that an image is the same to the bit whatever is made with
it and on however many threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax import nets
from synthorax.engine import processor
from synthorax.errors import UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.files import write_atomic
from synthorax.nets.text import PAD_TO
from synthorax.nets.unet import UNet

TELEMETRY = "openvino_telemetry"
PAIR = 2
"""Images that are computed together: a pair takes three quarters of the time of two single ones."""
KEPT = 4
"""networks kept ready in memory"""
_ready: dict[str, OpenVinoNetwork] = {}


@contextlib.contextmanager
def run_by_openvino(model: nn.Module, *, bf16: bool, threads: int, cache: Path, prepare: bool = True) -> Iterator[None]:
    """Inside, every diffusion model in `model` samples through OpenVINO; what needs gradients still runs in PyTorch.

    `bf16` says whether to compute in bfloat16; `cache` is the folder in which compiled networks are kept, since compiling takes seconds.
    Raises UsageError where a network cannot run so; with `prepare` before anything is sampled.
    """
    models = diffusion_models(model)
    if not models:
        raise UsageError("OpenVINO runs diffusion models alone, and this is none")
    for one in models:
        if not isinstance(one.network, UNet) or one.network.config.dims != 2:
            raise UsageError("OpenVINO runs U-Nets of images, and this model has another network")
    try:
        for one in models:
            assert isinstance(one.network, UNet)
            one.substitute = network = _network(one.network, bf16=bf16, threads=threads, cache=cache)
            one.embedded_rows = {}
            if prepare:
                network.prepare(side=one.latent_shape[1] // (1 if one.bands is None else 2), maps=one.needs_image)
        yield
    finally:
        for one in models:
            one.substitute = one.embedded_rows = None


def diffusion_models(model: nn.Module) -> list[DiffusionModel]:
    """All diffusion models in a model: itself, or the stages and the guide of a cascade."""
    return [part for part in model.modules() if isinstance(part, DiffusionModel)]


class OpenVinoNetwork:
    """A U-Net as OpenVINO compiles it, called like the U-Net itself, without gradients; compiled once for each shape of a pair."""

    def __init__(self, network: UNet, *, key: str, bf16: bool, threads: int, cache: Path) -> None:
        self.network, self.key, self.cache, self.streams = network, key, cache, threads
        self.settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                         "ENABLE_CPU_PINNING": False}
        last = network.last[-1]
        assert isinstance(last, nn.Conv2d)
        self._channels = last.out_channels
        self._requests: dict[tuple[tuple[int, ...], ...], list[Any]] = {}

    def prepare(self, *, side: int, maps: bool) -> None:
        """Compile for an image of this side, with maps of a condition or without, and for the shortest text. Raises as `__call__`."""
        config, patch = self.network.config, self.network.config.patch**2
        channels = (self.network.maps.stop if maps else self.network.maps.start) // patch
        shapes = [(PAIR, channels, side, side), (PAIR,), (PAIR, config.embedding)]
        self._compiled((*shapes, *([(PAIR, PAD_TO, config.context), (PAIR, PAD_TO)] if config.context else [])))

    def __call__(self, x: Tensor, noise_level: Tensor, embedding: Tensor, context: Tensor | None = None,
                 context_stated: Tensor | None = None) -> Tensor:
        """As `UNet.forward`, [B, C, H, W] float32. Raises UsageError where OpenVINO cannot compile the network."""
        rows = [self._row(number, x, noise_level, embedding, context, context_stated) for number in range(len(x))]
        made = torch.empty(len(x), self._channels // self.network.config.patch**2, *x.shape[2:])
        shapes = [tuple(part.shape for part in row) for row in rows]
        for shape in dict.fromkeys(shapes):
            requests = self._compiled(tuple((PAIR, *rest) for _, *rest in shape))
            numbers = [number for number, own in enumerate(shapes) if own == shape]
            pairs = [numbers[first: first + PAIR] for first in range(0, len(numbers), PAIR)]
            for first in range(0, len(pairs), len(requests)):
                running = []
                for pair, request in zip(pairs[first: first + len(requests)], requests, strict=False):
                    full = [pair[0]] * (PAIR - len(pair)) + pair
                    inputs = {place: np.concatenate([rows[number][place] for number in full]) for place in range(len(shape))}
                    request.start_async(inputs, share_inputs=True)
                    running.append((pair, request, inputs))  # which keeps the inputs in memory
                for pair, request, _ in running:
                    request.wait()
                    made[pair] = torch.from_numpy(np.array(request.get_output_tensor().data, dtype=np.float32)[-len(pair):])
        return made

    def _row(self, number: int, x: Tensor, noise_level: Tensor, embedding: Tensor, context: Tensor | None,
             context_stated: Tensor | None) -> list[NDArray[Any]]:
        """The inputs of one image; what other images of the batch state leaves no trace in their shapes."""
        image = x[number: number + 1]
        latent = self.network.maps.start // self.network.config.patch**2
        if image.shape[1] > latent and not bool(image[:, latent:].any()):  # see `UNet`: maps of 0 may be left out
            image = image[:, :latent]
        parts = [image.float(), noise_level[number: number + 1].float(), embedding[number: number + 1].float()]
        if context is not None and context_stated is not None:
            length = PAD_TO * -(-max(1, int(context_stated[number].sum())) // PAD_TO)
            parts += [context[number: number + 1, :length].float(), context_stated[number: number + 1, :length]]
        return [part.numpy() for part in parts]

    def _compiled(self, shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
        """Requests for pairs of these shapes, one a thread."""
        shapes = tuple(map(tuple, shapes))
        if shapes not in self._requests:
            try:
                compiled = self._stored(shapes) or self._converted(shapes)
            except Exception as error:  # of PyTorch's tracing or of OpenVINO, which have no common class
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise UsageError(f"OpenVINO cannot run this network ({reason}); sample with --inference torch") from error
            self._requests[shapes] = [compiled.create_infer_request() for _ in range(self.streams)]
        return self._requests[shapes]

    def _stored(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """What was compiled before, or None; a file that OpenVINO does not take is compiled anew."""
        path = self._path(shapes)
        if not path.is_file():
            return None
        try:
            return self._imported(path.read_bytes())
        except (OSError, RuntimeError):
            return None

    def _imported(self, blob: bytes) -> Any:
        return openvino().Core().import_model(io.BytesIO(blob), "CPU", self.settings)

    def _converted(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        runtime = openvino()
        example = [torch.zeros(shape) if number < 4 else torch.ones(shape, dtype=torch.bool) for number, shape in enumerate(shapes)]
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # tracing warns of every shape that it takes for a constant, as these are
            model = runtime.convert_model(self.network, example_input=tuple(example), input=[list(shape) for shape in shapes])
        stream = io.BytesIO()
        runtime.Core().compile_model(model, "CPU", self.settings).export_model(stream)
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_atomic(self._path(shapes), stream.getvalue())
        return self._imported(stream.getvalue())  # what was just compiled can round otherwise than what comes back from a file

    def _path(self, shapes: tuple[tuple[int, ...], ...]) -> Path:
        return self.cache / f"{hashlib.sha256(f'{self.key} {shapes}'.encode()).hexdigest()[:32]}.blob"


def openvino() -> Any:
    """The package, imported without its telemetry, which tells its makers of each import: findings/openvino-reports-its-import.sh."""
    if "openvino" in sys.modules or TELEMETRY in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it then fails, and OpenVINO goes on without
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[TELEMETRY]


def _network(network: UNet, *, bf16: bool, threads: int, cache: Path) -> OpenVinoNetwork:
    """The compiled network of these weights, kept from the last time where it is the same."""
    facts = {"weights": _weights_digest(network), "config": asdict(network.config), "code": _code_digest(), "bf16": bf16,
             "threads": threads, "openvino": importlib.metadata.version("openvino"), "torch": torch.__version__,
             "limit": os.environ.get("ONEDNN_MAX_CPU_ISA", ""), "processor": processor()}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if key not in _ready:
        while len(_ready) >= KEPT:
            del _ready[next(iter(_ready))]
        _ready[key] = OpenVinoNetwork(network, key=key, bf16=bf16, threads=threads, cache=cache)
    return _ready[key]


def _weights_digest(network: nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _code_digest() -> str:
    """Of the networks' source: a network that is written otherwise is compiled anew."""
    folder = Path(next(iter(nets.__path__)))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()
