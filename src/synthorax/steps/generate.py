"""Generate: plan rows in, a dataset folder of synthetic films out; a killed generation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.pixels import from_unit, write_png
from synthorax.engine import Engine
from synthorax.errors import InputError
from synthorax.files import remove_temporaries, write_json
from synthorax.progress import Report, quiet
from synthorax.protocols import Model, SampleSettings
from synthorax.run import only_user
from synthorax.steps.plan import Plan, PlanRow
from synthorax.types import Study

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The model that makes the films, by the names that go into every row."""

    model: Model
    name: str
    digest: str


def generate_films(source: Source, plan: Plan, *, out: Path, settings: SampleSettings, engine: Engine,
                   batch_size: int = BATCH_SIZE, report: Report = quiet) -> Dataset:
    """Make every image of the plan as `out`/images/synthetic-<row>.png, with metadata.csv and dataset.json at the end.

    A film depends on its seed and condition. Within one batch size it is the same to the bit whatever was made before; another
    batch size may change the order of additions and with it single grey levels. Raises InputError if `out` holds another
    generation.
    """
    if not plan.rows:
        raise InputError("the plan has no rows, so there is nothing to generate")
    with only_user(out):
        _claim(out, source, plan, settings, batch_size)
        folder = out / "images"
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        for numbers in _chunks(len(plan), batch_size):
            missing = [number for number in numbers if not (folder / _file_name(number)).exists()]
            if missing:
                films = _sample(source.model, plan, numbers, settings=settings, engine=engine, batch_size=batch_size)
                for number in missing:
                    study = _study(source, plan.rows[number], number, settings)
                    write_png(out / study.file_name, films[number - numbers[0]], provenance=_provenance(study))
            report((numbers[-1] + 1) / len(plan), f"{numbers[-1] + 1} of {len(plan)} films")
        studies = [_study(source, row, number, settings) for number, row in enumerate(plan.rows)]
        write_table(out, studies)
        write_facts(out, name=out.name, studies=studies, synthetic=True,
                    extra={"labels": source.model.spec.findings, "model": source.name, "model_digest": source.digest,
                           "settings": asdict(settings)})
    return read_dataset(out)


def preview(model: Model, plan: Plan, *, settings: SampleSettings, engine: Engine) -> NDArray[np.uint8]:
    """The plan's films in memory, [N, S, S], for sample sheets."""
    return np.concatenate([_sample(model, plan, numbers, settings=settings, engine=engine, batch_size=BATCH_SIZE)
                           for numbers in _chunks(len(plan), BATCH_SIZE)])


def _chunks(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _sample(model: Model, plan: Plan, numbers: range, *, settings: SampleSettings, engine: Engine,
            batch_size: int) -> NDArray[np.uint8]:
    """Films of some rows, [n, S, S]; the batch is filled up to its full size so that every film meets the same arithmetic."""
    rows = [plan.rows[number] for number in numbers]
    filled = [*rows, *[rows[-1]] * (batch_size - len(rows))]
    condition = Plan(rows=tuple(filled)).condition(model.spec.findings)
    with engine.autocast():
        films = model.sample(condition, [row.seed for row in filled], settings)
    return np.asarray(from_unit(films[: len(rows), 0].float().cpu().numpy()))


def _file_name(number: int) -> str:
    return f"synthetic-{number:06d}.png"


def _study(source: Source, row: PlanRow, number: int, settings: SampleSettings) -> Study:
    extra = {"model": source.name, "model_digest": source.digest, "seed": str(row.seed), "plan_row": str(number),
             "sampler": settings.sampler, "steps": str(settings.steps), "guidance": f"{settings.guidance:g}",
             "condition": json.dumps(row.requested(), sort_keys=True)}
    return replace(row.study(f"images/{_file_name(number)}"), study_id=f"synthetic-{source.digest[:8]}-{number:06d}", extra=extra)


def _provenance(study: Study) -> dict[str, str]:
    """What every file says of itself."""
    return {"Synthorax": "synthetic radiograph, of no patient; for research", **study.extra}


def _claim(out: Path, source: Source, plan: Plan, settings: SampleSettings, batch_size: int) -> None:
    """Note what is being made in `out`; refuse to mix two generations in one folder."""
    content = json.dumps([row.cells() for row in plan.rows], sort_keys=True)
    claim = {"plan_digest": hashlib.sha256(content.encode()).hexdigest(), "model_digest": source.digest,
             "settings": asdict(settings), "batch_size": batch_size}
    path = out / "generation.json"
    if path.exists():
        if json.loads(path.read_text()) != claim:
            raise InputError("holds films of another plan, model or sampler setting", file=out,
                             remedy="choose another --out, or delete the folder")
        return
    if (out / "metadata.csv").exists():
        raise InputError("is a dataset folder already", file=out, remedy="choose another --out")
    write_json(path, claim)
