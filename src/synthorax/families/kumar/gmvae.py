"""Kumar's mixture autoencoders: ImageNet features, a mixture of Gaussians as prior, and decoders at 224 px (Kumar and Triana Martinez).

What Kumar et al. leave open, and what we chose, is written down in docs/studies/kumar.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs
from synthorax.config import AtLeastOne, Fraction, NotNegative, Side, Width
from synthorax.errors import UsageError
from synthorax.losses.divergence import kl_mixture_draw
from synthorax.losses.likelihood import squared_error
from synthorax.nets.imagenet import MEAN, STD, DenseNet121, Vgg16, load_imagenet
from synthorax.nets.kumar_mixture import LinearDecoder, MixtureDecoder, equalised, transition
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Needs, Objective, Phase, SampleSettings
from synthorax.rng import Draws

ENCODERS: dict[str, type[Vgg16] | type[DenseNet121]] = {"vgg16": Vgg16, "densenet121": DenseNet121}


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarGmvaeConfig:
    """Shape of the autoencoder: a row of Kumar's table of versions."""

    image_size: Side = 224
    """side of the square images in pixels, a multiple of 32; Kumar's is 224"""
    latent_size: Width = 1000
    """size of the latent"""
    components: AtLeastOne = 50
    """Gaussians in the prior"""
    encoder: Literal["vgg16", "densenet121"] = "vgg16"
    """whose feature layers read the image"""
    transition: bool = True
    """squeeze the features to 300 numbers before the heads"""
    normalise: bool = True
    """normalise intensities to ImageNet's mean and standard deviation before the encoder; else they are in [0, 1]"""
    decoder: Literal["linear", "1", "2"] = "1"
    """two linear layers, or Kumar's decoder 1 or 2"""
    labels: bool = False
    """condition the decoder on the findings (Kumar's FS-GMVAE)"""
    equalise: bool = True
    """learn images with equalised histograms; generated images have them too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KumarGmvaeObjectiveConfig:
    """Weights of the bound, and what the encoder begins with."""

    beta: NotNegative = 0.1
    """weight of the divergence beside the squared error summed over pixels"""
    encoder_weights: str = "none"
    """weights that the encoder begins with: none, torchvision (its ImageNet weights), or the path of such a file"""
    train_encoder: bool = True
    """whether the feature layers learn; without, they stay as they are (Kumar's encoder in eval)"""
    label_dropout: Fraction = 0.15
    """probability of dropping all findings of an image, so that the decoder also works without a request"""


class KumarGmvaeModel(nn.Module, HasConditionInputs):
    """Encoder, two linear heads, mixture prior and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, KumarGmvaeConfig(**spec.config)
        c = self.config
        if c.image_size % 32 or c.image_size < 32:
            raise UsageError(f"model.image_size {c.image_size} is not a multiple of 32, which five halvings need")
        if c.labels and not spec.findings:
            raise UsageError("model.labels: the images come with no findings on which the decoder could be conditioned; "
                             "take a recipe without labels, such as kumar-gmvae-v4")
        self.encoder = ENCODERS[c.encoder]()
        side = c.image_size // 32
        self.squeeze: nn.Module = transition(self.encoder.channels, side=side) if c.transition else nn.Flatten()
        features = 300 if c.transition else self.encoder.channels * side**2
        self.mean, self.log_variance = nn.Linear(features, c.latent_size), nn.Linear(features, c.latent_size)
        self.means = nn.Parameter(0.1 * torch.randn(c.components, c.latent_size))
        self.log_variances = nn.Parameter(torch.zeros(c.components, c.latent_size))
        inputs = c.latent_size + 2 * len(spec.findings) * c.labels
        self.decoder: nn.Module
        if c.decoder == "linear":
            self.decoder = LinearDecoder(inputs=inputs, image_size=c.image_size)
        else:
            self.decoder = MixtureDecoder(int(c.decoder), inputs=inputs, image_size=c.image_size)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, [B, 1, S, S] in [-1, 1], equalised if the config says so -> two of [B, Z]."""
        seen = (images.expand(-1, 3, -1, -1) + 1) / 2
        if self.config.normalise:
            mean, std = (torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (MEAN, STD))
            seen = (seen - mean) / std
        features = self.squeeze(self.encoder(seen))
        return self.mean(features).float(), self.log_variance(features).float().clamp(-30, 20)

    def decode(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """The image of a latent, [B, Z], and of findings [B, K] if it is conditioned on them -> [B, 3 or 1, S, S] in (-1, 1), grey being
        their mean.
        """
        if self.config.labels:
            latent = torch.cat([latent, stated_and_value(labels, len(latent), self.spec, like=latent)], dim=1)
        made: Tensor = self.decoder(latent).float()
        return made

    def divergence(self, latent: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """log q(latent) - log p(latent) under the mixture prior, [B, Z] each -> [B]."""
        weights = torch.full((self.config.components,), -math.log(self.config.components), device=latent.device)
        return kl_mixture_draw(latent, mean, log_variance, means=self.means, log_variances=self.log_variances, log_weights=weights)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Draw a Gaussian of the prior and a latent from it, and decode, one image a seed, [B, 1, S, S] in (-1, 1)."""
        draws = Draws(seeds, device=self.means.device)
        with torch.inference_mode():
            chosen = (draws.uniform() * self.config.components).long()  # [B]
            latent = self.means[chosen] + (0.5 * self.log_variances[chosen]).exp() * draws.normal(self.config.latent_size)
            labels = None if condition is None else condition.labels.to(self.means.device)
            return self.decode(latent, labels).mean(1, keepdim=True).clamp(-1, 1)

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        if self.config.labels:
            first = self.decoder.first
            assert isinstance(first, nn.Linear)
            with torch.no_grad():
                first.weight[:, self.config.latent_size:][:, varied.labels[0].isnan().repeat(2)] = 0.0


class KumarGmvaeObjective(Objective[KumarGmvaeModel]):
    """Squared error, averaged over colours and summed over pixels, plus beta times the divergence from the mixture."""

    phases = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)

    def __init__(self, model: KumarGmvaeModel, config: KumarGmvaeObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})
        if config.encoder_weights != "none":
            load_imagenet(model.encoder, model.config.encoder, config.encoder_weights)
        if not config.train_encoder:
            model.encoder.requires_grad_(False)

    def check_data(self, *, num_images: int) -> None:
        """Refuse more Gaussians than images."""
        if self.model.config.components > num_images:
            raise UsageError(f"model.components={self.model.config.components} is more than the {num_images} images to learn from")

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        if not self.config.train_encoder:
            model.encoder.eval()  # nor do its running statistics move
        images = equalised(batch.images) if model.config.equalise else batch.images
        mean, log_variance = model.encode(images)
        latent = mean + (0.5 * log_variance).exp() * batch.draws.normal(model.config.latent_size)
        labels = batch.condition.labels
        withheld = batch.draws.uniform(1) < self.config.label_dropout
        made = model.decode(latent, labels.masked_fill(withheld, math.nan))
        return {"reconstruction": squared_error(made, images.expand_as(made)) / made.shape[1],
                "divergence": self.config.beta * model.divergence(latent, mean, log_variance)}


def stated_and_value(labels: Tensor | None, size: int, spec: ModelSpec, *, like: Tensor) -> Tensor:
    """Findings as the decoder gets them, [B, K] in [0, 1] or NaN -> [B, 2 K]: whether each is stated, and 2 y - 1 or 0."""
    if labels is None:
        return like.new_zeros(size, 2 * len(spec.findings))
    stated = ~labels.isnan()
    return torch.cat([stated.to(like), torch.where(stated, 2 * labels - 1, 0.0).to(like)], dim=1)


FAMILY = Family(model_config=KumarGmvaeConfig, objective_config=KumarGmvaeObjectiveConfig, build_model=KumarGmvaeModel,
                build_objective=KumarGmvaeObjective, conditions=lambda config: ("labels",) if config.labels else (),
                can=(HasConditionInputs,), needs=lambda model, objective: Needs(own_files=objective.encoder_weights != "none"))
