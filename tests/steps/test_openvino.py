"""Sampling by OpenVINO: the images of PyTorch but for rounding, the same to the bit however they are batched, and recorded as such."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from ideal import peak_signal_to_noise
from synthorax.data.dataset import read_dataset
from synthorax.engine import Engine, Inference, asked_inference, describe_machine, has_openvino, started
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising import openvino_network
from synthorax.families.denoising.model import DiffusionModel
from synthorax.families.denoising.openvino_network import run_by_openvino
from synthorax.protocols import Condition, SampleSettings
from synthorax.steps.generate import generate_images
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import simple_plan
from trainings import FINDINGS, digests, fresh_cascade, fresh_objective, randomised, smallest

with_openvino = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed; pip install 'synthorax[fast]'")
without_openvino = pytest.mark.skipif(has_openvino(), reason="OpenVINO is installed")
SETTINGS = SampleSettings(steps=2, guidance=1.0)
PLAN = simple_plan(num=3, present=["Mass"], seed=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHORAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SYNTHORAX_INFERENCE")
    return tmp_path / "cache"


def small_model(*overrides: str) -> TrainedModel:
    model = fresh_objective(smallest("diffusion", 'model.parts=["labels", "attributes", "lesions", "mask", "text"]', *overrides)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.1)
    return TrainedModel.of(model.eval().requires_grad_(False), name="tiny", digest="0" * 64)


def asking(texts: tuple[str, ...], *, masks: int) -> Condition:
    """Rows of different texts; the second has a mask, which the others leave out."""
    condition = Condition.unstated(len(texts), num_labels=len(FINDINGS), num_sites=2)
    mask = torch.full((len(texts), masks, 16, 16), float("nan"))
    mask[1:2] = 0.0
    mask[1:2, :, 4:9, 4:9] = 1.0
    return replace(condition, text=texts, mask=mask)


def sampled(model: DiffusionModel, condition: Condition, seeds: list[int], *, cache: Path, threads: int = 1) -> Tensor:
    with run_by_openvino(model, bf16=False, threads=threads, cache=cache):
        return model.sample(condition, seeds, SETTINGS)


def generated(model: TrainedModel, out: Path, *, num: int = 3, batch_size: int = 2, inference: Inference | None = None) -> Path:
    with started(device="cpu", threads=1, precision="fp32") as engine:
        generate_images(model, replace(PLAN, rows=PLAN.rows[:num]), out=out, settings=SETTINGS, engine=engine, batch_size=batch_size,
                        inference=inference)
    return out


@with_openvino
def test_the_images_are_those_of_torch_but_for_rounding_and_the_same_to_the_bit_in_any_batch(cache: Path) -> None:
    model = cast(DiffusionModel, small_model().network)
    texts = ("", "small left effusion with a mass beside it, and more words than eight", "mass")
    condition, seeds = asking(texts, masks=len(model.spec.masks)), [5, 6, 7]
    together = sampled(model, condition, seeds, cache=cache)
    assert peak_signal_to_noise(together, model.sample(condition, seeds, SETTINGS)).min() > 80
    alone = [sampled(model, condition[row: row + 1], seeds[row: row + 1], cache=cache) for row in range(3)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(sampled(model, condition, seeds, cache=cache, threads=2), together)
    openvino_network._ready.clear()  # as a new process begins, with what was compiled before in the cache
    assert list(cache.glob("*.blob"))
    assert torch.equal(sampled(model, condition, seeds, cache=cache), together)
    openvino_network._ready.clear()
    for blob in cache.glob("*.blob"):
        blob.write_bytes(b"damaged")
    assert torch.equal(sampled(model, condition, seeds, cache=cache), together)
    assert model.substitute is None


@with_openvino
def test_other_weights_are_compiled_anew_and_gradients_stay_in_torch(cache: Path) -> None:
    model = cast(DiffusionModel, small_model().network)
    condition = Condition.unstated(1, num_labels=len(FINDINGS), num_sites=2)
    before = sampled(model, condition, [1], cache=cache)
    randomised(cast(nn.Module, model.network.last))
    assert peak_signal_to_noise(sampled(model, condition, [1], cache=cache), model.sample(condition, [1], SETTINGS)).min() > 80
    assert not torch.equal(sampled(model, condition, [1], cache=cache), before)
    x = torch.ones(1, *model.latent_shape, requires_grad=True)
    expected = torch.autograd.grad(model.denoise(x, torch.ones(1), condition).sum(), x)[0]
    with run_by_openvino(model, bf16=False, threads=1, cache=cache):
        assert torch.equal(torch.autograd.grad(model.denoise(x, torch.ones(1), condition).sum(), x)[0], expected)


@with_openvino
def test_both_stages_of_a_cascade_run_so(cache: Path) -> None:
    cascade = fresh_cascade().eval()
    randomised(cascade)
    with torch.no_grad():
        for parameter in cascade.parameters():
            parameter *= 0.3
    expected = cascade.sample(None, [1, 2], SETTINGS)  # type: ignore[operator]
    with run_by_openvino(cascade, bf16=False, threads=1, cache=cache):
        made = cascade.sample(None, [1, 2], SETTINGS)  # type: ignore[operator]
    assert peak_signal_to_noise(made, expected).min() > 70 and not torch.equal(made, expected)


@with_openvino
def test_a_generation_says_what_made_it_and_goes_on_with_that(tmp_path: Path) -> None:
    model = small_model()
    by_torch, whole = generated(model, tmp_path / "torch", inference="torch"), generated(model, tmp_path / "whole")
    facts = json.loads((whole / "dataset.json").read_text())
    assert facts["inference"].startswith("openvino 20") and "inference" not in json.loads((by_torch / "dataset.json").read_text())
    assert [study.extra["inference"] for study in read_dataset(whole).studies] == ["openvino"] * 3
    assert digests(generated(model, tmp_path / "one", batch_size=1), "images/*.png") == digests(whole, "images/*.png")
    for folder in (by_torch, whole):  # stopped before its last image
        kept = digests(folder, "images/*.png")
        (folder / "images/synthetic-000002.png").unlink()
        assert digests(generated(model, folder), "images/*.png") == kept
    with pytest.raises(InputError, match="inference"):
        generated(model, whole, inference="torch")


@with_openvino
def test_a_model_that_openvino_cannot_run_is_sampled_by_torch_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fresh_objective(smallest("diffusion", "model.network=transformer", "model.width=8", "model.depth=1", "model.heads=1")).model
    trained = TrainedModel.of(model.eval().requires_grad_(False), name="tiny", digest="0" * 64)
    with pytest.raises(UsageError, match="U-Nets"):
        generated(trained, tmp_path / "asked", inference="openvino")
    assert not (tmp_path / "asked").exists()
    assert "inference" not in json.loads((generated(trained, tmp_path / "auto") / "dataset.json").read_text())
    assert "note: sampling runs in PyTorch" in capsys.readouterr().err


@with_openvino
def test_openvino_is_imported_late_and_reports_to_nobody(tmp_path: Path) -> None:
    program = ("import sys, synthorax.cli.app, synthorax.verbs.synthesis; print('openvino' in sys.modules); "
               "from synthorax.families.denoising.openvino_network import openvino; openvino().convert_model; "
               "print('openvino_telemetry' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", program], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
                           check=True)
    assert found.stdout.split() == ["False", "False"] and not (tmp_path / "intel").exists()


@with_openvino
def test_doctor_says_which_engine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(describe_machine()["inference"]).startswith("openvino 20")
    monkeypatch.setenv("SYNTHORAX_INFERENCE", "torch")
    assert describe_machine()["inference"] == "torch"


@without_openvino
def test_openvino_asked_for_and_missing_is_an_error_that_says_how_to_get_it(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"pip install \"synthorax\[fast\]\""):
        generate_images(small_model(), PLAN, out=tmp_path / "made", settings=SETTINGS, engine=engine, inference="openvino")
    assert not (tmp_path / "made").exists()
    assert "inference" not in json.loads((generated(small_model(), tmp_path / "auto") / "dataset.json").read_text())


def test_the_option_goes_before_the_variable_and_a_wrong_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_inference() == "auto"
    monkeypatch.setenv("SYNTHORAX_INFERENCE", "Torch")
    assert asked_inference() == "torch" and asked_inference("auto") == "auto"
    monkeypatch.setenv("SYNTHORAX_INFERENCE", "onnx")
    with pytest.raises(UsageError, match="SYNTHORAX_INFERENCE 'onnx'"):
        asked_inference()
