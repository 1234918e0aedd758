"""The main job: what it refuses before it begins, and what it leaves."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from synthorax.data.pixels import write_png
from synthorax.errors import InputError, UsageError
from synthorax.main_job import augment
from synthorax.steps.recipe import recipe_names

USABLE = {
    "aae-64", "acgan-64", "alpha-gan-64", "base-64", "controlled-64", "cvae-64", "ddpm-64", "edm-32", "edm-64", "geometric-vae-64",
    "gmvae-64", "hamiltonian-vae-64", "progressive-gan-64", "progressive-vae-64", "projection-gan-64", "s4-fs-gmvae-v1", "s4-fs-gmvae-v2",
    "s4-fs-gmvae-v3", "soft-intro-vae-64", "stylegan2-ada-64", "transformer-64", "triple-gan-64", "vae-gan-64", "vq-vae-2-64",
    "wavelet-256"}
"""recipes that make images of findings by themselves"""
REFUSED = {
    "code-encoder": "trains an encoder", "dcgan-64": "not conditioned on labels", "kl-autoencoder-64": "compresses images",
    "kl-autoencoder-256": "compresses images", "kl-autoencoder-512": "compresses images", "latent-64": "--compressor",
    "latent-256": "--compressor", "latent-512": "--compressor", "lsgan-64": "not conditioned on labels",
    **{f"s4-gmvae-v{number}": "not conditioned on labels" for number in range(3, 9)}, "s4-gan": "not conditioned on labels",
    "s4-vae": "not conditioned on labels", "spade-gan-64": "images of masks", "student": "a student", "student-autoguidance": "a student",
    "student-guidance": "a student", "super-256": "enlarges images", "super-512": "enlarges images", "super-1024": "enlarges images",
    "vae-64": "not conditioned on labels", "vq-gan-256": "compresses images", "wgan-gp-64": "not conditioned on labels"}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder without an image: whatever begins to read gets no further."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_taken_or_refused_before_any_image_is_read(recipe: str, empty: Path) -> None:
    assert (recipe in USABLE) != (recipe in REFUSED), "say of a new recipe whether augment can use it"
    begin = time.process_time()
    with pytest.raises(InputError if recipe in USABLE else UsageError, match=REFUSED.get(recipe, "there is no PNG")):
        augment(empty, findings=["Mass"], out=empty.parent / "out", recipe=recipe)
    assert time.process_time() - begin < 1 and not (empty.parent / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"findings": ["Efusion"]}, "did you mean 'Effusion'"), ({"findings": []}, "which finding"), ({"num": 0}, "at least one image"),
    ({"findings": ["No Finding"]}, "cannot be augmented"), ({"num": 10_000_000}, "at most 1,000,000 images"),
    ({"recipe": "edm-64", "compressor": "x"}, "leave --compressor out"), ({"recipe": "latent-64", "compressor": "none"}, "no model found"),
    ({"recipe": "super-256"}, "synthorax pack"), ({"recipe": "edm46"}, "did you mean 'edm-64'"),
    ({"base": "cxr-256", "recipe": "dcgan-64"}, "own family"), ({"base": "cxr-265"}, "no model found")])
def test_what_cannot_be_made_is_refused_before_any_image_is_read(arguments: dict[str, object], message: str, empty: Path) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        augment(empty, **{"findings": ["Mass"], "out": empty.parent / "out"} | arguments)
    assert not (empty.parent / "out").exists()


def test_what_is_balanced_already_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        write_png(tmp_path / f"set/{number}.png", rng.integers(0, 256, (32, 32), dtype=np.uint8))
    rows = "".join(f"{number}.png,p{number},{'Mass' if number % 2 else 'No Finding'}\n" for number in range(40))
    (tmp_path / "set/metadata.csv").write_text("file_name,patient_id,findings\n" + rows)
    with pytest.raises(InputError, match=r"more frequent among the training images than Mass, so there is nothing to balance.*--num"):
        augment(tmp_path / "set", findings=["Mass"], out=tmp_path / "out", recipe="edm-32")
    assert not (tmp_path / "out").exists()
