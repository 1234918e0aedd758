"""Classifiers by name: the same contract for all, a clear word where torchvision is absent, and a probe that screens."""

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benefit_task import TEST, TRAIN, synthetic
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.classifier import NETWORKS
from synthorax.judges.classifiers import CLASSIFIERS, USUAL, training_of, usual_classifier
from synthorax.judges.torchvision_networks import KnownNetwork, draw_weights, load_weights

KNOWN = [name for name in NETWORKS if name != "small"]
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


def test_every_classifier_has_usual_settings_and_unknown_ones_are_refused():
    assert set(CLASSIFIERS) == set(USUAL) == {*NETWORKS, "linear-probe"}
    assert all(usual_classifier(name).network == name for name in CLASSIFIERS)
    with pytest.raises(UsageError, match="did you mean 'densenet121'"):
        usual_classifier("densenet")


@pytest.mark.parametrize("name", KNOWN)
def test_without_torchvision_the_remedy_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UsageError, match=r"needs torchvision; pip install 'synthorax\[networks\]', or choose 'small'"):
        training_of(usual_classifier(name))(TRAIN.pixels, TRAIN.labels, findings=TRAIN.findings, config=usual_classifier(name), seed=0)


@pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed")
@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_train_and_repeat_themselves(name):
    config = replace(usual_classifier(name), updates=2, batch_size=4, input_size=32, autocast=False)
    how = {"findings": TRAIN.findings, "config": config, "seed": 0}
    first, again = (training_of(config)(TRAIN.pixels, TRAIN.labels, **how) for _ in range(2))
    assert first.digest == again.digest
    assert first.predict(TEST.pixels[:5]).shape == (5, 2)


class Tiny(nn.Module):
    """Stands where a network of torchvision would: convolution, norm, dropout and a head called as theirs."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 1000))

    def forward(self, images):
        return self.classifier(self.features(images))


def sample(seed):
    network = Tiny()
    draw_weights(network, generator=torch.Generator().manual_seed(seed))
    return network


def test_weights_follow_from_the_generator_and_nothing_draws_while_training():
    one, again, other = sample(0), sample(0), sample(1)
    assert torch.equal(one.features[0].weight, again.features[0].weight)
    assert not torch.equal(one.features[0].weight, other.features[0].weight)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = KnownNetwork(one, num_findings=2).train()
    before = torch.random.get_rng_state()
    assert torch.equal(network(images), network(images)) and torch.equal(torch.random.get_rng_state(), before)
    assert network.features(images).shape == (4, 4) and network(images).shape == (4, 2)
    assert torch.allclose(network(images), network.head(network.features(images)))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_come_from_a_file_and_another_networks_are_refused(tmp_path, ending):
    source, network, file = sample(3), sample(4), tmp_path / f"weights.{ending}"
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("classifier")}  # other classes, or none
    (save_file if ending == "safetensors" else torch.save)(state, file)
    load_weights(network, file)
    assert torch.equal(network.features[0].weight, source.features[0].weight)
    (save_file if ending == "safetensors" else torch.save)({"features.9.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="another network"):
        load_weights(network, file)
    file.write_bytes(b"none")
    with pytest.raises(InputError, match="holds no weights"):
        load_weights(network, file)


def test_the_small_classifier_takes_no_file():
    config = replace(usual_classifier("small"), weights="some.pth", updates=1)
    with pytest.raises(UsageError, match="drawn by the seed"):
        training_of(config)(TRAIN.pixels, TRAIN.labels, findings=TRAIN.findings, config=config, seed=0)


def test_the_linear_probe_learns_weighs_and_repeats_itself():
    config = usual_classifier("linear-probe")
    train, made = training_of(config), synthetic()
    how = {"findings": made.findings, "config": config}
    probe = train(made.pixels, made.labels, seed=0, **how)
    test = TEST.take(np.arange(0, 250, 2))
    said = probe.predict(test.pixels)
    assert auroc(test.column("Effusion"), said[:, 0]) > 0.75
    assert train(made.pixels, made.labels, seed=1, **how).digest == probe.digest  # the fit is convex
    often = train(made.pixels, made.labels, seed=0, image_weights=np.where(made.labels[:, 1] == 1, 20.0, 1.0), **how)
    weighty = train(made.pixels, made.labels, seed=0, class_weights=np.array([[1.0, 1.0], [1.0, 20.0]]), **how)
    assert often.predict(test.pixels)[:, 1].mean() > said[:, 1].mean() + 0.1
    assert np.allclose(often.weights[:, 1], weighty.weights[:, 1], atol=1e-6)
    varied = train(made.pixels, made.labels, seed=0, findings=made.findings, config=replace(config, augment="classic"))
    assert varied.digest != probe.digest
    labels = made.labels.copy()
    labels[:, 1] = 0
    assert train(made.pixels, labels, seed=0, **how).predict(test.pixels)[:, 1].max() < 0.01
