"""Diffusion: one denoiser conditioned on labels, attributes, lesions, masks, text and images in any mix, in pixels or latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.capabilities import Adaptable, Change, HasConditionInputs, Resampler
from synthorax.config import AtLeastOne, Depth, Dropout, Multipliers, NotNegative, Patch, Positive, Side, Width, one_of
from synthorax.diffusion.guidance import clip_denoised, guided_by_prompts
from synthorax.diffusion.inversion import invert
from synthorax.diffusion.noise import sampling_sigmas
from synthorax.diffusion.precondition import PARAMETERISATIONS, Scalings
from synthorax.diffusion.samplers import Denoise, ddpm_learned, solve
from synthorax.errors import UsageError, nearest
from synthorax.families.autoencoders.compressors import build_compressor
from synthorax.families.denoising.condition_maps import condition_maps
from synthorax.families.denoising.conditioning_augmentation import resized, with_noise
from synthorax.families.denoising.detail_bands import BANDS, DetailBands, with_detail, zero_detail
from synthorax.families.denoising.distillation import Distilled
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import PlaceEmbedding, StatementEmbedding
from synthorax.nets.layers import Modulation, zeroed
from synthorax.nets.text import TextConfig, build_text_encoder
from synthorax.nets.text_statements import TextParser
from synthorax.nets.transformer import Transformer, TransformerConfig
from synthorax.nets.unet import UNet, UNetConfig, smallest_multiple
from synthorax.protocols import ATTRIBUTES, AUGMENTATIONS, PARTS, Condition, ModelSpec, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws, derive

FIRST, LAST = "network.first.", "network.last."
"""how the names of the weights begin of the layers from and to pixels or latents"""
OPTIONAL = "embeddings.augmentation."
"""how the names of the weights begin that a base may lack: they are 0 at first, and change nothing"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Shape of the denoiser, what it is conditioned on, and the range of its noise levels."""

    image_size: Side = 64
    """side of the square images in pixels"""
    parts: tuple[Annotated[str, one_of("synthorax.protocols:PARTS")], ...] = ("labels", "attributes")
    """what the model is conditioned on: any of attributes, labels, lesions, mask, text, image"""
    network: Literal["unet", "transformer"] = "unet"
    """unet, or transformer with adaptive norm"""
    parameterisation: Annotated[str, one_of("synthorax.diffusion.precondition:PARAMETERISATIONS")] = "edm"
    """what the network estimates: edm, eps, x0, v or flow"""
    learned_variance: bool = False
    """learn the variance of the ancestral step too; the sampler is then ddpm"""
    compressor: Annotated[str, one_of("synthorax.families.autoencoders.compressors:TRAINED", "none", "wavelet")] = "none"
    """what is diffused: none (pixels), wavelet (a lossless transform), or the latents of a trained kl-autoencoder or vq-gan"""
    compressor_config: Mapping[str, Any] = field(default_factory=dict)
    """shape of a trained compressor; filled in from its run"""
    channels: Width = 32
    """U-Net: feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2, 4, 8)
    """U-Net: feature maps of each level, in units of `channels`"""
    blocks: Depth = 1
    """U-Net: residual blocks a level"""
    attention: tuple[bool, ...] = (False, False, True, True)
    """U-Net: whether each level has self-attention, and cross-attention to the text"""
    resample: Literal["average", "strided"] = "average"
    """U-Net: how resolution is halved"""
    coordinates: bool = False
    """U-Net: give every position its coordinates as inputs"""
    middle_attention: bool = True
    """U-Net: self-attention at the lowest resolution, whatever `attention` says; a network without any can be trained on crops"""
    width: Width = 384
    """transformer: length of a token"""
    depth: Depth = 12
    """transformer: number of blocks"""
    heads: Depth = 6
    """transformer: attention heads"""
    patch: Patch = 2
    """pixels of a side folded into channels (U-Net) or into a token (transformer)"""
    dropout: Dropout = 0.0
    """probability of dropping a feature in training; above 0, several processes no longer train exactly like one"""
    embedding: Width = 256
    """width of the noise and condition embedding"""
    text_encoder: str = "words"
    """words (trained with the model, offline), or the name or folder of a Hugging Face encoder"""
    text_width: Width = 128
    """length of a text token"""
    text_depth: Depth = 2
    """blocks of the encoder `words`"""
    text_tokens: AtLeastOne = 256
    """longest text in words and punctuation marks; longer ones are cut off"""
    reduction: Patch = 4
    """how many times smaller the image is that the part image shows"""
    conditioning_noise: NotNegative = 0.02
    """noise added to that image at sampling, whose level the network gets too; more hides more of its mistakes and of its content"""
    centred: bool = False
    """estimate the residual to the enlarged image of the part image, which must then be given"""
    sigma_data: Positive = 0.5
    """standard deviation of the images' pixels in [-1, 1], or of what is added to an enlarged image; latents have 1 by construction"""
    detail_sigma_data: tuple[Positive, ...] = ()
    """U-Net: standard deviations of differences of columns, of rows and of diagonals over 2 x 2 pixels; the network then sees the image as
    means and differences, each at unit variance, at half the side; none is pixels
    """
    sigma_min: Positive = 0.005
    """lowest noise level of sampling; half of an 8-bit intensity level is 0.004"""
    sigma_max: Positive = 80.0
    """highest noise level of sampling"""
    told_augmentation: bool = False
    """tell the model how its training images were moved and exposed, which then is done more strongly; nothing at sampling"""
    distilled: Distilled | None = None
    """what is distilled into a student; none for a model that learned from images"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.sigma_min >= self.sigma_max:
            yield "sigma_min", f"{self.sigma_min:g} is not below sigma_max, {self.sigma_max:g}"
        if self.detail_sigma_data and (self.network != "unet" or self.compressor != "none" or self.parameterisation != "edm"
                                       or self.centred or self.learned_variance):
            yield "detail_sigma_data", ("bands of detail need network=unet, compressor=none and parameterisation=edm, and neither centred "
                                        "nor learned_variance")


class DiffusionModel(nn.Module, Resampler, HasConditionInputs, Adaptable):
    """A denoiser D(x; sigma, condition) and the samplers that turn it into images.

    x = x0 + sigma n lives in pixels or in a compressor's latents; every parameterisation and noise schedule is a conversion.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, _config(spec)
        self.substitute: Callable[..., Tensor] | None = None
        """called in place of `network` where no gradients are needed, such as the network as another engine compiled it"""
        self.embedded_rows: dict[bytes, tuple[Condition, Tensor, Tensor | None, Tensor | None]] | None = None
        """with `substitute`, what conditions were embedded to: each row alone, so that it does not depend on the others, and once"""
        c = self.config
        for part in c.parts:
            if part not in PARTS:
                raise UsageError(f"model.parts: unknown part '{part}'; {nearest(str(part), PARTS)}")  # files may hold anything
        self.scalings: Callable[..., Scalings] = lookup(PARAMETERISATIONS, c.parameterisation, kind="parameterisation")
        self.compressor = build_compressor(c.compressor, c.compressor_config)
        if c.centred and (c.compressor != "none" or "image" not in c.parts):
            raise UsageError("model.centred needs the part image and model.compressor=none")
        self.sigma_data = c.sigma_data if c.compressor == "none" else 1.0
        self.bands = DetailBands(sigma_data=c.sigma_data, detail=c.detail_sigma_data) if c.detail_sigma_data else None
        findings, width = len(spec.findings), c.embedding
        self.embeddings = nn.ModuleDict()
        if "labels" in c.parts:
            self.embeddings["labels"] = StatementEmbedding(findings, width)
        if "attributes" in c.parts:
            self.embeddings["attributes"] = StatementEmbedding(len(ATTRIBUTES) + len(spec.sites), width)
        if "lesions" in c.parts:
            self.embeddings["lesions"] = PlaceEmbedding(findings, width)
        self.text: nn.Module | None = None
        self.text_parser: TextParser | None = None
        if "text" in c.parts:
            self.text = build_text_encoder(TextConfig(encoder=c.text_encoder, width=c.text_width, depth=c.text_depth,
                                                      max_tokens=c.text_tokens))
            self.embeddings["text"] = nn.Linear(c.text_width, width, bias=False)
            if {"labels", "lesions"} & set(c.parts):
                self.text_parser = TextParser(findings, width=c.text_width)
        if c.told_augmentation:
            self.embeddings["augmentation"] = zeroed(nn.Linear(len(AUGMENTATIONS), width, bias=False))
        self.maps = condition_maps(c.parts, spec)
        latent, channels = len(self._latent_names), sum(len(maps.names) for maps in self.maps)
        self.network = _network(c, inputs=latent + channels, maps=channels, outputs=latent * (2 if c.learned_variance else 1),
                                side=c.image_size // self.compressor.factor // (1 if self.bands is None else 2))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is diffused."""
        side = self.config.image_size // self.compressor.factor
        return self.compressor.channels, side, side

    @property
    def needs_image(self) -> bool:
        """Whether it can do nothing without the part image."""
        return self.config.centred

    @property
    def size_multiple(self) -> int:
        """Sides of the images and patches that a convolutional network takes are multiples of this many pixels."""
        factor = self.compressor.factor * (1 if self.bands is None else 2)
        return math.lcm(int(self.network.multiple) * factor, self.config.reduction)  # type: ignore[arg-type]

    @property
    def _latent_names(self) -> tuple[str, ...]:
        """What the network sees of the image, by channel."""
        return BANDS if self.bands is not None else tuple(f"latent {number}" for number in range(self.compressor.channels))

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean latents given noisy ones, x [B, C, h, w], sigma [B] -> [B, C, h, w]."""
        return self.estimate(x, sigma, condition)[0]

    def estimate(self, x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """`denoise`, and with `learned_variance` the interpolation exponent in [0, 1] (Eq. 15, Nichol and Dhariwal 2021)."""
        s = self.scalings(sigma, sigma_data=self.sigma_data).like(x) if self.bands is None else self.bands.scalings(sigma)
        x = x if self.bands is None else self.bands.split(x)
        alone = self.embedded_rows is not None and not torch.is_grad_enabled()
        condition, embedded, tokens, stated = (self._embedded_alone if alone else self._embedded)(condition, len(x))
        maps = self._condition_maps(condition, x)
        centre = maps["image"][:, :1] if self.config.centred else x.new_zeros(())
        x = x - centre
        where = {} if condition.place is None else {"place": condition.place}
        network = self.network if self.substitute is None or where or torch.is_grad_enabled() else self.substitute
        raw = network(torch.cat([s.c_in * x, *maps.values()], dim=1), s.c_noise, embedded, tokens, stated, **where).to(x)
        fraction = None
        if self.config.learned_variance:
            raw, spread = raw.chunk(2, dim=1)
            fraction = ((spread + 1) / 2).clamp(0, 1)
        estimate = centre + s.c_skip * x + s.c_out * raw
        return estimate if self.bands is None else self.bands.merge(estimate), fraction

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
               change: Change | None = None, start: Tensor | None = None) -> Tensor:
        """One image a seed, [B, 1, H, W] in [-1, 1]; the noise depends on the seed alone.

        `condition` has one row a seed; None is unconditional. Upper-case AND and NOT in a text compose conditions
        (Liu et al. 2022). `change` wraps the guided denoiser, for autoguidance or guidance by a classifier; `start` [B, C, h, w]
        takes the place of the initial noise, as `invert` returns it. Without `settings` those of `usual_settings` hold.
        """
        settings = settings or self.usual_settings
        with torch.inference_mode():
            denoise, condition = self.guided(condition, len(seeds), settings, seeds=seeds)
            draws = Draws(seeds, device=self._device)
            sigmas = self._sigmas(settings)
            if start is None:
                start = draws.normal(*self.latent_shape) * sigmas[0].item()
                if self.config.centred and condition.image is not None:
                    start = start + condition.image[:, :1]
            x = start.to(self._device)
            denoise = clip_denoised(denoise if change is None else change(denoise), settings)
            if self.config.learned_variance and settings.sampler == "ddpm" and self.config.distilled is None:  # students learn none
                latents = ddpm_learned(self._with_variance(denoise, condition), x, sigmas, noise=lambda: draws.normal(*self.latent_shape))
            else:
                latents = solve(denoise, x, sigmas, sampler=settings.sampler, eta=settings.eta,
                                noise=lambda: draws.normal(*self.latent_shape))
            images: Tensor = self.compressor.decode(latents)
        return images.clamp(-1, 1)

    def resample(self, images: Tensor, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
                 level: float, change: Change | None = None) -> Tensor:
        """Images [B, 1, H, W] in [-1, 1] brought to noise level `level` and sampled again from there (SDEdit, Meng et al. 2022).

        The higher the level, the more changes; `change` wraps the guided denoiser, as in `sample`. The network's input is these
        images alone: a convolutional one also takes patches, of sides that are multiples of `size_multiple`.
        """
        settings = settings or self.usual_settings
        with torch.inference_mode():
            images = images.to(self._device)
            denoise, _ = self.guided(condition, len(seeds), settings, seeds=seeds, sides=(images.shape[2], images.shape[3]))
            clean, draws = self.compressor.encode(images), Draws(seeds, device=self._device)
            sigmas = self._sigmas(settings, highest=level)
            x = clean + draws.normal(*clean.shape[1:]) * sigmas[0].item()
            denoise = clip_denoised(denoise if change is None else change(denoise), settings)
            latents = solve(denoise, x, sigmas, sampler=settings.sampler, eta=settings.eta, noise=lambda: draws.normal(*clean.shape[1:]))
            made: Tensor = self.compressor.decode(latents)
        return made.clamp(-1, 1)

    def invert(self, images: Tensor, condition: Condition | None, settings: SampleSettings | None = None, *,
               refinements: int = 1) -> Tensor:
        """The noise from which the sampler ddim makes these images [B, 1, H, W] again, [B, C, h, w]; see `diffusion.inversion.invert`."""
        if self.config.distilled is not None and self.config.distilled.steps:
            raise UsageError("a student of few steps cannot be inverted; use its teacher")
        settings = settings or self.usual_settings
        with torch.inference_mode():
            denoise, _ = self.guided(condition, len(images), settings)
            latents = self.compressor.encode(images.to(self._device))
            return invert(denoise, latents, self._sigmas(settings), refinements=refinements)

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings, sites and mask classes are matched by name.

        With bands of detail, `base` may be one without them of half the side (`with_detail`). Raises UsageError where the shapes differ.
        """
        if self.bands is None or not isinstance(base, DiffusionModel) or base.bands is not None:
            load_matching(self, base, what="a diffusion model", optional=OPTIONAL)
            return
        base = with_detail(base, detail=self.config.detail_sigma_data, parts=self.config.parts)
        load_matching(self, base, what="a diffusion model", optional=OPTIONAL)
        zero_detail(self)

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`. Left random, the weights of a lesion's side overexposed whole images once a text named a side.

        (All weights at 0 would do too, but then labels are learned far more slowly.)
        """
        for part in ("labels", "attributes", "lesions"):
            if part in self.embeddings:
                self.embeddings[part].zero_unvaried_inputs(getattr(varied, part)[0].isnan())  # type: ignore[operator]
        unvaried = [torch.zeros(len(self._latent_names), dtype=torch.bool), *(maps.unvaried(varied) for maps in self.maps)]
        columns = torch.cat(unvaried).repeat_interleave(self.config.patch**2)
        first: nn.Linear | nn.Conv2d = self.network.first  # type: ignore[assignment]
        with torch.no_grad():
            first.weight[:, :len(columns)][:, columns] = 0.0

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
        if self.text_parser is not None:
            axes["text_parser.questions"] = (0, findings)
        if self.maps:
            axes["network.first.weight"] = (1, self.input_names())
        return axes

    def input_names(self) -> list[str]:
        """What each input of the network's first layer means, as models of other findings or masks know it."""
        channels = [*self._latent_names, *(name for maps in self.maps for name in maps.names)]
        folded = [f"{channel} pixel {number}" for channel in channels for number in range(self.config.patch**2)]
        first: nn.Linear | nn.Conv2d = self.network.first  # type: ignore[assignment]
        return [*folded, *(f"coordinate {number}" for number in range(first.weight.shape[1] - len(folded)))]

    def parameter_groups(self) -> dict[str, frozenset[str]]:
        """Names of the weights by what they do: see `Adaptable`. The text encoder embeds the condition too: it has to learn new words."""
        scaling = [name for name, part in self.network.named_modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm | Modulation)]
        starts: dict[str, tuple[str, ...]] = {"first": (FIRST,), "last": (LAST,), "norms": tuple(f"network.{name}." for name in scaling),
                                              "trunk": ("network.",), "condition": ("",)}
        groups: dict[str, set[str]] = {group: set() for group in starts}
        for name, _ in self.named_parameters():
            groups[next(group for group, start in starts.items() if name.startswith(start))].add(name)
        return {group: frozenset(names) for group, names in groups.items()}

    @property
    def usual_settings(self) -> SampleSettings:
        """The settings where none are given; those of a student are its own."""
        return SampleSettings() if self.config.distilled is None else self.config.distilled.settings()

    def check_settings(self, settings: SampleSettings) -> None:
        """Raises UsageError for settings that this model cannot follow, such as a student's guidance on top of what it has built in."""
        if settings.clip and self.config.compressor != "none":
            raise UsageError(f"clip: this model diffuses latents (model.compressor={self.config.compressor}), which have no intensities to "
                             "be clipped; leave it out")
        if self.config.distilled is not None:
            self.config.distilled.check(settings)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _sigmas(self, settings: SampleSettings, *, highest: float = math.inf) -> Tensor:
        if self.config.distilled is not None and self.config.distilled.steps:
            if highest < self.config.sigma_max:
                raise UsageError("a student of few steps knows no other noise levels than its own; take its teacher")
            return self.config.distilled.levels(sigma_min=self.config.sigma_min, sigma_max=self.config.sigma_max)
        return sampling_sigmas(settings.schedule, settings.steps, sigma_min=self.config.sigma_min,
                               sigma_max=min(highest, self.config.sigma_max))

    def guided(self, condition: Condition | None, size: int, settings: SampleSettings, *, seeds: Sequence[int] = (),
                sides: tuple[int, int] | None = None) -> tuple[Denoise, Condition]:
        """The guided denoiser of images of these sides, and the condition as it is used; without seeds no noise is added to an
        image in it.
        """
        self.check_settings(settings)
        if condition is None:
            condition = Condition.unstated(size, num_labels=len(self.spec.findings), num_sites=len(self.spec.sites))
        condition = condition.only(self.config.parts).to(self._device)
        if condition.image is not None:
            sides = sides or (self.config.image_size, self.config.image_size)
            condition = replace(condition, image=self._low_resolution(condition.image, sides, settings, seeds))
        if not self.config.centred:
            return guided_by_prompts(self.denoise, condition, settings, parts=self.config.parts), condition
        if condition.image is None or not bool(condition.stated("image").all()):
            raise UsageError("this super-resolution model was given no image: pack it behind a model of small images (synthorax pack), "
                             "or state condition.image")
        with torch.inference_mode(False):
            image = condition.image.clone()

        def denoise(x: Tensor, sigma: Tensor, rest: Condition) -> Tensor:  # rows of guidance lie end to end, each with its image
            return self.denoise(x, sigma, replace(rest, image=image.repeat(len(x) // len(image), 1, 1, 1)))

        others = [part for part in self.config.parts if part != "image"]
        return guided_by_prompts(denoise, condition.only(others), settings, parts=others), condition

    def _low_resolution(self, image: Tensor, sides: tuple[int, int], settings: SampleSettings, seeds: Sequence[int]) -> Tensor:
        """Images of any size as in training, at low resolution and with their noise level, [B, C, h, w] -> [B, 2, *sides]."""
        low = resized(image[:, :1].float(), (sides[0] // self.config.reduction, sides[1] // self.config.reduction))
        level = self.config.conditioning_noise if settings.conditioning_noise is None else settings.conditioning_noise
        level, noise = (level, self._own_noise(low, seeds)) if seeds and level else (0.0, torch.zeros_like(low))
        return resized(with_noise(low, level=low.new_full((len(low),), level), noise=noise), sides)

    def _own_noise(self, low: Tensor, seeds: Sequence[int]) -> Tensor:
        """Noise in a stream of its own, so that rows without an image get the same noise in any batch."""
        return Draws([derive(seed, "image") for seed in seeds], device=self._device).normal(*low.shape[1:])

    def _with_variance(self, denoise: Denoise, condition: Condition) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def both(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            fraction = self.estimate(x, sigma, condition)[1]
            assert fraction is not None
            return denoise(x, sigma), fraction

        return both

    def _embedded(self, condition: Condition, size: int) -> tuple[Condition, Tensor, Tensor | None, Tensor | None]:
        """The condition completed by what its text states, embedding [B, E], text tokens [B, T, D] and which of them are stated [B, T]."""
        tokens = stated = None
        if self.text is not None:
            tokens, stated = self.text(condition.text or ("",) * size)
            if self.text_parser is not None and condition.text is not None:
                condition = self._with_text_statements(condition, *self.text_parser(tokens, stated))
        embedded = torch.zeros(size, self.config.embedding, device=self._device)
        for part in ("labels", "attributes", "lesions", "augmentation"):
            value = getattr(condition, part)
            if part in self.embeddings and value is not None:
                embedded = embedded + self.embeddings[part](value)
        if tokens is not None and stated is not None:
            mean = (tokens * stated[..., None]).sum(1) / stated.sum(1, keepdim=True).clamp(min=1)
            embedded = embedded + self.embeddings["text"](mean)
        return condition, embedded, tokens, stated

    def _embedded_alone(self, condition: Condition, size: int) -> tuple[Condition, Tensor, Tensor | None, Tensor | None]:
        """`_embedded` of each row by itself, once for the same row."""
        known, rows = self.embedded_rows, []
        assert known is not None
        for number in range(size):
            row = condition[number: number + 1]
            numbers = [part for part in (row.labels, row.attributes, row.lesions, row.augmentation) if part is not None]
            key = b"|".join([*(part.numpy().tobytes() for part in numbers), repr(row.text).encode()])
            if key not in known:
                known[key] = self._embedded(replace(row, mask=None, image=None), 1)
            rows.append(known[key])
        embedded = torch.cat([one for _, one, _, _ in rows])
        lesions = [one.lesions for one, _, _, _ in rows if one.lesions is not None]
        condition = replace(condition, labels=torch.cat([one.labels for one, _, _, _ in rows]),
                            lesions=torch.cat(lesions) if lesions else None)
        tokens, stated = [one for _, _, one, _ in rows if one is not None], [one for _, _, _, one in rows if one is not None]
        if not tokens:
            return condition, embedded, None, None
        longest = max(one.shape[1] for one in tokens)
        return (condition, embedded, torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in tokens]),
                torch.cat([F.pad(one, (0, longest - one.shape[1])) for one in stated]))

    def _with_text_statements(self, condition: Condition, labels: Tensor, lesions: Tensor) -> Condition:
        """The condition with a text's labels [B, K] and lesions [B, K, P] where it states none itself."""
        present = torch.ones_like(labels, dtype=torch.bool)  # or not stated
        if "labels" in self.config.parts:
            present = condition.labels.isnan() | (condition.labels == 1)
            condition = replace(condition, labels=torch.where(condition.labels.isnan(), labels.to(condition.labels), condition.labels))
        if "lesions" in self.config.parts:
            lesions = lesions.masked_fill(~present[..., None], math.nan)
            own = lesions if condition.lesions is None else condition.lesions
            condition = replace(condition, lesions=torch.where(own.isnan(), lesions.to(own), own))
        return condition

    def _condition_maps(self, condition: Condition, x: Tensor) -> dict[str, Tensor]:
        """What is concatenated to the noisy latents x [B, C, h, w], by part, each [B, channels, h, w].

        Nothing where no row states any of these parts.
        """
        if not self.config.centred and not any(bool(condition.stated(maps.part).any()) for maps in self.maps):
            return {}
        return {maps.part: maps.planes(condition, x) for maps in self.maps}


def _config(spec: ModelSpec) -> DiffusionConfig:
    """The config of a spec; `distilled` is a plain table where it was read from a file."""
    config = DiffusionConfig(**spec.config)
    return replace(config, distilled=Distilled(**config.distilled)) if isinstance(config.distilled, Mapping) else config


def _network(c: DiffusionConfig, *, inputs: int, maps: int, outputs: int, side: int) -> nn.Module:
    context = c.text_width if "text" in c.parts else 0
    network: nn.Module
    if c.network == "transformer":
        shape = TransformerConfig(width=c.width, depth=c.depth, heads=c.heads, patch=c.patch, context=context, dropout=c.dropout,
                                  embedding=c.embedding)
        multiple, network = smallest_multiple(shape), Transformer(shape, inputs=inputs, outputs=outputs, maps=maps)
    else:
        if len(c.multipliers) != len(c.attention):
            raise UsageError("model.multipliers and model.attention must have the same length")
        form = UNetConfig(channels=c.channels, multipliers=tuple(c.multipliers), blocks=c.blocks, patch=c.patch, context=context,
                          attention=tuple(c.attention), dropout=c.dropout, embedding=c.embedding, resample=c.resample,
                          coordinates=c.coordinates, middle_attention=c.middle_attention)
        multiple, network = smallest_multiple(form), UNet(form, inputs=inputs, outputs=outputs, maps=maps)
    if side % multiple:
        raise UsageError(f"model.image_size {c.image_size} gives {side} x {side} latents, and this {c.network} needs a multiple "
                         f"of {multiple}")
    return network
