"""How judges that are trained here are built and fitted. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCREENS = ("linear-probe",)
"""quick hints: what these say passes no gate"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingConfig:
    """What every judge that is trained here needs to know. The number of updates is fixed: no held-out image says when to stop."""

    updates: int = 600
    """number of optimiser steps"""
    batch_size: int = 32
    """images in one step"""
    learning_rate: float = 3e-3
    """peak of the one-cycle schedule"""
    weight_decay: float = 0.05
    """decoupled weight decay of AdamW, on convolution and linear weights only"""
    autocast: bool | None = None
    """train in bfloat16; None: where this machine computes it natively. Prediction is always float32"""
    device: str = "cpu"
    """torch device of the training; every random number is drawn on the CPU"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(FittingConfig):
    """How a classifier is built and trained. The number of updates is fixed: nothing is chosen on validation images."""

    width: int = 32
    """channels of the first residual block; each later block doubles it"""
    input_size: int = 64
    """images larger than this (pixels a side) are averaged down to it"""
    augment: Literal["none", "classic"] = "none"
    """`classic`: small rotation, shift, scale, brightness, contrast, noise; never a left-right flip, which moves the heart"""
    network: str = "small"
    """one of `judges.classifier.NETWORKS`, or another classifier of `judges.classifiers`"""
    weights: str = ""
    """file of pretrained weights that the network starts from; empty: weights drawn by the seed"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamePatientConfig(FittingConfig):
    """How the network is built and trained. The number of updates is fixed: nothing is chosen on validation images."""

    width: int = 24
    """channels of the first residual block; each later block doubles it"""
    num_features: int = 64
    """length of an image's embedding"""
    input_size: int = 64
    """images larger than this (pixels a side) are averaged down to it"""
    temperature: float = 0.1
    """of the contrastive loss; lower looks harder at the nearest images of other patients"""
    follow_ups: float = 0.5
    """part of a batch that is pairs of two images of a patient; the rest pairs one image with itself, varied"""
