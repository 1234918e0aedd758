"""Detail bands: a network that sees an image as means and differences of 2 x 2 pixels, each band at unit variance.

In radiographs the differences of neighbours are ten times smaller than the means, and white noise is as strong in both. With one data
standard deviation for all pixels, the network's input, its output and its loss hold next to nothing of the detail. So each band of one
level of an orthonormal Haar transform has its own, and the scalings of Karras et al. 2022 hold in each band alone. The image stays what is
diffused: the transform keeps white noise white, and the sum of squares.

A network of half the side sees the band of means as its own image at half the noise level. So a model of N pixels becomes one of 2 N that
makes its images enlarged by two (`with_detail`), and learns the detail from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from synthorax.diffusion.precondition import Scalings, edm_scalings
from synthorax.errors import UsageError
from synthorax.nets.wavelet import merge, split
from synthorax.protocols import ModelSpec

BANDS = ("latent 0", "detail of columns", "detail of rows", "detail of diagonals")
"""the means, by the name that a model of half the side gives its only channel, and three kinds of differences"""
MEANS_COUNT = 0.5
"""part of the loss that the means have; the three bands of detail share the rest"""


class DetailBands:
    """Scalings in four bands; images [B, 1, H, W] become [B, 4, H / 2, W / 2] and back."""

    def __init__(self, *, sigma_data: float, detail: Sequence[float]) -> None:
        if len(detail) != len(BANDS) - 1:
            raise UsageError(f"model.detail_sigma_data has {len(detail)} numbers; there are {len(BANDS) - 1} bands of detail")
        self.sigma_data = (2 * sigma_data, *detail)  # the sum of four pixels over 2 is twice their mean

    def split(self, images: Tensor) -> Tensor:
        """The bands of images."""
        return split(images)

    def merge(self, bands: Tensor) -> Tensor:
        """The images of bands."""
        return merge(bands)

    def scalings(self, sigma: Tensor) -> Scalings:
        """Scalings of each band, [B, 4, 1, 1], at noise levels [B] of the image; the network is told that of means over 2 x 2 pixels."""
        each = [edm_scalings(sigma, sigma_data=one) for one in self.sigma_data]

        def stacked(values: list[Tensor]) -> Tensor:
            return torch.stack(values, dim=1)[:, :, None, None]

        return Scalings(c_skip=stacked([s.c_skip for s in each]), c_out=stacked([s.c_out for s in each]),
                        c_in=stacked([s.c_in for s in each]), c_noise=edm_scalings(sigma / 2, sigma_data=1.0).c_noise)

    def error(self, difference: Tensor, sigma: Tensor) -> Tensor:
        """Mean square of images' errors [B, 1, H, W] in units of the network's output, [B]; the means count `MEANS_COUNT`."""
        errors = (self.split(difference) / self.scalings(sigma).c_out).square().flatten(2).mean(2)  # [B, 4]
        return MEANS_COUNT * errors[:, 0] + (1 - MEANS_COUNT) * errors[:, 1:].mean(1)


class SeesBands(Protocol):
    """What is used here of a diffusion model, which uses this module."""

    spec: ModelSpec
    config: Any
    bands: DetailBands | None
    network: nn.Module

    def __init__(self, spec: ModelSpec) -> None: ...

    def input_names(self) -> list[str]:
        """What each input of the network's first layer means."""

    def state_dict(self) -> Any:
        """Weights by name; changing them changes the model."""


M = TypeVar("M", bound=SeesBands)


def with_detail(base: M, *, detail: Sequence[float], parts: Sequence[str]) -> M:
    """The model of twice the side that makes the images of `base` enlarged by two: its bands of detail come out as noise of the standard
    deviations `detail`, its other weights are those of `base`. The weights of `parts` that the base lacks are 0. Raises UsageError for a
    base that has bands of detail itself, or diffuses no pixels by the parameterisation edm.
    """
    config = {**base.spec.config, "image_size": 2 * base.spec.image_size, "detail_sigma_data": tuple(detail), "parts": tuple(parts),
              "sigma_max": 2 * base.config.sigma_max}
    if base.bands is not None:
        raise UsageError("a model with bands of detail cannot become one of twice the side again")
    spec = replace(base.spec, image_size=2 * base.spec.image_size, conditions=tuple(parts), config=config)
    model = type(base)(spec)
    own, theirs = model.state_dict(), base.state_dict()
    names, rows = model.input_names(), base.config.patch ** 2
    for key, weight in own.items():
        if key in theirs and theirs[key].shape == weight.shape:
            weight.copy_(theirs[key])
            continue
        weight.zero_()  # of parts that the base lacks, and of detail
        if key == "network.first.weight":
            weight[:, [names.index(name) for name in base.input_names()]] = theirs[key].to(weight)
        elif key.startswith("network.last."):
            weight[:rows] = theirs[key].to(weight)
        elif key in theirs:
            raise UsageError(f"the base model has another shape ('{key}')")
    return model


def zero_detail(model: SeesBands) -> None:
    """Let the bands of detail have no influence on the means, and no content."""
    folded = model.config.patch ** 2
    first: nn.Conv2d = model.network.first  # type: ignore[assignment]
    last: nn.Conv2d = model.network.last[-1]  # type: ignore[assignment, index]
    with torch.no_grad():
        first.weight[:, folded:len(BANDS) * folded] = 0.0
        last.weight[folded:], last.bias[folded:] = 0.0, 0.0  # type: ignore[index]
