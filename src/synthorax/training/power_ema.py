"""Averages of the weights whose length is chosen after training: two running averages, snapshots of them, and least squares.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", Sec. 3 and Appendix C: an average whose memory
is a power of time grows with training, and a few stored ones combine into an average of any other length.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError
from synthorax.files import remove_temporaries, write_with_digest
from synthorax.former_names import with_present_facts
from synthorax.nets.lora import merge_low_rank

TRACKED = (0.05, 0.10)
"""relative lengths of the two running averages, those of the paper"""
LONGEST = 0.28
"""an average must be shorter than 1 / sqrt(12), where its power is 0 and it is a plain mean"""


def power_of(length: float) -> float:
    """The power gamma whose average has a relative length, its standard deviation in parts of training so far (Sec. 3.1 there).

    length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), which is a cubic equation in gamma with one root above -1.

    >>> round(power_of(0.10), 2), round(power_of(0.05), 2)
    (6.94, 16.97)
    """
    if not 0 < length <= LONGEST:
        raise UsageError(f"an average of relative length {length} is not possible; choose one above 0 and up to {LONGEST}")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def keep(gamma: float, *, now: int, step: int) -> float:
    """Part of the average that stays when it moves on by `step` images to `now` images: (1 - step / now)^(gamma + 1), Sec. 3.1 there."""
    return float((1 - step / now) ** (gamma + 1)) if now > step else 0.0


class PowerAverages:
    """The two running averages of a model in training; buffers are copied, not averaged."""

    def __init__(self, model: nn.Module) -> None:
        self.models = {f"average-{length:g}": copy.deepcopy(model).requires_grad_(False).eval() for length in TRACKED}
        self._powers = [power_of(length) for length in TRACKED]

    @torch.no_grad()
    def update(self, model: nn.Module, *, images_seen: int, images_in_step: int) -> None:
        """Move both averages towards `model` after a step that saw `images_in_step` images, `images_seen` in all."""
        for average, gamma in zip(self.models.values(), self._powers, strict=True):
            kept = keep(gamma, now=images_seen, step=images_in_step)
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 1 - kept)
            for copied, buffer in zip(average.buffers(), model.buffers(), strict=True):
                copied.copy_(buffer)

    def save(self, folder: Path, *, images: int, step: int, every: int, most: int) -> None:
        """Write a snapshot of both, low-rank updates merged; at most `most` moments and the newest one stay in the folder, evenly spaced.

        Which ones stay follows from the step alone: multiples of `every`, then of twice as much, and so on as training goes on.
        """
        for number, average in enumerate(self.models.values()):
            facts = {"images": images, "step": step, "gamma": self._powers[number]}
            merged = copy.deepcopy(average)
            merge_low_rank(merged)
            content = save({key: value.cpu().contiguous() for key, value in merged.state_dict().items()}, {"profile": json.dumps(facts)})
            write_with_digest(folder / f"snapshot-{step:08d}-{number}.safetensors", content)
        interval = every
        while step // interval > most:
            interval *= 2
        for path in folder.glob("snapshot-*.safetensors"):
            taken = int(path.name.split("-")[1])
            if taken > step or (taken != step and taken % interval):
                path.unlink()
                path.with_name(path.name + ".sha256").unlink(missing_ok=True)
        remove_temporaries(folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Which moments of training an average remembers: density (gamma + 1) t^gamma / end^(gamma + 1) for t in [0, end]."""

    gamma: float
    end: float
    """images seen when it was taken"""


def overlap(one: Profile, other: Profile) -> float:
    """Integral of the product of two profiles, in closed form (Appendix C there)."""
    first, last = sorted((one, other), key=lambda profile: profile.end)
    scale = (first.gamma + 1) * (last.gamma + 1) / (first.gamma + last.gamma + 1)
    return float(scale * (first.end / last.end) ** last.gamma / last.end)


def combination(stored: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Factors [N] of the stored averages whose sum is closest to the wanted profile in the mean square; they add up to 1.

    Sec. 3.2 there; the sum is a side condition of ours, so that weights which never moved come back as they are.
    """
    size = len(stored)
    system = np.ones((size + 1, size + 1))
    system[:size, :size] = [[overlap(one, other) for other in stored] for one in stored]
    system[size, size] = 0.0
    target = np.array([*(overlap(one, wanted) for one in stored), 1.0])
    scale = np.sqrt(np.append(system.diagonal()[:size], 1.0))  # profiles of all lengths count alike, which keeps digits
    factors = np.linalg.lstsq(system / scale / scale[:, None], target / scale, rcond=1e-14)[0] / scale
    return np.asarray(factors[:size], dtype=np.float64)


def profiles_in(folder: Path) -> dict[Path, Profile]:
    """The snapshots of a run, oldest first. InputError where there is none."""
    found = {}
    for path in sorted(folder.glob("snapshot-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                facts = with_present_facts(json.loads(file.metadata()["profile"]))
            found[path] = Profile(gamma=float(facts["gamma"]), end=float(facts["images"]))
        except (LookupError, SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"is not a snapshot of averages ({str(error)[:100]})", file=path, remedy="delete it") from error
    if not found:
        raise InputError("holds no snapshots of averages", file=folder, remedy="train with --set train.ema_snapshots=8")
    return found


def average_of(folder: Path, *, length: float, images: float | None = None) -> dict[str, Tensor]:
    """The weights averaged over a relative `length`, as they would be after `images` images, by default at the newest snapshot.

    Sums are in float64. Raises InputError where no snapshot is that late, because the future cannot be made from the past.
    """
    stored = profiles_in(folder)
    newest = max(profile.end for profile in stored.values())
    wanted = Profile(gamma=power_of(length), end=newest if images is None else images)
    if wanted.end > newest:
        raise InputError(f"the newest snapshot was taken after {newest:g} images, not {wanted.end:g}", file=folder, remedy="train on")
    factors = combination(list(stored.values()), wanted)
    total: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    for path, factor in zip(stored, factors.tolist(), strict=True):
        last = load_file(path)
        for key, value in last.items():
            if value.is_floating_point() and not math.isclose(factor, 0.0, abs_tol=1e-15):
                total[key] = total.get(key, torch.zeros(value.shape, dtype=torch.float64)) + factor * value.double()
    return {key: total[key].to(value.dtype) if key in total else value for key, value in last.items()}
