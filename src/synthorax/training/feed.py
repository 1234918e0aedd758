"""Batches of images whose content depends on the seed and the batch number alone, so that any run can be continued exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.data.describe import describe
from synthorax.data.masks import lesion_union, mask_stack
from synthorax.data.pixels import to_unit
from synthorax.data.vocabulary import NO_FINDING
from synthorax.engine import Engine
from synthorax.nets.affine import affine_matrix, resample
from synthorax.protocols import LESION_PROPERTIES, UNCERTAIN, Batch, Condition, ModelSpec, condition_of
from synthorax.rng import Draws, derive
from synthorax.training.augmentation import BLACK, carried, told_augmentation
from synthorax.training.text_statements import made_up_text, read
from synthorax.types import ImageSet, Lesion, Masks, Stated

MAX_ROTATION_DEGREES = 3.0
MAX_ZOOM = 0.05
MAX_SHIFT = 0.03  # of the image's side
MAX_EXPOSURE = 0.08  # of the grey range
OWN_READING = 0.5  # how often reading is practised on an image's own text
OWN_TEXT = 0.5  # how often an image that has a text of its own is described by it


class Feed:
    """Draws images with replacement, weighted by `balance`, and augments them slightly, or strongly where the model is `told` how.

    With `balance` b an image's weight is the largest (1 / prevalence)^b of the findings that it shows. Weighting by labels leaves
    the distribution of images given their labels unchanged, which is what a conditional model learns. The condition has the parts
    on which `spec` says that the model is conditioned: labels and attributes always, the others where they are among `spec.conditions`.
    """

    def __init__(self, images: ImageSet, *, spec: ModelSpec, batch_size: int, balance: float, augment: bool, seed: int,
                 engine: Engine, told: bool = False) -> None:
        self.images, self.spec, self.augment, self.told, self.seed, self.engine = images, spec, augment, told, seed, engine
        self.batch_size = batch_size  # of one process
        self.condition = condition_of(images.studies, labels_with_uncertain(images), sites=spec.sites)
        self.weights = torch.from_numpy(image_weights(images.labels, balance=balance))

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run, [B, 1, S, S]; each process gets its own part of the global batch."""
        total = self.batch_size * self.engine.world_size
        generator = torch.Generator().manual_seed(derive(self.seed, "films", number))
        rows = torch.multinomial(self.weights, total, replacement=True, generator=generator)
        mine = range(self.engine.rank * self.batch_size, (self.engine.rank + 1) * self.batch_size)
        return self.batch_of(rows[list(mine)], [derive(self.seed, "draw", number, position) for position in mine])

    def batch_of(self, rows: Tensor, seeds: Sequence[int]) -> Batch:
        """The images of these rows [B], each with the random stream of its seed, [B, 1, S, S]."""
        draws = Draws(seeds, device=self.engine.device)
        device = self.engine.device
        images = unit_images(self.images.pixels[rows.numpy()]).to(device)
        condition = self._condition(rows, seeds).to(device)
        lesion = None
        if self.images.masks is not None:
            lesion = torch.from_numpy(lesion_union(self.images.masks, rows.numpy())).to(device)
        if self.augment:
            change = told_augmentation if self.told else augment_batch
            images, condition, lesion = change(images, condition, lesion, draws)
        text_statements = None
        if condition.text is not None:
            text_statements = read([self._reading_text(text, seed) for text, seed in zip(condition.text, seeds, strict=True)],
                           self.spec.findings).to(device)
        return Batch(images=images, condition=condition, draws=draws, lesion=lesion, text_statements=text_statements)

    def _condition(self, rows: Tensor, seeds: Sequence[int]) -> Condition:
        images, parts, numbers = self.images, self.spec.conditions, rows.numpy()
        known = self.condition[rows]
        lesions = torch.from_numpy(images.lesions[numbers]) if "lesions" in parts and images.lesions is not None else None
        mask = torch.from_numpy(mask_stack(images.masks, numbers)) if "mask" in parts and images.masks is not None else None
        text = None
        if "text" in parts:
            text = tuple(self._text(row, seed) for row, seed in zip(numbers.tolist(), seeds, strict=True))
        return Condition(labels=known.labels, attributes=known.attributes, lesions=lesions, mask=mask, text=text)

    def _text(self, row: int, seed: int) -> str:
        """The image's own text, or a description of what is known of it in words that vary."""
        study = self.images.studies[row]
        rng = np.random.default_rng(derive(seed, "text"))
        if study.text and rng.random() < OWN_TEXT:
            return study.text
        labels = {name: stated for name, value in zip(self.images.findings, self.condition.labels[row].tolist(), strict=True)
                  if (stated := STATEMENTS.get(value)) is not None}
        if len(labels) == len(self.images.findings) and set(labels.values()) == {Stated.ABSENT}:
            labels[NO_FINDING] = Stated.PRESENT
        return describe(labels, lesions=lesions_from(self.images, row), view=study.view, sex=study.sex, age_years=study.age_years,
                        choose=lambda choices: int(rng.integers(choices)))

    def _reading_text(self, text: str, seed: int) -> str:
        """The text of an image in the batch, or as often one of no image."""
        rng = np.random.default_rng(derive(seed, "reading"))
        return text if rng.random() < OWN_READING else made_up_text(self.spec.findings, rng)


def varying_inputs(images: ImageSet, *, spec: ModelSpec) -> Condition:
    """What these images differ in, as a condition of one row: 1 where they state two values at least (a mask: any), NaN elsewhere."""
    known = condition_of(images.studies, labels_with_uncertain(images), sites=spec.sites)

    def differing(values: Tensor) -> Tensor:
        lowest, highest = values.nan_to_num(math.inf).amin(0), values.nan_to_num(-math.inf).amax(0)
        return torch.where(lowest < highest, 1.0, math.nan)[None]

    lesions = torch.full((1, len(spec.findings), len(LESION_PROPERTIES)), math.nan)
    if images.lesions is not None:
        lesions = differing(torch.from_numpy(images.lesions))
    mask = torch.full((1, len(spec.masks), 1, 1), math.nan)
    if images.masks is not None:
        stated = (images.masks.index != Masks.NOT_STATED).any(0)
        mask = torch.where(torch.from_numpy(stated), 1.0, math.nan)[None, :, None, None]
    return Condition(labels=differing(known.labels), attributes=differing(known.attributes), lesions=lesions, mask=mask)


STATEMENTS = {1.0: Stated.PRESENT, 0.0: Stated.ABSENT, UNCERTAIN: Stated.UNCERTAIN}


def labels_with_uncertain(images: ImageSet) -> NDArray[np.float32]:
    """Labels [N, K] in which findings that a reader was not sure of are `UNCERTAIN` where the label policy ignores them."""
    labels = images.labels.copy()
    for row, study in enumerate(images.studies):
        for column, name in enumerate(images.findings):
            if study.labels.get(name) is Stated.UNCERTAIN and math.isnan(labels[row, column]):
                labels[row, column] = UNCERTAIN
    return labels


def lesions_from(images: ImageSet, row: int) -> tuple[Lesion, ...]:
    """Side, size, severity and place of the findings of one image as far as they are known, one lesion a finding."""
    if images.lesions is None:
        return ()
    found = []
    for name, values in zip(images.findings, images.lesions[row].tolist(), strict=True):
        known = dict(zip(LESION_PROPERTIES, values, strict=True))
        if not all(math.isnan(value) for value in values):
            left = known.pop("left")
            side = "" if math.isnan(left) else "left" if left > 0.5 else "right"
            found.append(Lesion(finding=name, side=side, **known))
    return tuple(found)


def unit_images(images: NDArray[np.uint8] | NDArray[np.uint16]) -> Tensor:
    """Integer images [N, S, S] as float32 [N, 1, S, S] in [-1, 1]."""
    return torch.from_numpy(to_unit(images))[:, None]


def image_weights(labels: NDArray[np.float32], *, balance: float) -> NDArray[np.float64]:
    """Probability of drawing each image, [N, K] labels -> [N], as `Feed` describes."""
    present = labels == 1
    prevalence = present.mean(axis=0)
    rarity = np.where(prevalence > 0, np.maximum(prevalence, 1e-9) ** -balance, 0.0)
    weights = np.where(present, rarity, 0.0).max(axis=1, initial=0.0)
    weights[weights == 0] = 1.0  # nothing stated present: as a finding that every image shows
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def augment_batch(images: Tensor, condition: Condition, lesion: Tensor | None, draws: Draws) -> tuple[Tensor, Condition, Tensor | None]:
    """Rotate, zoom, shift and expose each image a little, [B, 1, S, S] in [-1, 1]; never a flip, which would move the heart.

    Masks and the stated place and size of lesions move along.
    """
    amount = draws.uniform(6) * 2 - 1  # [B, 6] in [-1, 1)
    angle = amount[:, 0] * math.radians(MAX_ROTATION_DEGREES)
    zoom = 1 + amount[:, 1] * MAX_ZOOM
    shift = amount[:, 2:4] * 2 * MAX_SHIFT  # the grid spans 2
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    matrix = affine_matrix(cosine, sine, shift)
    resampled = resample(images, matrix, padding="reflection")
    gain, offset = 1 + amount[:, 4] * MAX_EXPOSURE, amount[:, 5] * MAX_EXPOSURE
    exposed = ((resampled + 1) * gain[:, None, None, None] + offset[:, None, None, None] * (resampled > BLACK) - 1).clamp(-1, 1)

    parts, lesion = carried(condition, lesion, matrix, zoom=zoom)
    return exposed, parts, lesion
