"""What kinds of images a classifier gets wrong on validation patients, and how often it would get an image of some kind wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.lesions import lesions_of
from synthorax.evaluation.metrics.feature_sets import AGE_BANDS
from synthorax.types import ImageSet, Study

PRIOR_IMAGES = 4
"""images' worth of the overall rate that each kind's rate begins with, so that three images of a kind cannot rule the plan"""
MOST_OFTEN = 8.0
"""how much more, or less, often than all an image can be expected to be wrong"""
SIZE_BANDS = ((0.0, 1 / 3, "small"), (1 / 3, 2 / 3, "moderate"), (2 / 3, math.inf, "large"))
SPECIFICITY = 0.9
"""part of the validation images without a finding that the threshold lets pass as such"""
Kind = tuple[str, str]
"""such as ("view", "AP") or ("size", "small")"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Validation images of one kind that show, or lack, a finding."""

    part: str
    level: str
    images: int
    wrong: int
    rate: float
    """of errors, drawn towards that of all images"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """How often images that show (or lack) one finding are called wrongly, in all and by kind."""

    finding: str
    images: int
    wrong: int
    overall: float
    groups: Mapping[Kind, Group]

    @property
    def recall(self) -> float:
        """Part that is called rightly; NaN without images."""
        return 1 - self.wrong / self.images if self.images else math.nan

    def expected(self, study: Study, subtypes: Sequence[str] = ()) -> float:
        """How often an image like this one is called wrongly, if its kinds act by factors of their own."""
        factors = [self.groups[kind].rate / self.overall for kind in kinds_of(study, self.finding, subtypes) if kind in self.groups]
        return self.overall * float(np.clip(math.prod(factors), 1 / MOST_OFTEN, MOST_OFTEN))


def kinds_of(study: Study, finding: str, subtypes: Sequence[str] = ()) -> list[Kind]:
    """View, sex, age band and site of an image, side and size of the finding, and the named columns; what is not stated is left out.

    >>> kinds_of(Study(file_name="a.png", view="PA", age_years=50.0), "Mass")
    [('view', 'PA'), ('age', '40-59')]
    """
    lesions = [lesion for lesion in lesions_of(study) if lesion.finding == finding]
    sides = {lesion.side for lesion in lesions}
    size = math.sqrt(sum(lesion.size**2 for lesion in lesions)) if lesions else math.nan
    cells = [("view", study.view), ("sex", study.sex), ("age", _band(study.age_years, AGE_BANDS).removeprefix("age ")),
             ("site", study.site), ("side", sides.pop() if len(sides) == 1 else ""), ("size", _band(size, SIZE_BANDS)),
             *((column, study.extra.get(column, "")) for column in subtypes)]
    return [(part, level) for part, level in cells if level]


def errors_of(images: ImageSet, wrong: NDArray[np.bool_], rows: NDArray[np.intp], finding: str, subtypes: Sequence[str] = ()) -> Errors:
    """Count errors among the images at `rows`; `wrong` [N]."""
    seen, missed = Counter[Kind](), Counter[Kind]()
    for row in rows.tolist():
        for kind in kinds_of(images.studies[row], finding, subtypes):
            seen[kind] += 1
            missed[kind] += bool(wrong[row])
    count = int(wrong[rows].sum())
    overall = (count + 0.5) / (len(rows) + 1)
    groups = {kind: Group(part=kind[0], level=kind[1], images=seen[kind], wrong=missed[kind],
                          rate=(missed[kind] + PRIOR_IMAGES * overall) / (seen[kind] + PRIOR_IMAGES)) for kind in sorted(seen)}
    return Errors(finding=finding, images=len(rows), wrong=count, overall=overall, groups=groups)


def missed_and_alarms(images: ImageSet, probabilities: NDArray[np.float64], finding: str,
                      subtypes: Sequence[str] = ()) -> tuple[Errors, Errors]:
    """Errors on images that show the finding and on those that lack it, at the threshold that 90 % of the latter stay below."""
    labels, scores = images.column(finding), probabilities[:, images.findings.index(finding)]
    shows, lacks = (np.flatnonzero(labels == value) for value in (1, 0))
    threshold = float(np.quantile(scores[lacks], SPECIFICITY))
    return (errors_of(images, scores <= threshold, shows, finding, subtypes), errors_of(images, scores > threshold, lacks, finding,
                                                                                        subtypes))


def _band(value: float, bands: Sequence[tuple[float, float, str]]) -> str:
    return next((name for low, high, name in bands if low <= value < high), "")
