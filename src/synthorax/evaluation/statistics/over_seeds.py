"""What several trainings of one kind say together: means over seeds with honest intervals, and near-duplicates counted over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from synthorax.evaluation.statistics.intervals import Z_95
from synthorax.evaluation.statistics.roc import wilson
from synthorax.types import Score

MIN_SEEDS_FOR_SPREAD = 3
"""trainings from which on their spread is a part of the interval"""


def number(score: Score) -> dict[str, float]:
    """A score's value and the standard error from which its interval was made."""
    return {"value": score.value, "error": (score.high - score.low) / (2 * Z_95)}


def over_seeds(values: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with the wider of two 95 % intervals: from the sampling of images, and from three seeds on Student's t over seeds.

    The sampling error is not divided by the number of seeds, because all of them are held against the same real images. A difference
    takes its two arms for independent; they share the real images, which makes its interval too wide rather than too narrow.

    >>> over_seeds([1.0], [0.5])["high"] - 1 < over_seeds([0.0, 1.0, 2.0], [0.5, 0.5, 0.5])["high"] - 1
    True
    """
    mean, count = float(np.mean(values)), len(values)
    half = Z_95 * float(np.sqrt(np.mean(np.square(errors))))
    if count >= MIN_SEEDS_FOR_SPREAD:
        half = max(half, float(student.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)))
    return {"value": mean, "low": mean - half, "high": mean + half}


def summed_copies(parts: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """Near-duplicates and false alarms of all seeds together, with Wilson's intervals; more than alarms where the intervals lie apart.

    Each part counts `called` of `of` made images, and `alarms` of `alarms_of` real ones of other patients.
    """
    counts = list(parts)
    called, of, alarms, alarms_of = (sum(part[key] for part in counts) for key in ("called", "of", "alarms", "alarms_of"))
    low, high = wilson(called, of)
    alarms_low, alarms_high = wilson(counts[0]["alarms"], counts[0]["alarms_of"])  # the same real images in every seed count once
    return {"rate": called / of, "low": low, "high": high, "called": called, "of": of, "alarm_rate": alarms / alarms_of,
            "alarm_low": alarms_low, "alarm_high": alarms_high, "more_than_alarms": low > alarms_high}
