"""Diagnostics of latents fire on planted collapses and stay silent on health; sheets show latents; imputation keeps what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthorax.editing.inpainting import impute
from synthorax.errors import UsageError
from synthorax.evaluation.metrics.latents import (
    active_numbers,
    collapse_alarms,
    interpolation_sheet,
    prior_distance,
    read_latents,
    traversal_sheet,
)
from synthorax.protocols import Condition
from synthorax.rng import Draws

N, Z = 300, 8
Array = NDArray[np.float64]


def normal(seed: int, *, scale: float = 1.0, shift: float = 0.0, num: int = N) -> Array:
    return np.random.default_rng(seed).normal(shift, scale, (num, Z))


def test_a_healthy_latent_raises_no_alarm() -> None:
    """Posteriors of standard deviation 0.3 around means of standard deviation sqrt(1 - 0.09): together they are the prior."""
    centres = normal(0, scale=math.sqrt(0.91))
    report = read_latents(centres, centres + normal(1, scale=0.3), normal(2), nats=np.full((N, Z), 1.2), decoded=centres, images=normal(3))
    assert report.alarms == () and report.active == tuple(range(Z)) and report.images == N
    assert report.nats == pytest.approx([1.2] * Z)
    assert report.against_prior.low <= 0 <= report.against_prior.high
    assert report.against_prior.floor is not None


def test_planted_collapses_fire_one_by_one() -> None:
    still = normal(0, scale=1e-3)
    healthy = {"nats": np.full((N, Z), 1.2), "decoded": normal(1), "images": normal(2)}
    everything = np.ones(Z, bool)
    assert collapse_alarms(everything, **healthy) == ()
    assert "0 of 8" in collapse_alarms(active_numbers(still), **healthy)[0]
    assert "nats" in collapse_alarms(everything, **(healthy | {"nats": np.full((N, Z), 0.01)}))[0]
    assert "decoded images" in collapse_alarms(everything, **(healthy | {"decoded": normal(1, scale=0.01)}))[0]
    all_three = read_latents(still, normal(4), normal(5), nats=np.full((N, Z), 0.01), decoded=normal(1, scale=0.01), images=normal(2))
    assert len(all_three.alarms) == 3 and all_three.active == ()


def test_active_numbers_are_those_that_move() -> None:
    centres = normal(0)
    centres[:, 3] *= 0.05  # a variance of 0.0025
    assert np.flatnonzero(~active_numbers(centres)).tolist() == [3]
    assert active_numbers(centres, normal(1, scale=0.1)).all(), "beside a narrow prior it is not still"


def test_distance_from_the_prior_grows_with_what_is_wrong() -> None:
    right, shifted, narrow = (prior_distance(latents, normal(9)) for latents in (normal(0), normal(0, shift=0.5), normal(0, scale=0.5)))
    assert right.low <= 0 <= right.high
    assert shifted.low > max(right.value, 0) and narrow.low > max(right.value, 0)
    assert prior_distance(normal(0, shift=1.0), normal(9)).value > shifted.value
    assert (right.metric, right.n_real, right.n_synthetic, right.better) == ("latent_mmd", N, N, "lower")


def test_the_interval_of_the_distance_covers_it() -> None:
    """Of 40 pairs of samples, the interval of most must hold the distance that large samples find."""
    truth = prior_distance(normal(100, shift=0.4, num=3000), normal(101, num=3000)).value
    scores = [prior_distance(normal(seed, shift=0.4, num=100), normal(1000 + seed, num=100)) for seed in range(40)]
    assert sum(score.low <= truth <= score.high for score in scores) >= 34


def painted(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images of one grey, that of the latent's first number."""
    return np.broadcast_to(np.clip(latents[:, :1, None, None], -1, 1), (len(latents), 1, 16, 16)).astype(np.float32)


def test_traversals_move_one_number_and_interpolations_go_straight() -> None:
    sheet = np.asarray(traversal_sheet(painted, np.zeros(Z), numbers=[0, 1], values=[-1.0, 0.0, 1.0], tile_px=32))
    captionless = np.asarray(interpolation_sheet(painted, -np.ones((1, Z)), np.ones((1, Z)), steps=3, tile_px=32))
    tiles = captionless[captionless.shape[0] - 20, [19, 54, 89]]
    assert tiles.tolist() == [0, 128, 255]
    assert sheet.min() == 0 and sheet.max() == 255
    with pytest.raises(UsageError, match="numbers 0 to 7"):
        traversal_sheet(painted, np.zeros(Z), numbers=[8], values=[0.0])
    with pytest.raises(UsageError, match="at least 2 steps"):
        interpolation_sheet(painted, np.zeros((1, Z)), np.zeros((1, Z)), steps=1)


class Plane:
    """An autoencoder that knows images of one grey only: it rebuilds an image as its mean, with a little noise."""

    def rebuild(self, images: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        noise = 0.01 * draws.normal(1)[:, :, None, None]
        return (images.flatten(1).mean(1)[:, None, None, None] + noise).expand_as(images)


def test_imputation_keeps_known_pixels_and_ends_where_the_model_would() -> None:
    images = torch.full((2, 1, 8, 8), 0.4)
    images[1] = -0.6
    known = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    known[:, :, :3, :3] = False
    damaged = images.masked_fill(~known, math.nan)
    made = impute(Plane(), damaged, known, [1, 2])
    assert torch.equal(made[known], images[known]), "to the bit"
    torch.testing.assert_close(made, images, atol=0.05, rtol=0)
    alone = impute(Plane(), damaged[1:], known[1:], [2])
    torch.testing.assert_close(alone[0], made[1])
    assert not torch.equal(impute(Plane(), damaged, known, [3, 4]), made)
    assert torch.equal(impute(Plane(), images, torch.ones_like(known), [1, 2]), images)


def test_imputation_refuses_what_it_cannot_know() -> None:
    images, known = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for arguments, message in (((images, known.float(), [1]), "a bool for every pixel"), ((images, known, [1, 2]), "as many seeds"),
                               ((images.fill_(math.nan), known, [1]), "not known")):
        with pytest.raises(UsageError, match=message):
            impute(Plane(), *arguments)  # type: ignore[arg-type]
