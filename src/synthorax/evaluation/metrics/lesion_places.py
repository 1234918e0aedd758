"""Are small lesions at the places where they were requested? By an observer that learned from real ones; no segmenter is needed."""

from __future__ import annotations

import numpy as np

from synthorax.data.lesions import PROPERTIES
from synthorax.errors import InputError
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.statistics.roc import delong_interval
from synthorax.judges.channelised_observer import ChannelisedObserver, Places, train_observer
from synthorax.judges.marks import LesionBoxes
from synthorax.types import ImageSet, Score

LARGEST = 0.2
"""lesions up to this part of the image's side have a place; larger ones have an outline, which is judged elsewhere"""
MIN_REAL_PLACES, MIN_REQUESTED_PLACES = 10, 5


def requested_places(images: ImageSet, finding: str) -> Places:
    """Middles of the small lesions of a finding: of its masks and boxes, and where an image has none, of its `lesion_x` and `lesion_y`."""
    side = images.pixels.shape[1]
    rows, x, y = [np.zeros(0, dtype=np.intp)], [np.zeros(0)], [np.zeros(0)]
    masked = np.zeros(len(images), dtype=np.bool_)
    if images.masks is not None and finding in images.masks.names:
        found = LesionBoxes.of_masks(images.masks, finding)
        masked[found.image] = True
        found = found.take(found.diameter <= LARGEST * side)
        rows, x, y = [found.image], [found.x], [found.y]
    if images.lesions is not None and finding in images.findings:
        told = images.lesions[:, images.findings.index(finding)].astype(np.float64)
        size, across, down = (told[:, PROPERTIES.index(name)] for name in ("size", "x", "y"))
        chosen = np.flatnonzero(np.isfinite(across) & np.isfinite(down) & ~masked & ~(size > 2 * LARGEST))
        rows, x, y = [*rows, chosen], [*x, across[chosen] * side], [*y, down[chosen] * side]
    return Places(image=np.concatenate(rows), x=np.concatenate(x), y=np.concatenate(y))


def observed_places(real: RealImages, synthetic: ImageSet, finding: str) -> tuple[Score, ChannelisedObserver]:
    """AUROC of the observer between requested places and the mirrored places of the same images; floor: real held-out lesions.

    It learns from the lesions of the real training images, where it is given at least ten. Places near the midline, whose mirror is almost
    the same place, are left out. Raises InputError where there are too few.
    """
    side = synthetic.pixels.shape[1]
    known, other, asked = (_off_midline(requested_places(images, finding), side=side) for images in (real.train, real.held_out, synthetic))
    if len(known.image) < MIN_REAL_PLACES or len(asked.image) < MIN_REQUESTED_PLACES:
        raise InputError(f"{len(known.image)} real training lesions of '{finding}' and {len(asked.image)} requested ones are small and "
                         f"have a place; {MIN_REAL_PLACES} and {MIN_REQUESTED_PLACES} are needed")
    observer = train_observer(real.train.pixels, known, known.mirrored(image_size=side), finding=finding, trained_on="real")
    area, low, high = _auroc(observer, synthetic, asked)
    floor = _auroc(observer, real.held_out, other)[0] if len(other.image) >= MIN_REQUESTED_PLACES else None
    note = f"{len(asked.image)} places against the mirrored ones; the observer learned from {len(known.image)} real lesions"
    if floor is None:
        note += "; no floor: too few held-out lesions"
    return Score(metric="requested_place_auroc", value=area, low=low, high=high, n_real=len(other.image), n_synthetic=len(asked.image),
                 group=finding, features=observer.name, floor=floor, note=note), observer


def _off_midline(places: Places, *, side: int) -> Places:
    return places.take(np.abs(2 * places.x - side) >= LARGEST / 2 * side)


def _auroc(observer: ChannelisedObserver, images: ImageSet, places: Places) -> tuple[float, float, float]:
    here = observer.scores(images.pixels, places)
    there = observer.scores(images.pixels, places.mirrored(image_size=images.pixels.shape[1]))
    found = delong_interval(np.repeat([1, 0], len(here)), np.concatenate([here, there]))
    return found.auc, found.low, found.high
