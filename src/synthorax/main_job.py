"""The main job in one go: films in, a balanced training set and an honest report out; every stage continues after a kill."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthorax import workflow
from synthorax.config import parse_duration
from synthorax.data.dataset import Dataset, digest_of
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.data.sources import origins_of
from synthorax.engine import Device, started
from synthorax.errors import InputError, SynthoraxError, UsageError, nearest
from synthorax.evaluation.benefit import BenefitConfig
from synthorax.evaluation.report import Report
from synthorax.files import write_json
from synthorax.folders import claimed, discard, file_stamp, stamps
from synthorax.judges.classifier import ClassifierConfig
from synthorax.progress import format_seconds
from synthorax.run import Run, read_spec, weights_digest
from synthorax.steps.adapt import LEARNING_RATES, recipe_of_base, resolved, sentence, with_way
from synthorax.steps.augment_check import augment_recipe, check_images, image_size, known_findings
from synthorax.steps.generate import preview
from synthorax.steps.join import join_training_set
from synthorax.steps.models import source_of, stages_of, weights_of
from synthorax.steps.plan import FEWEST_FILMS, Plan, deficits, plan_like, read_plan
from synthorax.steps.recipe import Recipe, load_recipe
from synthorax.steps.train_run import without_no_finding
from synthorax.types import Films
from synthorax.zoo import shipped

BASE = "cxr-256"
"""shipped model that the generator starts from where neither a recipe nor a base is given"""
RECIPE = "edm-64"
"""of the generator where that does not ship; with a base, how it is trained here"""
SPLIT = (0.6, 0.1, 0.3)
"""patients for training, validation and test: the proof needs real positives that nobody has seen"""
FIXED_SECONDS = {"read": 5, "prepare": 5, "plan": 5, "screen": 30, "evaluate": 25, "benefit": 130}
"""what the stages that cannot be shortened take for a thousand films on two cores, about"""
FIXED_SECONDS_LARGE = {"prepare": 10, "screen": 50, "evaluate": 100}
"""what some take with films above `LARGE_PX`; measured with 1,489 films of 256 px"""
LARGE_PX = 128
TRAIN_SHARE = 0.83
"""part of the remaining time that trains the generator; the rest generates"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How much is done, in place of a budget of time: the result is then the same on every machine, however slow or busy."""

    steps: int
    """of the generator's training"""
    judge: ClassifierConfig
    """of screening"""
    benefit: BenefitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmented:
    """What `augment` leaves: the training set, the synthetic set, the plan, the run and the report."""

    out: Path
    train: Dataset
    synthetic: Dataset
    plan: Plan
    run: Run
    report: Report
    seconds: float

    def __str__(self) -> str:
        real = sum(study.origin == "real" for study in self.train.studies)
        return (f"{self.report}\n\ntraining set  {self.out / 'train'} ({real} real and {len(self.train) - real} synthetic films)\n"
                f"time          {format_seconds(self.seconds)}\nreport        {(self.out / 'report.html').resolve()}")

    def to_dict(self) -> dict[str, Any]:
        """Paths, counts and verdicts, JSON-ready."""
        verdicts = {entry["finding"]: entry["verdict"] for entry in self.report.dimensions["benefit"].findings}
        return {"train": str(self.out / "train"), "synthetic": str(self.out / "synthetic"), "plan": str(self.out / "plan.csv"),
                "report": str(self.out / "report.html"), "verdicts": verdicts, "seconds": round(self.seconds, 1),
                "train_films": len(self.train), "synthetic_films": len(self.synthetic)}


def augment(dataset: str | Path, *, findings: Sequence[str], out: str | Path, budget: str | float = "20m", num: int | None = None,
            base: str | Path | None = None, adapt: str | None = None, recipe: str | None = None, compressor: str | Path | None = None,
            label_table: str | Path | None = None, allow: Sequence[str] = (), patient_per_film: bool = False, seed: int = 0,
            device: Device = "auto", threads: int | None = None, command: str = "", work: Work | None = None) -> Augmented:
    """Learn from a folder of films, make more of the rare `findings`, screen them, and prove whether they help.

    Leaves `out`/train (all real training films and the screened synthetic ones), `out`/synthetic, plan.csv, report.json,
    report.html and run/. `num` is how many films of each finding to make; by default as many as the most frequent finding has, or
    fewer if the time is short. The generator starts from `base`, by default from the model that ships, unless a `recipe` is named; `adapt`
    says what of it moves: full, lora, trunk, or auto (the default), which goes by the number of films. Of a base that was packed of several
    stages the first learns from these films, and the others enlarge what it makes (model/). `compressor` is the run of the autoencoder on
    whose latents a latent recipe works. Calling it again goes on where it stopped. What cannot be used is refused before any image is read:
    UsageError for recipes, bases and numbers, InputError for findings that nobody knows; InputError also for images that cannot be used.
    With `work` the budget plays no part.
    """
    out = Path(out)
    seconds = parse_duration(budget) if isinstance(budget, str) else float(budget)
    base = usual_base() if base is None and recipe is None else base
    settings = _settings(recipe, base=base, adapt=adapt, compressor=compressor).with_train(seed=seed)
    check_images(num, kinds=len(findings))
    names = known_findings(findings, Path(dataset), allow=allow)
    size = image_size(settings, base)
    stages = _Stages(seconds if work is None else None, size=size)

    with _claimed(out, Path(dataset), label_table=label_table, findings=sorted(names), num=num, seed=seed, recipe=settings.to_toml(),
                  base=base and weights_digest(weights_of(base)), compressor=compressor and weights_digest(weights_of(compressor)),
                  adapt=adapt, work=work and asdict(work), allowed_findings=sorted(allow), patient_per_image=patient_per_film):
        with _nothing_left_if_refused(out):
            stages.begin("read")
            source = workflow.ingest(dataset, out=out / "films", label_table=label_table, allow=allow, patient_per_film=patient_per_film)
            stages.begin("prepare")
            prepared = workflow.prepare(source, size=size, out=out / "prepared", split=SPLIT, seed=seed)
            train = prepared.films("train")
            _check_findings(prepared, train, names, num=num)
            settings = _with_its_rate(settings, prepared, base, names, recipe=recipe)
            if work is not None:
                settings = settings.with_train(steps=work.steps, precision="fp32")
        seen = "" if base is None else _seen_by_base(base, source)
        for warning in (*prepared.fingerprint.get("warnings", ()), *([seen] if seen else [])):
            print(f"  note: {warning}", file=sys.stderr)

        stages.begin("train")
        allowed = stages.seconds["train"] if work is None else None
        trained = workflow.train(settings, prepared, out=out / "run", budget=allowed, base=base, compressor=compressor,
                                 seed=seed, device=device, threads=threads, findings=names)
        run = _enlarging(trained, base, out=out / "model")

        stages.begin("plan")
        plan = _plan(prepared, names, run, out=out, num=num, seconds=stages.seconds["generate"], seed=seed, device=device,
                     threads=threads)
        print(f"  {plan}", file=sys.stderr)

        stages.begin("generate")
        made = workflow.generate(run, plan, out=out / "generated", seed=seed, device=device, threads=threads)

        stages.begin("screen")
        synthetic = _screened(made, prepared, names, out=out, seed=seed, device=device, threads=threads,
                              judge=None if work is None else work.judge)

        stages.begin("evaluate")
        report = workflow.evaluate(real=prepared, synthetic=synthetic, quick=True, seed=seed, device=device, threads=threads)

        stages.begin("benefit")
        report = workflow.benefit(real=prepared, synthetic=synthetic, findings=names, seed=seed, device=device, threads=threads,
                                  into=report, config=BenefitConfig(seed=seed).brief() if work is None else work.benefit,
                                  keep=out / "trainings")
        report = replace(_with_base(report, trained, seen=seen),
                         command=command or _command(dataset, findings, out, budget, base=base, adapt=adapt))
        joined = join_training_set(prepared, synthetic, out=out / "train", name=f"{source.name} augmented",
                                   facts={"licence": source.facts.get("licence", "as its sources")})
        report.write(out)
        return Augmented(out=out, train=joined, synthetic=synthetic, plan=plan, run=run, report=report, seconds=stages.elapsed())


def demo(*, out: str | Path, seed: int = 0, device: Device = "auto", threads: int | None = None) -> Augmented:
    """The main job on drawings of a phantom thorax: offline, in minutes on two cores. They are drawings, and the report says so."""
    out = Path(out)
    with claimed(out, kind="a demonstration", inputs={"seed": seed}):
        source = write_phantom_dataset(out / "phantom", num=900, size=64, seed=seed).path
        return augment(source, findings=["Pneumothorax"], out=out / "augmented", budget="7m", recipe="edm-32", seed=seed, device=device,
                       threads=threads, command=f"synthorax demo --out {out}")


class _Stages:
    """Divides the budget among the stages, and says on stderr which one begins and how long the rest will take.

    Without a budget no stage is cut short, and no time is told.
    """

    def __init__(self, budget_seconds: float | None, *, size: int) -> None:
        self.limited = budget_seconds is not None
        budget_seconds = budget_seconds or 0.0
        fixed = FIXED_SECONDS | (FIXED_SECONDS_LARGE if size > LARGE_PX else {})
        flexible = max(budget_seconds - sum(fixed.values()), budget_seconds / 2)
        share = {"train": TRAIN_SHARE * flexible, "generate": (1 - TRAIN_SHARE) * flexible}
        order = ("read", "prepare", "train", "plan", "generate", "screen", "evaluate", "benefit")
        self.seconds = {name: share[name] if name in share else fixed[name] for name in order}
        self.start, self.begun = time.monotonic(), 0

    def begin(self, name: str) -> None:
        rest = sum(list(self.seconds.values())[self.begun :])
        self.begun += 1
        told = f": about {format_seconds(rest)} left in all" if self.limited else ""
        print(f"[{self.begun}/{len(self.seconds)}] {name}{told}", file=sys.stderr, flush=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.start


def usual_base() -> str | None:
    """The model that ships, if it does."""
    return BASE if BASE in shipped() else None


def _settings(recipe: str | None, *, base: str | Path | None, adapt: str | None, compressor: str | Path | None) -> Recipe:
    """The recipe that was named, or else that of the base, or else the usual one; what does not fit is refused."""
    if base is None:
        if adapt is not None:
            raise UsageError(f"adapt = '{adapt}' needs a trained model to start from; give its base, or leave it out")
        settings = load_recipe(recipe or RECIPE)
    else:
        settings = load_recipe(recipe) if recipe is not None else recipe_of_base(base, train=load_recipe(RECIPE).train)
        settings = with_way(settings, adapt or "auto")
    return augment_recipe(settings, base=base, compressor=compressor)


def _enlarging(trained: Run, base: str | Path | None, *, out: Path) -> Run:
    """The trained model in the place of the first stage of its base, if that was packed of several; else the trained model itself."""
    if base is None or len(stages_of(base)) == 1:
        return trained
    return workflow.pack([trained, base], out=out, precision="fp32")


def _with_its_rate(settings: Recipe, prepared: Prepared, base: str | Path | None, findings: Sequence[str], *, recipe: str | None) -> Recipe:
    """The settings with the learning rate of the way in which the base will be adapted, unless a named recipe says one."""
    if base is None or recipe is not None:
        return settings
    way = resolved(settings, prepared, base, findings=findings)[0].train.adapt
    return settings.with_train(learning_rate=LEARNING_RATES[way])


def _seen_by_base(base: str | Path, source: Dataset) -> str:
    """A warning where the base has learned from these very films: then no patient among them is sure to be unseen."""
    known = {told.get("digest") for stage in stages_of(base) for told in stage.facts.get("sources", ())}
    if known.isdisjoint({digest_of(source), *(origin.digest for origin in origins_of(source) if origin.digest)}):
        return ""
    return (f"the base {Path(base).name} has learned from films of '{source.name}', test patients perhaps among them, so the proof does "
            f"not count; start from scratch with --recipe {RECIPE}")


def _with_base(report: Report, run: Run, *, seen: str = "") -> Report:
    """The report with what the generator started from, if it did not start from scratch."""
    started_from = read_spec(run.weights)[1].get("started_from")
    if started_from is None:
        return report
    notes = (*report.notes, sentence(started_from), *([seen] if seen else []))
    return replace(report, inputs={**report.inputs, "base": started_from}, notes=notes)


@contextlib.contextmanager
def _claimed(out: Path, source: Path, *, label_table: str | Path | None, **arguments: Any) -> Iterator[None]:
    """Hold the folder for one augmentation of the images and labels as they are now; the same command goes on, another is refused."""
    table = None if label_table is None else file_stamp(Path(label_table))
    inputs = {name.replace("_", " "): value for name, value in arguments.items()} | {"label table": table, **stamps(source, without=out)}
    with claimed(out, kind="an augmentation", inputs=inputs):
        yield


@contextlib.contextmanager
def _nothing_left_if_refused(out: Path) -> Iterator[None]:
    """Remove what was begun in `out` if the images are refused before any training; a run that had got further is kept."""
    try:
        yield
    except SynthoraxError:
        if not (out / "run").exists():
            discard(out / "films")
            discard(out / "prepared")
        raise


def _check_findings(prepared: Prepared, train: Films, findings: Sequence[str], *, num: int | None) -> None:
    """Refuse findings of which nothing can be learned or proved, and to balance what is balanced already."""
    for finding in findings:
        if finding not in train.findings:
            raise InputError(f"no film states '{finding}'", file=prepared.path, remedy=nearest(finding, train.findings))
        shown, lacking = (int((train.column(finding) == value).sum()) for value in (1, 0))
        if shown < FEWEST_FILMS:
            raise InputError(f"only {shown} training films show '{finding}'; nothing can be learned from fewer than {FEWEST_FILMS}",
                             file=prepared.path, remedy="add films that show it")
        if lacking < FEWEST_FILMS:
            raise InputError(f"only {lacking} training films are known to lack '{finding}', so nothing can be proved about it",
                             file=prepared.path, remedy="add films with 'No Finding' or other findings")
    if num is None and not any(deficits(train, findings).values()):
        raise InputError(f"no finding is more frequent among the training images than {' and '.join(findings)}, so there is nothing to "
                         "balance", file=prepared.path, remedy="say how many images to make (--num), or augment a rarer finding")


def _plan(prepared: Prepared, findings: Sequence[str], run: Run, *, out: Path, num: int | None, seconds: float, seed: int,
          device: Device, threads: int | None) -> Plan:
    """The plan, as large as balance asks or, if that is more, as the time allows at the speed of a trial batch."""
    path = out / "plan.csv"
    if path.exists():
        return read_plan(path, allow=prepared.findings)
    if num is not None:
        return workflow.plan(prepared, count=dict.fromkeys(findings, num), model=run, seed=seed, out=path)
    wanted = workflow.plan(prepared, balance=findings, model=run, seed=seed)
    fits = int(seconds / _seconds_per_film(prepared, run, device=device, threads=threads))
    if len(wanted) <= fits:
        wanted.write(path)
        return wanted
    each = max(FEWEST_FILMS, fits // (2 * len(findings)))  # every film with the finding has a companion without it
    print(f"  balance would take {len(wanted)} films, the time allows {fits}; use --budget or --num for more", file=sys.stderr)
    return workflow.plan(prepared, count=dict.fromkeys(findings, each), model=run, seed=seed, out=path)


def _seconds_per_film(prepared: Prepared, run: Run, *, device: Device, threads: int | None) -> float:
    source, _, settings = source_of(run)
    trial = plan_like(without_no_finding(prepared.films("train")), num=16)
    with started(device=device, threads=threads) as engine:
        preview(source.model, trial, settings=settings, engine=engine)  # warm up
        start = time.monotonic()
        preview(source.model, trial, settings=settings, engine=engine)
        return (time.monotonic() - start) / len(trial)


def _screened(made: Dataset, prepared: Prepared, findings: Sequence[str], *, out: Path, seed: int, device: Device,
              threads: int | None, judge: ClassifierConfig | None) -> Dataset:
    """The screened set at `out`/synthetic."""
    screened = workflow.screen(made, against=prepared, out=out / "synthetic", findings=findings, seed=seed, device=device, threads=threads,
                               classifier=judge)
    write_json(out / "screening.json", screened.to_dict())
    print(f"  {screened}", file=sys.stderr)
    return screened.kept


def _command(dataset: str | Path, findings: Sequence[str], out: Path, budget: str | float, *, base: str | Path | None,
             adapt: str | None) -> str:
    asked = " ".join(f"--finding '{name}'" for name in findings)
    start = ("" if base is None else f" --base {base}") + ("" if adapt is None else f" --adapt {adapt}")
    return f"synthorax augment {dataset} {asked} --budget {budget}{start} --out {out}"
