"""Descriptors of an image for `judges.realism`, without a network: its grey levels and texture, what lies where, where structure is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from synthorax.judges.fitting import ImageArray, check_images

Vector = NDArray[np.float64]
BANDS = 8
GRID_PX = 8
UNITS = {"grey": 20.0, "logarithm": 5.0}
"""what brings the parts of `appearance` to a spread of about 1 among radiographs"""


def appearance(images: ImageArray) -> Vector:
    """Quantiles of grey, power spectrum, local contrast and sparseness of detail, [N, S, S] -> [N, F]; F depends on S below 32 px only.

    >>> appearance(np.zeros((2, 64, 64), np.uint8)).shape
    (2, 29)
    """
    grey = _grey(images)
    quantiles = np.quantile(grey.reshape(len(grey), -1), np.linspace(0.02, 0.98, 9), axis=1).T
    return np.concatenate([quantiles * UNITS["grey"], np.concatenate([_spectrum(grey), _contrast(grey), _sparseness(grey)], axis=1)
                           * UNITS["logarithm"]], axis=1)


def layout(images: ImageArray) -> Vector:
    """What is bright and dark where: each image on a grid of 8 x 8, its own mean and standard deviation taken out, [N, 64]."""
    flat = _resized(_grey(images), GRID_PX).reshape(len(images), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(centred / (centred.std(axis=1, keepdims=True) + 0.02))


def structure(images: ImageArray) -> Vector:
    """Local contrast on a grid of 8 x 8, [N, 64]: where edges and ribs lie, whatever the exposure."""
    fine = _resized(_grey(images), 4 * GRID_PX)
    detail = fine - _blurred(fine)
    contrast = detail / (np.sqrt(_blurred(detail**2)) + 0.02)
    return np.asarray(contrast.reshape(len(images), GRID_PX, 4, GRID_PX, 4).mean(axis=(2, 4)).reshape(len(images), -1))


def _grey(images: ImageArray) -> Vector:
    """Grey levels in [0, 1]; UsageError for anything but square images of 8 or 16 bits."""
    check_images(images)
    return np.asarray(images.astype(np.float64) / np.iinfo(images.dtype).max)


def _spectrum(grey: Vector) -> Vector:
    """log10 of the mean power in rings, evenly spaced in log frequency up to Nyquist's, and in the corners beyond."""
    side = grey.shape[1]
    window = np.hanning(side + 2)[1:-1]
    power = np.abs(np.fft.rfft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window[:, None] * window)) ** 2 / side**2
    edges = np.append(np.geomspace(0.99 / side, 0.5, BANDS + 1), 1.0)
    ring = np.digitize(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]), edges) - 1
    return np.stack([np.log10(power[:, ring == band].mean(axis=1) + 1e-7) for band in range(BANDS + 1) if (ring == band).any()], axis=1)


def _contrast(grey: Vector) -> Vector:
    """log10 of five quantiles of the standard deviations of 8 x 8 blocks."""
    block = max(1, grey.shape[1] // 8)
    blocks = grey[:, : 8 * block, : 8 * block].reshape(len(grey), 8, block, 8, block).std(axis=(2, 4)).reshape(len(grey), 64)
    return np.asarray(np.log10(np.quantile(blocks, np.linspace(0.1, 0.9, 5), axis=1).T + 3e-3))


def _sparseness(grey: Vector) -> Vector:
    """Of diagonal Haar detail at three scales: log10 of its standard deviation, and of its mean over its standard deviation (low if
    sparse).
    """
    found = []
    for _ in range(3):
        half = grey.shape[1] // 2
        quads = grey[:, : 2 * half, : 2 * half].reshape(len(grey), half, 2, half, 2).swapaxes(2, 3)
        detail = (quads[..., 0, 0] - quads[..., 0, 1] - quads[..., 1, 0] + quads[..., 1, 1]).reshape(len(grey), -1) / 4
        spread = np.sqrt((detail**2).mean(axis=1)) + 1e-3
        found += [np.log10(spread), np.log10((np.abs(detail).mean(axis=1) + 1e-3) / spread)]
        grey = quads.mean(axis=(3, 4))
    return np.stack(found, axis=1)


def _resized(grey: Vector, side: int) -> Vector:
    small = functional.interpolate(torch.from_numpy(grey)[:, None], (side, side), mode="bilinear", antialias=True, align_corners=False)
    return np.asarray(small[:, 0].numpy())


def _blurred(images: Vector) -> Vector:
    return np.asarray(ndimage.gaussian_filter(images, (0, GRID_PX / 2, GRID_PX / 2), mode="mirror", truncate=2.0))
