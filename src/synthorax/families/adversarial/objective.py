"""What trains every adversarial family: a discriminator and a generator against each other, with the losses, penalties and schedules
chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import AtLeastOne, Fraction, NotNegative, WholeNotNegative, Width, one_of
from synthorax.errors import UsageError
from synthorax.families.adversarial.discriminator_augmentation import (
    DiscriminatorAugmentation,
    DiscriminatorAugmentationConfig,
    DiscriminatorWarmup,
    Pace,
)
from synthorax.families.adversarial.label_classifier import ALPHA, ALPHA_P, LabelClassifier, pseudo_labelled_rows
from synthorax.families.adversarial.label_conditioning import (
    DiscriminatorHead,
    num_statements,
    statement_loss,
    statements,
    varied_statements,
)
from synthorax.families.growth import Growth, growing
from synthorax.losses.adversarial import ADVERSARIAL, AdversarialLoss, gradient_penalty, zero_centred_penalty
from synthorax.nets.convolutional_gan import ConvolutionalDiscriminator, DiscriminatorNorm, ResidualDiscriminator
from synthorax.nets.progressive import GrowingDiscriminator
from synthorax.nets.spade import MaskReader
from synthorax.nets.stylegan2 import ScaledLinear, StyleDiscriminator
from synthorax.protocols import Batch, Condition, ModelSpec, Objective, Phase
from synthorax.registry import lookup
from synthorax.rng import Draws

TRUNKS: dict[str, Callable[..., ConvolutionalDiscriminator | ResidualDiscriminator | GrowingDiscriminator | StyleDiscriminator]] = {
    "plain": ConvolutionalDiscriminator, "residual": ResidualDiscriminator, "progressive": GrowingDiscriminator,
    "stylegan2": StyleDiscriminator}
SCALED = ("progressive", "stylegan2")
"""discriminators whose layers are scaled as they are used, and not normalised"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """The discriminator, what both players pay, and how often each moves."""

    loss: Annotated[str, one_of("synthorax.losses.adversarial:ADVERSARIAL")] = "non-saturating"
    """minimax, non-saturating, least-squares, hinge or wasserstein"""
    discriminator: Literal["plain", "residual", "progressive", "stylegan2"] = "plain"
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
    """let the discriminator's own distance decide how many updates it gets, up to this many; None: always `discriminator_repeats`"""
    discriminator_warmup: WholeNotNegative = 100
    """updates of the fresh discriminator alone where the generator starts from a trained one, so that it does not learn from a
    discriminator that knows nothing"""
    growth_images: WholeNotNegative = 0
    """images of the discriminator at each resolution, and again so many in which the next one fades in, for progressive networks; 0: all at
    once
    """
    gradient_penalty: NotNegative = 0.0
    """weight of (|gradient| - 1)^2 between real and made images; 10 with the wasserstein loss"""
    r1: NotNegative = 0.0
    """gamma of the penalty on the discriminator's gradient at real images"""
    r1_every: AtLeastOne = 16
    """steps between two R1 penalties, which count as many times more"""
    path_length: NotNegative = 0.0
    """weight of keeping the length of style steps in images alike; for generators with styles"""
    path_every: AtLeastOne = 8
    """steps between two path length terms, which count as many times more"""
    auxiliary: NotNegative = 1.0
    """weight of guessing labels and attributes, where model.conditioning is auxiliary"""
    segmenter: NotNegative = 0.0
    """weight, in the generator's loss, of a segmenter that reads the mask from made images; it learns from real images alone"""
    segmenter_channels: Width = 8
    """feature maps of the segmenter at full resolution"""
    part_dropout: Fraction = 0.1
    """probability of withholding labels, of withholding attributes, of withholding the mask, and, where several are used, of withholding
    all of them, from all players, so that images can be asked for with any part or with none"""
    label_classifier: bool = False
    """let a third player guess the labels that images do not state, and the discriminator judge its pairs too; for
    model.conditioning=projection
    """
    beta1: Fraction = 0.5
    """decay of Adam's first moment"""
    beta2: Fraction = 0.999
    """decay of Adam's second moment"""
    augmentation: DiscriminatorAugmentationConfig = field(default_factory=DiscriminatorAugmentationConfig)
    """augmentation and noise before the discriminator"""


class LatentGenerator(Protocol):
    """What the objective needs of a model: images of normal numbers."""

    spec: ModelSpec
    config: Any

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one image, of the normal numbers that make it."""

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Latents, each [B, *size], -> images [B, 1, S, S]."""


class Discriminator(nn.Module):
    """Features of images and their head: scores, and guesses of statements."""

    def __init__(self, config: AdversarialConfig, *, image_size: int, inputs: int, statements: int, conditioning: str) -> None:
        super().__init__()
        size: dict[str, Any] = {"image_size": image_size, "inputs": inputs, "channels": config.discriminator_channels}
        if config.discriminator not in SCALED:
            size["norm"] = config.discriminator_norm
        self.trunk = TRUNKS[config.discriminator](**size)
        self.head = DiscriminatorHead(features=self.trunk.features, statements=statements, conditioning=conditioning,
                               spectral=config.discriminator_norm == "spectral",
                               linear=ScaledLinear if config.discriminator in SCALED else nn.Linear)

    def forward(self, seen: Tensor, stated: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [B, 1] of images [B, C, S, S] against statements [B, K + A], and logits of the statements where they are guessed."""
        features = self.trunk(seen).float()
        with torch.autocast(seen.device.type, enabled=False):  # a score of bfloat16 has three digits
            return self.head(features, stated), self.head.label_head(features) if self.head.label_head is not None else None


class PathLength(nn.Module):
    """Running mean of how far a small step of the style moves the image."""

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
    """Cross-entropy of masks read from images, mean over the stated classes' pixels, 0 where none is stated, [B, M, H, W] -> [B]."""
    if mask is None:
        return 0.0 * logits.flatten(1).sum(1)
    known = ~mask.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, mask.nan_to_num(0.5), reduction="none")
    return (loss * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


class AdversarialObjective(Objective):
    """Discriminator and generator in turn; lazy penalties are phases of their own that share the optimiser of their player."""

    def __init__(self, model: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.loss: AdversarialLoss = lookup(ADVERSARIAL, config.loss, kind="adversarial loss")
        self.spec, conditioning = self.generator.spec, self.generator.config.conditioning
        adaptive = bool(config.augmentation.augment or config.augmentation.noise_levels)
        _check(config, self.loss, adaptive=adaptive, styles=hasattr(model, "styles_of"), masks=hasattr(model, "beside"),
               conditioning=conditioning)
        self.players = nn.ModuleDict({"generator": model})
        if adaptive:
            assert self.loss.boundary is not None
            self.players["augmentation"] = DiscriminatorAugmentation(config.augmentation, boundary=self.loss.boundary)
        if config.discriminator_repeats_most is not None:
            self.players["critic_schedule"] = Pace(usual=config.discriminator_repeats, most=config.discriminator_repeats_most)
        if config.path_length:
            self.players["path"] = PathLength()
        self.mask_channels = 2 * len(self.spec.masks) if hasattr(model, "beside") else 0
        if config.segmenter:
            self.players["segmenter"] = MaskReader(masks=len(self.spec.masks), channels=config.segmenter_channels)
        if config.label_classifier:
            self.players["label_classifier"] = LabelClassifier(labels=len(self.spec.findings), image_size=self.spec.image_size,
                                                   channels=config.discriminator_channels)
        self.players["discriminator"] = Discriminator(config, image_size=self.spec.image_size, conditioning=conditioning,
                                        inputs=(self.augmentation.channels if self.augmentation is not None else 1) + self.mask_channels,
                                        statements=num_statements(self.spec))
        if config.growth_images:
            if len(growing(self.players)) < 2:
                raise UsageError("objective.growth_images needs a generator and a discriminator that grow: family 'gan' with "
                                 "model.network=progressive, and objective.discriminator=progressive")
            self.players["growth"] = Growth(config.growth_images)
        betas = (config.beta1, config.beta2)
        # both learn from real images; Adam keeps them apart
        learning = ("discriminator", "segmenter") if config.segmenter else ("discriminator",)
        discriminator: dict[str, Any] = {"betas": betas, "rate": config.discriminator_rate}
        phases = [Phase(name="discriminator", updates=learning, repeats=config.discriminator_repeats, **discriminator)]
        if config.r1:
            phases.append(Phase(name="r1", updates=("discriminator",), every=config.r1_every, optimizer="discriminator", **discriminator))
        if config.label_classifier:
            phases.append(Phase(name="label_classifier", updates=("label_classifier",), betas=betas))
        phases.append(Phase(name="generator", updates=("generator",), sees_patients=False, betas=betas))
        if config.path_length:
            phases.append(Phase(name="path-length", updates=("generator",), every=config.path_every, sees_patients=False, betas=betas,
                                optimizer="generator"))
        self.phases = tuple(phases)

    @property
    def generator(self) -> LatentGenerator:
        """The model as what makes images of numbers."""
        return cast(LatentGenerator, self.model)

    @property
    def augmentation(self) -> DiscriminatorAugmentation | None:
        """What changes images for the discriminator, if anything does."""
        return cast(DiscriminatorAugmentation, self.players["augmentation"]) if "augmentation" in self.players else None

    def start_from(self, base: nn.Module, *, guide: nn.Module | None = None) -> None:
        """Start from a trained generator of the same shape; its discriminator was not kept, so a fresh one learns first."""
        super().start_from(base)
        self.players["warmup"] = DiscriminatorWarmup(self.config.discriminator_warmup)
        if "growth" in self.players:
            cast(Growth, self.players["growth"]).go_on_from(growing(self.model)[0].level.item())

    def repeats(self, phase: Phase) -> int:  # noqa: D102
        if "generator" in phase.updates and "warmup" in self.players and cast(DiscriminatorWarmup, self.players["warmup"]).goes_on():
            return 0
        if phase.name == "discriminator" and "critic_schedule" in self.players:
            return cast(Pace, self.players["critic_schedule"]).repeats()
        return phase.repeats

    def zero_unvaried_inputs(self, varied: Condition) -> None:  # noqa: D102
        cast(Any, self.model).zero_unvaried_inputs(varied)
        cast(Discriminator, self.players["discriminator"]).head.zero_unvaried_inputs(varied_statements(varied))

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        batch = replace(batch, condition=self._withheld(batch))
        stated = statements(batch.condition, self.spec, size=len(batch), device=batch.images.device)
        if phase == "discriminator":
            return self._discriminator_losses(batch, stated)
        if phase == "r1":
            seen, beside = self._seen(batch.images, batch.draws), self._beside(batch)
            penalty = zero_centred_penalty(lambda images: self.players["discriminator"](torch.cat([images, beside], dim=1), stated)[0],
                                           seen)
            return {"r1": self.config.r1 * self.config.r1_every * penalty}
        if phase == "path-length":
            return {"path_length": self._path_length(batch)}
        if phase == "label_classifier":
            return self._label_classifier_losses(batch)
        made = self._made(batch)
        scores, label_logits = self.players["discriminator"](torch.cat([self._seen(made, batch.draws), self._beside(batch)], dim=1), stated)
        terms = {"generator": self.loss.generator(scores), **self._pseudo_labels("generator_statements", label_logits, stated)}
        if "segmenter" in self.players:
            terms["generator_mask"] = self.config.segmenter * mask_loss(self.players["segmenter"](made).float(), batch.condition.mask)
        return terms

    def _withheld(self, batch: Batch) -> Condition:
        """The condition with parts that are used taken out at random, each as a whole or all at once."""
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

    def _discriminator_losses(self, batch: Batch, stated: Tensor) -> dict[str, Tensor]:
        discriminator = self.players["discriminator"]
        if self.training and "growth" in self.players:
            cast(Growth, self.players["growth"]).grow(growing(self.players), images=len(batch))
        with torch.no_grad():
            made = self._made(batch)
        real_seen, made_seen, beside = self._seen(batch.images, batch.draws), self._seen(made, batch.draws), self._beside(batch)
        real, real_logits = discriminator(torch.cat([real_seen, beside], dim=1), stated)
        false, generated_logits = discriminator(torch.cat([made_seen, beside], dim=1), stated)
        terms = {"real": self.loss.real(real), "made": self.loss.made(false),
                 **self._pseudo_labels("real_statements", real_logits, stated), **self._pseudo_labels("made_statements", generated_logits,
                                                                                                      stated)}
        if self.config.gradient_penalty:
            penalty = gradient_penalty(lambda images: discriminator(torch.cat([images, beside], dim=1), stated)[0], real_seen, made_seen,
                                       part=batch.draws.uniform(1)[:, 0])
            terms["penalty"] = self.config.gradient_penalty * penalty
        if "label_classifier" in self.players:
            with torch.no_grad():
                pairs = self._pseudo_labelled_pairs(batch)
            scores, _ = discriminator(torch.cat([real_seen, beside], dim=1), pairs)
            terms["pseudo_labelled"] = ALPHA * pseudo_labelled_rows(batch.condition.labels) * self.loss.made(scores)
        if "segmenter" in self.players:
            terms["segmenter"] = mask_loss(self.players["segmenter"](batch.images).float(), batch.condition.mask)
        if self.training and self.augmentation is not None:
            self.augmentation.learn(real.detach())
        if self.training and "critic_schedule" in self.players:
            cast(Pace, self.players["critic_schedule"]).learn((real - false).detach().mean())
        if self.training and "warmup" in self.players:
            cast(DiscriminatorWarmup, self.players["warmup"]).left.sub_(1)
        return terms

    def _label_classifier_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The guesser learns stated labels, labels that images were made for, and to pass its pairs for real (Sec. 3.2, Li et al. 2017)."""
        label_classifier, labels = cast(LabelClassifier, self.players["label_classifier"]), batch.condition.labels
        if self.training:
            label_classifier.note(labels)
        with torch.no_grad():
            made = self._made(batch)
        seen = torch.cat([self._seen(batch.images, batch.draws), self._beside(batch)], dim=1)
        scores, _ = self.players["discriminator"](seen, self._pseudo_labelled_pairs(batch))
        return {"labels": statement_loss(label_classifier(batch.images), labels),
                "made_labels": ALPHA_P * statement_loss(label_classifier(made), labels),
                "pairs": ALPHA * pseudo_labelled_rows(labels) * self.loss.generator(scores)}

    def _pseudo_labelled_pairs(self, batch: Batch) -> Tensor:
        """Statements of the batch with guesses for labels that are not stated, [B, K + A]."""
        labels = cast(LabelClassifier, self.players["label_classifier"]).filled(batch.condition.labels, batch.images)
        return torch.cat([labels, batch.condition.attributes], dim=1)

    def _made(self, batch: Batch) -> Tensor:
        return self.generator.decode_latents([batch.draws.normal(*size) for size in self.generator.latent_shapes], batch.condition).float()

    def _seen(self, images: Tensor, draws: Draws) -> Tensor:
        if self.augmentation is None:
            return images
        seen: Tensor = self.augmentation(images, draws)
        return seen

    def _beside(self, batch: Batch) -> Tensor:
        """The mask that the discriminator sees beside images, [B, 2 M, S, S]; no channels for families without masks."""
        if not self.mask_channels:
            return batch.images[:, :0]
        channels: Tensor = cast(Any, self.model).beside(batch.condition, size=len(batch), device=batch.images.device)
        return channels

    def _pseudo_labels(self, name: str, label_logits: Tensor | None, stated: Tensor) -> dict[str, Tensor]:
        return {} if label_logits is None else {name: self.config.auxiliary * statement_loss(label_logits, stated)}

    def _path_length(self, batch: Batch) -> Tensor:
        """How unlike the lengths are by which a style step in a random direction of the image moves it, [B]."""
        model = cast(Any, self.model)
        latent, *noises = (batch.draws.normal(*size) for size in self.generator.latent_shapes)
        with torch.enable_grad(), torch.autocast(latent.device.type, enabled=False):
            styles = model.styles_of(latent, batch.condition).contiguous()
            if not styles.requires_grad:
                styles.requires_grad_()
            image = model.synthesis(styles, noises)
            direction = batch.draws.normal(*image.shape[1:]) / image.shape[-1]  # a unit of variance for the whole image
            (gradient,) = torch.autograd.grad((image * direction).sum(), styles, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()  # over the layers, whose styles are the same
        term: Tensor = self.config.path_length * self.config.path_every * self.players["path"](lengths)
        return term


def _check(config: AdversarialConfig, loss: AdversarialLoss, *, adaptive: bool, styles: bool, masks: bool, conditioning: str) -> None:
    """Refuse settings that contradict one another."""
    if config.discriminator_norm == "batch" and (config.gradient_penalty or config.r1):
        raise UsageError("objective.discriminator_norm=batch lets images share statistics, which a gradient penalty on each image must "
                         "not; "
                         "choose none, layer or spectral")
    if config.discriminator in SCALED and config.discriminator_norm != "none":
        raise UsageError(f"objective.discriminator_norm={config.discriminator_norm}: a {config.discriminator} discriminator has none")
    if adaptive and loss.boundary is None:
        raise UsageError(f"objective.augmentation: the loss '{config.loss}' has no score at which images are as likely real as made, so "
                         f"the "
                         f"discriminator's certainty cannot be told; choose another loss")
    if config.path_length and not styles:
        raise UsageError("objective.path_length needs a generator with styles: family 'stylegan2'")
    if config.label_classifier and conditioning != "projection":
        raise UsageError("objective.label_classifier needs a discriminator that judges images together with labels: "
                         "model.conditioning=projection")
    if config.segmenter and not masks:
        raise UsageError("objective.segmenter needs a generator conditioned on masks: family 'spade-gan'")
    if config.augmentation.augment and masks:
        raise UsageError("objective.augmentation.augment moves images and not the masks beside them; choose noise_levels for family "
                         "'spade-gan'")
    if config.discriminator_repeats_most is not None and config.discriminator_repeats_most < config.discriminator_repeats:
        raise UsageError(f"objective.discriminator_repeats_most={config.discriminator_repeats_most} is less than "
                         f"discriminator_repeats={config.discriminator_repeats}")
    if config.discriminator_repeats_most is not None and config.loss != "wasserstein":
        raise UsageError("objective.discriminator_repeats_most follows the Wasserstein distance, so it needs objective.loss=wasserstein")
