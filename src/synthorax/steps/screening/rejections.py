"""Rejections: why screening drops an image, how that was measured, and the threshold that the image is beyond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthorax.judges.anatomy_guard import AnatomyReference
from synthorax.judges.realism import RealismCheck
from synthorax.privacy.copies import CopyDetector
from synthorax.steps.screening.filters import Likeness, Unusual
from synthorax.types import ImageSet

COPY, UNREALISTIC, REPEAT = "near-duplicate of a training image", "unlike the real images", "repeats an earlier image"
ANATOMY = "anatomy unlike that of real images"
COLUMNS = ("file_name", "plan_row", "reason", "way", "value", "threshold", "partner")
"""of dropped.csv"""
REMEDIES = {
    UNREALISTIC: "the generator has not learned enough: look at its sample sheets, and train it for longer, on more images or from a base",
    COPY: "the generator repeats its training images: train it for less long, or on more images",
    ANATOMY: "the generator has not learned where organs are: look at its sample sheets, and train it for longer or from a base",
    REPEAT: "the generator makes the same image again and again: train it for longer, with another seed or another family",
}
USUAL_REMEDY = "train the generator for longer, raise --guidance, or choose the filters with --filter"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """Why one image is dropped."""

    reason: str
    way: str
    """what was measured: some reasons have several ways, each with its own value and threshold"""
    value: float
    threshold: float
    partner: str = ""
    """the image that it copies or repeats; a training image by its row in the prepared folder's metadata.csv, never by its name"""

    def row(self) -> dict[str, str]:
        """Cells of `COLUMNS` that do not tell which image it is."""
        return {"reason": self.reason, "way": self.way, "value": f"{self.value:.6g}", "threshold": f"{self.threshold:.6g}",
                "partner": self.partner}


Rejections = dict[int, Rejection]
"""number of the image -> why it is dropped"""


def count_reasons(rejected: Rejections) -> dict[str, int]:
    """How many images were dropped for which reason, the commonest first."""
    return dict(Counter(one.reason for one in rejected.values()).most_common())


def in_words(reasons: Mapping[str, int]) -> str:
    """Counts of reasons in words."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none dropped"


def remedy(reasons: Mapping[str, int]) -> str:
    """What to do about the commonest reason."""
    return REMEDIES.get(max(reasons, key=lambda reason: reasons[reason]), USUAL_REMEDY)


def first_of(found: Iterable[Mapping[int, Rejection]]) -> Rejections:
    """One rejection an image: where several filters reject it, that of the first."""
    rejected: Rejections = {}
    for one in found:
        rejected = {**one, **rejected}
    return rejected


def copies(detector: CopyDetector, images: ImageSet, *, real: ImageSet, rows: Sequence[int]) -> Rejections:
    """Near-duplicates, with the way that caught them; `rows` are those of the training images, `real`, in the prepared table.

    An image that is derived from a patient's resembles that patient's images by construction: it is dropped only for another's.
    """
    check, rejected = detector.check(images.pixels), Rejections()
    for number in np.flatnonzero(check.is_copy).tolist():
        study = images.studies[number]
        caught = [way for way, found in check.ways.items() if found.is_copy[number] and not (
            study.derived_from_patient and real.studies[int(found.nearest_index[number])].patient_id == study.patient_id)]
        if not caught:
            continue
        way, found = caught[0], check.ways[caught[0]]
        rejected[number] = Rejection(reason=COPY, way=way, value=float(found.similarity[number]), threshold=detector.thresholds[way],
                                     partner=f"row {rows[int(found.nearest_index[number])]}")
    return rejected


def unrealistic(check: RealismCheck, images: ImageSet) -> Rejections:
    """Images that are farther from the real ones than real images of other patients."""
    found = check.check(images.pixels)
    return {number: Rejection(reason=UNREALISTIC, way=f"distance in {found.space[number]}", value=float(found.distance[number]),
                              threshold=float(found.threshold[number]))
            for number in np.flatnonzero(found.unrealistic).tolist()}


def wrong_anatomy(reference: AnatomyReference, images: ImageSet) -> Rejections:
    """Images whose lungs or heart are not as on real images; the way says which number, and where those of real images lie."""
    rejected = {}
    for number, found in enumerate(reference.check(images.pixels, views=[study.view for study in images.studies])):
        if found is not None:
            beyond = found.high if found.value > found.high else found.low
            rejected[number] = Rejection(reason=ANATOMY, way=str(found), value=found.value, threshold=beyond)
    return rejected


def unusual(found: Sequence[Unusual]) -> Rejections:
    """Images that one of several filters calls unusual, by the filter for which they are the rarest."""
    rejected = {}
    for number in range(len(found[0].p)) if found else ():
        strangest = min(found, key=lambda one: float(one.p[number]) / one.rate)
        if strangest.p[number] <= strangest.rate:
            rejected[number] = Rejection(reason=strangest.reason, way="share of real images as unusual", value=float(strangest.p[number]),
                                         threshold=strangest.rate)
    return rejected


def repeats(likeness: Likeness, images: ImageSet, *, dropped: Mapping[int, Rejection]) -> Rejections:
    """Images that repeat an earlier one which is kept: of a collapsed set the first stays.

    Images that are derived from one patient's are alike by construction and repeat one another only where their pixels are equal.
    """
    rejected: Rejections = {}
    kept: list[int] = []
    for number, study in enumerate(images.studies):
        if number in dropped:
            continue
        alike = likeness.between[number, kept].copy()
        for place, other in enumerate(kept if study.derived_from_patient else ()):
            same_host = images.studies[other].derived_from_patient and images.studies[other].patient_id == study.patient_id
            if same_host and not np.array_equal(images.pixels[number], images.pixels[other]):
                alike[place] = -1
        if len(kept) and alike.max() > likeness.threshold:
            rejected[number] = Rejection(reason=REPEAT, way="correlation of local contrast", value=float(alike.max()),
                                         threshold=likeness.threshold, partner=images.studies[kept[int(alike.argmax())]].file_name)
        else:
            kept.append(number)
    return rejected
