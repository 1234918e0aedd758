"""What a model can do beside sampling: its class names these protocols as bases, its family lists them, and `isinstance` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from synthorax.rng import Draws

if TYPE_CHECKING:  # `protocols.Objective` asks for capabilities
    from synthorax.protocols import Condition, ModelSpec, SampleSettings


Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> x0, as samplers call it"""
Change = Callable[[Denoise], Denoise]
"""wraps a denoiser"""


@runtime_checkable
class LatentGenerator(Protocol):
    """Makes images of normal numbers in a differentiable way: what inversion and editing need."""

    spec: ModelSpec
    training: bool

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one image, of the numbers that make it: the latent, then noises, if there are any."""

    @property
    def follows_condition(self) -> bool:
        """Whether images of latents follow a condition too."""
        return bool(self.spec.conditions)

    def draw_latents(self, draws: Draws, condition: Condition | None) -> list[Tensor]:
        """Latents of random images, one a stream of `draws`, each [B, *shape]."""
        return [draws.normal(*shape) for shape in self.latent_shapes]

    def decode_latents(self, latents: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """The image of latents, each [B, *shape] as `latent_shapes` says, -> [B, 1, S, S]."""

    def latent_weights(self) -> Tensor:
        """Weights of the first layer that reads the latent, [rows, numbers of a latent], for directions that nobody labelled."""


@runtime_checkable
class StyledGenerator(LatentGenerator, Protocol):
    """Makes images of styles, one a layer, which it makes of a latent (Karras et al. 2019)."""

    def styles_of(self, latent: Tensor, condition: Condition | None) -> Tensor:
        """One style a layer, latent [B, Z] -> [B, L, W]."""

    def decode_styles(self, styles: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """The image of styles [B, L, W] and of the noise of each layer, [B, *shape], -> [B, 1, S, S] of any range."""

    def style_space(self) -> LatentGenerator:
        """The same images by their styles."""


@runtime_checkable
class LatentEncoder(Protocol):
    """Reads latents from images in one pass."""

    def encode_latents(self, images: Tensor) -> list[Tensor]:
        """Latents of images [B, 1, S, S] in [-1, 1], each [B, *shape]."""


@runtime_checkable
class MaskConditioned(Protocol):
    """Makes images of masks; a discriminator judges both together."""

    def mask_planes(self, condition: Condition | None, *, size: int, device: torch.device) -> Tensor:
        """The masks of `size` images as the networks are conditioned on them, [B, 2 M, S, S]: which are stated, then values."""


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model: it estimates clean images from noisy ones, so that samplers can draw from it."""

    spec: ModelSpec

    @property
    def needs_image(self) -> bool:
        """Whether it can do nothing without the part image."""

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean latents given noisy ones, x [B, C, h, w], sigma [B] -> [B, C, h, w]."""

    def check_settings(self, settings: SampleSettings) -> None:
        """Raises UsageError for settings that this model cannot follow."""


@runtime_checkable
class LayoutMaker(Protocol):
    """Draws outlines of findings in coordinates of the lungs (`data.layouts`), and no images."""

    spec: ModelSpec

    def draw(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Masks of outlines, one a seed, [B, 1, S, S] of 0 and 1, on the grid of a layout."""


@runtime_checkable
class Resampler(Denoiser, Protocol):
    """A denoiser that samples given images again from a noise level, and lets its estimates be changed on the way."""

    @property
    def size_multiple(self) -> int:
        """Sides of the images and patches that it takes, and places where patches begin, are multiples of this many pixels."""

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
               change: Change | None = None) -> Tensor:
        """One image a seed, [B, 1, S, S] in [-1, 1]; `change` wraps the guided denoiser."""

    def resample(self, images: Tensor, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
                 level: float, change: Change | None = None) -> Tensor:
        """Images [B, 1, S, S] in [-1, 1] brought to the noise level `level` and sampled from there."""


@runtime_checkable
class Cascade(Protocol):
    """Models one after the other, the first of which makes images and the others enlarge them."""

    stages: nn.ModuleList
    settings: Sequence[SampleSettings]
    """how each stage after the first is sampled"""
    guide: nn.Module | None
    """a weaker model of what the first stage makes, for autoguidance"""


@runtime_checkable
class HasConditionInputs(Protocol):
    """Has weights for each statement of a condition."""

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """Set to 0 the weights of statements that are NaN in `varied`, a condition of one row: training images do not differ in them.

        Training does not move weights that nothing reaches; left random, they would act once a user states something there.
        """


@runtime_checkable
class StartsFromBase(Protocol):
    """Can start from the weights of a trained model."""

    def load_matching(self, base: nn.Module) -> None:
        """Take the weights of `base`, a model of the same shape; findings, sites and mask classes are matched by name.

        Raises UsageError for another family or shape.
        """

    def named_axes(self) -> dict[str, tuple[int, Sequence[str]]]:
        """Weights with an axis whose entries mean something by name: the axis and the names."""


@runtime_checkable
class Adaptable(StartsFromBase, Protocol):
    """Can be fine-tuned in part."""

    def parameter_groups(self) -> dict[str, frozenset[str]]:
        """Names of the weights by what they do, each in one group: `condition` embeds the condition, `norms` scales and shifts normalised
        features, `first` and `last` are the layers from and to pixels or latents, and `trunk` is the rest of the network.
        """


@runtime_checkable
class HasDiagnostics(Protocol):
    """Says in numbers how it is doing."""

    def diagnostics(self) -> dict[str, float]:
        """Numbers for `metrics.jsonl`, by name; `side_px` is the side that a growing network has reached."""


CAPABILITIES: tuple[type, ...] = (LatentGenerator, StyledGenerator, LatentEncoder, MaskConditioned, Denoiser, LayoutMaker, Resampler,
                                  Cascade, HasConditionInputs, StartsFromBase, Adaptable, HasDiagnostics)
"""all of these protocols; the contract tests hold every family to those that it lists"""
