"""Requested places: the observer sees lesions that are there, and not those that were left out or put elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from synthorax.data.lesions import PROPERTIES
from synthorax.errors import InputError
from synthorax.evaluation.dimensions.lesion_preservation import lesion_preservation
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.metrics.lesion_places import observed_places, requested_places
from synthorax.evaluation.metrics.segmentation import FittedSegmenter
from synthorax.judges.radiomics import RadiomicsFeatures
from synthorax.types import ImageSet, Masks, Study


def nodules(num, *, seed, contrast=70.0, drawn=True, size=64):
    """Images with one soft disc each, its mask, and its place in the table of lesions."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(num, size, size)), (0, 2, 2))
    images = 110 + 20 * noise / noise.std()
    y, x = np.mgrid[:size, :size] + 0.5
    at = np.stack([np.where(rng.random(num) < 0.5, rng.uniform(10, 24, num), rng.uniform(40, 54, num)), rng.uniform(10, 54, num)], axis=1)
    far = np.stack([np.hypot(x - column, y - row) for column, row in at])
    images += contrast / (1 + np.exp(2 * (far - 4)))
    lesions = np.full((num, 1, len(PROPERTIES)), np.nan, np.float32)
    lesions[:, 0, PROPERTIES.index("x")], lesions[:, 0, PROPERTIES.index("y")] = at[:, 0] / size, at[:, 1] / size
    masks = Masks(names=("Nodule",), pixels=np.where(far <= 4, 255, 0).astype(np.uint8), index=np.arange(num, dtype=np.int32)[:, None])
    studies = tuple(Study(file_name=f"{seed}-{row}.png", patient_id=f"{seed}-{row}") for row in range(num))
    return ImageSet(pixels=images.clip(0, 255).round().astype(np.uint8), studies=studies, findings=("Nodule",),
                    labels=np.ones((num, 1), np.float32), digest=str(seed), masks=masks if drawn else None, lesions=lesions)


REAL = RealImages(train=nodules(40, seed=1), held_out=nodules(20, seed=2))


def test_the_observer_grades_requests():
    """Constructed failures: lesions left out, and lesions that are elsewhere than requested."""
    faithful = observed_places(REAL, nodules(20, seed=3), "Nodule")[0]
    missing = observed_places(REAL, nodules(20, seed=3, contrast=0), "Nodule")[0]
    asked = nodules(20, seed=3)
    elsewhere = observed_places(REAL, replace(asked, pixels=np.roll(asked.pixels, 1, axis=0)), "Nodule")[0]
    assert faithful.metric == "requested_place_auroc" and faithful.value > 0.9 and faithful.floor > 0.9
    assert missing.value < 0.75 and elsewhere.value < 0.75
    assert faithful.low <= faithful.value <= faithful.high and "20 places" in faithful.note


def test_places_come_from_masks_and_where_there_are_none_from_the_table():
    with_masks, without = (requested_places(nodules(6, seed=4, drawn=drawn), "Nodule") for drawn in (True, False))
    np.testing.assert_array_equal(with_masks.image, without.image)
    assert np.abs(with_masks.x - without.x).max() < 1 and np.abs(with_masks.y - without.y).max() < 1


def test_large_lesions_have_no_place():
    images = nodules(6, seed=5)
    large = np.zeros_like(images.masks.pixels)
    large[:, 10:40, 10:40] = 255
    assert not len(requested_places(replace(images, masks=replace(images.masks, pixels=large), lesions=None), "Nodule").image)


def test_few_lesions_are_not_measured_and_the_dimension_says_so():
    with pytest.raises(InputError, match="10 and 5 are needed"):
        observed_places(replace(REAL, train=REAL.train.take(np.arange(8))), nodules(20, seed=3), "Nodule")


def test_the_dimension_holds_the_score_and_the_observer():
    unknown = FittedSegmenter(segmenter=None, reasons={})
    found = lesion_preservation(REAL, nodules(20, seed=3, drawn=False), unknown, space=RadiomicsFeatures(), seed=0)
    assert found.status == "measured" and [score.metric for score in found.scores] == ["requested_place_auroc"]
    assert len(found.extra["observers"]) == 1 and len(found.extra["observers"][0]["digest"]) == 64
