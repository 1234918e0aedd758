"""A judge that tells two images of one patient from images of two: it learns from follow-ups, and what it finds is identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthorax.errors import InputError
from synthorax.judges.classifier import ResidualNetwork
from synthorax.judges.config import SamePatientConfig as SamePatientConfig
from synthorax.judges.fitting import (
    ImageArray,
    Variation,
    check_image_size,
    check_images,
    fit,
    logits_of,
    network_digest,
    one_thread,
    ready,
    standardise,
    vary,
)
from synthorax.judges.residual import initialise
from synthorax.progress import Progress, quiet
from synthorax.rng import derive

MIN_FOLLOWED_PATIENTS = 20
"""patients with two images or more, below which nothing is learned that holds for others"""
POSITIONING = Variation(degrees=6, scale=0.08, shift=0.08, contrast=0.3, brightness=0.3, noise=0.1)
"""what differs between two images of a patient and is not identity"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamePatientJudge:
    """A trained embedding: the product of two images' embeddings says how likely they are of one patient."""

    name: str
    digest: str
    """SHA-256 over all weights and running statistics"""
    image_size: int
    """pixels a side of the images that it accepts"""
    num_patients: int
    """patients with two images or more, from whom it learned"""
    config: SamePatientConfig
    network: ResidualNetwork = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    """training loss of every update"""

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return self.config.num_features

    def __call__(self, images: ImageArray) -> NDArray[np.float32]:
        """Images [N, S, S] to embeddings [N, F] of length 1."""
        check_image_size(images, image_size=self.image_size, judge=self.name)
        device = next(self.network.parameters()).device
        chunks = (images[start : start + 256] for start in range(0, len(images), 256))
        with one_thread(), torch.inference_mode():
            outputs = [F.normalize(self.network(standardise(chunk, size=self.config.input_size).to(device)), dim=1).cpu()
                       for chunk in chunks]
        return torch.cat(outputs).numpy()


def train_same_patient(images: ImageArray, patients: Sequence[str] | NDArray[np.str_], *, config: SamePatientConfig, seed: int,
                       progress: Progress = quiet) -> SamePatientJudge:
    """Train on images [N, S, S] and their patients [N] with the contrastive loss of Chen et al. 2020 (NT-Xent, Eq. 1).

    A batch is pairs: two different images of a patient, or one image twice; both images of a pair are varied in position, exposure and
    noise. All patients of a batch are different, so every other image is of somebody else. On the CPU the same arguments give the
    same weights. Raises `InputError` for fewer than 20 patients with two images.

    >>> images, patients = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8), np.repeat(range(20), 2)
    >>> train_same_patient(images, patients, config=SamePatientConfig(updates=1), seed=0)(images).shape
    (40, 64)
    """
    check_images(images)
    images_of = _images_of(patients)
    followed = [name for name, rows in images_of.items() if len(rows) > 1]
    if len(followed) < MIN_FOLLOWED_PATIENTS:
        raise InputError(f"only {len(followed)} training patients have two images, and {MIN_FOLLOWED_PATIENTS} are needed to learn what "
                         "the images of a patient share", remedy="add follow-up images, or name the patients in patient_id")
    with one_thread():
        return _train(images, images_of, followed, config=ready(config), seed=seed, progress=progress)


def _train(images: ImageArray, images_of: dict[str, NDArray[np.intp]], followed: list[str], *, config: SamePatientConfig, seed: int,
           progress: Progress) -> SamePatientJudge:
    generator = torch.Generator().manual_seed(seed)
    size = min(images.shape[1], config.input_size)
    network = ResidualNetwork(num_findings=config.num_features, width=config.width, input_size=size)
    initialise(network, head=network.head, bias=0.0, generator=generator)
    torch.nn.init.orthogonal_(network.head.weight, generator=generator)  # directions must differ from the start

    def loss_of(rows: NDArray[np.intp]) -> Tensor:
        inputs, = vary(standardise(images[rows], size=size), by=POSITIONING, generator=generator)
        return contrastive_loss(logits_of(network, inputs, config=config), temperature=config.temperature).mean()

    losses = fit(network, loss_of, batches=_pairs(images_of, followed, config=config, seed=seed), config=config,
                 judge="same-patient judge", progress=progress)
    return SamePatientJudge(name=f"same-patient-{size}px-w{config.width}", digest=network_digest(network), image_size=images.shape[1],
                            num_patients=len(followed), config=config, network=network, losses=losses)


def contrastive_loss(embeddings: Tensor, *, temperature: float) -> Tensor:
    """For embeddings [2 P, F] in which rows i and P + i are a pair: -ln of the softmax share of the own pair, [2 P]."""
    unit = F.normalize(embeddings, dim=1)
    likeness = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(likeness, torch.arange(len(unit)).roll(len(unit) // 2).to(unit.device), reduction="none")


def _images_of(patients: Sequence[str] | NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    names = np.asarray(patients)
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


def _pairs(images_of: dict[str, NDArray[np.intp]], followed: list[str], *, config: SamePatientConfig, seed: int,
           ) -> list[NDArray[np.intp]]:
    """Rows of each update, [2 P]: first images of all pairs, then second ones; every patient at most once."""
    rng = np.random.default_rng(derive(seed, "pairs"))
    names, num_pairs = list(images_of), min(config.batch_size // 2, len(images_of))
    batches = []
    for _ in range(config.updates):
        chosen = [followed[i] for i in rng.permutation(len(followed))[:round(config.follow_ups * num_pairs)]]
        taken = set(chosen)
        others = [name for name in (names[i] for i in rng.permutation(len(names))) if name not in taken][:num_pairs - len(chosen)]
        pairs = [rng.choice(images_of[name], 2, replace=False) for name in chosen]
        pairs += [np.repeat(rng.choice(images_of[name], 1), 2) for name in others]
        batches.append(np.stack(pairs).T.reshape(-1))
    return batches
