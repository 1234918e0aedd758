"""Near-duplicates: every planted copy is caught, real images of other patients are not."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate, zoom

from synthorax.errors import InputError
from synthorax.privacy.copies import CopyDetector, conformal_threshold

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


def changed(images, how):
    """Copies of images [N, 64, 64] as a generator might leave them."""
    grey = images.astype(np.float64)
    rng = np.random.default_rng(1)
    copies = {
        "verbatim": grey,
        "brighter": grey * 0.8 + 30,
        "more contrast": (grey - 128) * 1.4 + 128,
        "gamma": 255 * (grey / 255) ** 1.5,
        "inverted": 255 - grey,
        "shifted 1 px": np.roll(grey, (1, 0), (1, 2)),
        "shifted 2 px": np.roll(grey, (-2, 2), (1, 2)),
        "noise 5 %": grey + rng.normal(0, 0.05 * 255, grey.shape),
        "mirrored": grey[:, :, ::-1],
        "turned 3 degrees": rotate(grey, 3, axes=(1, 2), reshape=False, order=1, mode="nearest"),
        "turned back 5 degrees": rotate(grey, -5, axes=(1, 2), reshape=False, order=1, mode="nearest"),
        "5 % larger": zoom(grey, (1, 68 / 64, 68 / 64), order=1)[:, 2:66, 2:66],
        "blur 1 px": gaussian_filter(grey, (0, 1, 1)),
        "blur 2 px": gaussian_filter(grey, (0, 2, 2)),
    }
    return np.clip(np.rint(copies[how]), 0, 255).astype(np.uint8)


HOW = pytest.mark.parametrize("how", ["verbatim", "brighter", "more contrast", "gamma", "inverted", "shifted 1 px",
                                      "shifted 2 px", "noise 5 %", "mirrored", "turned 3 degrees", "turned back 5 degrees",
                                      "5 % larger", "blur 1 px", "blur 2 px"])


def random_images(seed, num):
    """Images that share a coarse layout and differ in detail, uint8 [num, 64, 64]."""
    rng = np.random.default_rng(seed)
    layout = zoom(np.random.default_rng(99).uniform(60, 200, (4, 4)), 16, order=1)
    detail = np.stack([zoom(rng.normal(0, 25, (16, 16)), 4, order=1) for _ in range(num)])
    return np.clip(layout + detail, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    return CopyDetector.fit(random_images(0, 150), random_images(1, 240))


@HOW
def test_planted_copies_are_caught_and_traced(detector, how):
    check = detector.check(changed(random_images(0, 150)[:40], how))
    assert check.is_copy.mean() >= 0.95
    assert (check.nearest_index == np.arange(40)).mean() >= 0.95


def test_new_images_are_not_copies(detector):
    alarms = detector.false_alarms(random_images(2, 300))
    assert alarms.rate <= 0.03
    assert alarms.low <= alarms.rate <= alarms.high and alarms.num_images == 300
    assert detector.calibration.rate <= 0.01


def test_each_way_has_its_own_answer(detector):
    check = detector.check(random_images(0, 150)[:5])
    assert set(check.ways) == set(detector.thresholds) == {"registration", "whitened pixels"}
    assert all(list(way.nearest_index) == list(range(5)) for way in check.ways.values())
    assert (check.similarity == check.ways["registration"].similarity).all()


def test_only_the_planted_ones_are_found_among_new_images(detector):
    mixed = random_images(3, 30)
    mixed[[4, 17]] = random_images(0, 150)[[140, 8]]
    check = detector.check(mixed)
    assert list(np.flatnonzero(check.is_copy)) == [4, 17]
    assert list(check.nearest_index[[4, 17]]) == [140, 8]


def test_answers_do_not_depend_on_company_size_or_depth(detector):
    images = random_images(0, 150)[30:33]
    alone, larger, deeper = images[:1], images.repeat(2, axis=1).repeat(2, axis=2), images.astype(np.uint16) * 257
    expected = detector.check(images)
    assert detector.check(alone).similarity == pytest.approx(expected.similarity[:1], abs=1e-5)
    for other in (larger, deeper):
        assert list(detector.check(other).nearest_index) == [30, 31, 32]
    assert detector.check(deeper).similarity == pytest.approx(expected.similarity, abs=1e-5)


def test_more_training_images_than_one_chunk_keep_their_numbers():
    train = np.random.default_rng(0).integers(0, 256, (600, 32, 32), dtype=np.uint8)
    detector = CopyDetector.fit(train, np.random.default_rng(1).integers(0, 256, (20, 32, 32), dtype=np.uint8))
    rows = [0, 511, 512, 599]
    assert list(detector.check(train[rows]).nearest_index) == rows


def test_flat_and_empty_input(detector):
    flat = detector.check(np.zeros((2, 64, 64), np.uint8))
    assert not flat.is_copy.any() and (flat.similarity == 0).all()
    assert detector.check(np.zeros((0, 64, 64), np.uint8)).is_copy.shape == (0,)


class MeanOfQuarters:
    """A feature space of four numbers: brightness of each quarter."""

    name, digest, num_features = "quarters", "0" * 64, 4

    def __call__(self, images):
        half = images.shape[1] // 2
        return np.stack([images[:, a:a + half, b:b + half].mean(axis=(1, 2)) for a in (0, half) for b in (0, half)],
                        axis=1).astype(np.float32)


def test_a_feature_space_is_a_second_way_to_detect_copies():
    """Pixels shuffled inside each quarter: no image resembles them, the feature space does not mind."""
    rng = np.random.default_rng(0)
    train, held_out = (np.clip(np.kron(rng.uniform(0, 200, (num, 2, 2)), np.ones((32, 32))) + rng.normal(20, 9, (num, 64, 64)),
                               0, 255).astype(np.uint8) for num in (8, 200))
    shuffled = train.copy()
    for quarter in (np.s_[:, :32, :32], np.s_[:, 32:, :32], np.s_[:, :32, 32:], np.s_[:, 32:, 32:]):
        shape = shuffled[quarter].shape
        shuffled[quarter] = rng.permuted(shuffled[quarter].reshape(len(train), -1), axis=1).reshape(shape)
    both = CopyDetector.fit(train, held_out, features=MeanOfQuarters(), false_alarm_rate=0.02)
    assert both.calibration.rate <= 0.02
    assert both.check(shuffled).is_copy.all()
    assert list(both.check(shuffled).nearest_index) == list(range(8))


@pytest.mark.parametrize(("num", "rate"), [(99, 0.01), (500, 0.01), (250, 0.05)])
def test_threshold_keeps_its_promise_on_average(num, rate):
    rng = np.random.default_rng(0)
    alarms = [np.mean(rng.normal(size=2000) > conformal_threshold(rng.normal(size=num), rate)) for _ in range(200)]
    assert np.mean(alarms) <= rate * 1.1
    assert np.mean(alarms) > rate * 0.6


def test_too_few_held_out_images():
    assert conformal_threshold(np.array([0.2, 0.9, 0.5]), 0.01) == 0.9
    with pytest.raises(InputError, match="better 100"):
        CopyDetector.fit(random_images(0, 20), random_images(1, 9))
    with pytest.raises(InputError, match="uint8 or uint16"):
        CopyDetector.fit(random_images(0, 20) / 255.0, random_images(1, 20))


# Real images


@pytest.fixture(scope="module")
def real_images():
    """Every other patient's images: training, held-out and never-seen ones, by patient, uint8 [N, 64, 64] each."""
    with (NIH / "metadata.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    patients = sorted({row["patient_id"] for row in rows})
    order = np.random.default_rng(0).permutation(len(patients))
    part_of = {patients[i]: part for part, rows_of in enumerate((order[:300], order[300:500], order[500:700])) for i in rows_of}
    parts = [[], [], []]
    for row in rows:
        if row["patient_id"] in part_of:
            image = Image.open(NIH / row["file_name"]).resize((64, 64), Image.Resampling.BOX)
            parts[part_of[row["patient_id"]]].append(np.asarray(image))
    return [np.stack(part) for part in parts]


@pytest.fixture(scope="module")
def real_detector(real_images):
    return CopyDetector.fit(real_images[0], real_images[1])


@HOW
@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside the checkout")
def test_copies_of_real_images_are_caught(real_images, real_detector, how):
    check = real_detector.check(changed(real_images[0][:150], how))
    assert check.is_copy.mean() >= 0.95
    assert (check.nearest_index == np.arange(150)).mean() >= 0.95


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside the checkout")
def test_real_images_of_other_patients_are_not_copies(real_images, real_detector):
    alarms = real_detector.false_alarms(real_images[2])
    assert alarms.low <= 0.01
    assert alarms.rate <= 0.03
