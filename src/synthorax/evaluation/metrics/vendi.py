"""The Vendi score: how many different images a set amounts to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.statistics.intervals import Matrix, checked_features, normal_interval, standard_error
from synthorax.types import Score


def vendi(features: NDArray[np.floating]) -> float:
    """Exponential of the entropy of the eigenvalues of K / N (Friedman and Dieng 2023, Eq. 2), from 1 (one image, repeated) to N.

    K [N, N] holds the cosines between images [N, F]. It is never built: its eigenvalues are those of an F x F matrix.

    >>> round(vendi(np.eye(4)), 6), round(vendi(np.ones((4, 3))), 6)
    (4.0, 1.0)
    """
    return _vendi_and_influences(features)[0]


def vendi_score(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, features_name: str, seed: int, group: str = "all",
                reference: NDArray[np.floating] | None = None) -> Score:
    """Vendi score of the synthetic images; its floor is that of as many real ones, since few images can never be many.

    Features are standardised by `reference` (by default the real images) before cosines are taken: as they are, nearly all images point
    the same way. Interval: infinitesimal jackknife.
    """
    real, synthetic = checked_features(real, synthetic)
    ground = real if reference is None else reference
    mean, scale = ground.mean(axis=0, dtype=np.float64), ground.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-9, scale, 1.0)
    rng = np.random.default_rng(seed)
    num = min(len(real), len(synthetic))
    real, synthetic = (((images[rng.permutation(len(images))[:num]] - mean) / scale) for images in (real, synthetic))
    value, influences = _vendi_and_influences(synthetic)
    low, high = normal_interval(value, standard_error(influences), lowest=1.0, highest=float(num))
    return Score(metric="vendi", value=value, low=low, high=high, n_real=num, n_synthetic=num, group=group,
                 features=features_name, floor=_vendi_and_influences(real)[0],
                 note="aim for the floor, the score of as many real images: below it, images repeat one another; above it, they may be "
                      "noise")


def _vendi_and_influences(features: NDArray[np.floating]) -> tuple[float, Matrix]:
    """The score, and each image's influence on it, [N].

    With unit vectors x and the mean rho of x x', the entropy is -tr(rho log rho), and its derivative by the weight of an image is
    -x' log(rho) x less the entropy (the weights keep their sum).
    """
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or len(features) < 1:
        raise InputError("the Vendi score needs finite features of at least one image")
    unit = features / np.where(norms > 0, norms, 1.0)
    num, dims = unit.shape
    if num >= dims:
        values, vectors = np.linalg.eigh(unit.T @ unit / num)
        weight = (unit @ vectors) ** 2
        logs = np.log(np.maximum(values, 1e-300)) * (values > 1e-12)
    else:
        values, vectors = np.linalg.eigh(unit @ unit.T / num)
        values = values.clip(0)
        weight, logs = num * vectors**2 * values, np.log(np.maximum(values, 1e-300)) * (values > 1e-12)
    information = -(weight @ logs)
    entropy = float(information.mean())
    return float(np.exp(entropy)), np.exp(entropy) * (information - entropy)
