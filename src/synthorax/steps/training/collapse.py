"""Whether a training collapses: sample sheets measured during training, and one warning when images become too alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.metrics.neighbours import neighbours
from synthorax.evaluation.metrics.ssim import WINDOW_PX, Pixels, to_intensity
from synthorax.files import json_line
from synthorax.rng import derive

_LOG = logging.getLogger(__name__)
REAL_IMAGES = 128
"""real images that each sheet is compared with"""
MIN_IMAGES_PER_SHEET = 8
NEIGHBOUR = 3
SIDE_PX = 16
"""side to which images are shrunk before distances: a judge's features would have to stay out of the grading afterwards"""
ALIKE = 0.5
"""part of the way from the MS-SSIM of real pairs to that of equal images"""
HAD, LOST = 0.2, 0.25
"""recall and precision that were reached at one look (noise has recall without precision), and the part of that recall that is a loss"""


class CollapseMonitor:
    """Measures sheets of images against real ones [N, S, S], and warns once; what it saw before is in metrics.jsonl at `log`.

    Where `side` is given, the sheets have no more detail than images of so many pixels, and neither do the real ones that they are held
    against.
    """

    def __init__(self, real: Pixels, *, log: Path, seed: int, side: int | None = None) -> None:
        chosen = np.random.default_rng(derive(seed, "collapse")).permutation(len(real))[:REAL_IMAGES]
        self.real, self.log, self.seed = _coarse(real[np.sort(chosen)], side or real.shape[1]), log, seed

    def look(self, generated: Pixels) -> Mapping[str, float | str]:
        """MS-SSIM within made and within real images, precision and recall of one sheet [M, S, S], and a warning when it is time.

        Nothing where images are too few or too small to say.
        """
        if min(len(self.real), len(generated)) < MIN_IMAGES_PER_SHEET or min(generated.shape[1:]) < WINDOW_PX:
            return {}
        similarity = {score.metric: score.value for score in ms_ssim_scores(self.real, generated, floor_sets=None, seed=self.seed)}
        near = neighbours(_small(self.real), _small(generated), k=NEIGHBOUR)
        now: dict[str, float | str] = {
            "sample_ms_ssim": round(similarity["ms_ssim_within_synthetic"], 4), "real_ms_ssim": round(similarity["ms_ssim_within_real"], 4),
            "sample_precision": round(near.precision, 4), "sample_recall": round(near.recall, 4)}
        before = self._earlier()
        warning = collapse_warning([*before, now])
        if warning and not any("warning" in look for look in before):
            _LOG.warning("%s", warning)
            now["warning"] = warning
        return now

    def _earlier(self) -> list[Mapping[str, float | str]]:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return [look for look in map(json_line, lines) if isinstance(look.get("sample_recall"), float)]


def collapse_warning(looks: Sequence[Mapping[str, float | str]]) -> str:
    """What is wrong after the last of some looks, oldest first; empty if nothing is.

    Images are too alike at two looks in a row (the first sheets of any training are), or recall was there and is lost.
    """
    def numbers(name: str) -> list[float]:
        return [float(look[name]) for look in looks]

    generated, real, precision, recall = (numbers(name) for name in ("sample_ms_ssim", "real_ms_ssim", "sample_precision", "sample_recall"))
    alike = [one > other + ALIKE * (1 - other) for one, other in zip(generated, real, strict=True)]
    if len(alike) > 1 and all(alike[-2:]):
        return (f"the images collapse: pairs of them are more alike (MS-SSIM {generated[-1]:.2f}) than pairs of real ones "
                f"({real[-1]:.2f}); a lower learning rate, a penalty on the discriminator or augmentation before it may help")
    best = max((one for one, plausible in zip(recall, precision, strict=True) if plausible >= HAD), default=0.0)
    if best >= HAD and recall[-1] < LOST * best:
        return (f"the images lose variety: recall was {best:.2f} and is {recall[-1]:.2f}; an earlier checkpoint may be better, "
                f"or a lower learning rate")
    return ""


def _coarse(images: Pixels, side: int) -> Pixels:
    """Images [N, S, S] whose pixels are the means of squares, so many in a row; S is a multiple of `side`."""
    square = images.shape[1] // side
    if square == 1:
        return images
    means = images.reshape(len(images), side, square, side, square).mean((2, 4))
    coarse: Pixels = means.repeat(square, axis=1).repeat(square, axis=2).round().astype(images.dtype)
    return coarse


def _small(images: Pixels) -> NDArray[np.float64]:
    """Images shrunk to a row of pixels each, [N, F]."""
    return np.asarray(F.adaptive_avg_pool2d(to_intensity(images), SIDE_PX).flatten(1).numpy())
