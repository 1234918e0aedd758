"""The perceptual distance: what it must call different, more different, and the same; and features from files."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError
from synthorax.losses.perceptual import (
    PERCEPTUAL,
    SIZE_PX,
    Oriented,
    gabor_pairs,
    perceptual_distance,
    perceptual_features,
)
from synthorax.nets.imagenet import VGG16_CHANNELS, VGG16_FILE, Vgg16


def drawing(size: int = 64) -> Tensor:
    """Two images with what images have: a slow gradient, sharp ribs, a round shadow and faint grain, [2, 1, S, S]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    images = []
    for phase in (0.0, 0.7):
        ribs = 0.3 * torch.tanh(8 * torch.sin(9 * (y + 0.3 * x**2) + phase))
        heart = 0.4 * (((x - 0.2) ** 2 + (y - 0.2) ** 2) < 0.1)
        grain = 0.02 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        images.append(0.3 * x + ribs + heart + grain - 0.2)
    return torch.stack(images)[:, None].clamp(-1, 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-9, 10).float()
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    line = line / line.sum()
    padded = F.pad(images, (9, 9, 9, 9), mode="reflect")
    return F.conv2d(F.conv2d(padded, line.reshape(1, 1, 1, -1)), line.reshape(1, 1, -1, 1))


def noisy(images: Tensor, level: float) -> Tensor:
    return images + level * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def distance(first: Tensor, second: Tensor) -> Tensor:
    return perceptual_distance(first, second, features=Oriented())


def test_an_image_is_at_no_distance_from_itself_and_each_pair_counts_alone() -> None:
    images = drawing()
    assert torch.equal(distance(images, images), torch.zeros(2))
    other = blurred(images, 1.0)
    both = distance(images, other)
    torch.testing.assert_close(both, torch.cat([distance(images[:1], other[:1]), distance(images[1:], other[1:])]))
    torch.testing.assert_close(both, distance(other, images), msg="symmetric")


@pytest.mark.parametrize("spoil", [
    pytest.param([lambda images, s=s: blurred(images, s) for s in (0.6, 1.0, 2.0, 4.0)], id="blur"),
    pytest.param([lambda images, s=s: noisy(images, s) for s in (0.02, 0.05, 0.1, 0.2)], id="noise"),
    pytest.param([lambda images, s=s: images.roll(s, dims=-1) for s in (1, 2, 4)], id="shift"),
])
def test_more_damage_is_more_distance(spoil: list) -> None:
    images = drawing()
    levels = [distance(images, one(images)) for one in spoil]
    for less, more in pairwise(levels):
        assert bool((more > less).all()), levels
    assert bool((levels[0] > 0).all())


def test_lost_detail_costs_more_than_brightness_of_the_same_squared_error() -> None:
    images = drawing()
    soft = blurred(images, 1.0)
    error = (soft - images).square().mean(dim=(1, 2, 3), keepdim=True)
    brighter = images + error.sqrt()
    assert bool((distance(images, soft) > 20 * distance(images, brighter)).all())


def test_grain_below_the_floor_does_not_speak_as_loud_as_structure() -> None:
    """Features of length 1 whatever their strength would call both noises nearly as different from flat grey."""
    flat = torch.zeros(1, 1, 64, 64)
    assert distance(flat, noisy(flat, 0.004)).item() < 0.1 * distance(flat, noisy(flat, 0.1)).item()


@pytest.mark.parametrize("image", [drawing(32), torch.zeros(2, 1, 32, 32), torch.full((2, 1, 32, 32), -1.0)],
                         ids=["drawing", "grey", "black"])
def test_the_gradient_exists_where_images_are_equal(image: Tensor) -> None:
    made = image.clone().requires_grad_()
    distance(made, image).sum().backward()
    assert made.grad is not None and bool(made.grad.isfinite().all())
    torch.testing.assert_close(made.grad, torch.zeros_like(image), atol=1e-5, rtol=0)


def test_its_gradient_sharpens() -> None:
    """Descending the distance alone brings lost detail back."""
    image = drawing(32)
    start = blurred(image, 1.5)
    made = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([made], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        distance(made, image).sum().backward()
        optimizer.step()
    assert bool((distance(made.detach(), image) < 0.1 * distance(start, image)).all())


def test_filters_have_unit_norm_ignore_brightness_and_respond_to_their_own_direction() -> None:
    filters = gabor_pairs(4)
    assert filters.shape == (8, 1, SIZE_PX, SIZE_PX)
    torch.testing.assert_close(filters.sum(dim=(1, 2, 3)), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.square().sum(dim=(1, 2, 3)), torch.ones(8))
    wave = torch.sin(torch.arange(64) * torch.pi / 2).expand(1, 1, 64, 64)  # changes along x: direction 0
    magnitudes = Oriented(scales=1)(wave)[0][0, :4, 8:-8, 8:-8].mean(dim=(1, 2))
    assert magnitudes.argmax() == 0 and magnitudes[0] > 3 * magnitudes[2]


def test_magnitudes_hardly_feel_where_in_the_wave_they_are() -> None:
    along = torch.arange(64).float()
    waves = [torch.sin(along * torch.pi / 2 + phase).expand(1, 1, 64, 64) for phase in (0.0, 0.8)]
    maps = [Oriented(scales=1)(wave)[0][0, 0, 8:-8, 8:-8].mean().item() for wave in waves]
    assert maps[0] == pytest.approx(maps[1], rel=0.1)


def test_bfloat16_around_it_does_not_change_it() -> None:
    images = drawing()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distance(images, blurred(images, 1.0)), distance(images.float(), blurred(images, 1.0)))


def test_unknown_features_are_refused_with_the_nearest_name() -> None:
    assert set(PERCEPTUAL) == {"oriented", "vgg16"}
    with pytest.raises(UsageError, match="did you mean 'oriented'"):
        perceptual_features("orientd")
    with pytest.raises(InputError, match="no such file"):
        perceptual_features("nowhere/features.pt")


def test_vgg_without_its_weights_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"{VGG16_FILE}.*use the features 'oriented'"):
        perceptual_features("vgg16")


def test_vgg_reads_a_file_of_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the published file's names and shapes; each stage is the published number of channels and size."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    published = Vgg16().state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({**published, "classifier.0.bias": torch.zeros(3)}, folder / VGG16_FILE)
    assert {f"features.{number}.weight" for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)} < set(published)
    features = perceptual_features("vgg16")
    maps = features(drawing(32))
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert all(bool((one >= 0).all()) for one in maps) and len(maps) == len(VGG16_CHANNELS), "taken behind the rectifiers"
    assert not any(weight.requires_grad for weight in features.parameters())
    assert bool((perceptual_distance(drawing(32), blurred(drawing(32), 2.0), features=features) > 0).all())


def test_features_of_a_torchscript_file(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.dropout(x), F.avg_pool2d(x, 2)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather export; files that exist are read all the same
        torch.jit.script(Two()).save(str(tmp_path / "two.pt"))
    features = perceptual_features(str(tmp_path / "two.pt"))
    features.train()
    images = drawing()
    maps = features(images)
    assert torch.equal(maps[0], images), "frozen features stay in evaluation mode"
    assert maps[1].shape == (2, 1, 32, 32)
    assert bool((perceptual_distance(images, -images, features=features) > 0).all())
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(InputError, match="not a TorchScript file"):
        perceptual_features(str(tmp_path / "text.pt"))
