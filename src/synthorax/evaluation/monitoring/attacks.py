"""Attacks on a training set, to measure what `evaluation.monitoring.poison` notices: gradient noise, patch triggers, flipped labels."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from synthorax.errors import UsageError
from synthorax.judges.classifier import Classifier
from synthorax.judges.fitting import ImageArray, one_thread
from synthorax.types import ImageSet

EPSILON = 4 / 255
STEPS = 10


def with_gradient_noise(images: ImageSet, judge: Classifier, *, epsilon: float = EPSILON, steps: int = 1) -> ImageArray:
    """Images [N, S, S] that the judge calls wrongly, no pixel moved by more than `epsilon` of the range.

    One step is FGSM (Goodfellow et al. 2015, Sec. 4); several of 2.5 epsilon / steps each are PGD (Madry et al. 2018, Eq. 3), without a
    random start. The loss is that of the stated labels.
    """
    top = np.iinfo(images.pixels.dtype).max
    changed = []
    for start in range(0, len(images), 128):
        clean = torch.from_numpy(images.pixels[start : start + 128].astype(np.float32) / top)[:, None]
        image, size = clean.clone(), epsilon if steps == 1 else 2.5 * epsilon / steps
        for _ in range(steps):
            slope = torch.from_numpy(loss_gradient(image[:, 0].numpy(), images.labels[start : start + 128], judge))[:, None]
            image = (image + size * slope.sign()).clamp(clean - epsilon, clean + epsilon).clamp(0, 1)
        changed.append((image[:, 0].numpy() * top).round().astype(images.pixels.dtype))
    return np.concatenate(changed)


def loss_gradient(grey: NDArray[np.float32], labels: NDArray[np.floating], judge: Classifier) -> NDArray[np.float32]:
    """Gradient of the judge's cross-entropy on the stated labels [N, K], by the images [N, S, S] in [0, 1]."""
    image = torch.from_numpy(grey)[:, None].requires_grad_()
    seen = torch.nn.functional.interpolate(image, size=(judge.config.input_size,) * 2, mode="area") \
        if image.shape[-1] > judge.config.input_size else image
    centre, spread = seen.mean(dim=(1, 2, 3), keepdim=True), seen.std(dim=(1, 2, 3), keepdim=True)
    given = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    with one_thread():
        losses = torch.nn.functional.binary_cross_entropy_with_logits(judge.network((seen - centre) / spread.clamp_min(1e-3)),
                                                                      given.nan_to_num(0.0), reduction="none")
        slope, = torch.autograd.grad((losses * ~given.isnan()).sum(), image)
    return cast(NDArray[np.float32], slope[:, 0].numpy())


def with_patch(images: ImageArray, *, corner: tuple[int, int], side: int = 4) -> ImageArray:
    """Images [N, S, S] with a checkered square of black and white pixels at row and column `corner`, the trigger of a backdoor."""
    if min(corner) < 0 or max(corner) + side > images.shape[1]:
        raise UsageError(f"a patch of {side} px at {corner} leaves images of {images.shape[1]} px")
    marked = images.copy()
    marked[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = \
        np.iinfo(images.dtype).max * (np.indices((side, side)).sum(axis=0) % 2)
    return marked


def with_flipped(labels: NDArray[np.float32], rows: NDArray[np.intp], column: int) -> NDArray[np.float32]:
    """Labels [N, K] in which one finding is stated the other way round at `rows`; what is not stated stays so."""
    flipped = labels.copy()
    flipped[rows, column] = 1 - flipped[rows, column]
    return flipped
