"""How the judges that are trained here are fitted: what they see of films, which films when, how these are varied, and the updates."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.engine import describe_machine
from synthorax.errors import TrainingError, UsageError

FilmArray = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingConfig:
    """What every judge that is trained here needs to know. The number of updates is fixed: no held-out film says when to stop."""

    updates: int = 600
    """number of optimiser steps"""
    batch_size: int = 32
    """films in one step"""
    learning_rate: float = 3e-3
    """peak of the one-cycle schedule"""
    weight_decay: float = 0.05
    """decoupled weight decay of AdamW, on convolution and linear weights only"""
    autocast: bool | None = None
    """train in bfloat16; None: where this machine computes it natively. Prediction is always float32"""
    device: str = "cpu"
    """torch device of the training; every random number is drawn on the CPU"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """How far a film is varied at most, in either direction. Never a left-right flip, which moves the heart."""

    degrees: float
    """rotation"""
    scale: float
    """part of the film's side"""
    shift: float
    """part of half the film's side"""
    contrast: float
    """part of the deviation of its pixels"""
    brightness: float
    """in deviations"""
    noise: float
    """deviation of the noise, in deviations"""


Config = TypeVar("Config", bound=FittingConfig)


def ready(config: Config) -> Config:
    """The config with `autocast` settled for this machine; UsageError where nothing can be trained with it."""
    if config.updates < 1 or config.batch_size < 2:
        raise UsageError(f"cannot train with {config.updates} updates of {config.batch_size} films; at least 1 of 2 are needed")
    return config if config.autocast is not None else replace(config, autocast=bool(describe_machine()["bf16"]))


def check_films(images: FilmArray) -> None:
    """UsageError unless these are square films [N, S, S] with 8 or 16 bits."""
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.dtype not in (np.uint8, np.uint16) or len(images) == 0:
        raise UsageError(f"films must be uint8 or uint16 [N, S, S] with N > 0, not {images.dtype} {list(images.shape)}")


def check_film_size(images: FilmArray, *, film_size: int, judge: str) -> None:
    """UsageError unless these are films as `check_films` wants them, of the size that the judge was trained on."""
    check_films(images)
    if images.shape[1] != film_size:
        raise UsageError(f"{judge} was trained on films of {film_size} px and got {images.shape[1]} px; prepare both at the same size")


def standardise(images: FilmArray, *, size: int) -> Tensor:
    """Films [B, S, S] -> float32 [B, 1, size, size], each with mean 0 and deviation 1, so that exposure matters less."""
    films = torch.from_numpy(images.astype(np.float32))[:, None] / np.iinfo(images.dtype).max
    if films.shape[-1] > size:
        films = F.interpolate(films, size=(size, size), mode="area")
    centre, spread = films.mean(dim=(1, 2, 3), keepdim=True), films.std(dim=(1, 2, 3), keepdim=True)
    return (films - centre) / spread.clamp_min(1e-3)


def vary(films: Tensor, *maps: Tensor, by: Variation, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standardised films [B, 1, S, S], a fresh draw for each; `maps` [B, M, S, S] move along and keep their values."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(films), generator=generator)

    angle, scale = torch.deg2rad(uniform(-by.degrees, by.degrees)), uniform(1 - by.scale, 1 + by.scale)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = uniform(-by.shift, by.shift), uniform(-by.shift, by.shift)
    matrix = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(films.shape), align_corners=False)
    moved, *carried = (F.grid_sample(part, grid, mode="bilinear", padding_mode="border", align_corners=False) for part in (films, *maps))
    contrast = uniform(1 - by.contrast, 1 + by.contrast).view(-1, 1, 1, 1)
    brightness = uniform(-by.brightness, by.brightness).view(-1, 1, 1, 1)
    return (moved * contrast + brightness + by.noise * torch.randn(films.shape, generator=generator), *carried)


def film_batches(num_films: int, film_weights: NDArray[np.floating] | None, *, config: FittingConfig,
                 seed: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers of each update's films. Every `num_films` draws hold each film as often as its weight says, give or take one.

    Systematic resampling: with equal weights an epoch is a plain shuffle, so weighted and unweighted arms differ in nothing
    else.
    """
    weights = np.ones(num_films) if film_weights is None else np.asarray(film_weights, dtype=np.float64)
    if weights.shape != (num_films,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise UsageError("film_weights must be one finite number of at least 0 for each film, not all 0")
    rng = np.random.default_rng(seed)
    edges = np.cumsum(weights) / weights.sum()
    waiting = np.empty(0, dtype=np.intp)
    for _ in range(config.updates):
        while len(waiting) < config.batch_size:
            points = (np.arange(num_films) + rng.random()) / num_films
            drawn = np.minimum(np.searchsorted(edges, points, side="right"), num_films - 1)
            waiting = np.concatenate([waiting, rng.permutation(drawn)])
        rows, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
        yield rows


def logits_of(network: nn.Module, films: Tensor, *, config: FittingConfig) -> Tensor:
    """What a network says of standardised films [B, 1, S, S] in training, float32, though it may compute in bfloat16."""
    films = films.to(device=config.device, memory_format=torch.channels_last)
    with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.autocast)):
        logits: Tensor = network(films)
    return logits.float()


def fit(network: nn.Module, loss_of: Callable[[NDArray[np.intp]], Tensor], *, batches: Iterable[NDArray[np.intp]], config: FittingConfig,
        judge: str, progress: Callable[[int, int], None] | None = None) -> tuple[float, ...]:
    """Train a network in place, by AdamW on a one-cycle schedule; returns the loss of every update.

    `loss_of(rows)` is the loss of the films in these rows, and `progress(done, total)` is called after every update. Raises
    TrainingError, which calls the network `judge`, when the loss is not a number.
    """
    network.to(device=config.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=config.learning_rate, total_steps=config.updates + 1)
    losses: list[float] = []
    for rows in batches:
        loss = loss_of(rows)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise TrainingError(f"the {judge}'s loss is {losses[-1]} at update {len(losses)}; lower learning_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(len(losses), config.updates)
    network.eval()
    return tuple(losses)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: maps this small gain little from a second one, and on a busy machine waiting for it costs far more.

    OpenMP keeps the number for each calling thread apart, so others are not slowed down.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network_digest(network: nn.Module, *, also: str = "") -> str:
    """SHA-256 of `also`, and of all weights and running statistics by their names."""
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
