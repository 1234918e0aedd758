"""The feature layers of VGG16 and DenseNet121, with torchvision's names of weights, so that its files can be read.

The networks are ours, so that nothing but PyTorch is needed to build, train and test them; torchvision is asked for weights alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from synthorax.errors import InputError, UsageError

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
DENSENET121_LAYERS = (6, 12, 24, 16)
VGG16_FILE = "vgg16-397923af.pth"
PUBLISHED = {"vgg16": "VGG16_Weights.IMAGENET1K_V1", "densenet121": "DenseNet121_Weights.IMAGENET1K_V1"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""of ImageNet's red, green and blue in [0, 1]"""


class Vgg16(nn.Module):
    """Thirteen 3 x 3 convolutions and five poolings, [B, 3, S, S] -> [B, 512, S / 32, S / 32] (column D, Simonyan and Zisserman 2015)."""

    channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg16_layers())
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features


class Vgg16Stages(nn.Module):
    """The maps of VGG16's five stages, before their poolings, with ImageNet weights that lie on this machine: perceptual features.

    The file is looked for where torch.hub keeps it and is never downloaded. It was trained on photographs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg16_layers())
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE
        if not path.is_file():
            raise InputError("the weights of VGG16 are not on this machine", file=path,
                             remedy="put torchvision's file there, or use the features 'oriented', which need no weights")
        load_imagenet(self, "vgg16", str(path))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 1, H, W] in [-1, 1] -> the last map of each stage, [B, 64 to 512, H / 1 to 16, W / 1 to 16]."""
        x = ((images + 1) / 2 - self.mean) / self.std  # [B, 3, H, W], as in training on ImageNet
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
                if len(maps) == len(VGG16_CHANNELS):
                    break
            x = layer(x)
        return maps


def _vgg16_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in VGG16_CHANNELS:
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers


class DenseNet121(nn.Module):
    """Four blocks of densely connected layers, [B, 3, S, S] -> [B, 1024, S / 32, S / 32] (Table 1, Huang et al. 2017)."""

    channels = 1024

    def __init__(self, *, growth: int = 32) -> None:
        super().__init__()
        width = 2 * growth
        parts: dict[str, nn.Module] = {"conv0": nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), "norm0": nn.BatchNorm2d(width),
                                       "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, stride=2, padding=1)}
        for number, layers in enumerate(DENSENET121_LAYERS, start=1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(width, growth=growth))
                width += growth
            parts[f"denseblock{number}"] = block
            if number < len(DENSENET121_LAYERS):
                parts[f"transition{number}"] = _halving(width)
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential()
        for name, part in parts.items():
            self.features.add_module(name, part)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x))


class DenseLayer(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution whose maps join those that came in, [B, C, H, W] -> [B, C + growth, H, W]."""

    def __init__(self, inputs: int, *, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        added = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, added], dim=1)


def load_imagenet(network: nn.Module, name: str, source: str) -> None:
    """Give a network ImageNet weights: `torchvision` fetches its own, anything else is the path of a file as torchvision publishes it.

    Raises UsageError where torchvision is not installed, and InputError for a file with other weights.
    """
    if source == "torchvision":
        try:
            from torchvision.models import get_weight
        except ImportError as error:
            raise UsageError("objective.encoder_weights=torchvision needs torchvision: pip install 'synthorax[networks]', "
                             "or give the path of its weights file") from error
        stored: Mapping[str, Tensor] = get_weight(PUBLISHED[name]).get_state_dict(progress=False)
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError("there is no such file of weights", file=path, remedy="objective.encoder_weights: none, torchvision or a path")
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    found = {_present_name(key): weight for key, weight in stored.items() if key.startswith("features.")}
    found |= {key: weight for key, weight in own.items() if key.endswith("num_batches_tracked") and key not in found}  # older files lack it
    if {key: weight.shape for key, weight in found.items()} != {key: weight.shape for key, weight in own.items()}:
        raise InputError(f"does not hold the feature layers of {name}", file=Path(source))
    network.load_state_dict(found)


def _present_name(key: str) -> str:
    """DenseNet's published file has norm.1 where the layer is called norm1 today."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)


def _halving(width: int) -> nn.Sequential:
    part = nn.Sequential()
    for name, layer in (("norm", nn.BatchNorm2d(width)), ("relu", nn.ReLU()), ("conv", nn.Conv2d(width, width // 2, 1, bias=False)),
                        ("pool", nn.AvgPool2d(2))):
        part.add_module(name, layer)
    return part


def _initialise(network: nn.Module) -> None:
    """Random weights that keep the variance through rectifiers (He et al. 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
