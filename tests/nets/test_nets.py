"""The denoising networks: what they must be conditioned on, what they must not, and how two and three dimensions belong together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.attention import CrossAttention, SelfAttention, prepared_context
from synthorax.nets.embedding import PlaceEmbedding, StatementEmbedding
from synthorax.nets.layers import channels_to_patches, convolution, coordinates_like, patches_to_channels
from synthorax.nets.transformer import Transformer, TransformerBlock, TransformerConfig, position_embedding
from synthorax.nets.unet import Block, UNet, UNetConfig, smallest_multiple
from synthorax.protocols import LESION_PROPERTIES, UNCERTAIN

EMBEDDING, WORDS = 16, 12
KINDS = ("unet", "unet-strided", "transformer")


@pytest.fixture(autouse=True)
def same_weights_every_time() -> None:
    torch.manual_seed(0)


def network_of(kind: str, *, dims: int = 2, context: int = WORDS, dropout: float = 0.0, inputs: int = 1, outputs: int = 1) -> nn.Module:
    if kind == "transformer":
        return Transformer(TransformerConfig(width=24, depth=2, heads=2, patch=2, dims=dims, context=context, dropout=dropout,
                                             embedding=EMBEDDING), inputs=inputs, outputs=outputs)
    return UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), patch=2, dims=dims, context=context,
                           dropout=dropout, embedding=EMBEDDING, resample="strided" if kind == "unet-strided" else "average",
                           coordinates=kind == "unet"), inputs=inputs, outputs=outputs)


def trained(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """The network as if training had moved every weight, those that start at zero among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return network.eval()


def unet_inputs(batch: int = 2, *, dims: int = 2, side: int = 8, inputs: int = 1, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(batch, inputs, *[side] * dims, generator=generator), "noise_level": torch.randn(batch, generator=generator),
            "embedding": torch.randn(batch, EMBEDDING, generator=generator), "context": torch.randn(batch, 5, WORDS, generator=generator)}


# Shapes and the start of training


@pytest.mark.parametrize(("kind", "dims"), list(itertools.product(KINDS, (2, 3))))
def test_any_sides_and_channels_go_through_and_an_untrained_network_says_zero(kind: str, dims: int) -> None:
    network = network_of(kind, dims=dims, inputs=3, outputs=2)
    sides = (4, 8, 12)[:dims]
    made = network(torch.randn(2, 3, *sides), torch.randn(2), torch.randn(2, EMBEDDING), torch.randn(2, 5, WORDS))
    assert made.shape == (2, 2, *sides)
    assert not made.any()
    assert trained(network)(torch.randn(2, 3, *sides), torch.randn(2), torch.randn(2, EMBEDDING)).std() > 0.01


def test_sides_must_be_multiples_and_the_errors_say_of_what() -> None:
    assert smallest_multiple(UNetConfig(patch=1, multipliers=(1, 2, 2, 4), attention=(False,) * 4)) == 8
    assert smallest_multiple(TransformerConfig(patch=4)) == 4
    with pytest.raises(UsageError, match="2 sides that are multiples of 4, not 8 x 10"):
        network_of("unet")(torch.zeros(1, 1, 8, 10), torch.zeros(1), torch.zeros(1, EMBEDDING))
    with pytest.raises(UsageError, match="3 sides that are multiples of 2, not 8 x 8"):
        network_of("transformer", dims=3)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, EMBEDDING))
    for kind in KINDS:
        with pytest.raises(UsageError, match="not in 4"):
            network_of(kind, dims=4)
        with pytest.raises(UsageError, match="no cross-attention"):
            network_of(kind, context=0)(**unet_inputs())
        with pytest.raises(UsageError, match="12 features where the network expects 7"):
            network_of(kind, context=7)(**unet_inputs())
    with pytest.raises(UsageError, match="not a multiple of its 5 heads"):
        Transformer(TransformerConfig(width=24, heads=5))
    with pytest.raises(UsageError, match="same length"):
        UNet(UNetConfig(multipliers=(1, 2), attention=(False,)))


# What is used


@pytest.mark.parametrize(("kind", "dims"), list(itertools.product(KINDS, (2, 3))))
def test_every_input_matters(kind: str, dims: int) -> None:
    network, inputs = trained(network_of(kind, dims=dims, inputs=2)), unet_inputs(dims=dims, inputs=2)
    made = network(**inputs)
    changes = {"noise_level": inputs["noise_level"] + 0.5, "embedding": inputs["embedding"] + F.one_hot(torch.tensor(3), EMBEDDING),
               "context": inputs["context"].index_fill(1, torch.tensor([4]), 1.0),
               "x": torch.cat([inputs["x"][:, :1], 1 - inputs["x"][:, 1:]], dim=1)}
    for name, value in changes.items():
        assert (network(**inputs | {name: value}) - made).abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_uses_the_embedding(kind: str) -> None:
    """Each block alone: silencing the affine layers of all the others must not make the network deaf."""
    inputs = unet_inputs()
    network = trained(network_of(kind))
    affine = [module.affine for module in network.modules() if isinstance(module, Block | TransformerBlock)]
    weights = [layer.weight.detach().clone() for layer in affine]
    assert len(affine) == (2 if kind == "transformer" else 8)
    if kind == "transformer":
        nn.init.zeros_(network.affine.weight)
    for chosen in range(len(affine)):
        for number, (layer, weight) in enumerate(zip(affine, weights, strict=True)):
            layer.weight.data = weight if number == chosen else torch.zeros_like(weight)
        moved = network(**inputs) - network(**inputs | {"embedding": inputs["embedding"] + 1})
        assert moved.abs().max() > 1e-4, chosen


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_have_no_effect_and_none_stated_is_like_no_context(kind: str) -> None:
    network, inputs = trained(network_of(kind)), unet_inputs(3)
    stated = torch.tensor([[True, True, False, False, False], [True] * 5, [False] * 5])
    made = network(**inputs, context_stated=stated)
    other = torch.where(stated[:, :, None], inputs["context"], math.nan)
    assert torch.equal(network(**inputs | {"context": other}, context_stated=stated), made)
    shorter = {name: value[:1] for name, value in inputs.items()} | {"context": inputs["context"][:1, :2]}
    torch.testing.assert_close(network(**shorter), made[:1], atol=1e-4, rtol=1e-4)
    silent = inputs | {"context": None}
    torch.testing.assert_close(made[2:], network(**silent)[2:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made[:2], network(**silent)[:2], atol=1e-2)
    torch.testing.assert_close(network(**inputs | {"context": inputs["context"][:, :0]}), network(**silent))


@pytest.mark.parametrize(("kind", "dims"), list(itertools.product(KINDS, (2, 3))))
def test_rows_of_a_batch_do_not_mix(kind: str, dims: int) -> None:
    network, inputs = trained(network_of(kind, dims=dims)), unet_inputs(3, dims=dims)
    stated = torch.tensor([[True, False, True, False, False], [False] * 5, [True] * 5])
    together = network(**inputs, context_stated=stated)
    for row in range(3):
        alone = network(**{name: value[row:row + 1] for name, value in inputs.items()}, context_stated=stated[row:row + 1])
        torch.testing.assert_close(alone, together[row:row + 1], atol=1e-4, rtol=1e-4)


def test_self_attention_is_the_weighted_mean_that_its_formula_says() -> None:
    layer, x = SelfAttention(6, dims=2), torch.randn(1, 6, 2, 3)
    assert torch.equal(layer(x), x)  # at first
    layer.project.weight.data = torch.eye(6)[:, :, None, None]
    query, key, value = layer.qkv(layer.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    mixed = (query @ key.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ value
    torch.testing.assert_close(layer(x), x + mixed.transpose(1, 2).reshape(x.shape))


def test_adaptive_norm_scales_shifts_and_gates_each_branch() -> None:
    """With the attention's gate shut and the other open, x + 1 * MLP(LN(x) (1 + 2) + 3)."""
    block, x = TransformerBlock(TransformerConfig(width=6, heads=1, embedding=EMBEDDING)), torch.randn(2, 4, 6)
    assert torch.equal(block(x, torch.randn(2, EMBEDDING), None), x)  # at first
    numbers = block.affine.bias.data.view(6, 6)  # shift, scale and gate of the attention, then of the perceptron
    numbers[3], numbers[4], numbers[5] = 3.0, 2.0, 1.0
    expected = x + block.perceptron(F.layer_norm(x, (6,)) * 3 + 3)
    torch.testing.assert_close(block(x, torch.randn(2, EMBEDDING), None), expected)
    numbers[:] = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])[:, None]
    query, key, value = block.qkv(F.layer_norm(x, (6,)) * 3 + 3).chunk(3, dim=-1)
    mixed = (query @ key.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ value
    torch.testing.assert_close(block(x, torch.randn(2, EMBEDDING), None), x + block.project(mixed))


def test_cross_attention_is_the_weighted_mean_that_its_formula_says() -> None:
    layer = CrossAttention(6, context=4, heads=1)
    nn.init.eye_(layer.project.weight)
    x, tokens = torch.randn(1, 3, 6), torch.randn(1, 5, 4)
    query, (key, value) = layer.query(F.layer_norm(x, (6,))), layer.key_value(tokens[:, :4]).chunk(2, dim=-1)
    expected = x + (query @ key.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ value
    context = prepared_context(tokens, torch.tensor([[True] * 4 + [False]]), width=4)
    assert context is not None
    torch.testing.assert_close(layer(x, context), expected)


# Training


@pytest.mark.parametrize(("kind", "dims"), list(itertools.product(KINDS, (2, 3))))
def test_gradients_reach_every_weight_and_are_finite_in_bfloat16(kind: str, dims: int) -> None:
    network = trained(network_of(kind, dims=dims)).train()
    stated = torch.tensor([[True, True, False, False, False], [False] * 5])  # the second row has nothing to attend to
    with torch.autocast("cpu", torch.bfloat16):
        made = network(**unet_inputs(dims=dims), context_stated=stated)
    made.float().square().mean().backward()
    assert made.isfinite().all()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name
    exact = network(**unet_inputs(dims=dims), context_stated=stated)
    assert torch.dist(made.float(), exact) < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_only(kind: str) -> None:
    network, inputs = trained(network_of(kind, dropout=0.5)), unet_inputs()
    assert torch.equal(network(**inputs), network(**inputs))
    network.train()
    assert not torch.equal(network(**inputs), network(**inputs))
    certain = trained(network_of(kind)).train()
    assert torch.equal(certain(**inputs), certain(**inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["embedding", "context"])
def test_two_images_are_learned_that_only_the_condition_tells_apart(kind: str, by: str) -> None:
    network, inputs = network_of(kind), unet_inputs()
    inputs |= {name: value[:1].expand_as(value) for name, value in inputs.items() if name != by}
    images = torch.stack([torch.tril(torch.ones(8, 8)), torch.triu(-torch.ones(8, 8))])[:, None]
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    errors = []
    for _ in range(100):
        error = F.mse_loss(network(**inputs), images)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[0] == pytest.approx(36 / 64)
    assert errors[-1] < 0.02, errors[::10]


# Two and three dimensions, and places


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_become_channels_and_come_back(patch: int) -> None:
    image, volume = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4, 12)
    assert torch.equal(patches_to_channels(image, patch), F.pixel_unshuffle(image, patch))
    assert torch.equal(channels_to_patches(patches_to_channels(image, patch), patch), image)
    folded = patches_to_channels(volume, patch)
    assert folded.shape == (2, 3 * patch**3, 8 // patch, 4 // patch, 12 // patch)
    assert torch.equal(channels_to_patches(folded, patch), volume)
    corner = volume[:, :, :patch, :patch, :patch].flatten(1)  # all voxels of the first patch, none of another
    assert torch.equal(folded[:, :, 0, 0, 0], corner)


@pytest.mark.parametrize("resample", ["average", "strided"])
def test_a_volume_of_equal_slices_is_treated_slice_by_slice(resample: str) -> None:
    """With the planar weights in the middle of kernels that see no depth, the volume network is the image network."""
    shape = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (False, True), "patch": 1, "context": WORDS,
             "embedding": EMBEDDING, "resample": resample}
    flat, deep = trained(UNet(UNetConfig(**shape))), UNet(UNetConfig(**shape, dims=3)).eval()
    weights = flat.state_dict()
    for name, weight in deep.state_dict().items():
        if weight.ndim == 5:
            weight.zero_()[:, :, weight.shape[2] // 2] = weights[name]
        else:
            weight.copy_(weights[name])
    inputs = unet_inputs()
    expected = flat(**inputs)
    made = deep(**inputs | {"x": inputs["x"][:, :, None].expand(-1, -1, 6, -1, -1)})
    torch.testing.assert_close(made, expected[:, :, None].expand_as(made), atol=1e-4, rtol=1e-4)


def test_coordinates_are_centres_of_pixels_in_parts_of_the_image() -> None:
    places = coordinates_like(torch.zeros(2, 1, 2, 4))
    assert torch.equal(places[1, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]).expand(2, 4))  # x runs along the last axis
    assert torch.equal(places[1, 1], torch.tensor([[-0.5], [0.5]]).expand(2, 4))
    deep = coordinates_like(torch.zeros(1, 1, 2, 4, 6))
    assert torch.equal(deep[0, 2, :, 0, 0], torch.tensor([-0.5, 0.5]))
    assert torch.equal(F.avg_pool2d(coordinates_like(torch.zeros(1, 1, 8, 8)), 2), coordinates_like(torch.zeros(1, 1, 4, 4)))


def test_only_with_coordinates_does_a_place_in_the_image_matter() -> None:
    """A blob far from the edges, moved by a multiple of the network's stride, away from the edges again."""
    moved = {}
    for coordinates in (False, True):
        network = trained(UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, False), patch=2, embedding=EMBEDDING,
                                          coordinates=coordinates)))
        image = torch.zeros(1, 1, 64, 64)
        image[:, :, 24:28, 24:28] = 1.0
        here = network(image, torch.zeros(1), torch.zeros(1, EMBEDDING))
        there = network(image.roll((8, 8), (2, 3)), torch.zeros(1), torch.zeros(1, EMBEDDING))
        difference = (here.roll((8, 8), (2, 3)) - there)[:, :, 28:40, 28:40]
        moved[coordinates] = (difference.square().mean() / there[:, :, 28:40, 28:40].var()).item()
    assert moved[False] < 0.01 < 0.1 < moved[True], moved


@pytest.mark.parametrize("sides", [(4, 6), (2, 4, 3)])
def test_positions_differ_and_their_products_depend_on_the_offset_alone(sides: tuple[int, ...]) -> None:
    width = 26  # not a multiple of 2 * 2 or 2 * 3: what remains is zero
    positions = position_embedding(sides, width).double()
    assert positions.shape == (math.prod(sides), width)
    assert torch.cdist(positions, positions).fill_diagonal_(1.0).min() > 0.05
    products = (positions @ positions.T).reshape(*sides, *sides)
    for first, second in itertools.product(itertools.product(*(range(side - 1) for side in sides)), repeat=2):
        later = tuple(place + 1 for place in (*first, *second))
        assert products[(*first, *second)].item() == pytest.approx(products[later].item(), abs=1e-5)


def test_the_transformer_knows_places_that_a_network_without_positions_could_not() -> None:
    network, inputs = trained(network_of("transformer")), unet_inputs()
    turned = network(**inputs | {"x": inputs["x"].flip(-1, -2)})  # the same pixels; patches are turned inside as well
    level = network(**inputs | {"x": torch.zeros_like(inputs["x"])})
    assert not torch.allclose(turned.flip(-1, -2), network(**inputs), atol=1e-2)
    assert patches_to_channels(level, 2).flatten(2).std(-1).max() > 0.01  # an image that is the same everywhere


@pytest.mark.processor
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_maps_of_nothing_may_be_left_out(kind: str, dims: int) -> None:
    """The image is that of maps of 0 to the bit, on any processor, and so is that of maps whose weights are 0; gradients agree."""
    if kind == "unet":
        network: nn.Module = UNet(UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(False,), patch=2, embedding=EMBEDDING,
                                             coordinates=True, dims=dims), inputs=3, maps=2)
    else:
        network = Transformer(TransformerConfig(width=24, depth=1, heads=2, patch=2, embedding=EMBEDDING, dims=dims), inputs=3,
                              maps=2)
    trained(network)
    x, noise, embedding = torch.randn(2, 1, *[4] * dims), torch.tensor([0.1, 1.0]), torch.randn(2, EMBEDDING)
    images, gradients = [], []
    for given in (x, torch.cat([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)):
        network.zero_grad()
        image = network(given, noise, embedding)
        image.square().sum().backward()
        images.append(image.detach())
        gradients.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    assert torch.equal(images[0], images[1])
    for left_out, zero in zip(*gradients, strict=True):
        torch.testing.assert_close(left_out, zero, rtol=1e-4, atol=1e-5)
    stated = torch.cat([x, torch.randn(2, 2, *[4] * dims)], dim=1)
    stated[1, 1:] = 0.0
    beside = network(stated, noise, embedding)
    assert torch.equal(beside[1], images[0][1]) and not torch.allclose(beside[0], images[0][0], atol=1e-2)
    with torch.no_grad():
        network.first.weight[:, network.maps] = 0.0  # type: ignore[index, union-attr]
    assert torch.equal(network(stated, noise, embedding), images[0])


# Embeddings


def test_absent_uncertain_present_and_not_stated_are_distinct_inputs() -> None:
    embedding, statements = StatementEmbedding(1, 2), torch.tensor([[0.0], [UNCERTAIN], [1.0], [math.nan]])
    assert torch.pdist(embedding(statements)).min() > 0.1
    nn.init.eye_(embedding.linear.weight)
    assert embedding(statements).tolist() == [[1, -1], [1, 0], [1, 1], [0, 0]]  # (stated, value)


def test_a_place_is_encoded_number_by_number_and_zero_where_not_stated() -> None:
    embedding = PlaceEmbedding(3, 64)
    unstated = torch.full((1, 3, len(LESION_PROPERTIES)), math.nan)
    assert not embedding(unstated).any()
    single = []
    for finding, column in itertools.product(range(3), range(len(LESION_PROPERTIES))):
        for value in (0.0, 0.5, 1.0):
            single.append(unstated.clone())
            single[-1][0, finding, column] = value
    embedded = embedding(torch.cat(single))
    assert torch.pdist(embedded).min() > 0.1  # 0 is not silence, and no number is taken for another's
    many = PlaceEmbedding(30, 64)(torch.cat([single[0], unstated.repeat(1, 9, 1)], dim=1))
    assert many.std().item() == pytest.approx(embedded[0].std().item(), rel=0.5)  # one lesion is as loud among many findings
    torch.testing.assert_close(embedding(torch.where(unstated.isnan() & ~single[0].isnan(), single[0], single[-1])),
                               embedded[:1] + embedded[-1:])


def test_a_number_is_encoded_as_stated_value_and_waves() -> None:
    embedding = PlaceEmbedding(1, 4 * len(LESION_PROPERTIES), octaves=1)
    nn.init.eye_(embedding.linear.weight)
    lesions = torch.full((1, 1, len(LESION_PROPERTIES)), math.nan)
    lesions[0, 0, 1] = 0.25
    embedded = embedding(lesions)[0]
    torch.testing.assert_close(embedded[4:8], torch.tensor([1.0, -0.5, math.sqrt(0.5), math.sqrt(0.5)]))
    assert embedded.count_nonzero() == 4


def test_near_places_differ_and_stay_neighbours() -> None:
    embedding, column = PlaceEmbedding(1, 256), LESION_PROPERTIES.index("x")
    lesions = torch.full((101, 1, len(LESION_PROPERTIES)), math.nan)
    lesions[:, 0, column] = torch.linspace(0, 1, 101)
    embedded = embedding(lesions)
    distance = torch.cdist(embedded, embedded)
    steps = distance.diagonal(1)
    assert steps.min() > 0.3 * steps.max()  # as clear at the edges as in the middle
    assert distance[50, 51] < distance[50, 55]
    plain = StatementEmbedding(1, 256)(torch.tensor([[0.50], [0.51]]))
    assert steps.min() > 2 * torch.dist(plain[0], plain[1])  # and clearer than the number alone


def test_convolutions_of_images_and_volumes_are_chosen_by_one_argument() -> None:
    assert isinstance(convolution(1, 2, 3, dims=2), nn.Conv2d)
    assert convolution(1, 2, 3, dims=3, stride=2)(torch.zeros(1, 1, 4, 6, 8)).shape == (1, 2, 2, 3, 4)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_volumes_of_few_slices_have_the_gradients_of_float32(depth: int) -> None:
    """Where the processor's own kernel for bfloat16 leaves memory as it was."""
    layer, x = convolution(16, 16, 3, dims=3), torch.randn(2, 16, depth, 4, 4)
    gradients = []
    for autocast in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made = layer(x)
        made.float().square().mean().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert torch.dist(*gradients) < 0.02 * gradients[1].norm()
