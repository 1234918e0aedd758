"""Up to which noise level a lesion can be seen, and which noise levels training and sampling should visit so that small ones survive.

A lesion of contrast c over A pixels in white noise of standard deviation sigma has the signal-to-noise ratio |c| sqrt(A) / sigma in the
matched filter, the best linear detector that knows its outline (Turin 1960). So it is lost at sigma = |c| sqrt(A) / threshold. Noise
levels are those of x = x0 + sigma n; scaling x, as DDPM and flow matching do, changes no ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtri
from scipy.stats import trim_mean

from synthorax.data.masks import IN_BOX, is_organ
from synthorax.diffusion.noise import ddpm_sigmas, flow_sigmas, sampling_sigmas
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.report import plots
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet

FloatArray = NDArray[np.float64]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MAX_IMAGES_FOR_RANGE = 300  # for the greatest distance between two images
NUM_LEVELS = 1000
CRUMB = 0.01  # smaller parts of an outline, compared with its largest, come from drawing and from reducing it
MIN_SURROUNDINGS_PX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionNoise:
    """One lesion: one connected part of one mask."""

    image: int
    """row of the image"""
    finding: str
    area_px: float
    contrast: float
    """mean inside less mean around it, images in [-1, 1], each without its darkest and brightest quarter of pixels; around it means in
    the lungs, where the image has a mask of them that reaches beyond the lesion"""
    sigma_lost: float
    """noise level at which its signal-to-noise ratio is the threshold"""
    in_box: bool
    """whether a box is all that is known of its outline; then area and contrast are those of the box"""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeClass:
    """Lesions of similar size."""

    from_px: float
    to_px: float
    num: int
    contrast: tuple[float, ...]
    """`QUANTILES` of |contrast|"""
    sigma_lost: tuple[float, ...]
    """`QUANTILES` of the noise level at which they are lost"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseSchedule:
    """One way to draw the noise levels of training, seen from the lesion that is to survive."""

    name: str
    share: float
    """part of its noise levels at which that lesion can be seen"""
    shift: float
    """what all its noise levels must be multiplied by so that this part is the one asked for; 1 where it is already"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """Noise levels of which at least the part asked for lies below the one at which the lesion is lost."""

    sigma_mean: float
    """training: mean of ln sigma, not above the usual one"""
    sigma_std: float
    """training: standard deviation of ln sigma"""
    schedule: str
    """sampling: name in `diffusion.noise.SCHEDULES`"""
    sigma_min: float
    sigma_max: float
    """sampling: the greatest distance between two images, below which the start is not yet noise (Technique 1, Song and Ermon 2020)"""
    share_training: float
    share_sampling: float
    holds: bool
    """whether both shares reach the part asked for; sampling may not, since `sigma_max` cannot be lowered at will"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionNoiseReport:
    """Lesion signal-to-noise against noise level, for the lesions of one data set at one working resolution."""

    size_px: int
    threshold: float
    quantile: float
    """part of the lesions that may be lost earlier than `sigma_lost`"""
    part: float
    """part of the noise levels at which the others must be visible"""
    sigma_lost: float
    num_images: int
    num_without_lesions: int
    """images that have no lesion mask; they are skipped"""
    num_filling_the_image: int
    """lesions with nothing around them to compare with; they are skipped"""
    lesions: tuple[LesionNoise, ...]
    classes: tuple[SizeClass, ...]
    noise_schedules: tuple[NoiseSchedule, ...]
    advice: Advice

    def __str__(self) -> str:
        return lesion_noise_table(self)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready dict."""
        return asdict(self)


def report_lesion_noise(images: ImageSet, *, threshold: float = 1.0, quantile: float = 0.25, part: float = 0.5,
                        edges_px: Sequence[float] = (),
                        sigma_mean: float = -0.8, sigma_std: float = 1.4, sigma_min: float = 0.005,
                        progress: Progress = quiet) -> LesionNoiseReport:
    """Measure every lesion of `images`, which come with masks, and recommend noise levels.

    The lesion to care for is the one at `quantile` of all when sorted by the noise level at which they are lost; it shall have a
    signal-to-noise ratio of at least `threshold` at `part` of the noise levels. Size classes are thirds, or lie between `edges_px`.
    `sigma_mean`, `sigma_std` and `sigma_min` are those in use. Raises `InputError` where no image has a lesion mask.

    >>> print(lesion_noise_table(report_lesion_noise(prepared.images("train", size=64, masks=True))))  # doctest: +SKIP
    """
    for name, value in (("quantile", quantile), ("part", part)):
        if not 0 < value < 1:
            raise UsageError(f"{name} is {value}; it is a part between 0 and 1")
    if not 0 < threshold < math.inf or not 0 < sigma_std < math.inf:
        raise UsageError(f"threshold {threshold} and sigma_std {sigma_std} must be above 0 and finite")
    lesions, filling = measure_lesions(images, threshold=threshold, progress=progress)
    lost = float(np.quantile([lesion.sigma_lost for lesion in lesions], quantile))
    if lost <= sigma_min:
        raise InputError(f"lesions that are lost at noise level {lost:.4f} do not differ from what is around them",
                         remedy="look whether the masks belong to these images, or choose a higher quantile")
    with_lesion = len({lesion.image for lesion in lesions})
    return LesionNoiseReport(
        size_px=images.pixels.shape[1], threshold=threshold, quantile=quantile, part=part, sigma_lost=lost, num_images=len(images),
        num_without_lesions=len(images) - with_lesion, num_filling_the_image=filling, lesions=tuple(lesions),
        classes=tuple(_size_classes(lesions, edges_px)),
        noise_schedules=tuple(NoiseSchedule(name=name, share=share_below(levels, lost), shift=_shift(levels, lost, part))
                         for name, levels in training_levels(mean=sigma_mean, std=sigma_std).items()),
        advice=_advise(lost, part, mean=sigma_mean, std=sigma_std, sigma_min=sigma_min, sigma_max=_greatest_distance(images)))


def measure_lesions(images: ImageSet, *, threshold: float = 1.0, progress: Progress = quiet) -> tuple[list[LesionNoise], int]:
    """Every lesion that has something around it, and how many have not. Raises `InputError` where there is no lesion at all."""
    found, filling = [], 0
    for row, finding, values, others, lung in _lesion_masks(images):
        progress(row / len(images), f"lesions of image {row + 1} of {len(images)}")
        image = images.pixels[row] / np.iinfo(images.pixels.dtype).max * 2.0 - 1.0
        parts, num = ndimage.label(values, structure=np.ones((3, 3)))
        coverage = np.where(values == IN_BOX, 1.0, values / 255.0)
        areas = ndimage.sum_labels(coverage, parts, range(1, num + 1))
        for label, area in enumerate(areas, 1):
            if area < max(CRUMB * max(areas), min(1.0, max(areas))):
                continue
            contrast = _contrast(image, np.where(parts == label, values, 0), free=~others, lung=lung)
            if math.isnan(contrast):
                filling += 1
                continue
            found.append(LesionNoise(image=row, finding=finding, area_px=float(area), contrast=contrast,
                                     sigma_lost=abs(contrast) * math.sqrt(area) / threshold,
                                     in_box=bool((values[parts == label] == IN_BOX).all())))
    progress(1.0, f"{len(found)} lesions")
    if not found:
        raise InputError("no image has a lesion mask with something around it",
                         remedy="name masks in the column lesion_mask, or boxes, and load the images with masks=True")
    return found, filling


def training_levels(*, mean: float, std: float) -> dict[str, FloatArray]:
    """A thousand noise levels of each way to draw them in training, rising, at equal distances in t: [1000] each."""
    middles = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
    flow = flow_sigmas(NUM_LEVELS, sigma_min=middles[0] / (1 - middles[0]), sigma_max=middles[-1] / (1 - middles[-1]))
    return {"linear": ddpm_sigmas("linear").numpy(), "cosine": ddpm_sigmas("cosine").numpy(), "flow-uniform": flow[:-1].flip(0).numpy(),
            "lognormal": np.exp(mean + std * ndtri(middles))}


def share_below(levels: FloatArray, sigma: float) -> float:
    """Part of the noise levels that are at most `sigma`."""
    return float((levels <= sigma).mean())


def lesion_noise_table(report: LesionNoiseReport) -> str:
    """The report as Markdown tables."""
    sizes = ["| area, px | lesions | contrast, median | lost at sigma: 10 % | 25 % | median | 75 % | 90 % |",
             "|---|---|---|---|---|---|---|---|"]
    sizes += [f"| {row.from_px:.0f} to {row.to_px:.0f} | {row.num} | {row.contrast[2]:.3f} | "
              + " | ".join(f"{value:.2f}" for value in row.sigma_lost) + " |" for row in report.classes]
    ways = [f"| noise levels | SNR at least {report.threshold:g} | shift for {report.part:.0%} |", "|---|---|---|"]
    ways += [f"| {row.name} | {row.share:.0%} | {row.shift:.2f} |" for row in report.noise_schedules]
    advice = report.advice
    short = "" if advice.holds else ", not enough"
    ways += [f"| **training**: lognormal, mean {advice.sigma_mean:.2f}, std {advice.sigma_std:.2f} | {advice.share_training:.0%} | |",
             f"| **sampling**: {advice.schedule}, sigma {advice.sigma_min:g} to {advice.sigma_max:.0f} | "
             f"{advice.share_sampling:.0%}{short} | |"]
    return "\n".join([*sizes, "", *ways])


def lesion_noise_plot(report: LesionNoiseReport, *, sigma_mean: float = -0.8, sigma_std: float = 1.4) -> str:
    """The lesion's signal-to-noise ratio along t for each way to draw noise levels, as SVG text."""
    looks: Mapping[str, tuple[str, str]] = {"linear": (plots.BLUE, "-"), "cosine": (plots.VERMILION, "--"),
                                            "flow-uniform": (plots.PURPLE, "-."), "lognormal": (plots.GREEN, ":")}
    with plots.page_style():
        figure, axes = plots.new_figure(width_in=4.6, height_in=4.0)
        time = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
        for name, levels in training_levels(mean=sigma_mean, std=sigma_std).items():
            colour, dashes = looks[name]
            axes.plot(time, report.sigma_lost * report.threshold / levels, color=colour, linestyle=dashes, linewidth=1.8,
                      label=f"{name}, visible at {share_below(levels, report.sigma_lost):.0%}")
        axes.axhline(report.threshold, color=plots.GREY, linewidth=0.9)
        axes.set(xlim=(0, 1), yscale="log", ylim=(1e-2, 1e3), xlabel="t, parts of the noise levels",
                 ylabel="signal-to-noise ratio of the lesion")
        powers = [0.01, 0.1, 1, 10, 100, 1000]
        axes.set_yticks(powers, [f"{power:g}" for power in powers])
        axes.minorticks_off()
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.16), borderaxespad=0, handlelength=2.6)
        return plots.svg_text(figure, label="Signal-to-noise ratio of a lesion along the noise levels")


_Marked = tuple[int, str, NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]


def _lesion_masks(images: ImageSet) -> Iterator[_Marked]:
    """Row, finding, mask, where any finding's mask is, and where the lungs are."""
    masks = images.masks
    if masks is None or all(is_organ(name) for name in masks.names):
        raise InputError("the images come without lesion masks",
                         remedy="name them in the column lesion_mask, and load the images with masks=True")
    for row in range(len(images)):
        own = {name: masks.pixels[number] for name, number in zip(masks.names, masks.index[row], strict=True) if number >= 0}
        nowhere = np.zeros(images.pixels.shape[1:], dtype=np.uint8)
        lesions = [mask for name, mask in own.items() if not is_organ(name)]
        everywhere = np.any([nowhere, *lesions], axis=0)
        for name, mask in own.items():
            if not is_organ(name):
                yield row, name, mask, everywhere, own.get("lung", nowhere) >= IN_BOX


def _contrast(image: FloatArray, values: NDArray[np.uint8], *, free: NDArray[np.bool_], lung: NDArray[np.bool_]) -> float:
    """Interquartile mean inside less that of a ring of about the same area, 1 px away and free of lesions; NaN without a ring."""
    inside = values >= min(IN_BOX, int(values.max()))
    distance = ndimage.distance_transform_edt(values == 0)
    width = max(2.0, (math.sqrt(2) - 1) * math.sqrt(inside.sum() / math.pi))  # of a ring as large as a disc of this area
    around = (distance > 1) & (distance <= 1 + width) & free
    if (around & lung).sum() >= MIN_SURROUNDINGS_PX:  # else the brighter chest wall makes an opacity look dark
        around &= lung
    if not around.any():
        return math.nan
    return float(trim_mean(image[inside], 0.25) - trim_mean(image[around], 0.25))


def _size_classes(lesions: Sequence[LesionNoise], edges_px: Sequence[float]) -> Iterator[SizeClass]:
    areas = np.array([lesion.area_px for lesion in lesions])
    edges = np.array([areas.min(), *edges_px, areas.max()]) if len(edges_px) else np.quantile(areas, (0, 1 / 3, 2 / 3, 1))
    belongs = np.searchsorted(edges[1:-1], areas, side="left")
    for number in range(len(edges) - 1):
        chosen = [lesion for lesion, place in zip(lesions, belongs, strict=True) if place == number]
        if chosen:
            contrast, lost = ([float(value) for value in np.quantile(numbers, QUANTILES)] for numbers in (
                [abs(lesion.contrast) for lesion in chosen], [lesion.sigma_lost for lesion in chosen]))
            yield SizeClass(from_px=float(edges[number]), to_px=float(edges[number + 1]), num=len(chosen), contrast=tuple(contrast),
                            sigma_lost=tuple(lost))


def _shift(levels: FloatArray, sigma: float, part: float) -> float:
    reached = np.sort(levels)[math.ceil(part * len(levels)) - 1]
    return min(1.0, sigma / float(reached) * (1 - 1e-12))


def _advise(lost: float, part: float, *, mean: float, std: float, sigma_min: float, sigma_max: float) -> Advice:
    advised = min(mean, math.log(lost) - std * float(ndtri(part)) - 1e-9)
    training = share_below(training_levels(mean=advised, std=std)["lognormal"], lost)
    sigma_max = max(sigma_max, 2 * sigma_min)
    shares = {name: share_below(sampling_sigmas(name, NUM_LEVELS, sigma_min=sigma_min, sigma_max=sigma_max)[:-1].numpy(), lost)
              for name in ("karras", "exponential")}
    schedule = "karras" if shares["karras"] >= part else "exponential"
    return Advice(sigma_mean=advised, sigma_std=std, schedule=schedule, sigma_min=sigma_min, sigma_max=sigma_max, share_training=training,
                  share_sampling=shares[schedule], holds=min(training, shares[schedule]) >= part)


def _greatest_distance(images: ImageSet) -> float:
    """Greatest Euclidean distance between two of up to `MAX_IMAGES_FOR_RANGE` images in [-1, 1]."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES_FOR_RANGE)).round().astype(int))
    flat = images.pixels[rows].reshape(len(rows), -1) / np.iinfo(images.pixels.dtype).max * 2.0
    flat = flat - flat.mean(0)
    squares = (flat**2).sum(1)
    between = squares[:, None] + squares - 2 * flat @ flat.T
    return float(np.sqrt(max(0.0, between.max())))
