"""The three judges of small lesions: the untrained filter, the channelised observer and the detector, on discs whose places are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.free_response import free_response, sensitivity_at
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.blob_filter import BlobFilter
from synthorax.judges.channelised_observer import ChannelisedObserver, Places, channel_values, train_observer
from synthorax.judges.lesion_detector import DetectorConfig, LesionDetector, detection_loss, train_detector
from synthorax.judges.marks import LesionBoxes


def textured(num, *, size, seed, contrast=60.0, radius=4.0, share=0.5):
    """Images of smooth noise [N, S, S] with a soft disc on a share of them, and the discs as lesions."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(num, size, size)), (0, 2, 2))
    images = 110 + 25 * noise / noise.std()
    y, x = np.mgrid[:size, :size] + 0.5
    found = []
    for image in range(round(share * num)):
        at = rng.uniform(12, size - 12, size=2)
        images[image] += contrast / (1 + np.exp(2 * (np.hypot(x - at[0], y - at[1]) - radius)))
        found.append((image, *at, 2 * radius, 2 * radius))
    table = np.array(found).reshape(-1, 5)
    lesions = LesionBoxes(image=table[:, 0].astype(int), x=table[:, 1], y=table[:, 2], width=table[:, 3], height=table[:, 4],
                          outlined=np.ones(len(table), bool))
    return images.clip(0, 255).round().astype(np.uint8), lesions


def disc(diameter, *, size=64):
    y, x = np.mgrid[:size, :size] + 0.5
    return (60 + 80 * (np.hypot(x - 40, y - 24) <= diameter / 2)).astype(np.uint8)[None]


# the untrained filter

@pytest.mark.parametrize("kind", ["laplacian", "curvature"])
def test_the_filter_marks_the_middle_of_a_disc_and_answers_most_at_its_own_size(kind):
    for wanted in (10.0, 12.0, 16.0):
        marks = BlobFilter(diameters_px=(wanted,), kind=kind).marks(disc(12))
        assert np.hypot(marks.x[0] - 40, marks.y[0] - 24) < 1.5
    if kind == "laplacian":  # in closed form: s^2 LoG of a disc is largest at s = r / sqrt(2)
        grey = disc(12)[0].astype(float)
        raw = {d: -(d / 2**1.5) ** 2 * ndimage.gaussian_laplace(grey, d / 2**1.5)[24, 40] for d in (6.0, 9.0, 12.0, 16.0)}
        assert max(raw, key=raw.get) == 12.0
        assert raw[12.0] == pytest.approx(80 * 2 / np.e, rel=0.05)  # (r^2 / s^2) exp(-r^2 / 2 s^2) = 2 / e of the contrast


def test_a_ridge_is_a_blob_to_the_laplacian_alone():
    ridge = np.full((1, 64, 64), 60, np.uint8)
    ridge[0, :, 28:36] = 140
    middle = {kind: BlobFilter(diameters_px=(12.0,), kind=kind).maps(ridge)[0, 32, 32] for kind in ("laplacian", "curvature")}
    assert middle["laplacian"] > 1 and abs(middle["curvature"]) < 0.05


def test_dark_blobs_sizes_in_millimetres_and_digests():
    assert BlobFilter(bright=False).marks(255 - disc(10)).x[0] == BlobFilter().marks(disc(10)).x[0]
    assert BlobFilter.of_millimetres((9.0,), spacing_mm=0.75).diameters_px == (12.0,)
    assert len({one.digest for one in (BlobFilter(), BlobFilter(bright=False), BlobFilter(diameters_px=(9.0,)))}) == 3
    for wrong in ((), (1.0,), (float("nan"),)):
        with pytest.raises(UsageError):
            BlobFilter(diameters_px=wrong)


def test_an_even_image_has_no_blob_and_16_bits_are_as_8():
    assert not np.any(BlobFilter().maps(np.full((1, 32, 32), 77, np.uint8)) > 1e-6)
    eight = BlobFilter().maps(disc(10))
    sixteen = BlobFilter().maps(disc(10).astype(np.uint16) * 257)
    np.testing.assert_allclose(eight, sixteen, atol=1e-9)


# the channelised observer

def places_of(lesions):
    return Places(image=lesions.image, x=lesions.x, y=lesions.y)


@pytest.fixture(scope="module")
def observer():
    images, lesions = textured(60, size=64, seed=1, contrast=45)
    return train_observer(images, places_of(lesions), places_of(lesions).mirrored(image_size=64), finding="Nodule",
                          trained_on="drawn discs")


def separates(observer, *, contrast, seed=2):
    images, lesions = textured(60, size=64, seed=seed, contrast=contrast)
    here, there = (observer.scores(images, places) for places in (places_of(lesions), places_of(lesions).mirrored(image_size=64)))
    return auroc([1] * len(here) + [0] * len(there), [*here, *there])


def test_the_observer_sees_lesions_and_the_fainter_the_less(observer):
    """A constructed failure: lesions that were asked for and left out leave it at chance."""
    seen = [separates(observer, contrast=contrast) for contrast in (0, 25, 60)]
    assert 0.3 < seen[0] < 0.65 and seen == sorted(seen) and seen[2] > 0.95


def test_shuffled_labels_teach_the_observer_nothing():
    images, lesions = textured(60, size=64, seed=3, share=1.0)
    rng = np.random.default_rng(0)
    mixed = [places_of(lesions), places_of(lesions).mirrored(image_size=64)]
    chosen = rng.random(60) < 0.5
    swapped = [Places(image=lesions.image, x=np.where(chosen, mixed[a].x, mixed[b].x), y=lesions.y) for a, b in ((0, 1), (1, 0))]
    blind = train_observer(images, *swapped, finding="Nodule", trained_on="shuffled")
    assert separates(blind, contrast=45) < 0.85


def test_the_map_of_the_observer_holds_its_scores_at_places(observer):
    images, lesions = textured(6, size=64, seed=4, share=1.0)
    dense = observer.maps(images)
    at = dense[lesions.image, np.floor(lesions.y).astype(int), np.floor(lesions.x).astype(int)]
    np.testing.assert_allclose(observer.scores(images, places_of(lesions)), at, atol=1e-9)
    assert sensitivity_at(free_response(observer.marks(images), lesions), rate=2) > 0.5


def test_the_observer_does_not_see_exposure_or_contrast(observer):
    images, lesions = textured(8, size=64, seed=5, contrast=40)
    paler = (images.astype(float) * 0.5 + 60).round().astype(np.uint8)
    first, second = (channel_values(one, places_of(lesions), config=observer.config) for one in (images, paler))
    np.testing.assert_allclose(first, second, atol=0.05)


def test_an_observer_is_saved_and_other_files_are_refused(observer, tmp_path):
    observer.save(tmp_path / "one.json")
    again = ChannelisedObserver.load(tmp_path / "one.json")
    assert again.digest == observer.digest and np.array_equal(again.weights, observer.weights) and again.trained_on == "drawn discs"
    (tmp_path / "two.json").write_text((tmp_path / "one.json").read_text().replace('"image_size": 64', '"image_size": 128'))
    with pytest.raises(InputError, match="digest"):
        ChannelisedObserver.load(tmp_path / "two.json")
    (tmp_path / "three.json").write_text("{}")
    with pytest.raises(InputError, match="no channelised observer"):
        ChannelisedObserver.load(tmp_path / "three.json")


def test_an_observer_needs_places_and_its_own_size(observer):
    images, lesions = textured(8, size=64, seed=6)
    with pytest.raises(InputError, match="needs 5 each"):
        train_observer(images, places_of(lesions).take(np.arange(4)), places_of(lesions), finding="Nodule", trained_on="drawn discs")
    with pytest.raises(UsageError, match="64 px"):
        observer.scores(np.zeros((1, 32, 32), np.uint8), places_of(lesions).take(np.array([0])))


# the detector

SMALL = DetectorConfig(updates=200, batch_size=12, width=12, crop_px=48, mined=20, autocast=False)


@pytest.fixture(scope="module")
def detector():
    return train_detector(*textured(80, size=64, seed=7, contrast=90), finding="Nodule", trained_on="drawn discs", config=SMALL, seed=0)


def test_the_detector_learns_to_find_discs_on_unseen_images(detector):
    images, lesions = textured(40, size=64, seed=8, contrast=90)
    found = free_response(detector.marks(images), lesions)
    assert sensitivity_at(found) > 0.7
    blank, gone = textured(40, size=64, seed=8, contrast=0)  # constructed failure: the lesions were left out
    assert sensitivity_at(free_response(detector.marks(blank), gone)) < 0.3
    assert auroc([1] * 20 + [0] * 20, detector.image_scores(images)) > 0.8


def test_sizes_are_those_of_the_discs(detector):
    images, lesions = textured(20, size=64, seed=9, contrast=90, share=1.0)
    _, sizes = detector.maps(images)
    seen = sizes[lesions.image, (lesions.y // 4).astype(int), (lesions.x // 4).astype(int)]
    assert 6 < np.median(seen) < 11


def test_one_seed_gives_one_detector(detector):
    short = replace(SMALL, updates=8)
    images, lesions = textured(12, size=64, seed=10)
    made = [train_detector(images, lesions, finding="Nodule", trained_on="discs", config=short, seed=seed).digest for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_a_detector_is_saved_and_says_what_it_was_trained_on(detector, tmp_path):
    detector.save(tmp_path / "one.safetensors")
    again = LesionDetector.load(tmp_path / "one.safetensors")
    images, _ = textured(3, size=64, seed=11)
    assert (again.name, again.digest, again.trained_on, again.num_lesions) == (detector.name, detector.digest, "drawn discs", 40)
    np.testing.assert_array_equal(again.maps(images)[0], detector.maps(images)[0])
    (tmp_path / "two.safetensors").write_bytes(b"something else")
    with pytest.raises(InputError):
        LesionDetector.load(tmp_path / "two.safetensors")


def test_marks_lie_where_they_may(detector):
    images, _ = textured(6, size=64, seed=12, share=1.0)
    left = np.zeros(images.shape, bool)
    left[:, :, :32] = True
    assert (detector.marks(images, within=left).x < 32).all()


def test_the_loss_by_hand():
    """A sure and right map costs nothing; a centre at probability 1/2 costs log(2)/4; a size that is off by a log of 1 costs 0.1."""
    import torch

    centres = torch.zeros((1, 4, 4), dtype=torch.bool)
    centres[0, 1, 2] = True
    heat, sizes = centres.float(), torch.full((1, 4, 4), 2.0)
    maps = torch.stack([torch.where(centres, 40.0, -40.0), sizes], dim=1)
    assert detection_loss(maps, heat, sizes, centres).item() == pytest.approx(0, abs=1e-6)
    maps[0, 0, 1, 2] = 0
    assert detection_loss(maps, heat, sizes, centres).item() == pytest.approx(np.log(2) / 4, rel=1e-5)
    maps[0, 0, 1, 2], maps[0, 1] = 40, 3.0
    assert detection_loss(maps, heat, sizes, centres).item() == pytest.approx(0.1, rel=1e-5)


def test_what_cannot_be_learned_is_refused():
    images, lesions = textured(4, size=64, seed=13)
    with pytest.raises(InputError, match="no image shows"):
        train_detector(images, lesions.take(np.zeros(0, int)), finding="Nodule", trained_on="nothing", config=SMALL, seed=0)
    with pytest.raises(UsageError, match="multiple of 16"):
        train_detector(images[:, :50, :50], lesions, finding="Nodule", trained_on="drawn discs", config=SMALL, seed=0)
    with pytest.raises(UsageError, match="lesion_weights"):
        train_detector(images, lesions, finding="Nodule", trained_on="drawn discs", config=SMALL, seed=0, lesion_weights=np.zeros(2))
