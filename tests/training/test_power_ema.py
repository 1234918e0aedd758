"""Averages whose length is chosen after training: profiles, least squares and snapshots against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from synthorax.errors import InputError, UsageError
from synthorax.nets.lora import LowRank, add_low_rank
from synthorax.training.power_ema import (
    TRACKED,
    PowerAverages,
    Profile,
    average_of,
    combination,
    overlap,
    power_of,
    profiles_in,
)
from trainings import digests, smallest, train_here

EVERY = 100  # images between snapshots below


class Number(nn.Module):
    """A model of one weight, and one buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("counted", torch.tensor(0))


def tracked(trajectory: list[float], folder: Path, *, most: int = 8) -> list[dict[str, float]]:
    """Run both averages along a trajectory, an image a step, with a snapshot each `EVERY` images; the averages at the snapshots."""
    model = Number(trajectory[0])
    averages, taken = PowerAverages(model), []
    for images, value in enumerate(trajectory, start=1):
        nn.init.constant_(model.weight, value)
        model.counted.fill_(images)
        averages.update(model, images_seen=images, images_in_step=1)
        if images % EVERY == 0:
            averages.save(folder, images=images, step=images, every=EVERY, most=most)
            taken.append({name: average.weight.item() for name, average in averages.models.items()})
    return taken


def exact(trajectory: list[float], *, length: float, images: int) -> float:
    """The integral of the profile times a trajectory that is constant during each step."""
    power = power_of(length) + 1
    return sum(value * ((step + 1) ** power - step**power) for step, value in enumerate(trajectory[:images])) / images**power


def wave(steps: int) -> list[float]:
    return [math.sin(step / 70) + step / 300 for step in range(steps)]


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_power_gives_the_length(length: float) -> None:
    gamma = power_of(length)
    mean = quad(lambda t: (gamma + 1) * t ** (gamma + 1), 0, 1)[0]
    variance = quad(lambda t: (gamma + 1) * t**gamma * (t - mean) ** 2, 0, 1)[0]
    assert math.isclose(math.sqrt(variance), length, rel_tol=1e-6)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, math.nan])
def test_lengths_that_no_average_has_are_refused(length: float) -> None:
    with pytest.raises(UsageError, match="choose one above 0"):
        power_of(length)


def test_overlap_is_the_integral_of_the_product() -> None:
    one, other = Profile(gamma=6.94, end=0.7), Profile(gamma=16.97, end=1.3)

    def density(profile: Profile, t: float) -> float:
        return (profile.gamma + 1) * t**profile.gamma / profile.end ** (profile.gamma + 1) if t <= profile.end else 0.0

    assert math.isclose(overlap(one, other), quad(lambda t: density(one, t) * density(other, t), 0, 0.7)[0], rel_tol=1e-9)
    assert overlap(one, other) == overlap(other, one)


def test_the_running_averages_are_their_profiles(tmp_path: Path) -> None:
    trajectory = wave(300)
    for number, averages in enumerate(tracked(trajectory, tmp_path), start=1):
        for length in TRACKED:
            expected = exact(trajectory, length=length, images=number * EVERY)
            assert math.isclose(averages[f"average-{length:g}"], expected, rel_tol=1e-10)


def test_a_stored_average_comes_back(tmp_path: Path) -> None:
    taken = tracked(wave(600), tmp_path)
    for number, averages in enumerate(taken, start=1):
        for length in TRACKED:
            back = average_of(tmp_path, length=length, images=number * EVERY)
            assert math.isclose(back["weight"].item(), averages[f"average-{length:g}"], rel_tol=1e-9)
            assert back["counted"].item() == 600, "buffers are those of the newest snapshot"


@pytest.mark.parametrize("length", [0.06, 0.07, 0.13, 0.18])
def test_other_lengths_are_close_to_having_averaged_that_way(length: float, tmp_path: Path) -> None:
    trajectory = wave(800)
    tracked(trajectory, tmp_path)
    expected = exact(trajectory, length=length, images=800)
    others = [exact(trajectory, length=other, images=800) for other in (length / 1.3, length * 1.3)]
    error = abs(average_of(tmp_path, length=length)["weight"].item() - expected)
    assert error < 0.02
    assert error < 0.1 * min(abs(other - expected) for other in others), "and not what a neighbouring length would give"


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.28])
def test_weights_that_never_move_stay_as_they_are(length: float, tmp_path: Path) -> None:
    tracked([0.123456789] * 400, tmp_path)
    assert math.isclose(average_of(tmp_path, length=length)["weight"].item(), 0.123456789, rel_tol=1e-12)


def test_factors_add_up_to_one_and_pick_a_stored_profile() -> None:
    stored = [Profile(gamma=power_of(length), end=end) for end in (1e5, 2e5, 3e5, 7e6) for length in TRACKED]
    assert math.isclose(combination(stored, Profile(gamma=power_of(0.15), end=5e6)).sum(), 1.0, rel_tol=1e-12)
    np.testing.assert_allclose(combination(stored, stored[3]), np.eye(len(stored))[3], atol=1e-9)


def test_the_disk_is_bounded_and_snapshots_stay_evenly_spaced(tmp_path: Path) -> None:
    tracked(wave(2500), tmp_path, most=4)
    ends = sorted({profile.end for profile in profiles_in(tmp_path).values()})
    assert ends == [800, 1600, 2400, 2500], "multiples of the interval that leaves at most four, and the newest"
    assert len(list(tmp_path.iterdir())) == 2 * 2 * len(ends), "two averages a moment, each with its digest"


def test_the_future_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no snapshots"):
        average_of(tmp_path, length=0.1)
    tracked(wave(200), tmp_path)
    with pytest.raises(InputError, match="the newest snapshot was taken after 200 images, not 300"):
        average_of(tmp_path, length=0.1, images=300)


def test_training_keeps_snapshots_only_when_asked_and_pausing_changes_nothing(tmp_path: Path) -> None:
    recipe = smallest("diffusion", "train.steps=7", "train.checkpoint_every=2", "train.ema_snapshots=2")
    train_here(smallest("diffusion", "train.steps=2"), tmp_path / "without")
    assert not (tmp_path / "without/snapshots").exists()
    train_here(recipe, tmp_path / "straight")
    outcomes = [train_here(recipe, tmp_path / "paused", pause_seconds=0.0) for _ in range(7)]
    assert [(outcome.steps, outcome.finished) for outcome in outcomes] == [(step, step == 7) for step in range(1, 8)], "a step a call"
    assert digests(tmp_path / "straight/snapshots") == digests(tmp_path / "paused/snapshots")
    assert len(digests(tmp_path / "straight/snapshots", "*.safetensors")) == 4, "steps 4 and 7"
    newest = "checkpoints/checkpoint-00000007.safetensors.sha256"
    assert newest.rpartition("/")[2] in {path.name for path in (tmp_path / "paused/checkpoints").iterdir()}


def test_snapshots_of_low_rank_updates_have_them_merged(tmp_path: Path) -> None:
    """So that an average made of them fits the model that ships."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    shapes = {name: weight.shape for name, weight in network.state_dict().items()}
    add_low_rank(network, rank=2, alpha=2.0)
    averages = PowerAverages(network)
    with torch.no_grad():
        network[2].expand.weight.fill_(1.0)
    averages.update(network, images_seen=8, images_in_step=8)
    averages.save(tmp_path, images=8, step=1, every=1, most=2)
    made = average_of(tmp_path, length=0.1)
    assert {name: weight.shape for name, weight in made.items()} == shapes
    torch.testing.assert_close(made["2.weight"], (network[2].layer.weight.double() + network[2].update()).float())
    assert isinstance(next(iter(averages.models.values()))[2], LowRank), "the training itself goes on with its updates"
