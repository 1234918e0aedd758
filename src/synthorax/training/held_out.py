"""The loss on images that nothing learns from: a training that goes on while it rises memorises its images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from synthorax.engine import Engine
from synthorax.files import json_line
from synthorax.protocols import Objective, as_model
from synthorax.rng import derive
from synthorax.training.feed import Feed
from synthorax.types import ImageSet

LOSS, SEEN_LOSS = "held_out_loss", "seen_loss"
"""keys of a line of metrics.jsonl: the averaged model's loss on held-out images and, with the same noise, on as many training images"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Where a training stands by its loss on held-out images."""

    loss: float
    """the newest"""
    best: float
    best_step: int
    best_images: int
    """images seen at the best"""
    since: int
    """measurements since the best one"""


class HeldOutLoss:
    """Measures the averaged model on the same images with the same noise, levels and dropped conditions every time; nothing is augmented.

    So two measurements differ by the weights alone. The loss is the sum of the terms of the objective's `held_out_phase`.
    """

    def __init__(self, objective: Objective[nn.Module], held_out: ImageSet, seen: ImageSet, *, batch_size: int, seed: int,
                 engine: Engine) -> None:
        self.objective, self.engine, self.batch_size, self.seed = objective, engine, batch_size, seed
        generator = torch.Generator().manual_seed(derive(seed, "seen images"))
        chosen = torch.randperm(len(seen), generator=generator)[:len(held_out)]
        self.sets = {LOSS: (self._feed(held_out), torch.arange(len(held_out))), SEEN_LOSS: (self._feed(seen), chosen)}

    def _feed(self, images: ImageSet) -> Feed:
        return Feed(images, spec=as_model(self.objective.model).spec, batch_size=self.batch_size, balance=0.0, augment=False,
                    seed=self.seed, engine=self.engine)

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Both losses of the weights of `averaged`; the objective is afterwards as it was."""
        training = self.objective.training
        with _weights_of(averaged, self.objective.model):
            self.objective.eval()
            losses = {name: self._mean(feed, rows) for name, (feed, rows) in self.sets.items()}
        self.objective.train(training)
        return losses

    def _mean(self, feed: Feed, rows: Tensor) -> float:
        total = 0.0
        for numbers in torch.split(torch.arange(len(rows)), self.batch_size):
            batch = feed.batch_of(rows[numbers], [derive(self.seed, "held-out", number) for number in numbers.tolist()])
            with self.engine.autocast():
                terms = self.objective(self.objective.held_out_phase, batch)
            total += sum(float(term.double().sum()) for term in terms.values())
        return total / len(rows)


@contextlib.contextmanager
def _weights_of(source: nn.Module, target: nn.Module) -> Iterator[None]:
    """`target` with the weights and buffers of `source`, a copy of it, for a while."""
    kept = [tensor.clone() for tensor in _tensors(target)]
    try:
        for own, other in zip(_tensors(target), _tensors(source), strict=True):
            own.copy_(other)
        yield
    finally:
        for own, before in zip(_tensors(target), kept, strict=True):
            own.copy_(before)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def standing(metrics: Path) -> HeldOut | None:
    """Where a training stands, by its metrics.jsonl; None before the first measurement. Equal losses are no improvement."""
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
    points = [line for line in map(json_line, lines) if isinstance(line.get(LOSS), float)]
    return _standing_of(points) if points else None


def _standing_of(points: Sequence[dict[str, float]]) -> HeldOut:
    best = min(range(len(points)), key=lambda number: (points[number][LOSS], number))
    return HeldOut(loss=points[-1][LOSS], best=points[best][LOSS], best_step=int(points[best]["step"]),
                   best_images=int(points[best]["images"]), since=len(points) - 1 - best)
