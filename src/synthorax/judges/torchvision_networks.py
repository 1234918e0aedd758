"""The networks that papers on chest radiographs compare with, from torchvision, which is asked for only here."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError
from synthorax.judges.classifier import ClassifierConfig

EXTRA = "pip install 'synthorax[networks]'"


class KnownNetwork(nn.Module):
    """A network of torchvision that takes grey images, in two parts: everything up to its last layer, and that layer."""

    def __init__(self, network: nn.Module, *, num_findings: int) -> None:
        super().__init__()
        name, last = _last_layer(network)
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, nn.Identity())
        self.trunk, self.head = network, nn.Linear(last.in_features, num_findings)

    def features(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> [B, F]; three equal colours, as weights learned from photographs expect."""
        features: Tensor = self.trunk(images.expand(-1, 3, -1, -1)).float()
        return features

    def forward(self, images: Tensor) -> Tensor:
        """`images` [B, 1, S, S], standardised -> logits [B, K]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def densenet121(config: ClassifierConfig, *, num_findings: int, size: int, generator: torch.Generator) -> KnownNetwork:
    """DenseNet-121 (Huang et al. 2017), the network of CheXNet."""
    return _torchvision_network("densenet121", config, num_findings=num_findings, generator=generator)


def resnet50(config: ClassifierConfig, *, num_findings: int, size: int, generator: torch.Generator) -> KnownNetwork:
    """ResNet-50 (He et al. 2016)."""
    return _torchvision_network("resnet50", config, num_findings=num_findings, generator=generator)


def efficientnet(config: ClassifierConfig, *, num_findings: int, size: int, generator: torch.Generator) -> KnownNetwork:
    """EfficientNet-B0 (Tan and Le 2019)."""
    return _torchvision_network("efficientnet_b0", config, num_findings=num_findings, generator=generator)


def vgg16(config: ClassifierConfig, *, num_findings: int, size: int, generator: torch.Generator) -> KnownNetwork:
    """VGG-16 (Simonyan and Zisserman 2015), without batch normalisation."""
    return _torchvision_network("vgg16", config, num_findings=num_findings, generator=generator)


def _torchvision_network(name: str, config: ClassifierConfig, *, num_findings: int, generator: torch.Generator) -> KnownNetwork:
    try:
        models: Any = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise UsageError(f"the classifier '{config.network}' needs torchvision; {EXTRA}, or choose 'small'") from error
    with torch.device("meta"):  # weights are drawn below: torchvision's own would come from the state of the whole process
        network = cast(nn.Module, models.get_model(name, weights=None))
    network = network.to_empty(device="cpu")
    draw_weights(network, generator=generator)
    if config.weights:
        load_weights(network, Path(config.weights))
    known = KnownNetwork(network, num_findings=num_findings)
    nn.init.normal_(known.head.weight, std=0.01, generator=generator)
    nn.init.zeros_(known.head.bias)
    return known


def draw_weights(network: nn.Module, *, generator: torch.Generator) -> None:
    """Weights from `generator` alone (He et al. 2015), and nothing left in the network that draws while it trains: no dropout."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]  # of StochasticDepth mypy knows nothing


def load_weights(network: nn.Module, file: Path) -> None:
    """Weights of the same network as torchvision or others saved them (.pth, .safetensors); its last layer may have any classes.

    Raises InputError where the file is no such thing, or of another network.
    """
    try:
        found: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        # Files of torchvision name the layers of DenseNet as Python no longer allows.
        old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)")
        weights = {old.sub(r"\1\2", key.removeprefix("module.")): value for key, value in found.items()}
    except Exception as error:  # whatever a reader of files makes of a file that is none
        raise InputError(f"holds no weights ({type(error).__name__})", file=file,
                         remedy="give a state_dict as .pth or .safetensors") from error
    last = _last_layer(network)[0]
    own = network.state_dict()
    kept = {key: value for key, value in weights.items() if not key.startswith(f"{last}.")}
    wanted = {key for key in own if not key.startswith(f"{last}.")}
    wrong = sorted(wanted ^ set(kept)) or [key for key in kept if kept[key].shape != own[key].shape]
    if wrong:
        raise InputError(f"are weights of another network: '{wrong[0]}' does not fit", file=file)
    network.load_state_dict(kept, strict=False)


def _last_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer, which tells the classes apart."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return layers[-1]
