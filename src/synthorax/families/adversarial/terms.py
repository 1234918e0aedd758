"""The options of an adversarial training, each a term with its own players, phases and losses; the objective sums them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.capabilities import LatentGenerator, MaskConditioned, StyledGenerator
from synthorax.errors import UsageError
from synthorax.families.adversarial.game import Judged, Term, Turn
from synthorax.families.adversarial.label_classifier import ALPHA, ALPHA_P, LabelClassifier, pseudo_labelled_rows
from synthorax.families.adversarial.label_conditioning import statement_loss
from synthorax.families.growth import Growth, growing
from synthorax.losses.adversarial import gradient_penalty, zero_centred_penalty
from synthorax.nets.spade import MaskReader
from synthorax.protocols import Batch, Phase


class GuessedStatements(Term):
    """The discriminator guesses labels and attributes, and the generator makes images that show them (AC-GAN, Odena et al. 2017)."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def discriminator_losses(self, turn: Turn, real: Judged, generated: Judged) -> dict[str, Tensor]:
        return {"real_statements": self._loss(turn, real), "made_statements": self._loss(turn, generated)}

    def generator_losses(self, turn: Turn, images: Tensor, generated: Judged) -> dict[str, Tensor]:
        return {"generator_statements": self._loss(turn, generated)}

    def _loss(self, turn: Turn, judged: Judged) -> Tensor:
        assert judged.label_logits is not None
        return self.weight * statement_loss(judged.label_logits, turn.stated)


class GradientPenalty(Term):
    """The discriminator's gradient has length 1 between real and generated images (WGAN-GP, Gulrajani et al. 2017)."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def discriminator_losses(self, turn: Turn, real: Judged, generated: Judged) -> dict[str, Tensor]:
        share = turn.batch.draws.uniform(1)[:, 0]
        return {"penalty": self.weight * gradient_penalty(turn.score, real.view, generated.view, share=share)}


class R1(Term):
    """The discriminator's gradient is small at real images (Mescheder et al. 2018), in a phase of its own that counts `every` times."""

    def __init__(self, *, gamma: float, every: int) -> None:
        self.gamma, self.every = gamma, every

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="r1", updates=("discriminator",), every=self.every, optimizer="discriminator"),)

    def losses(self, turn: Turn) -> dict[str, Tensor]:
        return {"r1": self.gamma * self.every * zero_centred_penalty(turn.score, turn.view(turn.batch.images))}


class PseudoLabels(Term):
    """A third player guesses labels that images do not state, and the discriminator judges its pairs too (Triple-GAN, Li et al. 2017)."""

    def __init__(self, model: LatentGenerator, *, conditioning: str, channels: int) -> None:
        if conditioning != "projection":
            raise UsageError("objective.label_classifier needs a discriminator that judges images together with labels: "
                             "model.conditioning=projection")
        self.classifier = LabelClassifier(labels=len(model.spec.findings), image_size=model.spec.image_size, channels=channels)

    def players(self) -> dict[str, nn.Module]:
        return {"label_classifier": self.classifier}

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="label_classifier", updates=("label_classifier",)),)

    def discriminator_losses(self, turn: Turn, real: Judged, generated: Judged) -> dict[str, Tensor]:
        with torch.no_grad():
            pairs = self._pairs(turn.batch)
        judged = turn.judge(real.view, pairs)
        return {"pseudo_labelled": ALPHA * pseudo_labelled_rows(turn.batch.condition.labels) * turn.loss.made(judged.scores)}

    def losses(self, turn: Turn) -> dict[str, Tensor]:
        """The classifier learns stated labels, labels that images were generated for, and to pass its pairs for real (Sec. 3.2 there)."""
        labels = turn.batch.condition.labels
        if self.classifier.training:
            self.classifier.note(labels)
        with torch.no_grad():
            generated = turn.generate()
        judged = turn.judge(turn.view(turn.batch.images), self._pairs(turn.batch))
        return {"labels": statement_loss(self.classifier(turn.batch.images), labels),
                "made_labels": ALPHA_P * statement_loss(self.classifier(generated), labels),
                "pairs": ALPHA * pseudo_labelled_rows(labels) * turn.loss.generator(judged.scores)}

    def _pairs(self, batch: Batch) -> Tensor:
        """Statements of the batch with guesses for labels that are not stated, [B, K + A]."""
        labels = self.classifier.filled(batch.condition.labels, batch.images)
        return torch.cat([labels, batch.condition.attributes], dim=1)


class MaskReading(Term):
    """A segmenter learns from real images to read their masks, and the generator makes images whose masks it can read (Red-GAN, Qasim et
    al. 2020).
    """

    def __init__(self, model: LatentGenerator, *, weight: float, channels: int) -> None:
        if not isinstance(model, MaskConditioned):
            raise UsageError("objective.segmenter needs a generator conditioned on masks: family 'spade-gan'")
        self.segmenter, self.weight = MaskReader(masks=len(model.spec.masks), channels=channels), weight

    def players(self) -> dict[str, nn.Module]:
        return {"segmenter": self.segmenter}

    def moves_with_discriminator(self) -> tuple[str, ...]:
        """The segmenter: both learn from real images, and Adam keeps them apart."""
        return ("segmenter",)

    def discriminator_losses(self, turn: Turn, real: Judged, generated: Judged) -> dict[str, Tensor]:
        return {"segmenter": mask_loss(self.segmenter(turn.batch.images).float(), turn.batch.condition.mask)}

    def generator_losses(self, turn: Turn, images: Tensor, generated: Judged) -> dict[str, Tensor]:
        return {"generator_mask": self.weight * mask_loss(self.segmenter(images).float(), turn.batch.condition.mask)}


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


class PathLengthRegularisation(Term):
    """Steps of a style move images equally far, whatever their direction (Sec. 3.2, Karras et al. 2020a), in a phase of its own."""

    def __init__(self, model: LatentGenerator, *, weight: float, every: int) -> None:
        if not isinstance(model, StyledGenerator):
            raise UsageError("objective.path_length needs a generator with styles: family 'stylegan2'")
        self.model, self.weight, self.every, self.path = model, weight, every, PathLength()

    def players(self) -> dict[str, nn.Module]:
        return {"path": self.path}

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="path-length", updates=("generator",), every=self.every, sees_patients=False, optimizer="generator"),)

    def losses(self, turn: Turn) -> dict[str, Tensor]:
        """How unlike the lengths are by which a style step in a random direction of the image moves it, [B]."""
        draws, condition = turn.batch.draws, turn.batch.condition
        latent, *noises = self.model.draw_latents(draws, condition)
        with torch.enable_grad(), torch.autocast(latent.device.type, enabled=False):
            styles = self.model.styles_of(latent, condition).contiguous()
            if not styles.requires_grad:
                styles.requires_grad_()
            image = self.model.decode_styles(styles, noises)
            direction = draws.normal(*image.shape[1:]) / image.shape[-1]  # a unit of variance for the whole image
            (gradient,) = torch.autograd.grad((image * direction).sum(), styles, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()  # over the layers, whose styles are the same
        return {"path_length": self.weight * self.every * self.path(lengths)}


class ProgressiveGrowing(Term):
    """Generator and discriminator grow together, by the images of the discriminator (Karras et al. 2018)."""

    def __init__(self, players: nn.ModuleDict, *, images: int) -> None:
        self.growth, self.networks = Growth(images), growing(players)
        if len(self.networks) < 2:
            raise UsageError("objective.growth_images needs a generator and a discriminator that grow: family 'gan' with "
                             "model.network=progressive, and objective.discriminator=progressive")

    def players(self) -> dict[str, nn.Module]:
        return {"growth": self.growth}

    def before_discriminator(self, *, images: int) -> None:
        self.growth.grow(self.networks, images=images)

    def start_from(self, model: nn.Module) -> None:
        self.growth.go_on_from(growing(model)[0].level.item())


def mask_loss(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-entropy of masks read from images, mean over the stated classes' pixels, 0 where none is stated, [B, M, H, W] -> [B]."""
    if mask is None:
        return 0.0 * logits.flatten(1).sum(1)
    known = ~mask.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, mask.nan_to_num(0.5), reduction="none")
    return (loss * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
