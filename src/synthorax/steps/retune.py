"""The same training with another length of averaging: a new run folder from the snapshots that a run kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from synthorax.errors import InputError
from synthorax.files import write_atomic
from synthorax.run import Run, read_spec, save_weights
from synthorax.steps.card import model_head, read_card, write_card
from synthorax.training.power_ema import average_of

SNAPSHOTS = "snapshots"
COPIED = ("config.toml", "data.json")


def retune(run: Run, *, length: float, out: str | Path, films: int | None = None) -> Run:
    """A finished run's model with its weights averaged over `length`, in parts of the whole training, as a run in `out`.

    With `films`, as it was when it had seen so many: a weaker model, as autoguidance needs one. Raises InputError where the run is not
    finished, or kept no snapshots (`train.ema_snapshots`).
    """
    if not run.finished:
        raise InputError("is not finished, so its snapshots do not reach its end", file=run.path, remedy="train on first")
    spec, facts = read_spec(run.weights)
    weights = average_of(run.path / SNAPSHOTS, length=length, films=films)
    out = Path(out)
    average = {"average_length": length} | ({} if films is None else {"average_films": films})
    tuned, facts = Run(path=out), facts | average
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run.path / name, out / name)
    training = [entry | average for entry in read_card(run.path / "card.md")["training"]]
    head = model_head(spec, facts, name=str(facts.get("recipe", spec.family)))
    write_atomic(out / "card.md", write_card(head | {"training": training}))
    save_weights(tuned.weights, weights, spec=spec, facts=facts)
    return tuned
