"""What screening checks. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

from dataclasses import dataclass

from synthorax.judges.config import ClassifierConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenConfig:
    """Which checks a synthetic image must pass, and how their judges are trained."""

    findings: tuple[str, ...] = ()
    """check only this finding; by default those that the images were asked to show"""
    filters: tuple[str, ...] = ()
    """check to run: copy, realism, duplicate and finding by default; also view, distance, outlier, entropy, anatomy, or all"""
    classifier: ClassifierConfig | None = None
    """how the judges are trained; None: as usual"""
