"""What is compared: the real images, features of all sets, and the groups of which both sides have enough images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthorax.data.vocabulary import NO_FINDING
from synthorax.judges.features import FeatureSpace, features_of
from synthorax.progress import Progress, portion, quiet
from synthorax.types import ImageSet

MIN_IMAGES_PER_GROUP = 20
"""images of a group on either side from which on it is measured"""
MIN_PATIENTS_PER_GROUP = 10
"""real patients of such a group"""
AGE_BANDS = ((0, 40, "age under 40"), (40, 60, "age 40-59"), (60, 80, "age 60-79"), (80, np.inf, "age 80 and over"))
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RealImages:
    """The real side: images that the generator may have learned from, and held-out images of other patients."""

    train: ImageSet
    held_out: ImageSet


@dataclass(frozen=True, kw_only=True, slots=True)
class SetFeatures:
    """All images as one feature space sees them: [N, F] each."""

    space: FeatureSpace
    train: Vectors
    held_out: Vectors
    synthetic: Vectors

    @classmethod
    def through(cls, space: FeatureSpace, real: RealImages, synthetic: ImageSet, *, progress: Progress = quiet) -> SetFeatures:
        """Features of the three sets."""
        sets, done, vectors = (real.train, real.held_out, synthetic), 0, []
        total = max(1, sum(map(len, sets)))
        for images in sets:
            vectors.append(features_of(space, images.pixels, progress=portion(progress, done / total, (done + len(images)) / total)))
            done += len(images)
        return cls(space=space, train=vectors[0], held_out=vectors[1], synthetic=vectors[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows of the held-out, the training and the synthetic images that one word describes."""

    name: str
    """`all`, a finding, `view PA`, `sex F`, `age 40-59`, `site nih`, or two of these: `Effusion, view PA`"""
    kind: str
    """all, finding, view, sex, age, site, or `subtype` for two of them"""
    held_out: Rows
    train: Rows
    synthetic: Rows
    floor: bool = field(init=False)
    """enough training images for a floor"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "floor", len(self.train) >= MIN_IMAGES_PER_GROUP)


def groups_of(images: ImageSet) -> dict[str, tuple[str, Rows]]:
    """Every group that these images state, name -> kind and rows: findings present, view, sex, age, site, finding by view and by site."""
    found: dict[str, tuple[str, Rows]] = {"all": ("all", np.arange(len(images)))}
    findings = {name: images.column(name) == 1 for name in images.findings if name != NO_FINDING}
    words: dict[str, list[str]] = {"view": [], "sex": [], "age": [], "site": []}
    for study in images.studies:
        words["view"].append(f"view {study.view}" if study.view else "")
        words["sex"].append(f"sex {study.sex}" if study.sex else "")
        words["age"].append(next((name for low, high, name in AGE_BANDS if low <= study.age_years < high), ""))
        words["site"].append(f"site {study.site}" if study.site else "")
    found |= {name: ("finding", np.flatnonzero(shown)) for name, shown in findings.items()}
    for kind, column in words.items():
        values = np.array(column)
        for value in sorted(set(column) - {""}):
            found[value] = (kind, np.flatnonzero(values == value))
            if kind in ("view", "site"):
                found |= {f"{name}, {value}": ("subtype", np.flatnonzero(shown & (values == value))) for name, shown in findings.items()}
    return found


def shared_groups(real: RealImages, synthetic: ImageSet) -> Iterator[Group]:
    """All images, then each group of which both sides have `MIN_IMAGES_PER_GROUP`, the real side of
    `MIN_PATIENTS_PER_GROUP` patients.

    A group that all images of both sides belong to says nothing new and is left out.
    """
    held_out, train, made = groups_of(real.held_out), groups_of(real.train), groups_of(synthetic)
    patients = real.held_out.patients()
    for name, (kind, rows) in held_out.items():
        asked = made.get(name, (kind, np.arange(0)))[1]
        if name != "all" and (min(len(rows), len(asked)) < MIN_IMAGES_PER_GROUP or len(set(patients[rows])) < MIN_PATIENTS_PER_GROUP
                              or (len(rows) == len(real.held_out) and len(asked) == len(synthetic))):
            continue
        yield Group(name=name, kind=kind, held_out=rows, train=train.get(name, (kind, np.arange(0)))[1], synthetic=asked)
