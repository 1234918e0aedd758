"""The normalisation of the U-Net: the same values and gradients as the plain formula, in every layout and precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.group_norm import normalised
from synthorax.nets.layers import for_convolutions, normalisation
from synthorax.nets.unet import UNet, UNetConfig

LAST = torch.channels_last
CHANNELS = 8


def norm_of(dtype: torch.dtype) -> nn.GroupNorm:
    norm = normalisation(CHANNELS).to(dtype)
    assert norm.num_groups == 2
    for weight in norm.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return norm


def plain(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None, *, silu: bool) -> Tensor:
    """Eq. 1 of Wu and He (2018) as it stands, then the scale and the shift."""
    axes = [1] * (x.ndim - 2)
    groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    made = normal.view_as(x) * norm.weight.view(-1, *axes) + norm.bias.view(-1, *axes)
    if scale is not None and shift is not None:
        made = made * (1 + scale.unflatten(1, (-1, *axes))) + shift.unflatten(1, (-1, *axes))
    return F.silu(made) if silu else made


def random_inputs(*sides: int, dtype: torch.dtype = torch.float64, mean: float = 1.0) -> list[Tensor]:
    """x, scale and shift."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CHANNELS, *sides, generator=generator, dtype=dtype) + mean
    return [x, *torch.randn(2, 2, CHANNELS, generator=generator, dtype=dtype)]


@pytest.mark.parametrize("sides", [(3, 4), (2, 3, 2)], ids=["images", "volumes"])
@pytest.mark.parametrize(("told", "silu"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("last", [True, False])
def test_values_and_gradients_are_those_of_the_plain_formula(sides: tuple[int, ...], told: bool, silu: bool, last: bool) -> None:
    norm = norm_of(torch.float64)
    drawings = random_inputs(*sides)
    if last:
        drawings[0] = drawings[0].contiguous(memory_format=LAST if len(sides) == 2 else torch.channels_last_3d)
    inputs = [value.requires_grad_() for value in drawings[: 3 if told else 1]]

    def ours(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return normalised(x, norm, scale=scale, shift=shift, silu=silu)

    scale, shift = inputs[1:] if told else (None, None)
    expected = plain(inputs[0], norm, scale, shift, silu=silu)
    torch.testing.assert_close(ours(*inputs), expected)
    assert torch.autograd.gradcheck(ours, inputs)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [*inputs, *norm.parameters()]
    for mine, theirs in zip(torch.autograd.grad((ours(*inputs) * weight).sum(), wanted),
                            torch.autograd.grad((expected * weight).sum(), wanted), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_loses_no_more_than_its_digits_even_far_from_zero() -> None:
    x, scale, shift = random_inputs(8, 8, dtype=torch.float32, mean=20.0)
    x, norm = x.bfloat16().float(), norm_of(torch.float32)  # what both are conditioned on
    exact = [value.clone().requires_grad_() for value in (x, scale, shift)]
    coarse = [x.bfloat16().contiguous(memory_format=LAST).requires_grad_(), *(part.clone().requires_grad_() for part in (scale, shift))]
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        made = normalised(coarse[0], norm, scale=coarse[1], shift=coarse[2], silu=True)
        with torch.inference_mode():
            assert torch.equal(normalised(coarse[0], norm, scale=coarse[1], shift=coarse[2], silu=True), made)
    theirs = plain(exact[0], norm, exact[1], exact[2], silu=True)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), theirs, rtol=2**-8, atol=1e-3)
    for mine, other in zip(torch.autograd.grad((made.float() * weight).sum(), coarse), torch.autograd.grad((theirs * weight).sum(), exact),
                           strict=True):
        assert (mine.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("bf16", [True, False])
def test_sampling_with_channels_last_computes_what_training_does_with_channels_first(bf16: bool) -> None:
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(False, True), embedding=16, coordinates=True))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    inputs = torch.randn(2, 1, 16, 16), torch.randn(2), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        trained = network(*inputs).detach().float()
        with torch.inference_mode():
            first, second = network(*inputs).float(), network(*inputs).float()
    assert torch.equal(first, second)
    with torch.inference_mode():
        seen = network.middle[0].register_forward_pre_hook(lambda _, given: formats.append(given[0].is_contiguous(memory_format=LAST)))
        formats: list[bool] = []
        network(*inputs)
        single = UNet(UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(False,), patch=1, embedding=16))
        single.middle[0].register_forward_pre_hook(lambda _, given: formats.append(given[0].is_contiguous(memory_format=LAST)))
        single(*inputs)
    seen.remove()
    assert formats == [True, True]
    assert (first - trained).norm() <= (0.03 if bf16 else 1e-5) * trained.norm()


def test_only_images_that_are_sampled_on_a_processor_change_their_layout() -> None:
    image, volume = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8, 8)
    assert for_convolutions(image).is_contiguous()
    with torch.no_grad():
        assert for_convolutions(image).is_contiguous(memory_format=LAST)
        assert for_convolutions(volume).is_contiguous()
        assert for_convolutions(torch.empty(1, 4, 8, 8, device="meta")).is_contiguous()
