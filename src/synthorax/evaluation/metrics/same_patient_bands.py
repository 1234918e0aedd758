"""How unlike two images of one patient are: the band in which a distance between images means nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.metrics.kernels import as_tensors, distance_blocks
from synthorax.evaluation.metrics.ssim import psnr, ssim, to_intensity
from synthorax.evaluation.statistics.intervals import Matrix
from synthorax.evaluation.statistics.roc import wilson
from synthorax.types import ImageSet, Score

MIN_SAME_PATIENT_PAIRS, MIN_PATIENTS_WITH_PAIRS, MAX_SAME_PATIENT_PAIRS = 20, 10, 300
Verdict = Literal["below the band", "inside the band", "above the band", "uncalibrated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """From the 5th to the 95th percentile of a number between two real images of one patient; NaN where there are too few pairs."""

    metric: str
    low: float
    high: float
    num_pairs: int
    num_patients: int

    @property
    def calibrated(self) -> bool:
        """Whether there were pairs enough."""
        return bool(np.isfinite(self.low))

    def verdict(self, value: float) -> Verdict:
        """Where a value lies relative to images of one patient; `uncalibrated` without pairs."""
        if not self.calibrated:
            return "uncalibrated"
        return "below the band" if value < self.low else "above the band" if value > self.high else "inside the band"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; without pairs it says `uncalibrated`."""
        if not self.calibrated:
            return {"verdict": "uncalibrated", "pairs": self.num_pairs, "patients": self.num_patients,
                    "needed": f"{MIN_SAME_PATIENT_PAIRS} pairs of {MIN_PATIENTS_WITH_PAIRS} patients"}
        return {key: value for key, value in asdict(self).items() if key != "metric"}


def same_patient_pairs(images: ImageSet, *, seed: int = 0) -> NDArray[np.intp]:
    """Rows of pairs of images of one patient and, where stated, one view, [P, 2]; at most three a patient, so that none dominates."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[int, int]] = []
    owners = np.array([f"{study.patient_id}\0{study.view}" if study.patient_id else "" for study in images.studies])
    names, counts = np.unique(owners, return_counts=True)
    for name in names[(counts > 1) & (names != "")]:
        rows = rng.permutation(np.flatnonzero(owners == name))[:4]
        pairs += [(int(a), int(b)) for a, b in itertools.pairwise(rows)]
    chosen = rng.permutation(len(pairs))[:MAX_SAME_PATIENT_PAIRS]
    return np.array([pairs[i] for i in sorted(chosen.tolist())], dtype=np.intp).reshape(-1, 2)


def band(metric: str, images: ImageSet, pairs: NDArray[np.intp], measure: Callable[[NDArray[np.intp], NDArray[np.intp]], Matrix]) -> Band:
    """The band of `measure`, which takes rows of first and second images [P] and gives [P]."""
    patients = len(set(images.patients()[pairs[:, 0]])) if len(pairs) else 0
    if len(pairs) < MIN_SAME_PATIENT_PAIRS or patients < MIN_PATIENTS_WITH_PAIRS:
        return Band(metric=metric, low=np.nan, high=np.nan, num_pairs=len(pairs), num_patients=patients)
    low, high = np.quantile(measure(pairs[:, 0], pairs[:, 1]), [0.05, 0.95])
    return Band(metric=metric, low=float(low), high=float(high), num_pairs=len(pairs), num_patients=patients)


def pixel_bands(images: ImageSet, pairs: NDArray[np.intp]) -> tuple[Band, Band]:
    """Bands of SSIM and PSNR."""
    def compare(by: Callable[..., Any]) -> Callable[[NDArray[np.intp], NDArray[np.intp]], Matrix]:
        return lambda a, b: np.concatenate([by(to_intensity(images.pixels[a[i : i + 32]]),
                                               to_intensity(images.pixels[b[i : i + 32]])).numpy()
                                            for i in range(0, len(a), 32)])
    return band("ssim", images, pairs, compare(ssim)), band("psnr", images, pairs, compare(psnr))


def feature_band(images: ImageSet, features: NDArray[np.floating], pairs: NDArray[np.intp], *, space: str) -> Band:
    """Band of the distance between features [N, F] of two images."""
    return band(f"distance in {space}", images, pairs,
                lambda a, b: np.linalg.norm(features[a].astype(np.float64) - features[b], axis=1))


def nearest_distances(images: NDArray[np.floating], among: NDArray[np.floating]) -> Matrix:
    """Distance of each image's features [N, F] to the nearest of `among` [M, F], [N]."""
    if not (np.isfinite(images).all() and np.isfinite(among).all()):
        raise InputError("features hold NaN or infinity")
    x, y = as_tensors(images, among, centre=True)
    return np.concatenate([block.min(dim=1).values.double().clamp_min(0).sqrt().numpy() for _, block in distance_blocks(x, y)])


def nearness_score(measured: Band, synthetic: Matrix, held_out: Matrix, *, space: str, num_train: int) -> Score:
    """Share of images whose nearest real training image is as near as two images of one patient; floor: real images of other patients.

    `synthetic` and `held_out` are distances to the nearest training image, [M] and [N]. Above its floor, images follow single patients
    more closely than other people do; below it, they lie farther from all real images than people lie from one another.
    """
    def share(distances: Matrix) -> int:
        return int((distances <= measured.high).sum())
    low, high = wilson(share(synthetic), len(synthetic))
    return Score(metric="as_near_as_one_patient", value=share(synthetic) / len(synthetic), low=low, high=high, n_real=num_train,
                 n_synthetic=len(synthetic), features=space, floor=share(held_out) / len(held_out),
                 note=f"band from {measured.num_pairs} pairs of {measured.num_patients} patients; the aim is the floor: above it images "
                      "follow single patients")
