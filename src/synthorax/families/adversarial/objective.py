"""What trains every adversarial family: a discriminator and a generator in turn, and the terms that its options add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from synthorax.capabilities import LatentGenerator, MaskConditioned
from synthorax.config import AtLeastOne, Fraction, NotNegative, WholeNotNegative, Width, one_of
from synthorax.errors import UsageError
from synthorax.families.adversarial.discriminator import Discriminator, Trunk
from synthorax.families.adversarial.discriminator_augmentation import (
    CriticSchedule,
    DiscriminatorAugmentation,
    DiscriminatorAugmentationConfig,
    DiscriminatorWarmup,
)
from synthorax.families.adversarial.game import Term, Turn
from synthorax.families.adversarial.label_conditioning import num_statements, varied_statements
from synthorax.families.adversarial.terms import (
    R1,
    GradientPenalty,
    GuessedStatements,
    MaskReading,
    PathLengthRegularisation,
    ProgressiveGrowing,
    PseudoLabels,
)
from synthorax.losses.adversarial import ADVERSARIAL, AdversarialLoss
from synthorax.nets.convolutional_gan import DiscriminatorNorm
from synthorax.protocols import Batch, Condition, Objective, Phase
from synthorax.registry import lookup

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """The discriminator, the losses of both players, and how often each is updated."""

    loss: Annotated[str, one_of("synthorax.losses.adversarial:ADVERSARIAL")] = "non-saturating"
    """minimax, non-saturating, least-squares, hinge or wasserstein"""
    discriminator: Trunk = "plain"
    """network of the discriminator"""
    discriminator_channels: Width = 32
    """feature maps of the discriminator at full resolution"""
    discriminator_norm: DiscriminatorNorm = "none"
    """none, batch, layer or spectral; not for progressive and stylegan2"""
    discriminator_rate: NotNegative = 1.0
    """learning rate of the discriminator in units of the generator's, which is train.learning_rate (Heusel et al. 2017)"""
    discriminator_repeats: AtLeastOne = 1
    """discriminator updates for one of the generator"""
    discriminator_repeats_most: AtLeastOne | None = None
    """let the critic's estimate of the distance decide how many updates it gets, up to this many; None: always `discriminator_repeats`"""
    discriminator_warmup: WholeNotNegative = 100
    """updates of the fresh discriminator alone where the generator starts from a trained one, so that it does not learn from an
    untrained discriminator"""
    growth_images: WholeNotNegative = 0
    """images of the discriminator at each resolution, and again so many in which the next one fades in, for progressive networks; 0: all at
    once
    """
    gradient_penalty: NotNegative = 0.0
    """weight of (|gradient| - 1)^2 between real and generated images; 10 with the wasserstein loss"""
    r1: NotNegative = 0.0
    """gamma of the penalty on the discriminator's gradient at real images"""
    r1_every: AtLeastOne = 16
    """steps between two R1 penalties, whose weight is multiplied by it"""
    path_length: NotNegative = 0.0
    """weight of the path length regularisation; for generators with styles"""
    path_every: AtLeastOne = 8
    """steps between two path length terms, whose weight is multiplied by it"""
    auxiliary: NotNegative = 1.0
    """weight of the auxiliary classifier's loss, where model.conditioning is auxiliary"""
    segmenter: NotNegative = 0.0
    """weight, in the generator's loss, of a segmenter that reads the mask from generated images; it learns from real images alone"""
    segmenter_channels: Width = 8
    """feature maps of the segmenter at full resolution"""
    part_dropout: Fraction = 0.1
    """probability of dropping labels, of dropping attributes, of dropping the mask, and, where several are used, of dropping all of
    them, for all players, so that images can be asked for with any part or with none"""
    label_classifier: bool = False
    """train a classifier that guesses the labels which images do not state, and let the discriminator judge its pairs too; for
    model.conditioning=projection
    """
    beta1: Fraction = 0.5
    """decay of Adam's first moment"""
    beta2: Fraction = 0.999
    """decay of Adam's second moment"""
    augmentation: DiscriminatorAugmentationConfig = field(default_factory=DiscriminatorAugmentationConfig)
    """augmentation and noise before the discriminator"""


class AdversarialObjective(Objective[nn.Module]):
    """Discriminator and generator in turn: each pays its adversarial loss and what the terms add. Lazy penalties are phases of their own
    that share the optimiser of their player.
    """

    def __init__(self, model: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        assert isinstance(model, LatentGenerator)
        self.model, self.config, self.spec = model, config, model.spec
        self.loss: AdversarialLoss = lookup(ADVERSARIAL, config.loss, kind="adversarial loss")
        conditioning: str = cast(Any, model).config.conditioning
        if config.discriminator_norm == "batch" and (config.gradient_penalty or config.r1):
            raise UsageError("objective.discriminator_norm=batch lets images share statistics, which a gradient penalty on each image must "
                             "not; choose none, layer or spectral")
        self.augmentation = _augmentation(model, config, self.loss)
        self.terms = _terms(model, config, conditioning=conditioning, augmentation=self.augmentation)
        planes = 2 * len(self.spec.masks) if isinstance(model, MaskConditioned) else 0
        self.discriminator = Discriminator(config.discriminator, channels=config.discriminator_channels, norm=config.discriminator_norm,
                                           image_size=self.spec.image_size, conditioning=conditioning,
                                           inputs=planes + (1 if self.augmentation is None else self.augmentation.channels),
                                           statements=num_statements(self.spec))
        self.players = nn.ModuleDict({"generator": model, **_in_one(term.players() for term in self.terms),
                                      "discriminator": self.discriminator})
        if config.growth_images:
            self._add(ProgressiveGrowing(self.players, images=config.growth_images))
        self.phases = _phases(self.terms, config)

    @property
    def generator(self) -> LatentGenerator:
        """The model as a generator of images from latents."""
        return cast(LatentGenerator, self.model)

    def _add(self, term: Term) -> None:
        self.terms.append(term)
        self.players.update(term.players())

    def start_from(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Start from a trained generator of the same shape; its discriminator was not kept, so a fresh one learns first."""
        super().start_from(base)
        self._add(DiscriminatorWarmup(self.config.discriminator_warmup))
        for term in self.terms:
            term.start_from(self.model)

    def repeats(self, phase: Phase) -> int:
        number = phase.repeats
        for term in self.terms:
            number = term.repeats_of(phase, number)
        return number

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        super().zero_unvaried_inputs(varied)
        self.discriminator.head.zero_unvaried_inputs(varied_statements(varied))

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        turn = Turn(replace(batch, condition=self._condition_dropout(batch)), model=self.generator, discriminator=self.discriminator,
                    loss=self.loss, augmentation=self.augmentation)
        if phase == "discriminator":
            return self._discriminator_losses(turn)
        if phase == "generator":
            images = turn.generate()
            generated = turn.judge(turn.view(images))
            return {"generator": self.loss.generator(generated.scores),
                    **_in_one(term.generator_losses(turn, images, generated) for term in self.terms)}
        (own,) = (term for term in self.terms if phase in [known.name for known in term.phases()])
        return own.losses(turn)

    def _discriminator_losses(self, turn: Turn) -> dict[str, Tensor]:
        if self.training:
            for term in self.terms:
                term.before_discriminator(images=len(turn.batch))
        with torch.no_grad():
            images = turn.generate()
        real_view, generated_view = turn.view(turn.batch.images), turn.view(images)
        real, generated = turn.judge(real_view), turn.judge(generated_view)
        losses = {"real": self.loss.real(real.scores), "made": self.loss.made(generated.scores),
                  **_in_one(term.discriminator_losses(turn, real, generated) for term in self.terms)}
        if self.training:
            for term in self.terms:
                term.after_discriminator(real.scores.detach(), generated.scores.detach())
        return losses

    def _condition_dropout(self, batch: Batch) -> Condition:
        """The condition with the parts that are used dropped at random, each as a whole or all at once."""
        condition, used = batch.condition, [part for part in ("attributes", "labels", "mask") if part in self.spec.conditions]
        if not used or not self.config.part_dropout:
            return condition
        several = len(used) > 1
        gone = batch.draws.uniform(len(used) + several) < self.config.part_dropout  # [B, parts and, of several, all of them]
        if several:
            gone = gone[:, 1:] | gone[:, :1]
        parts = {part: value.masked_fill(gone[:, number].reshape(-1, *[1] * (value.ndim - 1)), torch.nan)
                 for number, part in enumerate(used) if (value := getattr(condition, part)) is not None}
        return replace(condition, **parts)


def _augmentation(model: LatentGenerator, config: AdversarialConfig, loss: AdversarialLoss) -> DiscriminatorAugmentation | None:
    """What changes images for the discriminator, if anything does."""
    if not config.augmentation.augment and not config.augmentation.noise_levels:
        return None
    if loss.boundary is None:
        raise UsageError(f"objective.augmentation: the loss '{config.loss}' has no score at which images are as likely real as generated, "
                         "so the discriminator's certainty cannot be measured; choose another loss")
    if config.augmentation.augment and isinstance(model, MaskConditioned):
        raise UsageError("objective.augmentation.augment moves images and not their masks; choose noise_levels for family 'spade-gan'")
    return DiscriminatorAugmentation(config.augmentation, boundary=loss.boundary)


def _terms(model: LatentGenerator, config: AdversarialConfig, *, conditioning: str, augmentation: Term | None) -> list[Term]:
    """The terms that the config switches on; losses are summed in this order."""
    terms: list[Term] = [] if augmentation is None else [augmentation]
    if config.discriminator_repeats_most is not None:
        terms.append(_critic_schedule(config, most=config.discriminator_repeats_most))
    if config.path_length:
        terms.append(PathLengthRegularisation(model, weight=config.path_length, every=config.path_every))
    if conditioning == "auxiliary":
        terms.append(GuessedStatements(weight=config.auxiliary))
    if config.gradient_penalty:
        terms.append(GradientPenalty(weight=config.gradient_penalty))
    if config.r1:
        terms.append(R1(gamma=config.r1, every=config.r1_every))
    # Checkpoints and losses have labels before masks; fresh weights are drawn for masks first.
    segmenter = MaskReading(model, weight=config.segmenter, channels=config.segmenter_channels) if config.segmenter else None
    if config.label_classifier:
        terms.append(PseudoLabels(model, conditioning=conditioning, channels=config.discriminator_channels))
    return terms if segmenter is None else [*terms, segmenter]


def _critic_schedule(config: AdversarialConfig, *, most: int) -> CriticSchedule:
    if most < config.discriminator_repeats:
        raise UsageError(f"objective.discriminator_repeats_most={most} is less than discriminator_repeats={config.discriminator_repeats}")
    if config.loss != "wasserstein":
        raise UsageError("objective.discriminator_repeats_most follows the Wasserstein distance, so it needs objective.loss=wasserstein")
    return CriticSchedule(usual=config.discriminator_repeats, most=most)


def _phases(terms: Sequence[Term], config: AdversarialConfig) -> tuple[Phase, ...]:
    """The discriminator's phase, those of terms, and the generator's, before those that move the generator again."""
    own = [phase for term in terms for phase in term.phases()]
    moved = ("discriminator", *(name for term in terms for name in term.moves_with_discriminator()))
    phases = [Phase(name="discriminator", updates=moved, repeats=config.discriminator_repeats),
              *(phase for phase in own if "generator" not in phase.updates),
              Phase(name="generator", updates=("generator",), sees_patients=False),
              *(phase for phase in own if "generator" in phase.updates)]
    rates = {"discriminator": config.discriminator_rate}  # in units of the generator's
    return tuple(replace(phase, betas=(config.beta1, config.beta2), rate=rates.get(phase.updates[0], 1.0)) for phase in phases)


def _in_one(tables: Iterable[dict[str, T]]) -> dict[str, T]:
    return {name: value for table in tables for name, value in table.items()}
