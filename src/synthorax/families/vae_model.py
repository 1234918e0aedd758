"""A variational autoencoder for films of 32 to 128 px that hears labels, attributes and masks, with a likelihood and a prior of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import AtLeastOne, Multipliers, NotNegative, Patch, Side, Width, one_of
from synthorax.errors import UsageError, nearest
from synthorax.families.hamiltonian import HamiltonianFlow, flow_divergence, slope_of
from synthorax.families.priors import build_prior, moments
from synthorax.losses.divergence import normal_log_density
from synthorax.losses.likelihood import expected_film, outputs_of, surprise
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.progressive import GrowingEncoder, GrowingGenerator
from synthorax.nets.variational import FilmCoderConfig, FilmDecoder, FilmEncoder, checked
from synthorax.protocols import ATTRIBUTES, Condition, ModelSpec, SampleSettings
from synthorax.rng import Draws

HEARD = ("labels", "attributes", "mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """Shape of the autoencoder, its likelihood and its prior."""

    image_size: Side = 64
    """side of the square films in pixels"""
    parts: tuple[Annotated[str, one_of("synthorax.protocols:PARTS")], ...] = ()
    """what encoder and decoder hear: any of labels, attributes, mask; nothing for an unconditional model"""
    latent_size: Width = 64
    """numbers in the code"""
    likelihood: Literal["mse", "gaussian", "learned-gaussian", "bernoulli"] = "gaussian"
    """how far a film may be from what is expected: mse, gaussian (one fixed deviation), learned-gaussian (a variance for every
    pixel) or bernoulli"""
    prior: Literal["normal", "mixture", "dirichlet", "cauchy", "geometric"] = "normal"
    """what codes are thought to be before a film is seen; geometric is normal in training, and samples where films are"""
    posterior: Literal["encoder", "hamiltonian"] = "encoder"
    """where the code of a film comes from: from the encoder alone, or moved on from there by the decoder's own gradient"""
    leaps: AtLeastOne = 3
    """steps of the posterior hamiltonian; each costs a pass through the decoder and back"""
    components: AtLeastOne = 20
    """Gaussians of the prior mixture"""
    concentration: NotNegative = 0.98
    """of the prior dirichlet, below 1 for codes with few large parts; the scale of the prior cauchy"""
    remembered: AtLeastOne = 256
    """posteriors that the prior geometric keeps; about as many as there are films"""
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


class VaeModel(nn.Module):
    """Encoder q(z | x, c), prior p(z) and decoder p(x | z, c) (Sohn et al. 2015, with a prior that does not hear the condition)."""

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

    def posterior(self, films: Tensor, condition: Condition | None = None) -> Tensor:
        """The numbers that `prior` makes codes of, [B, 1, S, S] in [-1, 1] -> [B, prior.numbers]."""
        embedding, maps = self._heard(condition, len(films))
        seen = films if maps is None else torch.cat([films, maps.to(films)], dim=1)
        numbers: Tensor = self.encoder(seen, F.silu(embedding)).float()
        return numbers

    def coded(self, films: Tensor, condition: Condition | None, raw: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """A code of each film and what it costs in nats, of films [B, 1, S, S] and their posterior's numbers -> [B, Z], [B, Z or 1].

        The cost belongs to each number of the code, or to all where they hang together.
        """
        code = self.prior.draw(raw, draws)
        if self.flow is None:
            return code, self.prior.divergence(raw, code)
        flow, zeros, (mean, log_variance) = self.flow, torch.zeros_like(code), moments(raw)

        def log_joint(place: Tensor) -> Tensor:
            shown = films.clone()  # of inference: it may not be kept for a gradient as it is
            lost = surprise(self.explain(place, condition), shown, likelihood=self.config.likelihood, sigma=float(flow.sigma))
            return normal_log_density(place, zeros, zeros) - lost

        gamma = draws.normal(self.config.latent_size)
        moved, momentum = flow(code, gamma, slope_of(log_joint), deviation=(0.5 * log_variance).exp())
        cost = flow_divergence(first=code, gamma=gamma, last=moved, momentum=momentum, mean=mean, log_variance=log_variance)
        return moved, cost[:, None]

    def explain(self, code: Tensor, condition: Condition | None = None) -> Tensor:
        """What the decoder says of the film of a code, as the likelihood takes it, [B, Z] -> [B, outputs, S, S]."""
        embedding, maps = self._heard(condition, len(code))
        heard = self.prior.heard(code)
        raw: Tensor = self.decoder(heard, embedding) if maps is None else self.decoder(heard, embedding, maps)
        return raw.float()

    def encode(self, films: Tensor, condition: Condition | None = None) -> Tensor:
        """The middle of the posterior, [B, 1, S, S] in [-1, 1] -> [B, Z]."""
        return self.prior.centre(self.posterior(films, condition))

    def decode(self, code: Tensor, condition: Condition | None = None) -> Tensor:
        """The mean film of a code, [B, Z] -> [B, 1, S, S] in [-1, 1]."""
        return expected_film(self.explain(code, condition), likelihood=self.config.likelihood)

    def rebuild(self, films: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        """Films through a code drawn from their posterior and back, [B, 1, S, S] in [-1, 1] -> the same."""
        return self.decode(self.coded(films, condition, self.posterior(films, condition), draws)[0], condition)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode codes from the prior, one film a seed, [B, 1, S, S] in [-1, 1]; the pixels' own noise is left out."""
        with torch.inference_mode():
            return self.decode(self.prior.sample(Draws(seeds, device=self._device)), condition)

    def readings(self) -> dict[str, int]:
        """The side in pixels that a growing decoder has reached, with what is fading in; nothing for others."""
        return {"side_px": self.decoder.side_px} if isinstance(self.decoder, GrowingGenerator) else {}

    def silence(self, varied: Condition) -> None:
        """Set to 0 the weights that hear statements which no training film makes; see `Objective.silence`."""
        for part, embedding in self.embeddings.items():
            embedding.silence(getattr(varied, part)[0].isnan())  # type: ignore[operator]
        if "mask" in self.config.parts:
            assert varied.mask is not None and isinstance(self.encoder, FilmEncoder) and isinstance(self.decoder, FilmDecoder)
            silent = varied.mask[0].isnan().flatten(1).all(1).repeat(2)  # values, then which are stated
            with torch.no_grad():
                for layer in self.decoder.maps:
                    layer.weight[:, silent] = 0.0  # type: ignore[operator]
                seen = torch.cat([silent.new_zeros(1), silent]).repeat_interleave(self.config.patch**2)
                self.encoder.first.weight[:, seen] = 0.0

    @property
    def _device(self) -> torch.device:
        return self.decoder.first.weight.device

    def _heard(self, condition: Condition | None, size: int) -> tuple[Tensor, Tensor | None]:
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


def _networks(config: VaeConfig, *, numbers: int, maps: int) -> tuple[FilmEncoder | GrowingEncoder, FilmDecoder | GrowingGenerator]:
    """Encoder and decoder; with the embedding of the condition both hear `maps`, channels of masks."""
    outputs = outputs_of(config.likelihood)
    if config.network == "progressive":
        if maps:
            raise UsageError("model.network=progressive hears no masks: take mask out of model.parts, or take model.network=residual")
        size = {"image_size": config.image_size, "channels": config.channels, "embedding": config.embedding}
        return GrowingEncoder(**size, outputs=numbers), GrowingGenerator(**size, latent_size=config.latent_size, outputs=outputs)
    shape = checked(FilmCoderConfig(image_size=config.image_size, channels=config.channels, multipliers=tuple(config.multipliers),
                                    patch=config.patch, embedding=config.embedding, maps=maps))
    return FilmEncoder(shape, outputs=numbers), FilmDecoder(shape, latent_size=config.latent_size, outputs=outputs)


def _check_parts(config: VaeConfig, spec: ModelSpec) -> None:
    for part in config.parts:
        if part not in HEARD:
            raise UsageError(f"model.parts: unknown part '{part}'; {nearest(part, HEARD)}")
    if "mask" in config.parts and not spec.masks:
        raise UsageError("model.parts names mask, and the films come with no masks: take mask out of model.parts, or films with masks")
    if "labels" in config.parts and not spec.findings:
        raise UsageError("model.parts names labels, and the films come with no findings: take labels out of model.parts")
