"""The convolutional encoder, decoder, generator and discriminator of Kumar and Triana Martinez, layer by layer.

Their tables print parameter counts for 128 px; the counts fix what the text leaves open (two convolutions in every
encoder block, no biases in the GAN, an unlisted linear layer before the decoder). Other sides that are multiples of 32 px work.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

ENCODER_CHANNELS = (1, 32, 64, 128, 256, 512)
DECODER_CHANNELS = (512, 256, 128, 64, 32, 1)


class Encoder(nn.Module):
    """Five blocks of two 3 x 3 convolutions and 2 x 2 pooling, [B, 1, S, S] -> [B, 512 (S / 32)^2]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(ENCODER_CHANNELS):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2),
                       nn.Conv2d(outputs, outputs, 3, padding=1), nn.LeakyReLU(0.2), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


class Decoder(nn.Module):
    """A linear layer and five 4 x 4 transposed convolutions, [B, Z] -> [B, 1, S, S] in (-1, 1)."""

    def __init__(self, *, latent_size: int, image_size: int) -> None:
        super().__init__()
        self.side = image_size // 32
        self.linear = nn.Linear(latent_size, DECODER_CHANNELS[0] * self.side**2)
        self.layers = nn.Sequential(*_enlarging(bias=True), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(self.linear(z).unflatten(1, (DECODER_CHANNELS[0], self.side, self.side)))
        return image


class Generator(nn.Module):
    """Six 4 x 4 transposed convolutions without biases, [B, Z] -> [B, 1, S, S] in (-1, 1)."""

    def __init__(self, *, latent_size: int, image_size: int) -> None:
        super().__init__()
        first = DECODER_CHANNELS[0]
        self.layers = nn.Sequential(nn.ConvTranspose2d(latent_size, first, image_size // 32, bias=False), nn.BatchNorm2d(first),
                                    nn.ReLU(), *_enlarging(bias=False), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z[:, :, None, None])
        return image


class Discriminator(nn.Module):
    """Six 4 x 4 strided convolutions without biases, [B, 1, S, S] -> score map [B, 1, S / 64, S / 64]."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 32, 64, 128, 256, 512)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False))
            if outputs > 32:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def _enlarging(*, bias: bool) -> list[nn.Module]:
    """Transposed convolutions 512 -> 256 -> ... -> 1, each doubling the side, normalised and rectified in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(DECODER_CHANNELS):
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias))
        if outputs > 1:
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers
