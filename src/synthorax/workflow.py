"""The verbs as functions: the only place, with `main_job.py`, where names become objects and parts are wired together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from synthorax.config import parse_duration
from synthorax.data.adapters import ADAPTERS, detect
from synthorax.data.dataset import TABLE_NAME, Dataset, read_dataset
from synthorax.data.masks import joined_masks, mask_classes
from synthorax.data.prepared import Prepared, load_films, prepare_dataset
from synthorax.data.rejects import Rejected, stop_if_too_many
from synthorax.data.vocabulary import NO_FINDING, canonical
from synthorax.engine import Device, started
from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.benefit import BenefitConfig, BenefitResult, measure_benefit
from synthorax.evaluation.benefit_design import seen_by_generator
from synthorax.evaluation.drift import Drift, drift_between
from synthorax.evaluation.drift_page import drift_page
from synthorax.evaluation.gallery import NOTE as GALLERY_NOTE
from synthorax.evaluation.lesion_snr import LesionNoiseReport, lesion_noise_plot, lesion_noise_table, report_lesion_noise
from synthorax.evaluation.measure import evaluate_films
from synthorax.evaluation.poison import PoisonConfig
from synthorax.evaluation.readings import read_readings
from synthorax.evaluation.report import Report
from synthorax.evaluation.report_folder import report_folder
from synthorax.evaluation.rqs import radiomics_quality
from synthorax.evaluation.sides import RealFilms
from synthorax.families.diffusion import DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.folders import claimed, told_of
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.features import load_features
from synthorax.privacy.audit import AuditConfig, audit_films
from synthorax.progress import progress
from synthorax.protocols import Model
from synthorax.registry import lookup
from synthorax.run import Run
from synthorax.steps.adapt import check_base, resolved, with_compressor_of, with_way
from synthorax.steps.ask import Ask, Box
from synthorax.steps.cache import cache, cached, content_of
from synthorax.steps.checks import check_recipe
from synthorax.steps.encoder import AS_IT_IS, is_encoder, with_generator
from synthorax.steps.export import export_dataset
from synthorax.steps.export_diffusers import export_diffusers
from synthorax.steps.generate import MOST_AT_A_TIME, check_settings, generate_films
from synthorax.steps.loop import Loop, LoopConfig, run_loop
from synthorax.steps.loss_attack import loss_attack
from synthorax.steps.models import PathLike, source_of
from synthorax.steps.pack import pack_cascade
from synthorax.steps.plan import STATED_ONLY, Plan, balancing_plan, check_counts, check_num, read_plan, repeated
from synthorax.steps.recipe import Recipe, load_recipe
from synthorax.steps.screen import Screened, common_size, screen_films
from synthorax.steps.student import TAUGHT, is_student, with_teacher
from synthorax.steps.train_run import Beginning, claimed_run, train_run, with_compressor
from synthorax.steps.vet import VettedSet, vet_dataset
from synthorax.types import Films, LabelPolicy, Study


def ingest(source: PathLike, *, adapter: str = "", out: PathLike | None = None, label_table: PathLike | None = None,
           allow: Sequence[str] = (), patient_per_film: bool = False, allow_rejects: bool = False) -> Dataset:
    """Turn images as they lie into a dataset folder; `adapter` is recognised from the files if empty.

    Without `out` the folder is kept in the cache and found again as long as the source does not change. Raises InputError, also where
    more than a tenth of the images were rejected, unless `allow_rejects`: the folder then holds the others, and rejects.csv the reasons.
    """
    source = Path(source)
    name = adapter or detect(source)
    if name == "dataset":
        return read_dataset(source, label_table=label_table, allow=allow, patient_per_film=patient_per_film)
    out = Path(out) if out is not None else cached("ingest", source, name, *content_of(label_table), *allow, str(patient_per_film))
    if (out / "dataset.json").exists() and out.is_relative_to(cache()):
        return _without_many_rejects(read_dataset(out, allow=allow), allow_rejects)
    convert = lookup(ADAPTERS, name, kind="adapter")
    table = Path(label_table) if label_table is not None else None
    with progress("ingest") as report:
        dataset: Dataset = convert(source, out, label_table=table, allow=allow, patient_per_film=patient_per_film, progress=report)
    return _without_many_rejects(dataset, allow_rejects)


def _without_many_rejects(made: Dataset, allowed: bool) -> Dataset:
    stop_if_too_many(Rejected.of_folder(made.path, made.facts), at=made.path, allowed=allowed)
    return made


def prepare(dataset: Dataset | PathLike, *, size: int = 256, out: PathLike | None = None,
            split: tuple[float, float, float] = (0.7, 0.1, 0.2), films_per_patient: int = 5, seed: int = 0,
            policy: LabelPolicy | None = None, allow: Sequence[str] = (), patient_per_film: bool = False,
            allow_rejects: bool = False) -> Prepared:
    """Decode, check, split by patient and cache a dataset folder. Without `out` it is kept in the cache.

    Raises InputError where more than a tenth of the images were rejected, unless `allow_rejects`: the same call with it then uses what
    was prepared.
    """
    if not isinstance(dataset, Dataset):
        dataset = read_dataset(dataset, allow=allow, patient_per_film=patient_per_film)
    policy = policy or LabelPolicy()
    if out is None:
        labels = hashlib.sha256(repr(dataset.studies).encode()).hexdigest()  # a label table may lie elsewhere
        out = cached("prepared", dataset.path, str(size), repr(split), str(films_per_patient), str(seed), repr(policy), labels)
    with progress("prepare") as report:
        made = prepare_dataset(dataset, Path(out), size=size, fractions=split, seed=seed, films_per_patient=films_per_patient,
                               policy=policy, progress=lambda done, total: report(done / total, f"{done} of {total} images"))
    stop_if_too_many(made.rejected, at=made.path, allowed=allow_rejects)
    return made


def train(recipe: str | Path | Recipe, data: Prepared | PathLike, *, out: PathLike, overrides: Sequence[str] = (),
          budget: str | float | None = None, pause_after: str | float | None = None, resume: bool = False,
          base: PathLike | None = None, adapt: str | None = None, compressor: PathLike | None = None, seed: int | None = None,
          device: Device = "auto", threads: int | None = None, findings: Sequence[str] = (),
          clock: Literal["wall", "processor"] = "wall", budget_films: int | None = None) -> Run:
    """Train a recipe on the training split, or go on where the same command stopped; a finished run is returned as it is.

    `budget` is a duration such as "20m" or seconds, on the `clock` of the wall, or of the time that all processors spent on it, which is
    fair on a busy machine; `budget_films` ends it after so many films were drawn. After `pause_after`, always of the wall's clock, the
    training is saved and the run returned unfinished, with its model so far in `run.so_far`; the same call goes on. `resume` also allows
    other values of steps, learning rate, precision and intervals. `base` starts from the weights of a shipped model or of another run of
    the same shape, and `adapt` says what of it moves: full, lora, trunk, or auto, which goes by the number of films and of those that show
    the rarest of `findings` (by default of those new to the base). For a recipe that trains a student `base` is the teacher, and for one
    that trains an encoder of codes the generator. `compressor` is the run of the autoencoder whose latents are diffused. Raises
    UsageError for a base that does not fit, and InputError if `out` holds another run.
    """
    if budget is not None and budget_films is not None:
        raise UsageError("a budget limits the time, or the images that the training sees (--budget-images); give one of the two")
    prepared = _prepared(data)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides=overrides)
    if adapt is not None:
        if base is None:
            raise UsageError(f"adapt = '{adapt}' needs a trained model to start from; give its base, or leave it out")
        recipe = with_way(recipe, adapt)
    if is_student(recipe):
        recipe, why = with_teacher(recipe, base, compressor=compressor), TAUGHT
    elif is_encoder(recipe):
        recipe, why = with_generator(recipe, base, compressor=compressor), AS_IT_IS
    else:
        recipe = with_compressor_of(recipe, base) if compressor is None else with_compressor(recipe, compressor)
        check_base(recipe, base)
        recipe, why = resolved(recipe, prepared, base, findings=findings)
    check_recipe(recipe, findings=[name for name in prepared.findings if name != NO_FINDING], masks=prepared.mask_classes())
    beginning = Beginning(base=base, compressor=compressor, why=why)
    if seed is not None:
        recipe = recipe.with_train(seed=seed)
    run = Run(path=Path(out))
    seconds, pause = (parse_duration(given) if isinstance(given, str) else given for given in (budget, pause_after))
    now = {"wall": time.monotonic, "processor": time.process_time}[clock]
    with (started(device=device, threads=threads, precision=recipe.train.precision, seed=recipe.train.seed) as engine,
          claimed_run(run, recipe, prepared, beginning=beginning, resume=resume) if engine.is_main else contextlib.nullcontext()):
        train_run(run, recipe, prepared, engine=engine, seconds=seconds, beginning=beginning, pause_seconds=pause, clock=now,
                  num_films=budget_films, resume=resume)
    return run


def pack(runs: Sequence[Run | PathLike], *, out: PathLike, guide: Run | PathLike | None = None, sample: Mapping[str, Any] | None = None,
         precision: Literal["bf16", "fp32"] = "bf16") -> Run:
    """Put trained models together: one that makes small films, and those that enlarge them step by step; see `steps.pack.pack_cascade`.

    >>> pack(["runs/base-64", "runs/super-256"], out="models/cxr-256")  # doctest: +SKIP
    """
    return pack_cascade(runs, Path(out), guide=guide, sample=sample, precision=precision)


def plan(data: Prepared | PathLike, *, balance: Sequence[str] = (), count: Mapping[str, int] | None = None,
         companions: float = 1.0, model: Run | PathLike | None = None, seed: int = 0, out: PathLike | None = None) -> Plan:
    """Decide which images to make; see `steps.plan.balancing_plan`. `out` is where plan.csv goes.

    What `model` is not conditioned on is left out of the plan, such as the site where it knows none. Raises UsageError and InputError.
    """
    if not balance and not count:
        raise UsageError("say what to balance (balance=...) or how many of which finding to make (count=...)")
    check_counts(count or {}, companions=companions)
    prepared = _prepared(data)
    names = list(balance) if list(balance) == ["all"] else [canonical(name, allow=prepared.findings) for name in balance]
    counts = {canonical(name, allow=prepared.findings): number for name, number in (count or {}).items()}
    made = balancing_plan(prepared.films("train"), balance=names, count=counts, companions=companions, seed=seed)
    if model is not None:
        made = made.heard_by(source_of(model)[1])
    if out is not None:
        made.write(Path(out))
    return made


def generate(model: Run | PathLike, plan: Plan | PathLike | None = None, *, out: PathLike, num: int = 16,
             finding: Sequence[str] = (), without: Sequence[str] = (), uncertain: Sequence[str] = (), view: str = "", sex: str = "",
             age: float = math.nan, site: str = "", text: str = "", mask: Sequence[tuple[str, PathLike]] = (),
             box: Sequence[tuple[str, Box]] = (), side: str = "", size: float = math.nan, severity: float = math.nan,
             at: tuple[float, float] | None = None, image_size: int | None = None, seed: int = 0,
             sampler: str | None = None, steps: int | None = None,
             schedule: str | None = None, eta: float | None = None, guidance: float | None = None,
             part_guidance: Mapping[str, float] | None = None, guidance_from: float | None = None, guidance_to: float | None = None,
             autoguidance: float | None = None, image_noise: float | None = None, enlarging_steps: int | None = None,
             clip: bool | None = None, batch_size: int | None = None, device: Device = "auto", threads: int | None = None) -> Dataset:
    """Make the images of a plan, or `num` images of one condition, as a dataset folder; a killed generation goes on.

    What can be asked for without a plan is described in `steps.ask.Ask`; settings that are None are those of the model's recipe. By default
    a batch has one image a thread, 16 on a GPU; a larger `batch_size` takes more memory, and any other may change single grey levels.
    Everything is checked before anything is written: UsageError, or InputError with file and row for a plan that is a table.

    >>> generate("runs/a", out="made", finding=["Mass"], side="left", box=[("Mass", (0.6, 0.2, 0.2, 0.2))])  # doctest: +SKIP
    """
    if plan is None:
        check_num(num)
    if batch_size is not None and not 1 <= batch_size <= MOST_AT_A_TIME:
        raise UsageError(f"batch_size {batch_size}: choose from 1 to {MOST_AT_A_TIME} images at a time")
    source, spec, settings = source_of(model)
    if image_size not in (None, spec.image_size):
        raise UsageError(f"{source.name} makes films of {spec.image_size} px, not of {image_size}; leave out the size, or take another "
                         "model")
    chosen = {"sampler": sampler, "steps": steps, "schedule": schedule, "eta": eta, "guidance": guidance, "part_guidance": part_guidance,
              "guidance_from": guidance_from, "guidance_to": guidance_to, "autoguidance": autoguidance,
              "image_noise": image_noise, "enlarging_steps": enlarging_steps, "clip": clip}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    settings = replace(settings, **given)
    asked = Ask(finding=finding, without=without, uncertain=uncertain, view=view, sex=sex, age=age, site=site, text=text, mask=mask,
                box=box, side=side, size=size, severity=severity, at=at)
    if plan is None:
        plan = repeated(asked.row(spec), num=num, seed=seed)
    elif asked.stated():
        raise UsageError(f"the plan says what to make, and so does {', '.join(asked.stated())}; leave out one of the two")
    elif not isinstance(plan, Plan):
        plan = read_plan(Path(plan), allow=spec.findings)
    check_settings(source.model, settings)
    plan.check(spec)
    with started(device=device, threads=threads, seed=seed) as engine, progress("generate") as report:
        _module(source.model).to(engine.device)
        return generate_films(source, plan, out=Path(out), settings=settings, engine=engine, batch_size=batch_size, report=report)


def screen(synthetic: Dataset | PathLike, *, against: Prepared | PathLike, out: PathLike, findings: Sequence[str] = (),
           filters: Sequence[str] = (), classifier: ClassifierConfig | None = None, seed: int = 0, device: Device = "auto",
           threads: int | None = None) -> Screened:
    """Drop near copies and films that do not show what was asked for; see `steps.screen.screen_films`.

    `classifier` says how the judges are trained, by default as usual.
    """
    made, prepared = _dataset(synthetic), _prepared(against)
    names = [canonical(name, allow=prepared.findings) for name in findings]
    with started(device=device, threads=threads, seed=seed), progress("screen") as report:
        return screen_films(made, prepared, out=Path(out), findings=names, filters=filters, classifier=classifier, seed=seed,
                            report=report)


def loop(model: Run | PathLike, *, real: Prepared | PathLike, findings: Sequence[str], out: PathLike, config: LoopConfig | None = None,
         seed: int = 0, device: Device = "auto", threads: int | None = None) -> Loop:
    """Make films, train a classifier with them, and let its errors on validation patients say what to make next; see `steps.loop.run_loop`.

    >>> loop("runs/a", real="prepared", findings=["Pneumothorax"], out="rounds")  # doctest: +SKIP
    """
    check_num(2 * (config or LoopConfig()).num)
    source, spec, settings = source_of(model)
    prepared = _prepared(real)
    names = list(dict.fromkeys(canonical(name, allow=prepared.findings) for name in findings))
    with started(device=device, threads=threads, seed=seed) as engine, progress("loop") as report:
        _module(source.model).to(engine.device)

        def make(plan: Plan, folder: Path) -> Dataset:
            return generate_films(source, plan.heard_by(spec), out=folder, settings=settings, engine=engine)

        return run_loop(make, prepared, findings=names, out=Path(out), config=config or LoopConfig(seed=seed), maker=source.digest,
                        report=report)


def vet(suspects: Dataset | PathLike, *, against: Prepared | PathLike, out: PathLike, drop: bool = False, seed: int = 0,
        device: Device = "auto", threads: int | None = None) -> VettedSet:
    """Flag films that would poison a training: triggers, adversarial noise, wrong labels; see `steps.vet.vet_dataset`."""
    with started(device=device, threads=threads, seed=seed), progress("vet") as report:
        return vet_dataset(_dataset(suspects), _prepared(against), out=Path(out), drop=drop, config=PoisonConfig(seed=seed), report=report)


def drift(old: PathLike, new: PathLike, *, out: PathLike | None = None, features: str = "efficientnet-lite0", size: int = 128,
          seed: int = 0, device: Device = "auto", threads: int | None = None) -> Drift:
    """Compare two folders of films, dataset folders or prepared ones; writes report.json and report.html. See `drift.drift_between`."""
    folders = [Path(folder) for folder in (old, new)]
    prepared = [Prepared.load(folder) if (folder / "prepared.json").exists() else None for folder in folders]
    size = min([size, *(part.size for part in prepared if part is not None)])
    earlier = prepared[0].films(size=size) if prepared[0] is not None else load_films(read_dataset(folders[0]), size=size)
    later = (prepared[1].films(size=size) if prepared[1] is not None else
             load_films(read_dataset(folders[1]), size=size, findings=earlier.findings))
    inputs = {"old images": earlier.digest, "new images": later.digest, "features": told_of(features), "seed": seed}
    with contextlib.nullcontext() if out is None else claimed(out, kind="a drift report", inputs=inputs):
        with started(device=device, threads=threads, seed=seed), progress("drift"):
            found = drift_between(earlier, later, features=load_features(features, train=earlier, seed=seed), seed=seed)
        if out is not None:
            write_json(Path(out) / "report.json", found.to_dict())
            write_atomic(Path(out) / "report.html", drift_page(found))
    return found


def evaluate(*, real: Prepared | PathLike, synthetic: Dataset | PathLike, out: PathLike | None = None,
             features: str | Sequence[str] = "efficientnet-lite0", quick: bool = False, readings: PathLike | None = None,
             rqs: PathLike | None = None, seed: int = 0, device: Device = "auto", threads: int | None = None) -> Report:
    """Measure a synthetic set, by any generator, against real films; writes report.json and report.html if `out` is given.

    `features` are one or more names or files, see `judges.features.load_features`; groups are measured in the first. `quick` trains no
    judge and corrupts no film. `readings` is a table of what readers said of the films, see `evaluation.readings.read_readings`,
    `rqs` the answers to the radiomics quality score, see `evaluation.rqs.radiomics_quality`.
    """
    prepared, made = _prepared(real), _dataset(synthetic)
    names = [features] if isinstance(features, str) else list(dict.fromkeys(features))
    if not names:
        raise UsageError("evaluate needs at least one feature space")
    read = None if readings is None else read_readings(readings, real=prepared.studies, synthetic=made.studies, findings=prepared.findings)
    quality = {} if rqs is None else {"radiomics_quality": radiomics_quality(rqs)}
    sides, films = _sides(prepared, made, masks=True)
    settings = {"features": [told_of(name) for name in names], "quick": quick, "readings": told_of(readings), "rqs": told_of(rqs),
                "seed": seed}
    with report_folder(out, part="an evaluation", real=prepared.digest, synthetic=films.digest, settings=settings) as folder:
        if folder.done:
            return folder.read()
        with started(device=device, threads=threads, seed=seed), progress("evaluate") as show:
            spaces = [load_features(name, train=sides.train, seed=seed) for name in names]
            report = evaluate_films(sides, films, features=spaces, facts=made.facts, seed=seed, quick=quick, readings=read, report=show)
        return folder.written(replace(report, inputs={**report.inputs, **quality}))


def benefit(*, real: Prepared | PathLike, synthetic: Dataset | PathLike, findings: Sequence[str], out: PathLike | None = None,
            config: BenefitConfig | None = None, seed: int = 0, device: Device = "auto", threads: int | None = None,
            into: Report | None = None, external: Prepared | PathLike | None = None, keep: PathLike | None = None) -> Report:
    """Find out whether adding the synthetic films helps on real patients never seen; `into` is a report to complete.

    `external` is a prepared folder of another hospital, on all of whose films both arms are tested too. Finished trainings are kept in
    `keep`, by default `out`/trainings, and the same call after a stop goes on with the others.
    """
    prepared, made = _prepared(real), _dataset(synthetic)
    names = [canonical(name, allow=prepared.findings) for name in findings]
    for name in names:
        if name not in prepared.findings:
            raise InputError(f"no film states '{name}'", file=prepared.path, remedy=nearest(name, prepared.findings))
    sides, films = _sides(prepared, made)
    config = config or BenefitConfig(seed=seed)
    unseen = seen_by_generator(made.facts, prepared, cross_validated=bool(config.folds)) == "nothing"
    keep = Path(keep) if keep is not None else None if out is None else Path(out) / "trainings"
    other = None if external is None else _prepared(external)
    classifier = {**asdict(config.classifier), "weights": told_of(config.classifier.weights or None)}
    settings = {"findings": names, "settings": {**asdict(config), "classifier": classifier}, "external": other and other.digest,
                "seed": seed}
    with report_folder(out, part="a benefit", real=prepared.digest, synthetic=films.digest, settings=settings) as folder:
        if folder.done:
            return folder.read()
        with started(device=device, threads=threads, seed=seed) as engine, progress("benefit") as show:
            if config.classifier.network not in ("small", "linear-probe"):  # these are as fast on a processor, and the same everywhere
                config = replace(config, classifier=replace(config.classifier, device=str(engine.device)))
            found = measured_benefit(prepared, sides, films, names, config=config, unseen=unseen, keep=keep, report=show,
                                     external=None if other is None else other.films(size=films.images.shape[1]))
        if into is None:
            real_facts = {"digest": prepared.digest, "films": len(sides.train) + len(sides.held_out)}
            into = Report(inputs={"real": real_facts, "synthetic": {"digest": films.digest, "films": len(films)}})
        if other is not None:
            into = replace(into, inputs={**into.inputs, "external": {"digest": other.digest, "films": len(other)}})
        if found.figures:
            into = replace(into, notes=(*into.notes, GALLERY_NOTE))
        return folder.written(into.with_dimension("benefit", found.to_dimension(), figures=found.figures))


def audit(*, train: Prepared | PathLike, synthetic: Dataset | PathLike, out: PathLike | None = None, model: PathLike | None = None,
          reference: PathLike | None = None, features: str = "efficientnet-lite0", config: AuditConfig | None = None, seed: int = 0,
          device: Device = "auto", threads: int | None = None) -> Report:
    """Look for copies, membership and re-identification; writes report.json, report.html and cards.jsonl if `out` is given.

    `train` is the prepared folder that the generator was trained on; `model` the diffusion model that made the films, for the
    loss-based attack, and `reference` another one that never saw these training films. Whether a release should go out is
    `report.dimensions["privacy"].extra["gate"]`.
    """
    prepared, made = _prepared(train), _dataset(synthetic)
    sides, films = _sides(prepared, made)
    if reference is not None and model is None:
        raise UsageError("a reference model corrects the loss of a model; give the model too")
    config = config or AuditConfig(seed=seed)
    settings = {"model": told_of(model), "reference": told_of(reference), "features": told_of(features), "settings": asdict(config),
                "seed": seed}
    with report_folder(out, part="an audit", real=prepared.digest, synthetic=films.digest, settings=settings) as folder:
        if folder.done:
            return folder.read()
        return folder.written(_audited(prepared, made, sides, films, out=out, model=model, reference=reference, features=features,
                                       config=config, seed=seed, device=device, threads=threads))


def _audited(prepared: Prepared, made: Dataset, sides: RealFilms, films: Films, *, out: PathLike | None, model: PathLike | None,
             reference: PathLike | None, features: str, config: AuditConfig, seed: int, device: Device, threads: int | None) -> Report:
    with started(device=device, threads=threads, seed=seed), progress("audit") as show:
        attack: Any = "no diffusion model was given (--model)" if model is None else loss_attack(prepared, model, reference, seed=seed)
        found = audit_films(sides.train, sides.held_out, films, features=load_features(features), facts=made.facts, report=show,
                            config=config, loss_attack=attack)
    inputs = {"real": {"digest": prepared.digest, "train": len(sides.train), "held_out": len(sides.held_out)},
              "synthetic": {"digest": films.digest, "films": len(films)}}
    report = Report(inputs=inputs, judges=found.judges, dimensions={"privacy": found.dimension}, figures=found.figures)
    if out is not None:
        lines = "".join(json.dumps(card, ensure_ascii=False) + "\n" for card in found.cards)
        write_atomic(Path(out) / "cards.jsonl", lines)
    return report


def export(dataset: Dataset | PathLike, *, format: Literal["dicom", "png"], out: PathLike) -> Path:
    """Write a dataset folder's films as DICOM or PNG with their provenance."""
    with progress("export") as report:
        return export_dataset(_dataset(dataset), format=format, out=Path(out), report=report)


def export_model(model: Run | PathLike, *, out: PathLike, finding: Sequence[str] = ()) -> Path:
    """Write a diffusion model as a folder that diffusers loads, where its network fits; it then makes films of these findings alone.

    Raises UsageError that names every reason for which a network does not fit; see `steps.export_diffusers.export_diffusers`.
    """
    source, spec, settings = source_of(model)
    if not isinstance(source.model, DiffusionModel):
        raise UsageError(f"{model} of family '{spec.family}' is no diffusion model of ours, and only these go to diffusers")
    chosen = repeated(Ask(finding=finding).row(spec), num=1, seed=0)
    asked = json.dumps(chosen.rows[0].requested(), sort_keys=True) if finding else ""
    return export_diffusers(source.model, Path(out), condition=chosen.condition(spec), asked=asked, clip=settings.clip,
                            timetable="cosine" if settings.schedule == "cosine" else "linear")


def lesion_noise(data: Prepared | PathLike, *, size: int | None = None, quantile: float = 0.25, part: float = 0.5,
                 out: PathLike | None = None) -> LesionNoiseReport:
    """Find up to which noise level the lesions of the training films can be seen, and which noise levels keep small ones.

    `size` is the film size that will be trained; `out` gets lesion_noise.json, .md and .svg. Raises InputError without lesion masks.
    """
    films = _prepared(data).films("train", size=size, masks=True)
    report = report_lesion_noise(films, quantile=quantile, part=part)
    if out is not None:
        lesions = hashlib.sha256(json.dumps(report.to_dict(), default=str).encode()).hexdigest()
        inputs = {"images": films.digest, "lesions": lesions, "size": size, "quantile": quantile, "part": part}
        with claimed(out, kind="a report on lesions in noise", inputs=inputs):
            write_json(Path(out) / "lesion_noise.json", report.to_dict())
            write_atomic(Path(out) / "lesion_noise.md", lesion_noise_table(report))
            write_atomic(Path(out) / "lesion_noise.svg", lesion_noise_plot(report))
    return report


def measured_benefit(prepared: Prepared, sides: RealFilms, synthetic: Films, findings: Sequence[str], *, config: BenefitConfig,
                     report: Callable[[float, str], None], unseen: bool = False, keep: Path | None = None,
                     external: Films | None = None) -> BenefitResult:
    """The benefit: measured on patients that the generator has not seen, or skipped with the reason.

    `unseen` says that it has not seen those of the training split either.
    """
    size = synthetic.images.shape[1]
    test = prepared.films("test", size=size)
    val = prepared.films("val", size=size)
    return measure_benefit(sides.train, test, synthetic, findings=findings, config=config, real_val=val, external=external,
                           train_unseen=unseen, keep=keep, progress=lambda done, total, text: report(done / total, text))


def _sides(prepared: Prepared, synthetic: Dataset, *, masks: bool = False) -> tuple[RealFilms, Films]:
    """Both sides at one size; held-out films are those of the validation and the test split. With `masks`, those that the tables name."""
    size = common_size(synthetic, prepared)
    asked = masks and bool(mask_classes(synthetic.studies, prepared.findings))
    films = load_films(synthetic, size=size, findings=prepared.findings, policy=STATED_ONLY, masks=asked)
    known = masks and bool(prepared.mask_classes())
    held_out = tuple(prepared.films(split, size=size, masks=known) for split in ("val", "test"))
    joined = Films(images=np.concatenate([part.images for part in held_out]), findings=prepared.findings,
                   studies=(*held_out[0].studies, *held_out[1].studies), digest=prepared.digest,
                   labels=np.concatenate([part.labels for part in held_out]), masks=joined_masks(held_out))
    return RealFilms(train=prepared.films("train", size=size, masks=known), held_out=joined), films


def _module(model: Model) -> nn.Module:
    """The model seen as the network that it also is."""
    return cast(nn.Module, model)


def _dataset(value: Dataset | PathLike) -> Dataset:
    """A dataset folder, or a folder of nothing but images by any generator, which then state no findings."""
    if isinstance(value, Dataset):
        return value
    folder = Path(value)
    if (folder / TABLE_NAME).exists() or not folder.is_dir():
        return read_dataset(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise InputError("holds neither metadata.csv nor images", file=folder, remedy="give a dataset folder or a folder of PNG files")
    studies = tuple(Study(file_name=path.relative_to(folder).as_posix(), origin="synthetic") for path in files)
    return Dataset(path=folder, name=folder.name, studies=studies, findings=(), facts={"synthetic": True})


def _prepared(value: Prepared | PathLike) -> Prepared:
    return value if isinstance(value, Prepared) else Prepared.load(Path(value))
