"""A trained model is one handle: its file is read, verified and loaded once, whatever is made of it, and never other bytes."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import synthorax as sx
from synthorax import run as run_module
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import InputError
from synthorax.run import Run, save_weights
from synthorax.steps.models.trained_model import TrainedModel, open_model
from synthorax.verbs.augmentation import augment
from tiny_job import EDM
from trainings import FEW, SMALL_SUPER_RESOLUTION, untrained

SIZE_PX = 32
SMALL_EDM = [f"model.{text}" for text in EDM]


@dataclass
class Uses:
    """How often the files of models were opened, hashed and made into weights, by path; counted on Python's own functions."""

    opened: Counter[Path] = field(default_factory=Counter)
    hashed: list[bytes] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    counting: bool = True

    def of(self, path: Path) -> tuple[int, int, int]:
        """Openings for reading, hashes and loads of a file."""
        self.counting = False
        content = path.read_bytes()
        self.counting = True
        return self.opened[path.resolve()], self.hashed.count(content), self.loaded.count(content)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uses]:
    found = Uses()

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if found.counting and event == "open" and str(arguments[0]).endswith(".safetensors") and "w" not in str(arguments[1]):
            found.opened[Path(arguments[0]).resolve()] += 1

    def sha256(data: Any = b"", **options: Any) -> Any:
        if len(data) > 1000:
            found.hashed.append(bytes(data))
        return real_sha256(data, **options)

    def file_digest(handle: Any, *arguments: Any, **options: Any) -> Any:
        found.hashed.append(Path(handle.name).read_bytes())
        return real_file_digest(handle, *arguments, **options)

    def load(data: bytes) -> Any:
        found.loaded.append(data)
        return real_load(data)

    def load_file(path: Any, *arguments: Any, **options: Any) -> Any:
        found.loaded.append(Path(path).read_bytes())
        return real_load_file(path, *arguments, **options)

    real_sha256, real_file_digest = hashlib.sha256, hashlib.file_digest
    real_load, real_load_file = safetensors.torch.load, safetensors.torch.load_file
    monkeypatch.setattr(hashlib, "sha256", sha256)
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    monkeypatch.setattr(safetensors.torch, "load_file", load_file)
    monkeypatch.setattr(run_module, "load", load)
    sys.addaudithook(on_event)
    yield found
    found.counting = False  # a hook cannot be taken away


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    return write_phantom_dataset(folder / "set", num=100, size=SIZE_PX, seed=0, prevalence={"Effusion": 0.3, "Nodule": 0.6}).path


@pytest.fixture(scope="module")
def base(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model packed of two stages, 16 and 32 pixels, with a guide."""
    folder = tmp_path_factory.mktemp("base")
    prepared = sx.prepare(sx.ingest(phantoms, out=folder / "images"), size=SIZE_PX, out=folder / "prepared")
    larger, *small = SMALL_SUPER_RESOLUTION
    small = [text for text in small if "image_size" not in text] + [f"model.image_size={SIZE_PX}"]
    first, weak, second = (
        sx.train(recipe, prepared, out=folder / name, overrides=[*settings, *FEW, "train.steps=2"], device="cpu", threads=1, seed=seed)
        for name, recipe, settings, seed in (("first", "edm-64", SMALL_EDM, 0), ("weak", "edm-64", SMALL_EDM, 1),
                                             ("second", larger, small, 0)))
    return sx.pack([first, second], out=folder / "packed", guide=weak, sample={"steps": 2, "super_resolution_steps": 2})


def test_augment_reads_verifies_and_loads_its_base_and_what_it_trains_once(base: Run, phantoms: Path, tmp_path: Path, uses: Uses) -> None:
    done = augment(phantoms, findings=["Effusion"], out=tmp_path / "out", base=base.path, budget_images=8, num=6, threads=1)
    assert uses.of(base.weights) == (1, 1, 1)
    assert done.run.path == tmp_path / "out/model"
    for run in (Run(path=tmp_path / "out/run"), done.run):
        assert uses.of(run.weights) == (1, 2, 1), "hashed once more when it was written"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    model = untrained()
    path = tmp_path / "tiny.safetensors"
    save_weights(path, model.weights, spec=model.spec, facts={"recipe": "tiny", "sample": {"steps": 2}})
    return path


def test_verbs_take_the_handle_and_open_nothing(tiny: Path, tmp_path: Path, uses: Uses) -> None:
    model = open_model(tiny)
    assert uses.of(tiny) == (1, 1, 0), "known without its weights"
    assert open_model(model) is model
    images = [sx.generate(model, sx.Request(num=2, finding=["Mass"]), out=tmp_path / name, threads=1).path for name in ("first", "second")]
    sx.load_model(model)
    assert uses.of(tiny) == (1, 1, 1)
    by_name = sx.generate(tiny, sx.Request(num=2, finding=["Mass"]), out=tmp_path / "by name", threads=1).path
    first, *others = [sorted(path.read_bytes() for path in (folder / "images").iterdir()) for folder in (*images, by_name)]
    assert all(other == first for other in others)


def test_weights_are_those_of_the_verified_bytes_whatever_happens_to_the_file(tiny: Path) -> None:
    model, other = open_model(tiny), untrained(seed=1)
    save_weights(tiny, other.weights, spec=other.spec, facts={})
    expected, loaded = untrained().weights, model.weights
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    assert open_model(tiny).digest != model.digest


def test_a_changed_file_is_refused_by_another_process(tiny: Path) -> None:
    sent = pickle.dumps(open_model(tiny))
    assert len(sent) < 1000, "the name and the digest travel, not the weights"
    again = pickle.loads(sent)
    assert isinstance(again, TrainedModel) and (again.digest, again.path) == (open_model(tiny).digest, tiny)
    other = untrained(seed=1)
    save_weights(tiny, other.weights, spec=other.spec, facts={})
    with pytest.raises(InputError, match="was changed since it was opened"):
        pickle.loads(sent)


def test_a_copy_can_be_trained_while_the_network_stays(tiny: Path) -> None:
    model = open_model(tiny)
    copied = model.build()
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert model.network is model.network and model.build() is not model.network
    before = np.concatenate([value.flatten().numpy() for value in model.network.state_dict().values()])  # type: ignore[attr-defined]
    wanted = np.concatenate([model.weights[key].flatten().numpy() for key in model.network.state_dict()])  # type: ignore[attr-defined]
    assert np.array_equal(before, wanted)


def test_a_handle_knows_its_stages_and_guide_by_the_files_that_they_were_trained_to(base: Run) -> None:
    model = sx.open_model(base)
    folder = base.path.parent
    digests = [open_model(folder / name).digest for name in ("first", "second", "weak")]
    assert model.guide is not None and [part.digest for part in (*model.stages, model.guide)] == digests
    assert [stage.spec.image_size for stage in model.stages] == [16, 32] and model.spec.image_size == 32
    assert open_model(folder / "first").stages[0].digest == digests[0] and not open_model(folder / "first").parts
