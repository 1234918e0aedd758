"""How close synthetic images are to real ones as a whole: FID, KID, MMD and energy distance on the features of a judge."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.metrics.kernels import Kernel, gaussian, median_distance, mmd_and_influences, negative_distance, polynomial
from synthorax.evaluation.statistics.intervals import (
    FloorSets,
    Matrix,
    checked_features,
    normal_interval,
    real_floor,
    standard_error,
)
from synthorax.types import Score

MAIN_DIRECTIONS = 64
"""principal directions in which `fid_64` compares"""
MIN_EXTRAPOLATED = 20
"""images of the smaller set from which on a distance is extrapolated"""


def fid(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, [N, F] and [M, F]; 0 and up.

    Heusel et al. 2017, Eq. 6, with sample covariances. It is biased upwards, the more so the fewer images there are:
    compare at equal sizes only.

    >>> fid(np.eye(4), np.eye(4)) < 1e-12
    True
    """
    return _fid_and_influences(*checked_features(real, synthetic))[0]


def fid_from_statistics(mean_1: Matrix, covariance_1: Matrix, mean_2: Matrix, covariance_2: Matrix) -> float:
    """The same distance from known means [F] and covariances [F, F].

    tr (C1 C2)^1/2 is the sum of the singular values of C1^1/2 C2^1/2, which needs no root of a matrix that is not
    symmetric and stays exact for singular covariances.

    >>> fid_from_statistics(np.zeros(2), np.eye(2), np.ones(2), np.eye(2))
    2.0
    """
    cross = scipy.linalg.svdvals(_symmetric_root(covariance_1) @ _symmetric_root(covariance_2)).sum()
    distance = np.sum((mean_1 - mean_2) ** 2) + np.trace(covariance_1) + np.trace(covariance_2) - 2 * cross
    return max(float(distance), 0.0)


def _symmetric_root(covariance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def fid_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
              features_name: str, seed: int, group: str = "all",
              real_patients: NDArray[np.str_] | None = None) -> Score:
    """FID with its interval (infinitesimal jackknife, no resampling: a bootstrap would inflate FID) and its floor."""
    value, by_real, by_synthetic = _fid_and_influences(*checked_features(real, synthetic))
    error = float(np.hypot(standard_error(by_real, real_patients), standard_error(by_synthetic)))
    return _score("fid", value, error, len(real), len(synthetic), features_name, group, lowest=0.0,
                  floor=real_floor(fid, floor_sets, n_real=len(real), n_synthetic=len(synthetic), seed=seed))


def fid_64(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, directions: int = MAIN_DIRECTIONS) -> float:
    """FID in the first principal directions of both sets together, from [N, F] and [M, F].

    With a few hundred images most of a distance in 1,280 features is what small samples add to it, in the value and in its floor alike, and
    their ratio is near 1 for any generator. In 64 directions little is added, and the ratio to the floor means something.
    """
    return fid(*_in_main_directions(*checked_features(real, synthetic), directions=directions))


def fid_extrapolated(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int = 0, directions: int = MAIN_DIRECTIONS,
                     sizes: int = 8, draws: int = 4) -> float:
    """`fid_64` at infinitely many images: a straight line in 1 / n through the distances of subsets, at 1 / n = 0.

    Chong and Forsyth 2020, section 3: the bias of FID is proportional to 1 / n once n is well above the number of features, hence the few
    directions. Subsets have between half and all of the smaller set's images. Around 0 for two sets of one kind, below 0 by chance.
    """
    first, second = _in_main_directions(*checked_features(real, synthetic), directions=directions)
    num, rng = min(len(first), len(second)), np.random.default_rng(seed)
    if num < MIN_EXTRAPOLATED:
        raise InputError(f"{num} images are too few to extrapolate from", remedy=f"give at least {MIN_EXTRAPOLATED}")
    chosen = [size for size in np.linspace(num // 2, num, sizes).astype(int) for _ in range(draws)]
    values = [fid(*(part[rng.permutation(len(part))[:size]] for part in (first, second))) for size in chosen]
    return float(np.polyfit(1 / np.array(chosen), values, 1)[1])


def fid_64_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
                 features_name: str, seed: int, group: str = "all", real_patients: NDArray[np.str_] | None = None) -> Score:
    """`fid_64` with its interval and its floor; the note has the ratio to the floor, and both extrapolated to infinitely many images."""
    projected = _in_main_directions(*checked_features(real, synthetic), directions=MAIN_DIRECTIONS)
    value, by_real, by_synthetic = _fid_and_influences(*projected)
    error = float(np.hypot(standard_error(by_real, real_patients), standard_error(by_synthetic)))
    floor = real_floor(fid_64, floor_sets, n_real=len(real), n_synthetic=len(synthetic), seed=seed)
    notes = [floor[1]]
    if floor_sets is not None and floor[0] is not None and min(len(real), len(synthetic), *map(len, floor_sets)) >= MIN_EXTRAPOLATED:
        ends = fid_extrapolated(real, synthetic, seed=seed), fid_extrapolated(*floor_sets, seed=seed)
        notes.append(f"{value / max(float(floor[0][0]), 1e-12):.1f} times the floor; extrapolated to infinitely many images {ends[0]:.3g}, "
                     f"and {ends[1]:.3g} between real images")
    return _score("fid_64", value, error, len(real), len(synthetic), features_name, group, lowest=0.0,
                  floor=(floor[0], "; ".join(filter(None, notes))))


def _in_main_directions(real: Matrix, synthetic: Matrix, *, directions: int) -> tuple[Matrix, Matrix]:
    """Both sets on the first principal directions of their union, [N, k] and [M, k]."""
    both = np.concatenate([real, synthetic])
    basis = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)[2][:directions].T
    return real @ basis, synthetic @ basis


def kid(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    """Kernel distance: unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3.

    Binkowski et al. 2018, Eq. 4, over all pairs instead of random blocks. Zero on average between sets of the same
    kind, whatever their sizes, so small negative values are right.
    """
    return _kid_and_influences(*checked_features(real, synthetic))[0]


def kid_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
              features_name: str, seed: int, group: str = "all",
              real_patients: NDArray[np.str_] | None = None) -> Score:
    """KID with its interval (infinitesimal jackknife) and its floor; not multiplied by 1,000."""
    value, by_real, by_synthetic = _kid_and_influences(*checked_features(real, synthetic))
    error = float(np.hypot(standard_error(by_real, real_patients), standard_error(by_synthetic)))
    return _score("kid", value, error, len(real), len(synthetic), features_name, group,
                  floor=real_floor(kid, floor_sets, n_real=len(real), n_synthetic=len(synthetic), seed=seed))


def mmd(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel; 0 on average between sets of one kind.

    Jayasumana et al. 2024 (CMMD) propose it in place of FID: it takes no set for a Gaussian and needs no thousands of images. Theirs is
    defined on CLIP features with bandwidth 10; here the feature space is named beside the number and the bandwidth is the median
    distance between two real images, unless given.

    >>> mmd(np.eye(4), np.eye(4) + 9) > 0.5
    True
    """
    real, synthetic = checked_features(real, synthetic)
    return mmd_and_influences(real, synthetic, gaussian(bandwidth or median_distance(real)))[0]


def mmd_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
              features_name: str, seed: int, group: str = "all", real_patients: NDArray[np.str_] | None = None,
              bandwidth: float | None = None) -> Score:
    """`mmd` with its interval (infinitesimal jackknife) and its floor, at the same bandwidth."""
    width = bandwidth or median_distance(real)
    return _kernel_score("mmd", real, synthetic, gaussian(width), floor_sets=floor_sets, features_name=features_name, seed=seed,
                         group=group, real_patients=real_patients)


def energy_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, floor_sets: FloorSets | None,
                 features_name: str, seed: int, group: str = "all", real_patients: NDArray[np.str_] | None = None,
                 metric: str = "energy_distance") -> Score:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, Eq. 3), unbiased, for a few standardised features."""
    return _kernel_score(metric, real, synthetic, negative_distance, floor_sets=floor_sets, features_name=features_name, seed=seed,
                         group=group, real_patients=real_patients)


def _kernel_score(metric: str, real: NDArray[np.floating], synthetic: NDArray[np.floating], kernel: Kernel, *,
                  floor_sets: FloorSets | None, features_name: str, seed: int, group: str,
                  real_patients: NDArray[np.str_] | None) -> Score:
    real, synthetic = checked_features(real, synthetic)
    value, by_real, by_synthetic = mmd_and_influences(real, synthetic, kernel)
    error = float(np.hypot(standard_error(by_real, real_patients), standard_error(by_synthetic)))
    floor = real_floor(lambda a, b: mmd_and_influences(*checked_features(a, b), kernel)[0], floor_sets, n_real=len(real),
                       n_synthetic=len(synthetic), seed=seed)
    return _score(metric, value, error, len(real), len(synthetic), features_name, group, floor=floor)


def kid_difference(real: NDArray[np.floating], first: NDArray[np.floating], second: NDArray[np.floating], *,
                   real_patients: NDArray[np.str_] | None = None) -> tuple[float, float, float]:
    """KID of `second` less that of `first`, with its 95 % interval; above 0 means that `second` is farther from the real images.

    Row i of both sets [N, F] is one seed and one condition, such as images of two samplers, and all are compared with the same real images.
    What they share cancels, so the interval (infinitesimal jackknife) is narrower than those of the two scores suggest.
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} images are no pairs", remedy="give images of the same seeds")
    (one, real_one, made_one), (two, real_two, made_two) = (_kid_and_influences(*checked_features(real, made)) for made in (first, second))
    error = float(np.hypot(standard_error(real_two - real_one, real_patients), standard_error(made_two - made_one)))
    return two - one, *normal_interval(two - one, error)


def _score(metric: str, value: float, error: float, n_real: int, n_synthetic: int, features_name: str, group: str, *,
           floor: tuple[Matrix | None, str], lowest: float = -np.inf) -> Score:
    low, high = normal_interval(value, error, lowest=lowest)
    return Score(metric=metric, value=value, low=low, high=high, n_real=n_real, n_synthetic=n_synthetic,
                 group=group, features=features_name, floor=None if floor[0] is None else float(floor[0][0]),
                 note=floor[1])


def _fid_and_influences(real: Matrix, synthetic: Matrix) -> tuple[float, Matrix, Matrix]:
    """FID, and the influence of every image on it, [N] and [M], from one singular value decomposition.

    With B = centred features / sqrt(n - 1), a covariance is B'B and tr (C1 C2)^1/2 is the sum of the singular values of
    B1 B2' = U S V'. So F x F matrices never appear where images are fewer than features. The derivative of that sum by
    the weight of image i is (U S U')_ii / 2 (differentiate the nuclear norm: its gradient is U V').
    """
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    scaled = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (real, synthetic)]
    traces = [float(np.sum(b**2)) for b in scaled]
    (q_real, r_real), (q_synthetic, r_synthetic) = (np.linalg.qr(b) for b in scaled)
    u, singular, vt = np.linalg.svd(r_real @ r_synthetic.T, full_matrices=False)
    value = max(float(gap @ gap + sum(traces) - 2 * singular.sum()), 0.0)
    influences = []
    for b, direction, trace, basis in ((scaled[0], gap, traces[0], q_real @ u),
                                       (scaled[1], -gap, traces[1], q_synthetic @ vt.T)):
        n = len(b)
        mean_part = 2 * np.sqrt(n - 1) * (b @ direction)
        trace_part = n * np.sum(b**2, axis=1) - trace
        cross_part = n * (basis**2 @ singular) - singular.sum()
        influences.append(mean_part + trace_part - cross_part)
    return value, influences[0], influences[1]


def _kid_and_influences(real: Matrix, synthetic: Matrix) -> tuple[float, Matrix, Matrix]:
    """KID, and the influence of every image on it; an image is never paired with itself."""
    return mmd_and_influences(real, synthetic, polynomial(real.shape[1]), centre=False)
