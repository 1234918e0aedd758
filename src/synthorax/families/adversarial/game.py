"""What one batch of an adversarial training is to its terms, and what a term may define."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from synthorax.capabilities import LatentGenerator, MaskConditioned
from synthorax.families.adversarial.discriminator import Discriminator
from synthorax.families.adversarial.label_conditioning import statements
from synthorax.losses.adversarial import AdversarialLoss
from synthorax.protocols import Batch, Phase
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Images as the discriminator saw and judged them."""

    view: Tensor
    """[B, 1 or 2, S, S]: images as they were augmented for it"""
    scores: Tensor
    """[B, 1], higher for real images"""
    label_logits: Tensor | None
    """[B, K + A] where it guesses statements"""


class Turn:
    """One batch in the game of generator and discriminator, and what every term asks of it."""

    def __init__(self, batch: Batch, *, model: LatentGenerator, discriminator: Discriminator, loss: AdversarialLoss,
                 augmentation: Callable[[Tensor, Draws], Tensor] | None) -> None:
        self.batch, self.loss, self._model, self._discriminator, self._augmentation = batch, loss, model, discriminator, augmentation
        size, device = len(batch), batch.images.device
        self.stated = statements(batch.condition, model.spec, size=size, device=device)  # [B, K + A] in [0, 1] or NaN
        self.masks = model.mask_planes(batch.condition, size=size, device=device) if isinstance(model, MaskConditioned) \
            else batch.images[:, :0]  # [B, 2 M, S, S], which the discriminator is shown with every image

    def generate(self) -> Tensor:
        """Images of fresh latents under the batch's condition, [B, 1, S, S]."""
        latents = self._model.draw_latents(self.batch.draws, self.batch.condition)
        return self._model.decode_latents(latents, self.batch.condition).float()

    def view(self, images: Tensor) -> Tensor:
        """Images as they are augmented for the discriminator, [B, 1, S, S] -> [B, 1 or 2, S, S]."""
        return images if self._augmentation is None else self._augmentation(images, self.batch.draws)

    def score(self, view: Tensor) -> Tensor:
        """The discriminator's scores of a view, [B, 1]."""
        return self.judge(view).scores

    def judge(self, view: Tensor, stated: Tensor | None = None) -> Judged:
        """What the discriminator says of a view beside the batch's masks, and its statements or others."""
        scores, logits = self._discriminator(torch.cat([view, self.masks], dim=1), self.stated if stated is None else stated)
        return Judged(view=view, scores=scores, label_logits=logits)


class Term(Protocol):
    """One option; what a term does not define does nothing. All losses are [B] and already weighted."""

    def players(self) -> dict[str, nn.Module]:
        """What it adds to the players, by the names that checkpoints have for them."""
        return {}

    def phases(self) -> tuple[Phase, ...]:
        """Updates of its own, whose losses it knows."""
        return ()

    def moves_with_discriminator(self) -> tuple[str, ...]:
        """Its players that move in the discriminator's phase."""
        return ()

    def discriminator_losses(self, turn: Turn, real: Judged, generated: Judged) -> dict[str, Tensor]:
        """What it adds to the discriminator's phase."""
        return {}

    def generator_losses(self, turn: Turn, images: Tensor, generated: Judged) -> dict[str, Tensor]:
        """What it adds to the generator's phase, for generated images [B, 1, S, S] and what the discriminator said of them."""
        return {}

    def losses(self, turn: Turn) -> dict[str, Tensor]:
        """The losses of its own phase."""
        return {}

    def before_discriminator(self, *, images: int) -> None:
        """Called in training before each update of the discriminator on so many images."""
        return

    def after_discriminator(self, real: Tensor, generated: Tensor) -> None:
        """Called in training after the discriminator scored real and generated images, [B, 1] each, without gradient."""
        return

    def repeats_of(self, phase: Phase, usual: int) -> int:
        """Updates of a phase in the coming step, `usual` of them as far as the other terms say."""
        return usual

    def start_from(self, model: nn.Module) -> None:
        """Called once `model`, the generator, has the weights of a trained one."""
        return
