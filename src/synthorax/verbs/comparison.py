"""Generators side by side: each trained on the same images for the same budget, and measured by the same judges; every piece is kept."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from synthorax.config import parse_duration
from synthorax.data.dataset import read_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.vocabulary import canonical
from synthorax.engine import Device, describe_machine, started
from synthorax.errors import OutOfMemoryError, SynthoraxError, TrainingError, UsageError, nearest
from synthorax.evaluation.comparison.join import SCHEMA, check_joins, merge_comparisons, read_report
from synthorax.evaluation.comparison.measures import RealReference, downstream, near_copies, quality_record, reference_record
from synthorax.evaluation.comparison.pages import DOWNSTREAM, REAL, markdown, page, sheets, summary
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.contact_sheets import png_bytes
from synthorax.files import read_json_object, write_atomic, write_json
from synthorax.folders import only_user
from synthorax.former_names import present_place, with_present_comparison
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.features import load_features
from synthorax.privacy.copies import CopyDetector, FalseAlarms, half_calibrated
from synthorax.progress import progress_line
from synthorax.run import Run
from synthorax.steps.models.card import read_card
from synthorax.steps.models.recipe import build_objective, load_recipe
from synthorax.steps.models.trained_model import ModelLike, open_model
from synthorax.steps.planning.plan import STATED_ONLY
from synthorax.steps.training.comparison_design import FIRST_STAGE_PART, Candidate, ComparisonDesign, Terms, claim, design_comparison
from synthorax.threads import available_cores
from synthorax.types import ImageSet
from synthorax.verbs import synthesis
from synthorax.verbs.training import train as train_generator

BATCH = 8
"""images made at a time, in the batch whose speed and memory are told"""
TIMED = 3
"""how often an image and a batch are made for their time; the median counts"""
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonResult:
    """What `compare` leaves: comparison.json, .md, .html and .png."""

    out: Path
    report: Record

    def __str__(self) -> str:
        return f"{markdown(self.report)}\nreport {(self.out / 'comparison.html').resolve()}"

    def to_dict(self) -> dict[str, Any]:
        """Paths and the table, JSON-ready."""
        return {"report": str(self.out / "comparison.html"), "json": str(self.out / "comparison.json"), "arms": self.report["arms"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where trainings run, and whether each has a process of its own, without which peak memory is not known."""

    device: Device = "auto"
    threads: int | None = None
    apart: bool = True
    jobs: int = 1
    """trainings at a time"""


def compare(recipes: Sequence[str], data: Prepared | str | Path, *, out: str | Path, budget: str | float | None = None,
            budget_images: int | None = None, clock: Literal["wall", "processor"] = "wall", seeds: Sequence[int] = (0, 1, 2),
            num: int = 400, train_images: int | None = None, finding: str = "", base: ModelLike | None = None,
            ways: Sequence[str] = (), overrides: Sequence[str] = (), features: str = "efficientnet-lite0", augment: bool = True,
            judge_updates: int = ClassifierConfig().updates, only: tuple[str, int] | None = None, jobs: int = 1,
            also: Sequence[str | Path] = (), apart: bool = True, device: Device = "auto",
            threads: int | None = None) -> ComparisonResult | Run:
    """Train recipes on the same images, for the same `budget` or number of images drawn, and measure all of them in the same way.

    Leaves comparison.json, .md, .html and .png in `out`; the last two show real images. What was finished is kept in `out`, and the same
    call goes on after a stop; more recipes and seeds may be added later. `train_images` trains on so many images that each seed draws,
    smaller numbers being part of larger ones, half of them with `finding`, for which it is then also measured what the made images add
    downstream (in trainings of `judge_updates`). `base` adds arms that start from a trained model, one for each of `ways` (full and lora if
    none is named). `overrides` are `RECIPE:table.key=value`. `jobs` trainings run side by side, on the processor's clock; `only` does one
    training, `(arm, seed)`, and returns its run. `also` are comparison.json files of the same comparison made elsewhere, whose trainings
    join the table. With `apart` each training has a process of its own, so a script that calls this needs `if __name__ == "__main__"`.
    Raises UsageError and InputError before any training begins.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("compare trains in one process at a time; start it without torchrun")
    prepared = data if isinstance(data, Prepared) else Prepared.load(Path(data))
    terms = Terms(seconds=parse_duration(budget) if isinstance(budget, str) else budget, images=budget_images, clock=clock, num=num,
                  train_images=train_images, finding=canonical(finding, allow=prepared.findings) if finding else "", features=features,
                  augment=augment, judge_updates=judge_updates)
    design = design_comparison(recipes, prepared, out=Path(out), terms=terms, seeds=seeds, overrides=overrides, ways=ways,
                      base=None if base is None else open_model(base))
    machine = _machine(device=device, threads=threads, apart=apart, jobs=jobs, clock=clock)
    others = {Path(path): read_report(Path(path)) for path in also}
    if others:
        check_joins(_head(design), ((arm.name, seed) for seed in seeds for arm in design.arms), others)
    claim(design)
    if only is not None:
        arm = {arm.name: arm for arm in design.arms}.get(only[0])
        if arm is None:
            raise UsageError(f"--only {only[0]}: {nearest(only[0], [arm.name for arm in design.arms])}")
        if only[1] not in seeds:
            raise UsageError(f"--only {only[0]} {only[1]}: the seeds are {', '.join(map(str, seeds))}")
        trained = _piece(design, f"{_name(arm, only[1])}-training", functools.partial(train_arm, design, arm, only[1], machine))
        if "failed" in trained:
            raise TrainingError(trained["failed"])
        return _run(design, arm, only[1])
    with only_user(design.out / "pieces"), started(device=device, threads=threads):
        records = _records(design, machine)
        reference = _piece(design, "real-images", lambda: reference_record(_real_reference(design), num=num))
        return _written(design, records, reference, others=tuple(others.values()))


def train_arm(design: ComparisonDesign, arm: Candidate, seed: int, machine: Machine) -> Record:
    """Train one arm, its compressor first if it has one, and tell what that cost; `failed` where a training cannot go on."""
    terms, run = design.terms, _run(design, arm, seed)
    data = design.training_images(seed)
    first = Run(path=run.path.with_name(f"{run.path.name}-first"))
    stages = [(run, arm.recipe, 1.0)]
    if arm.first is not None:
        stages = [(first, arm.first, FIRST_STAGE_PART), (run, arm.recipe, 1 - FIRST_STAGE_PART)]
    fresh = not any(place.finished for place, _, _ in stages)
    told = []
    for place, recipe, part in stages:
        try:
            train_generator(recipe, data, out=place.path, seed=seed, base=arm.base, clock=terms.clock, device=machine.device,
                           compressor=first.path if arm.first is not None and place is run else None, threads=machine.threads,
                           budget=None if terms.seconds is None else terms.seconds * part,
                           budget_images=None if terms.images is None else max(1, round(terms.images * part)))
        except (TrainingError, OutOfMemoryError) as error:
            return {"failed": str(error)}
        training = read_card(place.path / "card.md")["training"][-1]
        told.append({"recipe": recipe.name, "steps": training["steps"], "images": training["images_seen"],
                     "seconds": round(training["hours"] * 3600, 2), "machine": training["machine"], **_parameters(place)})
    seconds = sum(stage["seconds"] for stage in told)
    return {"stages": told, "images_per_second": sum(stage["images"] for stage in told) / seconds if seconds else None,
            "training_mb": _peak_mb() if machine.apart and fresh else None,
            "parameters": told[-1]["parameters"] + sum(stage["parameters"] for stage in told[:-1]),
            "parameters_trained": sum(stage["parameters_trained"] for stage in told)}


def sample_arm(design: ComparisonDesign, arm: Candidate, seed: int, machine: Machine) -> Record:
    """Make the images of one trained arm, and tell how long an image takes and how much memory."""
    run = _run(design, arm, seed)
    model = open_model(run)
    settings, spec = model.settings, model.spec
    plan = design.requests(seed).restricted_to(spec)
    synthesis.generate(model, plan, out=_images_folder(design, arm, seed), seed=seed, batch_size=BATCH, device=machine.device,
                       threads=machine.threads)
    now = {"wall": time.monotonic, "processor": time.process_time}[design.terms.clock]
    taken: dict[int, float] = {}
    with started(device=machine.device, threads=machine.threads, seed=seed) as engine:
        network = model.on(engine.device)
        for size in (1, BATCH):
            rows, times = plan.rows[:size], []
            condition = replace(plan, rows=rows).condition(spec)
            for _ in range(1 + TIMED):  # the first one warms up
                begin = now()
                with engine.autocast():
                    network.sample(condition, [row.seed for row in rows], settings).float().cpu()
                times.append((now() - begin) * 1000 / size)
            taken[size] = statistics.median(times[1:])
    return {"ms_per_image": taken[1], "ms_per_image_of_8": taken[BATCH], "sampling_mb": _peak_mb() if machine.apart else None}


def _machine(*, device: Device, threads: int | None, apart: bool, jobs: int, clock: str) -> Machine:
    """Where trainings run; side by side they are on equal terms in processor time alone."""
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least 1")
    if jobs > 1 and clock != "processor":
        raise UsageError(f"--jobs {jobs}: trainings side by side slow one another in wall-clock time; add --clock processor")
    if jobs > 1 and not apart:
        raise UsageError("several jobs need a process for each training; leave out apart=False")
    return Machine(device=device, threads=threads if threads or jobs == 1 else max(1, available_cores() // jobs), apart=apart, jobs=jobs)


def _records(design: ComparisonDesign, machine: Machine) -> list[Record]:
    """Everything that is known of every arm and seed; measures are taken here, as images come."""
    make = functools.partial(_images_made, design, machine)
    pairs = [(arm, seed) for seed in design.seeds for arm in design.arms]
    if machine.jobs == 1:
        return [_full_record(design, *pair, make(pair)) for pair in pairs]
    with ThreadPoolExecutor(machine.jobs) as pool:
        try:
            return [_full_record(design, *pair, made) for pair, made in zip(pairs, pool.map(make, pairs), strict=True)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure no further training begins


def _images_made(design: ComparisonDesign, machine: Machine, pair: tuple[Candidate, int]) -> Record:
    """One arm and seed trained, and its images made: what that cost, or why it failed."""
    name, call = _name(*pair), _apart if machine.apart else _here
    trained = _piece(design, f"{name}-training", functools.partial(call, train_arm, design, *pair, machine))
    if "failed" in trained:
        return {"failed": trained["failed"]}
    return trained | _piece(design, f"{name}-sampling", functools.partial(call, sample_arm, design, *pair, machine))


def _full_record(design: ComparisonDesign, arm: Candidate, seed: int, made: Record) -> Record:
    """The record of one arm and seed, with every measure of its images if there are any."""
    measures = {} if "failed" in made else _piece(design, f"{_name(arm, seed)}-measures", functools.partial(_measures, design, arm, seed))
    return {"arm": arm.name, "seed": seed, **made, **measures}


def _measures(design: ComparisonDesign, arm: Candidate, seed: int) -> Record:
    images, finding, reference = _images(design, arm, seed), design.terms.finding, _real_reference(design)
    with progress_line(f"measure {_name(arm, seed)}") as progress:
        progress(0.0, "distances and neighbours")
        record = quality_record(reference, images)
        progress(0.4, "near-duplicates")
        record["copies"] = near_copies(*_detector(design, seed), images.pixels)
        if finding:
            progress(0.6, "downstream")
            labelled = None if np.isnan(images.column(finding)).all() else images
            learned = design.training_images(seed).images("train", size=design.size)
            record[DOWNSTREAM] = downstream(learned, labelled, design.held_out(), finding=finding, seed=seed,
                                            config=ClassifierConfig(updates=design.terms.judge_updates))
        progress(1.0, "measured")
    return record


@functools.cache
def _real_reference(design: ComparisonDesign) -> RealReference:
    real = RealImages(train=design.prepared.images("train", size=design.size), held_out=design.reference_images())
    return RealReference.of(real, load_features(design.terms.features, train=real.train))


def _detector(design: ComparisonDesign, seed: int) -> tuple[CopyDetector, FalseAlarms]:
    return _detector_of(design, None if design.terms.train_images is None else seed)


@functools.cache
def _detector_of(design: ComparisonDesign, seed: int | None) -> tuple[CopyDetector, FalseAlarms]:
    """Looks for copies of what the arms of this seed learned from, or of all training images."""
    learned = design.prepared if seed is None else design.training_images(seed)
    held_out = design.held_out()
    return half_calibrated(learned.images("train", size=design.size).pixels, held_out.pixels, held_out.patients())


def _head(design: ComparisonDesign) -> Record:
    """What two comparisons must have in common for their trainings to stand in one table."""
    terms, space = design.terms, _real_reference(design).space
    train, real = design.prepared.images("train", size=design.size), design.reference_images()
    return {"schema": SCHEMA,
            "claim": {"data": design.prepared.digest, "size": design.size, "budget": terms.in_words(), "clock": terms.clock,
                      "num": terms.num, "train_images": terms.train_images, "finding": terms.finding, "augment": terms.augment,
                      "first_stage_part": FIRST_STAGE_PART, "judge_updates": terms.judge_updates,
                      "images": {"train": len(train), "compared": len(real), "patients": len(set(real.patients()))}},
            "settings": {arm.name: arm.settings for arm in design.arms}, "judges": [{"name": space.name, "digest": space.digest}]}


def _written(design: ComparisonDesign, records: Sequence[Record], reference: Record, *, others: Sequence[Record]) -> ComparisonResult:
    """The report, its table and its sheets."""
    real = design.reference_images()
    done = {record["arm"] for record in records if record["seed"] == design.seeds[0] and "failed" not in record}
    made = {arm.name: _images(design, arm, design.seeds[0]).pixels for arm in design.arms if arm.name in done}
    shown = real.pixels[np.random.default_rng(0).permutation(len(real))]
    report = merge_comparisons({**_head(design), "seeds": list(design.seeds), "machine": describe_machine(),
                     "two_stages": [arm.name for arm in design.arms if arm.first is not None], "notes": list(design.notes),
                     "reference": reference, "arms": summary(records), "records": list(records)}, others)
    picture = png_bytes(sheets({REAL: shown, **made}))
    write_json(design.out / "comparison.json", report)
    write_atomic(design.out / "comparison.md", markdown(report))
    write_atomic(design.out / "comparison.png", picture)
    write_atomic(design.out / "comparison.html", page(report, sheet_png=picture))
    return ComparisonResult(out=design.out, report=report)


def _name(arm: Candidate, seed: int) -> str:
    return f"{arm.folder}-seed{seed}"


def _run(design: ComparisonDesign, arm: Candidate, seed: int) -> Run:
    return Run(path=design.out / "runs" / _name(arm, seed))


def _images_folder(design: ComparisonDesign, arm: Candidate, seed: int) -> Path:
    return design.out / "made" / _name(arm, seed)


def _images(design: ComparisonDesign, arm: Candidate, seed: int) -> ImageSet:
    """What an arm made, with the labels that it was asked for."""
    findings = design.prepared.findings
    dataset = read_dataset(_images_folder(design, arm, seed), allow=findings)
    return load_images(dataset, size=design.size, findings=findings, policy=STATED_ONLY)


def _piece(design: ComparisonDesign, name: str, make: Callable[[], Record]) -> Record:
    """The record of one piece, from its file if it is there."""
    path = present_place(design.out / "pieces", f"{name}.json")
    if not path.exists():
        write_json(path, make())
        print(f"compare: {name} is done", file=sys.stderr, flush=True)
    return with_present_comparison(read_json_object(path, remedy="delete it, and the same command makes it again"))


def _parameters(run: Run) -> Record:
    """Numbers in what makes images, and in all that was trained for it, discriminators included."""
    model = open_model(run)
    spec = model.spec
    objective = build_objective(load_recipe(run.path / "config.toml"), findings=spec.findings, sites=spec.sites, masks=spec.masks)
    return {"parameters": sum(weight.numel() for weight in cast(nn.Module, model.network).parameters()),
            "parameters_trained": sum(weight.numel() for weight in objective.players.parameters())}


def _here(work: Callable[..., Record], *arguments: Any) -> Record:
    return work(*arguments)


def _apart(work: Callable[..., Record], *arguments: Any) -> Record:
    """Call a function in a process of its own, whose peak memory is then its own; it ends with this one."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent) as pool:
            done, refused = pool.submit(_caught, work, arguments).result()
    except BrokenProcessPool as error:
        raise OutOfMemoryError("the process of a training was ended from outside, as for want of memory; what was finished is kept, and "
                               "the same command goes on") from error
    if refused is not None:
        told = SynthoraxError(refused[1])
        told.exit_code = refused[0]
        raise told
    return done


def _caught(work: Callable[..., Record], arguments: Sequence[Any]) -> tuple[Record, tuple[int, str] | None]:
    """Our errors as exit code and text, because not all of them survive the way to another process."""
    try:
        return work(*arguments), None
    except SynthoraxError as error:
        return {}, (error.exit_code, str(error))


def _end_with_parent() -> None:
    """End this process when the one that began it is killed; what it trains is in its checkpoints."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _peak_mb() -> float | None:
    """The most memory that this process has held, in MB: on the GPU where it used one, else its own, PyTorch included."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return round(held / 1e6, 1)
    if sys.platform == "linux":  # getrusage would count the process from which this one was forked
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return None if found is None else round(int(found[1]) * 1024 / 1e6, 1)
    return None
