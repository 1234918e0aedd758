"""Multi-scale SSIM: of pairs of images, and how alike the images of a set are, which shows mode collapse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthorax.errors import InputError
from synthorax.evaluation.metrics.ssim import Pixels, check_pair, luminance_and_structure, scale_weights, to_intensity
from synthorax.evaluation.statistics.intervals import normal_interval, standard_error
from synthorax.types import Score

MAX_PAIRED_IMAGES = 250
"""of images up to 128 px; of larger ones half, since their cost grows with their area"""
PAIRS_PER_IMAGE = 4


def ms_ssim(first: Tensor, second: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Multi-scale SSIM of each pair, [B] in [0, 1] (Wang, Simoncelli and Bovik 2003, Eq. 7).

    Each scale halves the image by 2 x 2 means and must still hold the 11 px window, so the five scales need 176 px. A
    smaller image has fewer (64 px: 3) and the weights of those are scaled to their full sum. Values of images that differ
    in the number of scales do not compare. Negative structure at a scale counts as 0.
    """
    first, second = check_pair(first, second)
    weights = scale_weights(min(first.shape[-2:]))
    product = torch.ones(len(first), dtype=torch.float64, device=first.device)
    for scale, weight in enumerate(weights):
        if scale > 0:
            first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
        whole, structure = luminance_and_structure(first, second, data_range)
        part = whole if scale == len(weights) - 1 else structure
        product = product * part.clamp_min(0) ** weight
    return product


def ms_ssim_scores(real: Pixels, synthetic: Pixels, *, floor_sets: tuple[Pixels, Pixels] | None, seed: int,
                   group: str = "all") -> tuple[Score, ...]:
    """MS-SSIM of random pairs of images [N, S, S]: within synthetic, within real, across, and the gap of the first two.

    Odena et al. 2017 use the first to see collapse. Its aim is the value of real images, its floor: above it images are
    too alike, below it they may be noise; so the gap is what to make small.
    """
    rng = np.random.default_rng(seed)
    within_synthetic, error_synthetic = _pair_similarity(synthetic, synthetic, rng)
    within_real, error_real = _pair_similarity(real, real, rng)
    across, error_across = _pair_similarity(real, synthetic, rng)
    gap, error_gap = abs(within_synthetic - within_real), float(np.hypot(error_synthetic, error_real))
    floor_gap = floor_across = None
    note = "no floor: no second set of real images"
    if floor_sets is not None:
        first, second = floor_sets
        floor_gap = abs(_pair_similarity(first, first, rng)[0] - _pair_similarity(second, second, rng)[0])
        floor_across = _pair_similarity(first, second, rng)[0]
        note = ""

    def score(metric: str, value: float, error: float, floor: float | None, note: str, n_synthetic: int = len(synthetic)) -> Score:
        low, high = normal_interval(value, error, lowest=0.0, highest=1.0)
        return Score(metric=metric, value=value, low=low, high=high, n_real=len(real),
                     n_synthetic=n_synthetic, group=group, floor=floor, note=note)

    return (score("ms_ssim_gap", gap, error_gap, floor_gap, note),
            score("ms_ssim_within_synthetic", within_synthetic, error_synthetic, within_real,
                  "aim for the floor: above it, images are too alike; below it, they may be noise"),
            score("ms_ssim_within_real", within_real, error_real, None, "reference", 0),
            score("ms_ssim_across", across, error_across, floor_across, note))


def _pair_similarity(first: Pixels, second: Pixels, rng: np.random.Generator) -> tuple[float, float]:
    """Mean MS-SSIM and its standard error over random pairs; within one set (`first is second`) no image meets itself.

    Images are shuffled and image i meets the next few, so every image is in as many pairs as any other and the pairs that
    share an image are known: the influence of image i is what its own pairs say.
    """
    if min(len(first), len(second)) < 3:
        raise InputError("MS-SSIM of pairs needs at least 3 images a set")
    within = first is second
    most = MAX_PAIRED_IMAGES if first.shape[-1] <= 128 else MAX_PAIRED_IMAGES // 2
    a = to_intensity(first[rng.permutation(len(first))[:most]])
    b = a if within else to_intensity(second[rng.permutation(len(second))[:most]])
    num = min(len(a), len(b))
    a, b = a[:num], b[:num]
    shifts = range(1, 1 + min(PAIRS_PER_IMAGE, (num - 1) // 2))
    pairs = np.stack([ms_ssim(a, b.roll(-shift, dims=0)).numpy() for shift in shifts])  # [shifts, num]
    as_first = pairs.mean(axis=0)
    as_second = np.mean([np.roll(row, shift) for row, shift in zip(pairs, shifts, strict=True)], axis=0)
    if within:
        return float(pairs.mean()), standard_error(as_first + as_second)
    return float(pairs.mean()), float(np.hypot(standard_error(as_first), standard_error(as_second)))
