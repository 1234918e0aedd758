"""Verbs that measure: evaluate, benefit, audit, check_poisoning, drift, lesion_noise."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.masks import mask_classes
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.vocabulary import canonical
from synthorax.engine import Device, started
from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.benefit.design import known_to_generator
from synthorax.evaluation.benefit.study import BenefitConfig, measure_benefit
from synthorax.evaluation.benefit.worst_cases import NOTE as GALLERY_NOTE
from synthorax.evaluation.dimensions.radiomics_quality import radiomics_quality
from synthorax.evaluation.dimensions.readings import read_readings
from synthorax.evaluation.measure import evaluate_images
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.metrics.lesion_snr import LesionNoiseReport, lesion_noise_plot, lesion_noise_table, report_lesion_noise
from synthorax.evaluation.monitoring.drift import Drift, drift_between
from synthorax.evaluation.monitoring.drift_page import drift_page
from synthorax.evaluation.monitoring.poison import PoisonConfig
from synthorax.evaluation.report.folder import report_folder
from synthorax.evaluation.report.record import Report
from synthorax.files import write_atomic, write_json
from synthorax.folders import claimed, identity_of
from synthorax.judges.features import load_features, usual_features
from synthorax.privacy.audit import AuditConfig, audit_images
from synthorax.progress import Progress, portion, progress_line, quiet
from synthorax.steps.loss_attack import loss_attack
from synthorax.steps.models.trained_model import ModelLike, PathLike, TrainedModel, open_model
from synthorax.steps.planning.plan import STATED_ONLY
from synthorax.steps.poisoning import CheckedSet, check_dataset
from synthorax.steps.screening.screen import common_size
from synthorax.types import ImageSet
from synthorax.verbs.inputs import dataset_of, prepared_of


def check_poisoning(suspects: Dataset | PathLike, *, against: Prepared | PathLike, out: PathLike, drop: bool = False, seed: int = 0,
        device: Device = "auto", threads: int | None = None) -> CheckedSet:
    """Flag images that would poison a training: triggers, adversarial noise, wrong labels; see `steps.poisoning.check_dataset`."""
    with started(device=device, threads=threads, seed=seed), progress_line("check-poisoning") as progress:
        return check_dataset(dataset_of(suspects), prepared_of(against), out=Path(out), drop=drop, config=PoisonConfig(seed=seed),
                             progress=progress)


def drift(old: PathLike, new: PathLike, *, out: PathLike | None = None, features: str = "efficientnet-lite0", size: int = 128,
          seed: int = 0, device: Device = "auto", threads: int | None = None) -> Drift:
    """Compare two folders of images, dataset folders or prepared ones; writes report.json and report.html. See `drift.drift_between`."""
    folders = [Path(folder) for folder in (old, new)]
    prepared = [Prepared.load(folder) if (folder / "prepared.json").exists() else None for folder in folders]
    size = min([size, *(part.size for part in prepared if part is not None)])
    with progress_line("drift") as progress:
        earlier = (prepared[0].images(size=size) if prepared[0] is not None else
                   load_images(read_dataset(folders[0]), size=size, progress=portion(progress, 0, 0.1)))
        later = (prepared[1].images(size=size) if prepared[1] is not None else
                 load_images(read_dataset(folders[1]), size=size, findings=earlier.findings, progress=portion(progress, 0.1, 0.2)))
        inputs = {"old images": earlier.digest, "new images": later.digest, "features": identity_of(features), "seed": seed}
        with contextlib.nullcontext() if out is None else claimed(out, kind="a drift report", inputs=inputs):
            with started(device=device, threads=threads, seed=seed):
                space = load_features(features, train=earlier, seed=seed)
                found = drift_between(earlier, later, features=space, seed=seed, progress=portion(progress, 0.2, 1))
            if out is not None:
                write_json(Path(out) / "report.json", found.to_dict())
                write_atomic(Path(out) / "report.html", drift_page(found))
    return found


def evaluate(*, real: Prepared | PathLike, synthetic: Dataset | PathLike, out: PathLike | None = None,
             features: str | Sequence[str] | None = None, quick: bool = False, readings: PathLike | None = None,
             rqs: PathLike | None = None, seed: int = 0, device: Device = "auto", threads: int | None = None,
             command: str = "") -> Report:
    """Measure a synthetic set, by any generator, against real images; writes report.json and report.html if `out` is given.

    `features` are one or more names or files, see `judges.features.load_features`; groups are measured in the first. None: those of
    `judges.features.usual_features`. `quick` trains no
    judge and corrupts no image. `readings` is a table of what readers said of the images, see `dimensions.readings.read_readings`,
    `rqs` the answers to the radiomics quality score, see `dimensions.radiomics_quality`. `command` is recorded in the report.
    """
    prepared, made = prepared_of(real), dataset_of(synthetic)
    if features is None:
        features = usual_features(common_size(made, prepared), quick=quick)
    names = [features] if isinstance(features, str) else list(dict.fromkeys(features))
    if not names:
        raise UsageError("evaluate needs at least one feature space")
    read = None if readings is None else read_readings(readings, real=prepared.studies, synthetic=made.studies, findings=prepared.findings)
    quality = {} if rqs is None else {"radiomics_quality": radiomics_quality(rqs)}
    settings = {"features": [identity_of(name) for name in names], "quick": quick, "readings": identity_of(readings),
                "rqs": identity_of(rqs), "seed": seed}
    with progress_line("evaluate") as progress:
        sides, images = _sides(prepared, made, masks=True, progress=portion(progress, 0, 0.1))
        with report_folder(out, part="an evaluation", real=prepared.digest, synthetic=images.digest, settings=settings) as folder:
            if folder.done:
                return folder.read()
            with started(device=device, threads=threads, seed=seed):
                spaces = [load_features(name, train=sides.train, seed=seed) for name in names]
                report = evaluate_images(sides, images, features=spaces, facts=made.facts, seed=seed, quick=quick, readings=read,
                                         progress=portion(progress, 0.1, 1))
            return folder.written(replace(report, inputs={**report.inputs, **quality}, command=command))


def benefit(*, real: Prepared | PathLike, synthetic: Dataset | PathLike, findings: Sequence[str], out: PathLike | None = None,
            config: BenefitConfig | None = None, seed: int = 0, device: Device = "auto", threads: int | None = None,
            into: Report | None = None, external: Prepared | PathLike | None = None, keep: PathLike | None = None,
            command: str = "") -> Report:
    """Find out whether adding the synthetic images helps on real patients never seen; `into` is a report to complete.

    `external` is a prepared folder of another hospital, on all of whose images both arms are tested too. Finished trainings are kept in
    `keep`, by default `out`/trainings, and the same call after a stop goes on with the others. `command` is recorded in the report.
    """
    prepared, made = prepared_of(real), dataset_of(synthetic)
    names = [canonical(name, allow=prepared.findings) for name in findings]
    for name in names:
        if name not in prepared.findings:
            raise InputError(f"no image states '{name}'", file=prepared.path, remedy=nearest(name, prepared.findings))
    sides, images = _sides(prepared, made)
    config = config or BenefitConfig(seed=seed)
    unseen = known_to_generator(made.facts, prepared, cross_validated=bool(config.folds)) == "nothing"
    keep = Path(keep) if keep is not None else None if out is None else Path(out) / "trainings"
    other = None if external is None else prepared_of(external)
    classifier = {**asdict(config.classifier), "weights": identity_of(config.classifier.weights or None)}
    settings = {"findings": names, "settings": {**asdict(config), "classifier": classifier}, "external": other and other.digest,
                "seed": seed}
    with report_folder(out, part="a benefit", real=prepared.digest, synthetic=images.digest, settings=settings) as folder:
        if folder.done:
            return folder.read()
        with started(device=device, threads=threads, seed=seed) as engine, progress_line("benefit") as progress:
            if config.classifier.network not in ("small", "linear-probe"):  # these are as fast on a processor, and the same everywhere
                config = replace(config, classifier=replace(config.classifier, device=str(engine.device)))
            size = images.pixels.shape[1]
            found = measure_benefit(sides.train, prepared.images("test", size=size), images, findings=names, config=config,
                                    real_val=prepared.images("val", size=size), train_unseen=unseen, keep=keep, progress=progress,
                                    external=None if other is None else other.images(size=size))
        if into is None:
            real_facts = {"digest": prepared.digest, "images": len(sides.train) + len(sides.held_out)}
            into = Report(inputs={"real": real_facts, "synthetic": {"digest": images.digest, "images": len(images)}})
        if other is not None:
            into = replace(into, inputs={**into.inputs, "external": {"digest": other.digest, "images": len(other)}})
        if found.figures:
            into = replace(into, notes=(*into.notes, GALLERY_NOTE))
        into = replace(into, command=command or into.command)
        return folder.written(into.with_dimension("benefit", found.to_dimension(), figures=found.figures))


def audit(*, train: Prepared | PathLike, synthetic: Dataset | PathLike, out: PathLike | None = None, model: ModelLike | None = None,
          reference: ModelLike | None = None, features: str = "efficientnet-lite0", config: AuditConfig | None = None, seed: int = 0,
          device: Device = "auto", threads: int | None = None, command: str = "") -> Report:
    """Look for copies, membership and re-identification; writes report.json, report.html and cards.jsonl if `out` is given.

    `train` is the prepared folder that the generator was trained on; `model` the diffusion model that made the images, for the
    loss-based attack, and `reference` another one that never saw these training images. Whether a release should go out is
    `report.dimensions["privacy"].extra["gate"]`. `command` is recorded in the report.
    """
    prepared, made = prepared_of(train), dataset_of(synthetic)
    sides, images = _sides(prepared, made)
    if reference is not None and model is None:
        raise UsageError("a reference model corrects the loss of a model; give the model too")
    config = config or AuditConfig(seed=seed)
    opened, other = (None if given is None else open_model(given) for given in (model, reference))
    model_identity, reference_identity = (None if own is None else own.digest for own in (opened, other))
    settings = {"model": model_identity, "reference": reference_identity, "features": identity_of(features), "settings": asdict(config),
                "seed": seed}
    with report_folder(out, part="an audit", real=prepared.digest, synthetic=images.digest, settings=settings) as folder:
        if folder.done:
            return folder.read()
        report = _audited(prepared, made, sides, images, out=out, model=opened, reference=other, features=features, config=config,
                          seed=seed, device=device, threads=threads)
        return folder.written(replace(report, command=command))


def _audited(prepared: Prepared, made: Dataset, sides: RealImages, images: ImageSet, *, out: PathLike | None, model: TrainedModel | None,
             reference: TrainedModel | None, features: str, config: AuditConfig, seed: int, device: Device, threads: int | None) -> Report:
    with started(device=device, threads=threads, seed=seed), progress_line("audit") as progress:
        attack: Any = "no diffusion model was given (--model)" if model is None else loss_attack(prepared, model, reference, seed=seed)
        found = audit_images(sides.train, sides.held_out, images, features=load_features(features), facts=made.facts, progress=progress,
                            config=config, loss_attack=attack)
    inputs = {"real": {"digest": prepared.digest, "train": len(sides.train), "held_out": len(sides.held_out)},
              "synthetic": {"digest": images.digest, "images": len(images)}}
    report = Report(inputs=inputs, judges=found.judges, dimensions={"privacy": found.dimension}, figures=found.figures)
    if out is not None:
        lines = "".join(json.dumps(card, ensure_ascii=False) + "\n" for card in found.cards)
        write_atomic(Path(out) / "cards.jsonl", lines)
    return report


def lesion_noise(data: Prepared | PathLike, *, size: int | None = None, quantile: float = 0.25, part: float = 0.5,
                 out: PathLike | None = None) -> LesionNoiseReport:
    """Find up to which noise level the lesions of the training images can be seen, and which noise levels keep small ones.

    `size` is the image size that will be trained; `out` gets lesion_noise.json, .md and .svg. Raises InputError without lesion masks.
    """
    with progress_line("lesion-noise") as progress:
        progress(0.0, "reading the training images and their masks")
        images = prepared_of(data).images("train", size=size, masks=True)
        report = report_lesion_noise(images, quantile=quantile, part=part, progress=portion(progress, 0.3, 1))
    if out is not None:
        lesions = hashlib.sha256(json.dumps(report.to_dict(), default=str).encode()).hexdigest()
        inputs = {"images": images.digest, "lesions": lesions, "size": size, "quantile": quantile, "part": part}
        with claimed(out, kind="a report on lesions in noise", inputs=inputs):
            write_json(Path(out) / "lesion_noise.json", report.to_dict())
            write_atomic(Path(out) / "lesion_noise.md", lesion_noise_table(report))
            write_atomic(Path(out) / "lesion_noise.svg", lesion_noise_plot(report))
    return report


def _sides(prepared: Prepared, synthetic: Dataset, *, masks: bool = False, progress: Progress = quiet) -> tuple[RealImages, ImageSet]:
    """Both sides at one size; held-out images are those of the validation and the test split. With `masks`, those that the tables name."""
    size = common_size(synthetic, prepared)
    asked = masks and bool(mask_classes(synthetic.studies, prepared.findings))
    images = load_images(synthetic, size=size, findings=prepared.findings, policy=STATED_ONLY, masks=asked, progress=progress)
    known = masks and bool(prepared.mask_classes())
    held_out = tuple(prepared.images(split, size=size, masks=known) for split in ("val", "test"))
    real = RealImages(train=prepared.images("train", size=size, masks=known), held_out=ImageSet.join(held_out, digest=prepared.digest))
    return real, images
