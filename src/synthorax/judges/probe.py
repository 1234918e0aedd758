"""A linear probe: logistic regression on frozen features, the quickest judge that learns from few images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from synthorax.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Weights of one linear decision on standardised features."""

    name: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    """[F]"""
    bias: float

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers of the probe."""
        parts = (self.mean, self.scale, self.weights, np.array([self.bias]))
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-odds of the positive class, [N, F] -> [N]."""
        return np.asarray(((features - self.mean) / self.scale) @ self.weights + self.bias, dtype=np.float64)


def fit_probe(features: NDArray[np.floating], labels: NDArray[np.floating], *, name: str, strength: float = 1e-3) -> Probe:
    """Fit on features [N, F] and labels [N] in {0, 1, NaN}; NaN rows are left out, classes count equally.

    `strength` is scikit-learn's inverse regularisation C. Raises InputError where only one class is stated.
    """
    stated = ~np.isnan(labels)
    x, y = np.asarray(features[stated], dtype=np.float64), labels[stated].astype(int)
    if len(np.unique(y)) < 2:
        raise InputError(f"the probe '{name}' needs images of both classes")
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit((x - mean) / scale, y)
    return Probe(name=name, mean=mean, scale=scale, weights=fitted.coef_[0], bias=float(fitted.intercept_[0]))
