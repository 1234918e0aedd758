"""The scattering transform, and feature spaces that look at another size."""

import numpy as np
import pytest
from scipy import ndimage

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.distances import kid
from synthorax.judges.features import Standardised, load_features, looks_at, usual_features
from synthorax.judges.scattering import ORIENTATIONS, ScatteringFeatures, _bank
from synthorax.types import ImageSet, Study


def textures(num, *, seed, size=64):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(num, size, size)), (0, 1.5, 1.5))
    return (128 + 30 * noise / noise.std()).clip(0, 255).round().astype(np.uint8)


def set_of(images):
    studies = tuple(Study(file_name=f"{row}.png", patient_id=str(row)) for row in range(len(images)))
    return ImageSet(pixels=images, studies=studies, findings=(), labels=np.zeros((len(images), 0), np.float32), digest="")


def test_wavelets_have_no_mean_and_lie_where_they_should():
    bank = _bank(64, 3, 1.0)
    assert bank.shape == (3, ORIENTATIONS, 64, 64) and bank[..., 0, 0].abs().max() < 1e-6
    frequency = 2 * np.pi * np.fft.fftfreq(64)
    for scale in range(3):
        row, column = np.unravel_index(int(bank[scale, 0].argmax()), (64, 64))
        assert frequency[row] == 0 and frequency[column] == pytest.approx(0.75 * np.pi / 2**scale, rel=0.1)


def test_a_wave_answers_in_its_own_orientation_and_scale():
    wave = (128 + 60 * np.cos(0.75 * np.pi / 4 * np.indices((128, 128))[1])).round().astype(np.uint8)  # along x, scale 2 of 4
    first = ScatteringFeatures()(wave[None])[0][64 : 64 + 16 * 4 * ORIENTATIONS].reshape(4, ORIENTATIONS, 16).mean(axis=2)
    assert np.unravel_index(first.argmax(), first.shape) == (2, 0)


def test_an_even_image_has_no_energy_and_brightness_moves_only_the_grey_levels():
    space = ScatteringFeatures(input_px=64)
    dark, bright = space(np.stack([np.full((64, 64), 50, np.uint8), np.full((64, 64), 150, np.uint8)]))
    np.testing.assert_allclose(dark[64:], bright[64:], atol=1e-3)
    assert bright[:64].mean() - dark[:64].mean() == pytest.approx(100 / 255, abs=1e-5)


def test_features_depend_on_the_image_alone_and_16_bits_are_as_8():
    space, images = ScatteringFeatures(input_px=64), textures(3, seed=0)
    together = space(images)
    np.testing.assert_array_equal(together[1:2], space(images[1:2]))
    np.testing.assert_allclose(together, space(images.astype(np.uint16) * 257), atol=1e-4)
    assert together.shape == (3, space.num_features)


@pytest.mark.parametrize("failure", ["blur", "noise", "collapse", "texture"])
def test_failures_are_farther_than_other_textures_of_the_kind(failure):
    rng = np.random.default_rng(0)
    first, second = textures(24, seed=1), textures(24, seed=2)
    made = {"blur": ndimage.gaussian_filter(second.astype(float), (0, 1, 1)), "noise": second + rng.normal(0, 12, second.shape),
            "collapse": second[np.arange(24) % 2], "texture": second.transpose(0, 2, 1) // 2 + textures(24, seed=3) // 2}[failure]
    space = load_features("scattering:64", train=set_of(textures(24, seed=4)))
    known, other, failed = (space(images) for images in (first, second, np.asarray(made).clip(0, 255).astype(np.uint8)))
    assert kid(known, failed) > kid(known, other) + 0.05


def test_a_space_says_at_which_size_it_looks():
    train = set_of(textures(4, seed=0, size=96))
    own = load_features("efficientnet-lite0:own", train=train)
    assert (own.name, looks_at(own)) == ("efficientnet-lite0-96px", {"input_px": 96})
    usual = load_features("efficientnet-lite0")
    assert (usual.name, looks_at(usual)) == ("efficientnet-lite0", {"input_px": 128})
    scattering = load_features("scattering:own", train=train)
    assert isinstance(scattering, Standardised) and looks_at(scattering) == {"input_px": 96}
    assert looks_at(load_features("radiomics")) == {}
    large = set_of(np.zeros((2, 320, 320), np.uint8))
    assert looks_at(load_features("efficientnet-lite0:own", train=large)) == {"input_px": 256}


def test_reports_look_at_128_px_and_at_the_images_own_size():
    assert usual_features(128) == ("efficientnet-lite0",)
    assert usual_features(256) == ("efficientnet-lite0", "efficientnet-lite0:own")
    assert usual_features(256, quick=True) == ("efficientnet-lite0",)


@pytest.mark.parametrize("name", ["efficientnet-lite0:large", "scattering:5", "efficientnet-lite0:own", "scattering:100"])
def test_sizes_that_cannot_be_are_refused(name):
    with pytest.raises(UsageError):
        load_features(name)


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError):
        ScatteringFeatures()(np.zeros((2, 32, 32), np.float32))  # type: ignore[arg-type]


def test_detail_that_128_px_do_not_hold_is_seen_at_256():
    """The reason for a second size: stripes of three pixels vanish when the image is shrunk to half."""
    smooth = np.repeat(np.repeat(textures(6, seed=5, size=128), 2, axis=1), 2, axis=2)
    fine = (smooth + 12 * np.cos(2 * np.pi / 3 * np.arange(256))).clip(0, 255).round().astype(np.uint8)
    change = {}
    for size in (128, 256):
        space = ScatteringFeatures(input_px=size)
        change[size] = float(np.abs(space(fine) - space(smooth)).mean())
    assert change[256] > 3 * change[128]
