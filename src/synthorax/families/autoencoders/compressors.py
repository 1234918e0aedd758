"""What a diffusion runs on: pixels, a lossless wavelet packing, or the latents of a trained autoencoder, at unit variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.autoencoder import LatentScale
from synthorax.nets.wavelet import WaveletPacking
from synthorax.protocols import Family, ModelSpec
from synthorax.registry import lookup

TRAINED = {
    "kl-autoencoder": "synthorax.families.autoencoders.kl_autoencoder:FAMILY",
    "vq-gan": "synthorax.families.autoencoders.vq_gan:FAMILY",
}


class Pixels(nn.Module):
    """The images themselves."""

    channels, factor = 1, 1

    def encode(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] -> the same."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 1, H, W] -> the same."""
        return latents

    def fit(self, images: Tensor) -> None:
        """Nothing to measure."""


class Latents(nn.Module):
    """A frozen compressor and the scale that gives each of its channels mean 0 and variance 1, measured on training images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = frozen(inner)
        self.channels, self.factor = int(inner.channels), int(inner.factor)  # type: ignore[arg-type]
        self.scale = LatentScale(self.channels)

    def train(self, mode: bool = True) -> Latents:
        """The compressor stays as it was trained."""
        return super().train(False)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] -> latents [B, channels, H / factor, W / factor] of unit variance."""
        with torch.no_grad():
            scaled: Tensor = self.scale.normalise(self.inner.encode(images).float())  # type: ignore[operator]
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, channels, h, w] -> images [B, 1, H, W]."""
        images: Tensor = self.inner.decode(self.scale.restore(latents))  # type: ignore[operator]
        return images

    def load_matching(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a trained compressor of this shape."""
        self.inner.load_state_dict(weights)

    def fit(self, images: Tensor) -> None:
        """Measure mean and standard deviation of each channel on images [N, 1, H, W] in [-1, 1]."""
        with torch.no_grad():
            parts = torch.split(images, 16)
            self.scale.fit(torch.cat([self.inner.encode(part) for part in parts]))  # type: ignore[operator]


def frozen(module: nn.Module) -> nn.Module:
    """The module with its weights as buffers: saved with it, moved with it, and out of every optimiser's sight."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach())
    return module.eval()


def build_compressor(name: str, config: Mapping[str, Any]) -> Pixels | Latents:
    """The compressor called `name`; `config` describes the shape of a trained one, whose weights come from its run."""
    if name == "none":
        return Pixels()
    if name == "wavelet":
        return Latents(WaveletPacking())
    family: Family = lookup({**TRAINED, "none": "", "wavelet": ""}, name, kind="compressor")
    if not config:
        raise UsageError(f"the compressor '{name}' is a trained model: train the recipe of its family first, and give the run "
                         f"with --compressor")
    spec = ModelSpec(family=name, image_size=int(config["image_size"]), findings=(), conditions=(), config=dict(config))
    return Latents(family.build_model(spec))
