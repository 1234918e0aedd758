"""Tiny trainings and generations on made-up images, for tests that need them in this process or in one that is killed."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import synthorax as sx
from synthorax.engine import started
from synthorax.families.denoising.cascade import cascade_spec
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.objective import DiffusionObjective
from synthorax.protocols import LESION_PROPERTIES, ModelSpec, Objective, SampleSettings, as_model
from synthorax.run import WEIGHTS_NAME, save_model
from synthorax.steps.generate import generate_images
from synthorax.steps.models.recipe import Recipe, build_model, build_objective, learns_volumes, load_recipe, makes_volumes
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import simple_plan
from synthorax.steps.training.student import is_student
from synthorax.training.loop import Outcome, train
from synthorax.types import ImageSet, Masks, Study, VolumeSet

FINDINGS = ("Effusion", "Mass")
SITES = ("east", "west")
MASKS = ("lung", "Mass")
SMALL_DIFFUSION = ("model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16", "model.patch=1",
       "model.image_size=8", "model.text_width=8", "model.text_depth=1", "objective.dropout={}",
       'model.parts=["attributes", "labels", "lesions", "mask", "text"]', "model.centred=false", "objective.crop=0")
SMALL_SUPER_RESOLUTION = ("super-256", "model.image_size=16", "model.reduction=2", "model.channels=8", "model.multipliers=[1, 2]",
                   "model.attention=[false, false]", "model.embedding=16", "model.patch=2", "objective.crop=8",
                   'model.parts=["attributes", "labels", "image"]')
"""a shipped recipe that enlarges images, and the settings that make it enlarge 8 px images to 16 px"""
COMPRESSOR = ("model.image_size=32", "model.channels=4", "model.multipliers=[1, 2]", "model.patch=2", "objective.discriminator_channels=2",
              "objective.discriminator_layers=1", "objective.adversarial=0.5", "objective.adversarial_after=0")
SMALL_VAE = ("model.image_size=16", "model.channels=4", "model.multipliers=[1, 2]", "model.embedding=8", "model.latent_size=4")
SMALLEST = {
    "aae": ("aae-64", *SMALL_VAE, "objective.discriminator_width=4"),
    "inversion-encoder": ("inversion-encoder", "model.image_size=16", "model.channels=4", 'model.generator_config={latent_size = 4, '
                                                                                          'channels = 4, '
                     'embedding = 8, conditioning = "projection", network = "residual"}'),
    "diffusion": ("controlled-64", *SMALL_DIFFUSION),
    "gan": ("projection-gan-64", "model.image_size=16", "model.latent_size=4", "model.channels=4", "model.embedding=8",
            "objective.discriminator_channels=4"),
    "kl-autoencoder": ("kl-autoencoder-256", *COMPRESSOR),
    "kumar-gan": ("kumar-gan", "model.image_size=64", "model.latent_size=4"),
    "kumar-gmvae": ("kumar-fs-gmvae-v3", "model.image_size=64", "model.latent_size=4", "model.components=3"),
    "kumar-vae": ("kumar-vae", "model.image_size=32", "model.latent_size=4"),
    "layout": ("layout-128", "model.image_size=8", "model.form_size=8", "model.latent_size=4", "model.width=16", "model.embedding=8",
               "model.components=2"),
    "vae": ("cvae-64", *SMALL_VAE, 'model.parts=["labels", "attributes", "mask"]'),
    "vae-gan": ("vae-gan-64", *SMALL_VAE, "objective.discriminator_channels=2", "objective.discriminator_layers=1"),
    "soft-intro-vae": ("soft-intro-vae-64", *SMALL_VAE),
    "spade-gan": ("spade-gan-64", "model.image_size=16", "model.latent_size=4", "model.channels=4", "model.embedding=8", "model.hidden=4",
                  "objective.discriminator_channels=4", "objective.segmenter_channels=2"),
    "stylegan2": ("stylegan2-ada-64", "model.image_size=16", "model.latent_size=4", "model.style_size=8", "model.channels=4",
                  "model.embedding=8", "objective.discriminator_channels=4"),
    "volume-diffusion": ("nodule-3d", "model.image_size=8", "model.parameterisation=edm", "model.channels=8", "model.multipliers=[1, 2]",
                         "model.attention=[false, false]", "model.embedding=16"),
    "vq-gan": ("vq-gan-256", *COMPRESSOR, "model.codes=8"),
    "vq-vae": ("vq-vae-2-64", "model.image_size=16", "model.channels=4", "model.multipliers=[1, 2]", "model.patch=1", "model.codes=8",
               "model.code_channels=2", "model.prior_width=8", "model.prior_depth=1", "model.prior_heads=2",
               "objective.autoencoder_steps=0"),
}
"""family -> a shipped recipe and the settings that make it as small as it can be"""
FEW = ("train.batch_size=2", "train.log_every=1", "train.sample_every=0", "train.precision=fp32", "train.warmup_steps=2")


def smallest(family: str, *overrides: str) -> Recipe:
    """The smallest recipe of a family; unknown families fail here, so that a new one is given its line above."""
    name, *sizes = SMALLEST[family]
    return load_recipe(name, overrides=[*sizes, *FEW, *overrides])


def super_resolution(*overrides: str) -> Recipe:
    """The smallest recipe of a model that enlarges images."""
    name, *sizes = SMALL_SUPER_RESOLUTION
    return load_recipe(name, overrides=[*sizes, *FEW, *overrides])


def fresh_cascade() -> torch.nn.Module:
    """A cascade of the smallest diffusion model and the smallest one that enlarges its images."""
    specs = [as_model(fresh_objective(recipe).model).spec for recipe in (smallest("diffusion"), super_resolution())]
    torch.manual_seed(0)
    return build_model(cascade_spec(specs, [{"steps": 2, "guidance": 1.0}]))


def toy_images(size: int, *, num: int = 24, seed: int = 0) -> ImageSet:
    """Noisy images; an effusion is bright at the bottom, a mass is bright at the upper left; every sixth states nothing.

    Half of the images have a lung mask, and those with a mass have its mask and place.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random((num, len(FINDINGS))) < 0.4).astype(np.float32)
    images = rng.integers(0, 80, (num, size, size), dtype=np.uint8)
    images[labels[:, 0] == 1, -size // 3:] += 120
    images[labels[:, 1] == 1, : size // 3, : size // 3] += 120
    labels[::6] = math.nan
    studies = tuple(Study(file_name=f"{number}.png", patient_id=f"p{number}", view=("PA", "AP", "")[number % 3],
                          sex=("F", "M", "")[number % 3], age_years=20.0 + number, site=("east", "west", "")[number % 3])
                    for number in range(num))
    outlines = np.zeros((2, size, size), dtype=np.uint8)
    outlines[0, :, size // 4: -size // 4] = outlines[1, : size // 3, : size // 3] = 255
    lung = np.where(np.arange(num) % 2, 0, Masks.NOT_STATED)
    mass = np.where(labels[:, 1] == 1, 1, np.where(labels[:, 1] == 0, Masks.NOTHING_THERE, Masks.NOT_STATED))
    lesions = np.full((num, len(FINDINGS), len(LESION_PROPERTIES)), math.nan, dtype=np.float32)
    lesions[labels[:, 1] == 1, 1] = (0.0, 0.7, math.nan, 0.2, 0.2)
    masks = Masks(names=MASKS, pixels=outlines, index=np.stack([lung, mass], axis=1).astype(np.int32))
    return ImageSet(pixels=images, studies=studies, findings=FINDINGS, labels=labels, digest="made up", masks=masks, lesions=lesions)


def toy_volumes(size: int, *, num: int = 12, seed: int = 0) -> VolumeSet:
    """Noisy balls: the larger the diameter that is stated, the larger the ball; every third states no margin."""
    rng = np.random.default_rng(seed)
    measured = rng.random((num, 3)).astype(np.float32)
    measured[::3, 1] = math.nan
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    distance = 0.3 + 0.5 * measured[:, 0, None, None, None] - np.sqrt((grid**2).sum(0))
    volumes = np.stack([distance, np.where(distance > 0, measured[:, 2, None, None, None], -1)], axis=1)
    volumes = (volumes + 0.05 * rng.standard_normal(volumes.shape)).clip(-1, 1).astype(np.float16)
    return VolumeSet(volumes=volumes, measurements=measured, quantities=("shape", "attenuation"), names=("diameter", "margin", "solidity"),
                     scans=tuple(f"scan {number // 2}" for number in range(num)), digest="made up")


def toy_data(recipe: Recipe) -> ImageSet | VolumeSet:
    """What a recipe learns from, made up."""
    return (toy_volumes if learns_volumes(recipe) else toy_images)(recipe.model.image_size)


def shape_of(spec: ModelSpec) -> tuple[int, ...]:
    """Channels and sides of what a model makes."""
    return (2, *[spec.image_size] * 3) if makes_volumes(spec) else (1, *[spec.image_size] * 2)


def fresh_objective(recipe: Recipe, *, seed: int = 0) -> Objective:
    """The objective with weights that depend on `seed` alone; a student's teacher has random weights everywhere."""
    torch.manual_seed(seed)
    objective = build_objective(recipe, findings=FINDINGS, sites=SITES, masks=MASKS)
    if is_student(recipe):
        spec = as_model(objective.model).spec
        teacher = build_model(replace(spec, config={**spec.config, "distilled": None}))
        weak = build_model(replace(spec, config={**spec.config, "distilled": None}))
        for number, network in enumerate((teacher, weak)):
            randomised(network, seed=seed + number)
        objective.start_from(teacher, guide=weak)
    return objective


def train_here(recipe: Recipe, folder: Path, *, images: ImageSet | VolumeSet | None = None, **settings: Any) -> Outcome:
    """Train in this process, on the CPU in float32, on made-up images if no others are given."""
    with started(device="cpu", threads=1, precision="fp32", seed=recipe.train.seed) as engine:
        objective = fresh_objective(recipe, seed=recipe.train.seed)
        return train(objective, images or toy_data(recipe), recipe.train, engine=engine, folder=folder, **settings)


def train_to_weights(family: str, overrides: Sequence[str], folder: Path) -> None:
    """Train or go on training, and write the finished weights; what a killed process was doing."""
    recipe = smallest(family, *overrides)
    outcome = train_here(recipe, folder)
    save_model(folder / WEIGHTS_NAME, outcome.model, spec=as_model(outcome.model).spec, facts={"steps": outcome.steps})


def distil_to(folder: Path, prepared: Path, teacher: Path, steps: int) -> None:
    """Train a student of two steps, or go on training it."""
    sx.train("student", prepared, out=folder, base=teacher, device="cpu", threads=1,
             overrides=[*FEW, f"train.steps={steps}", "model.distilled.steps=2", "train.checkpoint_every=2"])


def untrained(*, seed: int = 0) -> TrainedModel:
    """A small diffusion model with random weights everywhere, so that its images differ by seed and by condition."""
    model = fresh_objective(smallest("diffusion"), seed=seed).model
    randomised(model, seed=seed)
    return TrainedModel.of(model.eval(), name="tiny", digest="0" * 64)


def generate_to(folder: Path, num: int, batch_size: int = 2, steps: int = 2) -> None:
    """Generate or go on generating `num` images."""
    plan = simple_plan(num=num, present=["Mass"], seed=3)
    with started(device="cpu", threads=1, precision="fp32") as engine:
        generate_images(untrained(), plan, out=folder, settings=SampleSettings(steps=steps), engine=engine,
                       batch_size=batch_size)


def randomised(module: torch.nn.Module, *, seed: int = 0) -> None:
    """Random numbers in every weight, also in layers that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def in_new_process(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start `work` in a process of its own. A server imports torch once, and forks before torch has done anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["synthorax.steps.models.recipe", "synthorax.steps.generate", "torch.utils.tensorboard",
                                    "torch._dynamo"])
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def killed_when(process: BaseProcess, moment: Callable[[], bool], *, limit_seconds: float = 60.0) -> bool:
    """SIGKILL the process as soon as `moment()` is true; False if it ended by itself before."""
    end = time.monotonic() + limit_seconds
    while process.is_alive() and not moment():
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError("the moment of the kill never came")
        time.sleep(0.0002)  # where there is one core only, it is the other process's turn
    was_alive = process.is_alive()
    process.kill()
    process.join()
    return was_alive and process.exitcode == -9


def finished(process: BaseProcess, *, limit_seconds: float = 120.0) -> None:
    """Wait until the process has done its work; anything but a clean end is an error."""
    process.join(limit_seconds)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"the process ended with {process.exitcode}")


def after(seconds: float) -> Callable[[], bool]:
    """A moment some time from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def during_write(folder: Path, pattern: str = "*") -> Callable[[], bool]:
    """The moment at which a file that matches `pattern` is being written in `folder`."""
    before = set(folder.glob(f".{pattern}.tmp"))
    return lambda: bool(set(folder.glob(f".{pattern}.tmp")) - before)


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Name and SHA-256 of the files of a folder that match `pattern`, without locks and half-written files."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob(pattern))
            if path.is_file() and not path.name.startswith(".")}


def diffusion_objective(*overrides: str) -> DiffusionObjective:
    """The smallest training of a diffusion model."""
    objective = fresh_objective(smallest("diffusion", *overrides))
    assert isinstance(objective, DiffusionObjective)
    return objective


def diffusion_model(*overrides: str, seed: int = 0) -> DiffusionModel:
    """The smallest diffusion model, with random weights where fresh ones are 0."""
    model = diffusion_objective(*overrides).model
    randomised(model.network, seed=seed)
    randomised(model.embeddings, seed=seed)
    return model.eval()
