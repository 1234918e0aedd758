"""The main job: what it refuses before it begins, and what it leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from synthorax.cli.app import app
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import write_png
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.report.record import Report
from synthorax.steps.models.recipe import recipe_names
from synthorax.verbs.augmentation import Augmented, augment

USABLE = {
    "aae-64", "acgan-64", "alpha-gan-64", "base-64", "base-128", "controlled-64", "cvae-64", "ddpm-64", "edm-32", "edm-64",
    "geometric-vae-64",
    "gmvae-64", "hamiltonian-vae-64", "progressive-gan-64", "phantom-64", "progressive-vae-64", "projection-gan-64", "kumar-fs-gmvae-v1",
    "kumar-fs-gmvae-v2", "kumar-fs-gmvae-v3", "soft-intro-vae-64", "stylegan2-ada-64", "transformer-64", "triple-gan-64", "vae-gan-64",
    "vq-vae-2-64", "wavelet-256"}
"""recipes that make images of findings by themselves"""
REFUSED = {
    "inversion-encoder": "trains an encoder", "dcgan-64": "not conditioned on labels", "kl-autoencoder-64": "compresses images",
    "kl-autoencoder-256": "compresses images", "kl-autoencoder-512": "compresses images", "latent-64": "--compressor",
    "latent-256": "--compressor", "layout-128": "draws outlines", "latent-512": "--compressor", "lsgan-64": "not conditioned on labels",
    **{f"kumar-gmvae-v{number}": "not conditioned on labels" for number in range(3, 9)}, "kumar-gan": "not conditioned on labels",
    "kumar-vae": "not conditioned on labels", "spade-gan-64": "images of masks", "student": "a student",
    "student-autoguidance": "a student",
    "student-guidance": "a student", "super-256": "enlarges images", "super-256-from-128": "enlarges images",
    "super-512": "enlarges images", "super-1024": "enlarges images",
    "nodule-3d": "not conditioned on labels",
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
    assert time.process_time() - begin < 1
    assert not (empty.parent / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"findings": ["Efusion"]}, "did you mean 'Effusion'"), ({"findings": []}, "which finding"), ({"num": 0}, "at least one image"),
    ({"findings": ["No Finding"]}, "cannot be augmented"), ({"num": 10_000_000}, "at most 1,000,000 images"),
    ({"recipe": "edm-64", "compressor": "x"}, "leave --compressor out"), ({"recipe": "latent-64", "compressor": "none"}, "no model found"),
    ({"recipe": "super-256"}, "synthorax pack"), ({"recipe": "edm46"}, "did you mean 'edm-64'"),
    ({"base": "cxr-256", "recipe": "dcgan-64"}, "own family"), ({"base": "cxr-265"}, "no model found")])
def test_what_cannot_be_generated_is_refused_before_any_image_is_read(arguments: dict[str, object], message: str, empty: Path) -> None:
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


# ---- what it leaves


TINY = """name = "tiny"
family = "diffusion"
[model]
image_size = 32
channels = 8
multipliers = [1, 2]
attention = [false, true]
embedding = 16
patch = 2
[train]
batch_size = 4
sample_every = 0
[sample]
steps = 2
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Augmented:
    """A training of 40 images seen, on drawings of which three in a hundred cannot be read: what it makes is noise."""
    folder = tmp_path_factory.mktemp("short")
    source = write_phantom_dataset(folder / "drawn", num=100, size=32, seed=0, prevalence={"Effusion": 0.3, "Nodule": 0.6})
    for study in source.studies[:3]:
        (source.path / study.file_name).write_bytes(b"no image")
    (folder / "tiny.toml").write_text(TINY)
    return augment(source.path, findings=["Effusion"], out=folder / "out", recipe=str(folder / "tiny.toml"), budget_images=40, num=10,
                   seed=3)


def test_a_training_that_fell_short_stops_before_the_proof(short: Augmented) -> None:
    assert short.fell_short and short.signs.images == 40 and short.signs.few_passes and short.signs.mostly_unrealistic
    assert short.train is None and short.synthetic is None and not (short.out / "train").exists()
    report = Report.load(short.out)
    assert len(report.warnings) == 1 and "20 of 20 synthetic images do not look like radiographs" in report.warnings[0]
    assert report.dimensions["benefit"].status == "skipped" and "no training set was made" in report.dimensions["benefit"].reason
    assert report.dimensions["benefit"].reason.startswith("Most of the synthetic images do not look like radiographs, so no training set")
    assert report.dimensions["fidelity"].status == "measured" and report.inputs["training"]["fell_short"] is True
    page = (short.out / "report.html").read_text()
    assert page.index("The training of the generator fell short") < page.index("<main")


def test_it_says_so_on_the_last_line_and_in_json(short: Augmented) -> None:
    told = short.to_dict()
    assert told["fell_short"] and told["warnings"] == list(short.report.warnings) and told["train"] is None and told["verdicts"] == {}
    assert str(short).splitlines()[-1] == f"Warning: {short.report.warnings[0]}"
    assert f"Warning: {short.report.warnings[0]}" in str(short).splitlines()[:3]


def test_what_was_rejected_is_reported(short: Augmented) -> None:
    (rejected,) = short.rejected
    assert (rejected.images, rejected.of) == (3, 100) and short.to_dict()["rejected"][0]["images"] == 3
    assert f"rejected      {rejected}" in str(short) and str(short.out / "prepared/rejects.csv") in str(short)
    report = Report.load(short.out)
    assert report.inputs["rejected"]["prepared"]["images"] == 3 and any("3 of 100 images" in note for note in report.notes)


def test_the_report_names_the_command_that_makes_it_again(short: Augmented) -> None:
    for part in ("--finding Effusion", "--budget-images 40", "--num 10", "--seed 3", "tiny.toml"):
        assert part in short.report.command
    assert "--budget " not in short.report.command


def test_calling_it_again_gives_the_same_and_ends_with_code_4(short: Augmented, capsys: pytest.CaptureFixture[str]) -> None:
    weights = short.run.weights.read_bytes()
    place = short.out.parent
    options = {"finding": "Effusion", "out": short.out, "recipe": place / "tiny.toml", "budget-images": 40, "num": 10, "seed": 3}
    with pytest.raises(SystemExit) as stop:
        app(["augment", str(place / "drawn"), *(f"--{name}={value}" for name, value in options.items()), "--json"])
    told = capsys.readouterr()
    assert stop.value.code == 4 and json.loads(told.out)["fell_short"] and told.out.count("\n") == 1
    assert "rejected: 3 of 100 images" in told.err and "[7/8]" not in told.err, "the report is there"
    assert short.run.weights.read_bytes() == weights


def test_many_rejects_stop_it_and_keep_their_list(tmp_path: Path) -> None:
    source = write_phantom_dataset(tmp_path / "drawn", num=60, size=32, seed=1, prevalence={"Effusion": 0.4, "Nodule": 0.6})
    for study in source.studies[:9]:
        (source.path / study.file_name).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"9 of 60 images.*rejects\.csv.*--allow-rejects"):
        augment(source.path, findings=["Effusion"], out=tmp_path / "out", recipe="edm-32", budget="1s")
    assert (tmp_path / "out/prepared/rejects.csv").read_text().count("\n") == 10
    with pytest.raises(UsageError, match=r"smallest budget that would do is about .* goes on from here"):
        augment(source.path, findings=["Effusion"], out=tmp_path / "out", recipe="edm-32", budget="1s", allow_rejects=True)
    assert not (tmp_path / "out/run").exists()


@pytest.mark.parametrize("arguments", [{"budget": "5m", "budget_images": 9}, {"budget_images": 0}, {"budget": 0}, {"budget": "soon"}])
def test_budgets_that_cannot_be(arguments: dict[str, object], empty: Path) -> None:
    with pytest.raises(UsageError, match=r"budget|duration"):
        augment(empty, **{"findings": ["Mass"], "out": empty.parent / "out"} | arguments)
    assert not (empty.parent / "out").exists()
