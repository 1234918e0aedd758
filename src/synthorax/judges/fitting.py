"""How the judges that are trained here are fitted: what they see of images, which images when, how these are varied, and the updates."""

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
from synthorax.judges.config import FittingConfig as FittingConfig
from synthorax.nets.affine import affine_matrix, resample
from synthorax.progress import Progress, quiet

ImageArray = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """How far an image is varied at most, in either direction. Never a left-right flip, which moves the heart."""

    degrees: float
    """rotation"""
    scale: float
    """part of the image's side"""
    shift: float
    """part of half the image's side"""
    contrast: float
    """part of the standard deviation of its pixels"""
    brightness: float
    """in standard deviations"""
    noise: float
    """standard deviation of the noise, in standard deviations"""


Config = TypeVar("Config", bound=FittingConfig)


def ready(config: Config) -> Config:
    """The config with `autocast` settled for this machine; UsageError where nothing can be trained with it."""
    if config.updates < 1 or config.batch_size < 2:
        raise UsageError(f"cannot train with {config.updates} updates of {config.batch_size} images; at least 1 of 2 are needed")
    return config if config.autocast is not None else replace(config, autocast=bool(describe_machine()["bf16"]))


def check_images(images: ImageArray) -> None:
    """UsageError unless these are square images [N, S, S] with 8 or 16 bits."""
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.dtype not in (np.uint8, np.uint16) or len(images) == 0:
        raise UsageError(f"images must be uint8 or uint16 [N, S, S] with N > 0, not {images.dtype} {list(images.shape)}")


def check_image_size(images: ImageArray, *, image_size: int, judge: str) -> None:
    """UsageError unless these are images as `check_images` wants them, of the size that the judge was trained on."""
    check_images(images)
    if images.shape[1] != image_size:
        raise UsageError(f"{judge} was trained on images of {image_size} px and got {images.shape[1]} px; prepare both at the same size")


def standardise(images: ImageArray, *, size: int) -> Tensor:
    """Images [B, S, S] -> float32 [B, 1, size, size], each with mean 0 and standard deviation 1, so that exposure matters less."""
    inputs = torch.from_numpy(images.astype(np.float32))[:, None] / np.iinfo(images.dtype).max
    if inputs.shape[-1] > size:
        inputs = F.interpolate(inputs, size=(size, size), mode="area")
    centre, spread = inputs.mean(dim=(1, 2, 3), keepdim=True), inputs.std(dim=(1, 2, 3), keepdim=True)
    return (inputs - centre) / spread.clamp_min(1e-3)


def vary(images: Tensor, *maps: Tensor, by: Variation, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standardised images [B, 1, S, S], a fresh draw for each; `maps` [B, M, S, S] move along and keep their values."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    angle, scale = torch.deg2rad(uniform(-by.degrees, by.degrees)), uniform(1 - by.scale, 1 + by.scale)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = uniform(-by.shift, by.shift), uniform(-by.shift, by.shift)
    matrix = affine_matrix(cosine, sine, torch.stack([shift_x, shift_y], dim=1))
    moved, *carried = (resample(part, matrix, padding="border") for part in (images, *maps))
    contrast = uniform(1 - by.contrast, 1 + by.contrast).view(-1, 1, 1, 1)
    brightness = uniform(-by.brightness, by.brightness).view(-1, 1, 1, 1)
    return (moved * contrast + brightness + by.noise * torch.randn(images.shape, generator=generator), *carried)


def image_batches(num_images: int, image_weights: NDArray[np.floating] | None, *, config: FittingConfig,
                 seed: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers of each update's images. Every `num_images` draws hold each image as often as its weight says, give or take one.

    Systematic resampling: with equal weights an epoch is a plain shuffle, so weighted and unweighted arms differ in nothing
    else.
    """
    weights = np.ones(num_images) if image_weights is None else np.asarray(image_weights, dtype=np.float64)
    if weights.shape != (num_images,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise UsageError("image_weights must be one finite number of at least 0 for each image, not all 0")
    rng = np.random.default_rng(seed)
    edges = np.cumsum(weights) / weights.sum()
    waiting = np.empty(0, dtype=np.intp)
    for _ in range(config.updates):
        while len(waiting) < config.batch_size:
            points = (np.arange(num_images) + rng.random()) / num_images
            drawn = np.minimum(np.searchsorted(edges, points, side="right"), num_images - 1)
            waiting = np.concatenate([waiting, rng.permutation(drawn)])
        rows, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
        yield rows


def logits_of(network: nn.Module, images: Tensor, *, config: FittingConfig) -> Tensor:
    """What a network says of standardised images [B, 1, S, S] in training, float32, though it may compute in bfloat16."""
    images = images.to(device=config.device, memory_format=torch.channels_last)
    with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.autocast)):
        logits: Tensor = network(images)
    return logits.float()


def fit(network: nn.Module, loss_of: Callable[[NDArray[np.intp]], Tensor], *, batches: Iterable[NDArray[np.intp]], config: FittingConfig,
        judge: str, progress: Progress = quiet) -> tuple[float, ...]:
    """Train a network in place, by AdamW on a one-cycle schedule; returns the loss of every update.

    `loss_of(rows)` is the loss of the images in these rows, and `progress` is called after every update. Raises
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
        progress(len(losses) / config.updates, f"{judge}, update {len(losses)} of {config.updates}")
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
