"""Kumar's mixture autoencoders: printed counts, its table of versions, preprocessing, and ImageNet weights by their published names."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synthorax.engine import Engine
from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.families.kumar.gmvae import KumarGmvaeModel, KumarGmvaeObjective
from synthorax.losses.divergence import kl_standard_normal
from synthorax.nets.imagenet import DenseNet121, Vgg16, load_imagenet
from synthorax.nets.kumar_mixture import MixtureDecoder, equalised, transition
from synthorax.protocols import Condition, as_model
from synthorax.rng import Draws
from synthorax.steps.models.recipe import build_objective, load_recipe, recipe_names
from synthorax.training.feed import Feed
from trainings import FINDINGS, fresh_objective, smallest, toy_images

TABLE = {"kumar-fs-gmvae-v1": (1000, 50, True, True, "vgg16", "linear", True),
         "kumar-fs-gmvae-v2": (1000, 50, True, False, "vgg16", "linear", True),
         "kumar-fs-gmvae-v3": (1000, 50, True, True, "vgg16", "1", True), "kumar-gmvae-v3": (1000, 50, False, True, "vgg16", "1", False),
         "kumar-gmvae-v4": (1000, 50, True, True, "vgg16", "1", False), "kumar-gmvae-v5": (1000, 50, False, True, "vgg16", "2", False),
         "kumar-gmvae-v6": (2000, 300, True, True, "densenet121", "2", False), "kumar-gmvae-v7": (2000, 300, False, False, "vgg16", "2",
                                                                                                  False),
         "kumar-gmvae-v8": (2000, 300, True, True, "vgg16", "2", False)}
"""Kumar's table of versions: Z, K, transition, normalised, encoder, decoder, findings told"""


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_every_version_of_the_table_is_a_recipe() -> None:
    assert {name for name in recipe_names() if "gmvae" in name and name.startswith("kumar")} == set(TABLE)
    for name, row in TABLE.items():
        c = load_recipe(name).model
        assert (c.latent_size, c.components, c.transition, c.normalise, c.encoder, c.decoder, c.labels) == row
        assert c.image_size == 224


def test_parameters_are_those_that_kumar_et_al_print_or_imply() -> None:
    assert count(Vgg16()) == 14_714_688 and count(DenseNet121()) == 6_953_856
    assert [count(MixtureDecoder(kind, inputs=1, image_size=224).layers) for kind in (1, 2)] == [1_920, 172_800]
    assert count(transition(512, side=7)) == 154_500
    with torch.device("meta"):
        parts = {name: {part: count(layer) for part, layer in build_objective(load_recipe(name), findings=()).model.named_children()}
                 for name in ("kumar-gmvae-v4", "kumar-gmvae-v5")}
    assert parts["kumar-gmvae-v4"] == {"encoder": 14_714_688, "squeeze": 154_500, "mean": 301_000, "log_variance": 301_000,
                                    "decoder": 1_920 + 2_746_744}
    assert parts["kumar-gmvae-v5"] == {"encoder": 14_714_688, "squeeze": 0, "mean": 25_089_000, "log_variance": 25_089_000,
                                    "decoder": 172_800 + 25_113_088}


def test_sides_run_from_14_to_224_pixels() -> None:
    for kind in (1, 2):
        decoder = MixtureDecoder(kind, inputs=2, image_size=224)
        x = decoder.first(torch.zeros(1, 2)).unflatten(1, decoder.shape)
        sides = [x.shape[2]]
        for layer in decoder.layers:
            x = layer(x)
            if isinstance(layer, nn.ConvTranspose2d):
                sides.append(x.shape[2])
        assert sides == [14, 28, 56, 112, 224] and x.shape == (1, 3, 224, 224)


def test_an_encoder_sees_224_pixels_as_7_by_7() -> None:
    for network in (Vgg16().eval(), DenseNet121().eval()):
        with torch.no_grad():
            features = network(torch.rand(1, 3, 64, 64))
        assert features.shape == (1, network.channels, 2, 2) and bool((features >= 0).all()) and features.std() > 0


@pytest.mark.parametrize(("name", "network"), [("vgg16", Vgg16), ("densenet121", DenseNet121)])
def test_networks_are_those_of_torchvision(name: str, network: type[nn.Module]) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    theirs, own = getattr(models, name)(weights=None).eval(), network().eval()
    own.load_state_dict({key: weight for key, weight in theirs.state_dict().items() if key.startswith("features.")})
    image = torch.rand(2, 3, 64, 64)
    expected = theirs.features(image)
    with torch.no_grad():
        torch.testing.assert_close(own(image), expected if name == "vgg16" else expected.relu())


def test_published_weights_are_read_by_their_names(tmp_path: Path) -> None:
    """DenseNet's file has its layers' former names, classifiers that we leave out, and no counters."""
    torch.manual_seed(0)
    source = DenseNet121().state_dict()
    former = {key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.").replace("norm2.", "norm.2.").replace("conv2.", "conv.2.")
              if "denselayer" in key else key: weight for key, weight in source.items() if not key.endswith("num_batches_tracked")}
    torch.save({**former, "classifier.weight": torch.zeros(3, 3)}, tmp_path / "densenet.pth")
    network = DenseNet121()
    load_imagenet(network, "densenet121", str(tmp_path / "densenet.pth"))
    assert all(torch.equal(weight, source[key]) for key, weight in network.state_dict().items())
    assert {"features.denseblock1.denselayer1.norm1.weight", "features.transition3.conv.weight", "features.conv0.weight"} <= set(source)
    assert {"features.0.weight", "features.28.bias"} <= set(Vgg16().state_dict())
    with pytest.raises(InputError, match="feature layers of vgg16"):
        load_imagenet(Vgg16(), "vgg16", str(tmp_path / "densenet.pth"))
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, message in (("other.safetensors", "feature layers"), ("none.pth", "no such file")):
        with pytest.raises(InputError, match=message):
            load_imagenet(network, "densenet121", str(tmp_path / path))


def test_torchvision_is_asked_for_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UsageError, match=r"synthorax\[networks\]"):
        load_imagenet(Vgg16(), "vgg16", "torchvision")


def test_equalised_images_have_every_intensity_equally_often() -> None:
    image = (torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) ** 1.5) * 1.6 - 0.9
    even = equalised(image)
    assert even.min() == -1 and even.max() == 1
    for quarter in range(4):
        inside = ((even >= -1 + quarter / 2) & (even < -0.5 + quarter / 2)).float().mean()
        assert inside.item() == pytest.approx(0.25, abs=0.03)
    order = image[0].flatten().argsort()
    assert bool((even[0].flatten()[order].diff() >= 0).all()), "darker stays darker"
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(equalised(flat), flat)
    torch.testing.assert_close(equalised(even), even, atol=0.02, rtol=0)


def objective_of(*overrides: str) -> KumarGmvaeObjective:
    objective = fresh_objective(smallest("kumar-gmvae", *overrides))
    assert isinstance(objective, KumarGmvaeObjective)
    return objective


def test_with_one_component_the_divergence_is_the_closed_form() -> None:
    model = objective_of("model.components=1").model
    assert isinstance(model, KumarGmvaeModel)
    with torch.no_grad():
        model.means.zero_()
        mean, log_variance = torch.randn(1, 4).expand(20_000, 4), torch.full((20_000, 4), -0.5)
        latent = mean + (0.5 * log_variance).exp() * Draws(range(20_000)).normal(4)
        found = model.divergence(latent, mean, log_variance)
    error = found.std().item() / 20_000**0.5
    assert found.mean().item() == pytest.approx(kl_standard_normal(mean[:1], log_variance[:1]).item(), abs=4 * error)


def test_an_encoder_that_does_not_learn_stays_as_it_is(engine: Engine) -> None:
    objective = objective_of("objective.train_encoder=false", "model.encoder=densenet121").train()
    model = objective.model
    assert isinstance(model, KumarGmvaeModel)
    before = {key: weight.clone() for key, weight in model.encoder.state_dict().items()}
    batch = Feed(toy_images(64), spec=as_model(model).spec, batch_size=4, balance=0.0, augment=False, seed=0, engine=engine).batch(0)
    torch.stack(list(objective("elbo", batch).values())).sum().backward()
    assert all(weight.grad is None for weight in model.encoder.parameters()) and model.mean.weight.grad is not None
    assert all(torch.equal(weight, before[key]) for key, weight in model.encoder.state_dict().items()), "nor its running statistics"


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UsageError, match=r"components=3 is more than the 2 images"):
        objective_of().check_data(num_images=2)
    objective_of().check_data(num_images=3)
    with pytest.raises(UsageError, match=r"model\.labels"):
        build_objective(smallest("kumar-gmvae"), findings=())
    for override in ("model.image_size=48", "model.latent_size=0", "model.components=0"):
        with pytest.raises(SynthoraxError, match=override.partition("=")[0].replace(".", r"\.")):
            build_objective(smallest("kumar-gmvae", override), findings=FINDINGS)


def test_findings_that_do_not_vary_are_not_inputs() -> None:
    objective = objective_of()
    varied = Condition(labels=torch.tensor([[1.0, math.nan]]), attributes=torch.full((1, 7), math.nan))
    objective.zero_unvaried_inputs(varied)
    model = as_model(objective.model.eval())
    asked = {name: Condition(labels=torch.tensor([labels]), attributes=varied.attributes)
             for name, labels in {"first": [1.0, math.nan], "second": [math.nan, 1.0], "none": [math.nan, math.nan]}.items()}
    made = {name: model.sample(condition, [3]) for name, condition in asked.items()}
    assert torch.equal(made["second"], made["none"]) and not torch.equal(made["first"], made["none"])
