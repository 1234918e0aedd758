"""A small detector of one kind of lesion: a map of centres and a size at each, trained on crops within minutes of one core.

After CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points"): every lesion is a Gaussian bump on a map of a quarter of the
resolution, learned with their focal loss (Eq. 1), and marks are the map's local maxima. Crops are drawn around lesions, at random, and
around the detector's own false marks (hard negatives).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

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
    check_image_size,
    check_images,
    fit,
    logits_of,
    network_digest,
    one_thread,
    ready,
    standardise,
)
from synthorax.judges.marks import LesionBoxes, Marks, strongest_places
from synthorax.judges.residual import ResidualBlock, convolution, initialise
from synthorax.progress import Progress, quiet

STRIDE = 4
"""pixels of the image per cell of the map"""
METADATA_KEY = "synthorax-lesion-detector"
SIZE_WEIGHT = 0.1
"""of the loss of the size, as in the paper"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig(FittingConfig):
    """How a detector is built and trained. The number of updates is fixed: no held-out image says when to stop."""

    updates: int = 900
    """number of optimiser steps"""
    width: int = 24
    """channels at a quarter of the resolution; the two coarser levels have twice and three times as many"""
    crop_px: int = 96
    """pixels a side of the crops that it learns from; smaller images are taken whole"""
    lesion_share: float = 0.5
    """part of the crops that hold a lesion"""
    hard_share: float = 0.25
    """part of the crops around its own false marks, once it has learned for a third of the updates; before that, at random places"""
    mined: int = 160
    """training images that are searched for false marks, at a third and at two thirds of the updates"""
    contrast: float = 0.2
    """contrast and brightness of a crop vary by up to this part of the image's standard deviation"""
    noise: float = 0.03
    """standard deviation of the noise that is added, in the image's standard deviations"""


class DetectorNetwork(nn.Module):
    """A U-Net of three levels from a quarter of the resolution down: sixteen pixels enter as sixteen channels, so nothing is lost."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(STRIDE**2, width), nn.BatchNorm2d(width), nn.ReLU())
        self.fine = _block(width, width)
        self.middle = _block(width, 2 * width)
        self.coarse = _block(2 * width, 3 * width)
        self.narrow_coarse = convolution(3 * width, 2 * width, kernel=1)
        self.up_middle = _block(2 * width, 2 * width)
        self.narrow_middle = convolution(2 * width, width, kernel=1)
        self.up_fine = _block(width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> [B, 2, S/4, S/4]: logit of a centre, logarithm of its size in pixels."""
        fine = self.fine(self.stem(F.pixel_unshuffle(images, STRIDE)))
        middle = self.middle(F.avg_pool2d(fine, 2, ceil_mode=True))
        coarse = self.coarse(F.avg_pool2d(middle, 2, ceil_mode=True))
        middle = self.up_middle(middle + _enlarged(self.narrow_coarse(coarse), middle))
        maps: Tensor = self.head(self.up_fine(fine + _enlarged(self.narrow_middle(middle), fine)))
        return maps


def _block(before: int, after: int) -> ResidualBlock:
    return ResidualBlock(before, after, shortcut=nn.Identity() if before == after else convolution(before, after, kernel=1))


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="nearest")


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionDetector:
    """A trained detector: a judge with a name, the digest of its weights, and what it learned from.

    Input contract: images [N, S, S], uint8 or uint16, bone bright, of the size that it was trained on.
    """

    name: str
    digest: str
    """SHA-256 over all weights, running statistics, the finding and what it was trained on"""
    finding: str
    image_size: int
    """pixels a side of the images that it accepts"""
    trained_on: str
    """real, inserted or generated lesions, in the words of whoever trained it"""
    num_lesions: int
    """lesions that it learned from"""
    config: DetectorConfig
    network: DetectorNetwork = field(repr=False)
    losses: tuple[float, ...] = field(repr=False, default=())
    """training loss of every update"""

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def maps(self, images: ImageArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability of a lesion's centre in each cell of 4 x 4 pixels, and its size in pixels: twice [N, S/4, S/4]."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        with one_thread():
            return _maps(self.network, images)

    def marks(self, images: ImageArray, *, within: NDArray[np.bool_] | None = None, most: int = 20) -> Marks:
        """Suspected lesions of each image; `within` [N, S, S] says where to look, for instance inside the lungs."""
        found, _ = self.maps(images)
        cells = None if within is None else within[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE][:, : found.shape[1], : found.shape[2]]
        return Marks.join([strongest_places(found[row], distance_px=2 * STRIDE, most=most, stride=STRIDE,
                                            within=None if cells is None else cells[row]) for row in range(len(images))])

    def image_scores(self, images: ImageArray) -> NDArray[np.float64]:
        """Greatest probability of a lesion in each image, [N]."""
        return np.asarray(self.maps(images)[0].max(axis=(1, 2)), dtype=np.float64)

    def save(self, path: Path) -> None:
        """As safetensors, with its digest beside it."""
        facts = {"finding": self.finding, "image_size": self.image_size, "trained_on": self.trained_on, "num_lesions": self.num_lesions,
                 "config": asdict(self.config)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_with_digest(path, save(tensors, metadata={METADATA_KEY: json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> LesionDetector:
        """A saved detector; InputError for a file that is something else or not what its digest says."""
        content = read_with_digest(path)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[METADATA_KEY])
            config = DetectorConfig(**facts.pop("config"))
            network = DetectorNetwork(width=config.width)
            network.load_state_dict(load(content))
            return _detector(network, config=config, losses=(), **facts)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"is no lesion detector ({error})", file=path) from error


def train_detector(images: ImageArray, lesions: LesionBoxes, *, finding: str, trained_on: str, config: DetectorConfig | None = None,
                   seed: int, lesion_weights: NDArray[np.floating] | None = None, progress: Progress = quiet) -> LesionDetector:
    """Train on images [N, S, S] of which all lesions of `finding` are in `lesions`; an image without one is a negative.

    `lesion_weights` [K] says how often each lesion's crop is drawn, relative to the others. The same input and seed give the same weights
    on one kind of processor. Raises InputError where no image has a lesion, and UsageError for sizes that are no multiple of 16 px.
    """
    check_images(images)
    config = ready(config or DetectorConfig())
    side = images.shape[1]
    crop = min(config.crop_px, side)
    if len(lesions.image) == 0:
        raise InputError(f"no image shows '{finding}', so no detector of it can be trained")
    if side % 16 or crop % 16 or side < 32:
        raise UsageError(f"the detector takes images and crops of a multiple of 16 px, from 32, not {side} and {crop} px")
    with one_thread():
        network = DetectorNetwork(width=config.width)
        generator = torch.Generator().manual_seed(seed)
        initialise(network, head=network.head, bias=0.0, generator=generator)
        with torch.no_grad():  # every cell starts as improbable, or the first updates go astray (Lin et al. 2017); and at a size of 10 px
            cast(Tensor, network.head.bias)[:2] = torch.tensor([-4.0, 2.3])
        drawn = _crops(network, images, lesions, lesion_weights, crop=crop, config=config, seed=seed)

        def loss_of(rows: NDArray[np.intp]) -> Tensor:
            inputs = _cut(images, rows, crop=crop)
            change = (2 * torch.rand((2, len(rows), 1, 1, 1), generator=generator) - 1) * config.contrast
            inputs = inputs * (1 + change[0]) + change[1] + config.noise * torch.randn(inputs.shape, generator=generator)
            heat, sizes, centres = _targets(lesions, rows, crop=crop)
            return detection_loss(logits_of(network, inputs, config=config), heat, sizes, centres)

        losses = fit(network, loss_of, batches=drawn, config=config, judge="lesion detector", progress=progress)
    return _detector(network, finding=finding, image_size=side, trained_on=trained_on, num_lesions=len(lesions.image), config=config,
                     losses=losses)


def detection_loss(maps: Tensor, heat: Tensor, sizes: Tensor, centres: Tensor) -> Tensor:
    """Focal loss of the centres and L1 loss of the logarithm of the sizes (Zhou et al. 2019, Eq. 1 and 3), for each centre.

    `maps` [B, 2, H, W] as the network gives them; `heat` [B, H, W] in [0, 1], 1 at centres; `sizes` [B, H, W], logarithms; `centres`
    [B, H, W] bool.
    """
    logits, found = maps[:, 0], maps[:, 1]
    probability = torch.sigmoid(logits)
    hit = -((1 - probability) ** 2) * F.logsigmoid(logits)
    missed = -((1 - heat) ** 4) * probability**2 * F.logsigmoid(-logits)
    num = centres.sum().clamp_min(1)
    return (torch.where(centres, hit, missed).sum() + SIZE_WEIGHT * ((found - sizes).abs() * centres).sum()) / num


def _crops(network: DetectorNetwork, images: ImageArray, lesions: LesionBoxes, lesion_weights: NDArray[np.floating] | None, *, crop: int,
           config: DetectorConfig, seed: int) -> Iterator[NDArray[np.intp]]:
    """Image, top and left of the crops of each update, [B, 3]."""
    rng = np.random.default_rng(seed)
    side = images.shape[1]
    weights = np.ones(len(lesions.image)) if lesion_weights is None else np.asarray(lesion_weights, dtype=np.float64)
    if weights.shape != lesions.image.shape or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise UsageError("lesion_weights must be one finite number of at least 0 for each lesion, not all 0")
    num_lesions = max(1, round(config.lesion_share * config.batch_size))
    num_hard = round(config.hard_share * config.batch_size)
    hard = np.zeros((0, 3))
    for update in range(config.updates):
        if update in (config.updates // 3, 2 * config.updates // 3) and config.mined:
            hard = _false_marks(network, images, lesions, rows=np.sort(rng.permutation(len(images))[: config.mined]))
        chosen = rng.choice(len(weights), size=num_lesions, p=weights / weights.sum())
        around = [np.stack([lesions.image[chosen], lesions.y[chosen], lesions.x[chosen]], axis=1)]
        if len(hard):
            around.append(hard[rng.integers(len(hard), size=num_hard)])
        rest = config.batch_size - sum(map(len, around))
        around.append(np.stack([rng.integers(len(images), size=rest), *(rng.uniform(0, side, size=rest) for _ in range(2))], axis=1))
        middles = np.concatenate(around)
        middles[:, 1:] += rng.uniform(-crop / 3, crop / 3, size=(len(middles), 2)) - crop / 2
        yield np.concatenate([middles[:, :1], middles[:, 1:].round().clip(0, side - crop)], axis=1).astype(np.intp)


def _false_marks(network: DetectorNetwork, images: ImageArray, lesions: LesionBoxes, *, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Image, y and x of the strongest marks that hit nothing, [H, 3]: two an image, and the weaker half of them forgotten."""
    network.eval()
    found, _ = _maps(network, images[rows])
    network.train()
    false = []
    for row, scores in zip(rows, found, strict=True):
        marks = strongest_places(scores, distance_px=2 * STRIDE, most=4, stride=STRIDE)
        own = lesions.image == row
        far = [np.all(np.hypot(lesions.x[own] - x, lesions.y[own] - y) > lesions.diameter[own])
               for x, y in zip(marks.x, marks.y, strict=True)]
        false += [(score, row, y, x) for x, y, score, wrong in zip(marks.x, marks.y, marks.score, far, strict=True) if wrong][:2]
    false.sort(key=lambda mark: -mark[0])
    return np.array([mark[1:] for mark in false[: max(1, len(false) // 2)]], dtype=np.float64).reshape(-1, 3)


def _cut(images: ImageArray, rows: NDArray[np.intp], *, crop: int) -> Tensor:
    """Crops [B, 1, C, C] of standardised images: mean and spread are those of the whole image."""
    parts = []
    for image, top, left in rows:
        whole = images[image]
        part = whole[top : top + crop, left : left + crop].astype(np.float32)
        parts.append((part - whole.mean()) / max(float(whole.std()), 1e-3 * np.iinfo(images.dtype).max))
    return torch.from_numpy(np.stack(parts).astype(np.float32))[:, None]


def _targets(lesions: LesionBoxes, rows: NDArray[np.intp], *, crop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heat, logarithm of the size, and centres of the lesions in each crop, [B, C/4, C/4] each."""
    cells = crop // STRIDE
    heat, sizes = np.zeros((len(rows), cells, cells), np.float32), np.zeros((len(rows), cells, cells), np.float32)
    centres = np.zeros((len(rows), cells, cells), np.bool_)
    grid = np.arange(cells)
    for number, (image, top, left) in enumerate(rows):
        for lesion in np.flatnonzero(lesions.image == image):
            row, column = (lesions.y[lesion] - top) / STRIDE - 0.5, (lesions.x[lesion] - left) / STRIDE - 0.5
            spread = max(0.8, float(lesions.diameter[lesion]) / STRIDE / 4)
            bump = np.exp(-((grid[:, None] - row) ** 2 + (grid[None] - column) ** 2) / (2 * spread**2))
            heat[number] = np.maximum(heat[number], bump)
            near = int(np.floor(row + 0.5)), int(np.floor(column + 0.5))
            if all(0 <= place < cells for place in near):
                centres[number][near] = True
                sizes[number][near] = np.log(max(float(lesions.diameter[lesion]), 1.0))
    return torch.from_numpy(heat), torch.from_numpy(sizes), torch.from_numpy(centres)


def _maps(network: DetectorNetwork, images: ImageArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    device = next(network.parameters()).device
    heat, sizes = [], []
    with torch.inference_mode():
        for start in range(0, len(images), 16):
            seen = network(standardise(images[start : start + 16], size=images.shape[1]).to(device)).float().cpu()
            heat.append(torch.sigmoid(seen[:, 0]))
            sizes.append(seen[:, 1].exp())
    return np.asarray(torch.cat(heat).numpy()), np.asarray(torch.cat(sizes).numpy())


def _detector(network: DetectorNetwork, *, finding: str, image_size: int, trained_on: str, num_lesions: int, config: DetectorConfig,
              losses: tuple[float, ...]) -> LesionDetector:
    network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # as in training, so that every sum is the same
    return LesionDetector(name=f"lesion-detector-{finding.lower()}-{image_size}px-w{config.width}",
                          digest=network_digest(network, also=repr((finding, image_size, trained_on))), finding=finding,
                          image_size=image_size, trained_on=trained_on, num_lesions=num_lesions, config=config, network=network,
                          losses=losses)
