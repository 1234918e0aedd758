"""Low-rank updates: exact at the start, of the promised rank, frozen where promised, and the same image after merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.layers import VolumeConvolution
from synthorax.nets.lora import LowRank, add_low_rank, highest_rank, merge_low_rank

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "one pixel": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "volume": (lambda: nn.Conv3d(4, 5, 3, padding=1), (1, 4, 4, 4, 4)),
    "flat volume": (lambda: VolumeConvolution(4, 5, 3, padding=1), (1, 4, 2, 4, 4)),
}

each_layer = pytest.mark.parametrize("name", LAYERS)


def adapted_layer(name: str, *, rank: int = 2, alpha: float = 3.0) -> tuple[LowRank, Tensor]:
    """A layer with an update that is not 0, and an input for it."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = LowRank(build(), rank=rank, alpha=alpha)
    nn.init.normal_(layer.expand.weight)
    return layer, torch.randn(shape)


@each_layer
def test_nothing_changes_at_first(name: str) -> None:
    build, shape = LAYERS[name]
    plain, x = build(), torch.randn(shape)
    assert torch.equal(LowRank(copy.deepcopy(plain), rank=2, alpha=8.0)(x), plain(x))


@each_layer
def test_the_layer_is_the_sum_of_the_base_and_a_product_of_low_rank(name: str) -> None:
    layer, x = adapted_layer(name, rank=2, alpha=3.0)
    base = copy.deepcopy(layer.layer)
    b, a = layer.expand.weight.flatten(1), layer.reduce.weight.flatten(1)
    base.weight.data += (3.0 / 2 * b @ a).view_as(base.weight)
    torch.testing.assert_close(layer(x), base(x), atol=1e-5, rtol=1e-5)
    assert torch.linalg.matrix_rank(layer.update().flatten(1)).item() == 2


@each_layer
def test_merged_is_unmerged(name: str) -> None:
    layer, x = adapted_layer(name)
    unmerged, kind = layer(x), type(layer.layer)
    merged = layer.merged()
    assert type(merged) is kind
    torch.testing.assert_close(merged(x), unmerged, atol=1e-5, rtol=1e-5)


@each_layer
def test_the_base_gets_no_gradient_and_the_update_does(name: str) -> None:
    layer, x = adapted_layer(name)
    layer(x).square().mean().backward()
    assert all(weight.grad is None for weight in layer.layer.parameters())
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in (layer.reduce.weight, layer.expand.weight))


def test_the_weight_of_an_update_does_not_depend_on_its_rank() -> None:
    """alpha / r, so that a higher rank is no louder; alpha 0 adds nothing."""
    for rank in (1, 4):
        layer, _ = adapted_layer("linear", rank=rank, alpha=8.0)
        torch.testing.assert_close(layer.update() * rank / 8, (layer.expand.weight.double() @ layer.reduce.weight.double()).detach())
    silent, x = adapted_layer("linear", alpha=0.0)
    assert torch.equal(silent(x), silent.layer(x))


def test_adding_and_merging_keep_names_and_shapes_and_choose_layers() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)))
    before = {name: weight.shape for name, weight in network.state_dict().items()}
    kept = network[0].weight.clone()
    add_low_rank(network, rank=2, alpha=2.0, chosen=lambda name: name == "2.0")
    assert isinstance(network[2][0], LowRank) and isinstance(network[0], nn.Linear)
    nn.init.normal_(network[2][0].expand.weight)
    average = copy.deepcopy(network)
    x = torch.randn(4, 6)
    unmerged = average(x)
    merge_low_rank(average)
    assert {name: weight.shape for name, weight in average.state_dict().items()} == before
    torch.testing.assert_close(average(x), unmerged, atol=1e-6, rtol=1e-5)
    assert torch.equal(average[0].weight, kept)
    torch.testing.assert_close(network(x), unmerged, msg="a copy that is merged leaves the other alone")


def test_a_rank_that_the_layer_cannot_have_is_refused() -> None:
    assert highest_rank((5, 6)) == 5 and highest_rank((64, 2, 3, 3)) == 18
    for rank in (0, 6):
        with pytest.raises(UsageError, match="at most 5"):
            LowRank(nn.Linear(6, 5), rank=rank, alpha=1.0)
    with pytest.raises(UsageError, match="grouped"):
        LowRank(nn.Conv2d(4, 4, 3, groups=2), rank=1, alpha=1.0)
