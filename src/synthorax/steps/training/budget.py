"""What a budget of time can do on this machine: measured on real training steps, images and judges before the training begins."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from synthorax.config import read_record
from synthorax.data.prepared import Prepared
from synthorax.engine import Engine
from synthorax.errors import UsageError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.files import read_json_object
from synthorax.judges.classifier import ClassifierConfig, train_classifier
from synthorax.judges.features import load_features
from synthorax.progress import Progress, format_seconds, portion, quiet
from synthorax.protocols import Model, SampleSettings, as_model
from synthorax.steps.generate import images_at_a_time
from synthorax.steps.models.recipe import Recipe
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, plan_like
from synthorax.steps.training.train_run import Beginning, begin, fresh_objective
from synthorax.training.loop import StepSpeed, measure_steps
from synthorax.types import ImageSet

TRAIN_SHARE = 0.83
"""part of the time for training and generation that trains, unless generation needs less"""
MIN_STEPS = {"scratch": 200, "base": 50}
"""training steps below which nothing useful can come out, from fresh weights and from those of a base; or all that the recipe has"""
JUDGES_OF_SCREENING = 3
"""classifiers that are cross-fitted there, one after the other"""
TRIAL_UPDATES, TRIAL_IMAGES = (2, 10), 16
PASSES = {"screen": 1.0, "evaluate": 2.2}
"""how often each image goes through a stage's networks and distances, in units of the time that its features take"""
INSERT_SHARE, RESERVE = 0.15, 0.1
"""part of the time that insertion may take beside a training, and that is kept free where there is none: images differ in their attempts"""
OVERHEAD_SECONDS = {"insert": 5.0, "screen": 3.0, "evaluate": 5.0, "benefit": 5.0}
"""what a stage takes for files, plots and resampling, about"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Insertion:
    """Lesions that are wanted in real images, and what one takes, by finding."""

    seconds: Mapping[str, float]
    wanted: Mapping[str, int]
    exact: bool
    """whether just so many were asked for"""

    @property
    def fewest(self) -> dict[str, int]:
        """Images below which insertion is not worth its while."""
        return {name: number if self.exact else min(number, MIN_IMAGES_PER_FINDING) for name, number in self.wanted.items()}

    def seconds_for(self, numbers: Mapping[str, int]) -> float:
        """What so many images take, with the files of the joined sets."""
        return OVERHEAD_SECONDS["insert"] + sum(self.seconds[name] * number for name, number in numbers.items())

    def within(self, seconds: float) -> dict[str, int]:
        """As many of the wanted images as `seconds` allow, each finding cut in the same proportion, and the fewest at any rate."""
        all_of_them = self.seconds_for(self.wanted) - OVERHEAD_SECONDS["insert"]
        part = 1.0 if self.exact else max(0.0, min(1.0, (seconds - OVERHEAD_SECONDS["insert"]) / max(all_of_them, 1e-9)))
        return {name: max(self.fewest[name], int(part * number)) for name, number in self.wanted.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSpeed:
    """What was measured of the networks that look at images."""

    update_seconds: float
    """for one update of a small classifier, alone"""
    updates_per_second: float
    """of all small classifiers together that train side by side"""
    feature_seconds: float
    """for the features of an image"""

    def fixed(self, *, num_real: int, num_images: int, config: BenefitConfig) -> dict[str, float]:
        """Seconds of the stages that follow the generation, by name."""
        updates, trainings = config.classifier.updates, config.seeds * len(config.arms())
        seconds = {"screen": JUDGES_OF_SCREENING * updates * self.update_seconds,
                   "evaluate": 0.0,
                   "benefit": trainings * updates / self.updates_per_second + updates * self.update_seconds}
        return {name: own + OVERHEAD_SECONDS[name] + PASSES.get(name, 0) * (num_real + num_images) * self.feature_seconds
                for name, own in seconds.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What was measured."""

    step: StepSpeed
    image_seconds: float
    """for a synthetic image"""
    judges: JudgeSpeed


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How a budget is divided, in seconds, and what comes of it."""

    total: float
    spent: float
    """when it was divided"""
    train: float
    generate: float
    fixed: Mapping[str, float] = field(default_factory=dict)
    """of each stage after the generation"""
    steps: int
    images_seen: int
    """images seen in training"""
    images: int
    """generated ones"""
    inserted: Mapping[str, int] = field(default_factory=dict)
    """finding -> images that a lesion is inserted into"""

    @property
    def expected(self) -> float:
        """Seconds in all."""
        return self.spent + self.train + self.generate + sum(self.fixed.values())

    def __str__(self) -> str:
        after = format_seconds(sum(self.fixed.values()))
        if not self.train:
            after = format_seconds(self.fixed["evaluate"] + self.fixed["benefit"])
            return (f"in {format_seconds(self.total)} this machine can insert {sum(self.inserted.values()):,} lesions, about "
                    f"{format_seconds(self.fixed['insert'])}, and needs about {after} for evaluation and benefit; expected: "
                    f"{format_seconds(self.expected)} in all")
        insertion = f"insertion of {sum(self.inserted.values()):,} lesions, " if self.inserted else ""
        return (f"in {format_seconds(self.total)} this machine can do about {self.steps:,} training steps ({self.images_seen:,} images "
                f"seen) and "
                f"{self.images:,} synthetic images, and needs about {after} for {insertion}screening, evaluation and benefit; expected: "
                f"{format_seconds(self.expected)} in all")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @staticmethod
    def read(path: Path) -> Budget:
        """What an earlier call wrote; InputError where the file is damaged."""
        remedy = "delete it, and the budget is divided anew"
        return read_record(Budget, read_json_object(path, remedy=remedy), what="budget", where=path, remedy=remedy)


def divide(total: float, speed: Speed, *, spent: float, wanted: int, least: int, exact: bool, num_real: int, recipe: Recipe,
           from_base: bool, config: BenefitConfig, insertion: Insertion | None = None) -> Budget:
    """Divide `total` seconds, of which `spent` are gone, so that all stages end within it.

    `wanted` synthetic images are made, or as many as the time allows and `least` at any rate; just `wanted` where that is `exact`.
    `insertion` are lesions that are inserted besides. Raises UsageError, with the smallest budget that would do, where not even a few
    training steps fit.
    """
    inserted = {} if insertion is None else insertion.within(INSERT_SHARE * (total - spent))
    insert = {} if insertion is None else {"insert": insertion.seconds_for(inserted)}
    least = wanted if exact else min(least, wanted)
    steps = min(recipe.train.steps, MIN_STEPS["base" if from_base else "scratch"])

    def fixed(images: int) -> dict[str, float]:
        return {**insert, **speed.judges.fixed(num_real=num_real, num_images=images + sum(inserted.values()), config=config)}

    needed = spent + steps * speed.step.seconds + least * speed.image_seconds + sum(fixed(least).values())
    if needed > total:
        taken = (steps * speed.step.seconds, least * speed.image_seconds, sum(fixed(least).values()), spent)
        parts = [format_seconds(part) for part in taken]
        raise UsageError(
            f"the budget of {format_seconds(total)} is too short for anything useful on this machine: {steps} training steps take about "
            f"{parts[0]}, {least} synthetic images {parts[1]}, {'insertion, ' if inserted else ''}screening, evaluation and benefit "
            f"{parts[2]}, and {parts[3]} are gone; the "
            f"smallest budget that would do is about {rounded_up(needed)}, and a good result needs more. The same command with a longer "
            "--budget goes on from here")
    images = wanted
    for _ in range(4):  # the fixed stages depend on the images, and these on the time that is left
        left = total - spent - sum(fixed(images).values())
        most = wanted if exact else int((1 - TRAIN_SHARE) * left / speed.image_seconds)
        images = max(least, min(wanted, most))
    train = left - images * speed.image_seconds
    steps = min(recipe.train.steps, int(train / speed.step.seconds))
    used = min(train, 1.05 * recipe.train.steps * speed.step.seconds)
    if not exact and images < wanted and used < train:  # the recipe ends before the time does
        images = min(wanted, int((left - used) / speed.image_seconds))
    return Budget(total=total, spent=spent, train=used if used < train else train, generate=images * speed.image_seconds,
                  fixed=fixed(images), steps=steps, images_seen=int(steps * speed.step.images), images=images, inserted=inserted)


def divide_insertion(total: float, insertion: Insertion, judges: JudgeSpeed, *, spent: float, num_real: int,
                     config: BenefitConfig) -> Budget:
    """Divide `total` seconds, of which `spent` are gone, where all images are inserted and nothing is trained but judges.

    Raises UsageError, with the smallest budget that would do, where not even the fewest images fit.
    """
    def fixed(numbers: Mapping[str, int]) -> dict[str, float]:
        after = judges.fixed(num_real=num_real, num_images=sum(numbers.values()), config=config)
        return {"insert": insertion.seconds_for(numbers), "evaluate": after["evaluate"], "benefit": after["benefit"]}

    numbers: Mapping[str, int] = insertion.fewest
    needed = spent + sum(fixed(numbers).values())
    if needed > total:
        parts = fixed(numbers)
        raise UsageError(
            f"the budget of {format_seconds(total)} is too short on this machine: {sum(numbers.values())} insertions take about "
            f"{format_seconds(parts['insert'])}, evaluation and benefit {format_seconds(parts['evaluate'] + parts['benefit'])}, and "
            f"{format_seconds(spent)} are gone; the smallest budget that would do is about {rounded_up(needed)}. The same command with a "
            "longer --budget goes on from here")
    numbers = insertion.wanted
    for _ in range(4):  # evaluation depends on the images, and these on the time that is left
        left = total - spent - sum(seconds for name, seconds in fixed(numbers).items() if name != "insert")
        numbers = insertion.within((1 - RESERVE) * left)
    return Budget(total=total, spent=spent, train=0.0, generate=0.0, fixed=fixed(numbers), steps=0, images_seen=0, images=0,
                  inserted=numbers)


def rounded_up(seconds: float) -> str:
    """A duration a tenth longer, as one would type it.

    >>> rounded_up(100), rounded_up(290)
    ('120s', '6m')
    """
    seconds *= 1.1
    return f"{10 * math.ceil(seconds / 10)}s" if seconds <= 120 else f"{math.ceil(seconds / 60)}m"


def measure(recipe: Recipe, prepared: Prepared, beginning: Beginning, *, engine: Engine,
            ready: tuple[Model, SampleSettings] | None = None, progress: Progress = quiet) -> Speed:
    """Take some real training steps, make some images, and train judges for a moment, on the training images.

    `ready` is a trained model that makes images as the one to be trained will, and how; by default that itself makes them.
    """
    progress(0.0, "training steps")
    objective, images = fresh_objective(recipe, prepared)
    objective.check_data(num_images=len(images))
    begin(objective, images, recipe, beginning)
    with tempfile.TemporaryDirectory() as nowhere:
        step = measure_steps(objective, images, recipe.train, engine=engine, folder=Path(nowhere))
    model, settings = (as_model(objective.model.eval()), recipe.sample) if ready is None else ready
    progress(0.3, "images")
    seconds_an_image = image_seconds(model, images, settings=settings, engine=engine)
    judges = measure_judges(prepared, progress=portion(progress, 0.6, 0.4))
    return Speed(step=step, image_seconds=seconds_an_image, judges=judges)


def measure_judges(prepared: Prepared, *, progress: Progress = quiet) -> JudgeSpeed:
    """Train judges for a moment and look at some images, on the training images as judges see them."""
    images = prepared.images("train")
    progress(0.0, "judges")
    alone, together = (_updates_per_second(images, side_by_side=number) for number in (1, torch.get_num_threads()))
    progress(0.75, "features")
    feature_seconds = _feature_seconds(images)
    progress(1.0, "measured")
    return JudgeSpeed(update_seconds=1 / alone, updates_per_second=max(alone, together), feature_seconds=feature_seconds)


def image_seconds(model: Model, images: ImageSet, *, settings: SampleSettings, engine: Engine) -> float:
    """Seconds for one synthetic image: of sixteen where that takes a moment, else of one batch."""
    rows = plan_like(images, num=TRIAL_IMAGES).restricted_to(model.spec)
    cast(nn.Module, model).to(engine.device)

    def make(number: int) -> None:
        few = type(rows)(rows=rows.rows[:number])
        with engine.autocast():
            model.sample(few.condition(model.spec), [row.seed for row in few.rows], settings).cpu()

    few = images_at_a_time(engine)
    seconds = _seconds(lambda: make(few))
    return seconds / few if seconds > 2 else _seconds(lambda: make(TRIAL_IMAGES)) / TRIAL_IMAGES


def _updates_per_second(images: ImageSet, *, side_by_side: int) -> float:
    """Of small classifiers, each on one thread, as judges and benefit train them: what a longer training takes more than a short one."""
    some = images.take(range(min(len(images), 4 * ClassifierConfig().batch_size)))

    def train(updates: int) -> None:
        train_classifier(some.pixels, some.labels, findings=some.findings, config=ClassifierConfig(updates=updates), seed=0)

    short, long = TRIAL_UPDATES
    train(short)
    with ThreadPoolExecutor(max_workers=side_by_side) as pool:
        taken = [_seconds(lambda updates=updates: list(pool.map(train, [updates] * side_by_side))) for updates in (short, long)]  # type: ignore[misc]
    return side_by_side * (long - short) / max(taken[1] - taken[0], 0.1 * taken[1])


def _feature_seconds(images: ImageSet) -> float:
    space, some = load_features("efficientnet-lite0"), images.pixels[:TRIAL_IMAGES]
    space(some[:1])
    return _seconds(lambda: space(some)) / len(some)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.monotonic()
    work()
    return max(time.monotonic() - start, 1e-6)


def fewest_images(findings: Sequence[str]) -> int:
    """Synthetic images below which a plan is not worth its while: five of each finding, and as many without it."""
    return 2 * MIN_IMAGES_PER_FINDING * len(findings)
