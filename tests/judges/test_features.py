"""The feature space: its contract, its weights, and that it sees what is in an image."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from synthorax.errors import InputError, UsageError
from synthorax.judges.efficientnet_lite import WEIGHTS_DIGEST, EfficientNetLite0Features
from synthorax.judges.features import FEATURES, IMAGES_AT_A_TIME, features_of, load_features

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


@pytest.fixture(scope="module")
def space():
    return EfficientNetLite0Features()


@pytest.fixture(scope="module")
def images():
    """Twelve different smooth pictures, uint8 [12, 64, 64]."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC)) for one in noise])


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_space_keeps_the_contract(name, images):
    space = load_features(name)
    features = space(images)
    assert features.shape == (12, space.num_features)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert len(space.digest) == 64
    assert space.name == name
    np.testing.assert_allclose(space(images[5:6]), features[5:6], atol=1e-4)
    assert space(images[:0]).shape == (0, space.num_features)


def test_values_are_those_of_the_published_network():
    """Numbers computed once with the package efficientnet_lite_pytorch 0.1.0 on the same weights."""
    y, x = np.mgrid[:224, :224]
    image = np.round(127.5 + 127.5 * np.sin(x / 9) * np.cos(y / 17)).astype(np.uint8)[None]
    features = EfficientNetLite0Features(input_px=224)(image)[0]
    assert features.mean() == pytest.approx(0.12155672, abs=1e-5)
    assert features.std() == pytest.approx(0.46922004, abs=1e-5)
    assert features[256] == pytest.approx(0.07986022, abs=1e-5)


def test_bit_depth_does_not_matter(space, images):
    np.testing.assert_allclose(space(images.astype(np.uint16) * 257), space(images), atol=1e-4)


def test_blur_and_inversion_move_features_and_more_blur_moves_them_further(space, images):
    plain = space(images)

    def moved(changed):
        return np.linalg.norm(space(changed) - plain, axis=1).mean()

    def blurred(size):
        return np.stack([np.asarray(Image.fromarray(f).resize((size, size)).resize((64, 64))) for f in images])

    assert 0.01 < moved(blurred(32)) < moved(blurred(16)) < moved(blurred(6))
    assert moved(255 - images) > 1.0


def test_another_input_size_is_another_space():
    assert EfficientNetLite0Features(input_px=96).name != EfficientNetLite0Features().name


def test_progress_ends_at_the_number_of_images(images):
    calls = []
    EfficientNetLite0Features(input_px=32, batch_size=5)(images, progress=lambda fraction, text: calls.append(fraction))
    assert calls == [5 / 12, 10 / 12, 1.0]


def test_features_taken_in_blocks_are_those_of_one_call(space, images):
    many, calls = np.tile(images, (60, 1, 1)), []
    assert len(many) > IMAGES_AT_A_TIME
    np.testing.assert_array_equal(features_of(space, many, progress=lambda fraction, text: calls.append(fraction)), space(many))
    assert calls == [IMAGES_AT_A_TIME / len(many), 1.0]
    assert features_of(space, many[:0]).shape == (0, space.num_features)


def test_wrong_input_is_refused(space, images, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="uint8 or uint16"):
        space(images.astype(np.float32))
    with pytest.raises(UsageError, match="did you mean 'efficientnet-lite0'"):
        load_features("eficientnet-lite0")
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr("synthorax.judges.efficientnet_lite._weights_path", lambda: other)
    with pytest.raises(InputError, match="not the known weights"):
        EfficientNetLite0Features()


def test_the_digest_names_the_weights(space):
    assert space.digest == WEIGHTS_DIGEST


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside the checkout")
def test_a_linear_probe_tells_pa_from_ap_on_real_images(space):
    with (NIH / "metadata.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))[::10]
    images = np.stack([np.asarray(Image.open(NIH / row["file_name"]).resize((64, 64), Image.Resampling.BOX)) for row in rows])
    is_pa = np.array([row["view"] == "PA" for row in rows])
    features = StandardScaler().fit_transform(space(images))
    probe = LogisticRegression(C=1e-3, max_iter=300).fit(features[::2], is_pa[::2])
    assert roc_auc_score(is_pa[1::2], probe.decision_function(features[1::2])) > 0.93
