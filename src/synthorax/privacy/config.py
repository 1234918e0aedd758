"""How thorough the audit is. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from synthorax.bounds import AtLeastOne
from synthorax.judges.config import SamePatientConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """How thorough the audit is and what its gate tolerates."""

    false_alarm_rate: float = 0.01
    """part of real images of other patients that may be called copies, or matches of a training patient"""
    planted: AtLeastOne = 100
    """copies planted in each way, to see whether they are caught; at most as many as there are training images"""
    membership_margin: float = 0.05
    """how far above one half the lower end of a membership AUROC may lie"""
    judge: SamePatientConfig = field(default_factory=SamePatientConfig)
    """the same-patient judge"""
    seed: int = 0
    """all random numbers follow from it"""
