"""Pack: trained stages become one cascade in one file, which samples like any other model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import load_file

from synthorax import __version__
from synthorax.errors import InputError, UsageError, nearest
from synthorax.families.cascade import CascadeModel, cascade_spec
from synthorax.files import write_atomic
from synthorax.protocols import ModelSpec
from synthorax.run import Run, only_user, read_spec, save_model, weights_digest
from synthorax.steps.card import model_head, training_of, write_card
from synthorax.steps.models import PathLike, weights_of

Precision = Literal["bf16", "fp32"]


def pack_cascade(runs: Sequence[PathLike | Run], out: Path, *, name: str = "", precision: Precision = "bf16") -> Run:
    """Write the models of `runs`, the one that makes small films first, as one cascade in the folder `out`.

    Its metadata name each stage with the digest of its weights; what was seen in training is that of the first. `precision` bf16 halves the
    file, fp32 keeps every bit. The same call again leaves the same file. Raises UsageError where a stage cannot follow the one before,
    and InputError for an `out` that holds something else.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision '{precision}'; {nearest(precision, get_args(Precision))}")
    paths = [weights_of(run) for run in runs]
    read = [read_spec(path) for path in paths]
    specs, facts = [spec for spec, _ in read], [stated for _, stated in read]
    spec = cascade_spec(specs, [stated.get("sample", {}) for stated in facts[1:]], records=[asdict(own) for own in specs])
    model = CascadeModel(spec)
    for stage, path in zip(model.stages, paths, strict=True):
        stage.load_state_dict(load_file(path))
    stages = [_stage(own, stated, path) for own, stated, path in zip(specs, facts, paths, strict=True)]
    name = name or out.resolve().name
    told: dict[str, Any] = {"recipe": name, "stages": stages, "precision": precision, "tool": f"synthorax {__version__}"}
    told |= {key: facts[0][key] for key in ("sample", "support") if key in facts[0]}
    sources = [source for stated in facts for source in stated.get("sources", ())]
    told["sources"] = [source for number, source in enumerate(sources) if source not in sources[:number]]
    run = Run(path=out)
    with only_user(out):
        _claim(run, stages, precision)
        write_atomic(out / "card.md", _card(name, spec, told, facts))
        save_model(run.weights, model.eval(), spec=spec, facts=told, precision=precision)
    return run


def _stage(spec: ModelSpec, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the cascade remembers of a stage."""
    told: dict[str, Any] = {"digest": weights_digest(path), "image_size": spec.image_size}
    return told | {key: facts[key] for key in ("recipe", "steps", "films_seen", "data_digest") if key in facts}


def _claim(run: Run, stages: Sequence[dict[str, Any]], precision: Precision) -> None:
    """Refuse a folder that holds a training, another model or anything else."""
    if run.weights.exists():
        facts = read_spec(run.weights)[1]
        if (facts.get("stages"), facts.get("precision")) == (list(stages), precision):
            return
        raise InputError("holds another model", file=run.path, remedy="choose another --out")
    if any(entry.name not in (".lock", "card.md") for entry in run.path.iterdir()):
        raise InputError("is not empty", file=run.path, remedy="choose another --out")


def _card(name: str, spec: ModelSpec, told: dict[str, Any], facts: Sequence[dict[str, Any]]) -> str:
    """The card of the whole, with the training of every stage."""
    head = model_head(spec, told, name=name)
    detail = f"Detail beyond {told['stages'][0]['image_size']} px is made up by the later stages."
    training = [training_of(stated) | {"weights_sha256": stage["digest"]} for stated, stage in zip(facts, told["stages"], strict=True)]
    return write_card(head | {"training": training, "limits": [*head["limits"], detail]})
