"""The critics beside autoencoders, of films and of codes: what each learns from, and what it makes the others pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthorax.losses.adversarial import least_squares
from synthorax.losses.hinge import hinge_made, hinge_maker, hinge_real
from synthorax.nets.patchgan import PatchDiscriminator


class FilmCritic(PatchDiscriminator):
    """Tells films [B, 1, S, S] from made ones by overlapping patches, with the hinge loss."""

    def features(self, films: Tensor) -> Tensor:
        """What it makes of films before it scores them, [B, 1, S, S] -> [B, C, h, w]."""
        features: Tensor = self.layers[:-1](films)
        return features.float()

    def lesson(self, films: Tensor, made: Sequence[Tensor]) -> dict[str, Tensor]:
        """What it pays for films and for made ones of several kinds, each [B]."""
        return {"real": hinge_real(self(films).float()), "made": torch.stack([hinge_made(self(some).float()) for some in made]).mean(0)}

    def verdict(self, made: Sequence[Tensor]) -> Tensor:
        """What whoever made the films pays, the mean of their kinds, [B]."""
        return torch.stack([hinge_maker(self(some).float()) for some in made]).mean(0)


class CodeCritic(nn.Module):
    """Tells codes of films from codes of the prior, [B, Z] -> [B, 1], higher for the prior's; hears them as the decoder does.

    It pays least squares in place of logistic losses, which also pull back codes that went past the prior (Mao et al. 2017).
    """

    def __init__(self, latent_size: int, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latent_size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
                                    nn.Linear(width, 1))

    def forward(self, codes: Tensor) -> Tensor:  # noqa: D102
        scores: Tensor = self.layers(codes).float()
        return scores

    def lesson(self, given: Tensor, coded: Tensor) -> dict[str, Tensor]:
        """What it pays for codes of the prior and of films, each [B]."""
        return {"given": least_squares(self(given), target=1), "coded": least_squares(self(coded), target=0)}

    def verdict(self, coded: Tensor) -> Tensor:
        """What the encoder pays, [B]."""
        return least_squares(self(coded), target=1)
