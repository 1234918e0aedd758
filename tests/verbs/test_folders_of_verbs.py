"""Every verb and the folder that it is inputs: what is not its own is refused and stays as it is, and what is its own goes on."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import synthorax as sx
from nodules import untrained_volumes, write_bank
from progress_checks import check_progress
from synthorax.cli.app import app
from synthorax.data.dataset import read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, SynthoraxError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.evaluation.monitoring.poison import PoisonConfig
from synthorax.folders import CLAIM_NAME, WORK_NAME, only_user
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.same_patient import SamePatientConfig
from synthorax.privacy.audit import AuditConfig
from synthorax.progress import progress_line
from synthorax.run import Run
from synthorax.steps.feedback.rounds import RefineLoopConfig
from synthorax.steps.poisoning import check_dataset
from synthorax.verbs.augmentation import augment
from synthorax.verbs.evidence import audit, drift, lesion_noise
from synthorax.verbs.synthesis import refine_loop
from synthorax.verbs.training import pack
from trainings import FEW, SMALL_SUPER_RESOLUTION, SMALL_VAE, in_new_process, killed_when

FINDING = "Effusion"
TINY = ["model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.steps=3", "train.batch_size=4", "train.checkpoint_every=1", "train.sample_every=0", "train.precision=fp32",
        "sample.steps=2"]
VAE = [f":{text}" for text in ("train.batch_size=4", "train.precision=fp32", "train.checkpoint_every=1", "model.image_size=32")]
VAE += [f"vae-64:{text}" for text in SMALL_VAE if "image_size" not in text]
JUDGE = ClassifierConfig(updates=4, batch_size=8, width=4, input_size=32, autocast=False)
BENEFIT = {"seeds": 3, "classifier": JUDGE, "resamples": 100, "probe": False, "sweep": (), "pretraining": False, "synthetic_only": False,
           "class_weighted": False}
HERE = {"device": "cpu", "threads": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What the verbs work on, all of it made once; paths, so that another process can be told of it."""

    images: Path
    """images with a table of labels beside them"""
    dataset: Path
    prepared: Path
    run: Path
    stages: tuple[Path, Path]
    """runs of a model of small images and of one that enlarges them"""
    made: Path
    bank: Path
    """lesions cut from CT"""

    @property
    def labels(self) -> Path:
        """The table of labels of `images`."""
        return self.images.with_name("labels.csv")


def _ingest(inputs: Inputs, out: Path, variant: int) -> None:
    sx.ingest(inputs.images, adapter="folder", out=out, label_table=inputs.labels, patient_per_image=bool(variant))


def _check(inputs: Inputs, out: Path, variant: int) -> None:
    with progress_line("check-poisoning") as progress:  # as the verb, which trains a larger judge
        check_dataset(read_dataset(inputs.made), Prepared.load(inputs.prepared), out=out, config=PoisonConfig(classifier=JUDGE,
                                                                                                              seed=variant),
                      progress=progress)


def _loop(inputs: Inputs, out: Path, variant: int) -> None:
    config = RefineLoopConfig(rounds=1, num=4, trainings=1, classifier=JUDGE, judge=JUDGE, filters=("copy",), seed=variant)
    refine_loop(inputs.run, real=inputs.prepared, findings=[FINDING], out=out, config=config, **HERE)


def _compare(inputs: Inputs, out: Path, variant: int) -> None:
    sx.compare(["vae-64"], inputs.prepared, out=out, budget_images=12, seeds=[0], num=24 + variant, features="radiomics", apart=False,
               overrides=VAE, **HERE)


def _augment(inputs: Inputs, out: Path, variant: int) -> None:
    augment(inputs.images, findings=[FINDING], out=out, label_table=inputs.labels, num=4, budget_images=4000, recipe="edm-32", seed=variant,
            **HERE)


WHOLE: dict[str, Callable[[Inputs, Path, int], object]] = {
    "ingest": _ingest,
    "prepare": lambda inputs, out, variant: sx.prepare(inputs.dataset, size=32, out=out, seed=variant),
    "prepare-nodules": lambda inputs, out, variant: sx.prepare_nodules(inputs.bank, side=8, out=out, seed=variant),
    "train": lambda inputs, out, variant: sx.train("edm-64", inputs.prepared, out=out, overrides=TINY, seed=variant, **HERE),
    "pack": lambda inputs, out, variant: pack(inputs.stages, out=out, precision=("bf16", "fp32")[variant]),
    "generate": lambda inputs, out, variant: sx.generate(inputs.run, sx.Request(num=3), out=out, seed=variant, batch_size=1, **HERE),
    "insert": lambda inputs, out, variant: sx.insert(inputs.dataset, finding="Mass", out=out, seed=variant, **HERE,
                                                    config=sx.InsertConfig(diameter_mm=80, num=4)),
    "screen": lambda inputs, out, variant: sx.screen(inputs.made, against=inputs.prepared, out=out, seed=variant, **HERE,
                                                    config=sx.ScreenConfig(filters=("copy",), classifier=JUDGE)),
    "check-poisoning": _check,
    "refine-loop": _loop,
    "compare": _compare,
    "export": lambda inputs, out, variant: sx.export(inputs.made, format=("png", "dicom")[variant], out=out),
    "evaluate": lambda inputs, out, variant: sx.evaluate(real=inputs.prepared, synthetic=inputs.made, out=out, quick=True, seed=variant,
                                                        features="radiomics", **HERE),
    "benefit": lambda inputs, out, variant: sx.benefit(real=inputs.prepared, synthetic=inputs.made, findings=[FINDING], out=out,
                                                      config=BenefitConfig(**BENEFIT, seed=variant), seed=variant, **HERE),
    "audit": lambda inputs, out, variant: audit(train=inputs.prepared, synthetic=inputs.made, out=out, features="radiomics", seed=variant,
                                               config=AuditConfig(planted=2, judge=SamePatientConfig(updates=2), seed=variant), **HERE),
    "drift": lambda inputs, out, variant: drift(inputs.prepared, inputs.dataset, out=out, size=32, features="radiomics", seed=variant,
                                                **HERE),
    "lesion-noise": lambda inputs, out, variant: lesion_noise(inputs.prepared, out=out, quantile=0.25 + 0.25 * variant),
}
"""every verb that writes to a folder, quick enough to be called to its end"""
VERBS = WHOLE | {"augment": _augment, "demo": lambda inputs, out, variant: sx.demo(out=out, seed=variant)}
FILES = {"plan"}
"""verbs that write a file"""
AT_ONCE = {"count_parameters", "load_model", "models", "open_model", "recipes"}
"""public functions that end within two seconds and show no progress"""
TESTED_ELSEWHERE = {"export-model"}
"""long verbs whose progress `test_export_diffusers.py` looks at, because they need models of another kind"""
WITHOUT_FOLDER: dict[str, Callable[[Inputs, Path, int], object]] = {
    "plan": lambda inputs, out, variant: sx.plan(inputs.prepared, count={FINDING: 4}, out=out),
    "sample-nodules": lambda inputs, out, variant: sx.sample_nodules(untrained_volumes(), diameters_mm=[8.0] * 3, seeds=[1, 2, 3],
                                                                    settings=sx.SampleSettings(steps=2)),
}
"""long verbs that the tests of folders do not call"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    place = tmp_path_factory.mktemp("inputs")
    made = Inputs(images=place / "images", dataset=place / "phantom",
                 prepared=place / "prepared", run=place / "run", made=place / "made", bank=write_bank(place / "nodules.npz"),
                 stages=(place / "small", place / "large"))
    data = write_phantom_dataset(made.dataset, num=120, size=32, seed=0, prevalence={"Pneumothorax": 0.3, FINDING: 0.4})
    shutil.copytree(made.dataset / "images", made.images)
    rows = [(Path(study.file_name).name, study.patient_id, FINDING if FINDING in study.labels else "No Finding") for study in data.studies]
    made.labels.write_text("\n".join(map(",".join, [("file_name", "patient_id", "findings"), *rows])) + "\n")
    sx.prepare(data, size=32, out=made.prepared, split=(0.6, 0.2, 0.2))
    sx.train("edm-64", made.prepared, out=made.run, overrides=TINY, **HERE)
    sx.train("edm-64", made.prepared, out=made.stages[0], overrides=[*TINY, "model.image_size=16", "train.steps=1"], **HERE)
    recipe, *settings = SMALL_SUPER_RESOLUTION
    sx.train(recipe, made.prepared, out=made.stages[1], overrides=[*settings, *FEW, "model.image_size=32", "train.steps=1"], **HERE)
    sx.generate(made.run, sx.plan(made.prepared, count={FINDING: 4}), out=made.made, **HERE)
    return made


def listed(folder: Path) -> dict[str, str]:
    """Every file below and what is in it, but for what tells of time."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))
            if path.is_file() and "tensorboard" not in path.parts}


def call(name: str, inputs: Inputs, out: Path) -> None:
    """What a process does that is killed."""
    VERBS[name](inputs, out, 0)


def test_every_verb_with_an_out_has_its_row() -> None:
    command = typer.main.get_command(app)
    writing = {name for name, verb in command.commands.items()  # type: ignore[attr-defined]
               if any("--out" in option.opts for option in verb.params)}
    assert writing == VERBS.keys() | FILES, "say of a new verb here how it is called at tiny size"


def test_the_progress_of_every_long_verb_is_tested() -> None:
    verbs = {name.replace("_", "-") for name in sx.__all__ if inspect.isfunction(getattr(sx, name)) and name not in AT_ONCE}
    assert verbs == {*VERBS, *WITHOUT_FOLDER, *TESTED_ELSEWHERE}, "say here how a new verb is called at tiny size, or that it ends at once"


@pytest.mark.parametrize("name", WHOLE | WITHOUT_FOLDER)
def test_progress_moves_forward_and_ends_at_1(name: str, inputs: Inputs, tmp_path: Path) -> None:
    _, titles = check_progress(lambda: (WHOLE | WITHOUT_FOLDER)[name](inputs, tmp_path / "out", 0))
    shown = {"train": ["train edm-64"], "compare": ["train vae-64", "generate", "measure vae-64-seed0"]}
    assert titles == shown.get(name, [name])


@pytest.mark.parametrize("name", VERBS)
def test_what_is_not_its_own_is_refused_and_stays_as_it_is(name: str, inputs: Inputs, tmp_path: Path) -> None:
    for file in ("project/config.toml", "project/data.json", "project/report.json", "project/metadata.csv", "radiology/phantom/scan.dcm"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine = 1\n")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "busy").mkdir()
    before = listed(tmp_path)
    for out in ("project", "radiology", "project/config.toml", "project/config.toml/below", "dangling"):
        with pytest.raises(InputError) as refused:
            VERBS[name](inputs, tmp_path / out, 0)
        assert str(tmp_path / out) in str(refused.value) and refused.value.remedy
    with only_user(tmp_path / "busy"), pytest.raises(SynthoraxError, match="in use by another process"):
        VERBS[name](inputs, tmp_path / "busy", 0)
    assert listed(tmp_path) == before and (tmp_path / "dangling").is_symlink()


@pytest.mark.parametrize("name", WHOLE)
def test_a_link_to_a_mount_point_is_filled_found_again_and_kept(name: str, inputs: Inputs, tmp_path: Path, big_disk: Path) -> None:
    (tmp_path / "link").symlink_to(big_disk)
    WHOLE[name](inputs, tmp_path / "link", 0)
    before = listed(big_disk)
    assert before and (tmp_path / "link").is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    with pytest.raises(InputError) as refused:
        WHOLE[name](inputs, tmp_path / "link", 1)
    assert "--out" in refused.value.remedy and listed(big_disk) == before
    WHOLE[name](inputs, tmp_path / "link", 0)
    assert listed(big_disk).keys() == before.keys()
    if name not in ("drift", "lesion-noise"):  # these are quick, and write the same once more
        assert {file: digest for file, digest in listed(big_disk).items() if before[file] != digest} == {}


@pytest.mark.parametrize("name", WHOLE)
def test_killed_and_called_again_is_whole(name: str, inputs: Inputs, tmp_path: Path) -> None:
    killed_when(in_new_process(call, name, inputs, tmp_path / "out"), lambda: (tmp_path / "out" / CLAIM_NAME).exists())
    WHOLE[name](inputs, tmp_path / "out", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not [file for file in listed(tmp_path / "out") if WORK_NAME in file or file.endswith(".tmp") or ".lock" in file]
    WHOLE[name](inputs, tmp_path / "out", 0)


def test_corrected_labels_are_noticed_by_an_augmentation_that_was_stopped(inputs: Inputs, tmp_path: Path) -> None:
    mine = Inputs(**{name: getattr(inputs, name) for name in ("dataset", "prepared", "run", "stages", "made", "bank")},
                  images=tmp_path / "images")
    shutil.copytree(inputs.images, mine.images)
    shutil.copyfile(inputs.labels, mine.labels)
    out = tmp_path / "out"
    assert killed_when(in_new_process(call, "augment", mine, out), (out / "run" / "config.toml").exists)
    text = mine.labels.read_text()
    mine.labels.write_text(text.replace(FINDING, "?").replace("No Finding", FINDING).replace("?", "No Finding"))
    with pytest.raises(InputError, match="holds an augmentation with other label table; choose another --out"):
        _augment(mine, out, 0)
    mine.labels.write_text(text)
    (mine.images / "more.png").write_bytes(next(mine.images.iterdir()).read_bytes())
    with pytest.raises(InputError, match="with other images"):
        _augment(mine, out, 0)


def test_a_finished_model_stays_until_its_successor_is_whole(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sx.train("edm-64", inputs.prepared, out=out, overrides=TINY, **HERE)
    first = (out / "model.safetensors").read_bytes()
    further = sx.train("edm-64", inputs.prepared, out=out, overrides=[*TINY, "train.steps=4000"], resume=True, pause_after=0.1, **HERE)
    assert not further.finished
    assert (out / "model.safetensors").read_bytes() == first
    assert sx.train("edm-64", inputs.prepared, out=out, overrides=TINY, resume=True, **HERE).finished
    assert (out / "model.safetensors").read_bytes() == first, "the first settings bring the first model"
    sx.train("edm-64", inputs.prepared, out=out, overrides=[*TINY, "train.steps=4"], resume=True, **HERE)
    assert (out / "model.safetensors").read_bytes() != first and Run(path=out).finished


def test_a_plan_does_not_take_the_place_of_another_file(inputs: Inputs, tmp_path: Path) -> None:
    for _ in range(2):
        sx.plan(inputs.prepared, count={FINDING: 3}, out=tmp_path / "plan.csv")
    before = (tmp_path / "plan.csv").read_bytes()
    with pytest.raises(InputError, match="is there already, with another content"):
        sx.plan(inputs.prepared, count={FINDING: 4}, out=tmp_path / "plan.csv")
    assert (tmp_path / "plan.csv").read_bytes() == before


def test_a_cached_folder_follows_the_content_of_its_label_table(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHORAX_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "labels.csv"
    positive = []
    for text in (inputs.labels.read_text(), inputs.labels.read_text().replace("No Finding", FINDING)):
        table.write_text(text)
        data = sx.ingest(inputs.images, adapter="folder", label_table=table)
        positive.append(sum(FINDING in study.labels for study in data.studies))
        assert sum(FINDING in study.labels for study in sx.prepare(data, size=32).studies) > 0
    assert positive[0] < positive[1] == len(data)


def test_sigterm_ends_like_ctrl_c_and_leaves_nothing_half(inputs: Inputs, tmp_path: Path) -> None:
    source = tmp_path / "images"
    (source / "images").mkdir(parents=True)
    image = next((inputs.dataset / "images").iterdir())
    for number in range(3000):
        os.link(image, source / "images" / f"{number}.png")
    (source / "metadata.csv").write_text("file_name,findings\n" + "".join(f"images/{number}.png,Mass\n" for number in range(3000)))
    words = ["prepare", str(source), "--size", "256", "--patient-per-image", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "synthorax", *words], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / WORK_NAME / "scratch.npy").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 143 and said[-1] == "synthorax: stopped; call the same command again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
