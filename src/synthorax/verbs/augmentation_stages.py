"""The stages of the main job: which one begins, how long the rest takes, how a budget of time is kept, and how many images are planned."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from synthorax.data.prepared import Prepared
from synthorax.engine import Device, started
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.files import write_json
from synthorax.progress import format_seconds, portion, progress_line
from synthorax.protocols import as_model
from synthorax.run import Run
from synthorax.steps.models.recipe import Recipe, build_objective
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, Plan, deficits, missing, read_plan
from synthorax.steps.training.budget import Budget, divide, divide_insertion, fewest_images, image_seconds, measure, measure_judges
from synthorax.steps.training.train_run import Beginning, without_no_finding
from synthorax.verbs import synthesis
from synthorax.verbs.augmentation_insertion import Mode, generated_of, measure_insertion, numbers_of

NAMES = ("read", "prepare", "train", "plan", "generate", "screen", "evaluate", "benefit")
NAMES_OF = {"generate": NAMES, "both": (*NAMES[:5], "insert", *NAMES[5:]),
            "insert": ("read", "prepare", "plan", "insert", "evaluate", "benefit")}
"""stages of each mode of making images"""


class Stages:
    """Says on stderr which stage begins, and with a budget of time how long the rest will take."""

    def __init__(self, out: Path, *, total: float | None, mode: str = "generate") -> None:
        self.out, self.total, self.names = out, total, NAMES_OF[mode]
        self.budget: Budget | None = None
        self.start, self.begun, self.continued = time.monotonic(), 0, (out / "run").exists()

    def begin(self, name: str) -> None:
        """A stage begins."""
        self.begun = self.names.index(name) + 1
        print(f"[{self.begun}/{len(self.names)}] {name}{self._left(name)}", file=sys.stderr, flush=True)

    def _left(self, name: str) -> str:
        if self.budget is None:
            return "" if self.total is None else f": {format_seconds(max(0.0, self.total - self.elapsed()))} of the budget left"
        planned = {"train": self.budget.train, "generate": self.budget.generate, **self.budget.fixed}
        rest = sum(planned.get(later, 0.0) for later in self.names[self.names.index(name):])
        return f": about {format_seconds(rest)} left in all"

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.start

    def seconds_to_generate(self, budget: Budget) -> float:
        """What the training has left for the generation."""
        if self.continued:  # when it began is not known
            return budget.generate
        return max(0.0, budget.total - self.elapsed() - sum(budget.fixed.values()))


def budget_for(recipe: Recipe, prepared: Prepared, stages: Stages, *, beginning: Beginning, findings: Sequence[str], num: int | None,
               config: BenefitConfig, device: Device, threads: int | None, mode: Mode = "generate") -> Budget | None:
    """Measure this machine, divide the budget of time by it and say what it can do; None where there is no budget of time.

    A job that goes on keeps the division that it began with, unless the budget is another one and the training not over. Raises UsageError
    where the budget is too short for anything useful.
    """
    if stages.total is None:
        return None
    path, trained = stages.out / "budget.json", Run(path=stages.out / "run").weights.exists()
    kept = Budget.read(path) if path.exists() else None
    if kept is None or (kept.total != stages.total and not trained):
        base = beginning.base
        ready = (as_model(base.build()), base.settings) if base is not None and base.parts else None
        with (started(device=device, threads=threads, precision=recipe.train.precision, seed=recipe.train.seed) as engine,
              progress_line("measure this machine") as progress):
            speed = measure(recipe, prepared, beginning, engine=engine, ready=ready, progress=progress)
        fewest, insertion = fewest_images(findings), None
        if mode == "both":
            with progress_line("measure insertion") as progress:
                insertion = measure_insertion(prepared, numbers_of(mode, prepared, findings, num=num), exact=num is not None,
                                              seed=recipe.train.seed, device=device, threads=threads, progress=progress)
        each = {name: generated_of(mode, number) for name, number in
                (dict.fromkeys(findings, num) if num is not None else missing(prepared.images("train"), findings)).items()}
        kept = divide(stages.total, speed, spent=stages.elapsed(), wanted=max(2 * sum(each.values()), fewest if num is None else 1),
                      least=fewest, exact=num is not None, num_real=len(prepared), recipe=recipe, from_base=base is not None,
                      config=config, insertion=insertion)
        write_json(path, kept.to_dict())
    print(f"  {kept}", file=sys.stderr, flush=True)
    stages.budget = kept
    return kept


def budget_for_insertion(prepared: Prepared, stages: Stages, *, findings: Sequence[str], num: int | None, config: BenefitConfig,
                         seed: int, device: Device, threads: int | None) -> Budget | None:
    """As `budget_for`, where all images are inserted: measure insertion and judges, and say how many images fit."""
    if stages.total is None:
        return None
    path = stages.out / "budget.json"
    kept = Budget.read(path) if path.exists() else None
    if kept is None or (kept.total != stages.total and not (stages.out / "plan.csv").exists()):
        with progress_line("measure this machine") as progress:
            insertion = measure_insertion(prepared, numbers_of("insert", prepared, findings, num=num), exact=num is not None, seed=seed,
                                          device=device, threads=threads, progress=portion(progress, 0.0, 0.6))
            with started(device=device, threads=threads, seed=seed):
                judges = measure_judges(prepared, progress=portion(progress, 0.6, 0.4))
        kept = divide_insertion(stages.total, insertion, judges, spent=stages.elapsed(), num_real=len(prepared), config=config)
        write_json(path, kept.to_dict())
        if (wanted := sum(insertion.wanted.values())) > (fits := sum(kept.inserted.values())):
            print(f"  balance would take {wanted} images, the time allows {fits}; use --budget or --num for more", file=sys.stderr)
    print(f"  {kept}", file=sys.stderr, flush=True)
    stages.budget = kept
    return kept


def has_loss(settings: Recipe, *, findings: Sequence[str]) -> bool:
    """Whether a training by this recipe has a loss that falls as it learns; that of players against one another does not."""
    return len(build_objective(settings, findings=findings).phases) == 1


def planned(prepared: Prepared, findings: Sequence[str], model: TrainedModel, *, out: Path, num: int | None, seconds: float | None,
            seed: int, device: Device, threads: int | None, file: str = "plan.csv", mode: Mode = "generate") -> Plan:
    """The plan at `out`/`file`: `num` images of each finding, or as many as balance asks, or if that is more, as `seconds` allow."""
    train = prepared.images("train")
    path = out / file
    if path.exists():
        return read_plan(path, allow=prepared.findings)
    if num is not None:
        return synthesis.plan(prepared, count=dict.fromkeys(findings, num), model=model, seed=seed, out=path)
    if mode == "generate" and any(deficits(train, findings).values()):
        wanted = synthesis.plan(prepared, balance=findings, model=model, seed=seed)
    else:
        counts = {name: generated_of(mode, number) for name, number in missing(train, findings).items()}
        wanted = synthesis.plan(prepared, count=counts, model=model, seed=seed)
    if seconds is not None:
        with started(device=device, threads=threads) as engine:
            took = image_seconds(model.network, without_no_finding(train), settings=model.settings, engine=engine)
        fits = int(seconds / took)
        if len(wanted) > fits:
            each = max(MIN_IMAGES_PER_FINDING, fits // (2 * len(findings)))  # every image with the finding has a companion without it
            print(f"  balance would take {len(wanted)} images, the time allows {fits}; use --budget or --num for more", file=sys.stderr)
            return synthesis.plan(prepared, count=dict.fromkeys(findings, each), model=model, seed=seed, out=path)
    wanted.write(path)
    return wanted
