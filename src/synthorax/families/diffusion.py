"""Diffusion: one denoiser that hears labels, attributes, lesions, masks, text and films in any mix, in pixels or latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import NotNegative
from synthorax.diffusion.guidance import guided_by_prompts
from synthorax.diffusion.inversion import invert
from synthorax.diffusion.noise import sampling_sigmas
from synthorax.diffusion.precondition import PARAMETERISATIONS, Scalings
from synthorax.diffusion.samplers import Denoise, ddpm_learned, solve
from synthorax.errors import UsageError, nearest
from synthorax.families.adoption import Names, adopted
from synthorax.families.compressors import build_compressor
from synthorax.nets.embedding import PlaceEmbedding, StatementEmbedding
from synthorax.nets.layout import MAPS, lesion_maps
from synthorax.nets.reader import TextReader
from synthorax.nets.text import TextConfig, build_text_encoder
from synthorax.nets.transformer import Transformer, TransformerConfig
from synthorax.nets.unet import UNet, UNetConfig, smallest_multiple
from synthorax.protocols import ATTRIBUTES, LESION_PROPERTIES, PARTS, Condition, ModelSpec, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws

Change = Callable[[Denoise], Denoise]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Shape of the denoiser, what it hears, and the range of its noise levels."""

    image_size: int = 64
    """side of the square films in pixels"""
    parts: tuple[str, ...] = ("labels", "attributes")
    """what the model hears: any of attributes, labels, lesions, mask, text, image"""
    network: Literal["unet", "transformer"] = "unet"
    """unet, or transformer with adaptive norm"""
    parameterisation: str = "edm"
    """what the network estimates: edm, eps, x0, v or flow"""
    learned_variance: bool = False
    """estimate the variance of the ancestral step too; the sampler is then ddpm"""
    compressor: str = "none"
    """what the diffusion runs on: none (pixels), wavelet (a lossless packing), kl-autoencoder or vq-gan (a trained run)"""
    compressor_config: Mapping[str, Any] = field(default_factory=dict)
    """shape of a trained compressor; filled in from its run"""
    channels: int = 32
    """U-Net: feature maps at the highest resolution"""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """U-Net: feature maps of each level, in units of `channels`"""
    blocks: int = 1
    """U-Net: residual blocks a level"""
    attention: tuple[bool, ...] = (False, False, True, True)
    """U-Net: whether each level has self-attention, and cross-attention to the text"""
    resample: Literal["average", "strided"] = "average"
    """U-Net: how resolution is halved"""
    coordinates: bool = False
    """U-Net: tell every position where in the film it is"""
    width: int = 384
    """transformer: length of a token"""
    depth: int = 12
    """transformer: number of blocks"""
    heads: int = 6
    """transformer: attention heads"""
    patch: int = 2
    """pixels of a side folded into channels (U-Net) or into a token (transformer)"""
    dropout: float = 0.0
    """probability of dropping a feature in training; above 0, several processes no longer train exactly like one"""
    embedding: int = 256
    """width of the noise and condition embedding"""
    text_encoder: str = "words"
    """words (trained along, offline), or the name or folder of a Hugging Face encoder"""
    text_width: int = 128
    """length of a text token"""
    text_depth: int = 2
    """blocks of the encoder `words`"""
    text_tokens: int = 256
    """words and marks of a text that are read; what is beyond is cut off"""
    reduction: int = 4
    """how many times smaller the film is that the part image shows"""
    sigma_data: float = 0.5
    """standard deviation of the films' pixels in [-1, 1]; latents have 1 by construction"""
    sigma_min: NotNegative = 0.005
    """lowest noise level of sampling; half of an 8-bit grey level is 0.004"""
    sigma_max: NotNegative = 80.0
    """highest noise level of sampling"""


class DiffusionModel(nn.Module):
    """A denoiser D(x; sigma, condition) and the samplers that turn it into films.

    x = x0 + sigma n lives in pixels or in a compressor's latents; every parameterisation and noise schedule is a conversion.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, DiffusionConfig(**spec.config)
        c = self.config
        for part in c.parts:
            if part not in PARTS:
                raise UsageError(f"model.parts: unknown part '{part}'; {nearest(part, PARTS)}")
        self.scalings: Callable[..., Scalings] = lookup(PARAMETERISATIONS, c.parameterisation, kind="parameterisation")
        self.compressor = build_compressor(c.compressor, c.compressor_config)
        self.sigma_data = c.sigma_data if c.compressor == "none" else 1.0
        findings, width = len(spec.findings), c.embedding
        self.embeddings = nn.ModuleDict()
        if "labels" in c.parts:
            self.embeddings["labels"] = StatementEmbedding(findings, width)
        if "attributes" in c.parts:
            self.embeddings["attributes"] = StatementEmbedding(len(ATTRIBUTES) + len(spec.sites), width)
        if "lesions" in c.parts:
            self.embeddings["lesions"] = PlaceEmbedding(findings, width)
        self.text: nn.Module | None = None
        self.reader: TextReader | None = None
        if "text" in c.parts:
            self.text = build_text_encoder(TextConfig(encoder=c.text_encoder, width=c.text_width, depth=c.text_depth,
                                                      max_tokens=c.text_tokens))
            self.embeddings["text"] = nn.Linear(c.text_width, width, bias=False)
            if {"labels", "lesions"} & set(c.parts):
                self.reader = TextReader(findings, width=c.text_width)
        beside = 2 * len(spec.masks) * ("mask" in c.parts) + MAPS * findings * ("lesions" in c.parts) + 2 * ("image" in c.parts)
        latent = self.compressor.channels
        self.network = _network(c, inputs=latent + beside, outputs=latent * (2 if c.learned_variance else 1),
                                side=c.image_size // self.compressor.factor)
        # What no training film states must change nothing: an untrained channel of a lesion's side once overexposed whole films.
        first: nn.Linear | nn.Conv2d = self.network.first  # type: ignore[assignment]
        with torch.no_grad():
            first.weight[:, latent * c.patch**2:(latent + beside) * c.patch**2] = 0.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is diffused."""
        side = self.config.image_size // self.compressor.factor
        return self.compressor.channels, side, side

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean latents given noisy ones, x [B, C, h, w], sigma [B] -> [B, C, h, w]."""
        return self.estimate(x, sigma, condition)[0]

    def estimate(self, x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """`denoise`, and with `learned_variance` the interpolation exponent in [0, 1] (Eq. 15, Nichol and Dhariwal 2021)."""
        s = self.scalings(sigma, sigma_data=self.sigma_data).like(x)
        condition, embedded, tokens, stated = self._heard(condition, len(x))
        beside = self._beside(condition, x)
        raw = self.network(torch.cat([s.c_in * x, *beside], dim=1), s.c_noise, embedded, tokens, stated).to(x)
        fraction = None
        if self.config.learned_variance:
            raw, spread = raw.chunk(2, dim=1)
            fraction = ((spread + 1) / 2).clamp(0, 1)
        return s.c_skip * x + s.c_out * raw, fraction

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
               change: Change | None = None, start: Tensor | None = None) -> Tensor:
        """One film a seed, [B, 1, H, W] in [-1, 1]; the noise depends on the seed alone.

        `condition` has one row a seed; None asks for nothing in particular. Upper-case AND and NOT in a text compose conditions
        (Liu et al. 2022). `change` wraps the guided denoiser, for autoguidance or guidance by a classifier; `start` [B, C, h, w]
        takes the place of the initial noise, as `invert` returns it.
        """
        settings = settings or SampleSettings()
        with torch.inference_mode():
            denoise, condition = self._guided(condition, len(seeds), settings)
            draws = Draws(seeds, device=self._device)
            sigmas = self._sigmas(settings)
            x = draws.normal(*self.latent_shape) * sigmas[0].item() if start is None else start.to(self._device)
            if self.config.learned_variance and settings.sampler == "ddpm":
                with_variance = self._with_variance(denoise if change is None else change(denoise), condition)
                latents = ddpm_learned(with_variance, x, sigmas, noise=lambda: draws.normal(*self.latent_shape))
            else:
                latents = solve(denoise if change is None else change(denoise), x, sigmas, sampler=settings.sampler, eta=settings.eta,
                                noise=lambda: draws.normal(*self.latent_shape))
            films: Tensor = self.compressor.decode(latents)
        return films.clamp(-1, 1)

    def invert(self, films: Tensor, condition: Condition | None, settings: SampleSettings | None = None, *, refinements: int = 1) -> Tensor:
        """The noise from which the sampler ddim makes these films [B, 1, H, W] again, [B, C, h, w]; see `diffusion.inversion.invert`."""
        settings = settings or SampleSettings()
        with torch.inference_mode():
            denoise, _ = self._guided(condition, len(films), settings)
            latents = self.compressor.encode(films.to(self._device))
            return invert(denoise, latents, self._sigmas(settings), refinements=refinements)

    def adopt(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings, sites and mask classes are matched by name.

        Raises UsageError where the shapes differ.
        """
        if not isinstance(base, DiffusionModel):
            raise UsageError("a diffusion model can only start from another one")
        self.load_state_dict(adopted(self.state_dict(), base.state_dict(), own_names=self.named_axes(), base_names=base.named_axes()))

    def named_axes(self) -> dict[str, Names]:
        """Weights that have an axis whose entries mean something by name: the axis and the names."""
        def twice(names: Sequence[str]) -> list[str]:  # StatementEmbedding: stated of each name, then value of each
            return [f"{half} {name}" for half in ("stated", "value") for name in names]

        own, findings = self.state_dict(), self.spec.findings
        axes: dict[str, Names] = {}
        if "labels" in self.embeddings:
            axes["embeddings.labels.linear.weight"] = (1, twice(findings))
        if "attributes" in self.embeddings:
            axes["embeddings.attributes.linear.weight"] = (1, twice([*ATTRIBUTES, *(f"site {site}" for site in self.spec.sites)]))
        if "lesions" in self.embeddings:
            each = own["embeddings.lesions.linear.weight"].shape[1] // max(1, len(findings))
            axes["embeddings.lesions.linear.weight"] = (1, [f"{name} {number}" for name in findings for number in range(each)])
        if self.reader is not None:
            axes["reader.questions"] = (0, findings)
        if {"lesions", "mask", "image"} & set(self.config.parts):
            channels = [f"latent {number}" for number in range(self.compressor.channels)]
            channels += [f"map {number} {name}" for number in range(MAPS) for name in findings] if "lesions" in self.config.parts else []
            channels += [f"mask {half} {name}" for half in ("value", "stated") for name in self.spec.masks * ("mask" in self.config.parts)]
            channels += [f"image {half}" for half in ("value", "stated")] if "image" in self.config.parts else []
            folded = [f"{channel} pixel {number}" for channel in channels for number in range(self.config.patch**2)]
            rest = own["network.first.weight"].shape[1] - len(folded)
            axes["network.first.weight"] = (1, [*folded, *(f"coordinate {number}" for number in range(rest))])
        return axes

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _sigmas(self, settings: SampleSettings) -> Tensor:
        return sampling_sigmas(settings.schedule, settings.steps, sigma_min=self.config.sigma_min, sigma_max=self.config.sigma_max)

    def _guided(self, condition: Condition | None, size: int, settings: SampleSettings) -> tuple[Denoise, Condition]:
        if condition is None:
            condition = Condition.unstated(size, num_labels=len(self.spec.findings), num_sites=len(self.spec.sites))
        condition = condition.only(self.config.parts).to(self._device)
        return guided_by_prompts(self.denoise, condition, settings, parts=self.config.parts), condition

    def _with_variance(self, denoise: Denoise, condition: Condition) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def both(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            fraction = self.estimate(x, sigma, condition)[1]
            assert fraction is not None
            return denoise(x, sigma), fraction

        return both

    def _heard(self, condition: Condition, size: int) -> tuple[Condition, Tensor, Tensor | None, Tensor | None]:
        """The condition with what its text states, embedding [B, E], text tokens [B, T, D] and which of them are stated [B, T]."""
        tokens = stated = None
        if self.text is not None:
            tokens, stated = self.text(condition.text or ("",) * size)
            if self.reader is not None and condition.text is not None:
                condition = self._read(condition, *self.reader(tokens, stated))
        embedded = torch.zeros(size, self.config.embedding, device=self._device)
        for part in ("labels", "attributes", "lesions"):
            value = getattr(condition, part)
            if part in self.embeddings and value is not None:
                embedded = embedded + self.embeddings[part](value)
        if tokens is not None and stated is not None:
            mean = (tokens * stated[..., None]).sum(1) / stated.sum(1, keepdim=True).clamp(min=1)
            embedded = embedded + self.embeddings["text"](mean)
        return condition, embedded, tokens, stated

    def _read(self, condition: Condition, labels: Tensor, lesions: Tensor) -> Condition:
        """The condition with a text's statements [B, K] and [B, K, P] where its labels and lesions state nothing themselves."""
        told = torch.ones_like(labels, dtype=torch.bool)
        if "labels" in self.config.parts:
            told = condition.labels.isnan() | (condition.labels == 1)
            condition = replace(condition, labels=torch.where(condition.labels.isnan(), labels.to(condition.labels), condition.labels))
        if "lesions" in self.config.parts:
            lesions = lesions.masked_fill(~told[..., None], math.nan)
            own = lesions if condition.lesions is None else condition.lesions
            condition = replace(condition, lesions=torch.where(own.isnan(), lesions.to(own), own))
        return condition

    def _beside(self, condition: Condition, x: Tensor) -> list[Tensor]:
        """What is concatenated to the noisy latents, at their resolution: lesions as soft spots, and masks and films, each of whose
        channels comes with a plane that says "stated"."""
        beside = []
        if "lesions" in self.config.parts:
            known = x.new_full((len(x), len(self.spec.findings), len(LESION_PROPERTIES)), math.nan)
            beside.append(lesion_maps(known if condition.lesions is None else condition.lesions.to(x), (x.shape[2], x.shape[3])))
        sizes = {"mask": len(self.spec.masks), "image": 1}
        for part, channels in sizes.items():
            if part not in self.config.parts or not channels:
                continue
            value = getattr(condition, part)
            if value is None:
                beside.append(x.new_zeros(len(x), 2 * channels, *x.shape[2:]))
                continue
            unstated = value.isnan().flatten(2).any(2)[:, :, None, None]
            small = F.adaptive_avg_pool2d(value.nan_to_num(0.0).to(x), (x.shape[2], x.shape[3]))
            beside += [small * ~unstated, (~unstated).to(x).expand_as(small)]
        return beside


def _network(c: DiffusionConfig, *, inputs: int, outputs: int, side: int) -> nn.Module:
    context = c.text_width if "text" in c.parts else 0
    network: nn.Module
    if c.network == "transformer":
        shape = TransformerConfig(width=c.width, depth=c.depth, heads=c.heads, patch=c.patch, context=context, dropout=c.dropout,
                                  embedding=c.embedding)
        multiple, network = smallest_multiple(shape), Transformer(shape, inputs=inputs, outputs=outputs)
    else:
        if len(c.multipliers) != len(c.attention):
            raise UsageError("model.multipliers and model.attention must have the same length")
        form = UNetConfig(channels=c.channels, multipliers=tuple(c.multipliers), blocks=c.blocks, patch=c.patch, context=context,
                          attention=tuple(c.attention), dropout=c.dropout, embedding=c.embedding, resample=c.resample,
                          coordinates=c.coordinates)
        multiple, network = smallest_multiple(form), UNet(form, inputs=inputs, outputs=outputs)
    if side % multiple:
        raise UsageError(f"model.image_size {c.image_size} gives {side} x {side} latents, and this {c.network} needs a multiple "
                         f"of {multiple}")
    return network
