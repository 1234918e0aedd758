"""How often a feedback loop goes round, and with what. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from synthorax.bounds import AtLeastOne
from synthorax.errors import UsageError
from synthorax.judges.config import ClassifierConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineLoopConfig:
    """How often the loop goes round, and with what."""

    rounds: AtLeastOne = 2
    """number of rounds; the first copies conditions of training images evenly, each later one by the errors of the classifier before it"""
    num: AtLeastOne = 100
    """images with a finding in each round, all findings together; as many without it are added"""
    trainings: AtLeastOne = 3
    """trainings of the classifier whose answers are averaged"""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """how it is trained; the number of updates does not change with the images"""
    judge: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(augment="classic"))
    """how the screening judge is trained"""
    filters: tuple[str, ...] = ()
    """check of screening, see `synthorax screen`; by default the usual ones"""
    subtypes: tuple[str, ...] = ()
    """column of the table that names subtypes of a finding"""
    seed: int = 0
    """every random number follows from it"""

    def __post_init__(self) -> None:
        """Refuse what makes no loop."""
        if min(self.rounds, self.num, self.trainings) < 1:
            raise UsageError(f"{self.rounds} rounds of {self.num} images and {self.trainings} trainings: at least 1 of each")
