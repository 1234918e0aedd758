"""The third player of semi-supervised adversarial training: it guesses labels that nobody stated (Triple-GAN, Li et al. 2017).

Critic, generator and guesser meet at pairs of film and labels: the critic takes films with stated labels for real pairs, made films with
the labels asked for and real films with guessed labels for made ones, so that guesses must become what a reader would have stated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthorax.nets.gan import ConvolutionalCritic

MADE_PAIRS = 0.5
"""alpha, the part of guessed pairs among made ones (Eq. 2 there)"""
TAUGHT = 0.03
"""weight of learning from made films, whose labels are known (alpha_P there)"""


class LabelGuesser(nn.Module):
    """Logits of every label of films, [B, 1, S, S] -> [B, K]; it knows which labels it has ever been told."""

    told: Tensor

    def __init__(self, *, labels: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.trunk = ConvolutionalCritic(image_size=image_size, inputs=1, channels=channels, norm="layer")
        self.last = nn.Linear(self.trunk.features, labels)
        self.register_buffer("told", torch.zeros(labels, dtype=torch.bool))

    def forward(self, films: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.last(self.trunk(films)).float()
        return logits

    def note(self, labels: Tensor) -> None:
        """Remember which labels [B, K] films state."""
        self.told |= (~labels.isnan()).any(0)

    def filled(self, labels: Tensor, films: Tensor) -> Tensor:
        """Labels [B, K] with probabilities for what is not stated; a label that no film has stated so far stays not stated."""
        guessed = torch.where(self.told, self(films).sigmoid(), torch.nan)
        return torch.where(labels.isnan(), guessed, labels)


def guessed_rows(labels: Tensor) -> Tensor:
    """Films with labels to guess, [B, K] -> [B] of 0 and 1."""
    return labels.isnan().any(1).float()
