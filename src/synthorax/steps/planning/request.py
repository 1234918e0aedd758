"""One request in the words of the command line, as a plan: findings, a lesion's place, masks, boxes and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from synthorax.data.masks import is_organ
from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError, UsageError
from synthorax.protocols import ModelSpec
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Lesion, Stated

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What every image of a generation is to show. What is empty or NaN is not asked for."""

    finding: Sequence[str] = ()
    """findings to show"""
    without: Sequence[str] = ()
    """findings to be absent"""
    uncertain: Sequence[str] = ()
    """findings of which a reader would not be sure"""
    view: str = ""
    sex: str = ""
    age: float = math.nan
    """in years"""
    site: str = ""
    text: str = ""
    mask: Sequence[tuple[str, str | Path]] = ()
    """class (organ or finding; empty for the one finding) and path of each mask"""
    box: Sequence[tuple[str, Box]] = ()
    """finding (empty for the one finding) and left, top, width, height of each box, in parts of the image"""
    side: str = ""
    """of the one finding: the patient's left or right"""
    size: float = math.nan
    """of the one finding, 0 to 1"""
    severity: float = math.nan
    """of the one finding, 0 to 1"""
    at: tuple[float, float] | None = None
    """centre of the one finding in parts of the image's width and height"""

    def stated(self) -> list[str]:
        """Names of the fields that ask for anything."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return [name for name, value in values.items()
                if value is not None and (not math.isnan(value) if isinstance(value, int | float) else len(value) > 0)]

    def row(self, spec: ModelSpec, *, seed: int = 0) -> PlanRow:
        """The request as a row of a plan, in the names of a model. Raises UsageError, or InputError for a finding that nobody knows."""
        labels: dict[str, Stated] = {}
        for names, stated in ((self.finding, Stated.PRESENT), (self.without, Stated.ABSENT), (self.uncertain, Stated.UNCERTAIN)):
            for name in names:
                finding = canonical(name, allow=spec.findings)
                if labels.setdefault(finding, stated) is not stated:
                    raise UsageError(f"'{finding}' is asked for as {labels[finding].value} and as {stated.value}; leave out one of the two")
        masks: dict[str, str] = {}
        lesions: list[Lesion] = []
        for name, path in self.mask:
            place = str(Path(path).resolve())
            kind = _mask_class(name, spec) if name else self._one_finding("a mask without a class", labels)
            if not is_organ(kind):
                lesions.append(Lesion(finding=kind, mask=place))
            elif masks.setdefault(kind, place) != place:
                raise UsageError(f"two masks of '{kind}'; join them in one image")
        for name, box in self.box:
            finding = canonical(name, allow=spec.findings) if name else self._one_finding("a box without a finding", labels)
            lesions.append(Lesion(finding=finding, box=box))
        return PlanRow(seed=seed, labels=labels, view=self.view.upper(), sex=self.sex.upper(), age_years=self.age, site=self.site,
                       text=self.text, lesions=self._described(lesions, labels), masks=masks)

    def _described(self, lesions: list[Lesion], labels: dict[str, Stated]) -> tuple[Lesion, ...]:
        """The lesions, with side, size, severity and place of the one finding."""
        described = [name for name in ("side", "size", "severity", "at") if name in self.stated()]
        if not described:
            return tuple(lesions)
        finding = self._one_finding(described[0], labels)
        own = [lesion for lesion in lesions if lesion.finding == finding] or [Lesion(finding=finding)]
        if len(own) > 1:
            raise UsageError(f"{described[0]} could belong to {len(own)} lesions of '{finding}'; write them in a plan.csv")
        x, y = self.at or (math.nan, math.nan)
        whole = replace(own[0], side=self.side.lower(), size=self.size, severity=self.severity, x=x, y=y)
        return (whole, *(lesion for lesion in lesions if lesion.finding != finding))

    def _one_finding(self, what: str, labels: dict[str, Stated]) -> str:
        shown = [name for name, stated in labels.items() if stated is Stated.PRESENT]
        if len(shown) != 1:
            raise UsageError(f"{what} needs exactly one finding to belong to, and {len(shown)} are asked for; several go into a plan.csv")
        return shown[0]


def _mask_class(name: str, spec: ModelSpec) -> str:
    """A class as the model calls it; a name that is no finding is taken for an organ, which the check of the plan then knows or not."""
    organs = {known.casefold(): known for known in spec.masks if is_organ(known)}
    if name.casefold() in organs:
        return organs[name.casefold()]
    try:
        return canonical(name, allow=spec.findings)
    except InputError:
        return name.casefold()
