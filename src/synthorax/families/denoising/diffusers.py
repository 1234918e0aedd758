"""Models of others: a folder that diffusers saved, text-to-image in latents or unconditional in pixels, on the sampling engine of ours."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from synthorax.capabilities import Denoiser
from synthorax.diffusion.guidance import guided_by_prompts
from synthorax.diffusion.noise import alpha_bar_to_sigma, sampling_sigmas, step_between
from synthorax.diffusion.precondition import PARAMETERISATIONS, denoised_from_output
from synthorax.diffusion.samplers import Denoise, solve
from synthorax.errors import InputError, UsageError
from synthorax.files import sha256
from synthorax.protocols import Condition, ModelSpec, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws

INDEX_NAME = "model_index.json"
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""Outputs of the networks of diffusers, and our names for them."""
USUAL_GUIDANCE = 7.5
"""Default of diffusers' own text-to-image pipeline."""
SUPPORTED = ("text-to-image (unet UNet2DConditionModel, vae AutoencoderKL, text_encoder and tokenizer of transformers, scheduler) and "
             "unconditional (unet UNet2DModel, scheduler)")
HIGHEST_SIGMA = 160.0
"""Level at which sampling starts at most, the end of the linear noise schedule: others end in the tens of thousands, where no image is
left.
"""
_IGNORED = ("safety_checker", "feature_extractor")
_DARKEST = 1e-10  # less image than this in a state is none: rescaled noise schedules end in alpha_bar 0, which no finite sigma has


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseSchedule:
    """Noise schedule and parameterisation of the network, from the scheduler of a folder."""

    sigmas: Tensor
    """[T] rising, float64: the noise level of each timestep"""
    prediction: Literal["eps", "x0", "v"]
    """the network's output"""
    clip: float | None = None
    """estimates of the image are kept within this distance from 0"""


def is_diffusers_folder(path: str | Path) -> bool:
    """Whether diffusers saved a pipeline there."""
    return (Path(path) / INDEX_NAME).is_file()


def load_diffusers(folder: Path) -> DiffusersModel:
    """The model in a folder that diffusers saved; nothing is downloaded, and no code of the folder is run.

    Raises UsageError where diffusers or transformers is missing, and InputError for a folder that is broken or holds something else than
    what `SUPPORTED` names.

    >>> load_diffusers(Path("RoentGen")).sample(None, seeds=[0]).shape  # doctest: +SKIP
    torch.Size([1, 1, 512, 512])
    """
    classes = _classes(folder)
    unet = _loaded(folder, "unet", classes)
    noise_schedule = _noise_schedule(folder, classes)
    if "vae" not in classes:
        return DiffusersModel(unet, noise_schedule, file=folder)
    tokenizer = _loaded(folder, "tokenizer", classes)
    return DiffusersModel(unet, noise_schedule, vae=_loaded(folder, "vae", classes), tokenizer=tokenizer,
                          text_encoder=_loaded(folder, "text_encoder", classes), file=folder)


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the weights and of the scheduler's settings: the digest that images carry of their model."""
    files = [path for part in ("unet", "vae", "text_encoder") for path in (folder / part).glob("*")
             if path.suffix in (".safetensors", ".bin")] + [*(folder / "scheduler").glob("scheduler_config.json")]
    names = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    return hashlib.sha256("".join(f"{name}\0{names[name]}\n" for name in sorted(names)).encode()).hexdigest()


class DiffusersModel(nn.Module, Denoiser):
    """A U-Net of diffusers as a denoiser D(x; sigma, condition) of x = x0 + sigma n, in pixels or in its autoencoder's latents.

    A network that was trained on T timesteps gets a level in between by interpolation in ln sigma. Images in colour are averaged to grey.
    The one part of a condition that it may follow is text.
    """

    def __init__(self, unet: nn.Module, noise_schedule: NoiseSchedule, *, vae: nn.Module | None = None,
                 text_encoder: nn.Module | None = None,
                 tokenizer: Any = None, file: Path | None = None) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.noise_schedule = noise_schedule
        factor = 1 if vae is None else 2 ** (len(_config(vae)["block_out_channels"]) - 1)
        side = _check_networks(_config(unet), vae=vae, text_encoder=text_encoder, file=file)
        self.latent_shape = (int(_config(unet)["in_channels"]), side, side)
        """channels, height and width of what is diffused"""
        self.spec = ModelSpec(family="diffusers", image_size=side * factor, findings=(), conditions=() if vae is None else ("text",))
        self._scalings = lookup(PARAMETERISATIONS, noise_schedule.prediction, kind="parameterisation")
        self._encoded: dict[str, Tensor] = {}

    @property
    def usual_settings(self) -> SampleSettings:
        """Sampling settings where none are given."""
        return SampleSettings(guidance=USUAL_GUIDANCE) if self.spec.conditions else SampleSettings()

    @property
    def needs_image(self) -> bool:
        """Never."""
        return False

    def check_settings(self, settings: SampleSettings) -> None:
        """Raises UsageError for `clip`, which the scheduler of the folder decides."""
        if settings.clip:
            raise UsageError(f"clip is for models of family 'diffusion', and this one is of family '{self.spec.family}'; leave it out")

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean latents (or images) given noisy ones, x [B, C, h, w], sigma [B] -> [B, C, h, w]."""
        scalings = self._scalings(sigma, sigma_data=1.0)
        state, step = scalings.like(x).c_in * x, self.timestep(sigma)
        if self.text_encoder is None:
            raw = self.unet(state, step).sample
        else:
            context = torch.cat([self._tokens(text) for text in condition.text or ("",) * len(x)]).to(x)
            raw = self.unet(state, step, encoder_hidden_states=context).sample
        clean = denoised_from_output(raw[:, : x.shape[1]].to(x), x, scalings)  # what follows is a learned variance
        return clean if self.noise_schedule.clip is None else clean.clamp(-self.noise_schedule.clip, self.noise_schedule.clip)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep that stands for a noise level, [B]; levels beyond the noise schedule get its first or last timestep."""
        steps = step_between(sigma, self.noise_schedule.sigmas)
        # A network with a row of a table for each timestep knows none in between.
        return steps.round().long() if _config(self.unet).get("time_embedding_type") == "learned" else steps.to(sigma)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None, *,
               change: Callable[[Denoise], Denoise] | None = None, start: Tensor | None = None) -> Tensor:
        """One image a seed, [B, 1, H, W] in [-1, 1], with `condition`, `change` and `start` as in `DiffusionModel.sample`."""
        settings = settings or self.usual_settings
        self._encoded.clear()
        with torch.inference_mode():
            condition = Condition.unstated(len(seeds), num_labels=0) if condition is None else condition
            denoise = guided_by_prompts(self.denoise, condition.to(self._device), settings, parts=self.spec.conditions)
            draws = Draws(seeds, device=self._device)
            sigmas = sampling_sigmas(settings.schedule, settings.steps, sigma_min=self.noise_schedule.sigmas[0].item(),
                                     sigma_max=min(self.noise_schedule.sigmas[-1].item(), HIGHEST_SIGMA))
            x = draws.normal(*self.latent_shape) * sigmas[0].item() if start is None else start.to(self._device)
            latents = solve(denoise if change is None else change(denoise), x, sigmas, sampler=settings.sampler, eta=settings.eta,
                            noise=lambda: draws.normal(*self.latent_shape))
            return self.images(latents).clamp(-1, 1)

    def images(self, latents: Tensor) -> Tensor:
        """Grey images [B, 1, H, W] of latents [B, C, h, w], decoded one at a time, so that a batch changes neither memory nor rounding."""
        if self.vae is not None:
            vae: Any = self.vae
            latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
            latents = torch.cat([vae.decode(latent[None]).sample for latent in latents]).to(latents)
        return latents.mean(1, keepdim=True)

    @property
    def _device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def _tokens(self, text: str) -> Tensor:
        """Tokens of one text as the U-Net is conditioned on them, [1, T, D]; by itself, so that it does not depend on the others."""
        if text not in self._encoded:
            assert self.text_encoder is not None
            config = _config(self.text_encoder)
            longest = min(self.tokenizer.model_max_length, config.get("max_position_embeddings") or self.tokenizer.model_max_length)
            number = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if number > longest:
                raise UsageError(f"the text '{text[:60]}...' has {number} tokens, and this model reads {longest}; shorten it")
            found = self.tokenizer([text], padding="max_length", max_length=longest, truncation=True, return_tensors="pt").to(self._device)
            mask = found["attention_mask"] if config.get("use_attention_mask") else None
            with torch.inference_mode(False), torch.no_grad():  # autograd refuses tensors made in inference mode
                self._encoded[text] = self.text_encoder(found["input_ids"], attention_mask=mask)[0]
        return self._encoded[text]


def _config(network: nn.Module) -> Mapping[str, Any]:
    """The settings of a network of diffusers or transformers."""
    config: Any = network.config
    return config if isinstance(config, Mapping) else dict(config.to_dict(), hidden_size=config.hidden_size)


def _check_networks(unet: Mapping[str, Any], *, vae: nn.Module | None, text_encoder: nn.Module | None, file: Path | None) -> int:
    """Side of the U-Net's output. InputError where it needs more than timestep and text, or does not fit the other networks."""
    inputs = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
    further = [name for name in inputs if unet.get(name) is not None]
    side, channels = unet["sample_size"], unet["in_channels"]
    side = side if isinstance(side, int) or side is None or side[0] != side[1] else side[0]
    made = (1, 3) if vae is None else (_config(vae)["latent_channels"],)
    tokens = unet.get("cross_attention_dim")
    width = tokens if text_encoder is None else _config(text_encoder)["hidden_size"]
    problem = ""
    if further:
        problem = f"its U-Net needs more than timestep and text ({', '.join(further)})"
    elif unet.get("time_embedding_type", "positional") not in ("positional", "learned"):
        problem = f"its U-Net embeds timesteps as '{unet['time_embedding_type']}'"
    elif not isinstance(side, int):
        problem = f"its U-Net makes images of size {side}, and images are square and of one size here"
    elif channels not in made:
        problem = f"its U-Net sees {channels} channels where {' or '.join(map(str, made))} are denoised: it edits or completes images"
    elif unet["out_channels"] not in (channels, 2 * channels):
        problem = f"its U-Net sees {channels} channels and gives {unet['out_channels']}"
    elif isinstance(tokens, int) and tokens != width:
        problem = f"its U-Net is conditioned on tokens of {tokens} numbers, and its text encoder gives {width}"
    if problem:
        raise InputError(problem, file=file, remedy=f"supported are {SUPPORTED}")
    return int(side)


def _classes(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part of the pipeline that is used here."""
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        named = {part: value for part, value in index.items() if not part.startswith("_") and isinstance(value, list) and any(value)}
        classes = {part: (str(library), str(name)) for part, (library, name) in named.items() if part not in _IGNORED}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"is not what diffusers writes ({error})", file=path, remedy="save the pipeline again") from error
    wanted: dict[str, tuple[str, str | None]] = {"unet": ("diffusers", "UNet2DModel"), "scheduler": ("diffusers", None)}
    if len(classes) > len(wanted):
        wanted |= {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
                   "text_encoder": ("transformers", None), "tokenizer": ("transformers", None)}
    fits = classes.keys() == wanted.keys() and all(classes[part][0] == library and name in (None, classes[part][1])
                                                   for part, (library, name) in wanted.items())
    if not fits:
        found = ", ".join(f"{part} {name}" for part, (_, name) in classes.items())
        raise InputError(f"a pipeline of class {index.get('_class_name')} with {found or 'no parts'}", file=path,
                         remedy=f"supported are {SUPPORTED}")
    return classes


def _loaded(folder: Path, part: str, classes: Mapping[str, tuple[str, str]]) -> Any:
    """One part of the pipeline, loaded by its class in diffusers or transformers; networks in float32, ready to run."""
    library, name = classes[part]
    kind = getattr(_library(library), name, None)
    if not (isinstance(kind, type) and hasattr(kind, "from_pretrained")) or not (folder / part).is_dir():
        lacks = "the folder has no such part" if isinstance(kind, type) else f"{library} has no such class"
        raise InputError(f"{part} {name}: {lacks}", file=folder, remedy="save the pipeline again, or update the library")
    network = issubclass(kind, nn.Module)
    options: dict[str, Any] = {"output_loading_info": True} if network else {}
    if network and library == "diffusers":
        options["low_cpu_mem_usage"] = False
    try:
        found = kind.from_pretrained(str(folder / part), local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise InputError(f"{part} {name} cannot be read ({str(error).strip().splitlines()[0]})", file=folder / part,
                         remedy="save the pipeline again") from error
    if not network:
        return found
    module, information = found
    if information["missing_keys"]:
        raise InputError(f"{part} {name} lacks weights, such as {min(information['missing_keys'])}", file=folder / part,
                         remedy="save the pipeline again")
    return module.float().eval().requires_grad_(False)


def _noise_schedule(folder: Path, classes: Mapping[str, tuple[str, str]]) -> NoiseSchedule:
    """Noise levels and meaning of the output, from the scheduler; its own sampling steps do not matter here."""
    scheduler, name = _loaded(folder, "scheduler", classes), classes["scheduler"][1]
    prediction = scheduler.config.get("prediction_type", "epsilon")
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None or prediction not in PREDICTIONS or scheduler.config.get("timestep_type", "discrete") != "discrete":
        problem = f"the scheduler {name} with prediction type '{prediction}'" if kept is not None else f"the scheduler {name}"
        raise InputError(f"{problem} has no noise schedule that is known here", file=folder / "scheduler",
                         remedy=f"known are noise schedules of alpha_bar with one of {', '.join(PREDICTIONS)}")
    sigmas = alpha_bar_to_sigma(kept[kept > _DARKEST])
    if len(sigmas) < 2 or bool((sigmas.diff() <= 0).any()):
        raise InputError(f"the noise levels of {name} do not rise", file=folder / "scheduler", remedy="save the pipeline again")
    # A pipeline in latents never clips, whatever its scheduler says.
    clip = float(scheduler.config.get("clip_sample_range", 1.0)) if "vae" not in classes and scheduler.config.get("clip_sample") else None
    return NoiseSchedule(sigmas=sigmas, prediction=PREDICTIONS[prediction], clip=clip)  # type: ignore[arg-type]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"a folder saved by diffusers needs {name}; pip install \"synthorax[diffusers]\"") from error
