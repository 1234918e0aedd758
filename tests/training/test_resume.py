"""A training that is killed with SIGKILL and continued ends bit for bit like one that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from synthorax.run import WEIGHTS_NAME
from trainings import digests, during_write, finished, in_new_process, killed_when, train_to_weights

SETTINGS = {
    "diffusion": ("train.steps=24", "train.checkpoint_every=2", "model.dropout=0.2"),  # dropout draws from the global random state
    "kumar-vae": ("train.steps=4", "train.checkpoint_every=2"),
    "kumar-gan": ("train.steps=4", "train.checkpoint_every=2"),
    "gan": ("train.steps=24", "train.checkpoint_every=2", "objective.loss=wasserstein", "objective.discriminator_norm=layer",
            # how often the discriminator moves follows from its past
            "objective.gradient_penalty=10.0", "objective.discriminator_repeats_most=4"),
    "kl-autoencoder": ("train.steps=24", "train.checkpoint_every=2", "objective.adversarial_after=6"),  # the discriminator counts its steps
    "vae": ("train.steps=24", "train.checkpoint_every=2", "objective.beta_warmup=12"),  # the warm-up counts its steps
    "vae+hamiltonian": ("train.steps=24", "train.checkpoint_every=2", "model.posterior=hamiltonian"),
    "soft-intro-vae": ("train.steps=24", "train.checkpoint_every=2"),
    "inversion-encoder": ("train.steps=24", "train.checkpoint_every=2"),
    "aae": ("train.steps=24", "train.checkpoint_every=2"),
    "vae-gan": ("train.steps=24", "train.checkpoint_every=2"),
    "spade-gan": ("train.steps=24", "train.checkpoint_every=2"),
    "stylegan2": ("train.steps=24", "train.checkpoint_every=2", "objective.r1_every=3", "objective.path_every=2",
                  # augmentation and noise follow from the past
                  "objective.augmentation.ada_images=50", "objective.augmentation.noise_levels=100"),
    "vq-gan": ("train.steps=24", "train.checkpoint_every=2", "objective.adversarial_after=6"),
    "vq-vae": ("train.steps=24", "train.checkpoint_every=2", "objective.autoencoder_steps=6"),  # whose turn it is follows from the past
}
QUICKLY_WRITTEN = set(SETTINGS) - {"kumar-vae"}
"""families whose files are so small that a kill inside a write may come just after it on a busy machine"""


def reached(folder: Path, step: int) -> Callable[[], bool]:
    """The moment after a step, by its line in metrics.jsonl."""
    log = folder / "metrics.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= step


def log_lines(folder: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says, without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("elapsed_seconds", "images_per_second")} for line in lines]


@pytest.mark.parametrize("family", SETTINGS)
def test_killed_and_continued_is_the_same_to_the_bit(family: str, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    name, settings = family.partition("+")[0], SETTINGS[family]
    finished(in_new_process(train_to_weights, name, settings, straight))
    checkpoints = killed / "checkpoints"
    for moment in (reached(killed, 3), during_write(checkpoints, "*.safetensors.*")):
        assert killed_when(in_new_process(train_to_weights, name, settings, killed), moment)
    assert list(checkpoints.glob(".*.tmp")) or family in QUICKLY_WRITTEN, "the last kill was inside a write, unless that was quick"
    assert not (killed / WEIGHTS_NAME).exists()
    finished(in_new_process(train_to_weights, name, settings, killed))
    assert digests(killed, WEIGHTS_NAME) == digests(straight, WEIGHTS_NAME)
    assert not list(checkpoints.glob(".*.tmp")), "nothing half-written stays"
    assert log_lines(killed) == log_lines(straight), "every step once, with the same losses"


def test_killed_while_the_finished_weights_are_written(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = ("train.steps=1", "model.channels=96")
    finished(in_new_process(train_to_weights, "diffusion", settings, straight))
    assert killed_when(in_new_process(train_to_weights, "diffusion", settings, killed), during_write(killed, WEIGHTS_NAME + "*"))
    assert not (killed / WEIGHTS_NAME).exists()
    finished(in_new_process(train_to_weights, "diffusion", settings, killed))
    assert digests(killed, WEIGHTS_NAME) == digests(straight, WEIGHTS_NAME)
