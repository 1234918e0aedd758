"""An untrained filter for bright blobs of a stated size: the baseline that a claim about trained detectors of nodules must beat.

The scale-normalised Laplacian of Lindeberg 1998 (Int. J. Comput. Vis. 30:79, section 3): -s^2 times the Laplacian of the image blurred by
a Gaussian of standard deviation s. On a disc of radius r it is largest in the middle at s = r / sqrt(2). The smaller of the two
principal curvatures in its place answers to blobs and not to ridges such as ribs (the same paper, section 5).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.errors import UsageError
from synthorax.judges.fitting import ImageArray, check_images
from synthorax.judges.marks import Marks, strongest_places

AROUND = 6.0
"""how many times wider than the blur of the filter is that of what counts as around a place"""
FAINTEST = 1 / 2048
"""part of the grey range that is added to the root mean square: on an even background nothing is a blob"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobFilter:
    """The filter at a few diameters; nothing in it was learned from an image.

    Input contract: images [N, S, S], uint8 or uint16, bone bright. Its score is the greatest response over the diameters, each divided by
    the root mean square of the Laplacian's responses around it, so that exposure, contrast and busy places matter less.
    """

    diameters_px: tuple[float, ...] = (8.0, 11.0)
    """diameters of the discs that it answers to most, in pixels of the image"""
    bright: bool = True
    """look for what is brighter than its surroundings; otherwise for what is darker"""
    kind: Literal["laplacian", "curvature"] = "laplacian"
    """sum of both principal curvatures, or the smaller one, which ridges do not raise"""
    most: int = 20
    """marks of an image at most"""

    def __post_init__(self) -> None:
        """Refuse diameters that no pixel grid shows."""
        if not self.diameters_px or min(self.diameters_px) < 2 or not all(map(math.isfinite, self.diameters_px)):
            raise UsageError(f"blobs of {self.diameters_px} px: give at least one diameter, each of at least 2 px")

    @classmethod
    def of_millimetres(cls, diameters_mm: tuple[float, ...], *, spacing_mm: float) -> BlobFilter:
        """The filter for diameters in mm on images with pixels of `spacing_mm`.

        >>> BlobFilter.of_millimetres((15.0,), spacing_mm=1.5).diameters_px
        (10.0,)
        """
        return cls(diameters_px=tuple(diameter / spacing_mm for diameter in diameters_mm))

    @property
    def name(self) -> str:
        """Short name that reports carry."""
        sizes = "-".join(f"{diameter:g}" for diameter in self.diameters_px)
        return f"blob-filter-{sizes}px" + ("" if self.bright else "-dark") + ("" if self.kind == "laplacian" else f"-{self.kind}")

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, which are all there is."""
        return hashlib.sha256(repr(("blob-filter/1", self)).encode()).hexdigest()

    def maps(self, images: ImageArray) -> NDArray[np.float64]:
        """Score of every pixel, [N, S, S]: the response there, in root mean squares of the responses around it."""
        check_images(images)
        scored = np.empty(images.shape)
        for row, image in enumerate(images):
            grey = image.astype(np.float64) / np.iinfo(images.dtype).max * (1 if self.bright else -1)
            grey -= grey.mean()  # so that what is cut off from the kernels, which sums to almost nothing, is multiplied by little
            scored[row] = np.max([self._response(grey, diameter / 2 / math.sqrt(2)) for diameter in self.diameters_px], axis=0)
        return scored

    def _response(self, grey: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        across, down, mixed = (sigma**2 * ndimage.gaussian_filter(grey, sigma, order=order, mode="nearest", truncate=5.0)
                               for order in ((0, 2), (2, 0), (1, 1)))
        laplacian = -(across + down)
        response = laplacian if self.kind == "laplacian" else laplacian / 2 - np.hypot((across - down) / 2, mixed)
        around = np.sqrt(ndimage.gaussian_filter(laplacian**2, AROUND * sigma, mode="nearest"))
        return np.asarray(response / (around + FAINTEST))

    def marks(self, images: ImageArray, *, within: NDArray[np.bool_] | None = None) -> Marks:
        """Where blobs are, in images [N, S, S]; `within` [N, S, S] says where to look, for instance inside the lungs."""
        apart = min(self.diameters_px)
        return Marks.join([strongest_places(scores, distance_px=apart, most=self.most, within=None if within is None else within[row])
                           for row, scores in enumerate(self.maps(images))])
