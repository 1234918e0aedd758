"""One row of a plan: everything that is asked of one image, as table cells, as JSON, and as an image that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synthorax.data.lesions import lesion_cells, with_lesions
from synthorax.data.vocabulary import format_findings
from synthorax.protocols import UNCERTAIN
from synthorax.types import Lesion, Stated, Study

NUMBERS = {Stated.PRESENT: 1, Stated.ABSENT: 0, Stated.UNCERTAIN: UNCERTAIN}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One image to be made: its seed and its condition. What is empty is not asked for.

    A lesion without a label of its finding also states that label present.
    """

    seed: int
    labels: Mapping[str, Stated] = field(default_factory=dict)
    view: str = ""
    sex: str = ""
    age_years: float = math.nan
    site: str = ""
    text: str = ""
    """a description; NOT and AND in capitals take parts of it away and join them"""
    lesions: tuple[Lesion, ...] = ()
    masks: Mapping[str, str] = field(default_factory=dict)
    """organ such as lung -> path of its mask"""
    method: str = ""
    """how the image is made: generate, which is also what nothing means, or insert"""
    pair_of: str = ""
    """of an image that a lesion is inserted into: its file in the data set"""
    number: int | None = field(default=None, compare=False)
    """row of the table that it was read from, as a spreadsheet counts"""

    def __post_init__(self) -> None:
        """Complete the labels by those of the lesions."""
        implied = {lesion.finding: Stated.PRESENT for lesion in self.lesions if lesion.finding not in self.labels}
        if implied:
            object.__setattr__(self, "labels", {**self.labels, **implied})

    def parts(self) -> tuple[str, ...]:
        """Parts of the condition, by their names in `protocols.PARTS`, that the row states; a lesion's own label is no part by itself."""
        described = {lesion.finding for lesion in self.lesions if _properties(lesion) or lesion.mask or lesion.box is not None}
        stated = {
            "attributes": bool(self.view or self.sex or self.site) or not math.isnan(self.age_years),
            "labels": any(name not in described or stated is not Stated.PRESENT for name, stated in self.labels.items()),
            "lesions": any(_properties(lesion) for lesion in self.lesions),
            "mask": bool(self.masks) or any(lesion.mask or lesion.box is not None for lesion in self.lesions),
            "text": bool(self.text.strip())}
        return tuple(part for part, said in stated.items() if said)

    def cells(self) -> dict[str, str]:
        """The row as table cells, those of a dataset folder."""
        age = "" if math.isnan(self.age_years) else f"{self.age_years:g}"
        return {"seed": str(self.seed), "findings": format_findings(self.labels), "view": self.view, "sex": self.sex, "age_years": age,
                "site": self.site, "text": self.text, **lesion_cells(self.lesions),
                **{f"{organ}_mask": path for organ, path in self.masks.items()},
                **({"method": self.method, "pair_of": self.pair_of} if self.method else {})}

    def requested(self) -> dict[str, Any]:
        """The condition as JSON-ready dict: what the `condition` column of a synthetic image holds."""
        cells = self.cells()
        request: dict[str, Any] = {part: cells[part] for part in ("view", "sex", "age_years", "site", "text") if cells[part]}
        if self.labels:
            request["labels"] = {name: NUMBERS[stated] for name, stated in self.labels.items()}
        if self.lesions:
            request["lesions"] = [_stated(lesion) for lesion in self.lesions]
        if self.masks:
            request["masks"] = dict(self.masks)
        return request

    def with_paths(self, change: Callable[[str], str]) -> PlanRow:
        """The row with each path of a mask put through `change`."""
        lesions = tuple(replace(lesion, mask=change(lesion.mask)) if lesion.mask else lesion for lesion in self.lesions)
        return replace(self, lesions=lesions, masks={organ: change(path) for organ, path in self.masks.items()})

    def study(self, file_name: str) -> Study:
        """The row as an image that shows what was asked for."""
        image = Study(file_name=file_name, labels=dict(self.labels), view=self.view, sex=self.sex, age_years=self.age_years, site=self.site,
                     text=self.text, masks={f"{organ}_mask": (path,) for organ, path in self.masks.items()}, origin="synthetic")
        return with_lesions(image, self.lesions)


def _properties(lesion: Lesion) -> bool:
    return bool(lesion.side) or not all(math.isnan(value) for value in (lesion.size, lesion.severity, lesion.x, lesion.y))


def _stated(lesion: Lesion) -> dict[str, Any]:
    values = {name: getattr(lesion, name) for name in ("finding", "side", "size", "severity", "x", "y", "box", "mask")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
            if value not in ("", None) and not (isinstance(value, float) and math.isnan(value))}
