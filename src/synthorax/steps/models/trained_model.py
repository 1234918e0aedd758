"""A trained model as one handle: shipped ones, run folders, model files, and folders that diffusers saved are opened once and passed on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from synthorax import zoo
from synthorax.config import build, read_record
from synthorax.errors import InputError, SynthoraxError, UsageError, nearest
from synthorax.families import FAMILIES, PACKED
from synthorax.families.denoising.diffusers import folder_digest, is_diffusers_folder, load_diffusers
from synthorax.files import check_kind
from synthorax.protocols import Model, ModelSpec, SampleSettings, as_model
from synthorax.run import ANOTHER_COPY, ModelFile, Run
from synthorax.steps.models.recipe import build_model
from synthorax.steps.planning.support import Support

PathLike = str | Path


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedModel:
    """A trained model: what it is, how it was trained, and its weights, which are loaded when they are first needed, and once.

    `open_model` makes one. The file was read and verified then, and the weights come from those very bytes, whatever happens to the file
    later. Sent to another process, the handle opens the same file there and refuses it if it has changed.
    """

    given: str
    """the name or path by which it was opened"""
    name: str
    """what its images call it: the name of a shipped model, or else of the recipe"""
    path: Path | None = None
    """its file, or the folder that diffusers saved; None for a network in memory"""
    spec: ModelSpec = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """how it was trained, as its file says"""
    digest: str
    """SHA-256 of the file that it was trained to"""
    parts: tuple[TrainedModel, ...] = field(default=(), repr=False)
    """what it was packed of, the model that makes small images first; nothing for a model that was not packed"""
    guide: TrainedModel | None = field(default=None, repr=False)
    """the weaker model that is packed beside the first stage to guide it"""
    _weights: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    _build: Callable[[], nn.Module] = field(repr=False)
    _network: Callable[[], nn.Module] = field(repr=False)

    @staticmethod
    def of(network: nn.Module, *, given: str = "", name: str, digest: str, path: Path | None = None,
           facts: Mapping[str, Any] | None = None) -> TrainedModel:
        """The handle of a network that is in memory already."""
        return TrainedModel(given=given or name, name=name, path=path, spec=as_model(network).spec, facts=facts or {}, digest=digest,
                            _weights=network.state_dict, _build=functools.partial(copy.deepcopy, network), _network=lambda: network)

    def __str__(self) -> str:
        return self.given

    def __reduce__(self) -> tuple[Callable[[str, str], TrainedModel], tuple[str, str]]:
        return _opened_again, (self.given, self.digest)

    @property
    def label(self) -> str:
        """The last part of the name or path by which it was opened."""
        return Path(self.given).name

    @property
    def stages(self) -> tuple[TrainedModel, ...]:
        """What it was packed of, the model that makes small images first; of any other model, that alone."""
        return self.parts or (self,)

    @property
    def is_foreign(self) -> bool:
        """Whether diffusers saved it; it can be sampled from, and nothing can start from it."""
        return self.path is not None and is_diffusers_folder(self.path)

    @property
    def settings(self) -> SampleSettings:
        """How its images are sampled where nothing else is asked for. InputError where its file states settings that are none."""
        return build(SampleSettings, self.facts.get("sample", {}), where=str(self.path or self.name), prefix="sample")

    @property
    def support(self) -> Support | None:
        """What it was trained on, if that is known. InputError where its file states that wrongly."""
        if "support" not in self.facts:
            return None
        return read_record(Support, self.facts["support"], what="support", where=self.path or self.name, remedy=ANOTHER_COPY)

    @property
    def trained_on(self) -> dict[str, Any]:
        """`data_digest` of the prepared images and `sources`, as far as its file names them, so that a proof can tell whom it has seen."""
        return {key: self.facts[key] for key in ("data_digest", "sources") if key in self.facts}

    @property
    def known_data(self) -> frozenset[str]:
        """Digests of the data sets from which any of its stages has learned, as far as they are stated."""
        return frozenset(source["digest"] for stage in self.stages for source in stage.facts.get("sources", ()) if source.get("digest"))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Its weights by their present names, in the precision in which they are stored; they are shared, so do not change them."""
        return self._weights()

    @property
    def network(self) -> Model:
        """The network to sample from, built once and shared by all who hold this handle; train a copy (`build`).

        Weights that are stored in half precision compute in float32. InputError where they do not fit this version's networks.
        """
        return as_model(self._network())

    def on(self, device: torch.device | str) -> Model:
        """The network, moved to a device. Raises as `network`."""
        return as_model(self._network().to(device))

    def build(self) -> nn.Module:
        """Another network with these weights, on the processor and ready to sample. Raises as `network`."""
        return self._build()


ModelLike = TrainedModel | Run | PathLike


def open_model(model: ModelLike) -> TrainedModel:
    """Open a shipped model by its name, or that of a finished run, of a model file, or of a folder saved by diffusers; a handle stays one.

    The file is read and checked once; every verb takes the handle in place of the name. Raises InputError where there is no model, or one
    that is damaged or too new, and UsageError where a name means two things.

    >>> model = open_model("phantom-64")
    >>> model.spec.family, model.spec.image_size, len(model.stages)
    ('diffusion', 64, 1)
    >>> model.network.sample(None, seeds=[0, 1]).shape
    torch.Size([2, 1, 64, 64])
    """
    if isinstance(model, TrainedModel):
        return model
    where = model.path.resolve() if isinstance(model, Run) else Path(model)
    given = str(where) if isinstance(model, Run) else str(model)
    known = zoo.shipped()
    if str(where) not in known and is_diffusers_folder(where):
        return _foreign(where, given=given)
    if str(where) not in known:
        return _of_file(ModelFile.read(_found(where, known)), given=given)
    if where.exists():
        raise UsageError(f"'{where}' is a shipped model and a file or folder here; for the latter write {where.resolve()}, for the "
                         "former call from another folder")
    return _of_file(zoo.read(str(where)), given=given, name=str(where))


def load_model(model: ModelLike, *, device: str = "cpu") -> Model:
    """The network of a trained model on a device, ready to sample; see `open_model` for what is taken and raised.

    >>> load_model("runs/a").sample(None, seeds=[0, 1]).shape  # doctest: +SKIP
    torch.Size([2, 1, 64, 64])
    """
    return open_model(model).on(device)


def _opened_again(given: str, digest: str) -> TrainedModel:
    model = open_model(given)
    if model.digest != digest:
        raise InputError("was changed since it was opened", file=model.path, remedy="begin again with the model as it is now")
    return model


def _found(path: Path, names: Iterable[str]) -> Path:
    found = path if path.is_file() else Run(path=path).weights
    if not found.is_file():
        unfinished = (path / "config.toml").exists()
        remedy = "finish the training with the same command" if unfinished else _choice(str(path), names)
        raise InputError("no model found", file=path, remedy=remedy)
    return found


def _choice(name: str, names: Iterable[str]) -> str:
    names = list(names)
    known = f"the name of a shipped model ({', '.join(names) or 'none in this version'})"
    close = nearest(name, names) if names else ""
    return f"give a run folder, a model file or {known}" + (f"; {close}" if close.startswith("did you mean") else "")


def _foreign(folder: Path, *, given: str) -> TrainedModel:
    network = load_diffusers(folder)
    return TrainedModel.of(network, given=given, name=folder.resolve().name, digest=folder_digest(folder), path=folder,
                           facts={"sample": asdict(network.usual_settings)})


def _of_file(file: ModelFile, *, given: str, name: str = "") -> TrainedModel:
    spec, facts, path = file.spec, file.facts, file.path
    parts, guide = [], None
    if spec.family in PACKED:
        records, facts_of_parts = spec.config.get("stages"), facts.get("stages")
        if not isinstance(records, list) or not isinstance(facts_of_parts, list) or len(records) != len(facts_of_parts):
            raise InputError("is damaged: it does not describe each of its stages", file=path, remedy=ANOTHER_COPY)
        parts = [_part(file, record, part, prefix=f"stages.{number}.", given=given)
                 for number, (record, part) in enumerate(zip(records, facts_of_parts, strict=True))]
        guide = _part(file, spec.config.get("guide"), facts["guide"], prefix="guide.", given=given) if "guide" in facts else None
    return _stored(file, spec, facts, digest=file.digest, given=given, name=name, parts=tuple(parts), guide=guide)


def _part(file: ModelFile, record: Any, stage_facts: Any, *, prefix: str, given: str) -> TrainedModel:
    spec = read_record(ModelSpec, record, what="spec", where=file.path, remedy=ANOTHER_COPY)
    facts = read_record(dict[str, Any], stage_facts, what="stages", where=file.path, remedy=ANOTHER_COPY)
    check_kind(facts, "digest", str, where=file.path, remedy=ANOTHER_COPY)
    return _stored(file, spec, facts, digest=facts["digest"], given=given, prefix=prefix)


def _stored(file: ModelFile, spec: ModelSpec, facts: Mapping[str, Any], *, digest: str, given: str, name: str = "", prefix: str = "",
            parts: tuple[TrainedModel, ...] = (), guide: TrainedModel | None = None) -> TrainedModel:
    """A model whose weights are those of a file that begin with `prefix`."""
    def weights() -> Mapping[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in file.weights.items() if key.startswith(prefix)}

    def network() -> nn.Module:
        return _network_of(spec, weights(), path=file.path, written_by=str(file.facts.get("tool", "")))

    return TrainedModel(given=given, name=name or str(facts.get("recipe", spec.family)), path=file.path, spec=spec, facts=facts,
                        digest=digest, parts=parts, guide=guide, _weights=weights, _build=network, _network=functools.cache(network))


def _network_of(spec: ModelSpec, weights: Mapping[str, Tensor], *, path: Path, written_by: str) -> nn.Module:
    remedy = "update synthorax, or use the version that wrote the file" + (f": {written_by}" if written_by else "")
    if spec.family not in FAMILIES | PACKED:
        raise InputError(f"is a model of family '{spec.family}', which this version of synthorax does not know", file=path, remedy=remedy)
    try:
        network = build_model(spec)
        network.load_state_dict(weights)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError, SynthoraxError) as error:
        raise InputError(f"does not fit the networks of this version of synthorax ({' '.join(str(error).split())[:200]})", file=path,
                         remedy=remedy) from error
    return network.eval().requires_grad_(False)
