"""Realism: what is no radiograph of the set is called so, and real images of other patients hardly ever are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from phantoms import phantom_images
from synthorax.errors import InputError
from synthorax.judges.image_descriptors import layout
from synthorax.judges.realism import Realism, RealismCheck, _Space
from synthorax.types import ImageSet

SIZE = 64


@pytest.fixture(scope="module")
def real() -> ImageSet:
    return phantom_images(160, seed=1, px=SIZE)


@pytest.fixture(scope="module")
def check(real: ImageSet) -> RealismCheck:
    return RealismCheck.fit(real.take(range(120)), real.take(range(120, 160)))


@pytest.fixture(scope="module")
def unseen() -> ImageSet:
    return phantom_images(120, seed=2, px=SIZE)


def to_grey(images: np.ndarray) -> np.ndarray:
    grey: np.ndarray = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    return grey


def planted(images: np.ndarray, how: str) -> np.ndarray:
    """Images as no radiograph looks, one for each of `images` [N, S, S]."""
    rng = np.random.default_rng(0)
    noise, chance = rng.normal(size=images.shape), rng.random(images.shape)
    patches = np.kron(rng.normal(size=(len(images), SIZE // 8, SIZE // 8)), np.ones((8, 8)))
    flat = np.ones(images.shape) * rng.uniform(0, 255, (len(images), 1, 1))
    made = {
        "Gaussian noise": 128 + 50 * noise,
        "salt and pepper": np.where(chance < 0.1, 0, np.where(chance > 0.9, 255, images)),
        "real under noise": images + 50 * noise,
        "half denoised": ndimage.gaussian_filter(images.astype(float), (0, 4, 4)) + 30 * noise,
        "grainy patches": 128 + 30 * patches + 25 * noise,
        "constant": flat,
        "inverted": 255.0 - images,
        "upside down": images[:, ::-1],
        "turned by 90 degrees": np.rot90(images, axes=(1, 2)),
        "blurred": ndimage.gaussian_filter(images.astype(float), (0, 3, 3)),
        "mean image": images.mean(axis=0) + 2 * noise,
    }
    return to_grey(made[how])


@pytest.mark.parametrize("how", ["Gaussian noise", "salt and pepper", "real under noise", "half denoised", "grainy patches", "constant",
                                 "inverted", "upside down", "turned by 90 degrees", "blurred", "mean image"])
def test_what_is_no_radiograph_is_called_unrealistic(check: RealismCheck, unseen: ImageSet, how: str) -> None:
    found = check.check(planted(unseen.pixels, how))
    assert found.unrealistic.mean() >= 0.99
    assert (found.p[found.unrealistic] <= check.rate).all()


def test_real_images_of_other_patients_pass(check: RealismCheck, unseen: ImageSet) -> None:
    found = check.check(unseen.pixels)
    assert found.unrealistic.sum() <= 2
    assert (found.p > 0).all() and (found.p <= 1).all()
    assert ((found.p <= check.rate) == found.unrealistic).all()
    assert set(found.space) <= set(check.spaces)


def test_an_answer_does_not_depend_on_company_or_depth(check: RealismCheck, unseen: ImageSet) -> None:
    several, one = check.check(unseen.pixels[:70]), check.check(unseen.pixels[69:70])
    assert one.distance == pytest.approx(several.distance[69:])
    deeper = check.check(unseen.pixels[:70].astype(np.uint16) * 257)
    assert deeper.distance == pytest.approx(several.distance, rel=1e-6)


def test_few_real_images_are_enough_and_make_the_check_lenient(real: ImageSet, unseen: ImageSet) -> None:
    """Fewer real images than 1 / rate: the threshold lies beyond all of them, and noise is still far beyond that."""
    few = RealismCheck.fit(real.take(range(30)))
    assert not few.check(unseen.pixels).unrealistic[:60].any()
    assert few.check(planted(unseen.pixels, "Gaussian noise")).unrealistic.all()
    with pytest.raises(InputError, match="better 100"):
        RealismCheck.fit(real.take(range(5)))


def test_images_of_one_patient_are_not_held_against_one_another(real: ImageSet) -> None:
    """Every image twice, as two of one patient: were the second one in the reference, all distances would be 0."""
    twice = real.take(np.repeat(np.arange(60), 2))
    twice = replace(twice, pixels=twice.pixels.copy())
    assert RealismCheck.fit(twice).spaces["layout"].known.min() > 0.05


@pytest.mark.parametrize("num", [60, 400, 2000])
def test_the_rate_is_kept_whatever_the_number_of_real_images(num: int) -> None:
    """Of new draws from the same population, at most the rate is called, on average over many thresholds."""
    rng = np.random.default_rng(0)
    called = []
    for _ in range(200):
        known = np.sort(rng.chisquare(10, num) ** 0.5)
        space = _Space(describe=layout, models=(), known=known, rate=0.005)
        new = rng.chisquare(10, 2000) ** 0.5
        called.append((new > space.threshold).mean())
        assert ((space.p(new) <= 0.005) == (new > space.threshold)).all()
    assert np.mean(called) <= 0.006


def test_the_answer_names_the_farthest_space(check: RealismCheck, unseen: ImageSet) -> None:
    found: Realism = check.check(planted(unseen.pixels, "Gaussian noise"))
    assert {space.partition(",")[0] for space in found.space} == {"appearance"}
    assert (found.distance > found.threshold).all()
