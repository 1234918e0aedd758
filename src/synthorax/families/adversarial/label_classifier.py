"""The classifier of semi-supervised adversarial training: it guesses labels that nobody stated (Triple-GAN, Li et al. 2017).

Discriminator, generator and classifier play over pairs of image and labels: images with stated labels are real pairs; generated images
with the labels asked for, and real images with guessed labels, are fake ones, so that guesses must become what a radiologist would have
stated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthorax.nets.convolutional_gan import ConvolutionalDiscriminator

ALPHA = 0.5
"""alpha, the fraction of guessed pairs among fake ones (Eq. 2 there)"""
ALPHA_P = 0.03
"""alpha_P there: weight of learning from generated images, whose labels are known"""


class LabelClassifier(nn.Module):
    """Logits of every label of images, [B, 1, S, S] -> [B, K]; it remembers which labels any image has stated."""

    known: Tensor

    def __init__(self, *, labels: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.trunk = ConvolutionalDiscriminator(image_size=image_size, inputs=1, channels=channels, norm="layer")
        self.last = nn.Linear(self.trunk.features, labels)
        self.register_buffer("known", torch.zeros(labels, dtype=torch.bool))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.trunk(images)).float()
        return logits

    def note(self, labels: Tensor) -> None:
        """Remember which labels [B, K] images state."""
        self.known |= (~labels.isnan()).any(0)

    def filled(self, labels: Tensor, images: Tensor) -> Tensor:
        """Labels [B, K] with probabilities for what is not stated; a label that no image has stated so far stays not stated."""
        guessed = torch.where(self.known, self(images).sigmoid(), torch.nan)
        return torch.where(labels.isnan(), guessed, labels)


def pseudo_labelled_rows(labels: Tensor) -> Tensor:
    """Images with labels to guess, [B, K] -> [B] of 0 and 1."""
    return labels.isnan().any(1).float()
