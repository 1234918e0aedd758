"""What a model has seen in training, small enough to travel with it, and which requests go beyond that (extrapolation)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.attributes import MAX_AGE_YEARS
from synthorax.data.language import labels_of, parse_text
from synthorax.data.vocabulary import NO_FINDING
from synthorax.prompts import split_prompt
from synthorax.protocols import LESION_PROPERTIES, UNCERTAIN
from synthorax.steps.planning.row import PlanRow
from synthorax.types import ImageSet, Lesion, Masks, Stated

MIN_IMAGES_SUPPORTING = 3
"""fewer training images than this that show something count as never having seen it"""
QUANTILES = (0.05, 0.95)
"""ends of a range of training values, before its margin"""
ANY = ""
"""the finding under which all images are counted"""

Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """Counts of training images, and ranges of what they state; each count is of images, by finding and then by value."""

    images: int
    labels: Counts = field(default_factory=dict)
    """finding -> present, absent, uncertain"""
    together: Counts = field(default_factory=dict)
    """finding -> another one of the same image, both present"""
    views: Counts = field(default_factory=dict)
    """finding, or `ANY`, -> view"""
    sexes: Counts = field(default_factory=dict)
    """finding, or `ANY`, -> sex"""
    sites: Counts = field(default_factory=dict)
    """finding, or `ANY`, -> site"""
    sides: Counts = field(default_factory=dict)
    """finding -> the patient's left or right"""
    masks: Counts = field(default_factory=dict)
    """mask class -> outline or box"""
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """finding -> size, severity, x, y, and `ANY` -> age_years: lowest and highest value that is not unusual"""

    @staticmethod
    def of(images: ImageSet) -> Support:
        """Count what the images show and state; labels are those that training sees, after the label policy."""
        shows = {name: images.column(name) == 1 for name in images.findings if name != NO_FINDING}
        groups = {ANY: np.ones(len(images), dtype=bool)} | shows

        def tallies(column: str) -> dict[str, dict[str, int]]:
            values = np.array([getattr(study, column) for study in images.studies], dtype=np.str_)
            return {group: _tally(values[rows]) for group, rows in groups.items()}

        ages = np.array([study.age_years for study in images.studies], dtype=np.float64)
        lesions = _lesion_columns(images)
        ranges = {ANY: {"age_years": _range(ages, top=MAX_AGE_YEARS)}} | {
            finding: {name: _range(values, top=1) for name, values in properties.items() if name != "left"}
            for finding, properties in lesions.items()}
        return Support(
            images=len(images),
            labels={name: {"present": int((images.column(name) == 1).sum()), "absent": int((images.column(name) == 0).sum()),
                           "uncertain": int((images.column(name) == UNCERTAIN).sum())} for name in shows},
            together={one: {other: both for other in shows if other != one and (both := int((shows[one] & shows[other]).sum()))}
                      for one in shows},
            views=tallies("view"), sexes=tallies("sex"), sites=tallies("site"),
            sides={finding: {"left": int((properties["left"] == 1).sum()), "right": int((properties["left"] == 0).sum())}
                   for finding, properties in lesions.items()},
            masks={} if images.masks is None else _mask_kinds(images.masks),
            ranges={group: {name: ends for name, ends in named.items() if ends is not None} for group, named in ranges.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Support:
        """A support from what `to_dict` made of it, also after a way through JSON."""
        ranges = {group: {name: (float(low), float(high)) for name, (low, high) in named.items()}
                  for group, named in record["ranges"].items()}
        return Support(**{**record, "ranges": ranges})

    def beyond(self, row: PlanRow) -> tuple[str, ...]:
        """What of a request fewer than `MIN_IMAGES_SUPPORTING` training images show, or lies outside their range, in words; or nothing.

        >>> seen = Support(images=20, labels={"Mass": {"present": 9}, "Hernia": {"present": 8}})
        >>> seen.beyond(PlanRow(seed=0, labels={"Mass": Stated.PRESENT, "Hernia": Stated.PRESENT}))
        ('Mass with Hernia: never seen together in training',)
        """
        requested = {name: stated for name, stated in row.labels.items() if name != NO_FINDING}
        requested |= {name: Stated.PRESENT for name in _named_in(row.text) if name in self.labels and name not in requested}
        reasons = [f"{name} {stated.value}: {self._images_with(self.labels, name, stated.value)}" for name, stated in requested.items()
                   if self._rare(self.labels, name, stated.value)]
        known = [name for name, stated in requested.items() if stated is Stated.PRESENT and not self._rare(self.labels, name, "present")]
        for one, other in combinations(known, 2):
            if self._rare(self.together, one, other):
                reasons.append(f"{one} with {other}: {self._images_with(self.together, one, other, seen='seen together')}")
        for kind, table, value in (("view", self.views, row.view), ("sex", self.sexes, row.sex), ("site", self.sites, row.site)):
            if value and self._rare(table, ANY, value):
                reasons.append(f"{kind} {value}: {self._images_with(table, ANY, value)}")
            elif value:
                reasons += [f"{name} with {kind} {value}: {self._images_with(table, name, value)}" for name in known
                            if self._rare(table, name, value)]
        reasons += self._outside(ANY, "age_years", row.age_years)
        for lesion in row.lesions:
            if lesion.finding in known:
                reasons += self._lesion(lesion)
        reasons += [f"{organ} mask: {self._images_with(self.masks, organ, 'outline')}" for organ in row.masks
                    if self._rare(self.masks, organ, "outline")]
        return tuple(dict.fromkeys(reasons))

    def _lesion(self, lesion: Lesion) -> list[str]:
        finding = lesion.finding
        reasons = []
        if lesion.side and self._rare(self.sides, finding, lesion.side):
            reasons.append(f"{finding} on the {lesion.side}: {self._images_with(self.sides, finding, lesion.side)}")
        for name in ("size", "severity", "x", "y"):
            reasons += self._outside(finding, name, getattr(lesion, name))
        kind = "outline" if lesion.mask else "box" if lesion.box is not None else ""
        if kind and self._rare(self.masks, finding, kind):
            article = "an" if kind == "outline" else "a"
            reasons.append(f"{finding} with {article} {kind}: {self._images_with(self.masks, finding, kind)}")
        return reasons

    def _outside(self, group: str, name: str, value: float) -> list[str]:
        if math.isnan(value):
            return []
        what = "age" if group == ANY else f"{group} {name}"
        if name not in self.ranges.get(group, {}):
            return [f"{what} {value:.3g}: stated in fewer than {MIN_IMAGES_SUPPORTING} training images"]
        low, high = self.ranges[group][name]
        if low <= value <= high:
            return []
        ends = f"{low:.0f} to {high:.0f} years" if group == ANY else f"{low:.2f} to {high:.2f}"
        return [f"{what} {value:.3g}: training images are {ends}"]

    @staticmethod
    def _rare(table: Counts, group: str, value: str) -> bool:
        return table.get(group, {}).get(value, 0) < MIN_IMAGES_SUPPORTING

    @staticmethod
    def _images_with(table: Counts, group: str, value: str, *, seen: str = "seen") -> str:
        images = table.get(group, {}).get(value, 0)
        return f"{seen} in {images} training image{'s' if images > 1 else ''} only" if images else f"never {seen} in training"


def _named_in(text: str) -> list[str]:
    """Findings that a text asks to show."""
    labels = labels_of(statement for part, weight in split_prompt(text) if weight > 0 for statement in parse_text(part))
    return [name for name, stated in labels.items() if stated is Stated.PRESENT]


def _tally(values: NDArray[np.str_]) -> dict[str, int]:
    names, counts = np.unique(values[values != ""], return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _lesion_columns(images: ImageSet) -> dict[str, dict[str, NDArray[np.float64]]]:
    """finding -> property -> its stated values; empty where no lesion is described."""
    if images.lesions is None:
        return {}
    columns = {finding: dict(zip(LESION_PROPERTIES, images.lesions[:, number].astype(np.float64).T, strict=True))
               for number, finding in enumerate(images.findings)}
    return {finding: {name: values[~np.isnan(values)] for name, values in properties.items()} for finding, properties in columns.items()
            if any((~np.isnan(values)).any() for values in properties.values())}


def _mask_kinds(masks: Masks) -> dict[str, dict[str, int]]:
    """Mask class -> images with an outline of it, and with no more than a box."""
    boxed = masks.pixels.reshape(len(masks.pixels), -1).max(axis=1, initial=0) == 128  # outlines have 255, tiny ones less than 128
    kinds = {}
    for name, index in zip(masks.names, masks.index.T, strict=True):
        stored = index[index >= 0]
        kinds[name] = {"outline": int((~boxed[stored]).sum()), "box": int(boxed[stored].sum())}
    return kinds


def _range(values: NDArray[np.float64], *, top: float) -> tuple[float, float] | None:
    """The 5th to the 95th percentile with a margin, within 0 and `top`; None for fewer than `MIN_IMAGES_SUPPORTING` values.

    The margin is a tenth of the width, so that an even spread lies inside whole; wider by 1/sqrt(N) of the width, because the
    quantiles of few images are uncertain; and never below a hundredth of `top`.
    """
    values = values[~np.isnan(values)]
    if len(values) < MIN_IMAGES_SUPPORTING:
        return None
    low, high = (float(end) for end in np.quantile(values, QUANTILES))
    margin = (high - low) * (0.1 + 1 / math.sqrt(len(values))) + 0.01 * top
    return max(low - margin, 0.0), min(high + margin, float(top))
