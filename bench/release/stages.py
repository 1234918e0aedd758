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
    lesions: bool = False
    """whether it also learns from training images with inserted lesions (`lesion_images.py`)"""
    upsamples: bool = False
    """whether it upsamples the images of the stages before it, with which it is packed into one model"""


GUIDE_AT, GUIDE_LENGTH = 0.18, 0.05
"""part of its training that a guide has behind it, and the relative length of its average"""
PACKED_SAMPLE = {"conditioning_noise": 0.0, "super_resolution_steps": 4}
"""settings of sampling that the packed model has beside those of its first stage; chosen by FID and by looking"""
UNTIL_TIME_IS_UP = ("train.steps=1000000000", "train.sample_every=0")
ONLY_TO_START_FROM = ("train.ema_snapshots=0",)
WITH_LESIONS = ('model.parts=["attributes","labels","lesions","mask","text"]', "objective.dropout.lesions=0.5")
"""the open images have too few places of lesions to draw from; what base-64 learns of them is a start"""
STAGES: tuple[Stage, ...] = (
    Stage(name="base-64", recipe="base-64", share=0.2, overrides=(*UNTIL_TIME_IS_UP, *WITH_LESIONS, *ONLY_TO_START_FROM)),
    Stage(name="base-128", recipe="base-128", share=0.3, overrides=UNTIL_TIME_IS_UP, base="base-64"),
    Stage(name="base-128-lesions", recipe="base-128", share=0.25, overrides=UNTIL_TIME_IS_UP, base="base-128", lesions=True),
    Stage(name="base-128-alone", recipe="student-autoguidance", share=0.03, base="base-128-lesions", guide="base-128", part=0.5,
          overrides=(*UNTIL_TIME_IS_UP, "train.ema_halflife_images=2500"), lesions=True),
    Stage(name="super-256-from-128", recipe="super-256-from-128", share=0.22, overrides=UNTIL_TIME_IS_UP, upsamples=True),
)
"""`train_base.py --start MODEL --from STAGE` takes a trained model for the base of STAGE and leaves out the stages before it"""


def seconds_of(stage: Stage, *, hours: float) -> float:
    """The stage's part of the time."""
    return 3600 * hours * stage.share
