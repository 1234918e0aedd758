"""A small U-Net that outlines organs and lesions: the judge of where a finding is, trained on images that no generator has seen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError
from synthorax.files import read_with_digest, write_with_digest
from synthorax.judges.fitting import (
    FittingConfig,
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
from synthorax.run import halve

MaskArray = NDArray[np.bool_] | NDArray[np.uint8]

CUTS = tuple(round(0.05 * step, 2) for step in range(2, 19))
"""thresholds that are tried on the held-out training images"""
METADATA_KEY = "synthorax-segmenter"
SLIGHT = Variation(degrees=3, scale=0.05, shift=0.05, contrast=0.15, brightness=0.15, noise=0.02)
"""augmentation; outlines move with their images"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterConfig(FittingConfig):
    """How a segmenter is built and trained. The number of updates is fixed; held-out images choose the thresholds and nothing else."""

    learning_rate: float = 4e-3
    """peak of the one-cycle schedule"""
    weight_decay: float = 0.01
    """decoupled weight decay of AdamW, on convolution weights only"""
    width: int = 24
    """channels at half resolution, where the U-Net begins; each later level doubles them"""
    input_size: int = 64
    """images larger than this (pixels a side) are averaged down to it; probabilities are interpolated back"""
    rarity: float = 0.5
    """images are drawn as often as the rarest mask on them asks for: its prevalence to the power of minus this"""
    holdout: float = 0.1
    """share of the patients (images, where no patients are given) that train nothing and choose the thresholds"""
    augment: bool = True
    """small rotation, shift, scale, contrast and noise; never a left-right flip, which moves the heart"""


class SegmentationNetwork(nn.Module):
    """A U-Net (Ronneberger et al. 2015) at half resolution with added skips; the last step returns to full resolution beside the image.

    Most of a small image's cost lies at full resolution, so four pixels enter as four channels and leave as four sub-pixels.
    """

    def __init__(self, *, num_classes: int, width: int, input_size: int) -> None:
        super().__init__()
        num_levels = max(1, min(4, (input_size // 8).bit_length()))  # 64 px: maps of 32, 16, 8 and 4
        widths = [width * 2**level for level in range(num_levels)]
        self.stem = convolution(4, width)
        self.down = nn.ModuleList(_block(before, after) for before, after in itertools.pairwise([width, *widths]))
        self.narrow = nn.ModuleList(convolution(after, before, kernel=1) for before, after in itertools.pairwise(widths))
        self.up = nn.ModuleList(_block(width, width) for width in widths[:-1])
        self.fine = nn.Sequential(convolution(width // 4 + 1, 16), nn.BatchNorm2d(16), nn.ReLU(),
                                  convolution(16, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> logits [B, M, S, S]."""
        side = images.shape[-1]
        even = F.pad(images, (0, side % 2, 0, side % 2))
        x = self.stem(F.pixel_unshuffle(even, 2))  # [B, 1, S, S] -> [B, 4, S/2, S/2]
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2, ceil_mode=True))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            wider = F.interpolate(self.narrow[level](x), size=skips[level].shape[-2:], mode="bilinear", align_corners=False)
            x = self.up[level](wider + skips[level])
        fine = F.pixel_shuffle(x, 2)  # [B, 4 C, S/2, S/2] -> [B, C, S, S]
        logits: Tensor = self.head(self.fine(torch.cat([fine, even], dim=1)))
        return logits[..., :side, :side]


def _block(before: int, after: int) -> ResidualBlock:
    shortcut = nn.Identity() if before == after else convolution(before, after, kernel=1)
    return ResidualBlock(before, after, shortcut=shortcut)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmenter:
    """A trained segmenter: a judge with a name, the digest of its weights, and the outlines that its channels mean."""

    name: str
    digest: str
    """SHA-256 over all weights, running statistics and thresholds"""
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    """probability from which on a pixel belongs to the outline, of each class"""
    image_size: int
    """pixels a side of the images that it accepts"""
    config: SegmenterConfig
    network: SegmentationNetwork = field(repr=False)
    losses: tuple[float, ...] = field(repr=False, default=())
    """training loss of every update"""

    def __call__(self, images: ImageArray) -> NDArray[np.float32]:
        """Probability that each pixel belongs to each class, [N, M, S, S] in [0, 1], for images [N, S, S], bone bright."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        return _probabilities(self.network, images, size=min(self.image_size, self.config.input_size))

    def outline(self, images: ImageArray) -> NDArray[np.bool_]:
        """Where each class is seen, [N, M, S, S]: probabilities from `thresholds` on."""
        return self.cut(self(images))

    def cut(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Outlines of probabilities [N, M, S, S] that are there already."""
        seen: NDArray[np.bool_] = probabilities >= np.array(self.thresholds, dtype=np.float32)[:, None, None]
        return seen


def train_segmenter(
    images: ImageArray,
    masks: MaskArray,
    *,
    classes: Sequence[str],
    config: SegmenterConfig,
    seed: int,
    stated: NDArray[np.bool_] | None = None,
    patients: Sequence[str] | NDArray[np.str_] | None = None,
    progress: Progress = quiet,
) -> Segmenter:
    """Train on images [N, S, S] with outlines [N, M, S, S] (anything above 0 is inside).

    `stated` [N, M] says which outlines are known: one that is not takes no part in the loss, and is not "nothing there". None: all
    are. `patients` [N] keeps the images of a patient together when some are held out. On the CPU the same arguments give the same
    weights, on one thread. Raises UsageError for shapes that do not fit and TrainingError when the loss is not a number.

    >>> images, discs = np.zeros((8, 32, 32), np.uint8), np.zeros((8, 1, 32, 32), bool)
    >>> train_segmenter(images, discs, classes=["Nodule"], config=SegmenterConfig(updates=1), seed=0)(images).shape
    (8, 1, 32, 32)
    """
    check_images(images)
    stated = np.ones(masks.shape[:2], dtype=np.bool_) if stated is None else stated
    if masks.shape != (len(images), len(classes), *images.shape[1:]) or stated.shape != masks.shape[:2]:
        raise UsageError(f"masks {list(masks.shape)} and stated {list(stated.shape)} do not fit images {list(images.shape)} "
                         f"and {len(classes)} classes")
    config = ready(config)
    held_out = _held_out(len(images), patients, share=config.holdout, seed=seed)
    if held_out.all() or not stated[~held_out].any(axis=0).all():
        raise UsageError("a class has no stated outline among the training images; leave it out, or hold out fewer images")
    with one_thread():
        network, losses = _train(images, masks, stated, np.flatnonzero(~held_out), config=config, seed=seed, progress=progress)
    thresholds = _thresholds(network, images[held_out], masks[held_out], stated[held_out], config=config)
    return _judge(network, classes=tuple(classes), thresholds=thresholds, image_size=images.shape[1], config=config, losses=losses)


def save_segmenter(path: str | Path, segmenter: Segmenter, *, half: bool = False) -> None:
    """Write weights, thresholds and config as one safetensors file, its SHA-256 beside it; kernels as float16 where `half` is wanted.

    What was stored as float16 computes in float32, and has a digest of its own.
    """
    facts = {"classes": segmenter.classes, "thresholds": segmenter.thresholds, "film_size": segmenter.image_size,
             "config": asdict(segmenter.config)}
    tensors = {key: value.cpu().contiguous() for key, value in segmenter.network.state_dict().items()}
    if half:
        tensors = halve(tensors, torch.float16, file=Path(path))
    write_with_digest(Path(path), save(tensors, {METADATA_KEY: json.dumps(facts, sort_keys=True)}))


def load_segmenter(path: str | Path) -> Segmenter:
    """Read what `save_segmenter` wrote; InputError where the file is another's or damaged."""
    content = read_with_digest(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[METADATA_KEY])
        config = SegmenterConfig(**facts["config"])
        classes, image_size = tuple(facts["classes"]), int(facts["film_size"])
        network = SegmentationNetwork(num_classes=len(classes), width=config.width, input_size=min(image_size, config.input_size))
        network.load_state_dict(load(content))
    except (ArithmeticError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"is not the file of a segmenter ({' '.join(str(error).split())[:100]})", file=Path(path),
                         remedy="take another copy, or train it again") from error
    return _judge(network, classes=classes, thresholds=tuple(facts["thresholds"]), image_size=image_size, config=config, losses=())


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shared part of two outlines: intersection over union, [...] for outlines [..., S, S].

    NaN where both are empty: nothing was asked for and nothing seen, which is right but is no outline. Whoever averages leaves such
    pairs out and says how many they were. One empty outline against a full one is 0.
    """
    both, either = (first & second).sum(axis=(-2, -1)), (first | second).sum(axis=(-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Twice the intersection over the sum of both areas (Dice 1945), [...]; NaN and 0 for empty outlines as in `iou`."""
    both, sizes = (first & second).sum(axis=(-2, -1)), first.sum(axis=(-2, -1)) + second.sum(axis=(-2, -1))
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), np.nan)


def _judge(network: SegmentationNetwork, *, classes: tuple[str, ...], thresholds: tuple[float, ...], image_size: int,
           config: SegmenterConfig, losses: tuple[float, ...]) -> Segmenter:
    network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # as in training, so that every sum is the same
    return Segmenter(name=f"unet-{min(image_size, config.input_size)}px-w{config.width}", classes=classes, thresholds=thresholds,
                     digest=network_digest(network, also=repr((classes, thresholds))), image_size=image_size, config=config,
                     network=network, losses=losses)


def _train(images: ImageArray, masks: MaskArray, stated: NDArray[np.bool_], rows: NDArray[np.intp], *, config: SegmenterConfig, seed: int,
           progress: Progress) -> tuple[SegmentationNetwork, tuple[float, ...]]:
    generator = torch.Generator().manual_seed(seed)
    size = min(images.shape[1], config.input_size)
    network = SegmentationNetwork(num_classes=masks.shape[1], width=config.width, input_size=size)
    initialise(network, head=network.head, bias=-2.0, generator=generator)  # every pixel starts as improbable
    drawn = masks[rows].any(axis=(2, 3)) & stated[rows]
    weights = _rarity(drawn, stated[rows], power=config.rarity)
    emphasis = _emphasis(masks[rows], stated[rows]).to(config.device)

    def loss_of(batch: NDArray[np.intp]) -> Tensor:
        chosen = rows[batch]
        inputs, targets = standardise(images[chosen], size=size), _targets(masks[chosen], size=size)
        if config.augment:
            inputs, targets = vary(inputs, targets, by=SLIGHT, generator=generator)
        return outline_loss(logits_of(network, inputs, config=config), targets.to(config.device),
                     torch.from_numpy(stated[chosen]).to(config.device), emphasis)

    return network, fit(network, loss_of, batches=image_batches(len(rows), weights, config=config, seed=seed), config=config,
                        judge="segmenter", progress=progress)


def outline_loss(logits: Tensor, targets: Tensor, stated: Tensor, emphasis: Tensor) -> Tensor:
    """Cross-entropy and soft Dice (Milletari et al. 2016), both over the stated outlines; a mean over classes.

    Dice is taken over the batch, so that a class without a pixel on one image is no special case.
    """
    known = stated[:, :, None, None].float()  # [B, M, 1, 1]
    entropy = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=emphasis[:, None, None], reduction="none")
    per_class = (entropy * known).mean(dim=(2, 3)).sum(0) / stated.sum(0).clamp_min(1)
    seen = torch.sigmoid(logits) * known
    shared, total = (seen * targets).sum(dim=(0, 2, 3)), (seen + targets * known).sum(dim=(0, 2, 3))
    overlap = (2 * shared + 1) / (total + 1)
    return (per_class + 1 - overlap).mean()


def _emphasis(masks: MaskArray, stated: NDArray[np.bool_]) -> Tensor:
    """How much more a pixel inside counts than one outside, [M]: the root of their ratio, from 1 to 8."""
    inside = np.array([masks[stated[:, k], k].astype(bool).mean() if stated[:, k].any() else 0.5 for k in range(masks.shape[1])])
    return torch.from_numpy(np.clip(np.sqrt((1 - inside) / np.maximum(inside, 1e-6)), 1, 8).astype(np.float32))


def _rarity(drawn: NDArray[np.bool_], stated: NDArray[np.bool_], *, power: float) -> NDArray[np.float64]:
    """Relative frequency of each image, [N]: that of the rarest class which is on it; 1 for images with none."""
    prevalence = drawn.sum(axis=0) / np.maximum(stated.sum(axis=0), 1)
    return np.asarray(np.where(drawn, np.maximum(prevalence, 1e-3) ** -power, 1.0).max(axis=1), dtype=np.float64)


def _held_out(num_images: int, patients: Sequence[str] | NDArray[np.str_] | None, *, share: float, seed: int) -> NDArray[np.bool_]:
    """Images of the patients that train nothing, [N]; at least one patient, so that there is a threshold."""
    _, owner = np.unique(np.arange(num_images) if patients is None else np.asarray(patients), return_inverse=True)
    if owner.shape != (num_images,):
        raise UsageError(f"{len(owner)} patients for {num_images} images")
    num_patients = int(owner.max()) + 1
    chosen = np.random.default_rng([seed, 1]).permutation(num_patients)[:max(1, round(share * num_patients))]
    return np.asarray(np.isin(owner, chosen))


def _thresholds(network: SegmentationNetwork, images: ImageArray, masks: MaskArray, stated: NDArray[np.bool_], *,
                config: SegmenterConfig) -> tuple[float, ...]:
    """Per class the cut with the largest Dice over all held-out pixels; 0.5 where the held-out images show none of it.

    All images are pooled, so an outline drawn on an image that has none costs as much as one that is missed.
    """
    probabilities = _probabilities(network, images, size=min(images.shape[1], config.input_size))
    cuts = []
    for k in range(masks.shape[1]):
        known = stated[:, k]
        truth, seen = masks[known, k].astype(bool), probabilities[known, k]
        scores = [2 * float((truth & (seen >= cut)).sum()) / max(1, int(truth.sum()) + int((seen >= cut).sum())) for cut in CUTS]
        best = [cut for cut, score in zip(CUTS, scores, strict=True) if score == max(scores)]
        cuts.append(best[len(best) // 2] if truth.any() and max(scores) > 0 else 0.5)
    return tuple(cuts)


def _probabilities(network: SegmentationNetwork, images: ImageArray, *, size: int) -> NDArray[np.float32]:
    device = next(network.parameters()).device
    parts = []
    with one_thread(), torch.inference_mode():
        for start in range(0, len(images), 64):
            seen = torch.sigmoid(network(standardise(images[start : start + 64], size=size).to(device)).float())
            if images.shape[1] != size:
                seen = F.interpolate(seen, size=images.shape[1:], mode="bilinear", align_corners=False)
            parts.append(seen.cpu())
    return np.asarray(torch.cat(parts).numpy())


def _targets(masks: MaskArray, *, size: int) -> Tensor:
    """Outlines [B, M, S, S] -> share of each pixel that is inside, float32 [B, M, size, size]."""
    inside = torch.from_numpy((masks > 0).astype(np.float32))
    return F.interpolate(inside, size=(size, size), mode="area") if inside.shape[-1] > size else inside
