"""Compressors of images: what they keep, how their latents are measured, how codes are learned, and when a discriminator is used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.families.autoencoders.first_stage import Discriminator, Reconstruction
from synthorax.families.autoencoders.kl_autoencoder import KlAutoencoderModel
from synthorax.families.autoencoders.vq_gan import VqGanModel
from synthorax.losses.adversarial import hinge_generated, hinge_generator, hinge_real
from synthorax.nets.autoencoder import AutoencoderConfig, Decoder, Encoder, LatentScale, checked, lowest_cosines
from synthorax.nets.patchgan import PatchDiscriminator
from synthorax.nets.quantizer import Quantizer
from synthorax.nets.wavelet import WaveletPacking
from synthorax.protocols import Batch, Condition, Objective
from synthorax.rng import Draws
from synthorax.steps.models.recipe import load_recipe
from trainings import FINDINGS, fresh_objective, randomised, smallest, train_here

COMPRESSORS = ("kl-autoencoder", "vq-gan")
compressors = pytest.mark.parametrize("family", COMPRESSORS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eight_bit(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch(size: int = 4, *, side: int = 32) -> Batch:
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    images = torch.stack([torch.sin(4 * x + number) * torch.cos(3 * y) * 0.7 for number in range(size)])[:, None]
    return Batch(images=images, condition=Condition.unstated(size, num_labels=len(FINDINGS)), draws=Draws(range(size)))


# ---- wavelet packing


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_packing_gives_back_eight_bit_images_exactly(levels: int) -> None:
    images = eight_bit(3, 1, 32, 48)
    packing = WaveletPacking(levels)
    latents = packing.encode(images.float() / 127.5 - 1)
    assert latents.shape == (3, packing.channels, 32 // packing.factor, 48 // packing.factor) and packing.channels == 4**levels
    assert torch.equal(((packing.decode(latents) + 1) * 127.5).round().to(torch.uint8), images)


def test_packing_gives_back_sixteen_bit_images_exactly() -> None:
    images = torch.randint(0, 65536, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    packing = WaveletPacking(2)
    back = packing.decode(packing.encode((images.double() / 32767.5 - 1).float()))
    assert torch.equal(((back.double() + 1) * 32767.5).round().long(), images)


def test_packing_is_orthonormal() -> None:
    """Its matrix, read off column by column, times its transpose is the identity; so energy and white noise stay as they are."""
    packing = WaveletPacking(2)
    matrix = packing.encode(torch.eye(64).reshape(64, 1, 8, 8)).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64))
    images = normal(2, 1, 16, 16)
    torch.testing.assert_close(packing.encode(images).square().sum((1, 2, 3)), images.square().sum((1, 2, 3)))


def test_the_first_channel_is_the_mean_and_the_others_are_blind_to_brightness() -> None:
    packing, images = WaveletPacking(2), normal(2, 1, 16, 16)
    latents = packing.encode(images)
    torch.testing.assert_close(latents[:, :1], 4 * F.avg_pool2d(images, 4))
    brighter = packing.encode(images + 0.5)
    torch.testing.assert_close(brighter[:, 0], latents[:, 0] + 2.0)
    torch.testing.assert_close(brighter[:, 1:], latents[:, 1:])


def test_channels_are_in_the_documented_order() -> None:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    columns, rows = (-1.0) ** x, (-1.0) ** y
    bands = {1: columns, 2: rows, 3: columns * rows}
    for band, image in bands.items():
        one = WaveletPacking(1).encode(image[None, None])
        assert (one[0].abs().sum((1, 2)) > 0).nonzero().tolist() == [[band]]
        two = WaveletPacking(2).encode(image[None, None])  # constant in its band, so the second level finds its mean
        assert (two[0].abs().sum((1, 2)) > 0).nonzero().tolist() == [[4 * band]]


def test_a_side_that_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UsageError, match="30 x 32 pixels cannot be packed: both sides must be multiples of 4"):
        WaveletPacking(2).encode(torch.zeros(1, 1, 30, 32))
    with pytest.raises(UsageError, match="at least one level"):
        WaveletPacking(0)


# ---- networks


@pytest.mark.parametrize(("multipliers", "patch", "factor"), [((1,), 4, 4), ((1, 2), 2, 4), ((1, 2, 4, 4), 1, 8), ((1, 2), 4, 8)])
@pytest.mark.parametrize("attention", [False, True])
def test_shapes_follow_the_factor(multipliers: tuple[int, ...], patch: int, factor: int, attention: bool) -> None:
    config = checked(AutoencoderConfig(image_size=32, channels=4, multipliers=multipliers, patch=patch, latent_channels=3,
                                       attention=attention))
    assert config.factor == factor
    latents = Encoder(config, outputs=6)(normal(2, 1, 32, 32))
    assert latents.shape == (2, 6, 32 // factor, 32 // factor)
    assert Decoder(config)(latents[:, :3]).shape == (2, 1, 32, 32)


def test_cosines_are_orthogonal_slowest_first_and_complete() -> None:
    kernels = lowest_cosines(4, 16).flatten(1)
    torch.testing.assert_close(kernels @ kernels.T, 16 * torch.eye(16), atol=1e-4, rtol=0)
    assert torch.equal(kernels[0], torch.ones(16))
    slopes = lowest_cosines(4, 4)[:, 0]
    assert [bool((one.diff(dim=0) != 0).any()) for one in slopes] == [False, False, True, True], "down the rows"
    assert [bool((one.diff(dim=1) != 0).any()) for one in slopes] == [False, True, False, True], "along the columns"
    assert lowest_cosines(2, 6).shape == (6, 1, 2, 2) and not lowest_cosines(2, 6)[4:].any()


def test_before_training_a_compressor_is_the_linear_one() -> None:
    """Latents are block means and slopes; what they span comes back, and the error is the energy of the rest (Parseval)."""
    config = checked(AutoencoderConfig(image_size=32, channels=4, multipliers=(1, 2), patch=2, latent_channels=4))
    encoder, decoder = Encoder(config, outputs=4), Decoder(config)
    images = normal(2, 1, 32, 32)
    with torch.no_grad():
        latents = encoder(images)
        torch.testing.assert_close(latents[:, :1], F.avg_pool2d(images, 4))
        made = decoder(latents)
        torch.testing.assert_close(encoder(made), latents, atol=1e-5, rtol=0)
        kept = 16 * latents.square().sum((1, 2, 3))
        torch.testing.assert_close((images - made).square().sum((1, 2, 3)), images.square().sum((1, 2, 3)) - kept, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(decoder(encoder(torch.full((1, 1, 32, 32), 0.3))), torch.full((1, 1, 32, 32), 0.3))


@pytest.mark.parametrize(("change", "problem"), [({"image_size": 30}, "not a multiple of 8"), ({"multipliers": ()}, "at least 1"),
                                                 ({"multipliers": (1, 0)}, "at least 1"), ({"patch": 0}, "at least 1")])
def test_networks_that_cannot_be_built_are_refused(change: dict, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        checked(AutoencoderConfig(**{"image_size": 32, **change}))


def test_a_patch_score_sees_seventy_pixels() -> None:
    """The published field of view of three halvings: a change outside of it leaves the score as it is."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4, layers=3).eval()
    image = normal(1, 1, 128, 128).requires_grad_()
    scores = discriminator(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    assert image.grad is not None
    seen = (image.grad[0, 0] != 0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_a_discriminator_cannot_exaggerate() -> None:
    """Spectral normalisation bounds how fast scores change, however large the weights grow."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4, layers=2)
    for parameter in discriminator.parameters():
        parameter.data.mul_(50)
    images = normal(2, 1, 32, 32)
    for _ in range(20):
        discriminator(images)  # lets the power iteration settle
    moved = images + 0.01 * normal(2, 1, 32, 32, seed=1)
    discriminator.eval()
    assert (discriminator(moved) - discriminator(images)).norm() < 8 * (moved - images).norm()


# ---- latent scale


def test_measured_latents_have_unit_variance_and_come_back() -> None:
    latents = normal(50, 3, 4, 4) * torch.tensor([0.01, 1.0, 300.0])[:, None, None] + torch.tensor([5.0, 0.0, -2e3])[:, None, None]
    scale = LatentScale(3)
    scale.fit(latents)
    scaled = scale.normalise(latents)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scale.restore(scaled), latents)
    again = LatentScale(3)
    again.load_state_dict(scale.state_dict())
    assert torch.equal(again.normalise(latents), scaled), "it is saved with the weights"


def test_small_deviations_on_a_large_mean_are_measured() -> None:
    """In float32 sums of squares, 0.01 on top of 1,000 would be lost."""
    scale = LatentScale(1)
    scale.fit(1000 + 0.25 * normal(100, 1, 8, 8))
    assert scale.std.item() == pytest.approx(0.25, rel=0.02)


def test_a_channel_that_never_varies_does_not_explode() -> None:
    scale = LatentScale(2)
    scale.fit(torch.stack([torch.full((5, 2, 2), 3.0), normal(5, 2, 2)], dim=1))
    assert torch.equal(scale.normalise(torch.full((1, 2, 2, 2), 3.0))[0, 0], torch.zeros(2, 2))


def test_following_batches_arrives_at_what_fitting_all_would_give() -> None:
    parts = [normal(8, 2, 4, 4, seed=seed) * (1 + seed % 3) + seed % 2 for seed in range(50)]
    scale, whole = LatentScale(2), LatentScale(2)
    for part in parts:
        scale.follow(part)
    whole.fit(torch.cat(parts))
    torch.testing.assert_close(scale.mean, whole.mean)
    torch.testing.assert_close(scale.std, whole.std)


# ---- codebook


def code_book(codes: list[list[float]]) -> Quantizer:
    quantizer = Quantizer(num_codes=len(codes), channels=len(codes[0]))
    quantizer.codes.copy_(torch.tensor(codes))
    return quantizer


def test_each_vector_gets_its_nearest_code() -> None:
    quantizer = code_book([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    latents = torch.tensor([[0.9, 0.8], [0.1, -0.2], [-2.0, 2.0]]).T.reshape(1, 2, 1, 3)
    assert quantizer.indices(latents).tolist() == [[[1, 0, 2]]]
    chosen = quantizer(latents)
    torch.testing.assert_close(chosen, torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]]).T.reshape(1, 2, 1, 3))
    torch.testing.assert_close(quantizer(chosen), chosen, msg="codes are their own codes")
    with torch.autocast("cpu", torch.bfloat16):
        many = normal(2, 2, 16, 16)
        distances = (many[:, None] - quantizer.codes[None, :, :, None, None]).square().sum(2)  # [2, codes, 16, 16]
        assert torch.equal(quantizer.indices(many), distances.argmin(1))


def test_gradients_go_straight_through() -> None:
    latents = normal(2, 2, 4, 4).requires_grad_()
    weights = normal(2, 2, 4, 4, seed=1)
    (code_book([[0.0, 0.0], [1.0, 1.0]])(latents) * weights).sum().backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, weights)


def clusters(seed: int = 0) -> Tensor:
    """Vectors around four corners, in unequal numbers, [1, 2, 16, 16]."""
    corners = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]])
    which = torch.tensor([0] * 128 + [1] * 64 + [2] * 32 + [3] * 32)
    return (corners[which] + 0.1 * normal(256, 2, seed=seed)).T.reshape(1, 2, 16, 16)


def test_codes_find_clusters_and_usage_counts_them() -> None:
    torch.manual_seed(1)  # from some beginnings two codes share a cluster, as in any k-means
    quantizer = Quantizer(num_codes=4, channels=2)
    for step in range(600):
        quantizer.learn(clusters(step))
    order = quantizer.usage().argsort(descending=True)
    usage = quantizer.usage()[order]
    torch.testing.assert_close(usage[:2], torch.tensor([0.5, 0.25]), atol=0.02, rtol=0)
    assert {tuple(code) for code in quantizer.codes.div(5).round().tolist()} == {(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)}
    assert (clusters() - quantizer(clusters())).abs().max() < 0.6
    entropy = -sum(part * math.log(part) for part in (1 / 2, 1 / 4, 1 / 8, 1 / 8))
    assert quantizer.perplexity() == pytest.approx(math.exp(entropy), rel=0.03)


def test_dead_codes_come_back_and_always_in_the_same_way() -> None:
    def learned() -> Quantizer:
        torch.manual_seed(0)
        quantizer = Quantizer(num_codes=16, channels=2)
        for step in range(5):
            quantizer.learn(clusters(step))
        quantizer.codes[4:] = 1e3  # far from everything
        quantizer.counts[4:] = 0.0
        quantizer.sums[4:] = 0.0
        quantizer.learn(clusters(9))
        return quantizer

    quantizer = learned()
    assert quantizer.codes.abs().max() < 10, "all are among the vectors again"
    before, after = Quantizer(num_codes=2, channels=2), quantizer
    before.codes.copy_(torch.tensor([[5.0, 5.0], [1e3, 1e3]]))
    assert (clusters() - after(clusters())).square().mean() < 0.1 * (clusters() - before(clusters())).square().mean()
    torch.manual_seed(1)
    for name, value in learned().state_dict().items():
        assert torch.equal(value, quantizer.state_dict()[name]), f"{name}: no chance is in it"


def test_usage_of_an_untrained_codebook_is_equal_and_perplexity_full() -> None:
    quantizer = Quantizer(num_codes=8, channels=2)
    assert quantizer.perplexity() == pytest.approx(8.0)
    quantizer.counts[3] = 5.0
    assert quantizer.perplexity() == pytest.approx(1.0)
    drawn = quantizer.draw(4, draws=Draws([1, 2]))
    assert torch.equal(drawn, quantizer.codes[3].reshape(1, 2, 1, 1).expand(2, 2, 4, 4)), "unused codes are not drawn"
    with pytest.raises(UsageError, match="at least 2 codes"):
        Quantizer(num_codes=1, channels=2)


def test_codes_are_drawn_as_often_as_they_are_used() -> None:
    quantizer = code_book([[0.0], [1.0], [2.0]])
    quantizer.counts.copy_(torch.tensor([6.0, 3.0, 1.0]))
    drawn = quantizer.draw(64, draws=Draws([0]))
    for code, part in ((0.0, 0.6), (1.0, 0.3), (2.0, 0.1)):
        assert (drawn == code).float().mean().item() == pytest.approx(part, abs=0.03)


# ---- losses and discriminator


def test_hinge_losses_stop_at_the_margin() -> None:
    scores = torch.tensor([-2.0, -0.5, 0.5, 2.0]).reshape(4, 1, 1, 1)
    torch.testing.assert_close(hinge_real(scores), torch.tensor([3.0, 1.5, 0.5, 0.0]))
    torch.testing.assert_close(hinge_generated(scores), torch.tensor([0.0, 0.5, 1.5, 3.0]))
    torch.testing.assert_close(hinge_generator(scores), torch.tensor([2.0, 0.5, -0.5, -2.0]))


def test_reconstruction_terms_are_what_their_names_say() -> None:
    images = batch().images
    terms = Reconstruction(absolute=2.0, squared=3.0, perceptual=0.0, features="oriented")(images + 0.1, images)
    torch.testing.assert_close(terms, {"absolute": torch.full((4,), 0.2), "squared": torch.full((4,), 0.03)})
    assert set(Reconstruction(absolute=0.0, squared=0.0, perceptual=1.0, features="oriented")(images, images)) == {"perceptual"}


def test_the_discriminator_pulls_as_hard_as_the_reconstruction_times_its_weight() -> None:
    """Eq. 7, Esser et al. 2021: gradients at the last layer have the same length."""
    torch.manual_seed(0)
    discriminator = Discriminator(weight=0.25, after=0, channels=2, layers=1)
    last = nn.Conv2d(1, 1, 3, padding=1)
    made = last(batch().images)
    reconstruction = 70 * (made - batch().images).abs().flatten(1).mean(1)
    pull = torch.autograd.grad(discriminator.term(made, reconstruction, last.weight).mean(), last.weight, retain_graph=True)[0].norm()
    other = torch.autograd.grad(reconstruction.mean(), last.weight)[0].norm()
    assert pull.item() == pytest.approx(0.25 * other.item(), rel=0.02)


def test_the_discriminator_is_off_at_first_and_counts_training_steps_only() -> None:
    discriminator = Discriminator(weight=1.0, after=2, channels=2, layers=1)
    last = nn.Conv2d(1, 1, 3, padding=1)
    made = last(batch().images)
    reconstruction = (made - batch().images).abs().flatten(1).mean(1)
    active = [bool(discriminator.term(made, reconstruction, last.weight).any()) for _ in range(4)]
    assert active == [False, False, True, True]
    discriminator.eval()
    discriminator.term(made, reconstruction, last.weight)
    assert discriminator.steps.item() == 4


# ---- the families


@compressors
def test_without_an_adversary_there_is_one_phase_and_no_discriminator(family: str) -> None:
    objective = fresh_objective(smallest(family, "objective.adversarial=0"))
    assert [phase.name for phase in objective.phases] == ["autoencode"] and set(objective.players) == {"model"}
    objective("autoencode", batch())


@compressors
def test_codes_of_an_image_leave_no_room_for_chance(family: str) -> None:
    """Encoding twice gives the same, and each image's code is its own."""
    model = fresh_objective(smallest(family)).model.eval()
    assert isinstance(model, KlAutoencoderModel | VqGanModel)
    images = batch().images
    latents = model.encode(images)
    assert latents.shape == (4, model.channels, 32 // model.factor, 32 // model.factor)
    assert torch.equal(latents, model.encode(images))
    torch.testing.assert_close(latents[:1], model.encode(images[:1]), atol=1e-5, rtol=0)
    made = model.decode(latents)
    assert made.shape == images.shape and made.abs().max() <= 1
    assert model.decode(1e3 * latents).abs().max() <= 1


def test_words_of_a_vq_gan_survive_decoding_noise() -> None:
    """A diffusion hits codes nearly; what is decoded are the codes themselves."""
    model = fresh_objective(smallest("vq-gan")).model.eval()
    assert isinstance(model, VqGanModel)
    codes = model.encode(batch().images)
    words = {tuple(code) for code in model.quantizer.codes.tolist()}
    assert {tuple(vector) for vector in codes.movedim(1, -1).flatten(0, 2).tolist()} <= words
    torch.testing.assert_close(model.decode(codes + 1e-4), model.decode(codes))


def test_the_divergence_is_that_of_the_posterior_in_nats_a_pixel() -> None:
    objective = fresh_objective(smallest("kl-autoencoder", "objective.kl=0.5")).eval()
    randomised(objective.model)
    model = objective.model
    assert isinstance(model, KlAutoencoderModel)
    one = batch()
    with torch.no_grad():
        mean, log_variance = model.posterior(one.images)
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)) / 32**2
        torch.testing.assert_close(objective("autoencode", one)["kl"], 0.5 * expected, rtol=1e-4, atol=1e-6)


@compressors
def test_measured_statistics_move_in_training_of_the_compressor_only(family: str) -> None:
    def statistics_of(objective: Objective) -> list[Tensor]:
        model = objective.model
        part = model.scale if isinstance(model, KlAutoencoderModel) else model.quantizer
        assert isinstance(part, nn.Module)
        return [value.clone() for value in part.buffers()]

    def moved(first: list[Tensor], second: list[Tensor]) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))

    objective = fresh_objective(smallest(family))
    start = statistics_of(objective)
    objective.eval()("autoencode", batch())
    objective.train()("discriminate", batch())
    spoilt = batch()
    spoilt.images.fill_(math.nan)
    objective("autoencode", spoilt)
    assert not moved(start, statistics_of(objective)), "neither evaluation nor the discriminator nor a spoilt image counts"
    objective("autoencode", batch())
    assert moved(start, statistics_of(objective))


@compressors
def test_training_makes_reconstructions_better_than_at_the_start(family: str) -> None:
    sizes = ["model.codes=64"] if family == "vq-gan" else []
    objective = fresh_objective(smallest(family, "objective.adversarial=0", "objective.perceptual=0.1", "model.channels=8", *sizes))
    model, images = objective.model, batch().images
    assert isinstance(model, KlAutoencoderModel | VqGanModel)

    def error() -> float:
        with torch.no_grad():
            return (model.decode(model.encode(images)) - images).square().mean().item()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    objective("autoencode", batch())  # places the codes
    start = error()
    assert start < 0.5 * images.var().item(), "the lowest cosines are there from the first step"
    for _ in range(100):
        optimizer.zero_grad()
        torch.stack(list(objective("autoencode", batch()).values())).sum(0).mean().backward()
        optimizer.step()
    assert error() < 0.5 * start
    if isinstance(model, VqGanModel):
        assert model.quantizer.perplexity() > 8


@compressors
def test_two_players_train_together(family: str, tmp_path: Path) -> None:
    outcome = train_here(smallest(family, "train.steps=3"), tmp_path)
    assert outcome.images == 3 * 2 * 2  # steps x phases x batch size
    assert isinstance(outcome.model, KlAutoencoderModel | VqGanModel)
    if isinstance(outcome.model, KlAutoencoderModel):
        assert outcome.model.scale.seen.item() == 3, "the measured scale ships"


@pytest.mark.parametrize(("recipe", "side"), [("kl-autoencoder-256", 32), ("kl-autoencoder-512", 64), ("vq-gan-256", 32)])
def test_presets_compress_as_they_say(recipe: str, side: int) -> None:
    objective = fresh_objective(load_recipe(recipe))
    model = objective.model
    assert isinstance(model, KlAutoencoderModel | VqGanModel)
    with torch.no_grad():
        assert model.encode(torch.zeros(1, 1, model.config.image_size, model.config.image_size)).shape == (1, 4, side, side)


@compressors
def test_all_that_training_remembers_is_in_the_checkpoint(family: str) -> None:
    held = set(fresh_objective(smallest(family)).players.state_dict())
    measured = {"kl-autoencoder": ("scale.mean", "scale.std", "scale.seen"),
                "vq-gan": ("quantizer.codes", "quantizer.counts", "quantizer.sums")}
    assert {"discriminator.steps", "discriminator.balance", *(f"model.{name}" for name in measured[family])} <= held
