"""Two processes started by torchrun train like one process on the doubled batch. Run as a program, this file is what they do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthorax.engine import started
from synthorax.families.denoising.adaptation import adapt
from synthorax.training.loop import train
from trainings import fresh_objective, randomised, smallest, toy_images

LIMIT_SECONDS = 100
STEPS = {"diffusion": 6, "diffusion+lora": 4, "kumar-gan": 2, "kumar-vae": 2, "stylegan2": 2, "inversion-encoder": 2, "vae": 4}
"""family, or family and way in which only some of its weights move -> training steps"""
GROWING = ("model.network=progressive", 'model.parts=["labels"]', "objective.growth_images=2")
"""for the vae: weights that a step does not use are all in its one phase"""


def train_all(folder: Path, families: list[str], *, batch_size: int) -> None:
    """Train each family in turn and save the weights of every player, one file a process."""
    with started(device="cpu", threads=1, precision="fp32", seed=0) as engine:
        for name in families:
            family, _, way = name.partition("+")
            recipe = smallest(family, f"train.steps={STEPS[name]}", f"train.batch_size={batch_size}", "train.balance=0.5",
                              *(GROWING if family == "vae" else ()))
            objective = fresh_objective(recipe)
            if way:
                randomised(objective.model)  # what ends in zeros and is frozen would pass no gradient on
                adapt(objective.model, way, rank=2, alpha=2.0)
            place = folder / name
            train(objective, toy_images(recipe.model.image_size), recipe.train, engine=engine, folder=place)
            weights = {name: weight.detach() for name, weight in objective.players.named_parameters()}
            save_file(weights, place / f"rank-{engine.rank}.safetensors")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that train each family with half the batch."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}",
               str(Path(__file__)), str(folder), *STEPS]
    result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1",
                                                       "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
                            timeout=LIMIT_SECONDS, check=False, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def weights_of(folder: Path, family: str, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / family / f"rank-{rank}.safetensors")


@pytest.mark.parametrize("family", STEPS)
def test_processes_agree_and_only_the_main_one_writes(together: Path, family: str) -> None:
    first, second = (weights_of(together, family, rank) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(bool(weight.any()) for name, weight in first.items() if name.endswith(".expand.weight")), "updates begin at 0, and moved"
    assert (together / family / "metrics.jsonl").read_text().count("\n") == STEPS[family], "one line a step, by one process"


def test_every_player_of_an_adversarial_family_moves_in_both_processes(together: Path) -> None:
    """Phases that reach only some weights, and penalties on gradients, work in several processes too."""
    begun = fresh_objective(smallest("stylegan2")).players.state_dict()
    ended = weights_of(together, "stylegan2", 1)
    for player in ("generator", "discriminator"):
        assert any(not torch.equal(weight, begun[name]) for name, weight in ended.items() if name.startswith(player))


def test_two_processes_are_one_process_with_the_doubled_batch(together: Path, tmp_path: Path) -> None:
    """For the diffusion model without dropout; batch normalisation sees half the batch in each process, so GAN and VAE differ."""
    train_all(tmp_path, ["diffusion"], batch_size=4)
    one, two = weights_of(tmp_path, "diffusion", 0), weights_of(together, "diffusion", 0)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    before = fresh_objective(smallest("diffusion"), seed=1).players.state_dict()
    assert any((one[name] - before[name]).abs().max() > 1e-4 for name in one), "they moved at all"
    losses = [[json.loads(line)["denoise"] for line in (folder / "diffusion/metrics.jsonl").read_text().splitlines()]
              for folder in (together, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    last = [load_file(max((folder / "diffusion/checkpoints").glob("*.safetensors"))) for folder in (tmp_path, together)]
    averages = [{name: value for name, value in tensors.items() if name.startswith("module/ema/")} for tensors in last]
    assert averages[0]
    torch.testing.assert_close(averages[1], averages[0], atol=1e-5, rtol=0)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), sys.argv[2:], batch_size=2)
