"""Device, threads, precision and processes: the only file that knows the distributed engine (PyTorch DDP)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from synthorax.errors import OutOfMemoryError, UsageError
from synthorax.threads import MAX_THREADS, Pace, available_cores

Device = Literal["auto", "cpu", "cuda"]
Inference = Literal["auto", "torch", "openvino"]
INFERENCE = "SYNTHORAX_INFERENCE"
"""Variable that says what runs networks at sampling where no option does."""
NATIVE_BF16 = frozenset({"amx_bf16", "avx512_bf16"})
"""What Linux calls the instructions with which x86 processors multiply bfloat16."""
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
"""Limits with which oneDNN multiplies bfloat16 by a reference kernel, eighty times as slowly as float32."""
NO_MEMORY = re.compile(r"can't allocate memory|could not create a (primitive|memory object)$")
"""How PyTorch and oneDNN say it on the processor; what oneDNN cannot compute at all, it calls a primitive descriptor."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What one process computes on, and how it agrees with the others that `torchrun` started."""

    device: torch.device
    bf16: bool
    """whether `autocast` uses bfloat16"""
    rank: int = 0
    world_size: int = 1
    most_threads: int = 0
    """threads among which trainings choose by measurement; 0 where the number is fixed"""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 where the processor multiplies it natively, float32 elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def pace(self, threads: int) -> Pace | None:
        """What chooses the number of threads of a training that has chosen `threads` before (0: none); None where the number is fixed."""
        return Pace(self.most_threads, apply=torch.set_num_threads, threads=threads) if self.most_threads > 1 else None

    def wrap(self, module: nn.Module, *, uses_all: bool) -> nn.Module:
        """The module with gradients averaged over all processes, or the module itself if there is one process only.

        `uses_all` says that every call uses every parameter; where it does not, unused ones are looked for in each backward pass.
        """
        if self.world_size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=not uses_all)

    def mean(self, value: Tensor) -> Tensor:
        """Average of a tensor over all processes."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def from_main(self, value: T) -> T:
        """The main process's value, on every process; for decisions that depend on its clock or its files."""
        if self.world_size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextlib.contextmanager
def started(*, device: Device = "auto", threads: int | None = None, precision: Literal["auto", "bf16", "fp32"] = "auto",
            seed: int = 0) -> Iterator[Engine]:
    """Set threads and every random state, join the processes of `torchrun` if it started this one, and leave them at the end.

    Without `threads` or the variable OMP_NUM_THREADS, trainings of one process on a CPU measure how many threads are fastest.
    Raises OutOfMemoryError where what is done inside finds no memory.
    """
    fixed = _fixed_threads(threads)
    torch.set_num_threads(fixed or available_cores())
    keep_freed_memory()
    seed_everything(seed)
    where = _device(device)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    measured = available_cores() if not fixed and where.type == "cpu" and world_size == 1 else 0
    if world_size > 1:
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(where)
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Engine(device=where, bf16=_bf16(where) if precision == "auto" else precision == "bf16",
                     rank=dist.get_rank() if world_size > 1 else 0, world_size=world_size, most_threads=measured)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _no_memory(error):
            raise
        raise OutOfMemoryError(f"not enough memory on {where.type} ({' '.join(str(error).split())[:120]}); what was finished is kept, and "
                               "the same command goes on: make batches smaller (train.batch_size, --batch-size), images smaller, or use "
                               "another device") from error
    finally:
        if world_size > 1:
            dist.destroy_process_group()


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that work can ask at a safe moment; a second one interrupts at once."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones, where the C library is glibc (see `man mallopt`).

    By default it gives that memory back to the system after each step and asks for it again, page by page: 6 to 14 % of a training step.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libc.so.6")
            for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**25)):
                library.mallopt(option, value)


def seed_everything(seed: int) -> None:
    """Set the global random states of Python, NumPy and PyTorch; only dropout uses them, all else draws from `rng`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from it
    torch.manual_seed(seed)


def _fixed_threads(threads: int | None) -> int:
    """How many threads the user asks for, in the call or by OMP_NUM_THREADS (the first number, if it is a list); 0 where nobody says."""
    named = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    fixed = int(named[1]) if named else 0
    if threads is not None:
        fixed = threads
    if threads == 0 or not 0 <= fixed <= MAX_THREADS:
        raise UsageError(f"{fixed} threads: choose from 1 to {MAX_THREADS}; this process may use {available_cores()} cores")
    return fixed


def _no_memory(error: RuntimeError) -> bool:
    """Whether PyTorch found no memory; on the processor it says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None


def _device(wish: Device) -> torch.device:
    if wish == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or see `synthorax doctor`")
    return torch.device("cuda" if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()) else "cpu")


def _bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    limit = next((os.environ[name] for name in ISA_LIMITS if name in os.environ), "")  # oneDNN asks in this order
    native = not NATIVE_BF16.isdisjoint(_cpuinfo().split())  # other processors are no faster with it, and lose digits
    return native and limit.upper() not in WITHOUT_BF16


def _cpuinfo() -> str:
    """What Linux tells of its processors; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def asked_inference(option: Inference | None = None) -> Inference:
    """What is to run networks at sampling: as the option says, else the variable SYNTHORAX_INFERENCE, else auto.

    Raises UsageError for what is no engine, and for OpenVINO where it is not installed.
    """
    asked = option or os.environ.get(INFERENCE, "").strip().lower() or "auto"
    said_by = "--inference" if option else INFERENCE
    if asked not in get_args(Inference):
        raise UsageError(f"{said_by} '{asked}': choose auto, torch or openvino")
    if asked == "openvino" and not has_openvino():
        raise UsageError(f"{said_by} openvino: OpenVINO is not installed; pip install \"synthorax[fast]\"")
    return cast(Inference, asked)


def has_openvino() -> bool:
    """Whether OpenVINO is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def inference_name(inference: Literal["torch", "openvino"]) -> str:
    """What runs networks, with its version, as data sets record it."""
    return f"{inference} {importlib.metadata.version(inference)}"


def processor() -> str:
    """The processor's name."""
    named = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), flags=re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Versions, cores, precision, devices, and what runs networks at sampling, for `synthorax doctor`."""
    device = _device("auto")
    asked = asked_inference()
    fast = asked != "torch" and has_openvino() and device.type == "cpu"
    facts: dict[str, Any] = {"torch": torch.__version__, "processor": processor(), "cores": available_cores(), "device": str(device),
                             "bf16": _bf16(device), "inference": inference_name("openvino") if fast else "torch"}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
