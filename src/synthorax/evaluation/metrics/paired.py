"""Synthetic images that were made from a real one, held against it pixel for pixel: SSIM and PSNR, and their place in the patients'
band.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.metrics.same_patient_bands import Band
from synthorax.evaluation.metrics.ssim import Pixels, psnr, ssim, to_intensity
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.types import ImageSet, Score

COLUMN = "pair_of"
"""column of the synthetic table with the `file_name` or `study_id` of the real image that each image was made from"""
MIN_PAIRED_IMAGES = 3
TOP_DB = 100.0
"""PSNR of equal images, which would be infinite"""


def paired_rows(synthetic: ImageSet, *real: ImageSet) -> tuple[NDArray[np.intp], Pixels]:
    """Rows of synthetic images whose real partner is in `real`, [P], and the partners' pixels [P, S, S]."""
    partners = {name: (images, row) for images in real for row, study in enumerate(images.studies)
                for name in (study.study_id, study.file_name) if name}
    rows = [row for row, study in enumerate(synthetic.studies) if study.extra.get(COLUMN) in partners]
    found = [partners[synthetic.studies[row].extra[COLUMN]] for row in rows]
    side = synthetic.pixels.shape[1]
    pixels = np.array([images.pixels[row] for images, row in found], dtype=synthetic.pixels.dtype).reshape(-1, side, side)
    return np.array(rows, dtype=np.intp), cast(Pixels, pixels)


def paired_scores(real: Pixels, synthetic: Pixels, *, bands: tuple[Band, Band]) -> tuple[Score, ...]:
    """Mean SSIM and PSNR of pairs [P, S, S], each with its verdict relative to images of one patient, or `uncalibrated`."""
    scores = []
    for name, by, limit, measured in (("ssim", ssim, 1.0, bands[0]), ("psnr", psnr, TOP_DB, bands[1])):
        values = np.concatenate([by(to_intensity(real[i : i + 32]), to_intensity(synthetic[i : i + 32])).numpy()
                                 for i in range(0, len(real), 32)])
        values = np.minimum(values, limit)
        mean = float(values.mean())
        low, high = normal_interval(mean, standard_error(values - mean), lowest=-1.0 if name == "ssim" else 0.0, highest=limit)
        where = f" {measured.low:.3g} to {measured.high:.3g} of images of one patient" if measured.calibrated else ""
        scores.append(Score(metric=f"paired_{name}", value=mean, low=low, high=high, n_real=len(real),
                            n_synthetic=len(synthetic), note=f"{measured.verdict(mean)}{where}"))
    return tuple(scores)
