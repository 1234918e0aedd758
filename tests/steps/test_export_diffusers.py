"""Ours for others: an exported model, loaded by diffusers, is the same function, and what does not fit is told in full."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from typer.testing import CliRunner

from progress_checks import check_progress
from synthorax.cli.app import app
from synthorax.diffusion.noise import ddpm_sigmas, sigma_to_alpha_bar
from synthorax.diffusion.samplers import solve
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.nets.unet import UNetConfig
from synthorax.protocols import Condition, ModelSpec, SampleSettings
from synthorax.run import save_model
from synthorax.steps.export.diffusers import export_diffusers, misfits, unet_config, unet_weights
from synthorax.steps.models.trained_model import load_model
from synthorax.verbs.synthesis import export_model

# diffusers hands torch tensors to numpy in a way that numpy 2 wants to be rid of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 5


def load_pipeline(folder: Path) -> Any:
    return DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)


FINDINGS = ("Mass", "Effusion")
FITS = {"image_size": 8, "channels": 128, "multipliers": (1, 2), "attention": (False, True), "blocks": 1, "patch": 1, "resample": "strided",
        "embedding": 32, "parameterisation": "eps", "parts": ("labels", "attributes", "mask")}


def ours(**changes: Any) -> DiffusionModel:
    config = {**FITS, **changes}
    masks = ("lung",) if "mask" in config["parts"] else ()
    model = DiffusionModel(ModelSpec(family="diffusion", image_size=8, findings=FINDINGS, conditions=config["parts"], masks=masks,
                                     config=config))
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def mass(number: float = 1.0) -> Condition:
    condition = Condition.unstated(1, num_labels=2)
    condition.labels[0, 0] = number
    return condition


SHAPES: dict[str, dict[str, Any]] = {
    "eps": {},
    "v": {"parameterisation": "v", "blocks": 2, "attention": (True, False), "parts": ()},
    "x0 of one level": {"parameterisation": "x0", "multipliers": (1,), "attention": (True,), "resample": "average"},
    "edm of unit variance": {"parameterisation": "edm", "sigma_data": 1.0, "multipliers": (2, 1, 1), "attention": (False,) * 3},
    "learned variance": {"learned_variance": True, "multipliers": (1,), "attention": (False,)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_exported_network_is_the_same_function(tmp_path: Path, name: str) -> None:
    model, condition = ours(**SHAPES[name]), mass() if "labels" in SHAPES[name].get("parts", FITS["parts"]) else None
    noise_schedule: Any = "cosine" if name == "v" else "linear"
    pipeline = load_pipeline(export_diffusers(model, tmp_path / "out", condition=condition, noise_schedule=noise_schedule))
    steps = torch.tensor([0, 1, 10, 500, 998, 999])
    sigma = ddpm_sigmas(noise_schedule)[steps].float()
    keep = (1 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
    state = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))  # x = state / keep
    same = torch.zeros(6, dtype=torch.long)
    asked_for = Condition.unstated(6, num_labels=2) if condition is None else condition[same]
    with torch.no_grad():
        theirs = pipeline.unet(state, steps).sample
        _, embedded, _, _ = model._embedded(asked_for, 6)
        maps = model._condition_maps(asked_for, state)
        raw = model.network(torch.cat([state, *maps.values()], dim=1), model.scalings(sigma, sigma_data=1.0).c_noise, embedded)[:, :1]
        clean = model.denoise(state / keep, sigma, asked_for)
    assert theirs.shape == state.shape and theirs.std() > 0.05
    torch.testing.assert_close(theirs, -raw if "edm" in name else raw, atol=1e-5, rtol=1e-5)

    # What diffusers takes the output for gives our estimate of the image.
    noise = (1 - keep**2).sqrt()
    understood = {"epsilon": (state - noise * theirs) / keep, "sample": theirs, "v_prediction": keep * state - noise * theirs}
    scale = 1 / keep  # so far apart are state and image where there is only noise
    torch.testing.assert_close(understood[pipeline.scheduler.config.prediction_type] / scale, clean / scale, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_the_exported_noise_schedule_is_ours(tmp_path: Path, noise_schedule: Any) -> None:
    model = ours(multipliers=(1,), attention=(False,))
    scheduler = load_pipeline(export_diffusers(model, tmp_path / "out", noise_schedule=noise_schedule, clip=True)).scheduler
    assert scheduler.config.clip_sample
    theirs = scheduler.alphas_cumprod
    torch.testing.assert_close(theirs.double(), sigma_to_alpha_bar(ddpm_sigmas(noise_schedule)), atol=1e-6, rtol=1e-4)


def test_ddim_walks_to_the_same_images(tmp_path: Path) -> None:
    model = ours()
    pipeline = load_pipeline(export_diffusers(model, tmp_path / "out", condition=mass()))
    state = noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    pipeline.scheduler.set_timesteps(STEPS)
    levels = torch.cat([ddpm_sigmas("linear")[pipeline.scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    condition = mass()[torch.zeros(2, dtype=torch.long)]
    with torch.no_grad():
        for step in pipeline.scheduler.timesteps:
            state = pipeline.scheduler.step(pipeline.unet(state, step).sample, step, state).prev_sample
        start = noise * (1 + levels[0] ** 2).sqrt().float()
        made = solve(lambda x, sigma: model.denoise(x, sigma, condition), start, levels, sampler="ddim")
    scale = made.abs().max()
    torch.testing.assert_close(state / scale, made / scale, atol=1e-3, rtol=1e-3)


def test_an_exported_model_comes_back_as_a_model_of_others(tmp_path: Path) -> None:
    """Its timesteps are whole; on the levels of the noise schedule itself the two make the same image."""
    model = ours(sigma_min=0.01001, sigma_max=157.4)
    back = load_model(export_diffusers(model, tmp_path / "out"))
    settings = SampleSettings(sampler="ddim", schedule="linear", steps=6)
    start = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 150
    clipped = [made.sample(None, [4], settings, start=start) for made in (model, back)]
    torch.testing.assert_close(*clipped, atol=5e-3, rtol=1e-3)
    assert clipped[0].std() > 0.05


def test_what_is_asked_for_is_in_the_weights_and_on_the_card(tmp_path: Path) -> None:
    model = ours()
    save_model(tmp_path / "model.safetensors", model, spec=model.spec, facts={})
    run = CliRunner().invoke(app, ["export", str(tmp_path / "model.safetensors"), "--format", "diffusers", "--finding", "mass", "--out",
                                   str(tmp_path / "mass")])
    assert run.exit_code == 0, run.output
    _, titles = check_progress(lambda: export_model(tmp_path / "model.safetensors", out=tmp_path / "any"))
    assert titles == ["export-model"]
    for folder in ("mass", "any"):
        weights = unet_weights(model, mass() if folder == "mass" else None)
        unet = UNet2DModel.from_pretrained(tmp_path / folder / "unet")
        assert weights.keys() == unet.state_dict().keys()
        assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert '"Mass": 1' in (tmp_path / "mass" / "README.md").read_text()
    assert "nothing in particular" in (tmp_path / "any" / "README.md").read_text()
    assert not torch.equal(unet_weights(model, mass())["time_embedding.linear_2.weight"], weights["time_embedding.linear_2.weight"])


@pytest.mark.parametrize(("changes", "reason"), [
    ({"patch": 2}, "folds 2 x 2 pixels"),
    ({"resample": "average"}, "halves by averaging"),
    ({"coordinates": True}, "takes coordinates"),
    ({"parts": ("text",), "text_width": 16}, "is conditioned on text"),
    ({"parameterisation": "flow"}, "its network gives 'flow'"),
    ({"parameterisation": "edm"}, "its network gives 'edm'"),
    ({"channels": 32}, "have 8, 16, 24, 32 groups"),
    ({"channels": 64, "multipliers": (1, 2)}, "have 16, 32 groups"),
    ({"compressor": "wavelet", "image_size": 16}, "on the latents of 'wavelet'"),
    ({"network": "transformer", "width": 16, "depth": 1, "heads": 2}, "its network is a transformer"),
    ({"channels": 8, "multipliers": (1,), "attention": (False,)}, "fewer than 10 feature maps"),
])
def test_every_reason_against_a_network_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        export_diffusers(ours(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_findings_are_chosen_for_models_alone(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["export", str(tmp_path), "--format", "png", "--finding", "Mass", "--out", str(tmp_path / "out")])
    assert isinstance(run.exception, UsageError) and "--finding is for --format diffusers" in str(run.exception)


def test_reasons_are_listed_together() -> None:
    assert len(misfits(ours(patch=2, resample="average", parameterisation="flow", channels=32))) == 4
    masked = replace(mass(), mask=torch.ones(1, 1, 8, 8))
    assert misfits(ours(), masked) == ["the condition states mask, which cannot become a part of the network"]
    assert misfits(ours(), mass()[torch.zeros(2, dtype=torch.long)]) == ["the condition has 2 rows, and one can be asked for"]
    assert misfits(ours()) == []


def test_every_option_of_the_network_is_considered() -> None:
    """A new option of the U-Net either reaches diffusers' settings or is a reason against the export; then add it here."""
    assert {field.name for field in fields(UNetConfig)} == {"channels", "multipliers", "blocks", "attention", "patch", "dropout",
                                                            "embedding", "dims", "context", "resample", "coordinates", "middle_attention"}
    config = unet_config(ours(dropout=0.1))
    assert (config["dropout"], config["attention_head_dim"], config["norm_num_groups"]) == (0.1, 64, 32)


def test_an_export_does_not_mix_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    model = ours(multipliers=(1,), attention=(False,))
    with pytest.raises(InputError, match="is not empty"):
        export_diffusers(model, tmp_path)
    with pytest.raises(UsageError, match="is no diffusion model of ours"):
        export_model(export_diffusers(model, tmp_path / "foreign"), out=tmp_path / "out")
