"""Verbs that make images and choose among them: plan, generate, insert, screen, refine_loop, export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from synthorax.capabilities import LayoutMaker
from synthorax.data.dataset import Dataset
from synthorax.data.prepared import Prepared
from synthorax.data.vocabulary import canonical
from synthorax.engine import Device, Inference, started
from synthorax.errors import UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.former_names import refuse_former_keywords
from synthorax.options import Request, SampleSettings
from synthorax.progress import Progress, portion, progress_line
from synthorax.steps.export.diffusers import export_diffusers
from synthorax.steps.export.images import export_dataset
from synthorax.steps.feedback.rounds import RefineLoop, RefineLoopConfig, run_refine_loop
from synthorax.steps.generate import MAX_BATCH_SIZE, changed_settings, check_settings, generate_images
from synthorax.steps.insertion.config import InsertConfig
from synthorax.steps.insertion.hosts import find_hosts
from synthorax.steps.insertion.insert import Inserted, insert_images
from synthorax.steps.insertion.lesions import lesion_maker
from synthorax.steps.insertion.lungs import LungFinder, guard_of
from synthorax.steps.models.recipe import families_that_can
from synthorax.steps.models.trained_model import ModelLike, PathLike, open_model
from synthorax.steps.planning.plan import Plan, balancing_plan, check_counts, check_num, read_plan, repeated
from synthorax.steps.planning.request import row_of
from synthorax.steps.screening.config import ScreenConfig
from synthorax.steps.screening.screen import Screened, screen_images
from synthorax.verbs.inputs import dataset_of, prepared_of


def plan(data: Prepared | PathLike, *, balance: Sequence[str] = (), count: Mapping[str, int] | None = None,
         companions: float = 1.0, model: ModelLike | None = None, seed: int = 0, out: PathLike | None = None) -> Plan:
    """Decide which images to make; see `steps.planning.plan.balancing_plan`. `out` is where plan.csv goes.

    What `model` is not conditioned on is left out of the plan, such as the site where it knows none. Raises UsageError and InputError.
    """
    if not balance and not count:
        raise UsageError("say what to balance (balance=...) or how many of which finding to make (count=...)")
    check_counts(count or {}, companions=companions)
    prepared = prepared_of(data)
    names = list(balance) if list(balance) == ["all"] else [canonical(name, allow=prepared.findings) for name in balance]
    counts = {canonical(name, allow=prepared.findings): number for name, number in (count or {}).items()}
    with progress_line("plan") as progress:
        progress(0.0, "reading the training images")
        decided = balancing_plan(prepared.images("train"), balance=names, count=counts, companions=companions, seed=seed,
                                 progress=portion(progress, 0.1, 0.8))
        if model is not None:
            decided = decided.restricted_to(open_model(model).spec)
        if out is not None:
            decided.write(Path(out))
        progress(1.0, f"{len(decided)} images")
    return decided


@refuse_former_keywords(Request, SampleSettings, plan="what")
def generate(model: ModelLike, what: Plan | Request | PathLike | None = None, *, out: PathLike,
             settings: SampleSettings | Mapping[str, Any] | None = None, seed: int = 0, batch_size: int | None = None,
             device: Device = "auto", threads: int | None = None, inference: Inference | None = None) -> Dataset:
    """Make the images of a plan, or of a request, as a dataset folder; a generation that was stopped goes on where it stopped.

    `what` is a plan, the path of one, or a `Request`; by default a request for nothing in particular. `settings` say how images are drawn:
    all of them, or a mapping of those that differ from the model's recipe. By default a batch has one image a thread, 16 on a GPU; a larger
    `batch_size` takes more memory, and any other may change single grey levels. `inference` says what runs the networks: torch, openvino,
    or auto, which takes OpenVINO on a CPU where it is installed; None takes the variable SYNTHORAX_INFERENCE, or auto. Everything is
    checked before anything is written:
    UsageError, or InputError with file and row for a plan that is a table.

    >>> request = Request(finding=["Mass"], side="left", box=[("Mass", (0.6, 0.2, 0.2, 0.2))])
    >>> generate("runs/a", request, out="made", settings={"steps": 12})  # doctest: +SKIP
    """
    what = Request() if what is None else what
    if isinstance(what, Request):
        check_num(what.num)
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"batch_size {batch_size}: choose from 1 to {MAX_BATCH_SIZE} images at a time")
    trained = open_model(model)
    spec = trained.spec
    if spec.family in families_that_can(LayoutMaker):
        raise UsageError(f"{trained.name} draws outlines of findings and no images; insert lesions of them into images without the finding "
                         "(synthorax insert HOSTS --finding FINDING --out FOLDER)")
    settings = settings if isinstance(settings, SampleSettings) else changed_settings(trained.settings, settings or {})
    if isinstance(what, Request):
        if what.image_size not in (None, spec.image_size):
            raise UsageError(f"{trained.name} makes images of {spec.image_size} px, not of {what.image_size}; leave out the size, or take "
                             "another model")
        plan = repeated(row_of(what, spec), num=what.num, seed=seed)
    else:
        plan = what if isinstance(what, Plan) else read_plan(Path(what), allow=spec.findings)
    check_settings(trained.network, settings)
    with started(device=device, threads=threads, seed=seed) as engine, progress_line("generate") as progress:
        return generate_images(trained, plan, out=Path(out), settings=settings, engine=engine, batch_size=batch_size, inference=inference,
                               progress=progress)


def insert(hosts: Dataset | Prepared | PathLike, *, finding: str, out: PathLike, from_: ModelLike | None = None,
           config: InsertConfig | None = None, lungs: PathLike | None = None, seed: int = 0, device: Device = "auto",
           threads: int | None = None) -> Inserted:
    """Insert a lesion into images without it, at their own size and bits; outside the lesion's mask and rim no pixel of a file changes.

    `hosts` is a folder of images, a dataset folder or a prepared one; of the latter two, training images without the finding are used. The
    images show their patients, and say so: they may only train, and `export` refuses them. `from_` is the model of the lesions, by default
    the one that ships, or `template` for lesions by a formula; `lungs` is the file of another lung model. A call that was stopped goes on.
    Raises UsageError for a finding that nothing inserts, and InputError where no image can be used; see `steps.insertion.insert`.

    >>> insert("dataset/", finding="Nodule", out="inserted/", config=InsertConfig(side="left"), seed=1)  # doctest: +SKIP
    """
    config = config or InsertConfig()
    for key, fault in config.faults():
        raise UsageError(f"{key}: {fault}")
    source = hosts if isinstance(hosts, Dataset | Prepared) else Path(hosts)
    finder = LungFinder(lungs)
    with started(device=device, threads=threads, seed=seed), progress_line("insert") as progress:
        maker = lesion_maker(finding, config, model=from_, find_lungs=finder)
        found = find_hosts(source, maker.finding, assume_absent=config.assume_absent)
        return insert_images(found, maker, out=Path(out), seed=seed, find_lungs=finder.of_host, lungs_digest=finder.digest,
                             guard=guard_of(finder, maker.finding), progress=progress)


@refuse_former_keywords(ScreenConfig)
def screen(synthetic: Dataset | PathLike, *, against: Prepared | PathLike, out: PathLike, config: ScreenConfig | None = None, seed: int = 0,
           device: Device = "auto", threads: int | None = None) -> Screened:
    """Drop near-duplicates and images that do not show what was asked for; see `steps.screening.screen.screen_images`."""
    made, prepared, config = dataset_of(synthetic), prepared_of(against), config or ScreenConfig()
    names = [canonical(name, allow=prepared.findings) for name in config.findings]
    with started(device=device, threads=threads, seed=seed), progress_line("screen") as progress:
        return screen_images(made, prepared, out=Path(out), findings=names, filters=config.filters, classifier=config.classifier, seed=seed,
                             progress=progress)


def refine_loop(model: ModelLike, *, real: Prepared | PathLike, findings: Sequence[str], out: PathLike,
                config: RefineLoopConfig | None = None, seed: int = 0, device: Device = "auto", threads: int | None = None) -> RefineLoop:
    """Make images, train a classifier with them, and let its errors on validation patients say what to make next; see
    `steps.feedback.rounds.run_refine_loop`.

    >>> refine_loop("runs/a", real="prepared", findings=["Pneumothorax"], out="rounds")  # doctest: +SKIP
    """
    check_num(2 * (config or RefineLoopConfig()).num)
    trained = open_model(model)
    settings = trained.settings
    prepared = prepared_of(real)
    names = list(dict.fromkeys(canonical(name, allow=prepared.findings) for name in findings))
    with started(device=device, threads=threads, seed=seed) as engine, progress_line("refine-loop") as progress:
        def make(plan: Plan, folder: Path, progress: Progress) -> Dataset:
            return generate_images(trained, plan.restricted_to(trained.spec), out=folder, settings=settings, engine=engine,
                                   progress=progress)

        return run_refine_loop(make, prepared, findings=names, out=Path(out), config=config or RefineLoopConfig(seed=seed),
                               maker=trained.digest, progress=progress)


def export(dataset: Dataset | PathLike, *, format: Literal["dicom", "png"], out: PathLike, allow_derived: bool = False) -> Path:
    """Write a dataset folder's images as DICOM or PNG with their provenance.

    Images that are derived from a patient's, as `insert` makes them, are an InputError unless `allow_derived`: they show that patient.
    """
    with progress_line("export") as progress:
        return export_dataset(dataset_of(dataset), format=format, out=Path(out), allow_derived=allow_derived, progress=progress)


def export_model(model: ModelLike, *, out: PathLike, finding: Sequence[str] = ()) -> Path:
    """Write a diffusion model as a folder that diffusers loads, where its network fits; it then makes images of these findings alone.

    Raises UsageError that names every reason for which a network does not fit; see `steps.export.diffusers.export_diffusers`.
    """
    trained = open_model(model)
    network, spec, settings = trained.network, trained.spec, trained.settings
    if not isinstance(network, DiffusionModel):
        raise UsageError(f"{trained} of family '{spec.family}' is no diffusion model of ours, and only these go to diffusers")
    chosen = repeated(row_of(Request(finding=finding), spec), num=1, seed=0)
    asked = json.dumps(chosen.rows[0].requested(), sort_keys=True) if finding else ""
    with progress_line("export-model") as progress:
        return export_diffusers(network, Path(out), condition=chosen.condition(spec), asked=asked, clip=settings.clip,
                                noise_schedule="cosine" if settings.schedule == "cosine" else "linear", progress=progress)
