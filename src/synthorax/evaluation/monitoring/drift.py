"""Distribution shift: have the images changed? Two sets compared, with an alarm whose rate of false alarms is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.kernels import gaussian_matrix, median_distance, mmd_from_matrix
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.appearance import NAMES, appearance_statistics
from synthorax.judges.features import FeatureSpace, features_of
from synthorax.privacy.copies import conformal_threshold
from synthorax.progress import Progress, portion, quiet
from synthorax.rng import derive
from synthorax.types import ImageSet

LEVEL = 0.05
DRAWS = 400
"""splits of the older set that say what chance does"""
MIN_PATIENTS_PER_SET = 20
MAX_IMAGES_PER_SET = 1000
"""images of a set that are looked at; more are drawn from by patient"""
MIN_STATED_PER_PART = 10
COMPONENTS = 20
"""principal components in which old and new images are told apart"""
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """One way in which the sets may differ."""

    name: str
    value: float
    usual: float
    """95th percentile between two parts of the older set of the same sizes"""
    p: float
    alarm: bool
    """whether it raises the alarm, the number of ways being taken account of"""
    old: str = ""
    new: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """What changed from the older to the newer set."""

    shifts: tuple[Shift, ...]
    num_old: int
    num_new: int
    level: float
    not_compared: tuple[str, ...]
    features: Mapping[str, str]

    @property
    def alarm(self) -> bool:
        """Whether the newer images are of another kind."""
        return any(shift.alarm for shift in self.shifts)

    def __str__(self) -> str:
        head = "ALARM: the newer images differ" if self.alarm else "no alarm: no difference beyond chance"
        shifts = sorted(self.shifts, key=lambda shift: (not shift.alarm, shift.p))
        lines = [f"  {shift.name:<24}{shift.value:>8.3f}  usually up to {shift.usual:.3f}{'  <- alarm' if shift.alarm else ''}"
                 for shift in shifts[:8]]
        return "\n".join([f"{head} ({self.num_old} and {self.num_new} images, false alarms {self.level:.0%})", *lines])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"schema": "synthorax.drift/1", "alarm": self.alarm, "level": self.level, "num_old": self.num_old, "num_new": self.num_new,
                "shifts": [asdict(shift) for shift in self.shifts], "not_compared": list(self.not_compared),
                "features": dict(self.features)}


def drift_between(old: ImageSet, new: ImageSet, *, features: FeatureSpace, seed: int = 0, draws: int = DRAWS,
                  level: float = LEVEL, progress: Progress = quiet) -> Drift:
    """Compare the embeddings, labels, demographics and appearance of two sets of images.

    Ways: the maximum mean discrepancy of the features; the AUROC of a linear classifier that tells old from new images of patients whom it
    has not seen (Lopez-Paz and Oquab 2017); shares of findings, views, sexes and sites; means of age and of `judges.appearance`.
    What chance does is learned from `draws` splits of the older set by patient, into parts as large as those that are compared. Each way
    is measured in its own spread over these, and the alarm goes by the largest, whose distribution the same splits give (max T of
    Westfall and Young 1993, Sec. 2.5): of sets of one kind a part of `level` raises it. Raises InputError for fewer than 20 patients on a
    side, and UsageError where sizes or findings differ.
    """
    if old.pixels.shape[1:] != new.pixels.shape[1:] or old.findings != new.findings:
        raise UsageError("both sets must have the same image size and the same findings")
    for name, images in (("older", old), ("newer", new)):
        if (count := len(np.unique(images.patients()))) < MIN_PATIENTS_PER_SET:
            unnamed = " (all images without patient_id count as one)" if not all(study.patient_id for study in images.studies) else ""
            raise InputError(f"the {name} set has {count} patient{'' if count == 1 else 's'}{unnamed}, and at least "
                             f"{MIN_PATIENTS_PER_SET} are needed",
                             remedy="write patient_id in metadata.csv, or give more images" if unnamed else "give images of more patients")
    rng = np.random.default_rng(derive(seed, "drift"))
    old, new = (images.take(np.sort(_sample_by_patient(images, MAX_IMAGES_PER_SET, rng))) for images in (old, new))
    size = min(len(new), len(old) // 2)
    compare, patients = _Compare.of(old, new, features, progress=portion(progress, 0, 0.5)), old.patients()
    parts = []
    for _ in range(draws + 1):  # the last one is the reference for the newer images
        chosen = _sample_by_patient(old, size, rng)
        parts.append((np.flatnonzero(~np.isin(patients, patients[chosen])), chosen))
    chance = []
    for number, (reference, sample) in enumerate(parts[:-1], start=1):
        chance.append(compare(reference, sample))
        progress(0.5 + 0.5 * number / len(parts), f"chance, split {number} of {draws}")
    null = np.array(chance)
    sample = len(old) + _sample_by_patient(new, size, rng)
    value = compare(parts[-1][0], sample)
    usable = ~np.isnan(value) & ~np.isnan(null).any(axis=0)
    middle, usual = np.quantile(null[:, usable], [0.5, 0.95], axis=0)
    # A kind that is missing from the older set has no spread there; one image of it is no change.
    unit = usual - middle + np.where(np.arange(len(value))[usable] < 2, 1e-9, 1 / size)
    far_null, far = (null[:, usable] - middle) / unit, (value[usable] - middle) / unit
    alarm_above = conformal_threshold(far_null.max(axis=1), level)
    names = [name for name, use in zip(compare.names, usable, strict=True) if use]
    everything = np.arange(len(old)), np.arange(len(old), len(old) + len(new))
    shifts = [Shift(name=name, value=float(value[usable][i]), usual=float(usual[i]), alarm=bool(far[i] > alarm_above),
                    p=float((1 + (null[:, usable][:, i] >= value[usable][i]).sum()) / (1 + draws)), **compare.in_words(name, *everything))
              for i, name in enumerate(names)]
    progress(1.0, f"{len(names)} ways compared")
    left = tuple(f"{name}: stated in fewer than {MIN_STATED_PER_PART} images of a part" for name in compare.names if name not in names)
    return Drift(shifts=tuple(shifts), num_old=len(old), num_new=len(new), level=level, not_compared=left,
                 features={"name": features.name, "digest": features.digest})


@dataclass(frozen=True, slots=True)
class _Compare:
    """All images of both sets, old ones first, ready to be compared part by part."""

    kernel: Vector
    components: Vector
    patients: NDArray[np.str_]
    columns: dict[str, Vector]
    """[n] or one column a level [n, L]; NaN where not stated"""

    @classmethod
    def of(cls, old: ImageSet, new: ImageSet, features: FeatureSpace, *, progress: Progress) -> _Compare:
        parts = [features_of(features, images.pixels, progress=portion(progress, number / 2, (number + 1) / 2))
                 for number, images in enumerate((old, new))]
        vectors = np.concatenate(parts).astype(np.float64)
        mean, scale = vectors[: len(old)].mean(axis=0), vectors[: len(old)].std(axis=0) + 1e-6
        vectors = (vectors - mean) / scale
        kernel = gaussian_matrix(vectors, bandwidth=median_distance(vectors[: len(old)]))
        directions = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[2][:COMPONENTS]
        studies, look = (*old.studies, *new.studies), np.concatenate([appearance_statistics(images.pixels) for images in (old, new)])
        columns: dict[str, Vector] = {f"finding {name}": np.concatenate([images.column(name) for images in (old, new)]).astype(np.float64)
                                      for name in old.findings}
        for part in ("view", "sex", "site"):
            stated = np.array([getattr(study, part) for study in studies])
            levels = sorted(set(stated.tolist()) - {""})
            shares = np.stack([np.where(stated == "", np.nan, stated == name) for name in levels], axis=1) if levels else None
            columns[part] = shares if shares is not None else np.full(len(studies), np.nan)
        columns["age"] = np.array([study.age_years for study in studies], dtype=np.float64)
        columns |= {f"look: {name}": look[:, number] for number, name in enumerate(NAMES)}
        patients = np.concatenate([np.char.add("old ", old.patients()), np.char.add("new ", new.patients())])
        return cls(kernel, vectors @ directions.T, patients, columns)

    @property
    def names(self) -> list[str]:
        return ["embedding distance", "told apart (AUROC)", *self.columns]

    def __call__(self, reference: NDArray[np.intp], sample: NDArray[np.intp]) -> Vector:
        """One number a way, in the order of `names`; NaN where too few images state it."""
        return np.array([mmd_from_matrix(self.kernel, reference, sample), self._auroc(reference, sample),
                         *(_difference(column[reference], column[sample]) for column in self.columns.values())])

    def in_words(self, name: str, old: NDArray[np.intp], new: NDArray[np.intp]) -> dict[str, str]:
        """Mean, or share, of either set in words."""
        column = self.columns.get(name)
        if column is None or column.ndim > 1:
            return {}
        unit = "{:.1%}" if name.startswith("finding") else "{:.3g}"
        return {side: unit.format(float(np.nanmean(column[rows]))) for side, rows in (("old", old), ("new", new))}

    def _auroc(self, reference: NDArray[np.intp], sample: NDArray[np.intp]) -> float:
        """Fisher's discriminant learns on every other patient and is asked about the rest, both ways."""
        rows = np.concatenate([reference, sample])
        is_new = np.repeat([0, 1], [len(reference), len(sample)])
        fold = np.unique(self.patients[rows], return_inverse=True)[1] % 2
        x, scores = self.components[rows], np.zeros(len(rows))
        for own in (0, 1):
            learn, ask = fold != own, fold == own
            means = [x[learn & (is_new == value)].mean(axis=0) for value in (0, 1)]
            spread = np.cov((x[learn] - np.where(is_new[learn, None] == 1, means[1], means[0])).T)
            direction = np.linalg.solve(spread + 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread)), means[1] - means[0])
            scores[ask] = (x[ask] - (means[0] + means[1]) / 2) @ direction
        return auroc(is_new, scores)


def _difference(reference: Vector, sample: Vector) -> float:
    """Of means in standard deviations of the reference; of shares their difference, or half the sum over levels (total variation)."""
    stated = [~np.isnan(values if values.ndim == 1 else values[:, 0]) for values in (reference, sample)]
    if min(int(known.sum()) for known in stated) < MIN_STATED_PER_PART:
        return float("nan")
    one, other = reference[stated[0]], sample[stated[1]]
    if one.ndim > 1:
        return float(np.abs(one.mean(axis=0) - other.mean(axis=0)).sum() / 2)
    binary = bool(np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all())
    return float(abs(one.mean() - other.mean()) / (1.0 if binary else one.std() + 1e-9))


def _sample_by_patient(images: ImageSet, num: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows of patients in random order, all images of a patient together, up to `num` images."""
    _, owner = np.unique(images.patients(), return_inverse=True)
    order = rng.permutation(owner.max() + 1)
    return np.argsort(np.argsort(order)[owner], kind="stable")[:num]
