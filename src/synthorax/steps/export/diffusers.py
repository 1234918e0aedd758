"""Export of a diffusion model as a folder that diffusers loads, where its network is one that diffusers has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from synthorax import __version__
from synthorax.diffusion.noise import TRAINED_STEPS, NoiseSchedule, ddpm_sigmas
from synthorax.errors import UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.files import write_atomic, write_json
from synthorax.folders import claimed
from synthorax.nets.attention import SelfAttention
from synthorax.nets.unet import Block, Downsample, UNet, Upsample
from synthorax.progress import Progress, quiet
from synthorax.protocols import Condition

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""Our parameterisations of a variance-preserving state, and the names that diffusers has for them."""
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_BITS = 10  # enough to tell 1,000 timesteps apart
_STEEP = 64.0  # SiLU(64) is 64 and SiLU(-64) is 0, to the last bit of float32
_FOLDED = ("attributes", "labels", "lesions")


def export_diffusers(model: DiffusionModel, out: Path, *, condition: Condition | None = None, asked: str = "",
                     noise_schedule: NoiseSchedule = "linear", clip: bool = False, progress: Progress = quiet) -> Path:
    """Write `model` as a DDIMPipeline of diffusers with a UNet2DModel, and return `out`; the network is the same function.

    Such a pipeline is conditioned on nothing but timesteps, so what a model of ours can be asked for is fixed here: by `condition`, one row
    of attributes, labels and lesions, which `asked` says in words, or by None for nothing in particular. The timesteps are those of
    `noise schedule`, and `clip` is `SampleSettings.clip`. A learned variance is left out. diffusers need not be installed. Raises
    UsageError that names every reason for which a network does not fit, and InputError for an `out` that holds something else.

    >>> export_diffusers(load_model("runs/a"), Path("diffusers"))  # doctest: +SKIP
    """
    if problems := misfits(model, condition):
        raise UsageError(f"this model does not fit a UNet2DModel of diffusers: {'; '.join(problems)}")
    progress(0.0, "converting the weights")
    config, tensors = unet_config(model), unet_weights(model, condition, noise_schedule=noise_schedule)
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": TRAINED_STEPS, "beta_start": 1e-4, "beta_end": 0.02,
                 "beta_schedule": _SCHEDULES[noise_schedule], "prediction_type": _prediction(model), "clip_sample": clip,
                 "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    index = {"_class_name": "DDIMPipeline", "scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    weights = save(tensors, {"format": "pt"})
    inputs = {"weights": hashlib.sha256(weights).hexdigest(), "network": config, "scheduler": scheduler, "condition": asked}
    with claimed(out, kind="a model for diffusers", inputs=inputs) as folder:
        progress(0.5, "writing")
        if not folder.done:
            write_atomic(folder.work / "unet" / "diffusion_pytorch_model.safetensors", weights)
            write_json(folder.work / "unet" / "config.json", config)
            write_json(folder.work / "scheduler" / "scheduler_config.json", scheduler)
            write_atomic(folder.work / "README.md", _card(model, asked))
            write_json(folder.work / "model_index.json", index)
            folder.deliver(last=("model_index.json",))
    progress(1.0, "written")
    return out


def misfits(model: DiffusionModel, condition: Condition | None = None) -> list[str]:
    """Every reason for which diffusers has no network that is the same function, in words; empty where it has one."""
    c, network = model.config, model.network
    if not isinstance(network, UNet):
        return [f"its network is a {c.network}, not a U-Net"]
    shape, problems = network.config, []
    groups = sorted({layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)})
    averages = any(isinstance(layer, Downsample) and layer.average for layer in network.modules())
    stated = [] if condition is None else [part for part in ("mask", "text", "image") if bool(condition.stated(part).any())]
    if c.distilled is not None and c.distilled.steps:
        problems.append(f"it is sampled in {c.distilled.steps} steps of its own, which no scheduler there takes (export its teacher)")
    if c.compressor != "none":
        problems.append(f"it works on the latents of '{c.compressor}' (train with model.compressor=none)")
    if shape.context:
        problems.append("it is conditioned on text (train without the part text)")
    if c.detail_sigma_data:
        problems.append("it sees images in bands of detail")
    if shape.patch != 1:
        problems.append(f"it folds {shape.patch} x {shape.patch} pixels into channels (train with model.patch=1)")
    if averages:
        problems.append("it halves by averaging (train with model.resample=strided)")
    if shape.coordinates:
        problems.append("it takes coordinates (train with model.coordinates=false)")
    if not shape.middle_attention:
        problems.append("it has no attention at its lowest resolution (train with model.middle_attention=true)")
    if c.centred:
        problems.append("it adds to an enlarged image (train with model.centred=false)")
    if len(groups) > 1:
        problems.append(f"its group normalisations have {', '.join(map(str, groups))} groups, and all must have as many "
                        "(train with model.channels a multiple of 32, 128 or more)")
    if _head_width(network) == 0:
        problems.append("the heads of its attention differ in width from level to level")
    if shape.channels * shape.multipliers[0] < _BITS:
        problems.append(f"it begins with fewer than {_BITS} feature maps")
    if _prediction(model) == "":
        problems.append(f"its network gives '{c.parameterisation}' (train with model.parameterisation one of {', '.join(PREDICTIONS)})")
    if stated:
        problems.append(f"the condition states {' and '.join(stated)}, which cannot become a part of the network")
    if condition is not None and len(condition) != 1:
        problems.append(f"the condition has {len(condition)} rows, and one can be asked for")
    return problems


def unet_config(model: DiffusionModel) -> dict[str, Any]:
    """Settings of the UNet2DModel that the network of `model` is."""
    network = _unet(model)
    shape = network.config
    channels = model.compressor.channels
    groups = next(layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm))
    return {"_class_name": "UNet2DModel", "sample_size": model.config.image_size, "in_channels": channels, "out_channels": channels,
            "block_out_channels": [shape.channels * m for m in shape.multipliers], "layers_per_block": shape.blocks,
            "down_block_types": ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.attention],
            "up_block_types": ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(shape.attention)],
            "attention_head_dim": _head_width(network), "norm_num_groups": groups, "attn_norm_num_groups": groups,
            "norm_eps": network.last[0].eps, "resnet_time_scale_shift": "scale_shift", "dropout": shape.dropout,
            "time_embedding_type": "learned", "time_embedding_dim": _time_width(network), "num_train_timesteps": TRAINED_STEPS}


@torch.no_grad()
def unet_weights(model: DiffusionModel, condition: Condition | None = None, *, noise_schedule: NoiseSchedule = "linear") -> dict[str,
                                                                                                                                 Tensor]:
    """Weights of that UNet2DModel, by diffusers' names."""
    network, channels = _unet(model), model.compressor.channels
    sign = -1.0 if model.config.parameterisation == "edm" else 1.0
    tensors = {f"time_embedding.{name}": value for name, value in _table(_embedded(model, condition, noise_schedule), network).items()}
    tensors["time_proj.weight"] = torch.nn.functional.pad(_codes(), (0, network.first.out_channels - _BITS))
    # Planes of masks and images that are not stated are 0; so their weights do not matter.
    tensors |= _layer(network.first, "conv_in") | {"conv_in.weight": network.first.weight[:, :channels]}
    for where, layer in _placed(network):
        if isinstance(layer, Block):
            tensors |= _resnet(layer, where.format("resnets"), width=_time_width(network))
            if isinstance(layer.attention, SelfAttention):
                tensors |= _attention(layer.attention, where.format("attentions"))
        else:
            tensors |= _layer(layer.conv, f"{where}.conv")
    norm, _, last = network.last
    tensors |= _layer(norm, "conv_norm_out") | {name: sign * value[:channels] for name, value in _layer(last, "conv_out").items()}
    return {name: value.detach().float().cpu().clone().contiguous() for name, value in tensors.items()}


def _placed(network: UNet) -> Iterator[tuple[str, Any]]:
    """Each block and each change of resolution with the place where diffusers has it; `{}` is resnets or attentions."""
    for way, layers, changes in (("down_blocks", network.down, "downsamplers"), ("up_blocks", network.up, "upsamplers")):
        level = number = 0
        for layer in layers:
            if isinstance(layer, Downsample | Upsample):
                yield f"{way}.{level}.{changes}.0", layer
                level, number = level + 1, 0
            else:
                yield f"{way}.{level}.{{}}.{number}", layer
                number += 1
    for number, layer in enumerate(network.middle):
        yield f"mid_block.{{}}.{number}", layer


def _resnet(block: Block, where: str, *, width: int) -> dict[str, Tensor]:
    tensors = (_layer(block.norm_in, f"{where}.norm1") | _layer(block.conv_in, f"{where}.conv1") | _layer(block.norm_out, f"{where}.norm2")
               | _layer(block.conv_out, f"{where}.conv2") | _layer(block.skip, f"{where}.conv_shortcut")
               | _layer(block.affine, f"{where}.time_emb_proj"))
    missing = width - block.affine.in_features  # the embedding is followed by zeros
    return tensors | {f"{where}.time_emb_proj.weight": torch.nn.functional.pad(block.affine.weight, (0, missing))}


def _attention(attention: SelfAttention, where: str) -> dict[str, Tensor]:
    tensors = _layer(attention.norm, f"{where}.group_norm") | _layer(attention.project, f"{where}.to_out.0")
    for key, joined in _layer(attention.qkv, "").items():
        tensors |= {f"{where}.to_{name}{key}": part for name, part in zip("qkv", joined.chunk(3), strict=True)}
    return {name: value.flatten(1) if value.ndim > 1 else value for name, value in tensors.items()}  # 1 x 1 convolutions are linear layers


def _layer(layer: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in layer.state_dict().items()}


def _embedded(model: DiffusionModel, condition: Condition | None, noise_schedule: NoiseSchedule) -> Tensor:
    """What the blocks of the network are conditioned on at each timestep, [T, E]: the noise level and the condition."""
    network = _unet(model)
    device = network.first.weight.device
    sigma = ddpm_sigmas(noise_schedule).float().to(device)
    embedded: Tensor = network.noise(model.scalings(sigma, sigma_data=model.sigma_data).c_noise)
    for part in _FOLDED:
        value = None if condition is None else getattr(condition, part)
        if part in model.embeddings and value is not None:
            embedded = embedded + model.embeddings[part](value.to(device))
    return embedded


def _codes() -> Tensor:
    """The number of each timestep in signs, [T, bits] of -1 and 1."""
    return ((torch.arange(TRAINED_STEPS)[:, None] >> torch.arange(_BITS)) % 2 * 2 - 1).float()


def _table(rows: Tensor, network: UNet) -> dict[str, Tensor]:
    """A layer, SiLU and a layer that turn the code of timestep t into row t of `rows` [T, E], to the last bit.

    diffusers' frequencies are not ours. Unit s of the hidden layer sums 64 for each sign that its own code shares with the input, less
    64 for each that differs, less 64 (bits - 1): SiLU makes 64 of it for t = s and 0 for every other.
    """
    width, codes = _time_width(network), _codes().to(rows)
    first, bias = rows.new_zeros(width, network.first.out_channels), rows.new_full((width,), -_STEEP * _BITS)
    first[:TRAINED_STEPS, :_BITS] = _STEEP * codes
    bias[:TRAINED_STEPS] = -_STEEP * (_BITS - 1)
    second = rows.new_zeros(width, width)
    second[: rows.shape[1], :TRAINED_STEPS] = rows.T / _STEEP
    return {"linear_1.weight": first, "linear_1.bias": bias, "linear_2.weight": second, "linear_2.bias": rows.new_zeros(width)}


def _time_width(network: UNet) -> int:
    return max(TRAINED_STEPS, network.config.embedding)


def _head_width(network: UNet) -> int | None:
    """Channels of every attention head, None for one head that has all channels, 0 where neither holds."""
    layers = [layer for layer in network.modules() if isinstance(layer, SelfAttention)]
    widths = {layer.project.out_channels // layer.heads for layer in layers}
    if len(widths) == 1:
        return widths.pop()
    return None if all(layer.heads == 1 for layer in layers) else 0


def _prediction(model: DiffusionModel) -> str:
    """What diffusers calls the network's output; that of "edm" is -v where the data have unit variance."""
    if model.config.parameterisation == "edm" and model.sigma_data == 1:
        return "v_prediction"
    return PREDICTIONS.get(model.config.parameterisation, "")


def _unet(model: DiffusionModel) -> UNet:
    assert isinstance(model.network, UNet)
    return model.network


def _card(model: DiffusionModel, asked: str) -> str:
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# Synthetic chest radiographs

Generator of {model.config.image_size} px chest radiographs. For research; not a medical device. Its images are synthetic and belong to no
patient: mark them as such wherever they go. One grey channel in [-1, 1], bone bright.

- Exported by synthorax {__version__}; `DDIMPipeline.from_pretrained(folder)` loads it.
- Asked of every image: {asked or "nothing in particular"}. Nothing else can be asked of this copy.
- Use schedulers with whole timesteps, such as DDIM and DDPM: the network has a table with a row for each of the {TRAINED_STEPS}, and none
  in between.
"""
