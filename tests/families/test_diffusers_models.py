"""Models of others: pipelines of diffusers on our engine, against diffusers itself; all are random, tiny and made here."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthorax.data.dataset import read_dataset
from synthorax.data.image_files import read_image
from synthorax.diffusion.guidance import classifier_guided, guided
from synthorax.diffusion.samplers import solve
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.diffusers import DiffusersModel, folder_digest, load_diffusers
from synthorax.options import Request
from synthorax.protocols import Condition, SampleSettings
from synthorax.steps.models.trained_model import load_model
from synthorax.steps.planning.plan import Plan, PlanRow
from synthorax.types import Stated
from synthorax.verbs.synthesis import generate

# diffusers hands torch tensors to numpy in a way that numpy 2 wants to be rid of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 5
SETTINGS = SampleSettings(steps=3, guidance=2.0)
WORDS = ("small", "left", "right", "effusion", "no", "nodule", "mass", "large")


def scheduler(prediction: str = "epsilon", **changes: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"prediction_type": prediction, "clip_sample": False, "timestep_spacing": "trailing", **changes})


def latent_scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """The noise schedule of Stable Diffusion; its pipeline wants the offset, which trailing timesteps do not have."""
    return scheduler(prediction, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that text and timestep matter."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own kind, which spells: letters, letters at the end of a word, and no more."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    merges = [f"{word[:split]} {word[split]}{'</w>' if split == len(word) - 1 else ''}" for word in WORDS for split in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    names = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([*names, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=12)


@pytest.fixture(scope="session")
def text_to_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent pipeline in the layout of Stable Diffusion: 8 px latents, 16 px images in colour."""
    folder = tmp_path_factory.mktemp("text-to-image")
    words = tokenizer(folder / "words")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(4, 8), layers_per_block=1,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                                cross_attention_dim=8, attention_head_dim=2, norm_num_groups=2)
    vae = AutoencoderKL(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        latent_channels=4, norm_num_groups=2, sample_size=16, scaling_factor=0.3, shift_factor=0.1)
    ends = {name: words.convert_tokens_to_ids(f"<|{name}oftext|>") for name in ("start", "end")}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2, max_position_embeddings=12, bos_token_id=ends["start"],
                                        eos_token_id=ends["end"], pad_token_id=ends["end"]))
    StableDiffusionPipeline(vae=shaken(vae), unet=shaken(unet), text_encoder=shaken(text), tokenizer=words, safety_checker=None,
                            feature_extractor=None, requires_safety_checker=False,
                            scheduler=latent_scheduler()).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def pixel_unet(**changes: Any) -> UNet2DModel:
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8), "layers_per_block": 1,
             "norm_num_groups": 2, "attention_head_dim": None, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
             "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(**{**shape, **changes})
    shaken(unet)
    return unet


def unconditional(folder: Path, schedule: Any = None, **changes: Any) -> Path:
    DDIMPipeline(unet=pixel_unet(**changes), scheduler=schedule or scheduler()).save_pretrained(folder)
    return folder


def load_pipeline(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def texts_condition(*texts: str) -> Condition:
    return replace(Condition.unstated(len(texts), num_labels=0), text=texts)


def state_at(model: DiffusersModel, schedule: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Where diffusers begins, as x = x0 + sigma n, and the levels at its timesteps."""
    schedule.set_timesteps(STEPS)
    levels = torch.cat([model.noise_schedule.sigmas[schedule.timesteps], torch.zeros(1, dtype=torch.float64)])
    return noise * (1 + levels[0] ** 2).sqrt().float(), levels


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_text_to_image_makes_the_images_of_diffusers(text_to_image: Path, prediction: str) -> None:
    pipeline = load_pipeline(text_to_image)
    pipeline.scheduler = latent_scheduler(prediction)
    folder = text_to_image.parent / prediction
    pipeline.save_pretrained(folder)
    noise, texts = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), ["small left effusion", "no mass, large nodule"]
    latents = pipeline(texts, latents=noise, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent").images

    model = load_diffusers(folder)
    start, levels = state_at(model, pipeline.scheduler, noise)
    with torch.no_grad():
        denoise = guided(model.denoise, texts_condition(*texts), SampleSettings(guidance=3.0))
        made = solve(denoise, start, levels, sampler="ddim")
        colour = pipeline.vae.decode(latents / 0.3 + 0.1).sample
    assert latents.std() > 0.1
    torch.testing.assert_close(made, latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model.images(made), colour.mean(1, keepdim=True), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("channels", [1, 3])
def test_unconditional_makes_the_images_of_diffusers(tmp_path: Path, prediction: str, channels: int) -> None:
    folder = unconditional(tmp_path / "pipeline", scheduler(prediction, beta_schedule="squaredcos_cap_v2"), in_channels=channels,
                           out_channels=channels)
    model = load_diffusers(folder)
    pipeline = load_pipeline(folder)
    noise = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(5))
    start, levels = state_at(model, pipeline.scheduler, noise)
    state = noise
    with torch.no_grad():
        for step in pipeline.scheduler.timesteps:
            state = pipeline.scheduler.step(pipeline.unet(state, step).sample, step, state).prev_sample
        made = solve(lambda x, sigma: model.denoise(x, sigma, texts_condition("", "")), start, levels, sampler="ddim")
    torch.testing.assert_close(made, state, atol=1e-3, rtol=1e-3)
    assert model.images(made).shape == (2, 1, 8, 8) and model.spec.conditions == () and model.spec.image_size == 8


def test_estimates_are_clipped_where_the_scheduler_says_so(tmp_path: Path) -> None:
    """`use_clipped_model_output` is what our samplers do: the noise is what is left beside the estimate."""
    folder = unconditional(tmp_path / "pipeline", scheduler(clip_sample=True, clip_sample_range=0.8))
    pipeline, model = load_pipeline(folder), load_diffusers(folder)
    theirs = pipeline(batch_size=2, generator=torch.Generator().manual_seed(5), num_inference_steps=STEPS, output_type="pt",
                      use_clipped_model_output=True).images
    start, levels = state_at(model, pipeline.scheduler, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    with torch.no_grad():
        made = solve(lambda x, sigma: model.denoise(x, sigma, texts_condition("", "")), start, levels, sampler="ddim")
    assert made.abs().max() <= 0.8 and (made.abs() > 0.79).any()
    torch.testing.assert_close(made / 2 + 0.5, theirs, atol=1e-3, rtol=1e-3)


def test_levels_between_timesteps_are_interpolated(tmp_path: Path) -> None:
    model = load_diffusers(unconditional(tmp_path / "pipeline"))
    sigmas = model.noise_schedule.sigmas
    steps = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(model.timestep(sigmas[steps]), steps.double(), atol=1e-6, rtol=0)
    assert model.timestep((sigmas[[500]] * sigmas[[501]]).sqrt()).item() == pytest.approx(500.5)
    assert model.timestep(torch.tensor([1e-4, 1e4])).tolist() == [0.0, 999.0]


def test_a_schedule_that_ends_in_pure_noise_is_cut_before_it(tmp_path: Path) -> None:
    model = load_diffusers(unconditional(tmp_path / "pipeline", scheduler("v_prediction", rescale_betas_zero_snr=True)))
    assert len(model.noise_schedule.sigmas) == 999 and model.noise_schedule.sigmas.isfinite().all()
    assert model.sample(None, [0], SETTINGS).isfinite().all()


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "dpmpp-2m", "unipc"])
def test_an_image_depends_on_its_seed_alone(text_to_image: Path, sampler: str) -> None:
    model, settings = load_diffusers(text_to_image), replace(SETTINGS, sampler=sampler)
    texts = ("small left effusion", "", "large mass NOT nodule")
    together = model.sample(texts_condition(*texts), [7, 8, 9], settings)
    assert together.shape == (3, 1, 16, 16) and together.abs().max() <= 1 and together.std() > 0.01
    for row, text in enumerate(texts):
        torch.testing.assert_close(model.sample(texts_condition(text), [7 + row], settings), together[[row]], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.sample(texts_condition(texts[0]), [8], settings), together[[0]], atol=1e-2)


def test_text_guidance_and_operators_change_the_image(text_to_image: Path) -> None:
    model = load_diffusers(text_to_image)

    def image(text: str, **changes: Any) -> Tensor:
        return model.sample(texts_condition(text), [3], replace(SETTINGS, guidance=3.0, **changes))

    plain = image("left effusion")
    others = [image("right effusion"), image(""), image("left effusion NOT nodule"), image("left effusion", part_guidance={"text": 6.0})]
    assert all((plain - other).abs().max() > 1e-3 for other in others)
    torch.testing.assert_close(image(""), model.sample(None, [3], SETTINGS))
    with pytest.raises(UsageError, match="guidance of 'mask'"):
        image("mass", part_guidance={"mask": 2.0})
    with pytest.raises(UsageError, match=r"tokens, and this model reads 12; shorten it"):
        image("small left effusion, no nodule, no mass, large right effusion")


def test_guidance_by_a_classifier_gets_its_gradient_through_the_network(text_to_image: Path) -> None:
    model = load_diffusers(text_to_image)

    def brighter(weight: float) -> float:
        return model.sample(texts_condition("mass"), [0], SETTINGS, change=lambda denoise: classifier_guided(
            denoise, lambda latents: latents[:, 0].flatten(1).sum(1), weight=weight)).mean().item()

    assert brighter(0.5) != pytest.approx(brighter(0.0), abs=1e-4)


def test_other_text_encoders_of_transformers_are_read(text_to_image: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_to_image, tmp_path / "pipeline")
    torch.manual_seed(0)
    shaken(BertModel(BertConfig(vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                max_position_embeddings=10))).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["transformers", "BertModel"]}))
    model = load_diffusers(folder)
    one, other = (model.sample(texts_condition(text), [0], SETTINGS) for text in ("left mass", "right mass"))
    assert model._tokens("left mass").shape == (1, 10, 8) and (one - other).abs().max() > 1e-4


def test_generate_makes_a_data_set_with_the_digest_of_the_folder(text_to_image: Path, tmp_path: Path) -> None:
    made = generate(text_to_image, Request(num=2, text="small left effusion"), out=tmp_path / "made", settings={"steps": 2}, threads=1)
    again = read_dataset(tmp_path / "made")
    assert len(made) == 2 and made.facts["model_digest"] == folder_digest(text_to_image)
    assert made.facts["settings"]["guidance"] == 7.5
    for study in again.studies:
        assert study.origin == "synthetic" and study.text == "small left effusion"
        assert (study.extra["model"], study.extra["model_digest"]) == ("pipeline", folder_digest(text_to_image))
        assert read_image(again.path / study.file_name).shape == (16, 16)


def test_conditions_it_does_not_have_are_refused(text_to_image: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not conditioned on labels, which a finding asks for; it is conditioned on text"):
        generate(text_to_image, Request(finding=["Pneumothorax"]), out=tmp_path / "made")
    row = PlanRow(seed=0, labels={"Pneumothorax": Stated.PRESENT})
    with pytest.raises(UsageError, match="it takes no conditions at all"):
        Plan(rows=(row,)).condition(load_diffusers(unconditional(tmp_path / "pixels")).spec)
    assert not (tmp_path / "made").exists()


def test_load_model_finds_an_unconditional_folder(tmp_path: Path) -> None:
    DDPMPipeline(unet=pixel_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "pixels")
    images = load_model(tmp_path / "pixels").sample(None, [0, 1])
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    half = unconditional(tmp_path / "learned", out_channels=2)
    assert load_model(half).sample(None, [0], SETTINGS).shape == (1, 1, 8, 8)


def test_the_digest_depends_on_weights_and_schedule_alone(tmp_path: Path) -> None:
    folder = unconditional(tmp_path / "one")
    first = folder_digest(folder)
    (folder / "README.md").write_text("anything")
    assert folder_digest(shutil.copytree(folder, tmp_path / "two")) == first
    scheduler("v_prediction").save_pretrained(tmp_path / "two" / "scheduler")
    assert folder_digest(tmp_path / "two") != first
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert folder_digest(folder) != first


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_class_embeds": 3}, r"more than timestep and text \(num_class_embeds\)"),
    ({"in_channels": 2}, "sees 2 channels where 1 or 3 are denoised"),
    ({"sample_size": (8, 16)}, r"size \[8, 16\], and images are square"),
    ({"out_channels": 3}, "sees 1 channels and gives 3"),
    ({"time_embedding_type": "fourier"}, "embeds timesteps as 'fourier'"),
])
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_diffusers(unconditional(tmp_path / "pipeline", **changes))


def test_an_unknown_noise_schedule_is_refused(tmp_path: Path) -> None:
    DDPMPipeline(unet=pixel_unet(), scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="scheduler FlowMatchEulerDiscreteScheduler has no noise schedule that is known"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(("index", "message"), [
    ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]},
     r"a pipeline of class LDMPipeline with vqvae VQModel, unet UNet2DModel; supported are text-to-image"),
    ({"_class_name": ["pipeline", "Mine"], "unet": ["unet", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}, "class .*Mine"),
    ({"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "NoScheduler"]}, "no such class"),
    ({"_class_name": "Empty"}, "class Empty with no parts"),
    ([], "is not what diffusers writes"),
])
def test_other_pipelines_are_refused_by_name(tmp_path: Path, index: Any, message: str) -> None:
    folder = unconditional(tmp_path / "pipeline")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        load_diffusers(folder)


def test_broken_and_missing_weights_are_refused(text_to_image: Path, tmp_path: Path) -> None:
    folder = unconditional(tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="unet UNet2DModel cannot be read"):
        load_diffusers(folder)
    weights.unlink()
    with pytest.raises(InputError, match="unet UNet2DModel cannot be read"):
        load_diffusers(folder)
    cut = shutil.copytree(text_to_image, tmp_path / "cut-text")
    weights = cut / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="text_encoder CLIPTextModel cannot be read"):
        load_diffusers(cut)
    lacking = shutil.copytree(text_to_image, tmp_path / "lacking")
    settings = json.loads((lacking / "text_encoder" / "config.json").read_text())
    (lacking / "text_encoder" / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match="text_encoder CLIPTextModel lacks weights, such as"):
        load_diffusers(lacking)
    shutil.rmtree(lacking / "text_encoder")
    with pytest.raises(InputError, match="text_encoder CLIPTextModel: the folder has no such part"):
        load_diffusers(lacking)


class Harmful:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_read_without_running_what_is_in_them(tmp_path: Path) -> None:
    folder = unconditional(tmp_path / "new")
    old = tmp_path / "old"
    DDIMPipeline(unet=pixel_unet(), scheduler=scheduler()).save_pretrained(old, safe_serialization=False)
    weights = old / "unet" / "diffusion_pytorch_model.bin"
    assert weights.exists() and folder_digest(old) != folder_digest(folder)
    torch.testing.assert_close(load_model(old).sample(None, [0], SETTINGS), load_model(folder).sample(None, [0], SETTINGS))
    torch.save({"conv_in.weight": Harmful(tmp_path / "harm")}, weights)
    with pytest.raises(InputError, match="unet UNet2DModel cannot be read"):
        load_diffusers(old)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_library_is_named(text_to_image: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf'needs {library}; pip install "synthorax\[diffusers\]"'):
        load_model(text_to_image)
