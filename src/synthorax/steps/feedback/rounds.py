"""The closed loop: what a classifier gets wrong on validation patients decides which images are made next; then it is trained again."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.dataset import (
    FACTS_NAME,
    TABLE_NAME,
    Dataset,
    copy_files,
    digest_of,
    read_dataset,
    write_dataset,
)
from synthorax.data.lesions import lesions_of
from synthorax.data.pixels import with_bits_of
from synthorax.data.prepared import Prepared, load_images
from synthorax.errors import InputError, UsageError, nearest
from synthorax.files import read_with_digest, write_json, write_with_digest
from synthorax.folders import claimed
from synthorax.judges.classifiers import training_of
from synthorax.judges.cross_fit import CrossFit
from synthorax.progress import Progress, portion, quiet
from synthorax.rng import derive
from synthorax.steps.feedback.config import RefineLoopConfig as RefineLoopConfig
from synthorax.steps.feedback.weak_groups import Errors, kinds_of, missed_and_alarms
from synthorax.steps.planning.plan import MIN_IMAGES_PER_FINDING, STATED_ONLY, Plan, read_plan, row_like
from synthorax.steps.planning.row import PlanRow
from synthorax.steps.screening.filters import asks_a_judge_of_findings
from synthorax.steps.screening.screen import common_size, screen_images, screening_judge
from synthorax.types import ImageSet, Lesion, Stated

Make = Callable[[Plan, Path, Progress], Dataset]
"""Makes the images of a plan as a dataset folder, and goes on where it stopped"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineLoop:
    """All rounds, and the images that were kept."""

    synthetic: Dataset
    rounds: tuple[Mapping[str, Any], ...]
    """the first entry is the classifier without synthetic images, then one a round"""

    def __str__(self) -> str:
        lines = [f"{'round':<8}{'asked':>7}{'kept':>7}   found on validation patients"]
        for told in self.rounds:
            found = ", ".join(f"{name} {entry['recall']:.0%}" for name, entry in told["findings"].items())
            lines.append(f"{told['round']:<8}{told['asked']:>7}{told['kept']:>7}   {found}")
        return "\n".join([*lines, f"images  {self.synthetic.path}; whether they help on test patients: synthorax benefit"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"synthetic": str(self.synthetic.path), "images": len(self.synthetic), "rounds": list(self.rounds)}


def run_refine_loop(make: Make, prepared: Prepared, *, findings: Sequence[str], out: Path, config: RefineLoopConfig | None = None,
             maker: str = "", progress: Progress = quiet) -> RefineLoop:
    """Plan, make, screen and retrain, round after round; errors are counted on validation patients.

    No label of the test split is used; its pixels are, where validation images are too few to calibrate near-duplicates.

    Each round's plan.csv, images, dropped.csv and round.json stay in `out`/round-N, all kept images together in `out`/synthetic, and the
    rounds in `out`/loop.json. The same call goes on after a stop, to the same images and numbers. `maker` names what `make` makes images
    with. Raises InputError where training or validation images with or without a finding are too few, or `out` holds another loop.
    """
    config = config or RefineLoopConfig()
    train, val = prepared.images("train"), prepared.images("val")
    _refuse_few(prepared, train, val, findings)
    with claimed(out, kind="a loop", inputs={"data": prepared.digest, "findings": list(findings), "model": maker, **asdict(config)}):
        needed = asks_a_judge_of_findings(config.filters)
        judge = screening_judge(train, config=config.judge, seed=derive(config.seed, "judge"),
                                progress=portion(progress, 0, 0.1)) if needed else None
        added, told, found = list[ImageSet](), list[dict[str, Any]](), dict[str, tuple[Errors, Errors]]()
        for number in range(config.rounds + 1):
            share = 0.9 / (config.rounds + 1)
            own = portion(progress, 0.1 + number * share, 0.1 + (number + 1) * share)
            own(0, f"round {number} of {config.rounds}")
            folder, plan, reasons = out / f"round-{number}", Plan(rows=()), dict[str, int]()
            if number:
                plan = _plan(folder, train, findings, found if number > 1 else None, number=number, config=config)
                kept, reasons = _images(make, plan, prepared, findings, judge, folder=folder, config=config,
                                        progress=portion(own, 0, 0.6))
                images = load_images(kept, size=common_size(kept, prepared), findings=train.findings, policy=STATED_ONLY)
                added.append(replace(images, pixels=with_bits_of(images.pixels, train.pixels.dtype)))
            size = added[0].pixels.shape[1] if added else prepared.size
            real, requested = (prepared.images(split, size=size) for split in ("train", "val"))
            answers = _answers(folder, real, added, requested, config=config, progress=portion(own, 0.6, 1))
            found = {name: missed_and_alarms(val, answers, name, config.subtypes) for name in findings}
            told.append({"round": str(number), "asked": len(plan), "kept": len(added[-1]) if added else 0,
                         "dropped": reasons, "findings": {name: _finding_record(*found[name], plan, config) for name in findings}})
            write_json(folder / "round.json", told[-1])
        synthetic = _join_rounds([out / f"round-{number + 1}" / "kept" for number in range(config.rounds)], out=out / "synthetic")
        refine_loop = RefineLoop(synthetic=synthetic, rounds=tuple(told))
        write_json(out / "loop.json", refine_loop.to_dict())
        progress(1.0, f"{config.rounds} rounds")
    return refine_loop


def error_plan(train: ImageSet, findings: Sequence[str], found: Mapping[str, tuple[Errors, Errors]] | None, *, num: int,
               subtypes: Sequence[str] = (), seed: int = 0) -> Plan:
    """`num` rows with a finding and as many without, each like one training image, drawn as often as images of its kind are called wrongly.

    `found` has each finding's errors; with None all images are drawn alike. Findings share the rows by how often they are missed. A row
    takes the labels, view, sex, site, side, size and severity of its image, and nearly the age: other kinds than real images show are never
    asked for.
    """
    rng = np.random.default_rng(derive(seed, "error plan"))
    missed = np.array([1.0 if found is None else found[name][0].overall for name in findings])
    shares = np.floor(num * missed / missed.sum()).astype(int)
    shares[np.argsort(-missed)[: num - shares.sum()]] += 1
    rows: list[PlanRow] = []
    for share, name in zip(shares.tolist(), findings, strict=True):
        for value, place in ((1, 0), (0, 1)):
            donors = np.flatnonzero(train.column(name) == value)
            weights = np.array([1.0 if found is None else found[name][place].expected(train.studies[image], subtypes) for image in donors])
            for image in rng.choice(donors, size=share, p=weights / weights.sum()).tolist():
                row = row_like(train, image=image, person=image, seed=derive(seed, "image", len(rows)), rng=rng)
                rows.append(replace(row, lesions=_lesions(train, image, row)))
    return Plan(rows=tuple(rows))


def _lesions(train: ImageSet, image: int, row: PlanRow) -> tuple[Lesion, ...]:
    """Side, size and severity of the image's lesions, where they are stated; place and outline are left to the model."""
    told = (Lesion(finding=lesion.finding, side=lesion.side, size=lesion.size, severity=lesion.severity)
            for lesion in lesions_of(train.studies[image]) if row.labels.get(lesion.finding) is Stated.PRESENT)
    return tuple(lesion for lesion in told if lesion.side or not (math.isnan(lesion.size) and math.isnan(lesion.severity)))


def _plan(folder: Path, train: ImageSet, findings: Sequence[str], found: Mapping[str, tuple[Errors, Errors]] | None, *, number: int,
          config: RefineLoopConfig) -> Plan:
    path = folder / "plan.csv"
    if not path.exists():
        seed = derive(config.seed, "round", number)
        error_plan(train, findings, found, num=config.num, subtypes=config.subtypes, seed=seed).write(path)
    return read_plan(path, allow=train.findings)


def _images(make: Make, plan: Plan, prepared: Prepared, findings: Sequence[str], judge: CrossFit | None, *, folder: Path,
            config: RefineLoopConfig, progress: Progress) -> tuple[Dataset, dict[str, int]]:
    """The images of a round that pass screening, and why the others do not."""
    generated = make(plan, folder / "made", portion(progress, 0, 0.7))
    screened = screen_images(generated, prepared, out=folder / "kept", findings=findings, filters=config.filters, seed=config.seed,
                            judge=judge if common_size(generated, prepared) == prepared.size else None, progress=portion(progress, 0.7, 1))
    return screened.kept, screened.reasons


def _answers(folder: Path, real: ImageSet, added: Sequence[ImageSet], val: ImageSet, *, config: RefineLoopConfig,
             progress: Progress) -> NDArray[np.float64]:
    """What classifiers trained on real and all synthetic images so far say of the validation images, [V, K], averaged."""
    path = folder / "validation.npy"
    if path.exists():
        return np.asarray(np.load(io.BytesIO(read_with_digest(path)), allow_pickle=False))
    images, train = ImageSet.join([real, *added]), training_of(config.classifier)
    answers = np.mean([train(images.pixels, images.labels, findings=images.findings, config=config.classifier,
                             seed=derive(config.seed, "training", run),
                             progress=portion(progress, run / config.trainings, (run + 1) / config.trainings)).predict(val.pixels)
                       for run in range(config.trainings)], axis=0)
    buffer = io.BytesIO()
    np.save(buffer, answers)
    write_with_digest(path, buffer.getvalue())
    return np.asarray(answers)


def _finding_record(missed: Errors, alarms: Errors, plan: Plan, config: RefineLoopConfig) -> dict[str, Any]:
    """One finding's recall, by kind too, and how many rows of the plan asked for each kind."""
    rows = [row.study("") for row in plan.rows if row.labels.get(missed.finding) is Stated.PRESENT]
    requested = Counter(kind for study in rows for kind in kinds_of(study, missed.finding, config.subtypes))
    groups = [group.to_dict() | {"asked": requested[kind]} for kind, group in missed.groups.items()]
    return {"recall": missed.recall, "images": missed.images, "false_alarms": alarms.wrong, "lacking": alarms.images, "asked": len(rows),
            "groups": groups}


def _join_rounds(parts: Sequence[Path], *, out: Path) -> Dataset:
    """The kept images of all rounds as one dataset folder, each round's under a folder of its own."""
    sets = [read_dataset(part) for part in parts]
    with claimed(out, kind="the images of a loop", inputs={"rounds": [digest_of(part) for part in sets]}) as folder:
        if not folder.done:
            _join(sets, out=folder.work, name=out.name)
            folder.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _join(sets: Sequence[Dataset], *, out: Path, name: str) -> None:
    """Write the images of all rounds into the empty folder `out`."""
    studies = []
    for number, dataset in enumerate(sets, start=1):
        place = f"round-{number}"
        for study in dataset.studies:
            study = copy_files(study, source=dataset.path, out=out / place)
            masks = {column: tuple(path and f"{place}/{path}" for path in paths) for column, paths in study.masks.items()}
            studies.append(replace(study, file_name=f"{place}/{study.file_name}", study_id=f"{study.study_id}-r{number}", masks=masks,
                                   extra={**study.extra, "round": str(number)}))
    judges = {judge["digest"]: judge for dataset in sets for judge in dataset.facts["judges"]}
    told = {name: sets[0].facts[name] for name in ("model", "model_digest", "settings", "trained_on") if name in sets[0].facts}
    write_dataset(out, studies, name=name, synthetic=True,
                  facts={**told, "judges": list(judges.values()), "labels": list(sets[0].findings)})


def _refuse_few(prepared: Prepared, train: ImageSet, val: ImageSet, findings: Sequence[str]) -> None:
    if not findings:
        raise UsageError("say which finding the loop is to get right")
    for name in findings:
        if name not in train.findings:
            raise InputError(f"no image states '{name}'", file=prepared.path, remedy=nearest(name, train.findings))
        for split, images in (("training", train), ("validation", val)):
            for value, what in ((1, "show"), (0, "lack")):
                if (count := int((images.column(name) == value).sum())) < MIN_IMAGES_PER_FINDING:
                    raise InputError(f"only {count} {split} images {what} '{name}'; at least {MIN_IMAGES_PER_FINDING} are needed",
                                     file=prepared.path,
                                     remedy="prepare with a larger --split for validation, or add images")
