"""A variational autoencoder for images of 32 to 128 px conditioned on labels, attributes and masks, with a likelihood and a prior of
choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import AtLeastOne, Multipliers, NotNegative, Patch, Side, Width, one_of
from synthorax.errors import UsageError, nearest
from synthorax.families.autoencoders.hamiltonian import HamiltonianFlow, flow_divergence, slope_of
from synthorax.families.autoencoders.priors import build_prior, moments
from synthorax.losses.divergence import normal_log_density
from synthorax.losses.likelihood import expected_image, negative_log_likelihood, outputs_of
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.progressive import GrowingEncoder, GrowingGenerator
from synthorax.nets.variational import ImageCoderConfig, ImageDecoder, ImageEncoder, checked
from synthorax.protocols import ATTRIBUTES, Condition, ModelSpec, SampleSettings
from synthorax.rng import Draws

CONDITION_PARTS = ("labels", "attributes", "mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """Shape of the autoencoder, its likelihood and its prior."""

    image_size: Side = 64
    """side of the square images in pixels"""
    parts: tuple[Annotated[str, one_of("synthorax.protocols:PARTS")], ...] = ()
    """what encoder and decoder are conditioned on: any of labels, attributes, mask; nothing for an unconditional model"""
    latent_size: Width = 64
    """size of the latent"""
    likelihood: Literal["mse", "gaussian", "learned-gaussian", "bernoulli"] = "gaussian"
    """likelihood of an image given its latent: mse, gaussian (one fixed standard deviation), learned-gaussian (a variance for every
    pixel) or bernoulli"""
    prior: Literal["normal", "mixture", "dirichlet", "cauchy", "geometric"] = "normal"
    """prior of the latent; geometric is normal in training, and samples where the posteriors of images are"""
    posterior: Literal["encoder", "hamiltonian"] = "encoder"
    """where the latent of an image comes from: from the encoder alone, or moved from there along the decoder's own gradient"""
    leaps: AtLeastOne = 3
    """steps of the posterior hamiltonian; each costs a pass through the decoder and back"""
    components: AtLeastOne = 20
    """Gaussians of the prior mixture"""
    concentration: NotNegative = 0.98
    """of the prior dirichlet, below 1 for sparse latents; the scale of the prior cauchy"""
    remembered: AtLeastOne = 256
    """posteriors that the prior geometric keeps; about as many as there are images"""
    network: Literal["residual", "progressive"] = "residual"
    """residual blocks, or blocks that fade in while training goes on (progressive growing)"""
    channels: Width = 32
    """feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2, 4, 4)
    """feature maps of each level of residual networks, in units of `channels`; each level after the first halves the resolution"""
    patch: Patch = 2
    """pixels of a side that residual networks fold into channels before the first convolution"""
    embedding: Width = 128
    """width of the condition's embedding"""


class VaeModel(nn.Module, HasConditionInputs, HasDiagnostics):
    """Encoder q(z | x, c), prior p(z) and decoder p(x | z, c) (Sohn et al. 2015, with a prior that does not depend on the condition)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, VaeConfig(**spec.config)
        c = self.config
        _check_parts(c, spec)
        if c.posterior == "hamiltonian" and (c.prior != "normal" or c.likelihood == "mse"):
            raise UsageError("model.posterior=hamiltonian needs model.prior=normal and a likelihood with a density, gaussian, "
                             f"learned-gaussian or bernoulli, not {c.prior} and {c.likelihood}")
        self.flow = HamiltonianFlow(c.latent_size, leaps=c.leaps) if c.posterior == "hamiltonian" else None
        self.prior = build_prior(c.prior, latent_size=c.latent_size, components=c.components, concentration=c.concentration,
                                 remembered=c.remembered)
        self.embeddings = nn.ModuleDict()
        if "labels" in c.parts:
            self.embeddings["labels"] = StatementEmbedding(len(spec.findings), c.embedding)
        if "attributes" in c.parts:
            self.embeddings["attributes"] = StatementEmbedding(len(ATTRIBUTES) + len(spec.sites), c.embedding)
        self.encoder, self.decoder = _networks(c, numbers=self.prior.numbers, maps=2 * len(spec.masks) * ("mask" in c.parts))

    def posterior(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """The parameters of the posterior, as `prior` reads them, [B, 1, S, S] in [-1, 1] -> [B, prior.numbers]."""
        embedding, maps = self._embedded(condition, len(images))
        inputs = images if maps is None else torch.cat([images, maps.to(images)], dim=1)
        numbers: Tensor = self.encoder(inputs, F.silu(embedding)).float()
        return numbers

    def latents(self, images: Tensor, condition: Condition | None, raw: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """A latent of each image and its divergence in nats, from images [B, 1, S, S] and their posterior's numbers -> [B, Z], [B, Z or 1].

        One divergence a number of the latent, or one for all where they depend on one another.
        """
        latent = self.prior.draw(raw, draws)
        if self.flow is None:
            return latent, self.prior.divergence(raw, latent)
        flow, zeros, (mean, log_variance) = self.flow, torch.zeros_like(latent), moments(raw)

        def log_joint(place: Tensor) -> Tensor:
            shown = images.clone()  # of inference: it may not be kept for a gradient as it is
            reconstruction = negative_log_likelihood(self.explain(place, condition), shown, likelihood=self.config.likelihood,
                                           sigma=float(flow.sigma))
            return normal_log_density(place, zeros, zeros) - reconstruction

        gamma = draws.normal(self.config.latent_size)
        moved, momentum = flow(latent, gamma, slope_of(log_joint), std=(0.5 * log_variance).exp())
        cost = flow_divergence(first=latent, gamma=gamma, last=moved, momentum=momentum, mean=mean, log_variance=log_variance)
        return moved, cost[:, None]

    def explain(self, latent: Tensor, condition: Condition | None = None) -> Tensor:
        """The decoder's output for a latent, as the likelihood takes it, [B, Z] -> [B, outputs, S, S]."""
        embedding, maps = self._embedded(condition, len(latent))
        decoder_input = self.prior.decoder_input(latent)
        raw: Tensor = self.decoder(decoder_input, embedding) if maps is None else self.decoder(decoder_input, embedding, maps)
        return raw.float()

    def encode(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """The centre of the posterior, [B, 1, S, S] in [-1, 1] -> [B, Z]."""
        return self.prior.centre(self.posterior(images, condition))

    def decode(self, latent: Tensor, condition: Condition | None = None) -> Tensor:
        """The mean image of a latent, [B, Z] -> [B, 1, S, S] in [-1, 1]."""
        return expected_image(self.explain(latent, condition), likelihood=self.config.likelihood)

    def rebuild(self, images: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        """Images through a latent drawn from their posterior and back, [B, 1, S, S] in [-1, 1] -> the same."""
        return self.decode(self.latents(images, condition, self.posterior(images, condition), draws)[0], condition)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode latents from the prior, one image a seed, [B, 1, S, S] in [-1, 1]; the pixels' own noise is left out."""
        with torch.inference_mode():
            return self.decode(self.prior.sample(Draws(seeds, device=self._device)), condition)

    def diagnostics(self) -> dict[str, float]:
        """The side in pixels that a growing decoder has reached, with what is fading in; nothing for others."""
        return {"side_px": self.decoder.side_px} if isinstance(self.decoder, GrowingGenerator) else {}

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        for part, embedding in self.embeddings.items():
            embedding.zero_unvaried_inputs(getattr(varied, part)[0].isnan())  # type: ignore[operator]
        if "mask" in self.config.parts:
            assert varied.mask is not None and isinstance(self.encoder, ImageEncoder) and isinstance(self.decoder, ImageDecoder)
            unvaried = varied.mask[0].isnan().flatten(1).all(1).repeat(2)  # values, then which are stated
            with torch.no_grad():
                for layer in self.decoder.maps:
                    layer.weight[:, unvaried] = 0.0  # type: ignore[operator]
                inputs = torch.cat([unvaried.new_zeros(1), unvaried]).repeat_interleave(self.config.patch**2)
                self.encoder.first.weight[:, inputs] = 0.0

    @property
    def _device(self) -> torch.device:
        return self.decoder.first.weight.device

    def _embedded(self, condition: Condition | None, size: int) -> tuple[Tensor, Tensor | None]:
        """The embedding [B, E] and the maps [B, 2 M, S, S] of a condition; None states nothing."""
        c, device = self.config, self._device
        if condition is None:
            condition = Condition.unstated(size, num_labels=len(self.spec.findings), num_sites=len(self.spec.sites))
        condition = condition.only(c.parts).to(device)
        embedding = torch.zeros(size, c.embedding, device=device)
        for part, layer in self.embeddings.items():
            embedding = embedding + layer(getattr(condition, part))
        if "mask" not in c.parts:
            return embedding, None
        mask = condition.mask
        if mask is None:
            return embedding, torch.zeros(size, 2 * len(self.spec.masks), c.image_size, c.image_size, device=device)
        stated = ~mask.isnan()
        return embedding, torch.cat([torch.where(stated, 2 * mask - 1, 0.0), stated.to(mask)], dim=1)


def _networks(config: VaeConfig, *, numbers: int, maps: int) -> tuple[ImageEncoder | GrowingEncoder, ImageDecoder | GrowingGenerator]:
    """Encoder and decoder; with the embedding of the condition both are conditioned on `maps`, channels of masks."""
    outputs = outputs_of(config.likelihood)
    if config.network == "progressive":
        if maps:
            raise UsageError("model.network=progressive takes no masks: take mask out of model.parts, or take "
                             "model.network=residual")
        size = {"image_size": config.image_size, "channels": config.channels, "embedding": config.embedding}
        return GrowingEncoder(**size, outputs=numbers), GrowingGenerator(**size, latent_size=config.latent_size, outputs=outputs)
    shape = checked(ImageCoderConfig(image_size=config.image_size, channels=config.channels, multipliers=tuple(config.multipliers),
                                    patch=config.patch, embedding=config.embedding, maps=maps))
    return ImageEncoder(shape, outputs=numbers), ImageDecoder(shape, latent_size=config.latent_size, outputs=outputs)


def _check_parts(config: VaeConfig, spec: ModelSpec) -> None:
    for part in config.parts:
        if part not in CONDITION_PARTS:
            raise UsageError(f"model.parts: unknown part '{part}'; {nearest(part, CONDITION_PARTS)}")
    if "mask" in config.parts and not spec.masks:
        raise UsageError("model.parts names mask, and the images come with no masks: take mask out of model.parts, or images with masks")
    if "labels" in config.parts and not spec.findings:
        raise UsageError("model.parts names labels, and the images come with no findings: take labels out of model.parts")
