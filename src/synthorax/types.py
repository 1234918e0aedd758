"""The records that move between stages: images, their labels, scores and reports. No I/O, no torch."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import UsageError
from synthorax.metric_table import Direction, metric_of

Split = Literal["train", "val", "test", ""]
Status = Literal["measured", "not_applicable", "skipped", "failed"]


class Stated(enum.Enum):
    """What a label table says of a finding. A finding that it does not mention is simply not in the mapping."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPolicy:
    """How statements become the numbers 1, 0 and NaN that training and evaluation use."""

    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    """what `F?` counts as; `ignore` makes it NaN"""
    unlisted: Literal["absent", "not stated"] = "absent"
    """what a finding counts as that a row with at least one statement does not list; a row without any statement is always NaN"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """One lesion of an image, or one that is asked for. NaN and empty mean not stated."""

    finding: str
    side: str = ""
    """the patient's left or right"""
    size: float = math.nan
    """0 to 1: twice the square root of the part of the image that it covers, at most 1"""
    severity: float = math.nan
    """0 (hardly visible) to 1"""
    x: float = math.nan
    """centre in parts of the image's width, from the left edge of the image"""
    y: float = math.nan
    """centre in parts of the image's height, from the top"""
    box: tuple[float, float, float, float] | None = None
    """left, top, width, height in parts of the image"""
    mask: str = ""
    """path of its mask"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One image and what is known about it: one row of `metadata.csv`."""

    file_name: str
    """path of the image inside the dataset folder, with forward slashes"""
    study_id: str = ""
    patient_id: str = ""
    site: str = ""
    view: str = ""
    """PA, AP, LATERAL or empty"""
    sex: str = ""
    """M, F or empty"""
    age_years: float = math.nan
    labels: Mapping[str, Stated] = field(default_factory=dict)
    """canonical finding -> statement; `No Finding` PRESENT means stated normal"""
    text: str = ""
    masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """column such as `lung_mask` or `lesion_mask` -> paths inside the dataset folder"""
    lesion_label: str = ""
    split: str = ""
    """train, val, test or empty"""
    origin: str = "real"
    """real or synthetic"""
    extra: Mapping[str, str] = field(default_factory=dict)
    """every other column, unchanged, in file order"""

    @property
    def derived_from_patient(self) -> bool:
        """Whether it was made from a patient's image and shows that patient, as with an inserted lesion; then `origin` is synthetic."""
        return self.extra.get("derived_from_patient") == "yes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """Masks of N images in M classes, stored once each: many images have none."""

    names: tuple[str, ...]
    """class of each column: organs such as lung, then findings"""
    pixels: NDArray[np.uint8]
    """[R, S, S], 255 inside an outline, 128 inside a box that holds the lesion somewhere, 0 outside"""
    index: NDArray[np.int32]
    """[N, M]: which of `pixels`, or `NOT_STATED`, or `NOTHING_THERE`"""

    NOT_STATED: ClassVar[int] = -1
    NOTHING_THERE: ClassVar[int] = -2

    @classmethod
    def join(cls, parts: Sequence[Masks]) -> Masks:
        """The masks of several sets of images in a row. Raises UsageError where their classes differ."""
        if len({part.names for part in parts}) != 1:
            raise UsageError("sets of images with other classes of masks cannot be joined")
        before = np.cumsum([0, *(len(part.pixels) for part in parts)])
        return cls(names=parts[0].names, pixels=np.concatenate([part.pixels for part in parts]),
                   index=np.concatenate([np.where(part.index >= 0, part.index + shift, part.index).astype(np.int32)
                                         for part, shift in zip(parts, before, strict=False)]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """Decoded images of one size together with their table rows, ready for training or measuring."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    """[N, S, S], full range of its integer type, bone bright (MONOCHROME2)"""
    studies: tuple[Study, ...]
    findings: tuple[str, ...]
    labels: NDArray[np.float32]
    """[N, K] in {0, 1, NaN}; columns follow `findings`"""
    digest: str
    """SHA-256 over pixels and labels"""
    masks: Masks | None = None
    lesions: NDArray[np.float32] | None = None
    """[N, K, P]: place, size and severity of each finding, last axis as in `protocols.LESION_PROPERTIES`; NaN where not stated"""

    def __len__(self) -> int:
        return len(self.studies)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> ImageSet:
        """The images at `rows`, in that order; the digest stays that of the whole."""
        index = np.asarray(rows, dtype=np.intp)
        return ImageSet(pixels=self.pixels[index], studies=tuple(self.studies[i] for i in index), findings=self.findings,
                     labels=self.labels[index], digest=self.digest,
                     masks=None if self.masks is None else replace(self.masks, index=self.masks.index[index]),
                     lesions=None if self.lesions is None else self.lesions[index])

    @classmethod
    def join(cls, parts: Sequence[ImageSet], *, digest: str = "") -> ImageSet:
        """Several sets as one, their images in a row; masks and lesions are kept where every part has them.

        The digest is `digest`, that of a whole from which all parts come, or else that of the first part: pixels are not read again, as in
        `take`. Raises UsageError for no part, and for parts of other sizes, numbers of bits, findings or classes of masks.
        """
        if not parts:
            raise UsageError("there is no set of images to join")
        first = parts[0]
        for part in parts[1:]:
            if part.pixels.shape[1:] != first.pixels.shape[1:] or part.pixels.dtype != first.pixels.dtype:
                raise UsageError(f"sets of images of {first.pixels.shape[1:]} {first.pixels.dtype} and {part.pixels.shape[1:]} "
                                 f"{part.pixels.dtype} cannot be joined; load them at one size and number of bits")
            if part.findings != first.findings:
                raise UsageError(f"sets of images with the findings {first.findings} and {part.findings} cannot be joined; load them with "
                                 "the same findings, in the same order")
        masks = [part.masks for part in parts if part.masks is not None]
        lesions = [part.lesions for part in parts if part.lesions is not None]
        return cls(pixels=np.concatenate([part.pixels for part in parts]), studies=tuple(study for part in parts for study in part.studies),
                   findings=first.findings, labels=np.concatenate([part.labels for part in parts]), digest=digest or first.digest,
                   masks=Masks.join(masks) if len(masks) == len(parts) else None,
                   lesions=np.concatenate(lesions) if len(lesions) == len(parts) else None)

    def patients(self) -> NDArray[np.str_]:
        """Patient of each image, [N]."""
        return np.array([study.patient_id for study in self.studies], dtype=np.str_)

    def column(self, finding: str) -> NDArray[np.float32]:
        """Labels of one finding, [N] in {0, 1, NaN}."""
        return self.labels[:, self.findings.index(finding)]


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeSet:
    """Volumes of one size, such as lesions cut from CT, with what was measured of them, ready for training."""

    volumes: NDArray[np.float16]
    """[N, C, S, S, S] in [-1, 1]"""
    measurements: NDArray[np.float32]
    """[N, P] in [0, 1] or NaN"""
    quantities: tuple[str, ...]
    """meaning of the channels"""
    names: tuple[str, ...]
    """meaning of the columns of `measurements`"""
    scans: tuple[str, ...]
    """that each volume was cut from; those of a scan are never split"""
    digest: str

    def __len__(self) -> int:
        return len(self.volumes)

    def patients(self) -> NDArray[np.str_]:
        """Scan of each volume, [N]."""
        return np.array(self.scans, dtype=np.str_)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One measured number with its 95 % interval, sizes and, where it has one, its real-against-real floor.

    Name, direction and unit are those of its metric. Raises UsageError for a metric that is not in `metric_table.METRICS`.
    """

    metric: str
    """an identifier of `metric_table.METRICS`"""
    value: float
    low: float
    high: float
    n_real: int
    n_synthetic: int
    group: str = "all"
    features: str = ""
    """name of the feature space or judge, empty where none was used"""
    floor: float | None = None
    """the same metric between two sets of real images of the same sizes"""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a metric of which no table says what it is."""
        metric_of(self.metric)

    @property
    def better(self) -> Direction:
        """Which way is better."""
        return metric_of(self.metric).better

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dict; absent parts are left out."""
        record = {name: getattr(self, name) for name in SCORE_KEYS}
        return {key: value for key, value in record.items() if value not in ("", None)}


SCORE_KEYS = ("metric", "value", "low", "high", "better", "n_real", "n_synthetic", "group", "features", "floor", "note")
"""of a score in `report.json`, in this order"""
