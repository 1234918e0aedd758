"""The normalisation for channels that come last: the same values and gradients as the plain formula, in every layout and precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.nets.layers import for_convolutions, normalisation
from synthorax.nets.normalised import Normalised, normalised
from synthorax.nets.unet import UNet, UNetConfig

LAST = torch.channels_last
CHANNELS, GROUPS = 8, 2


def plain(x: Tensor, factor: Tensor, offset: Tensor, *, silu: bool) -> Tensor:
    """Eq. 1 of Wu and He (2018) as it stands, then the scale and the shift."""
    groups = x.unflatten(1, (GROUPS, -1)).flatten(2)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    axes = [1] * (x.ndim - 2)
    made = normal.view_as(x) * factor.unflatten(1, (-1, *axes)) + offset.unflatten(1, (-1, *axes))
    return F.silu(made) if silu else made


def drawn(*sides: int, dtype: torch.dtype = torch.float64, mean: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CHANNELS, *sides, generator=generator, dtype=dtype) + mean
    return x, *torch.randn(2, 2, CHANNELS, generator=generator, dtype=dtype)


@pytest.mark.parametrize("sides", [(3, 4), (2, 3, 2)], ids=["images", "volumes"])
@pytest.mark.parametrize("silu", [True, False])
def test_values_and_gradients_are_those_of_the_plain_formula(sides: tuple[int, ...], silu: bool) -> None:
    inputs = [value.requires_grad_() for value in drawn(*sides)]

    def ours(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        made: Tensor = Normalised.apply(x, factor, offset, GROUPS, 1e-5, silu)  # type: ignore[no-untyped-call]
        return made

    torch.testing.assert_close(ours(*inputs), plain(*inputs, silu=silu))
    assert torch.autograd.gradcheck(ours, inputs)
    weight = torch.randn_like(inputs[0])
    for mine, theirs in zip(torch.autograd.grad((ours(*inputs) * weight).sum(), inputs),
                            torch.autograd.grad((plain(*inputs, silu=silu) * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradients_of_what_is_not_asked_are_left_out() -> None:
    x, factor, offset = drawn(3, 4)
    made = Normalised.apply(x, factor.requires_grad_(), offset, GROUPS, 1e-5, True)  # type: ignore[no-untyped-call]
    made.sum().backward()
    assert x.grad is None
    assert factor.grad is not None


@pytest.mark.parametrize("told", [True, False])
def test_a_layout_is_no_other_function(told: bool) -> None:
    x, scale, shift = drawn(4, 4, dtype=torch.float32)
    norm = normalisation(CHANNELS)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    said = {"scale": scale, "shift": shift} if told else {}
    expected = norm(x) * (1 + scale[..., None, None]) + shift[..., None, None] if told else norm(x)
    for made in (normalised(x, norm, **said), normalised(x.contiguous(memory_format=LAST), norm, **said)):
        torch.testing.assert_close(made, expected)
    assert normalised(x.contiguous(memory_format=LAST), norm).is_contiguous(memory_format=LAST)
    with torch.inference_mode():
        torch.testing.assert_close(normalised(x.contiguous(memory_format=LAST), norm, **said, silu=True), F.silu(expected))


def test_bfloat16_loses_no_more_than_its_digits_even_far_from_zero() -> None:
    x, scale, shift = drawn(8, 8, dtype=torch.float32, mean=20.0)
    x = x.bfloat16().float()  # what both hear
    norm = normalisation(CHANNELS)
    exact = [value.clone().requires_grad_() for value in (x, scale, shift)]
    coarse = [x.bfloat16().contiguous(memory_format=LAST).requires_grad_(), *(part.clone().requires_grad_() for part in (scale, shift))]
    weight = torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16):
        made = normalised(coarse[0], norm, scale=coarse[1], shift=coarse[2], silu=True)
    assert made.dtype == torch.bfloat16
    theirs = normalised(exact[0], norm, scale=exact[1], shift=exact[2], silu=True)
    torch.testing.assert_close(made.float(), theirs, rtol=2**-8, atol=1e-3)
    for mine, other in zip(torch.autograd.grad((made.float() * weight).sum(), coarse), torch.autograd.grad((theirs * weight).sum(), exact),
                           strict=True):
        assert (mine.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("bf16", [True, False])
def test_a_network_computes_the_same_with_channels_last_and_first_and_each_time(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(False, True), embedding=16, coordinates=True)
    network = UNet(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    inputs = torch.randn(2, 1, 16, 16), torch.randn(2), torch.randn(2, 16)

    def results() -> list[Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = network(*inputs)
        made.float().square().sum().backward()
        return [made.detach().float(), *(weight.grad for weight in network.parameters() if weight.grad is not None)]

    last, again = results(), results()
    assert all(torch.equal(one, other) for one, other in zip(last, again, strict=True))
    monkeypatch.setattr("synthorax.nets.unet.for_convolutions", lambda x: x)
    for one, other in zip(last, results(), strict=True):
        assert (one - other).norm() <= (0.1 if bf16 else 1e-4) * other.norm() + 1e-5


def test_only_images_on_a_processor_change_their_layout() -> None:
    image, volume = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8, 8)
    assert for_convolutions(image).is_contiguous(memory_format=LAST)
    assert for_convolutions(volume).is_contiguous()
    assert for_convolutions(torch.empty(1, 4, 8, 8, device="meta")).is_contiguous()
