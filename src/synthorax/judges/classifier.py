"""A compact multi-label classifier of grey images: small enough to be trained afresh, many times, on two processor cores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.judges.config import ClassifierConfig as ClassifierConfig
from synthorax.judges.fitting import (
    ImageArray,
    Variation,
    check_image_size,
    check_images,
    fit,
    image_batches,
    logits_of,
    network_digest,
    one_thread,
    ready,
    standardise,
    vary,
)
from synthorax.judges.residual import ResidualBlock, convolution, initialise
from synthorax.progress import Progress, quiet
from synthorax.registry import lookup

CLASSIC = Variation(degrees=10, scale=0.1, shift=0.1, contrast=0.2, brightness=0.2, noise=0.05)
"""classic augmentation"""


class ClassifierNetwork(Protocol):
    """A module with a `head`, whose input `features` gives; built from a config, and all of its weights from one generator."""

    head: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> [B, F]."""


NETWORKS = {
    "small": "synthorax.judges.classifier:small_network",
    "densenet121": "synthorax.judges.torchvision_networks:densenet121",
    "resnet50": "synthorax.judges.torchvision_networks:resnet50",
    "efficientnet": "synthorax.judges.torchvision_networks:efficientnet",
    "vgg16": "synthorax.judges.torchvision_networks:vgg16",
}
"""name -> function of the config, `num_findings`, `size` and `generator` that builds the network"""


class ResidualNetwork(nn.Module):
    """A stem that quarters the image, then one to four residual blocks, each next one half the size and twice the width."""

    def __init__(self, *, num_findings: int, width: int, input_size: int) -> None:
        super().__init__()
        num_stages = max(1, min(4, (input_size // 8).bit_length() - 1))  # 64 px: maps of 16, 8 and 4
        widths = [width * 2**stage for stage in range(num_stages)]
        stem = width // 2  # narrow: at this resolution most of the time is spent
        self.stem = nn.Sequential(convolution(1, stem, kernel=5, stride=2), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(2))
        self.stages = nn.Sequential(*(
            _block(before, after, stride=1 if stage == 0 else 2)
            for stage, (before, after) in enumerate(itertools.pairwise([stem, *widths]))))
        self.head = nn.Linear(widths[-1], num_findings)

    def features(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> [B, F]: the last map, averaged over the image."""
        features: Tensor = self.stages(self.stem(images)).float().mean(dim=(2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> logits [B, K]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def small_network(config: ClassifierConfig, *, num_findings: int, size: int, generator: torch.Generator) -> ResidualNetwork:
    """The network of this file; it has no pretrained weights, so a file of weights is a UsageError."""
    if config.weights:
        raise UsageError("the small classifier starts from weights drawn by the seed; leave its weights out, or choose another network")
    network = ResidualNetwork(num_findings=num_findings, width=config.width, input_size=size)
    initialise(network, head=network.head, bias=0.0, generator=generator)
    return network


def _block(before: int, after: int, *, stride: int) -> ResidualBlock:
    shortcut = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), convolution(before, after, kernel=1))
    return ResidualBlock(before, after, shortcut=shortcut, stride=stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A trained classifier: a judge with a name, the digest of its weights, and the findings that its columns mean."""

    name: str
    digest: str
    """SHA-256 over all weights and running statistics"""
    findings: tuple[str, ...]
    image_size: int
    """pixels a side of the images that it accepts"""
    config: ClassifierConfig
    network: nn.Module = field(repr=False)
    """also a `ClassifierNetwork`"""
    losses: tuple[float, ...] = field(repr=False)
    """training loss of every update"""

    @property
    def num_parameters(self) -> int:
        """Trained numbers in the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def predict(self, images: ImageArray) -> NDArray[np.float64]:
        """Probability of each finding, [N, K] in [0, 1], for images [N, S, S]."""
        return self._run(images, lambda inputs: torch.sigmoid(self.network(inputs).double()))

    def features(self, images: ImageArray) -> NDArray[np.float64]:
        """What the last layer sees of images [N, S, S]: activations [N, F]."""
        network = cast(ClassifierNetwork, self.network)
        return self._run(images, lambda inputs: network.features(inputs).double())

    def _run(self, images: ImageArray, function: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        check_image_size(images, image_size=self.image_size, judge=self.name)
        device = next(self.network.parameters()).device
        chunks = (images[start : start + 256] for start in range(0, len(images), 256))
        with one_thread(), torch.inference_mode():
            outputs = [function(standardise(chunk, size=self.config.input_size).to(device)).cpu() for chunk in chunks]
        return torch.cat(outputs).numpy()


def train_classifier(
    images: ImageArray,
    labels: NDArray[np.floating],
    *,
    findings: Sequence[str],
    config: ClassifierConfig,
    seed: int,
    image_weights: NDArray[np.floating] | None = None,
    class_weights: NDArray[np.floating] | None = None,
    start: Classifier | None = None,
    progress: Progress = quiet,
) -> Classifier:
    """Train on images [N, S, S] with labels [N, K] in {0, 1, NaN}; a NaN label takes no part in the loss.

    `image_weights` [N] are relative frequencies with which images are drawn (oversampling); None draws all equally often.
    `class_weights` [2, K] are factors on the loss of absent and of present findings. `start` is a classifier to go on from.
    `progress` is called after every update. On the CPU the same arguments give the same weights, and one thread is
    used: to train several at a time, call this from several threads.
    Raises UsageError for shapes that do not fit and TrainingError when the loss is not a number.

    >>> images, labels = np.zeros((8, 32, 32), np.uint8), np.tile([[0.0], [1.0]], (4, 1))
    >>> train_classifier(images, labels, findings=["Mass"], config=ClassifierConfig(updates=1), seed=0).predict(images).shape
    (8, 1)
    """
    check_images(images)
    if labels.shape != (len(images), len(findings)):
        raise UsageError(f"labels have shape {labels.shape} for {len(images)} images and {len(findings)} findings")
    with one_thread():
        return _train(images, labels, findings=tuple(findings), config=ready(config), seed=seed, image_weights=image_weights,
                      class_weights=class_weights, start=start, progress=progress)


def _train(images: ImageArray, labels: NDArray[np.floating], *, findings: tuple[str, ...], config: ClassifierConfig, seed: int,
           image_weights: NDArray[np.floating] | None, class_weights: NDArray[np.floating] | None, start: Classifier | None,
           progress: Progress) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    size = min(images.shape[1], config.input_size)
    network = cast(nn.Module, lookup(NETWORKS, config.network, kind="classifier")(
        config if start is None else replace(config, weights=""), num_findings=len(findings), size=size, generator=generator))
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    factors = None if class_weights is None else torch.from_numpy(np.asarray(class_weights, dtype=np.float32)).to(config.device)

    def loss_of(rows: NDArray[np.intp]) -> Tensor:
        inputs = standardise(images[rows], size=size)
        if config.augment == "classic":
            inputs, = vary(inputs, by=CLASSIC, generator=generator)
        return _masked_cross_entropy(logits_of(network, inputs, config=config), targets[rows].to(config.device), factors)

    losses = fit(network, loss_of, batches=image_batches(len(images), image_weights, config=config, seed=seed), config=config,
                 judge="classifier", progress=progress)
    name = f"residual-{size}px-w{config.width}" if config.network == "small" else f"{config.network}-{size}px"
    return Classifier(name=name, digest=network_digest(network), findings=findings,
                      image_size=images.shape[1], config=config, network=network, losses=losses)


def _masked_cross_entropy(logits: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
    """Mean binary cross-entropy over the stated labels; 0 with a gradient of 0 when a batch states none.

    `factors` [2, K] multiply the loss of absent and of present findings.
    """
    stated = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    if factors is not None:
        losses = losses * torch.where(targets == 1, factors[1], factors[0])
    return (losses * stated).sum() / stated.sum().clamp_min(1)
