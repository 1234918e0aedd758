"""What the latents of an autoencoder tell: which of their numbers are used, whether they lie where the prior does, and what they mean.

Everything works on arrays: latents as the decoder is conditioned on them, divergences as the family gives them, and a function that
decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import pdist

from synthorax.data.pixels import from_unit
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.kernels import gaussian, mmd_and_influences
from synthorax.evaluation.report.contact_sheets import contact_sheet
from synthorax.evaluation.statistics.intervals import checked_features, normal_interval, standard_error
from synthorax.types import Score

Latents = NDArray[np.floating]
Decode = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""latents [N, Z] to images [N, 1, S, S] in [-1, 1]"""

ACTIVE_VARIANCE = 0.01
"""a number of the latent is active if its mean varies between images by more than this part of the prior's variance"""
MIN_ACTIVE_FRACTION = 0.02
"""of the numbers of a latent; fewer active ones, or fewer than two, are a collapse"""
MIN_NATS_PER_LATENT = 0.5
"""mean divergence of a whole latent below which it tells next to nothing of its image"""
MIN_DECODED_VARIATION = 0.01
"""part of the variance of real images that the decoded ones must at least have"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentReport:
    """What the latents of some images say of the autoencoder."""

    images: int
    active: tuple[int, ...]
    """numbers of the latent that are used"""
    latent_size: int
    nats: tuple[float, ...]
    """mean divergence of each number of the latent, or of the whole latent if they hang together; empty where the family has none"""
    against_prior: Score
    """distance of latents of images from latents of the prior"""
    alarms: tuple[str, ...]
    """signs of posterior collapse, in words; empty is healthy"""


def read_latents(centres: Latents, drawn: Latents, prior: Latents, *, nats: Latents | None = None, decoded: Latents | None = None,
               images: Latents | None = None) -> LatentReport:
    """All diagnostics of the latents of N images.

    `centres` [N, Z] are the middles of their posteriors, `drawn` [N, Z] latents drawn from them, `prior` [M, Z] latents of the prior,
    `nats` [N, G] the divergences; `decoded` [N, ...] are images of `centres` and `images` [N, ...] the real ones.
    """
    active = active_numbers(centres, prior)
    alarms = collapse_alarms(active, nats=nats, decoded=decoded, images=images)
    each = () if nats is None else tuple(float(value) for value in np.asarray(nats, np.float64).mean(axis=0))
    return LatentReport(images=len(centres), active=tuple(np.flatnonzero(active).tolist()), latent_size=centres.shape[1], nats=each,
                      against_prior=prior_distance(drawn, prior), alarms=alarms)


def active_numbers(centres: Latents, prior: Latents | None = None) -> NDArray[np.bool_]:
    """Which numbers of the latent vary with the image, [N, Z] -> [Z] (Sec. 5.1, Burda et al. 2016: variance of the posterior mean above
    0.01).

    The threshold is a part of the variance of `prior` [M, Z], 1 without: that of a Dirichlet is far smaller than a normal one's.
    """
    centres, _ = checked_features(centres, centres)
    spread = np.ones(centres.shape[1]) if prior is None else np.asarray(prior, np.float64).var(axis=0)
    return np.asarray(centres.var(axis=0) > ACTIVE_VARIANCE * spread)


def collapse_alarms(active: NDArray[np.bool_], *, nats: Latents | None = None, decoded: Latents | None = None,
                    images: Latents | None = None) -> tuple[str, ...]:
    """Signs that the latent is not used, in words; none is healthy.

    Three, any of which may be seen without the others: the posterior's middle does not move, the posterior is the prior, and the
    decoder makes the same of all latents.
    """
    found = []
    if active.sum() < max(2, MIN_ACTIVE_FRACTION * len(active)):
        found.append(f"{int(active.sum())} of {len(active)} numbers of the latent vary with the image")
    if nats is not None and (mean := float(np.asarray(nats, np.float64).sum(axis=1).mean())) < MIN_NATS_PER_LATENT:
        found.append(f"a latent differs from the prior by {mean:.2f} nats, less than {MIN_NATS_PER_LATENT}")
    if decoded is not None and images is not None:
        part = float(_variation(decoded) / max(_variation(images), 1e-12))
        if part < MIN_DECODED_VARIATION:
            found.append(f"decoded images vary {part:.1%} as much as real ones")
    return tuple(found)


def prior_distance(latents: Latents, prior: Latents) -> Score:
    """Squared maximum mean discrepancy between latents of images [N, Z], each drawn from its posterior, and of the prior [M, Z].

    Unbiased (Eq. 3, Gretton et al. 2012), with a Gaussian kernel as wide as the median distance within the prior, and an interval by the
    infinitesimal jackknife. Around 0 the aggregated posterior is the prior, and what is sampled is what was learned. The floor is the
    distance between the two halves of the prior's latents.
    """
    first, second = checked_features(latents, prior, at_least=4)
    width = float(np.median(pdist(second, "sqeuclidean")))
    if width <= 0:
        raise InputError("all latents of the prior are the same", remedy="draw them with different seeds")
    kernel = gaussian(np.sqrt(width / 2))  # exp(-|x - y|^2 / width)
    value, by_latents, by_prior = mmd_and_influences(first, second, kernel)
    error = float(np.hypot(standard_error(by_latents), standard_error(by_prior)))
    low, high = normal_interval(value, error)
    half = len(second) // 2
    floor = mmd_and_influences(second[:half], second[half:], kernel)[0] if half >= 2 else None
    return Score(metric="latent_mmd", value=value, low=low, high=high, n_real=len(first), n_synthetic=len(second),
                 floor=floor)


def traversal_sheet(decode: Decode, latent: Latents, *, numbers: Sequence[int], values: Sequence[float], tile_px: int = 96) -> Image.Image:
    """What single numbers of a latent [Z] do: a row for each of `numbers`, a column for each of `values` that it takes."""
    if any(not 0 <= number < len(latent) for number in numbers):
        raise UsageError(f"a latent of {len(latent)} numbers has numbers 0 to {len(latent) - 1}, not all of {list(numbers)}")
    latents = np.repeat(np.asarray(latent, np.float32)[None], len(numbers) * len(values), axis=0)
    for row, number in enumerate(numbers):
        latents[row * len(values):(row + 1) * len(values), number] = values
    captions = [f"{number}: {value:+.1f}" for number in numbers for value in values]
    return _sheet(decode(latents), columns=len(values), captions=captions, title="one number of the latent at a time", tile_px=tile_px)


def interpolation_sheet(decode: Decode, first: Latents, last: Latents, *, steps: int = 7, tile_px: int = 96) -> Image.Image:
    """Images on the straight way from one latent to another, a row for each pair of [N, Z] and [N, Z]."""
    if first.shape != last.shape or steps < 2:
        raise UsageError(f"an interpolation needs as many first as last latents and at least 2 steps, not {first.shape}, {last.shape} "
                         f"and {steps}")
    parts = np.linspace(0.0, 1.0, steps, dtype=np.float32)[None, :, None]
    latents = (1 - parts) * first.astype(np.float32)[:, None] + parts * last.astype(np.float32)[:, None]  # [N, steps, Z]
    return _sheet(decode(latents.reshape(-1, first.shape[1])), columns=steps, captions=None, title="from the first latent to the last",
                  tile_px=tile_px)


def _sheet(images: NDArray[np.float32], *, columns: int, captions: Sequence[str] | None, title: str, tile_px: int) -> Image.Image:
    return contact_sheet(from_unit(images[:, 0]), columns=columns, captions=captions, title=title, tile_px=tile_px)


def _variation(images: Latents) -> float:
    """Variance of a pixel between images, averaged over pixels, [N, ...]."""
    return float(np.asarray(images, np.float64).reshape(len(images), -1).var(axis=0).mean())
