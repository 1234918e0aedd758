"""What the trained compressors share: reconstruction losses, a discriminator that is used after some steps, and their settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import Depth, NotNegative, WholeNotNegative, Width
from synthorax.families.autoencoders.discriminators import ImageDiscriminator
from synthorax.losses.perceptual import is_scripted, perceptual_distance, perceptual_features
from synthorax.protocols import M, Needs, Objective, Phase

AUTOENCODE = Phase(name="autoencode", updates=("model",))
DISCRIMINATE = Phase(name="discriminate", updates=("discriminator",), betas=(0.5, 0.9))


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstStageConfig:
    """Weights of the losses."""

    absolute: NotNegative = 1.0
    """weight of the absolute error of a pixel, in [-1, 1]"""
    squared: NotNegative = 0.0
    """weight of the squared error of a pixel"""
    perceptual: NotNegative = 1.0
    """weight of the perceptual distance"""
    features: str = "oriented"
    """perceptual features: a name in `losses.perceptual.PERCEPTUAL` or a TorchScript file"""
    adversarial: NotNegative = 0.0
    """weight of the adversarial loss, once its gradient is as long as that of the reconstruction;
    0 trains without a discriminator, which invents no texture"""
    adversarial_after: WholeNotNegative = 2000
    """steps before the discriminator is used"""
    discriminator_channels: Width = 32
    """feature maps of the discriminator's first layer"""
    discriminator_layers: Depth = 3
    """halvings in the discriminator; with 3 it judges patches of 70 x 70 pixels"""


class Reconstruction(nn.Module):
    """Pixel-wise and perceptual distances of a reconstruction from its image, [B, 1, S, S] twice -> terms of [B]."""

    def __init__(self, *, absolute: float, squared: float, perceptual: float, features: str) -> None:
        super().__init__()
        self.absolute, self.squared, self.perceptual = absolute, squared, perceptual
        self.features = perceptual_features(features) if perceptual else None

    def forward(self, made: Tensor, images: Tensor) -> dict[str, Tensor]:
        made = made.float()
        terms = {"absolute": self.absolute * F.l1_loss(made, images, reduction="none").flatten(1).mean(1),
                 "squared": self.squared * F.mse_loss(made, images, reduction="none").flatten(1).mean(1)}
        if self.features is not None:
            terms["perceptual"] = self.perceptual * perceptual_distance(made, images, features=self.features)
        return {name: term for name, term in terms.items() if name == "perceptual" or getattr(self, name)}


class Discriminator(nn.Module):
    """A patch discriminator that learns from the first step and is used from step `after` on.

    Its loss is scaled so that its gradient at the last layer is as long as that of the reconstruction, times `weight`.
    """

    steps: Tensor
    balance: Tensor

    def __init__(self, *, weight: float, after: int, channels: int, layers: int) -> None:
        super().__init__()
        self.weight, self.after = weight, after
        self.patches = ImageDiscriminator(channels=channels, layers=layers)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("balance", torch.tensor(1.0))

    def term(self, made: Tensor, reconstruction: Tensor, last: Tensor) -> Tensor:
        """The compressor's adversarial loss, [B, 1, S, S] -> [B]; `reconstruction` is its other loss, [B], and `last` the weights of its
        last layer.

        The balance is measured on the training batch (Eq. 7, Esser et al. 2021). In evaluation mode the last one holds, so that
        no image's loss depends on others.
        """
        if self.training:
            self.steps += 1
        if self.steps <= self.after:
            return torch.zeros_like(reconstruction)
        term = self.patches.generator_loss([made])
        if self.training:
            lengths = [torch.autograd.grad(loss.mean(), last, retain_graph=True)[0].norm() for loss in (reconstruction, term)]
            self.balance.copy_((lengths[0] / (lengths[1] + 1e-6)).clamp(0, 1e4))
        return self.weight * self.balance * term

    def losses(self, images: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The discriminator's losses on real images and on reconstructions, [B, 1, S, S] twice -> two of [B]."""
        return self.patches.discriminator_loss(images, [made.detach()])


def needs(model: object, objective: FirstStageConfig) -> Needs:
    """What the training of a compressor needs."""
    return Needs(own_files=is_scripted(objective.features))


class FirstStageObjective(Objective[M]):
    """Reconstruction of images, and a discriminator if there is one; each compressor adds its own losses."""

    def __init__(self, model: M, config: FirstStageConfig) -> None:
        super().__init__()
        self.model = model
        self.players = nn.ModuleDict({"model": model})
        self.phases = (AUTOENCODE,)
        if config.adversarial:
            self.players["discriminator"] = Discriminator(weight=config.adversarial, after=config.adversarial_after,
                                                          channels=config.discriminator_channels,
                                            layers=config.discriminator_layers)
            self.phases = (AUTOENCODE, DISCRIMINATE)
        self.reconstruction = Reconstruction(absolute=config.absolute, squared=config.squared, perceptual=config.perceptual,
                                             features=config.features)

    @property
    def discriminator(self) -> Discriminator | None:
        """The discriminator, if there is one."""
        if "discriminator" not in self.players:
            return None
        discriminator = self.players["discriminator"]
        assert isinstance(discriminator, Discriminator)
        return discriminator

    def terms(self, made: Tensor, images: Tensor, *, last: Tensor) -> dict[str, Tensor]:
        """The compressor's losses on reconstructions, [B, 1, S, S] twice -> terms of [B]; `last` are the weights of its last layer."""
        terms: dict[str, Tensor] = self.reconstruction(made, images)
        if self.discriminator is not None:
            terms["adversarial"] = self.discriminator.term(made, torch.stack(list(terms.values())).sum(0), last)
        return terms
