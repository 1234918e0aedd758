"""Discriminators of images and of latents for autoencoders, with their own losses and those of what they judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthorax.losses.adversarial import hinge_generated, hinge_generator, hinge_real, least_squares
from synthorax.nets.patchgan import PatchDiscriminator


class ImageDiscriminator(PatchDiscriminator):
    """Tells images [B, 1, S, S] from generated ones by overlapping patches, with the hinge loss."""

    def features(self, images: Tensor) -> Tensor:
        """The features that it scores, [B, 1, S, S] -> [B, C, h, w]."""
        features: Tensor = self.layers[:-1](images)
        return features.float()

    def discriminator_loss(self, images: Tensor, made: Sequence[Tensor]) -> dict[str, Tensor]:
        """Its losses on real images and on generated ones of several kinds, each [B]."""
        return {"real": hinge_real(self(images).float()), "made": torch.stack([hinge_generated(self(some).float())
                                                                               for some in made]).mean(0)}

    def generator_loss(self, made: Sequence[Tensor]) -> Tensor:
        """The loss of what generated the images, the mean over their kinds, [B]."""
        return torch.stack([hinge_generator(self(some).float()) for some in made]).mean(0)


class LatentDiscriminator(nn.Module):
    """Tells latents of images from latents of the prior, as the decoder gets them, [B, Z] -> [B, 1], higher for the prior's.

    Its losses are least squares and not logistic: these also pull back latents that went past the prior (Mao et al. 2017).
    """

    def __init__(self, latent_size: int, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latent_size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
                                    nn.Linear(width, 1))

    def forward(self, latents: Tensor) -> Tensor:
        scores: Tensor = self.layers(latents).float()
        return scores

    def discriminator_loss(self, given: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Its losses on latents of the prior and of images, each [B]."""
        return {"given": least_squares(self(given), target=1), "latent": least_squares(self(latents), target=0)}

    def generator_loss(self, latents: Tensor) -> Tensor:
        """The encoder's loss, [B]."""
        return least_squares(self(latents), target=1)
