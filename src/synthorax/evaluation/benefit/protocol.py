"""The protocol of `benefit`, fixed before any image is seen: which arms train on what, how often, and what counts as a gain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from synthorax.bounds import AtLeastOne, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.judges.config import SCREENS, ClassifierConfig

PLAIN, CONVENTIONAL, DECLARED = "real", ("classic", "oversampling", "class-weighted loss"), "real+synthetic"
LEVEL = 0.05
MIN_TRAININGS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What one arm trains on; classifier, number of updates, batch size, initial weights and seeds are those of every arm."""

    real: bool = True
    ratio: float | None = 0.0
    """synthetic images for each real one, at most; None: all"""
    augment: Literal["none", "classic"] = "none"
    oversample: bool = False
    class_weighted: bool = False
    """both classes of a finding weigh the same in the loss"""
    first_synthetic: bool = False
    """the first half of the updates on the synthetic images alone, the second half on the real ones alone"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenefitConfig:
    """The protocol; `docs/explanation/benefit.md` gives the reasons."""

    seeds: AtLeastOne = 5
    """trainings of each arm; with cross-validation, of each arm in each fold"""
    ratio: float | None = None
    """synthetic images for each real training image in the arm that is tested, at most; None: all"""
    sweep: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """further ratios, as far as there are images, reported as arms of their own without a verdict"""
    class_weighted: bool = True
    """also train with a loss in which both classes weigh the same"""
    pretraining: bool = True
    """also train on the synthetic images first and then on the real ones"""
    synthetic_only: bool = True
    """also train on the synthetic images alone"""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """its `augment` is set by the arm"""
    folds: WholeNotNegative = 0
    """folds of a cross-validation over held-out patients, at least 3, for rare findings; 0: test on the test split"""
    repeats: AtLeastOne = 1
    """number of cross-validations, each with other folds"""
    positives: tuple[int, ...] = ()
    """numbers of real positive images of the learning curve; empty: no curve"""
    leave_site_out: bool = False
    """also train without each site in turn, and test on the held-out images of that site"""
    gallery: bool = False
    """also show the worst misclassifications; they are images of patients, and reports travel"""
    resamples: int = 2000
    """draws of the patient bootstrap"""
    min_patients: int = 5
    """fewest test patients with, and without, a finding for which it is tested"""
    min_gain: float = 0.02
    """gain in AUROC below which the gate says that a difference, even a certain one, is too small to matter"""
    probe: bool = True
    """also measure how easily a classifier tells real from synthetic"""
    seed: int = 0
    """first seed; every random number follows from it"""

    def __post_init__(self) -> None:
        """Refuse a protocol that cannot answer the question."""
        if self.seeds < 1 or self.repeats < 1 or self.seeds * self.repeats < MIN_TRAININGS:
            raise UsageError(f"benefit needs at least {MIN_TRAININGS} seeds, not {self.seeds}"
                             + (f" in {self.repeats} repeats" if self.folds else "") + ": one training may be luck")
        if any(not ratio > 0 for ratio in (*self.sweep, 1.0 if self.ratio is None else self.ratio)):
            raise UsageError("ratio and sweep must be above 0; the arm 'real' is ratio 0")
        if self.folds and self.folds < 3:
            raise UsageError(f"cross-validation needs at least 3 folds, not {self.folds}: one is tested, one sets the threshold, and "
                             "one trains")
        if self.repeats > 1 and not self.folds:
            raise UsageError("repeats are those of a cross-validation; give folds too, or more seeds instead")
        if self.positives and self.folds:
            raise UsageError("the learning curve is measured on the test split; leave out positives or folds")
        if self.leave_site_out and self.folds:
            raise UsageError("sites are left out of the training split; leave out leave_site_out or folds")
        if any(count < 1 for count in self.positives) or len(set(self.positives)) < len(self.positives):
            raise UsageError("positives must be different numbers of images above 0, such as 10 20 50 100")
        if self.classifier.updates < 2 and self.pretraining and not self.is_screen:
            raise UsageError("pretraining needs at least 2 updates, one on synthetic and one on real images")
        if self.min_patients < 2 or self.resamples < 100:
            raise UsageError("min_patients must be at least 2 and resamples at least 100")

    @property
    def is_screen(self) -> bool:
        """Whether the classifier gives a quick hint only, which passes no gate."""
        return self.classifier.network in SCREENS

    @property
    def runs(self) -> int:
        """Scores that every image gets from each arm."""
        return self.seeds * self.repeats

    def brief(self) -> BenefitConfig:
        """Three trainings of the arms that matter most: for a proof within minutes, beside a training."""
        return replace(self, seeds=MIN_TRAININGS, sweep=(), class_weighted=False, pretraining=False)

    def arms(self) -> dict[str, Arm]:
        """Arm by name, in the order of the report."""
        arms = {PLAIN: Arm(), "classic": Arm(augment="classic"), "oversampling": Arm(oversample=True)}
        if self.class_weighted:
            arms["class-weighted loss"] = Arm(class_weighted=True)
        arms |= {f"{DECLARED}, ratio {ratio:g}": Arm(ratio=ratio) for ratio in self.sweep}
        arms[DECLARED] = Arm(ratio=self.ratio)
        if self.pretraining and not self.is_screen:  # a convex fit forgets where it started
            arms["synthetic, then real"] = Arm(ratio=self.ratio, first_synthetic=True)
        if self.synthetic_only:
            arms["synthetic only"] = Arm(real=False, ratio=None)
        return arms

    def what_trains(self) -> dict[str, Any]:
        """The part of the protocol that a training depends on, JSON-ready; the rest may change between a stop and going on."""
        kept = ("seeds", "ratio", "sweep", "class_weighted", "pretraining", "synthetic_only", "folds", "repeats", "positives",
                "min_patients", "seed")
        parts = {name: getattr(self, name) for name in kept}
        own = self.classifier
        return {**{name: list(part) if isinstance(part, tuple) else part for name, part in parts.items()},
                "classifier": {name: getattr(own, name) for name in type(own).__dataclass_fields__}}
