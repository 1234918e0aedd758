"""What was rejected: counts and the commonest reasons where the user looks, and a stop where too much was."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthorax.config import read_record
from synthorax.errors import InputError

MAX_REJECTED_SHARE = 0.10
"""part of the images; more are no accident, so the verbs stop unless this is allowed"""
MIN_REJECTED_TO_STOP = 5
"""fewer never stop a verb, so that one odd file does not stop a small set"""
TABLE_NAME = "rejects.csv"
FACT = "rejected"
"""where `dataset.json` and `prepared.json` keep it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """How many images of a source were rejected and why; `str` of it is one line for people."""

    images: int = 0
    of: int = 0
    """images that were found, good ones and rejected ones"""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """why images were rejected, the commonest reason first"""
    others: Mapping[str, int] = field(default_factory=dict)
    """what else `rejects.csv` lists, by which no image was lost, such as rows of a table without an image"""
    table: Path | None = None
    """`rejects.csv`, which has every one with its reason"""

    @property
    def too_many(self) -> bool:
        """Whether a verb stops unless rejects are allowed."""
        return self.images >= MIN_REJECTED_TO_STOP and self.images > MAX_REJECTED_SHARE * self.of

    def __str__(self) -> str:
        if not self.images and not self.others:
            return "none"
        summary = f"{self.images} of {self.of} images{_in_words(self.reasons)}"
        also = f"; also listed: {sum(self.others.values())}{_in_words(self.others)}" if self.others else ""
        return f"{summary}{also}; see {self.table}" if self.table is not None else summary + also

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the place of the table."""
        return self.to_facts() | {"table": None if self.table is None else str(self.table)}

    def to_facts(self) -> dict[str, Any]:
        """What `dataset.json` and `prepared.json` keep under `FACT`."""
        return {"images": self.images, "of": self.of, "reasons": dict(self.reasons), "others": dict(self.others)}

    @classmethod
    def of_folder(cls, folder: Path, facts: Mapping[str, Any]) -> Rejected:
        """What a dataset folder or a prepared folder keeps about its making; nothing for one that keeps nothing."""
        kept = facts.get(FACT)
        if not isinstance(kept, dict):
            return cls()
        counts = {name: kept[name] for name in ("images", "of", "reasons", "others") if name in kept}
        stated = read_record(cls, counts, what=FACT, where=folder, remedy="make the folder again")
        return replace(stated, table=folder / TABLE_NAME)


def count_reasons(lost: Iterable[str], others: Iterable[str] = (), *, accepted: int) -> Rejected:
    """Count reasons: `lost` are those of rejected images, `others` those of lines by which no image was lost.

    >>> str(count_reasons(["is empty", "is empty", "has 9 x 9 pixels; at most 4 are read"], accepted=7))
    '3 of 10 images (2: is empty; 1: has … pixels)'
    """
    reasons, more = (Counter(_kind(reason) for reason in part) for part in (lost, others))
    return Rejected(images=reasons.total(), of=reasons.total() + accepted, reasons=dict(reasons.most_common()),
                    others=dict(more.most_common()))


def stop_if_too_many(rejected: Rejected, *, at: Path, allowed: bool) -> None:
    """Raise `InputError` where more than a tenth of the images were rejected, unless that is allowed. What was accepted is kept in `at`."""
    if rejected.too_many and not allowed:
        raise InputError(f"too many images were rejected: {rejected}", file=at,
                         remedy=f"correct them and choose another --out, or go on with the other {rejected.of - rejected.images} "
                                "by --allow-rejects")


def _in_words(reasons: Mapping[str, int], most: int = 3) -> str:
    first = [f"{count}: {reason}" for reason, count in list(reasons.items())[:most]]
    rest = sum(list(reasons.values())[most:])
    return f" ({'; '.join([*first, *([f'{rest}: other reasons'] if rest else [])])})" if first else ""


def _kind(reason: str) -> str:
    """A reason without what differs from image to image: names, sizes, rows and what a library said."""
    text = re.sub(r"'[^']*'|\d[\d,]* x \d[\d,]*", "…", reason.partition(";")[0])
    return re.sub(r" in row \d+", "", re.sub(r"\s*\([^)]*\)?", "", text)).strip()
