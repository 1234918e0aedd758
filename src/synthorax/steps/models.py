"""Trained models by their names: run folders, model files, and folders that diffusers saved."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from synthorax.errors import InputError
from synthorax.families.foreign_diffusers import folder_digest, is_diffusers_folder, load_diffusers
from synthorax.protocols import Model, ModelSpec, SampleSettings, as_model
from synthorax.run import Run, read_spec, weights_digest
from synthorax.steps.generate import Source
from synthorax.steps.recipe import build_model
from synthorax.steps.support import Support

PathLike = str | Path


def load_model(name_or_path: PathLike, *, device: str = "cpu") -> Model:
    """The model of a finished run, of a model file, or of a folder saved by diffusers, ready to sample.

    >>> load_model("runs/a").sample(None, seeds=[0, 1]).shape  # doctest: +SKIP
    torch.Size([2, 1, 64, 64])
    """
    if is_diffusers_folder(name_or_path):
        return as_model(load_diffusers(Path(name_or_path)).to(device))
    path = weights_of(name_or_path)
    spec, _ = read_spec(path)
    model = build_model(spec)
    model.load_state_dict(load_file(path))
    return as_model(model.eval().requires_grad_(False).to(device))


def source_of(model: Run | PathLike) -> tuple[Source, ModelSpec, SampleSettings]:
    """A model with the names that go into every row, what it says of itself, and the settings of its recipe."""
    where = model.path if isinstance(model, Run) else Path(model)
    if is_diffusers_folder(where):
        foreign = load_diffusers(where)
        return (Source(model=as_model(foreign), name=where.resolve().name, digest=folder_digest(where)), foreign.spec,
                foreign.usual_settings)
    path = weights_of(where)
    spec, facts = read_spec(path)
    name = f"{facts.get('recipe', spec.family)}"
    support = Support.from_dict(facts["support"]) if "support" in facts else None
    source = Source(model=load_model(where), name=name, digest=weights_digest(path), support=support)
    return source, spec, SampleSettings(**facts.get("sample", {}))


def weights_of(name_or_path: PathLike | Run) -> Path:
    """The model file of a run folder, or the file itself. Raises InputError where there is none."""
    path = name_or_path.path if isinstance(name_or_path, Run) else Path(name_or_path)
    found = path if path.is_file() else Run(path=path).weights
    if not found.is_file():
        remedy = "finish the training with the same command" if (path / "config.toml").exists() else "give a run folder or a model file"
        raise InputError("no model found", file=path, remedy=remedy)
    return found
