"""Trained models by their names: shipped ones, run folders, model files, and folders that diffusers saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from synthorax.config import build, read_record
from synthorax.errors import InputError, SynthoraxError, UsageError, nearest
from synthorax.families import FAMILIES, PACKED
from synthorax.families.denoising.cascade import CascadeModel
from synthorax.families.denoising.diffusers import folder_digest, is_diffusers_folder, load_diffusers
from synthorax.files import check_kind
from synthorax.protocols import Model, ModelSpec, SampleSettings, as_model
from synthorax.run import ANOTHER_COPY, Run, load_weights, read_spec, weights_digest
from synthorax.steps.generate import Source
from synthorax.steps.models.recipe import build_model
from synthorax.steps.planning.support import Support
from synthorax.zoo import checked_weights, shipped

PathLike = str | Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A trained model by itself, or one of those that a packed model is made of."""

    spec: ModelSpec
    facts: Mapping[str, Any]
    """how it was trained, as its own file said"""
    weights: Mapping[str, Tensor]
    digest: str
    """SHA-256 of the file that it was trained to"""


def load_model(name_or_path: PathLike, *, device: str = "cpu") -> Model:
    """A shipped model by its name, or that of a finished run, of a model file, or of a folder saved by diffusers, ready to sample.

    Weights that are stored in half precision compute in float32. Raises InputError for files that are damaged or too new.

    >>> load_model("runs/a").sample(None, seeds=[0, 1]).shape  # doctest: +SKIP
    torch.Size([2, 1, 64, 64])
    """
    if _is_foreign(name_or_path):
        return as_model(load_diffusers(Path(name_or_path)).to(device))
    path = weights_of(name_or_path)
    spec, facts = read_spec(path)
    remedy = "update synthorax, or use the version that wrote the file" + (f": {facts['tool']}" if "tool" in facts else "")
    if spec.family not in FAMILIES | PACKED:
        raise InputError(f"is a model of family '{spec.family}', which this version of synthorax does not know", file=path, remedy=remedy)
    try:
        model = build_model(spec)
        model.load_state_dict(load_weights(path))
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError, SynthoraxError) as error:
        raise InputError(f"does not fit the networks of this version of synthorax ({' '.join(str(error).split())[:200]})", file=path,
                         remedy=remedy) from error
    return as_model(model.eval().requires_grad_(False).to(device))


def load_base(name_or_path: PathLike) -> nn.Module:
    """The network that a training starts from: of a packed model the stage that makes small images. Raises as `load_model`."""
    model = cast(nn.Module, load_model(name_or_path))
    return model.stages[0] if isinstance(model, CascadeModel) else model


def load_guide(name_or_path: PathLike) -> nn.Module | None:
    """The weaker network that guides the first stage of a packed model; None where there is none. Raises as `load_model`."""
    model = load_model(name_or_path)
    return model.guide if isinstance(model, CascadeModel) else None


def stages_of(name_or_path: PathLike | Run) -> tuple[Stage, ...]:
    """What a packed model was packed of, the stage that makes small images first; of any other model, that alone."""
    path = weights_of(name_or_path)
    spec, facts = read_spec(path)
    weights = load_weights(path)
    if spec.family not in PACKED:
        return (Stage(spec=spec, facts=facts, weights=weights, digest=weights_digest(path)),)
    records, told = spec.config.get("stages"), facts.get("stages")
    if not isinstance(records, list) or not isinstance(told, list) or len(records) != len(told):
        raise InputError("is damaged: it does not describe each of its stages", file=path, remedy=ANOTHER_COPY)
    return tuple(_part(record, part, weights, prefix=f"stages.{number}.", path=path)
                 for number, (record, part) in enumerate(zip(records, told, strict=True)))


def guide_of(name_or_path: PathLike | Run) -> Stage | None:
    """The weaker model that guides the first stage of a packed one; None where there is none."""
    path = weights_of(name_or_path)
    spec, facts = read_spec(path)
    if spec.family not in PACKED or "guide" not in facts:
        return None
    return _part(spec.config.get("guide"), facts["guide"], load_weights(path), prefix="guide.", path=path)


def _part(record: Any, told: Any, weights: Mapping[str, Tensor], *, prefix: str, path: Path) -> Stage:
    spec = read_record(ModelSpec, record, what="spec", where=path, remedy=ANOTHER_COPY)
    facts = read_record(dict[str, Any], told, what="stages", where=path, remedy=ANOTHER_COPY)
    check_kind(facts, "digest", str, where=path, remedy=ANOTHER_COPY)
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return Stage(spec=spec, facts=facts, weights=own, digest=facts["digest"])


def source_of(model: Run | PathLike) -> tuple[Source, ModelSpec, SampleSettings]:
    """A model with the names that go into every row, what it says of itself, and the settings of its recipe."""
    where = model.path.resolve() if isinstance(model, Run) else Path(model)
    if _is_foreign(where):
        foreign = load_diffusers(where)
        return (Source(model=as_model(foreign), name=where.resolve().name, digest=folder_digest(where)), foreign.spec,
                foreign.usual_settings)
    path = weights_of(where)
    spec, facts = read_spec(path)
    name = str(where) if str(where) in shipped() else f"{facts.get('recipe', spec.family)}"
    support = read_record(Support, facts["support"], what="support", where=path, remedy=ANOTHER_COPY) if "support" in facts else None
    trained_on: dict[str, Any] = {key: facts[key] for key in ("data_digest", "sources") if key in facts}
    source = Source(model=load_model(where), name=name, digest=weights_digest(path), support=support, trained_on=trained_on)
    return source, spec, usual_settings(facts, path)


def usual_settings(facts: Mapping[str, Any], path: Path) -> SampleSettings:
    """The settings of its recipe that a model file keeps."""
    return build(SampleSettings, facts.get("sample", {}), where=str(path), prefix="sample")


def weights_of(name_or_path: PathLike | Run) -> Path:
    """The model file of a shipped model, of a run folder, or the file itself, checked if it is shipped.

    Raises InputError where there is none, and UsageError where a name means two things.
    """
    path = name_or_path.path.resolve() if isinstance(name_or_path, Run) else Path(name_or_path)
    names = shipped()
    if str(path) in names:
        if path.exists():
            raise UsageError(f"'{path}' is a shipped model and a file or folder here; for the latter write {path.resolve()}, for the "
                             "former call from another folder")
        return checked_weights(str(path))
    found = path if path.is_file() else Run(path=path).weights
    if not found.is_file():
        unfinished = (path / "config.toml").exists()
        remedy = "finish the training with the same command" if unfinished else _choice(str(path), names)
        raise InputError("no model found", file=path, remedy=remedy)
    return found


def _is_foreign(name_or_path: PathLike) -> bool:
    return str(name_or_path) not in shipped() and is_diffusers_folder(name_or_path)


def _choice(name: str, names: Iterable[str]) -> str:
    names = list(names)
    known = f"the name of a shipped model ({', '.join(names) or 'none in this version'})"
    close = nearest(name, names) if names else ""
    return f"give a run folder, a model file or {known}" + (f"; {close}" if close.startswith("did you mean") else "")
