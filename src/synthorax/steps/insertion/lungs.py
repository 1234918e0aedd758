"""The lungs of hosts that have no masks of them: found by the lung model, which is opened when the first is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import SynthoraxError
from synthorax.judges.lungs import LungMasks, load_lung_model, segment_lungs
from synthorax.judges.segmenter import Segmenter


class LungFinder:
    """Finds lungs and hearts on images [N, H, W]."""

    def __init__(self, path: str | Path | None = None) -> None:
        """`path` is the file of a lung model, by default the one that ships."""
        self._path = path

    def __call__(self, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> LungMasks:
        return segment_lungs(pixels, model=self._model())

    @property
    def digest(self) -> str:
        """Of the weights; empty where there is no model, which is an error only once lungs are asked for."""
        try:
            return self._model().digest
        except SynthoraxError:
            return ""

    def _model(self) -> Segmenter:
        return load_lung_model(self._path)
