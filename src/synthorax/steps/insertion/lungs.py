"""The lungs of hosts that have no masks of them: found by the lung model, which is opened when the first is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError, SynthoraxError
from synthorax.judges.anatomy_guard import check_edit
from synthorax.judges.lungs import LungMasks, load_lung_model, outline, segment_lungs
from synthorax.judges.segmenter import Segmenter

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
SURER = 0.1
"""by how much more certain the model is of the lungs on the negative of an image that is inverted; on 25 upright images at most 0.00"""


class LungFinder:
    """Finds lungs and hearts on images [N, H, W]."""

    def __init__(self, path: str | Path | None = None) -> None:
        """`path` is the file of a lung model, by default the one that ships."""
        self._path = path

    def __call__(self, pixels: Pixels) -> LungMasks:
        return segment_lungs(pixels, model=self._model())

    def of_host(self, pixels: Pixels) -> LungMasks:
        """The lungs of one image [1, H, W]. InputError where there are not two, or where it looks inverted."""
        found = self(pixels)
        own, negative = (_certainty(images, self._model()) for images in (pixels, np.iinfo(pixels.dtype).max - pixels))
        if negative > own + SURER:
            raise InputError(f"the image looks inverted: its lungs are found with a certainty of {own:.2f}, and those of its negative with "
                             f"{negative:.2f}", remedy="correct what says how it is shown (MONOCHROME1 in DICOM), or invert it")
        if not found.right.any() or not found.left.any():
            raise InputError("two lungs were not found", remedy="give a frontal chest radiograph, or a lung_mask in its row")
        return found

    def broken_anatomy(self, before: Pixels, after: Pixels, region: NDArray[np.bool_], *, heart_may_change: bool) -> str | None:
        """What an insertion into an image [H, W] changed outside its region that it was to keep; None where no model can tell."""
        if not self.digest:
            return None
        return "; ".join(check_edit(before[None], after[None], region[None], heart_may_change=heart_may_change, model=self._model())[0])

    @property
    def digest(self) -> str:
        """Of the weights; empty where there is no model, which is an error only once lungs are asked for."""
        try:
            return self._model().digest
        except SynthoraxError:
            return ""

    def _model(self) -> Segmenter:
        return load_lung_model(self._path)


def guard_of(finder: LungFinder, finding: str) -> Callable[[Pixels, Pixels, NDArray[np.bool_]], str | None]:
    """What an insertion of a finding has to keep of the anatomy; a large heart is larger."""
    return partial(finder.broken_anatomy, heart_may_change=finding == "Cardiomegaly")


def _certainty(pixels: Pixels, model: Segmenter) -> float:
    """Mean probability of what is called lung on an image [1, H, W]; 0 where nothing is."""
    lung = outline(pixels, model=model).lung[0]
    inside = lung >= model.thresholds[0]
    return float(lung[inside].mean()) if inside.any() else 0.0
