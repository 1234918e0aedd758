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
    enlarges: bool = False
    """whether it enlarges the films of the stages before it, with which it is packed into one model"""


UNTIL_TIME_IS_UP = ("train.steps=1000000000", "train.sample_every=0")
STAGES: tuple[Stage, ...] = (
    Stage(name="base-64", recipe="base-64", share=0.58, overrides=UNTIL_TIME_IS_UP),
    Stage(name="super-256", recipe="super-256", share=0.42, overrides=UNTIL_TIME_IS_UP, enlarges=True),
)


def seconds_of(stage: Stage, *, hours: float) -> float:
    """The stage's part of the time."""
    return 3600 * hours * stage.share
