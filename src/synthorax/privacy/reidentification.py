"""Re-identification: how often a synthetic image passes for one of a training patient's images, held against real images of others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.statistics.bootstrap import counted_auroc, counted_bootstrap
from synthorax.evaluation.statistics.roc import Bootstrap
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.same_patient import SamePatientConfig, SamePatientJudge, train_same_patient
from synthorax.privacy.copies import FalseAlarms, alarm_rate, conformal_threshold
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet

MIN_PATIENTS_VALIDATED = 10
"""held-out patients with two images, below which nobody knows how well the judge works"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reidentification:
    """What the same-patient judge found, and how far it can be believed."""

    judge: SamePatientJudge
    validation: Bootstrap
    """AUROC of pairs of one held-out patient against pairs of two of the same site"""
    num_validated: int
    """held-out patients with two images"""
    threshold: float
    """likeness above which an image matches a training patient"""
    real: FalseAlarms
    """held-out real images that match a training patient, who is somebody else, though their half of the patients set no threshold"""
    synthetic: FalseAlarms
    """synthetic images that match one"""
    followed: FalseAlarms
    """second images of held-out patients that would match their first image: what the judge can see at all at this threshold"""
    nearest_index: NDArray[np.intp]
    """training image that each synthetic image matches best, [N]"""
    likeness: NDArray[np.float64]
    """[N]"""


def reidentify(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, *, config: SamePatientConfig | None = None, seed: int = 0,
               false_alarm_rate: float = 0.01, progress: Progress = quiet) -> Reidentification:
    """Train the judge on follow-ups of training patients, test it on held-out patients, then ask it about synthetic images.

    The threshold lets `false_alarm_rate` of one half of the held-out patients' images match any training patient. Raises `InputError`
    where too few patients have two images.
    """
    pairs = _pairs(held_out)
    if pairs.own.sum() < MIN_PATIENTS_VALIDATED:
        raise InputError(f"only {int(pairs.own.sum())} held-out patients have two images, and {MIN_PATIENTS_VALIDATED} are needed to test "
                         "a same-patient judge")
    judge = train_same_patient(train.pixels, train.patients(), config=config or SamePatientConfig(), seed=seed,
                               progress=progress)
    known, unknown, made = judge(train.pixels), judge(held_out.pixels), judge(synthetic.pixels)
    likeness = np.einsum("nf,nf->n", unknown[pairs.first], unknown[pairs.second]).astype(np.float64)
    validation = counted_bootstrap(pairs.own, likeness, held_out.patients()[pairs.first], counted_auroc, seed=seed)
    half = patient_folds(held_out.patients(), folds=2, seed=seed)
    matches = (unknown @ known.T).max(axis=1).astype(np.float64)
    threshold = conformal_threshold(matches[half == 0], false_alarm_rate)
    nearest = made @ known.T
    best = nearest.max(axis=1).astype(np.float64)
    return Reidentification(judge=judge, validation=validation, num_validated=int(pairs.own.sum()), threshold=threshold,
                            real=alarm_rate(matches[half == 1] > threshold), synthetic=alarm_rate(best > threshold),
                            followed=alarm_rate(likeness[pairs.own] > threshold), nearest_index=nearest.argmax(axis=1), likeness=best)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pairs:
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    own: NDArray[np.bool_]
    """whether both images are of one patient"""


def _pairs(images: ImageSet) -> _Pairs:
    """The first two images of each followed patient; and first images of two patients of one site, which no scanner's look tells apart."""
    patients, sites = images.patients(), np.array([study.site for study in images.studies])
    rows = [np.flatnonzero(patients == name)[:2] for name in np.unique(patients)]
    pairs = [(int(row[0]), int(row[1]), True) for row in rows if len(row) == 2]
    followed = [first for first, _, _ in pairs]
    pairs += [(one, other, False) for i, one in enumerate(followed) for other in followed[i + 1:] if sites[one] == sites[other]]
    columns = np.array(pairs, dtype=np.intp).reshape(-1, 3)
    return _Pairs(first=columns[:, 0], second=columns[:, 1], own=columns[:, 2].astype(bool))
