"""Whether a training was long enough: by its loss, by how often it saw its images, and by whether what it makes looks like radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.data.dataset import Dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.files import json_line
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.screening.screen import common_size, realism_check

MOST_UNREALISTIC, MANY_UNREALISTIC, FEW_UNREALISTIC = 0.5, 0.2, 0.05
"""parts of the synthetic images that do not look like radiographs: more than the first, and nothing is made of them; more than the second,
and the training fell short; less than the third, and it did not, whatever its loss does"""
MIN_PASSES = {"scratch": 10.0, "base": 2.0}
"""how often a training should see each of its images, from fresh weights and from those of a base"""
CLEAR_FALL = 0.05
"""part by which a loss still falls from one quarter of the training to the next, where it clearly does"""
MIN_LOG_LINES = 4
"""lines of the log in a quarter, below which nothing is said of it"""
NOT_LOSSES = ("step", "images", "elapsed_seconds", "images_per_second")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSigns:
    """What says whether a training was long enough."""

    steps: int
    images: int
    """images seen"""
    passes: float
    """how often each training image was seen"""
    fall: float | None
    """part by which the loss still fell, before the learning rate did; None where nothing can be said"""
    from_base: bool
    unrealistic: float
    """part of the synthetic images that do not look like radiographs"""
    num_images: int

    @property
    def mostly_unrealistic(self) -> bool:
        """Whether nothing can be made of the images."""
        return self.unrealistic > MOST_UNREALISTIC

    @property
    def few_passes(self) -> bool:
        """Whether the training has hardly seen its images."""
        return self.passes < MIN_PASSES["base" if self.from_base else "scratch"]

    @property
    def still_falling(self) -> bool:
        """Whether the loss clearly fell to the end."""
        return self.fall is not None and self.fall > CLEAR_FALL

    @property
    def fell_short(self) -> bool:
        """Whether the training was too short, or the generator too small, for what was asked of it."""
        indirect = self.few_passes or self.still_falling
        return self.unrealistic > MANY_UNREALISTIC or (indirect and self.unrealistic > FEW_UNREALISTIC)

    def __str__(self) -> str:
        """One sentence on what fell short, and what to do."""
        bad = round(self.unrealistic * self.num_images)
        reasons = [f"{bad} of {self.num_images} synthetic images do not look like radiographs"]
        reasons += [f"each training image was seen only {self.passes:.2g} times"] if self.few_passes else []
        if self.still_falling:
            reasons.append(f"its loss was still falling, by {self.fall:.0%} in the last quarter before the cool-down")
        signs = ", and ".join([", ".join(reasons[:-1]), reasons[-1]]) if len(reasons) > 1 else reasons[0]
        return (f"The training of the generator fell short ({self.steps:,} steps, {self.images:,} images seen): {signs}. Train for longer "
                "(--budget or --budget-images), start from a larger base (--base), or give more images, into a new --out.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"steps": self.steps, "images_seen": self.images, "passes": round(self.passes, 3), "loss_still_falls_by": self.fall,
                "unrealistic": round(self.unrealistic, 4), "fell_short": self.fell_short}


def training_signs(trained: TrainedModel, synthetic: Dataset, prepared: Prepared, *, log: Path | None, cooldown: float) -> TrainingSigns:
    """Look at a finished training and at what it made.

    `log` is its metrics.jsonl, whose loss falls as it learns, or None where it does not, as that of adversaries; the learning rate falls
    over the last part `cooldown` of the training.
    """
    facts = trained.facts
    images = int(facts["images_seen"])
    return TrainingSigns(steps=int(facts["steps"]), images=images, passes=images / max(1, int(facts["data"]["images"])),
                         fall=None if log is None else loss_fall(log, cooldown=cooldown),
                         from_base="started_from" in facts, unrealistic=unrealistic_part(synthetic, prepared), num_images=len(synthetic))


def unrealistic_part(synthetic: Dataset, prepared: Prepared) -> float:
    """Part of synthetic images that lie farther from the real ones than those of different patients from one another, as in screening."""
    size = common_size(synthetic, prepared)
    check = realism_check(prepared, size=size)
    return float(check.check(load_images(synthetic, size=size, findings=prepared.findings).pixels).unrealistic.mean())


def loss_fall(log: Path, *, cooldown: float) -> float | None:
    """Part by which the loss falls from the third quarter to the last, before the cool-down, where it clearly falls.

    0 where it does not clearly (within two standard errors), None where the log has too few lines to say. `log` is metrics.jsonl.
    """
    losses = _losses(log)
    losses = losses[: round(len(losses) * (1 - cooldown))]
    quarter = len(losses) // 4
    if quarter < MIN_LOG_LINES:
        return None
    before, last = np.array(losses[-2 * quarter : -quarter]), np.array(losses[-quarter:])
    fall = float(before.mean() - last.mean())
    error = float(np.sqrt(before.var(ddof=1) / quarter + last.var(ddof=1) / quarter))
    return round(fall / max(abs(float(before.mean())), 1e-12), 4) if fall > 2 * error else 0.0


def _losses(log: Path) -> Sequence[float]:
    """The sum of all loss terms, line by line."""
    lines = map(json_line, log.read_text(encoding="utf-8", errors="replace").splitlines())
    return [sum(value for name, value in line.items() if name not in NOT_LOSSES) for line in lines if "images_per_second" in line]
