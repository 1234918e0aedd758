"""The trainings on the way to the model that ships, in order; the last one is what ships. A further stage is one line more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training."""

    name: str
    recipe: str
    share: float
    """of the hours; the shares of all stages add up to 1"""
    overrides: tuple[str, ...] = ()
    base: str = ""
    """stage from whose weights it starts"""
    guide: str = ""
    """stage whose model of long before, `GUIDE_AT` of its way, is packed as weaker model beside `base`"""
    part: float = 1.0
    """how far from the weights of `base` to its own the model lies that goes on from here"""
    upsamples: bool = False
    """whether it upsamples the images of the stages before it, with which it is packed into one model"""


GUIDE_AT, GUIDE_LENGTH = 0.18, 0.05
"""part of its training that a guide has behind it, and the relative length of its average"""
PACKED_SAMPLE = {"conditioning_noise": 0.0, "super_resolution_steps": 5}
"""settings of sampling that the packed model has beside those of its first stage; chosen by FID and by looking"""
UNTIL_TIME_IS_UP = ("train.steps=1000000000", "train.sample_every=0")
WITH_LESIONS = ('model.parts=["attributes","labels","lesions","mask","text"]', "objective.dropout.lesions=0.5")
LABELS_KEPT_MORE = ("objective.dropout.labels=0.1", "objective.statement_dropout=0.1", "train.learning_rate=3e-4", "train.cooldown=0.5")
"""the first training is conditioned on places of lesions too, of which the open images have too few to draw from: the second leaves them
out
"""
STAGES: tuple[Stage, ...] = (
    Stage(name="base-64", recipe="base-64", share=0.33, overrides=(*UNTIL_TIME_IS_UP, *WITH_LESIONS)),
    Stage(name="base-64-labels", recipe="base-64", share=0.25, overrides=(*UNTIL_TIME_IS_UP, *LABELS_KEPT_MORE), base="base-64"),
    Stage(name="base-64-alone", recipe="student-autoguidance", share=0.035, base="base-64-labels", guide="base-64",
          part=0.5, overrides=(*UNTIL_TIME_IS_UP, "train.ema_halflife_images=2500")),
    Stage(name="super-256", recipe="super-256", share=0.385, overrides=UNTIL_TIME_IS_UP, upsamples=True),
)


def seconds_of(stage: Stage, *, hours: float) -> float:
    """The stage's part of the time."""
    return 3600 * hours * stage.share
