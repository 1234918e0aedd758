"""What families and the training loop agree on: condition, batch, phase, model and objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.rng import Draws
from synthorax.types import Study

VIEWS = ("PA", "AP", "LATERAL")
ATTRIBUTES = (*(f"view_{view}" for view in VIEWS), "sex_F", "age")
"""Columns of `Condition.attributes`: view as one of three, sex, and age in centuries; NaN where not stated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is asked of an image. NaN means "not stated" and differs from 0, which means "stated absent"."""

    labels: Tensor
    """[B, K] in {0, 1, NaN}"""
    attributes: Tensor
    """[B, A] in [0, 1] or NaN, columns as in `ATTRIBUTES`"""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return Condition(labels=self.labels[rows], attributes=self.attributes[rows])

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return Condition(labels=self.labels.to(device), attributes=self.attributes.to(device))

    @staticmethod
    def unstated(size: int, *, num_labels: int, device: torch.device | str = "cpu") -> Condition:
        """A condition that states nothing, for unconditional sampling: all NaN."""
        return Condition(labels=torch.full((size, num_labels), math.nan, device=device),
                         attributes=torch.full((size, len(ATTRIBUTES)), math.nan, device=device))

    @staticmethod
    def join(first: Condition, second: Condition) -> Condition:
        """Rows of both, first then second."""
        return Condition(labels=torch.cat([first.labels, second.labels]),
                         attributes=torch.cat([first.attributes, second.attributes]))


def encode_attributes(study: Study) -> list[float]:
    """View, sex and age of one film as the numbers of `ATTRIBUTES`; what is not stated is NaN."""
    views = [float(study.view == view) if study.view in VIEWS else math.nan for view in VIEWS]
    sex = {"F": 1.0, "M": 0.0}.get(study.sex, math.nan)
    return [*views, sex, study.age_years / 100]


def condition_of(studies: Sequence[Study], labels: NDArray[np.float32]) -> Condition:
    """The condition that describes real films; `labels` [N, K] as `data.vocabulary.label_matrix` makes them."""
    attributes = torch.tensor([encode_attributes(study) for study in studies], dtype=torch.float32)
    return Condition(labels=torch.from_numpy(np.array(labels, dtype=np.float32)),
                     attributes=attributes.reshape(len(studies), len(ATTRIBUTES)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one phase sees: films, their condition, and one random stream a film."""

    images: Tensor
    """[B, 1, H, W] in [-1, 1]"""
    condition: Condition
    draws: Draws

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One kind of update inside a training step."""

    name: str
    updates: tuple[str, ...]
    """names of the players whose weights move"""
    every: int = 1
    """run in every n-th step only"""
    repeats: int = 1
    """how many updates, each on a fresh batch, in one step"""
    sees_patients: bool = True
    """whether real films enter the loss; differential privacy and the audit need to know"""
    betas: tuple[float, float] = (0.9, 0.99)
    """moment decay rates of this phase's Adam"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What a saved model says of itself."""

    family: str
    image_size: int
    findings: tuple[str, ...]
    """meaning of the columns of `Condition.labels`"""
    conditions: tuple[str, ...]
    """parts of the condition that change the image, such as labels and attributes; empty for unconditional families"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """fields of the family's model config"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How images are drawn from a model; families that have no sampler ignore it."""

    sampler: str = "dpmpp-2m"
    """name in `diffusion.samplers.SAMPLERS`"""
    steps: int = 24
    """noise levels visited"""
    guidance: float = 1.5
    """classifier-free guidance weight; 1 is none"""


class Model(Protocol):
    """What ships: networks and a way to draw images from them."""

    spec: ModelSpec

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, H, W] in [-1, 1]; `None` as condition asks for nothing in particular."""


class Objective(nn.Module):
    """What trains a model: players, phases, and named losses. Calling it is calling `losses`, so that DDP can wrap it."""

    players: nn.ModuleDict
    phases: tuple[Phase, ...]
    model: nn.Module
    """the part that ships; one of the players or made of them"""

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of one phase, each [B] and already weighted."""
        raise TypeError(f"{type(self).__name__} does not define losses")

    def forward(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        return self.losses(phase, batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How to build one generative family: two config classes and two constructors."""

    model_config: type[Any]
    objective_config: type[Any]
    build_model: Callable[[ModelSpec], nn.Module]
    build_objective: Callable[[nn.Module, Any], Objective]
    conditions: tuple[str, ...] = ()


def as_model(module: nn.Module) -> Model:
    """The network seen as what it also is, a `Model`; the contract tests hold every family to it."""
    return cast(Model, module)
