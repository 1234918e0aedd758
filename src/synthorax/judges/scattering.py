"""A scattering transform: features of texture and layout at several scales without a weight that was ever trained.

Bruna and Mallat 2013 (IEEE Trans. Pattern Anal. Mach. Intell. 35:1872): moduli of oriented Morlet wavelets, averaged (first order, Eq. 8),
and moduli of the wavelets of those moduli, averaged (second order). Here to logarithms, the second order divided by the first, as in their
section 3.2. It owes nothing to photographs, so a set that is good to an ImageNet network alone is found out.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthorax.errors import InputError, UsageError

ORIENTATIONS = 6
LAYOUT, ENERGY_LAYOUT = 8, 4
"""grids over which the grey levels and the first order are averaged"""
FAINTEST = 1e-3
"""added before a logarithm, in parts of the grey range"""


class ScatteringFeatures:
    """Feature space of the scattering transform: grey levels on a grid of 8 x 8, first order on 4 x 4, second order over the image.

    Input contract: as `FeatureSpace`; images are resized to `input_px` (bicubic, antialiased). One octave of scales more at each doubling:
    four at 128 px, five at 256 px. 664 features at 128 px, 904 at 256 px.

    >>> ScatteringFeatures(input_px=64)(np.zeros((2, 32, 32), np.uint8)).shape
    (2, 460)
    """

    def __init__(self, *, input_px: int = 128) -> None:
        """`input_px` is a part of what is measured: another size is another feature space, and its name says so."""
        if input_px < 32 or input_px % 32:
            raise UsageError(f"the scattering transform looks at a multiple of 32 px, not at {input_px} px")
        self.input_px, self.scales = input_px, round(math.log2(input_px)) - 3
        self.name = "scattering" if input_px == 128 else f"scattering-{input_px}px"
        pairs = self.scales * (self.scales - 1) // 2
        self.num_features = LAYOUT**2 + ENERGY_LAYOUT**2 * self.scales * ORIENTATIONS + pairs * ORIENTATIONS**2
        self.digest = hashlib.sha256(repr(("scattering/1", input_px, self.scales, ORIENTATIONS, LAYOUT, ENERGY_LAYOUT, FAINTEST)).encode()
                                     ).hexdigest()

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Features [N, F] of images [N, S, S], one at a time, so that they do not depend on their neighbours."""
        if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16):
            raise InputError(f"features need images [N, S, S] of uint8 or uint16, got {images.dtype} {images.shape}",
                             remedy="read them with synthorax.data.pixels")
        features = np.empty((len(images), self.num_features), dtype=np.float32)
        with torch.inference_mode():
            for row, image in enumerate(images):
                grey = torch.from_numpy(image.astype(np.float32) / np.iinfo(images.dtype).max)[None, None]
                if grey.shape[-2:] != (self.input_px, self.input_px):
                    grey = functional.interpolate(grey, (self.input_px, self.input_px), mode="bicubic", antialias=True)
                features[row] = self._scattered(grey.clamp(0, 1)).numpy()
        return features

    def _scattered(self, grey: Tensor) -> Tensor:
        """Features [F] of one image [1, 1, P, P] in [0, 1]."""
        image = torch.fft.fft2(grey[0] - grey.mean())  # [1, P, P]
        first = [_moduli(image, scale, scales=self.scales, full=self.input_px)[0] for scale in range(self.scales)]  # [J][L, P', P']
        parts = [functional.adaptive_avg_pool2d(grey, LAYOUT).flatten()]
        parts += [(functional.adaptive_avg_pool2d(energy[None], ENERGY_LAYOUT) + FAINTEST).log().flatten() for energy in first]
        for scale, energy in enumerate(first[:-1]):
            spectra, means = torch.fft.fft2(energy), energy.mean(dim=(1, 2))  # [L, P', P'], [L]
            for coarser in range(scale + 1, self.scales):
                second = _moduli(spectra, coarser, scales=self.scales, full=self.input_px).mean(dim=(2, 3))  # [L, L]
                parts.append(((second + FAINTEST / 10) / (means[:, None] + FAINTEST / 10)).log().flatten())
        return torch.cat(parts)


def _moduli(spectra: Tensor, scale: int, *, scales: int, full: int) -> Tensor:
    """|signal * wavelet| of one scale from spectra [C, P', P'], [C, L, P'', P''].

    What passes a wavelet of scale 2^j varies slowly, so it is computed on every 2^(j - 1)th pixel of the image, from the low frequencies.
    """
    size = full // 2 ** max(0, scale - 1)
    filters = _bank(size, scales, size / full)[scale]  # [L, P'', P'']
    shrunk = spectra.shape[-1] / size
    if shrunk > 1:
        low = torch.cat([torch.arange(size // 2), torch.arange(size // 2) + spectra.shape[-1] - size // 2])
        spectra = spectra[:, low][:, :, low]
    return cast(Tensor, torch.fft.ifft2(spectra[:, None] * filters[None]).abs() / shrunk**2)


@functools.lru_cache(maxsize=16)
def _bank(size: int, scales: int, zoom: float) -> Tensor:
    """Morlet wavelets in the frequency domain, real, [J, L, size, size], for a grid on which a pixel of the image is `zoom` pixels.

    Scale j has its centre at 3 pi / 4 / 2^j and an envelope of standard deviation 0.8 x 2^j px, twice as long along the wave fronts
    (Bruna and Mallat, section 2.1); a multiple of the envelope is taken away so that the mean of a wavelet is zero.
    """
    frequency = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    y, x = torch.meshgrid(frequency, frequency, indexing="ij")
    bank = []
    for scale in range(scales):
        width, centre = 0.8 * 2**scale * zoom, 0.75 * math.pi / 2**scale / zoom
        row = []
        for number in range(ORIENTATIONS):
            angle = math.pi * number / ORIENTATIONS
            along, across = x * math.cos(angle) + y * math.sin(angle), (y * math.cos(angle) - x * math.sin(angle)) * 2

            def envelope(shift: float, along: Tensor = along, across: Tensor = across, width: float = width) -> Tensor:
                return torch.exp(-((along - shift) ** 2 + across**2) * width**2 / 2)

            row.append(envelope(centre) - envelope(0.0) * math.exp(-(centre**2) * width**2 / 2))
        bank.append(torch.stack(row))
    return torch.stack(bank).float()
