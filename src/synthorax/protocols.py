"""What families and the training loop agree on: condition, batch, phase, model and objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.bounds import Side
from synthorax.capabilities import HasConditionInputs, StartsFromBase
from synthorax.errors import UsageError
from synthorax.options import SampleSettings as SampleSettings
from synthorax.rng import Draws
from synthorax.types import Study

VIEWS = ("PA", "AP", "LATERAL")
ATTRIBUTES = (*(f"view_{view}" for view in VIEWS), "sex_F", "age")
"""First columns of `Condition.attributes`: view as one of three, sex, and age in centuries; then one column a site."""
LESION_PROPERTIES = ("left", "size", "severity", "x", "y")
"""Last axis of `Condition.lesions`: 1 on the patient's left and 0 on the right, size and severity in [0, 1], and the centre in
parts of the image's width and height; NaN where not stated."""
UNCERTAIN = 0.5
"""Label of a finding that a reader was not sure of."""
EXACT, COARSE = 1.0, 0.5
"""Values of `Condition.mask` on an outline, and inside a box that holds the lesion somewhere."""
AUGMENTATIONS = ("moved", "exposed", "rotation", "zoom", "aspect", "shift_x", "shift_y", "gain", "offset", "gamma")
"""Columns of `Condition.augmentation`: whether an image was resampled, and its grey curve changed, and by how much, in [-1, 1]."""
PARTS = ("attributes", "labels", "lesions", "mask", "text", "image")
"""The parts of an image's condition, in the order in which guidance adds them."""
ALL_PARTS = (*PARTS, "measurements")
"""`PARTS`, and what is asked of a volume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is asked of an image, in parts that are each stated or not. NaN means "not stated" and differs from 0, "stated absent"."""

    labels: Tensor
    """[B, K] in {0, `UNCERTAIN`, 1, NaN}"""
    attributes: Tensor
    """[B, A + number of sites] in [0, 1] or NaN, columns as in `ATTRIBUTES`"""
    lesions: Tensor | None = None
    """[B, K, P] in [0, 1] or NaN: place, size and severity of each finding, last axis as in `LESION_PROPERTIES`"""
    mask: Tensor | None = None
    """[B, M, H, W] in [0, 1]: one channel a mask class; a channel of NaN is not stated, one of 0 says that nothing is there"""
    text: tuple[str, ...] | None = None
    """B descriptions; the empty one states nothing"""
    image: Tensor | None = None
    """[B, C, H, W] in [-1, 1] or NaN: an image that the new one is to follow"""
    measurements: Tensor | None = None
    """[B, P] in [0, 1] or NaN: what is to be measured of a volume, such as its diameter; the model's config names the columns"""
    augmentation: Tensor | None = None
    """[B, A]: how a training image was changed, columns as in `AUGMENTATIONS`; None is not at all, which is what sampling asks for"""
    place: Tensor | None = None
    """[B, 2, 2]: where a crop to train on begins and how long it is, in parts of the image, rows first; None is the whole image"""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        texts = None
        if self.text is not None:
            numbers = range(len(self))[rows] if isinstance(rows, slice) else torch.arange(len(self))[rows.cpu()].tolist()
            texts = tuple(self.text[number] for number in numbers)
        return replace(self._tensors(lambda part: part[rows]), text=texts)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return self._tensors(lambda part: part.to(device))

    def stated(self, part: str) -> Tensor:
        """Rows that state anything in `part`, one of `ALL_PARTS`, [B] of bool."""
        value = getattr(self, part)
        device = self.labels.device
        if value is None:
            return torch.zeros(len(self), dtype=torch.bool, device=device)
        if part == "text":
            return torch.tensor([bool(text.strip()) for text in value], dtype=torch.bool, device=device)
        return cast(Tensor, ~value.isnan().flatten(1).all(1))

    def only(self, parts: Sequence[str]) -> Condition:
        """The condition with every other part not stated."""
        unstated: dict[str, Any] = {"labels": torch.full_like(self.labels, math.nan),
                                    "attributes": torch.full_like(self.attributes, math.nan)}
        dropped: dict[str, Any] = {part: unstated.get(part) for part in ALL_PARTS if part not in parts}
        return replace(self, **dropped)

    def _tensors(self, change: Callable[[Tensor], Tensor]) -> Condition:
        parts = {part: getattr(self, part) for part in (*ALL_PARTS, "augmentation", "place") if part != "text"}
        changed: dict[str, Any] = {part: None if value is None else change(value) for part, value in parts.items()}
        return replace(self, **changed)

    @staticmethod
    def unstated(size: int, *, num_labels: int, num_sites: int = 0, device: torch.device | str = "cpu") -> Condition:
        """A condition that states nothing, for unconditional sampling."""
        return Condition(labels=torch.full((size, num_labels), math.nan, device=device),
                         attributes=torch.full((size, len(ATTRIBUTES) + num_sites), math.nan, device=device))

    @staticmethod
    def join(first: Condition, second: Condition) -> Condition:
        """Rows of both, first then second; a part that only one of them states is not stated in the other's rows."""
        def join_part(part: str) -> Any:
            one, other = getattr(first, part), getattr(second, part)
            if one is None and other is None:
                return None
            if part == "text":
                return (one or ("",) * len(first)) + (other or ("",) * len(second))
            shape = (other if one is None else one).shape[1:]
            missing = [torch.full((len(half), *shape), math.nan, device=half.labels.device) for half in (first, second)]
            return torch.cat([missing[0] if one is None else one, missing[1] if other is None else other])

        return Condition(**{part: join_part(part) for part in ALL_PARTS})


def encode_attributes(study: Study, *, sites: Sequence[str] = ()) -> list[float]:
    """View, sex, age and site of one image as the numbers of `Condition.attributes`; what is not stated is NaN."""
    views = [float(study.view == view) if study.view in VIEWS else math.nan for view in VIEWS]
    sex = {"F": 1.0, "M": 0.0}.get(study.sex, math.nan)
    places = [float(study.site == site) if study.site in sites else math.nan for site in sites]
    return [*views, sex, study.age_years / 100, *places]


def condition_of(studies: Sequence[Study], labels: NDArray[np.float32], *, sites: Sequence[str] = ()) -> Condition:
    """Labels and attributes that describe images; `labels` [N, K] as `data.vocabulary.label_matrix` makes them."""
    attributes = torch.tensor([encode_attributes(study, sites=sites) for study in studies], dtype=torch.float32)
    return Condition(labels=torch.from_numpy(np.array(labels, dtype=np.float32)),
                     attributes=attributes.reshape(len(studies), len(ATTRIBUTES) + len(sites)))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStatements:
    """Texts and what they state, from which to learn to read."""

    texts: tuple[str, ...]
    """B texts"""
    labels: Tensor
    """[B, K] as in `Condition`"""
    lesions: Tensor
    """[B, K, P] as in `Condition`; NaN beside findings that a text does not call present"""

    def to(self, device: torch.device | str) -> TextStatements:
        """The same reading on another device."""
        return replace(self, labels=self.labels.to(device), lesions=self.lesions.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one phase sees: images, their condition, and one random stream an image."""

    images: Tensor
    """[B, 1, H, W] in [-1, 1], or volumes [B, C, D, H, W]"""
    condition: Condition
    draws: Draws
    lesion: Tensor | None = None
    """[B, 1, H, W] in [0, 1]: where any lesion is, whatever the condition says of it; 0 where none is known"""
    text_statements: TextStatements | None = None
    """as many texts as images, not theirs, with what they state; for models conditioned on text"""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One kind of update inside a training step."""

    name: str
    updates: tuple[str, ...]
    """names of the players whose weights move"""
    every: int = 1
    """run in every n-th step only"""
    repeats: int = 1
    """how many updates, each on a fresh batch, in one step"""
    sees_patients: bool = True
    """whether real images enter the loss; differential privacy and the audit need to know"""
    betas: tuple[float, float] = (0.9, 0.99)
    """moment decay rates of this phase's Adam"""
    rate: float = 1.0
    """learning rate of this phase in units of the training's"""
    optimizer: str = ""
    """the earlier phase whose Adam moves the players here too, as a lazy penalty needs it; empty: one of its own"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What a saved model says of itself."""

    family: str
    image_size: Side
    findings: tuple[str, ...]
    """meaning of the columns of `Condition.labels`"""
    conditions: tuple[str, ...]
    """those of `ALL_PARTS` that change the image; empty for unconditional families"""
    sites: tuple[str, ...] = ()
    """meaning of the last columns of `Condition.attributes`"""
    masks: tuple[str, ...] = ()
    """meaning of the channels of `Condition.mask`: organs such as lung, and findings"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """fields of the family's model config"""

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> ModelSpec:
        """A spec from its fields, also after a way through JSON, which makes lists of tuples."""
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        return ModelSpec(**fields)


class Model(Protocol):
    """What ships: networks and a way to draw images from them."""

    spec: ModelSpec

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One image a seed, [B, 1, H, W] in [-1, 1], or one volume, [B, C, D, H, W]; `None` as condition asks for nothing in particular."""


M = TypeVar("M", bound=nn.Module, covariant=True)


class Objective(nn.Module, Generic[M]):
    """What trains a model: players, phases, and named losses. Calling it is calling `losses`, so that DDP can wrap it."""

    players: nn.ModuleDict
    phases: tuple[Phase, ...]
    model: M
    """the part that ships; one of the players or made of them"""

    @property
    def uses_all(self) -> bool:
        """Whether every call of `losses` uses every weight of every player; where not, distributed training looks for those left out."""
        return len(self.phases) == 1

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of one phase, each [B] and already weighted."""
        raise TypeError(f"{type(self).__name__} does not define losses")

    def prepare(self, images: Tensor) -> None:
        """Measure on some training images [N, 1, S, S] in [-1, 1], or volumes [N, C, S, S, S], what must be known before the first step;
        most need nothing.
        """

    def check_data(self, *, num_images: int) -> None:
        """Raise UsageError where this objective cannot learn from so few training images; most can."""

    def repeats(self, phase: Phase) -> int:
        """Updates of a phase in the coming step, for schedules that follow from training so far; asked before each step."""
        return phase.repeats

    @property
    def told_augmentation(self) -> bool:
        """Whether the model is told how its training images were changed, so that they may be changed a lot."""
        return False

    held_out_phase: str = ""
    """the phase whose loss on images that nothing learns from says how well the model has learned; empty where none does"""

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """Let fresh weights ignore what is NaN in `varied`, a condition of one row; see `HasConditionInputs`."""
        if isinstance(self.model, HasConditionInputs):
            self.model.zero_unvaried_inputs(varied)

    def start_from(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Start from a trained model of the same shape; `guide` is the weaker one that is packed beside it, of use to students.

        Raises UsageError where the family or the shapes do not allow it.
        """
        if not isinstance(self.model, StartsFromBase):
            raise UsageError(f"a model of family '{as_model(self.model).spec.family}' cannot start from another one")
        self.model.load_matching(base)

    def forward(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        return self.losses(phase, batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a training needs beside images, and what it can use."""

    compressor: str = "none"
    """what the model works on: none (pixels), wavelet, or the family of a trained compressor"""
    lesion_masks: bool = False
    """whether the loss looks at lesions"""
    crops: bool = False
    """whether it learns from crops, so that images may be larger than the base's"""
    halved_base: bool = False
    """whether it can start from a base that makes images of half the side, and is conditioned on less"""
    own_files: bool = False
    """whether weights of the user's own are read when the networks are built: of a text encoder, of features, or pretrained ones"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How to build one generative family: two config classes and two constructors, and what its models can do."""

    model_config: type[Any]
    objective_config: type[Any]
    build_model: Callable[[ModelSpec], nn.Module]
    build_objective: Callable[[Any, Any], Objective[nn.Module]]
    """from a model of `build_model` and an objective config"""
    conditions: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """the parts of `PARTS` that a model of this config is conditioned on"""
    can: tuple[type, ...] = ()
    """those of `capabilities.CAPABILITIES` that its models have"""
    needs: Callable[[Any, Any], Needs] = lambda model, objective: Needs()
    """what a training with these two configs needs"""
    follows_masks: bool = False
    """whether every image needs a mask, which it follows"""
    volumes: bool = False
    """whether its models make volumes [B, C, S, S, S], and learn from them, rather than images"""


def as_model(module: nn.Module) -> Model:
    """The network seen as what it also is, a `Model`; the contract tests hold every family to it."""
    return cast(Model, module)
