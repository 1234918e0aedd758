"""Membership by the loss: does a diffusion model take less noise for its training images than for others?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthorax.data.prepared import Prepared
from synthorax.data.vocabulary import label_matrix
from synthorax.evaluation.statistics.roc import AurocInterval
from synthorax.families.denoising.model import DiffusionModel
from synthorax.privacy.audit import Attack
from synthorax.privacy.membership import denoising_losses, loss_auroc
from synthorax.protocols import condition_of
from synthorax.rng import derive
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.types import ImageSet


def loss_attack(prepared: Prepared, model: TrainedModel, reference: TrainedModel | None, *, seed: int) -> Attack | str:
    """What tells members by a model's denoising loss, less that of a `reference` that never saw them, or why this model has none."""
    opened = [own for own in (model, reference) if own is not None]
    networks = [own.stages[0].build() for own in opened]
    for own, network in zip(opened, networks, strict=True):
        if not isinstance(network, DiffusionModel) or network.needs_image:
            return f"{own} is no diffusion model that makes images of nothing"
        if prepared.size % network.spec.image_size:
            return f"images of {prepared.size} px cannot be reduced to the {network.spec.image_size} px of {own}"

    def losses(network: Any, split: str, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        parts = [prepared.images(part, size=network.spec.image_size) for part in (("train",) if split == "train" else ("val", "test"))]
        chosen = ImageSet.join(parts).take(rows)
        images, studies = chosen.pixels, chosen.studies
        unit = torch.from_numpy(images.astype(np.float32))[:, None] / np.iinfo(images.dtype).max * 2 - 1
        condition = condition_of(studies, label_matrix(studies, network.spec.findings, policy=prepared.policy), sites=network.spec.sites)
        return denoising_losses(network, unit, condition, seed=derive(seed, split))

    def attack(rows: NDArray[np.intp], rows_held: NDArray[np.intp]) -> tuple[AurocInterval, str]:
        members, others = ([losses(network, split, part) for network in networks] for split, part in
                           (("train", rows), ("held out", rows_held)))
        if reference is None:
            return loss_auroc(members[0], others[0]), "denoising loss at several noise levels"
        return loss_auroc(members[0] - members[1], others[0] - others[1]), f"denoising loss, less that of {reference}"

    return attack
