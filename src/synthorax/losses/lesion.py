"""Lesion preservation: losses on the lesion alone that leave the gradient of every pixel outside it as it was.

L = L_denoise + w_m |M (e - e_hat)|^2 / |M| + w_s (1 - SSIM in the lesion) + w_p (perceptual distance of the lesion's crop). Each
term is [B], 0 for an image without a lesion, and added to the plain loss, never mixed with it. The last two compare one-step estimates of
the clean image, which at high noise are means over many images, so their weight depends on the noise level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthorax.config import NotNegative, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.losses.perceptual import Features, perceptual_distance

WINDOW_PX, WINDOW_SIGMA_PX = 11, 1.5  # section III.C, Wang et al. 2004
LUMINANCE, STRUCTURE = 0.01**2, 0.03**2  # C1 and C2 there, for intensities in [0, 1]
CROP_PX, LEAST_CROP_PX, CROP_MARGIN = 64, 16, 0.25
_TINY = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionLossConfig:
    """Which lesion terms are added to the denoising loss; a weight of 0 switches its term off."""

    mask_weight: NotNegative = 0.0
    """weight of the squared error inside the lesion, on the scale of the plain loss"""
    ssim_weight: NotNegative = 0.0
    """weight of 1 - SSIM inside the lesion"""
    perceptual_weight: NotNegative = 0.0
    """weight of the perceptual distance of the lesion's crop"""
    perceptual: str = "oriented"
    """perceptual features: a name in `losses.perceptual.PERCEPTUAL`, or a TorchScript file"""
    boundary_px: WholeNotNegative = 0
    """pixels by which the mask is grown, falling to 0, so that the lesion's rim counts; 0 keeps to the outline"""
    sigma_lost: NotNegative | None = None
    """noise level above which the SSIM and perceptual terms fade; None: measured on each image's own lesion"""
    sigma_least: NotNegative = 0.1
    """lowest such level that an image's own lesion may set, for lesions that hardly differ from what is around them"""
    sigma_most: NotNegative = 1.0
    """highest such level that an image's own lesion may set, since a large lesion is seen long before its texture is"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.sigma_least > self.sigma_most:
            yield "sigma_least", f"{self.sigma_least:g} is above sigma_most, {self.sigma_most:g}"

    @property
    def active(self) -> bool:
        """Whether any term is switched on."""
        return bool(self.mask_weight or self.ssim_weight or self.perceptual_weight)


def lesion_terms(estimate: Tensor, target: Tensor, mask: Tensor, sigma: Tensor, *, error_weight: Tensor, config: LesionLossConfig,
                 features: Features | None = None) -> dict[str, Tensor]:
    """The terms that `config` switches on, each [B] and already weighted: `lesion_error`, `lesion_ssim`, `lesion_perceptual`.

    `estimate` and `target` are clean images [B, 1, H, W] in [-1, 1], `mask` [B, 1, H, W] in [0, 1], `sigma` [B]. `error_weight` [B]
    is what the plain loss multiplies the squared error of the clean image by at this noise level: 1 / sigma^2 makes it the error of
    eps. The squared error needs no other weight: the mean that minimises it is what a denoiser shall return at every noise level.
    """
    terms: dict[str, Tensor] = {}
    if config.boundary_px:
        mask = soft_mask(mask, width_px=config.boundary_px)
    if config.mask_weight:
        terms["lesion_error"] = config.mask_weight * error_weight * masked_error(estimate, target, mask)
    if not (config.ssim_weight or config.perceptual_weight):
        return terms
    own = lesion_sigma(target, mask).clamp(config.sigma_least, config.sigma_most) if config.sigma_lost is None else config.sigma_lost
    counts = noise_level_weight(sigma, sigma_lesion=own)
    if config.ssim_weight:
        terms["lesion_ssim"] = config.ssim_weight * counts * lesion_ssim_loss(estimate, target, mask)
    if config.perceptual_weight:
        if features is None:
            raise UsageError("the perceptual lesion term needs features; name a network or set its weight to 0")
        terms["lesion_perceptual"] = config.perceptual_weight * counts * lesion_perceptual(estimate, target, mask, features=features)
    return terms


def masked_error(estimate: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error averaged inside the mask, sum(M e^2) / sum(M): [B, C, H, W], mask [B, 1, H, W] in [0, 1] -> [B]."""
    return _mean_inside((estimate - target.detach()).square().mean(1, keepdim=True), mask)


def lesion_ssim_loss(estimate: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 - SSIM averaged inside the mask (Eq. 13, Wang et al. 2004), [B] in [0, 2]; images [B, 1, H, W] in [-1, 1], at least 8 x 8.

    Gaussian window of 11 px, sigma 1.5 px, on intensities in [0, 1]; images are mirrored at their borders so that every pixel has a window.
    """
    with torch.autocast(estimate.device.type, enabled=False):  # differences of squares need more than bfloat16
        first, second = (images.to(torch.promote_types(images.dtype, torch.float32)) / 2
                         for images in (_only_inside(estimate, mask), target.detach()))  # around 0, where squares are most exact
        maps = torch.cat([first, second, first * first, second * second, first * second])
        mean_1, mean_2, square_1, square_2, product = _window_means(maps).chunk(5)
        bright_1, bright_2 = mean_1 + 0.5, mean_2 + 0.5
        luminance = (2 * bright_1 * bright_2 + LUMINANCE) / (bright_1**2 + bright_2**2 + LUMINANCE)
        structure = (2 * (product - mean_1 * mean_2) + STRUCTURE) / (square_1 - mean_1**2 + square_2 - mean_2**2 + STRUCTURE)
        return _mean_inside(1 - luminance * structure, mask)


def lesion_perceptual(estimate: Tensor, target: Tensor, mask: Tensor, *, features: Features) -> Tensor:
    """Perceptual distance of the crops around the lesions, [B]; 0 for images without a lesion.

    The crop is a square around all of the mask with a quarter of its side as a margin, at 64 px whatever its size.
    """
    found = (mask > 0).flatten(1).any(1).nonzero()[:, 0]
    distances = estimate.new_zeros(len(estimate))
    if not len(found):
        return distances
    chosen = mask[found]
    cropped = [lesion_crop(images[found], chosen) for images in (_only_inside(estimate, mask), target.detach())]
    distance = perceptual_distance(cropped[0], cropped[1], features=features)
    return distances.to(distance.dtype).index_copy(0, found, distance)


def lesion_crop(images: Tensor, mask: Tensor) -> Tensor:
    """The square around each mask's bounding box, sampled at `CROP_PX`: images [B, C, H, W] -> [B, C, 64, 64], differentiable.

    It lies inside the image and is at least 16 px wide, so that a nodule of 3 px comes with what is around it.
    """
    height, width = mask.shape[-2:]
    top, bottom = _extent((mask > 0).any(3)[:, 0])
    left, right = _extent((mask > 0).any(2)[:, 0])
    side = torch.maximum(bottom - top, right - left) * (1 + 2 * CROP_MARGIN)
    half = side.clamp(min(LEAST_CROP_PX, height, width), min(height, width)) / 2  # [B]
    steps = (torch.arange(2 * CROP_PX, device=mask.device) + 0.5) / CROP_PX - 1  # twice as fine, then averaged: less aliasing
    axes = []
    for low, high, length in ((left, right, width), (top, bottom, height)):
        centre = torch.minimum(torch.maximum((low + high) / 2, half), length - half)
        axes.append((centre[:, None] + half[:, None] * steps) * 2 / length - 1)  # [B, 128] in [-1, 1] over the image
    across, down = (places.unsqueeze(axis).expand(-1, len(steps), len(steps)) for places, axis in zip(axes, (1, 2), strict=True))
    grid = torch.stack([across, down], dim=-1).to(images)  # [B, 128, 128, 2]
    return F.avg_pool2d(F.grid_sample(images, grid, padding_mode="border", align_corners=False), 2)


def soft_mask(mask: Tensor, *, width_px: int) -> Tensor:
    """The mask with a rim that falls linearly with distance to 0 just beyond `width_px` pixels, [B, 1, H, W] in [0, 1].

    >>> soft_mask(torch.tensor([[[[0.0, 0.0, 0.0, 0.0, 1.0]]]]), width_px=3)[0, 0, 0].tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    height, width = mask.shape[-2:]
    padded, grown = F.pad(mask, [width_px] * 4), mask
    for down in range(2 * width_px + 1):
        for across in range(2 * width_px + 1):
            share = 1 - math.hypot(down - width_px, across - width_px) / (width_px + 1)
            if share > 0:
                grown = torch.maximum(grown, share * padded[..., down:down + height, across:across + width])
    return grown


def noise_level_weight(sigma: Tensor, *, sigma_lesion: Tensor | float) -> Tensor:
    """Weight of a lesion at noise level `sigma` [B]: 1 up to `sigma_lesion`, where its SNR is 1, then falling to 0, [B].

    Of a lesion of known shape in white noise, the best linear estimate keeps the part SNR^2 / (1 + SNR^2) of its contrast, with
    SNR = sigma_lesion / sigma of the matched filter. The weight is that part in units of the half that is left at SNR 1, at most 1.
    """
    lesion = torch.as_tensor(sigma_lesion, device=sigma.device, dtype=sigma.dtype).square()
    return (2 * lesion / (lesion + sigma.square()).clamp_min(_TINY**2)).clamp(max=1)


def lesion_sigma(images: Tensor, mask: Tensor) -> Tensor:
    """Noise level at which the matched filter's SNR is 1, |contrast| sqrt(area in px), [B]; 0 where there is no lesion.

    The contrast is the median inside the mask less the median of the pixels that are at most a sixteenth of the image outside it. For a
    data set, with one number a lesion, see `evaluation.metrics.lesion_snr`.
    """
    inside = mask > 0
    reach = max(2, min(mask.shape[-2:]) // 16)
    near = F.max_pool2d(inside.to(images), 2 * reach + 1, stride=1, padding=reach) > 0
    medians = [images.detach().masked_fill(~where, math.nan).flatten(1).nanmedian(1).values for where in (inside, near & ~inside)]
    return (medians[0] - medians[1]).abs().nan_to_num(0.0) * inside.flatten(1).sum(1).to(images).sqrt()


def _only_inside(estimate: Tensor, mask: Tensor) -> Tensor:
    """The same values, through which gradient flows in proportion to the mask: none at all where it is 0."""
    fixed = estimate.detach()
    return fixed + mask * (estimate - fixed)


def _mean_inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, 1, H, W] weighted by the mask, [B]; 0 for an empty one."""
    return (mask * values).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(_TINY)


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian means around each pixel of [N, 1, H, W], mirrored at the borders."""
    radius = WINDOW_PX // 2
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    window = torch.softmax(-(offsets**2) / (2 * WINDOW_SIGMA_PX**2), dim=0)
    padded = F.pad(maps, [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, window.reshape(1, 1, -1, 1)), window.reshape(1, 1, 1, -1))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied place and the one after the last, [B, L] of bool -> [B], [B] of float."""
    flags = occupied.to(torch.uint8)
    first, last = flags.argmax(1), occupied.shape[1] - flags.flip(1).argmax(1)
    return first.float(), last.float()
