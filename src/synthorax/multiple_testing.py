"""P-values when several hypotheses are tested at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthorax.errors import UsageError


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for making several tests (Holm 1979), in the order given; reject those below the wanted level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1) | np.isnan(p)).any():
        raise UsageError(f"p-values must lie in [0, 1], not {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
