"""What families say that their models can do: true of the models, and kept as promised. Tests choose families by what is declared."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from synthorax.capabilities import (
    CAPABILITIES,
    Adaptable,
    Cascade,
    Denoiser,
    HasConditionInputs,
    HasDiagnostics,
    LatentEncoder,
    LatentGenerator,
    LayoutMaker,
    MaskConditioned,
    StartsFromBase,
    StyledGenerator,
)
from synthorax.errors import UsageError
from synthorax.families import FAMILIES
from synthorax.protocols import LESION_PROPERTIES, Condition, Family, SampleSettings, as_model
from synthorax.registry import lookup
from synthorax.rng import Draws
from synthorax.steps.models.recipe import load_recipe, needs_of
from trainings import FINDINGS, MASKS, SITES, fresh_cascade, fresh_objective, randomised, shape_of, smallest


def family_of(name: str) -> Family:
    return lookup(FAMILIES, name, kind="family")


def those_that_are(capability: type) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [name for name in FAMILIES if capability in family_of(name).can])


def model_of(family: str) -> nn.Module:
    return fresh_objective(smallest(family)).model.eval()


def stated(size: int, value: float = 1.0) -> Condition:
    nothing = Condition.unstated(size, num_labels=len(FINDINGS), num_sites=len(SITES))
    return replace(nothing, labels=torch.full_like(nothing.labels, value), measurements=torch.full((size, 3), value))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_declares_what_its_models_can_do_and_nothing_else(family: str) -> None:
    model, can = model_of(family), family_of(family).can
    assert {capability for capability in CAPABILITIES if isinstance(model, capability)} == set(can)


def test_a_cascade_is_one_and_can_do_nothing_else() -> None:
    model = fresh_cascade()
    assert [capability for capability in CAPABILITIES if isinstance(model, capability)] == [Cascade]


def test_every_capability_is_somebodys() -> None:
    assert {capability for family in FAMILIES for capability in family_of(family).can} | {Cascade} == set(CAPABILITIES)


@those_that_are(LatentGenerator)
def test_latents_of_the_stated_shapes_make_images(family: str) -> None:
    model = model_of(family)
    assert isinstance(model, LatentGenerator)
    latents = model.draw_latents(Draws([1, 2, 3]), stated(3))
    assert [tuple(latent.shape) for latent in latents] == [(3, *shape) for shape in model.latent_shapes]
    size = model.spec.image_size
    with torch.no_grad():
        one, other = (model.decode_latents(latents, stated(3, value)) for value in (0.0, 1.0))
    assert one.shape == (3, 1, size, size) and bool(one.isfinite().all())
    assert model.follows_condition == (not torch.equal(one, other))
    assert model.latent_weights().ndim == 2 and model.latent_weights().shape[1] == model.latent_shapes[0][-1]


@those_that_are(StyledGenerator)
def test_styles_make_the_images_of_their_latents(family: str) -> None:
    model = model_of(family)
    assert isinstance(model, StyledGenerator)
    latent, *noises = model.draw_latents(Draws([1, 2]), None)
    with torch.no_grad():
        assert torch.equal(model.decode_styles(model.styles_of(latent, None), noises), model.decode_latents([latent, *noises], None))
    space = model.style_space()
    assert isinstance(space, LatentGenerator) and not space.follows_condition, "styles hold the condition"


@those_that_are(LatentEncoder)
def test_an_encoder_reads_latents_of_the_generators_shapes(family: str) -> None:
    model = model_of(family)
    assert isinstance(model, LatentEncoder) and isinstance(model, LatentGenerator)
    size = model.spec.image_size
    assert [tuple(latent.shape[1:]) for latent in model.encode_latents(torch.zeros(2, 1, size, size))] == list(model.latent_shapes)


@those_that_are(MaskConditioned)
def test_masks_become_planes_and_an_unstated_one_is_0(family: str) -> None:
    model, size = model_of(family), 16
    assert isinstance(model, MaskConditioned)
    mask = torch.full((2, len(MASKS), size, size), math.nan)
    mask[0, 1] = 1.0
    planes = model.mask_planes(replace(stated(2), mask=mask), size=2, device=torch.device("cpu"))
    assert planes.shape == (2, 2 * len(MASKS), size, size)
    assert not planes[1].any() and planes[0].flatten(1).all(1).tolist() == [False, True, False, True], "stated, then value"


@those_that_are(Denoiser)
def test_a_denoiser_trusts_images_without_noise_and_refuses_what_it_cannot_follow(family: str) -> None:
    model = model_of(family)
    assert isinstance(model, Denoiser) and not model.needs_image
    images = torch.rand(2, *shape_of(model.spec)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(images, torch.full((2,), 1e-5), stated(2)), images, atol=1e-3, rtol=0)
    model.check_settings(SampleSettings())
    latent = fresh_objective(smallest("diffusion", "model.compressor=wavelet", "model.image_size=16")).model
    assert isinstance(latent, Denoiser)
    with pytest.raises(UsageError, match="clip"):
        latent.check_settings(SampleSettings(clip=True))


@those_that_are(LayoutMaker)
def test_outlines_are_masks_of_what_is_sampled(family: str) -> None:
    model = model_of(family)
    randomised(model)
    assert isinstance(model, LayoutMaker)
    settings = SampleSettings(steps=2, guidance=1.0)
    masks = model.draw(stated(2), [1, 2], settings)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks, (as_model(model).sample(stated(2), [1, 2], settings) > 0).float())


@those_that_are(HasConditionInputs)
def test_weights_of_statements_without_variation_are_0_so_that_stating_them_changes_nothing(family: str) -> None:
    model = model_of(family)
    if not {"labels", "measurements"} & set(as_model(model).spec.conditions):
        pytest.skip("its smallest recipe is conditioned neither on labels nor on measurements")
    randomised(model)
    assert isinstance(model, HasConditionInputs)
    varied = Condition.unstated(1, num_labels=len(FINDINGS), num_sites=len(SITES))
    size = as_model(model).spec.image_size
    model.zero_unvaried_inputs(replace(varied, lesions=torch.full((1, len(FINDINGS), len(LESION_PROPERTIES)), math.nan),
                                       mask=torch.full((1, len(MASKS), size, size), math.nan),
                                       measurements=torch.full((1, 3), math.nan)))
    settings = SampleSettings(steps=2, guidance=1.0)
    first, second = (as_model(model).sample(stated(1, value), [3], settings) for value in (0.0, 1.0))
    assert torch.equal(first, second)


@those_that_are(StartsFromBase)
def test_a_model_that_starts_from_another_makes_its_images(family: str) -> None:
    base, model = model_of(family), model_of(family)
    randomised(base)
    assert isinstance(model, StartsFromBase) and isinstance(base, StartsFromBase)
    weights = model.state_dict()
    for name, (axis, names) in model.named_axes().items():
        assert weights[name].shape[axis] == len(names) == len(set(names)), name
    model.load_matching(base)
    settings = SampleSettings(steps=2)
    assert torch.equal(as_model(model).sample(stated(1), [3], settings), as_model(base).sample(stated(1), [3], settings))
    with pytest.raises(UsageError, match="only start from another one"):
        model.load_matching(nn.Linear(1, 1))


@pytest.mark.parametrize("network", [(), ("model.network=transformer", "model.width=12", "model.depth=1", "model.heads=2")])
@those_that_are(Adaptable)
def test_every_weight_belongs_to_one_group(family: str, network: tuple[str, ...]) -> None:
    model = fresh_objective(smallest(family, *network)).model
    assert isinstance(model, Adaptable)
    groups = model.parameter_groups()
    assert set(groups) == {"condition", "norms", "first", "last", "trunk"} and all(groups.values())
    assert sorted(name for names in groups.values() for name in names) == sorted(name for name, _ in model.named_parameters())


@those_that_are(HasDiagnostics)
def test_diagnostics_are_numbers(family: str) -> None:
    model = copy.deepcopy(model_of(family))
    assert isinstance(model, HasDiagnostics)
    assert all(math.isfinite(value) for value in model.diagnostics().values())


def test_a_recipe_says_what_its_training_needs() -> None:
    compressors = {"latent-64": "kl-autoencoder", "wavelet-256": "wavelet", "edm-64": "none", "dcgan-64": "none"}
    assert {name: needs_of(load_recipe(name)).compressor for name in compressors} == compressors
    assert needs_of(load_recipe("super-256")).crops and not needs_of(load_recipe("edm-64")).crops
    lesion = load_recipe("edm-64", overrides=["objective.lesion.ssim_weight=1.0"])
    assert needs_of(lesion).lesion_masks and not needs_of(load_recipe("edm-64")).lesion_masks
    for name, override in (("edm-64", "model.text_encoder=some/encoder"), ("edm-64", "objective.lesion.perceptual=own.pt"),
                           ("vq-vae-2-64", "objective.features=own.ts"), ("kl-autoencoder-64", "objective.features=own.pt"),
                           ("inversion-encoder", "objective.perceptual=own.pt"), ("kumar-gmvae-v4", "objective.encoder_weights=own.pth")):
        assert needs_of(load_recipe(name, overrides=[override])).own_files and not needs_of(load_recipe(name)).own_files, name
