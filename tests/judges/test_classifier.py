"""The classifier: learns what can be learnt, repeats itself exactly, and never learns from what is not stated."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from synthorax.errors import UsageError
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.classifier import CLASSIC, ClassifierConfig, train_classifier
from synthorax.judges.fitting import image_batches, standardise, vary

TINY = ClassifierConfig(updates=40, batch_size=16, width=16, autocast=False)


def discs(seed, *, n=96, size=32):
    """Noise, with a disc on the left where column 0 says so and one on the right where column 1 does."""
    rng = np.random.default_rng(seed)
    images = rng.normal(100, 25, (n, size, size))
    labels = rng.integers(0, 2, (n, 2)).astype(np.float32)
    y, x = np.mgrid[:size, :size]
    for column, centre in enumerate((size / 4, 3 * size / 4)):
        disc = (x - centre) ** 2 + (y - size / 2) ** 2 < (size / 8) ** 2
        images += 40 * labels[:, column, None, None] * disc
    return images.clip(0, 255).astype(np.uint8), labels


def train(images, labels, *, seed=0, weights=None, **changes):
    return train_classifier(images, labels, findings=["Left", "Right"], config=replace(TINY, **changes), seed=seed, image_weights=weights)


@pytest.fixture(scope="module")
def trained():
    return train(*discs(0))


def test_learns_two_findings_at_once_and_keeps_their_sides_apart():
    trained = train(*discs(0), updates=160)
    images, labels = discs(1)
    probabilities = trained.predict(images)
    assert probabilities.shape == (96, 2) and probabilities.dtype == np.float64
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    own = [auroc(labels[:, k], probabilities[:, k]) for k in (0, 1)]
    crossed = [auroc(labels[:, k], probabilities[:, 1 - k]) for k in (0, 1)]
    assert min(own) > 0.97 and max(crossed) < 0.85
    assert trained.features(images).shape == (96, trained.network.head.in_features)


def test_same_seed_same_weights_and_other_seed_other_weights(trained):
    again, other = train(*discs(0)), train(*discs(0), seed=1)
    assert again.digest == trained.digest != other.digest
    images, _ = discs(1)
    assert np.array_equal(again.predict(images), trained.predict(images))


def test_global_random_state_plays_no_part(trained):
    torch.manual_seed(99)
    assert train(*discs(0)).digest == trained.digest


def test_prediction_does_not_depend_on_the_batch(trained):
    images, _ = discs(1)
    alone = np.concatenate([trained.predict(image[None]) for image in images[:5]])
    assert np.allclose(alone, trained.predict(images)[:5], atol=1e-6)


def test_labels_that_are_not_stated_change_nothing():
    images, labels = discs(0)
    labels[:, 1] = math.nan
    assert np.array_equal(train(images, labels).network.head.weight[1].detach(), _first_head_row_after_decay(images, labels))


def _first_head_row_after_decay(images, labels):
    """The second row of the head when the first column is learnt from other labels: no gradient, so decay alone moves it."""
    other = labels.copy()
    other[:, 0] = 1 - other[:, 0]
    return train(images, other).network.head.weight[1].detach()


def test_a_table_that_states_nothing_gives_a_loss_of_zero():
    images, labels = discs(0, n=16)
    assert train(images, np.full_like(labels, math.nan), updates=2).losses == (0.0, 0.0)


def test_weights_decide_how_often_an_image_is_drawn():
    weights = np.array([1.0, 1.0, 1.0, 6.0, 0.0])
    config = ClassifierConfig(updates=180, batch_size=5)
    rows = np.concatenate(list(image_batches(5, weights, config=config, seed=0)))
    assert np.allclose(np.bincount(rows, minlength=5) / len(rows), weights / weights.sum(), atol=0.02)
    plain = list(image_batches(6, None, config=ClassifierConfig(updates=4, batch_size=3), seed=0))
    assert sorted(np.concatenate(plain[:2])) == sorted(np.concatenate(plain[2:])) == list(range(6))  # an epoch is a shuffle


def test_oversampled_images_count_for_more():
    images, labels = discs(0)
    weights = np.where(labels[:, 0] == 1, 20.0, 1.0)
    test_images, _ = discs(1)
    often, plain = (train(images, labels, weights=chosen).predict(test_images)[:, 0].mean() for chosen in (weights, None))
    assert often > plain + 0.1


def test_augmentation_moves_images_a_little_and_never_mirrors_them():
    """An image bright on its left stays bright on its left, however it is augmented."""
    image = np.zeros((64, 32, 32), np.uint8)
    image[:, 8:24, 4:12] = 200
    plain = standardise(image, size=32)
    moved, = vary(plain, by=CLASSIC, generator=torch.Generator().manual_seed(0))
    assert moved.shape == plain.shape
    assert (moved[..., :16].mean(dim=(1, 2, 3)) > moved[..., 16:].mean(dim=(1, 2, 3)) + 0.5).all()
    assert (moved - plain).abs().mean() > 0.05
    assert not torch.allclose(moved[0], moved[1])


def test_classic_augmentation_trains_and_repeats_itself():
    first, again = (train(*discs(0), updates=5, augment="classic") for _ in range(2))
    assert first.digest == again.digest != train(*discs(0), updates=5).digest


def test_sixteen_bits_say_the_same_as_eight(trained):
    images, _ = discs(1, n=8)
    assert np.allclose(trained.predict(images.astype(np.uint16) * 257), trained.predict(images), atol=1e-5)


def test_large_images_are_averaged_down():
    images, labels = discs(0)
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    assert train(doubled, labels, input_size=32, updates=3).digest == train(images, labels, updates=3).digest


def test_exposure_does_not_matter(trained):
    images, _ = discs(1, n=8)
    assert np.allclose(trained.predict(images // 2), trained.predict(images), atol=0.1)


@pytest.mark.parametrize(("size", "autocast"), [(16, False), (48, False), (100, False), (32, True)])
def test_other_sizes_and_bfloat16(size, autocast):
    images, labels = discs(0, n=16, size=size)
    result = train(images, labels, updates=2, autocast=autocast)
    assert np.isfinite(result.predict(images)).all() and result.image_size == size


@pytest.mark.parametrize(("change", "said"), [
    (lambda f, y: (f[0], y), "N, S, S"), (lambda f, y: (f.astype(float), y), "uint8"), (lambda f, y: (f[:0], y[:0]), "N > 0"),
    (lambda f, y: (f, y[:5]), "labels have shape"), (lambda f, y: (f, y[:, :1]), "labels have shape"),
])
def test_shapes_that_do_not_fit_are_refused(change, said):
    images, labels = discs(0, n=8)
    with pytest.raises(UsageError, match=said):
        train(*change(images, labels))


def test_other_wrong_use_is_refused(trained):
    images, labels = discs(0, n=8)
    with pytest.raises(UsageError, match="32 px and got 16"):
        trained.predict(images[:, :16, :16])
    with pytest.raises(UsageError, match="image_weights"):
        train(images, labels, weights=np.zeros(8))
    with pytest.raises(UsageError, match="at least 1 of 2"):
        train(images, labels, batch_size=1)
