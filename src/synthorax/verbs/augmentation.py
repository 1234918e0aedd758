"""The main job in one go: images in, a balanced training set and an honest report out; every stage continues after a kill."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthorax.config import parse_duration
from synthorax.data.adapters import detect
from synthorax.data.dataset import Dataset, digest_of
from synthorax.data.derived import derived_rows
from synthorax.data.prepared import Prepared
from synthorax.data.rejects import Rejected, stop_if_too_many
from synthorax.data.sources import origins_of
from synthorax.engine import Device
from synthorax.errors import InputError, SynthoraxError, UsageError, nearest
from synthorax.evaluation.benefit.design import too_few
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.evaluation.report.record import Dimension, Report
from synthorax.files import write_json
from synthorax.folders import CLAIM_NAME, Folder, claimed, discard, file_stamp, stamps
from synthorax.former_names import present_place
from synthorax.judges.classifier import ClassifierConfig
from synthorax.progress import format_seconds, progress_line
from synthorax.run import Run
from synthorax.steps.augmentation_check import augment_recipe, check_compressor, check_images, image_size, known_findings
from synthorax.steps.models.card import sentence
from synthorax.steps.models.recipe import Recipe, load_recipe, recipe_from_toml
from synthorax.steps.models.trained_model import ModelLike, TrainedModel, open_model
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, Plan, missing
from synthorax.steps.screening.config import ScreenConfig
from synthorax.steps.screening.screen import NonePassedError
from synthorax.steps.training.base_model import LEARNING_RATES, recipe_of_base, resolve_way, with_way
from synthorax.steps.training.train_run import Beginning
from synthorax.steps.training.undertraining import TrainingSigns, training_signs
from synthorax.steps.training_set import join_synthetic_set, join_training_set
from synthorax.types import ImageSet
from synthorax.verbs import data, evidence, synthesis, training
from synthorax.verbs.augmentation_insertion import (
    MODES,
    Mode,
    check_findings,
    generated_of,
    inserted,
    insertion_plan,
    joint_plan,
    numbers_of,
    with_counts,
)
from synthorax.verbs.augmentation_stages import Stages, budget_for, budget_for_insertion, has_loss, planned
from synthorax.zoo import shipped

BASE = "cxr-256"
"""shipped model that the generator starts from where neither a recipe nor a base is given"""
RECIPE = "edm-64"
"""of the generator where that does not ship; with a base, how it is trained here"""
SPLIT = (0.6, 0.1, 0.3)
"""patients for training, validation and test: the proof needs real positives that nobody has seen"""
BUDGET = "20m"
"""where nothing else is said"""
NOT_PROVED = "so no training set was made of them; what this report measures was measured on all of them, unscreened"
"""what follows where nothing can be made of the synthetic images"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How much is done, in place of a budget of time: the result is then the same on every machine, however slow or busy."""

    steps: int
    """of the generator's training"""
    learning_rate: float
    augment: bool
    """whether the training varies its images"""
    judge: ClassifierConfig
    """of screening"""
    benefit: BenefitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmented:
    """What `augment` leaves: the training set, the synthetic set, the plan, the run and the report."""

    out: Path
    train: Dataset | None
    """None where the training of the generator fell so short that nothing can be made of its images"""
    synthetic: Dataset | None
    plan: Plan
    run: Run | None
    """None where nothing was trained, because all images are inserted"""
    report: Report
    signs: TrainingSigns | None
    nothing_of_them: str
    """why no training set was made of the synthetic images, or nothing"""
    rejected: tuple[Rejected, ...]
    """images that could not be used, as they were read and as they were prepared"""
    seconds: float
    budget_seconds: float | None = None

    @property
    def fell_short(self) -> bool:
        """Whether the training of the generator was too short, or nothing could be made of its images, whatever the verdicts say."""
        return (self.signs is not None and self.signs.fell_short) or bool(self.nothing_of_them)

    def __str__(self) -> str:
        lines = [f"{self.report}", ""]
        if self.train is not None:
            real = sum(study.origin == "real" for study in self.train.studies)
            derived = len(derived_rows(self.train.studies))
            inserted = f", {derived} of them lesions inserted into training images" if derived else ""
            lines.append(f"training set  {self.out / 'train'} ({real} real and {len(self.train) - real} synthetic images{inserted})")
        lines += [f"rejected      {rejected}" for rejected in self.rejected]
        of = "" if self.budget_seconds is None else f", of {format_seconds(self.budget_seconds)}"
        lines += [f"time          {format_seconds(self.seconds)}{of}", f"report        {(self.out / 'report.html').resolve()}"]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.report.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Paths, counts, verdicts and warnings, JSON-ready."""
        verdicts = {entry["finding"]: entry["verdict"] for entry in self.report.dimensions["benefit"].findings}
        return {"train": self.train and str(self.train.path), "synthetic": self.synthetic and str(self.synthetic.path),
                "plan": str(self.out / "plan.csv"), "report": str(self.out / "report.html"), "verdicts": verdicts,
                "fell_short": self.fell_short, "warnings": list(self.report.warnings), "training": self.signs and self.signs.to_dict(),
                "rejected": [rejected.to_dict() for rejected in self.rejected], "seconds": round(self.seconds, 1),
                "train_images": len(self.train.studies) if self.train else 0,
                "synthetic_images": len(self.synthetic.studies) if self.synthetic else 0,
                "inserted_images": len(derived_rows(self.synthetic.studies)) if self.synthetic else 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What is to be done, checked."""

    out: Path
    findings: tuple[str, ...]
    recipe: Recipe
    """with the way in which the base is adapted"""
    beginning: Beginning
    num: int | None
    seconds: float | None
    """of the whole budget; None where that is no time"""
    budget_images: int | None
    work: Work | None
    seed: int
    device: Device
    threads: int | None
    command: str
    mode: Mode = "generate"

    @property
    def base(self) -> TrainedModel | None:
        """The model that the generator starts from."""
        return self.beginning.base

    @property
    def computing(self) -> dict[str, Any]:
        """Arguments that every verb takes."""
        return {"seed": self.seed, "device": self.device, "threads": self.threads}


def augment(dataset: str | Path, *, findings: Sequence[str], out: str | Path, budget: str | float | None = None,
            budget_images: int | None = None, num: int | None = None, base: ModelLike | None = None, adapt: str | None = None,
            recipe: str | None = None, compressor: ModelLike | None = None, label_table: str | Path | None = None,
            allow: Sequence[str] = (), patient_per_image: bool = False, allow_rejects: bool = False, seed: int = 0, device: Device = "auto",
            threads: int | None = None, command: str = "", work: Work | None = None, mode: Mode = "generate") -> Augmented:
    """Learn from a folder of images, make more of the rare `findings`, screen them, and measure whether they help.

    Leaves `out`/train (all real training images and the screened synthetic ones), `out`/synthetic, plan.csv, report.json, report.html and
    run/. `budget` is the time for everything, 20 minutes by default, divided by what this machine is measured to do; `budget_images` is the
    number of images that the training sees, with the same result on every machine; with `work` neither plays a part. `num` is how many
    images of each finding to make; by default as many as the most frequent finding has, or fewer if the time is short. The generator starts
    from `base`, by default from the model that ships, unless a `recipe` is named; `adapt` says which of its weights are trained:
    full, lora, trunk, or auto (the default), which goes by the number of images. Of a base that was packed of several stages the first
    learns from these images, and the others enlarge what it makes (model/). `compressor` is the run of the autoencoder on whose latents a
    latent recipe works. `mode` says how images are made: `generate`, by the generator; `insert`, lesions put into training images that lack
    the finding, which trains nothing; or `both`, half of each. Inserted images show their patients, see `synthorax.insert`.

    Calling it again goes on where it stopped. Where the training turns out too short, the report begins with that and `fell_short` is true;
    where most images do not look like radiographs, no training set is made of them. What cannot be used is refused before any image is
    read: UsageError for recipes, bases, numbers and budgets, InputError for findings that nobody knows; InputError also for images that
    cannot be used, and where more than a tenth of them was rejected, unless `allow_rejects`.
    """
    out = Path(out)
    start = usual_base() if base is None and recipe is None else base
    settings, beginning = _settings(recipe, base=start, adapt=adapt, compressor=compressor)
    settings = settings.with_train(seed=seed)
    if mode not in MODES:
        raise UsageError(f"unknown mode '{mode}'; {nearest(mode, MODES)}")
    check_images(num, kinds=len(findings))
    names = known_findings(findings, Path(dataset), allow=allow)
    if mode != "generate":
        check_findings(names)
    size = image_size(settings, beginning.base)
    seconds = _seconds(budget, budget_images, work)
    stages = Stages(out, total=seconds, mode=mode)
    again = command or _command(dataset, out, findings=findings, budget=None if budget_images else budget or BUDGET,
                                budget_images=budget_images, num=num, base=beginning.base, adapt=adapt, recipe=recipe,
                                compressor=beginning.compressor, label_table=label_table, allow=allow, seed=seed or None,
                                mode=None if mode == "generate" else mode)

    with _claimed(out, Path(dataset), label_table=label_table, findings=sorted(names), num=num, seed=seed, recipe=settings.to_toml(),
                  base=beginning.digests()["base_digest"], compressor=beginning.digests()["compressor_digest"], adapt=adapt,
                  work=work and asdict(work), budget_images=budget_images, allowed_findings=sorted(allow),
                  patient_per_image=patient_per_image, **({} if mode == "generate" else {"mode": mode})) as folder:
        with _nothing_left_if_refused(out):
            stages.begin("read")
            source = data.ingest(dataset, out=_dataset_place(dataset, out), label_table=label_table, allow=allow,
                                 patient_per_image=patient_per_image, allow_rejects=True)
            stages.begin("prepare")
            prepared = data.prepare(source, size=size, out=out / "prepared", split=SPLIT, seed=seed, allow_rejects=True)
        rejected = _rejected(source, prepared, out)
        for part in rejected:
            stop_if_too_many(part, at=out, allowed=allow_rejects)
            print(f"  rejected: {part}", file=sys.stderr)
        with _nothing_left_if_refused(out):
            _check_findings(prepared, prepared.images("train"), names, num=num)
            settings, why = resolve_way(settings, prepared, beginning.base, findings=names)
        if beginning.base is not None and recipe is None:  # a named recipe says its own learning rate
            settings = settings.with_train(learning_rate=LEARNING_RATES[settings.train.adapt])
        if work is not None:
            settings = settings.with_train(steps=work.steps, learning_rate=work.learning_rate, augment=work.augment, precision="fp32")
        job = _Job(out=out, findings=tuple(names), recipe=settings, beginning=replace(beginning, why=why), num=num, seconds=seconds,
                   budget_images=budget_images, work=work, seed=seed, device=device, threads=threads, command=again, mode=mode)
        if mode == "insert":
            return _augmented_by_insertion(job, source, prepared, rejected, stages, folder)
        return _augmented(job, source, prepared, rejected, stages, folder)


def _dataset_place(dataset: str | Path, out: Path) -> Path | None:
    """Where images become a dataset folder; none for one that is a dataset folder already, which is read where it lies."""
    return None if detect(Path(dataset)) == "dataset" else present_place(out, "images")


def _augmented(job: _Job, source: Dataset, prepared: Prepared, rejected: tuple[Rejected, ...], stages: Stages, folder: Folder) -> Augmented:
    """Train, plan, generate, screen, evaluate and measure the benefit, on images that were read and checked."""
    out, base, findings = job.out, job.base, job.findings
    seen = "" if base is None else _known_to_base(base, source)
    test, config = prepared.images("test"), _benefit_config(job)
    doubts = [f"nothing will be proved about {name}: {reason}" for name in findings if (reason := too_few(test, name, config))]
    for warning in (*prepared.fingerprint.get("warnings", ()), *([seen] if seen else []), *doubts):
        print(f"  note: {warning}", file=sys.stderr)

    stages.begin("train")
    budget = budget_for(job.recipe, prepared, stages, beginning=job.beginning, findings=findings, num=job.num,
                        config=config, device=job.device, threads=job.threads, mode=job.mode)
    trained = open_model(training.train_from(job.beginning, job.recipe, prepared, out=out / "run", budget_images=job.budget_images,
                                             budget=None if budget is None else budget.train, device=job.device, threads=job.threads))
    run, model = Run(path=out / "run"), trained
    if base is not None and base.parts:  # the trained model takes the place of the first stage of its base
        run = training.pack([trained, base], out=out / "model", precision="fp32")
        model = open_model(run)

    stages.begin("plan")
    both = job.mode == "both"
    to_generate = planned(prepared, findings, model, out=out, num=job.num and generated_of(job.mode, job.num), **job.computing,
                          seconds=None if budget is None else stages.seconds_to_generate(budget), mode=job.mode,
                          file="plan-generate.csv" if both else "plan.csv")
    numbers = (dict(budget.inserted) if budget else numbers_of(job.mode, prepared, findings, num=job.num)) if both else {}
    plan = joint_plan(to_generate, prepared, numbers, seed=job.seed) if both else to_generate
    if both:
        plan.write(out / "plan.csv")
    print(f"  {plan}", file=sys.stderr)

    stages.begin("generate")
    made = synthesis.generate(model, to_generate, out=out / "generated", **job.computing)
    log = out / "run" / "metrics.jsonl" if has_loss(job.recipe, findings=prepared.findings) else None
    signs = training_signs(trained, made, prepared, log=log, cooldown=job.recipe.train.cooldown)
    if signs.fell_short:
        print(f"  {signs}", file=sys.stderr)

    none_generated = ""
    if both:
        stages.begin("insert")
    sets = inserted(prepared, numbers, out=out / "inserted", **job.computing)
    stages.begin("screen")
    synthetic, why_not = _screened(made, prepared, job, signs)
    if both:
        none_generated = why_not[:1].lower() + why_not[1:]
        synthetic, why_not = join_synthetic_set(synthetic, sets, prepared, out=out / "synthetic"), ""

    joined = None if synthetic is None else _training_set(prepared, synthetic, source, out=out)
    if folder.has("the report", {}):
        report = Report.load(out)
    else:
        report = _proved(job, prepared, made, synthetic, stages, why_not=why_not, told=lambda measured: _with_notes(
            with_counts(measured, synthetic, none_generated=none_generated) if both and synthetic is not None else measured,
            job, trained, signs, rejected, seen=seen, why_not=why_not))
        folder.add("the report", {})
    return Augmented(out=out, train=joined, synthetic=synthetic, plan=plan, run=run, report=report, signs=signs, nothing_of_them=why_not,
                     rejected=rejected, seconds=stages.elapsed(), budget_seconds=job.seconds)


def _augmented_by_insertion(job: _Job, source: Dataset, prepared: Prepared, rejected: tuple[Rejected, ...], stages: Stages,
                            folder: Folder) -> Augmented:
    """Insert lesions into training images and measure the benefit; nothing is trained, and each image was accepted as it was made."""
    out = job.out
    stages.begin("plan")
    budget = budget_for_insertion(prepared, stages, findings=job.findings, num=job.num, config=_benefit_config(job), **job.computing)
    numbers = dict(budget.inserted) if budget else numbers_of("insert", prepared, job.findings, num=job.num)
    plan = insertion_plan(prepared, numbers, seed=job.seed)
    plan.write(out / "plan.csv")
    print(f"  {plan}", file=sys.stderr)
    stages.begin("insert")
    synthetic = join_synthetic_set(None, inserted(prepared, numbers, out=out / "inserted", **job.computing), prepared,
                                   out=out / "synthetic")
    joined = _training_set(prepared, synthetic, source, out=out)
    if folder.has("the report", {}):
        report = Report.load(out)
    else:
        report = _proved(job, prepared, synthetic, synthetic, stages, why_not="",
                         told=lambda measured: _with_rejected(with_counts(measured, synthetic), job, rejected))
        folder.add("the report", {})
    return Augmented(out=out, train=joined, synthetic=synthetic, plan=plan, run=None, report=report, signs=None, nothing_of_them="",
                     rejected=rejected, seconds=stages.elapsed(), budget_seconds=job.seconds)


def _training_set(prepared: Prepared, synthetic: Dataset, source: Dataset, *, out: Path) -> Dataset:
    """The training set: all real training images and the synthetic ones."""
    with progress_line("join the training set") as progress:
        return join_training_set(prepared, synthetic, out=out / "train", name=f"{source.name} augmented",
                                 facts={"licence": source.facts.get("licence", "as its sources")}, progress=progress)


def _proved(job: _Job, prepared: Prepared, made: Dataset, synthetic: Dataset | None, stages: Stages, *,
            told: Callable[[Report], Report], why_not: str) -> Report:
    """Evaluate the images, measure whether they help, and write the report."""
    stages.begin("evaluate")
    report = told(evidence.evaluate(real=prepared, synthetic=made if synthetic is None else synthetic, quick=True, **job.computing))
    stages.begin("benefit")
    if synthetic is None:
        report = report.with_dimension("benefit", Dimension("skipped", reason=f"{why_not}, {NOT_PROVED}"))
    else:
        report = evidence.benefit(real=prepared, synthetic=synthetic, findings=job.findings, config=_benefit_config(job), into=report,
                                  keep=job.out / "trainings", **job.computing)
    report.write(job.out)
    return report


def usual_base() -> str | None:
    """The model that ships, if it does."""
    return BASE if BASE in shipped() else None


def _settings(recipe: str | None, *, base: ModelLike | None, adapt: str | None,
              compressor: ModelLike | None = None) -> tuple[Recipe, Beginning]:
    """The recipe that was named, or else that of the base, or else the usual one, and what it begins with; what does not fit is refused."""
    opened = None if base is None else open_model(base)
    if opened is None:
        if adapt is not None:
            raise UsageError(f"adapt = '{adapt}' needs a trained model to start from; give its base, or leave it out")
        settings = load_recipe(recipe or RECIPE)
    else:
        settings = load_recipe(recipe) if recipe is not None else recipe_of_base(opened, train=load_recipe(RECIPE).train)
        settings = with_way(settings, adapt or "auto")
    if compressor is not None:
        check_compressor(settings)
    beginning = Beginning(base=opened, compressor=None if compressor is None else open_model(compressor))
    return augment_recipe(settings, base=opened, compressor=beginning.compressor), beginning


def _known_to_base(base: TrainedModel, source: Dataset) -> str:
    """A warning where the base has learned from these very images: then no patient among them is sure to be unseen."""
    if base.known_data.isdisjoint({digest_of(source), *(origin.digest for origin in origins_of(source) if origin.digest)}):
        return ""
    return (f"the base {base.label} has learned from images of '{source.name}', test patients perhaps among them, so the proof does "
            f"not count; start from scratch with --recipe {RECIPE}")


@contextlib.contextmanager
def _claimed(out: Path, source: Path, *, label_table: str | Path | None, **arguments: Any) -> Iterator[Folder]:
    """Hold the folder for one augmentation of the images and labels as they are now; the same command goes on, another is refused."""
    table = None if label_table is None else file_stamp(Path(label_table))
    inputs = {name.replace("_", " "): value for name, value in arguments.items()} | {"label table": table, **stamps(source, without=out)}
    with claimed(out, kind="an augmentation", inputs=inputs, former=_former_inputs) as folder:
        yield folder


def _former_inputs(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs that an earlier version noted, with the keys that settings have now."""
    recipe = inputs.get("recipe")
    return {**inputs, "recipe": recipe_from_toml(recipe, where=CLAIM_NAME).to_toml()} if isinstance(recipe, str) else inputs


@contextlib.contextmanager
def _nothing_left_if_refused(out: Path) -> Iterator[None]:
    """Remove what was begun in `out` if the images are refused before any training; a run that had got further is kept."""
    try:
        yield
    except SynthoraxError:
        if not (out / "run").exists():
            discard(present_place(out, "images"))
            discard(out / "prepared")
        raise


def _check_findings(prepared: Prepared, train: ImageSet, findings: Sequence[str], *, num: int | None) -> None:
    """Refuse findings of which nothing can be learned or proved, and to balance what is balanced already."""
    for finding in findings:
        if finding not in train.findings:
            raise InputError(f"no image states '{finding}'", file=prepared.path, remedy=nearest(finding, train.findings))
        shown, lacking = (int((train.column(finding) == value).sum()) for value in (1, 0))
        if shown < MIN_IMAGES_PER_FINDING:
            raise InputError(f"only {shown} training images show '{finding}'; nothing can be learned from fewer than "
                             f"{MIN_IMAGES_PER_FINDING}",
                             file=prepared.path, remedy="add images that show it")
        if lacking < MIN_IMAGES_PER_FINDING:
            raise InputError(f"only {lacking} training images are known to lack '{finding}', so nothing can be proved about it",
                             file=prepared.path, remedy="add images with 'No Finding' or other findings")
    if num is None and not any(missing(train, findings).values()):
        raise InputError(f"neither another finding nor normal images are more frequent among the training images than "
                         f"{' and '.join(findings)}, so there is nothing to balance", file=prepared.path,
                         remedy="say how many images to make (--num), or augment a rarer finding")


def _seconds(budget: str | float | None, budget_images: int | None, work: Work | None) -> float | None:
    """The budget of time in seconds; None where the budget is no time. Two budgets are a UsageError."""
    if budget is not None and budget_images is not None:
        raise UsageError("--budget limits the time and --budget-images the images that the training sees; give one of the two")
    if budget_images is not None and budget_images < 1:
        raise UsageError(f"--budget-images {budget_images}: the training has to see at least one image")
    if budget_images is not None or work is not None:
        return None
    seconds = parse_duration(budget) if isinstance(budget, str) else float(budget) if budget is not None else parse_duration(BUDGET)
    if not seconds > 0:
        raise UsageError(f"budget {budget}: a time above 0 is needed")
    return seconds


def _benefit_config(job: _Job) -> BenefitConfig:
    return BenefitConfig(seed=job.seed).brief() if job.work is None else job.work.benefit


def _rejected(source: Dataset, prepared: Prepared, out: Path) -> tuple[Rejected, ...]:
    """Images that this job rejected, as it read them and as it prepared them; parts without any are left out."""
    read = [Rejected.of_folder(source.path, source.facts)] if source.path == present_place(out, "images") else []
    return tuple(part for part in (*read, prepared.rejected) if part.images)


def _with_base(report: Report, trained: TrainedModel, *, seen: str = "") -> Report:
    """The report with what the generator started from, if it did not start from scratch."""
    started_from = trained.facts.get("started_from")
    if started_from is None:
        return report
    notes = (*report.notes, sentence(started_from), *([seen] if seen else []))
    return replace(report, inputs={**report.inputs, "base": started_from}, notes=notes)


def _with_notes(report: Report, job: _Job, trained: TrainedModel, signs: TrainingSigns, rejected: Sequence[Rejected], *, seen: str,
          why_not: str) -> Report:
    """The report with what the generator started from, what was rejected, and first of all whether the training fell short."""
    report = _with_base(report, trained, seen=seen)
    warnings = (str(signs),) if signs.fell_short else (f"{why_not}, {NOT_PROVED}.",) if why_not else ()
    report = replace(report, inputs={**report.inputs, "training": signs.to_dict()}, warnings=warnings)
    return _with_rejected(report, job, rejected)


def _with_rejected(report: Report, job: _Job, rejected: Sequence[Rejected]) -> Report:
    """The report with what was rejected, and the command."""
    inputs, notes = dict(report.inputs), [*report.notes]
    for part in rejected:
        table = None if part.table is None else Path(*part.table.parts[-2:])  # beside the report
        inputs["rejected"] = {**inputs.get("rejected", {}), table.parent.name if table else "images": replace(part, table=table).to_dict()}
        notes.append(f"Rejected, and so not among these images: {replace(part, table=table)}.")
    return replace(report, inputs=inputs, notes=tuple(notes), command=job.command)


def _screened(made: Dataset, prepared: Prepared, job: _Job, signs: TrainingSigns) -> tuple[Dataset | None, str]:
    """The screened set at `out`/synthetic, or at `out`/screened where inserted images join it; or None and why nothing is made of it."""
    if signs.mostly_unrealistic:
        return None, "Most of the synthetic images do not look like radiographs"
    place = job.out / ("screened" if job.mode == "both" else "synthetic")
    try:
        screened = synthesis.screen(made, against=prepared, out=place, **job.computing,
                                    config=ScreenConfig(findings=job.findings, classifier=None if job.work is None else job.work.judge))
    except NonePassedError as error:
        print(f"  {error}", file=sys.stderr)
        return None, f"No synthetic image passed screening ({error})"
    write_json(job.out / "screening.json", screened.to_dict())
    print(f"  {screened}", file=sys.stderr)
    return screened.kept, ""


def _command(dataset: str | Path, out: Path, *, findings: Sequence[str], **options: Any) -> str:
    """The command line that does this again."""
    parts = ["synthorax", "augment", str(dataset), *(word for name in findings for word in ("--finding", name))]
    for name, value in options.items():
        for one in () if value is None else value if isinstance(value, list | tuple) else (value,):
            parts += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join([*parts, "--out", str(out)])
