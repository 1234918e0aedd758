"""A compact multi-label classifier of grey films: small enough to be trained afresh, many times, on two processor cores."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.engine import describe_machine
from synthorax.errors import TrainingError, UsageError

FilmArray = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """How a classifier is built and trained. The number of updates is fixed: nothing is chosen on validation films."""

    updates: int = 600
    """number of optimiser steps"""
    batch_size: int = 32
    """films in one step"""
    learning_rate: float = 3e-3
    """peak of the one-cycle schedule"""
    weight_decay: float = 0.05
    """decoupled weight decay of AdamW, on convolution and linear weights only"""
    width: int = 32
    """channels of the first residual block; each later block doubles it"""
    input_size: int = 64
    """films larger than this (pixels a side) are averaged down to it"""
    augment: Literal["none", "classic"] = "none"
    """`classic`: small rotation, shift, scale, brightness, contrast, noise; never a left-right flip, which moves the heart"""
    autocast: bool | None = None
    """train in bfloat16; None: where this machine computes it natively. Prediction is always float32"""
    device: str = "cpu"
    """torch device of the training; every random number is drawn on the CPU"""


class ResidualNetwork(nn.Module):
    """A stem that quarters the film, then one to four residual blocks, each next one half the size and twice the width."""

    def __init__(self, *, num_findings: int, width: int, input_size: int) -> None:
        super().__init__()
        num_stages = max(1, min(4, (input_size // 8).bit_length() - 1))  # 64 px: maps of 16, 8 and 4
        widths = [width * 2**stage for stage in range(num_stages)]
        stem = width // 2  # narrow: at this resolution most of the time is spent
        self.stem = nn.Sequential(_conv(1, stem, kernel=5, stride=2), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(2))
        self.stages = nn.Sequential(*(
            _Block(before, after, stride=1 if stage == 0 else 2)
            for stage, (before, after) in enumerate(itertools.pairwise([stem, *widths]))))
        self.head = nn.Linear(widths[-1], num_findings)

    def features(self, films: Tensor) -> Tensor:
        """`films` [B, 1, S, S], standardised -> [B, F]: the last map, averaged over the film."""
        features: Tensor = self.stages(self.stem(films)).float().mean(dim=(2, 3))
        return features

    def forward(self, films: Tensor) -> Tensor:
        """`films` [B, 1, S, S], standardised -> logits [B, K]."""
        logits: Tensor = self.head(self.features(films))
        return logits


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(before, after, stride=stride), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = _conv(after, after), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), _conv(before, after, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


def _conv(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def _initialise(network: ResidualNetwork, generator: torch.Generator) -> None:
    """Weights from `generator` alone; each block starts as its shortcut (Goyal et al. 2017, section 5.1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, _Block):
            nn.init.zeros_(module.norm2.weight)
    nn.init.normal_(network.head.weight, std=0.01, generator=generator)
    nn.init.zeros_(network.head.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A trained classifier: a judge with a name, the digest of its weights, and the findings that its columns mean."""

    name: str
    digest: str
    """SHA-256 over all weights and running statistics"""
    findings: tuple[str, ...]
    film_size: int
    """pixels a side of the films that it accepts"""
    config: ClassifierConfig
    network: ResidualNetwork = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    """training loss of every update"""

    @property
    def num_parameters(self) -> int:
        """Trained numbers in the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def predict(self, images: FilmArray) -> NDArray[np.float64]:
        """Probability of each finding, [N, K] in [0, 1], for films [N, S, S]."""
        return self._run(images, lambda films: torch.sigmoid(self.network(films).double()))

    def features(self, images: FilmArray) -> NDArray[np.float64]:
        """What the last layer sees of films [N, S, S]: activations [N, F]."""
        return self._run(images, lambda films: self.network.features(films).double())

    def _run(self, images: FilmArray, function: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        _check_images(images)
        if images.shape[1] != self.film_size:
            raise UsageError(f"{self.name} was trained on films of {self.film_size} px and got {images.shape[1]} px; "
                             "prepare both at the same size")
        device = next(self.network.parameters()).device
        chunks = (images[start : start + 256] for start in range(0, len(images), 256))
        with one_thread(), torch.inference_mode():
            outputs = [function(_standardise(chunk, size=self.config.input_size).to(device)).cpu() for chunk in chunks]
        return torch.cat(outputs).numpy()


def train_classifier(
    images: FilmArray,
    labels: NDArray[np.floating],
    *,
    findings: Sequence[str],
    config: ClassifierConfig,
    seed: int,
    film_weights: NDArray[np.floating] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train on films [N, S, S] with labels [N, K] in {0, 1, NaN}; a NaN label takes no part in the loss.

    `film_weights` [N] are relative frequencies with which films are drawn (oversampling); None draws all equally often.
    `progress(done, total)` is called after every update. On the CPU the same arguments give the same weights, and one thread is
    used: to train several at a time, call this from several threads.
    Raises UsageError for shapes that do not fit and TrainingError when the loss is not a number.

    >>> films, labels = np.zeros((8, 32, 32), np.uint8), np.tile([[0.0], [1.0]], (4, 1))
    >>> train_classifier(films, labels, findings=["Mass"], config=ClassifierConfig(updates=1), seed=0).predict(films).shape
    (8, 1)
    """
    _check_images(images)
    if labels.shape != (len(images), len(findings)):
        raise UsageError(f"labels have shape {labels.shape} for {len(images)} films and {len(findings)} findings")
    if config.updates < 1 or config.batch_size < 2:
        raise UsageError(f"cannot train with {config.updates} updates of {config.batch_size} films; at least 1 of 2 are needed")
    if config.autocast is None:
        config = replace(config, autocast=bool(describe_machine()["bf16"]))
    with one_thread():
        return _train(images, labels, findings=tuple(findings), config=config, seed=seed, film_weights=film_weights,
                      progress=progress)


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


def _train(images: FilmArray, labels: NDArray[np.floating], *, findings: tuple[str, ...], config: ClassifierConfig, seed: int,
           film_weights: NDArray[np.floating] | None, progress: Callable[[int, int], None] | None) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    size = min(images.shape[1], config.input_size)
    network = ResidualNetwork(num_findings=len(findings), width=config.width, input_size=size)
    _initialise(network, generator)
    network.to(device=config.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = _optimiser(network, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=config.learning_rate, total_steps=config.updates + 1)
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    losses: list[float] = []
    for rows in _batches(len(images), film_weights, config=config, rng=np.random.default_rng(seed)):
        films = _standardise(images[rows], size=size)
        if config.augment == "classic":
            films = _augment(films, generator)
        films = films.to(device=config.device, memory_format=torch.channels_last)
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.autocast)):
            logits = network(films)
        loss = _masked_cross_entropy(logits.float(), targets[rows].to(config.device))
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise TrainingError(f"the classifier's loss is {losses[-1]} at update {len(losses)}; lower learning_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(len(losses), config.updates)
    network.eval()
    return Classifier(name=f"residual-{size}px-w{config.width}", digest=_digest(network), findings=findings,
                      film_size=images.shape[1], config=config, network=network, losses=tuple(losses))


def _check_images(images: FilmArray) -> None:
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.dtype not in (np.uint8, np.uint16) or len(images) == 0:
        raise UsageError(f"films must be uint8 or uint16 [N, S, S] with N > 0, not {images.dtype} {list(images.shape)}")


def _standardise(images: FilmArray, *, size: int) -> Tensor:
    """Films [B, S, S] -> float32 [B, 1, size, size], each with mean 0 and deviation 1, so that exposure matters less."""
    films = torch.from_numpy(images.astype(np.float32))[:, None] / np.iinfo(images.dtype).max
    if films.shape[-1] > size:
        films = F.interpolate(films, size=(size, size), mode="area")
    centre, spread = films.mean(dim=(1, 2, 3), keepdim=True), films.std(dim=(1, 2, 3), keepdim=True)
    return (films - centre) / spread.clamp_min(1e-3)


def _augment(films: Tensor, generator: torch.Generator) -> Tensor:
    """Classic augmentation of standardised films [B, 1, S, S], a fresh draw for each film."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(films), generator=generator)

    angle, scale = torch.deg2rad(uniform(-10, 10)), uniform(0.9, 1.1)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = uniform(-0.1, 0.1), uniform(-0.1, 0.1)  # of half the film
    matrix = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(films.shape), align_corners=False)
    films = F.grid_sample(films, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, brightness = uniform(0.8, 1.2).view(-1, 1, 1, 1), uniform(-0.2, 0.2).view(-1, 1, 1, 1)
    return films * contrast + brightness + 0.05 * torch.randn(films.shape, generator=generator)


def _batches(num_films: int, film_weights: NDArray[np.floating] | None, *, config: ClassifierConfig,
             rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Row numbers of each update's films. Every `num_films` draws hold each film as often as its weight says, give or take one.

    Systematic resampling: with equal weights an epoch is a plain shuffle, so weighted and unweighted arms differ in nothing
    else.
    """
    weights = np.ones(num_films) if film_weights is None else np.asarray(film_weights, dtype=np.float64)
    if weights.shape != (num_films,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise UsageError("film_weights must be one finite number of at least 0 for each film, not all 0")
    edges = np.cumsum(weights) / weights.sum()
    waiting = np.empty(0, dtype=np.intp)
    for _ in range(config.updates):
        while len(waiting) < config.batch_size:
            points = (np.arange(num_films) + rng.random()) / num_films
            drawn = np.minimum(np.searchsorted(edges, points, side="right"), num_films - 1)
            waiting = np.concatenate([waiting, rng.permutation(drawn)])
        rows, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
        yield rows


def _masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the stated labels; 0 with a gradient of 0 when a batch states none."""
    stated = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    return (losses * stated).sum() / stated.sum().clamp_min(1)


def _optimiser(network: nn.Module, config: ClassifierConfig) -> torch.optim.AdamW:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
