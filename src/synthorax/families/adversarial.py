"""What trains every adversarial family: a critic and a generator against each other, with the losses, penalties and schedules chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import AtLeastOne, NotNegative, Part, WholeNotNegative, Width, one_of
from synthorax.errors import UsageError
from synthorax.families.critic_sight import CriticSight, HeadStart, Pace, SightConfig
from synthorax.families.growth import Growth, growing
from synthorax.families.heard import CriticHead, num_statements, statement_loss, statements, varied_statements
from synthorax.families.label_guesser import MADE_PAIRS, TAUGHT, LabelGuesser, guessed_rows
from synthorax.losses.adversarial import ADVERSARIAL, AdversarialLoss, gradient_penalty, zero_centred_penalty
from synthorax.nets.gan import ConvolutionalCritic, CriticNorm, ResidualCritic
from synthorax.nets.progressive import GrowingCritic
from synthorax.nets.spade import MaskReader
from synthorax.nets.stylegan2 import ScaledLinear, StyleCritic
from synthorax.protocols import Batch, Condition, ModelSpec, Objective, Phase
from synthorax.registry import lookup
from synthorax.rng import Draws

TRUNKS: dict[str, Callable[..., ConvolutionalCritic | ResidualCritic | GrowingCritic | StyleCritic]] = {
    "plain": ConvolutionalCritic, "residual": ResidualCritic, "progressive": GrowingCritic, "stylegan2": StyleCritic}
SCALED = ("progressive", "stylegan2")
"""critics whose layers are scaled as they are used, and not normalised"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """The critic, what both players pay, and how often each moves."""

    loss: Annotated[str, one_of("synthorax.losses.adversarial:ADVERSARIAL")] = "non-saturating"
    """minimax, non-saturating, least-squares, hinge or wasserstein"""
    critic: Literal["plain", "residual", "progressive", "stylegan2"] = "plain"
    """network of the critic"""
    critic_channels: Width = 32
    """feature maps of the critic at full resolution"""
    critic_norm: CriticNorm = "none"
    """none, batch, layer or spectral; not for progressive and stylegan2"""
    critic_rate: NotNegative = 1.0
    """learning rate of the critic in units of the generator's, which is train.learning_rate (Heusel et al. 2017)"""
    critic_repeats: AtLeastOne = 1
    """critic updates for one of the generator"""
    critic_repeats_most: AtLeastOne | None = None
    """let the critic's own distance decide how many updates it gets, up to this many; None: always `critic_repeats`"""
    critic_first: WholeNotNegative = 100
    """updates of the fresh critic alone where the generator starts from a trained one, so that it does not learn from a critic that knows
    nothing"""
    grow_films: WholeNotNegative = 0
    """films of the critic at each resolution, and again so many in which the next one fades in, for progressive networks; 0: all at once"""
    gradient_penalty: NotNegative = 0.0
    """weight of (|gradient| - 1)^2 between real and made films; 10 with the wasserstein loss"""
    r1: NotNegative = 0.0
    """gamma of the penalty on the critic's gradient at real films"""
    r1_every: AtLeastOne = 16
    """steps between two R1 penalties, which count as many times more"""
    path_length: NotNegative = 0.0
    """weight of keeping the length of style steps in films alike; for generators with styles"""
    path_every: AtLeastOne = 8
    """steps between two path length terms, which count as many times more"""
    auxiliary: NotNegative = 1.0
    """weight of guessing labels and attributes, where model.conditioning is auxiliary"""
    segmenter: NotNegative = 0.0
    """weight, in the generator's loss, of a segmenter that reads the mask from made films; it learns from real films alone"""
    segmenter_channels: Width = 8
    """feature maps of the segmenter at full resolution"""
    part_dropout: Part = 0.1
    """probability of withholding labels, of withholding attributes, of withholding the mask, and, where several are heard, of withholding
    all of them, from all players, so that films can be asked for with any part or with none"""
    guesser: bool = False
    """let a third player guess the labels that films do not state, and the critic judge its pairs too; for model.conditioning=projection"""
    beta1: Part = 0.5
    """decay of Adam's first moment"""
    beta2: Part = 0.999
    """decay of Adam's second moment"""
    sight: SightConfig = field(default_factory=SightConfig)
    """augmentation and noise before the critic"""


class Maker(Protocol):
    """What the objective needs of a model: films of normal numbers."""

    spec: ModelSpec
    config: Any

    @property
    def code_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one film, of the normal numbers that make it."""

    def film_of(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Codes, each [B, *size], -> films [B, 1, S, S]."""


class Critic(nn.Module):
    """Features of films and their head: scores, and guesses of statements."""

    def __init__(self, config: AdversarialConfig, *, image_size: int, inputs: int, statements: int, conditioning: str) -> None:
        super().__init__()
        size: dict[str, Any] = {"image_size": image_size, "inputs": inputs, "channels": config.critic_channels}
        if config.critic not in SCALED:
            size["norm"] = config.critic_norm
        self.trunk = TRUNKS[config.critic](**size)
        self.head = CriticHead(features=self.trunk.features, statements=statements, conditioning=conditioning,
                               spectral=config.critic_norm == "spectral",
                               linear=ScaledLinear if config.critic in SCALED else nn.Linear)

    def forward(self, seen: Tensor, stated: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [B, 1] of films [B, C, S, S] against statements [B, K + A], and logits of the statements where they are guessed."""
        features = self.trunk(seen).float()
        with torch.autocast(seen.device.type, enabled=False):  # a score of bfloat16 has three digits
            return self.head(features, stated), self.head.guess(features) if self.head.guess is not None else None


class PathLength(nn.Module):
    """Running mean of how far a small step of the style moves the film."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, lengths: Tensor) -> Tensor:
        """(length - running mean)^2, [B] -> [B] (Eq. 4, Karras et al. 2020a)."""
        mean = self.mean
        if self.training:
            mean = mean.lerp(lengths.detach().mean().float(), 0.01)
            self.mean.copy_(mean)
        return (lengths - mean).square()


def mask_loss(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-entropy of masks read from films, mean over the stated classes' pixels, 0 where none is stated, [B, M, H, W] -> [B]."""
    if mask is None:
        return 0.0 * logits.flatten(1).sum(1)
    known = ~mask.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, mask.nan_to_num(0.5), reduction="none")
    return (loss * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


class AdversarialObjective(Objective):
    """Critic and generator in turn; lazy penalties are phases of their own that share the optimiser of their player."""

    def __init__(self, model: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.loss: AdversarialLoss = lookup(ADVERSARIAL, config.loss, kind="adversarial loss")
        self.spec, conditioning = self.maker.spec, self.maker.config.conditioning
        adaptive = bool(config.sight.augment or config.sight.noise_levels)
        _check(config, self.loss, adaptive=adaptive, styles=hasattr(model, "styles_of"), masks=hasattr(model, "beside"),
               conditioning=conditioning)
        self.players = nn.ModuleDict({"generator": model})
        if adaptive:
            assert self.loss.boundary is not None
            self.players["sight"] = CriticSight(config.sight, boundary=self.loss.boundary)
        if config.critic_repeats_most is not None:
            self.players["pace"] = Pace(usual=config.critic_repeats, most=config.critic_repeats_most)
        if config.path_length:
            self.players["path"] = PathLength()
        self.mask_channels = 2 * len(self.spec.masks) if hasattr(model, "beside") else 0
        if config.segmenter:
            self.players["segmenter"] = MaskReader(masks=len(self.spec.masks), channels=config.segmenter_channels)
        if config.guesser:
            self.players["guesser"] = LabelGuesser(labels=len(self.spec.findings), image_size=self.spec.image_size,
                                                   channels=config.critic_channels)
        self.players["critic"] = Critic(config, image_size=self.spec.image_size, conditioning=conditioning,
                                        inputs=(self.sight.channels if self.sight is not None else 1) + self.mask_channels,
                                        statements=num_statements(self.spec))
        if config.grow_films:
            if len(growing(self.players)) < 2:
                raise UsageError("objective.grow_films needs a generator and a critic that grow: family 'gan' with "
                                 "model.network=progressive, and objective.critic=progressive")
            self.players["growth"] = Growth(config.grow_films)
        betas = (config.beta1, config.beta2)
        learning = ("critic", "segmenter") if config.segmenter else ("critic",)  # both learn from real films; Adam keeps them apart
        critic: dict[str, Any] = {"betas": betas, "rate": config.critic_rate}
        phases = [Phase(name="critic", updates=learning, repeats=config.critic_repeats, **critic)]
        if config.r1:
            phases.append(Phase(name="r1", updates=("critic",), every=config.r1_every, optimizer="critic", **critic))
        if config.guesser:
            phases.append(Phase(name="guesser", updates=("guesser",), betas=betas))
        phases.append(Phase(name="generator", updates=("generator",), sees_patients=False, betas=betas))
        if config.path_length:
            phases.append(Phase(name="path-length", updates=("generator",), every=config.path_every, sees_patients=False, betas=betas,
                                optimizer="generator"))
        self.phases = tuple(phases)

    @property
    def maker(self) -> Maker:
        """The model as what makes films of numbers."""
        return cast(Maker, self.model)

    @property
    def sight(self) -> CriticSight | None:
        """What changes films for the critic, if anything does."""
        return cast(CriticSight, self.players["sight"]) if "sight" in self.players else None

    def begin(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Start from a trained generator of the same shape; its critic was not kept, so a fresh one learns first."""
        super().begin(base)
        self.players["head_start"] = HeadStart(self.config.critic_first)
        if "growth" in self.players:
            cast(Growth, self.players["growth"]).go_on_from(growing(self.model)[0].level.item())

    def repeats(self, phase: Phase) -> int:  # noqa: D102
        if "generator" in phase.updates and "head_start" in self.players and cast(HeadStart, self.players["head_start"]).goes_on():
            return 0
        if phase.name == "critic" and "pace" in self.players:
            return cast(Pace, self.players["pace"]).repeats()
        return phase.repeats

    def silence(self, varied: Condition) -> None:  # noqa: D102
        cast(Any, self.model).silence(varied)
        cast(Critic, self.players["critic"]).head.silence(varied_statements(varied))

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        batch = replace(batch, condition=self._withheld(batch))
        stated = statements(batch.condition, self.spec, size=len(batch), device=batch.images.device)
        if phase == "critic":
            return self._critic_losses(batch, stated)
        if phase == "r1":
            seen, beside = self._seen(batch.images, batch.draws), self._beside(batch)
            penalty = zero_centred_penalty(lambda films: self.players["critic"](torch.cat([films, beside], dim=1), stated)[0], seen)
            return {"r1": self.config.r1 * self.config.r1_every * penalty}
        if phase == "path-length":
            return {"path_length": self._path_length(batch)}
        if phase == "guesser":
            return self._guesser_losses(batch)
        made = self._made(batch)
        scores, guesses = self.players["critic"](torch.cat([self._seen(made, batch.draws), self._beside(batch)], dim=1), stated)
        terms = {"generator": self.loss.maker(scores), **self._guessed("generator_statements", guesses, stated)}
        if "segmenter" in self.players:
            terms["generator_mask"] = self.config.segmenter * mask_loss(self.players["segmenter"](made).float(), batch.condition.mask)
        return terms

    def _withheld(self, batch: Batch) -> Condition:
        """The condition with parts that are heard taken out at random, each as a whole or all at once."""
        condition, heard = batch.condition, [part for part in ("attributes", "labels", "mask") if part in self.spec.conditions]
        if not heard or not self.config.part_dropout:
            return condition
        several = len(heard) > 1
        gone = batch.draws.uniform(len(heard) + several) < self.config.part_dropout  # [B, parts and, of several, all of them]
        if several:
            gone = gone[:, 1:] | gone[:, :1]
        parts = {part: value.masked_fill(gone[:, number].reshape(-1, *[1] * (value.ndim - 1)), torch.nan)
                 for number, part in enumerate(heard) if (value := getattr(condition, part)) is not None}
        return replace(condition, **parts)

    def _critic_losses(self, batch: Batch, stated: Tensor) -> dict[str, Tensor]:
        critic = self.players["critic"]
        if self.training and "growth" in self.players:
            cast(Growth, self.players["growth"]).grow(growing(self.players), films=len(batch))
        with torch.no_grad():
            made = self._made(batch)
        real_seen, made_seen, beside = self._seen(batch.images, batch.draws), self._seen(made, batch.draws), self._beside(batch)
        real, real_guesses = critic(torch.cat([real_seen, beside], dim=1), stated)
        false, made_guesses = critic(torch.cat([made_seen, beside], dim=1), stated)
        terms = {"real": self.loss.real(real), "made": self.loss.made(false),
                 **self._guessed("real_statements", real_guesses, stated), **self._guessed("made_statements", made_guesses, stated)}
        if self.config.gradient_penalty:
            penalty = gradient_penalty(lambda films: critic(torch.cat([films, beside], dim=1), stated)[0], real_seen, made_seen,
                                       part=batch.draws.uniform(1)[:, 0])
            terms["penalty"] = self.config.gradient_penalty * penalty
        if "guesser" in self.players:
            with torch.no_grad():
                pairs = self._guessed_pairs(batch)
            scores, _ = critic(torch.cat([real_seen, beside], dim=1), pairs)
            terms["guessed"] = MADE_PAIRS * guessed_rows(batch.condition.labels) * self.loss.made(scores)
        if "segmenter" in self.players:
            terms["segmenter"] = mask_loss(self.players["segmenter"](batch.images).float(), batch.condition.mask)
        if self.training and self.sight is not None:
            self.sight.learn(real.detach())
        if self.training and "pace" in self.players:
            cast(Pace, self.players["pace"]).learn((real - false).detach().mean())
        if self.training and "head_start" in self.players:
            cast(HeadStart, self.players["head_start"]).left.sub_(1)
        return terms

    def _guesser_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The guesser learns stated labels, labels that films were made for, and to pass its pairs for real (Sec. 3.2, Li et al. 2017)."""
        guesser, labels = cast(LabelGuesser, self.players["guesser"]), batch.condition.labels
        if self.training:
            guesser.note(labels)
        with torch.no_grad():
            made = self._made(batch)
        seen = torch.cat([self._seen(batch.images, batch.draws), self._beside(batch)], dim=1)
        scores, _ = self.players["critic"](seen, self._guessed_pairs(batch))
        return {"labels": statement_loss(guesser(batch.images), labels), "made_labels": TAUGHT * statement_loss(guesser(made), labels),
                "pairs": MADE_PAIRS * guessed_rows(labels) * self.loss.maker(scores)}

    def _guessed_pairs(self, batch: Batch) -> Tensor:
        """Statements of the batch with guesses for labels that are not stated, [B, K + A]."""
        labels = cast(LabelGuesser, self.players["guesser"]).filled(batch.condition.labels, batch.images)
        return torch.cat([labels, batch.condition.attributes], dim=1)

    def _made(self, batch: Batch) -> Tensor:
        return self.maker.film_of([batch.draws.normal(*size) for size in self.maker.code_sizes], batch.condition).float()

    def _seen(self, films: Tensor, draws: Draws) -> Tensor:
        if self.sight is None:
            return films
        seen: Tensor = self.sight(films, draws)
        return seen

    def _beside(self, batch: Batch) -> Tensor:
        """The mask that the critic sees beside films, [B, 2 M, S, S]; no channels for families without masks."""
        if not self.mask_channels:
            return batch.images[:, :0]
        channels: Tensor = cast(Any, self.model).beside(batch.condition, size=len(batch), device=batch.images.device)
        return channels

    def _guessed(self, name: str, guesses: Tensor | None, stated: Tensor) -> dict[str, Tensor]:
        return {} if guesses is None else {name: self.config.auxiliary * statement_loss(guesses, stated)}

    def _path_length(self, batch: Batch) -> Tensor:
        """How unlike the lengths are by which a style step in a random direction of the film moves it, [B]."""
        model = cast(Any, self.model)
        code, *noises = (batch.draws.normal(*size) for size in self.maker.code_sizes)
        with torch.enable_grad(), torch.autocast(code.device.type, enabled=False):
            styles = model.styles_of(code, batch.condition).contiguous()
            if not styles.requires_grad:
                styles.requires_grad_()
            film = model.synthesis(styles, noises)
            direction = batch.draws.normal(*film.shape[1:]) / film.shape[-1]  # a unit of variance for the whole film
            (gradient,) = torch.autograd.grad((film * direction).sum(), styles, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()  # over the layers, whose styles are the same
        term: Tensor = self.config.path_length * self.config.path_every * self.players["path"](lengths)
        return term


def _check(config: AdversarialConfig, loss: AdversarialLoss, *, adaptive: bool, styles: bool, masks: bool, conditioning: str) -> None:
    """Refuse settings that contradict one another."""
    if config.critic_norm == "batch" and (config.gradient_penalty or config.r1):
        raise UsageError("objective.critic_norm=batch lets films share statistics, which a gradient penalty on each film must not; "
                         "choose none, layer or spectral")
    if config.critic in SCALED and config.critic_norm != "none":
        raise UsageError(f"objective.critic_norm={config.critic_norm}: a {config.critic} critic has none")
    if adaptive and loss.boundary is None:
        raise UsageError(f"objective.sight: the loss '{config.loss}' has no score at which films are as likely real as made, so the "
                         f"critic's certainty cannot be told; choose another loss")
    if config.path_length and not styles:
        raise UsageError("objective.path_length needs a generator with styles: family 'stylegan2'")
    if config.guesser and conditioning != "projection":
        raise UsageError("objective.guesser needs a critic that judges films together with labels: model.conditioning=projection")
    if config.segmenter and not masks:
        raise UsageError("objective.segmenter needs a generator that hears masks: family 'spade-gan'")
    if config.sight.augment and masks:
        raise UsageError("objective.sight.augment moves films and not the masks beside them; choose noise_levels for family 'spade-gan'")
    if config.critic_repeats_most is not None and config.critic_repeats_most < config.critic_repeats:
        raise UsageError(f"objective.critic_repeats_most={config.critic_repeats_most} is less than critic_repeats={config.critic_repeats}")
    if config.critic_repeats_most is not None and config.loss != "wasserstein":
        raise UsageError("objective.critic_repeats_most follows the Wasserstein distance, so it needs objective.loss=wasserstein")
