"""The parts of Kumar's mixture autoencoder beside its ImageNet encoder: transition, decoders, and histogram equalisation.

The printed counts of its two decoders hold for the weights of four transposed convolutions without biases.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

MIDDLE = 300
DECODER_CHANNELS = {1: (14, 6, 3, 3, 3), 2: (128, 64, 32, 16, 3)}
HIDDEN = 512


def transition(channels: int, *, side: int) -> nn.Sequential:
    """A 1 x 1 convolution to 300 maps and the largest value of each, [B, channels, side, side] -> [B, 300]."""
    return nn.Sequential(nn.Conv2d(channels, MIDDLE, 1), nn.BatchNorm2d(MIDDLE), nn.ReLU(), nn.MaxPool2d(side), nn.Flatten())


class MixtureDecoder(nn.Module):
    """A linear layer and four 4 x 4 transposed convolutions, [B, Z] -> [B, 3, S, S] in (-1, 1)."""

    def __init__(self, kind: int, *, inputs: int, image_size: int) -> None:
        super().__init__()
        channels = DECODER_CHANNELS[kind]
        self.shape = (channels[0], image_size // 16, image_size // 16)
        self.first = nn.Linear(inputs, channels[0] * (image_size // 16) ** 2)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(self.first(z).unflatten(1, self.shape))
        return image


class LinearDecoder(nn.Module):
    """Two linear layers, [B, Z] -> [B, 1, S, S] in (-1, 1); of which Kumar et al. say no more than that."""

    def __init__(self, *, inputs: int, image_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, HIDDEN)
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, image_size**2), nn.Tanh(), nn.Unflatten(1, (1, image_size, image_size)))

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(self.first(z))
        return image


def equalised(images: Tensor, *, levels: int = 256) -> Tensor:
    """Histogram equalisation, [B, 1, H, W] in [-1, 1] -> the same: each intensity becomes its rank in the image.

    With `levels` intensities; the darkest becomes -1 and the brightest 1 (Sec. 3.3.1, Gonzalez and Woods). A constant image stays as
    it is.
    """
    grey = ((images.flatten(1) + 1) * ((levels - 1) / 2)).round().long().clamp(0, levels - 1)  # [B, H W]
    counts = torch.zeros(len(images), levels, device=images.device).scatter_add_(1, grey, torch.ones_like(grey, dtype=torch.float32))
    below = counts.cumsum(1)
    first = below.gather(1, grey.min(1, keepdim=True).values)  # how many have the darkest value
    rank = (below.gather(1, grey) - first) / (grey.shape[1] - first).clamp_min(1)
    flat = first == grey.shape[1]
    return torch.where(flat, images.flatten(1), 2 * rank - 1).reshape(images.shape)
