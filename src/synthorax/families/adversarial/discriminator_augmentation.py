"""Adaptive discriminator augmentation (Karras et al. 2020b) and adaptive noise before the discriminator (Diffusion-GAN, Wang et al. 2023).

Both share one controller: the mean sign of the discriminator's scores of real images says how much it overfits to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import AtLeastOne, Fraction, NotNegative, WholeNotNegative
from synthorax.families.adversarial.game import Term
from synthorax.nets.differentiable_augmentation import augmented
from synthorax.protocols import Phase
from synthorax.rng import Draws

UPDATES_PER_CORRECTION = 4
"""discriminator updates between two corrections, as in Karras et al. 2020b, Sec. 3.2"""
INITIAL_REACH = 0.1
"""fraction of the noise levels in use at the start"""
RANDOM_LEVEL_PROBABILITY = 0.5
"""how often an image gets a noise level at random; the others get the lowest one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorAugmentationConfig:
    """How images are changed before the discriminator sees them."""

    augment: Fraction = 0.0
    """highest probability of each augmentation before the discriminator; 0 for none"""
    noise_levels: WholeNotNegative = 0
    """steps of the diffusion whose noise is added before the discriminator, which is conditioned on the step; 0 for none"""
    noise_strength: NotNegative = 0.05
    """standard deviation of that diffusion's noise at its last step, for images in [-1, 1]"""
    ada_target: Fraction = 0.6
    """target of the mean sign of the discriminator's scores of real images"""
    ada_images: AtLeastOne = 100_000
    """fewest images in which the probability, or the reach of the noise, rises from 0 to 1"""


class DiscriminatorAugmentation(nn.Module, Term):
    """Changes images for the discriminator, [B, 1, S, S] -> [B, 1, S, S], or [B, 2, S, S] with noise, whose level is the second channel."""

    strength: Tensor
    signs: Tensor
    updates: Tensor

    def __init__(self, config: DiscriminatorAugmentationConfig, *, boundary: float) -> None:
        super().__init__()
        self.config, self.boundary = config, boundary
        self.register_buffer("strength", torch.tensor(0.0))  # probability, and how far the noise reaches, in [0, 1]
        self.register_buffer("signs", torch.tensor(0.0))
        self.register_buffer("updates", torch.tensor(0))

    @property
    def channels(self) -> int:
        """Channels that the discriminator sees."""
        return 2 if self.config.noise_levels else 1

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        if self.config.augment:
            images = augmented(images, probability=self.strength * self.config.augment, draws=draws)
        if not self.config.noise_levels:
            return images
        level = self._levels(draws)[:, None, None, None]
        kept = self._remaining_variance(level)
        noisy = kept.sqrt() * images + (1 - kept).sqrt() * self.config.noise_strength * draws.normal(*images.shape[1:])
        return torch.cat([noisy, (2 * level / self.config.noise_levels - 1).expand_as(images)], dim=1)

    def _levels(self, draws: Draws) -> Tensor:
        """A step of the diffusion for each image, 0 (half of the images) or uniform up to the present reach, [B] (Sec. 3.3 there)."""
        reach = (INITIAL_REACH + (1 - INITIAL_REACH) * self.strength) * self.config.noise_levels
        chance = draws.uniform(2)
        return torch.where(chance[:, 0] < RANDOM_LEVEL_PROBABILITY, (chance[:, 1] * (reach + 1)).floor(), 0.0)

    def _remaining_variance(self, level: Tensor) -> Tensor:
        """Part of an image's variance that is left after `level` steps, abar of the linear schedule (Eq. 33, Song et al. 2021, squared)."""
        t = level / self.config.noise_levels
        return (-(0.1 * t + 0.5 * (20 - 0.1) * t.square())).exp()

    def players(self) -> dict[str, nn.Module]:
        return {"augmentation": self}

    def after_discriminator(self, real: Tensor, generated: Tensor) -> None:
        self.learn(real)

    @torch.no_grad()
    def learn(self, scores: Tensor) -> None:
        """Correct the strength after some updates, from scores of real images [B, 1]; more images at once correct it as much more."""
        self.signs += (scores - self.boundary).sign().mean()
        self.updates += 1
        if int(self.updates) % UPDATES_PER_CORRECTION == 0:
            step = (self.signs / UPDATES_PER_CORRECTION - self.config.ada_target).sign()
            self.strength.copy_((self.strength + step * len(scores) * UPDATES_PER_CORRECTION / self.config.ada_images).clamp(0, 1))
            self.signs.zero_()


class DiscriminatorWarmup(nn.Module, Term):
    """How many updates a fresh discriminator still has before a trained generator moves."""

    left: Tensor

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.register_buffer("left", torch.tensor(updates))

    def players(self) -> dict[str, nn.Module]:
        return {"warmup": self}

    def after_discriminator(self, real: Tensor, generated: Tensor) -> None:
        self.left.sub_(1)

    def repeats_of(self, phase: Phase, usual: int) -> int:
        return 0 if "generator" in phase.updates and int(self.left) > 0 else usual


class CriticSchedule(nn.Module, Term):
    """How many updates the critic gets before the next one of the generator, from its own estimate of the Wasserstein distance.

    The distance that the critic reports rises when it learns and falls when the generator does. Its short average over its long one
    says who is ahead: the critic gets `usual` / (short / long) updates, between 1 and `most`. Guo et al. 2023 (MedGAN) let the
    distance decide in the same spirit; this rule is ours.
    """

    short: Tensor
    long: Tensor
    seen: Tensor

    def __init__(self, *, usual: int, most: int) -> None:
        super().__init__()
        self.usual, self.most = usual, most
        self.register_buffer("short", torch.tensor(0.0))
        self.register_buffer("long", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def players(self) -> dict[str, nn.Module]:
        return {"critic_schedule": self}

    def after_discriminator(self, real: Tensor, generated: Tensor) -> None:
        self.learn((real - generated).mean())

    def repeats_of(self, phase: Phase, usual: int) -> int:
        return self.repeats() if phase.name == "discriminator" else usual

    @torch.no_grad()
    def learn(self, distance: Tensor) -> None:
        """Take one critic update into account: mean score of real images less that of generated ones."""
        for average, length in ((self.short, 10), (self.long, 100)):
            average.lerp_(distance.float(), max(1 / length, 1 / (1 + int(self.seen))))
        self.seen += 1

    def repeats(self) -> int:
        """Critic updates in the next step."""
        short, long = self.short.item(), self.long.item()
        if long <= 0 or short <= 0:  # a critic that cannot tell them apart must learn
            return self.most if int(self.seen) else self.usual
        return min(self.most, max(1, round(self.usual * long / short)))
