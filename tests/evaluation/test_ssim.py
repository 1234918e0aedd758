"""PSNR, SSIM and MS-SSIM: closed forms, other people's implementations, and what they must see."""

import math

import numpy as np
import pytest
import torch

from oracles import oracle
from synthorax.errors import InputError
from synthorax.evaluation.metrics.ms_ssim import ms_ssim
from synthorax.evaluation.metrics.ssim import SCALE_WEIGHTS, psnr, scale_weights, ssim, to_intensity


def pictures(seed, size, num=3):
    """Smooth random pictures, float64 [num, 1, size, size] in [0, 1]."""
    coarse = torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def noisy(images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (images + sigma * noise).clamp(0, 1)


# Closed forms


def test_equal_images():
    x = pictures(0, 64)
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(ms_ssim(x, x), torch.ones(3, dtype=torch.float64))
    assert torch.isinf(psnr(x, x)).all()


def test_flat_images_have_the_closed_form():
    dark, bright = torch.full((1, 1, 16, 16), 0.25), torch.full((1, 1, 16, 16), 0.75)
    assert psnr(dark, bright).item() == pytest.approx(20 * math.log10(2))
    c1 = 0.01**2
    assert ssim(dark, bright).item() == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1))


def test_data_range_is_only_a_unit():
    x, y = pictures(0, 64), noisy(pictures(0, 64), 0.1)
    for measure in (psnr, ssim, ms_ssim):
        torch.testing.assert_close(measure(255 * x, 255 * y, data_range=255.0), measure(x, y))


def test_number_of_scales_follows_the_size():
    assert [len(scale_weights(size)) for size in (11, 22, 64, 128, 176, 512)] == [1, 2, 3, 4, 5, 5]
    assert scale_weights(256) == pytest.approx(SCALE_WEIGHTS)
    assert all(sum(scale_weights(size)) == pytest.approx(sum(SCALE_WEIGHTS)) for size in (11, 64, 128))
    x, y = pictures(0, 11), noisy(pictures(0, 11), 0.1)
    torch.testing.assert_close(ms_ssim(x, y), ssim(x, y) ** sum(SCALE_WEIGHTS))


# Other people's implementations


@pytest.mark.parametrize("size", [64, 192])
def test_agrees_with_torchmetrics(size):
    """Away from the border, which torchmetrics pads with mirror images and Wang's definition leaves out."""
    theirs = oracle("torchmetrics.functional.image")
    measure = theirs.structural_similarity_index_measure
    x, y = pictures(1, size), noisy(pictures(1, size), 0.05)
    for ours, a, b in zip(psnr(x, y), x, y, strict=True):
        assert ours.item() == pytest.approx(theirs.peak_signal_noise_ratio(a, b, data_range=1.0).item(), rel=1e-6)
    product = 1.0
    for scale, weight in enumerate(scale_weights(size)):
        a, b = (torch.nn.functional.avg_pool2d(images, 2**scale) for images in (x, y))
        _, structure = measure(a, b, data_range=1.0, reduction="none", return_contrast_sensitivity=True)
        _, full = measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
        whole = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        torch.testing.assert_close(ssim(a, b), whole, atol=1e-9, rtol=0)
        last = scale == len(scale_weights(size)) - 1
        product = product * (whole if last else structure) ** weight
    torch.testing.assert_close(ms_ssim(x, y), product, atol=1e-9, rtol=0)


def test_agrees_with_pytorch_msssim():
    theirs = oracle("pytorch_msssim")  # its window is float32
    x, y = pictures(2, 192), noisy(pictures(2, 192), 0.1)
    torch.testing.assert_close(ssim(x, y), theirs.ssim(x, y, data_range=1.0, size_average=False), atol=1e-5, rtol=0)
    torch.testing.assert_close(ms_ssim(x, y), theirs.ms_ssim(x, y, data_range=1.0, size_average=False), atol=1e-5, rtol=0)


# What they must see


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_more_noise_is_less_alike_and_other_pictures_are_least(measure):
    x = pictures(0, 64)
    values = [measure(x, other).mean().item() for other in (noisy(x, 0.02), noisy(x, 0.1), noisy(x, 0.3))]
    assert values == sorted(values, reverse=True)
    assert measure(x, pictures(5, 64)).mean() < values[0]


def test_inverted_image_has_no_structure_in_common():
    x = pictures(0, 64)
    assert ssim(x, 1 - x).max() < 0.3
    assert ms_ssim(x, 1 - x).max() == 0


def test_integer_images_of_both_depths_give_one_number():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    torch.testing.assert_close(to_intensity(images), to_intensity(images.astype(np.uint16) * 257))
    assert to_intensity(images).shape == (2, 1, 16, 16)


def test_unusable_images_are_refused():
    with pytest.raises(InputError, match="one shape"):
        ssim(pictures(0, 64), pictures(0, 32))
    with pytest.raises(InputError, match="smaller than the window"):
        ssim(pictures(0, 10), pictures(0, 10))
