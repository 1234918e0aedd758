"""The Beer-Lambert law, and what it means for the grey values of a radiograph.

A ray of intensity I0 arrives as I = I0 exp(-mu t) behind t mm of water. A radiograph shows the logarithm of what arrives, so before any
tone curve its grey value is g = a + b mu t, with the same b everywhere: t mm of water more add b mu t, wherever they lie on the ray.
Scattered radiation S beside the primary P lowers that to b ln((P + S) / (P exp(-mu t) + S)), about b (1 - f) mu t for small t, where
f = S / (P + S) is the scatter fraction.
"""

from __future__ import annotations

from torch import Tensor

WATER_60_KEV = 0.02059
"""attenuation of water per mm at 60 keV, about the mean energy of chest radiography at 120 kV (NIST, Hubbell and Seltzer 1995)"""


def transmission(water_mm: Tensor, *, attenuation: float = WATER_60_KEV) -> Tensor:
    """Part of a ray that comes through `water_mm` of water, in (0, 1]; any shape.

    >>> import torch
    >>> round(transmission(torch.tensor(100.0)).item(), 3)
    0.128
    """
    return (-attenuation * water_mm).exp()


def log_signal(water_mm: Tensor, *, attenuation: float = WATER_60_KEV, scatter_fraction: float = 0.0) -> Tensor:
    """What `water_mm` adds to the logarithm of the signal, ln(before / after); any shape.

    `scatter_fraction` in [0, 1) is that part of the signal which is scattered radiation, taken to stay as it is. Without it this is mu t.
    """
    passed = (1 - scatter_fraction) * transmission(water_mm, attenuation=attenuation) + scatter_fraction
    return -passed.log()


def water_of(signal: Tensor, *, attenuation: float = WATER_60_KEV) -> Tensor:
    """mm of water that let the part `signal` in (0, 1] of a ray through; undoes `transmission`."""
    return -signal.log() / attenuation


def noise_gain(water_mm: Tensor, *, attenuation: float = WATER_60_KEV) -> Tensor:
    """By what factor quantum noise in the logarithm grows behind `water_mm` more: fewer photons by exp(-mu t), so exp(mu t / 2)."""
    return (attenuation * water_mm / 2).exp()
