"""Other weights of the same training: another length of averaging, or a point between a model and what was trained from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from synthorax.errors import InputError, UsageError
from synthorax.files import write_atomic
from synthorax.run import Run, save_weights
from synthorax.steps.models.card import model_head, read_card, write_card
from synthorax.steps.models.trained_model import open_model
from synthorax.training.power_ema import average_of

SNAPSHOTS = "snapshots"
COPIED = ("config.toml", "data.json")


def retune(run: Run, *, length: float, out: str | Path, images: int | None = None) -> Run:
    """A finished run's model with its weights averaged over `length`, in parts of the whole training, as a run in `out`.

    With `images`, as it was when it had seen so many: a weaker model, as autoguidance needs one. Raises InputError where the run is not
    finished, or kept no snapshots (`train.ema_snapshots`).
    """
    if not run.finished:
        raise InputError("is not finished, so its snapshots do not reach its end", file=run.path, remedy="train on first")
    model = open_model(run)
    weights = average_of(run.path / SNAPSHOTS, length=length, images=images)
    out = Path(out)
    average = {"average_length": length} | ({} if images is None else {"average_images": images})
    tuned, facts = Run(path=out), {**model.facts, **average}
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run.path / name, out / name)
    training = [entry | average for entry in read_card(run.path / "card.md")["training"]]
    head = model_head(model.spec, facts, name=model.name)
    write_atomic(out / "card.md", write_card(head | {"training": training}))
    save_weights(tuned.weights, weights, spec=model.spec, facts=facts)
    return tuned


def blend(base: Run, trained: Run, *, part: float, out: str | Path) -> Run:
    """A model whose weights lie between those of a base (`part` 0) and of a training that began with them (1), as a run in `out`.

    Between the two, networks change evenly enough that halfway to a student of autoguidance lies about half of that guidance
    (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", who blend classifiers so). It is sampled as the base is; its card
    tells the training of `trained`. Raises InputError where the shapes differ, and UsageError for a part
    outside 0 to 1.
    """
    if not 0 <= part <= 1:
        raise UsageError(f"part {part} of the way is outside 0 to 1")
    start, end = open_model(base), open_model(trained)
    first, second = start.weights, end.weights
    if {key: value.shape for key, value in first.items()} != {key: value.shape for key, value in second.items()}:
        raise InputError(f"has other weights than {base.path}, so nothing lies between them", file=trained.path)
    weights = {key: torch.lerp(value.float(), second[key].float(), part).to(value.dtype) if value.is_floating_point() else second[key]
               for key, value in first.items()}
    run, blend = Run(path=Path(out)), {"blended": {"part": part, "with": start.digest}}
    facts = {**end.facts, **blend}
    run.path.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(trained.path / name, run.path / name)
    training = [entry | blend for entry in read_card(trained.path / "card.md")["training"]]
    head = model_head(start.spec, facts, name=str(facts.get("recipe", start.spec.family)))
    write_atomic(run.path / "card.md", write_card(head | {"training": training}))
    save_weights(run.weights, weights, spec=start.spec, facts=facts)
    return run
