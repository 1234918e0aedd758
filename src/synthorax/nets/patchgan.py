"""A discriminator that judges overlapping patches of an image (Sec. 3.2.2, Isola et al. 2017), with spectral normalisation."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthorax.errors import UsageError


class PatchDiscriminator(nn.Module):
    """Scores of patches, higher is more real, [B, 1, H, W] -> [B, 1, about H / 2 ** layers, about W / 2 ** layers].

    4 x 4 convolutions, of which the first `layers` halve the resolution; with 3 a score sees 70 x 70 pixels. Spectral
    normalisation (Miyato et al. 2018) takes the place of batch normalisation, so that images do not share statistics.
    """

    def __init__(self, *, channels: int, layers: int) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise UsageError(f"a patch discriminator needs at least one channel and one layer, not {channels} and {layers}")
        widths = [1, *(channels * min(2**layer, 8) for layer in range(layers + 1))]
        parts: list[nn.Module] = []
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            stride = 2 if layer < layers else 1
            parts += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, spectral_norm(nn.Conv2d(widths[-1], 1, 4, padding=1)))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores
