"""Findings by masked diffusion: a model samples the inside of a region again, and what it changes there is brought back to the host.

At every noise level the estimate of the clean image is the model's inside the region and the host's outside, so the model sees the host
while it samples, and ends on it. It starts from noise, or from the host with the finding's physics template (SDEdit, Meng et al. 2022). A
cascade does so stage by stage. Only the difference from the host, times a weight that is 0 beyond the rim, is added to the host's own
pixels: its resolution, its bits, and every pixel outside stay.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from synthorax.bounds import AtLeastOne, Finite, NotNegative, Positive
from synthorax.capabilities import Cascade, Denoise, Resampler
from synthorax.data.lesions import measure_lesion
from synthorax.editing.insertion.frame import Frame
from synthorax.editing.insertion.insertion import Insertion, Pixels, box_of, check_host, check_mask, digest_of
from synthorax.editing.insertion.nodules import rim_px
from synthorax.editing.insertion.seams import seam_ratio
from synthorax.errors import InputError, UsageError, nearest
from synthorax.protocols import COARSE, EXACT, Condition, Model, ModelSpec, SampleSettings, encode_attributes
from synthorax.rng import derive
from synthorax.types import Lesion, Study


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionOptions:
    """How the inside of the region is sampled."""

    level: NotNegative = 0.3
    """noise level from which the host with the template is sampled again; 0, or no template: from pure noise"""
    steps: AtLeastOne = 24
    """noise levels visited by the first stage"""
    guidance: Finite = 2.0
    """classifier-free guidance weight of the first stage"""
    margin: NotNegative = 0.01
    """width of the rim beyond the region in which the change fades out, in parts of the image's longer side"""
    detail_px: NotNegative = 2.0
    """standard deviation of the blur, in pixels of the model, above which structures are the model's where it starts from a template; finer
    ones, such as ribs and a pleural line, stay those of host and template. 0: all is the model's"""
    outline: Literal["none", "box", "exact"] = "none"
    """what to tell a model with masks of the region: nothing, its box, or its outline; only what it learned, else it makes textures"""
    severity: Positive | None = None
    """severity to ask for, from 0 to 1, of models that are conditioned on it"""


def insert_by_diffusion(host: Pixels, *, finding: str, region: NDArray[Any], model: Model, seed: int, study: Study | None = None,
                        template: NDArray[Any] | None = None, options: DiffusionOptions | None = None) -> Insertion:
    """Let a diffusion model or a cascade make a finding inside a region [H, W] of a host [H, W] of 8 or 16 bits (white is dense).

    The request states the finding, the region and, from `study`, the host's view, sex and age. `template` [H, W] is the host with the
    finding drawn in, from which to start. The mask is the region. Raises InputError for a finding that the model does not know
    and UsageError for a model that is no diffusion model in pixels.
    """
    options = options or DiffusionOptions()
    check_host(host)
    inside = check_mask(region, host, name="the region")
    stages = stages_of(model)
    weight = rim_weight(inside, rim=math.ceil(options.margin * max(host.shape)))
    image: Tensor | None = None
    for number, (stage, settings) in enumerate(zip(stages, settings_of(model, options), strict=True)):
        frame = Frame.of(host, size=stage.spec.image_size)
        known = torch.from_numpy(frame.model_image(host))[None, None]
        soft = torch.from_numpy(np.clip(frame.shrunk(weight), 0, 1))[None, None]
        asked = request(stage.spec, finding, frame.shrunk(inside), study=study, severity=options.severity, outline=options.outline,
                        image=image)

        def held(denoise: Denoise, soft: Tensor = soft, known: Tensor = known) -> Denoise:
            return lambda x, sigma: soft.to(x) * denoise(x, sigma) + (1 - soft.to(x)) * known.to(x)

        own = derive(seed, "insertion", number)
        if number == 0 and template is not None and options.level > 0:
            start = torch.from_numpy(frame.model_image(template))[None, None]
            image = stage.resample(start, asked, [own], settings, level=options.level, change=held).float().cpu()
        else:
            image = stage.sample(asked, [own], settings, change=held).float().cpu()
    assert image is not None
    base = host.astype(np.float64)
    change = (soft * (image - known))[0, 0].numpy()
    if template is not None and options.level > 0 and options.detail_px > 0:
        base = np.asarray(template, dtype=np.float64)
        change = gaussian_filter((soft * (image - torch.from_numpy(frame.model_image(template))))[0, 0].numpy(), options.detail_px)
    made = base + frame.host_change(change) * weight
    rng = np.random.default_rng(derive(seed, "rounding"))
    rounded = np.floor(made + rng.random(host.shape)).clip(0, np.iinfo(host.dtype).max)
    touched = (weight > 0) | (base != host)
    pixels = host.copy()
    pixels[touched] = rounded[touched].astype(host.dtype)
    change = made - host
    mask = np.where(inside, np.uint8(255), np.uint8(0))
    record = {"method": "diffusion", "finding": finding, "seed": seed, "options": asdict(options), "rim_px": rim_px(touched, inside),
              "start": "noise" if template is None or options.level == 0 else "template", "model_px": [s.spec.image_size for s in stages],
              "peak_levels": float(np.abs(change).max()), "mean_levels": float(change[inside].mean()), "white": frame.white,
              "seam": seam_ratio(host, pixels), "host": digest_of(host), "region": digest_of(inside),
              "template": "" if template is None else digest_of(np.asarray(template))}
    return Insertion(pixels=pixels, mask=mask, box=box_of(mask), record=record)


def stages_of(model: Model) -> list[Resampler]:
    """The diffusion models that a model consists of, the first of which makes small images. UsageError for other models."""
    stages = []
    for stage in model.stages if isinstance(model, Cascade) else [model]:
        if not isinstance(stage, Resampler) or stage.spec.config.get("compressor", "none") != "none":
            raise UsageError(f"masked diffusion needs a diffusion model in pixels, and one of family '{model.spec.family}' is given")
        stages.append(stage)
    return stages


def settings_of(model: Model, options: DiffusionOptions) -> list[SampleSettings]:
    """How each stage is sampled: the first as the options say, the others as the cascade was packed."""
    first = SampleSettings(steps=options.steps, guidance=options.guidance)
    return [first, *(SampleSettings(**own) for own in model.spec.config.get("settings", ()))] if isinstance(model, Cascade) else [first]


def rim_weight(region: NDArray[np.bool_], *, rim: int) -> NDArray[np.float64]:
    """How much of a change counts, [H, W]: 1 in the region, half a cosine down to 0 at `rim` pixels from it."""
    distance = distance_transform_edt(~region)
    return np.asarray(np.cos(math.pi / 2 * np.clip(distance / (rim + 1), 0, 1)) ** 2 * (distance <= rim))


def request(spec: ModelSpec, finding: str, region: NDArray[np.float32], *, study: Study | None = None, severity: float | None = None,
            outline: str = "none", image: Tensor | None = None) -> Condition:
    """What is asked of one stage: the finding present, its place, and who the host is; the rest is not stated.

    `region` is [S, S] in [0, 1], `outline` what is said of it as a mask, `image` what the stage before made, [1, 1, s, s].
    """
    if finding not in spec.findings:
        raise InputError(f"the model does not know '{finding}'", remedy=nearest(finding, spec.findings))
    column = spec.findings.index(finding)
    labels = torch.full((1, len(spec.findings)), math.nan)
    labels[0, column] = 1.0
    attributes = torch.tensor([encode_attributes(study or Study(file_name=""), sites=spec.sites)], dtype=torch.float32)
    covered = np.clip(region, 0, 1)
    lesion = measure_lesion(Lesion(finding=finding), np.rint(255 * (covered > 0.5)).astype(np.uint8))
    lesions = torch.full((1, len(spec.findings), 5), math.nan)
    left = {"left": 1.0, "right": 0.0}.get(lesion.side, math.nan)
    lesions[0, column] = torch.tensor([left, lesion.size, math.nan if severity is None else severity, lesion.x, lesion.y])
    mask = None
    if finding in spec.masks and outline != "none":
        mask = torch.full((1, len(spec.masks), *region.shape), math.nan)
        rows, columns = (cast(NDArray[np.bool_], (covered > 0.5).any(axis=axis)) for axis in (1, 0))
        values = EXACT * covered if outline == "exact" else COARSE * np.outer(_span(rows), _span(columns))
        mask[0, spec.masks.index(finding)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    parts = spec.conditions
    return Condition(labels=labels, attributes=attributes, lesions=lesions if "lesions" in parts else None,
                     mask=mask if "mask" in parts else None, image=image)


def _span(line: NDArray[np.bool_]) -> NDArray[np.float32]:
    """1 from the first to the last true value of a line, 0 elsewhere."""
    at = np.nonzero(line)[0]
    span = np.zeros(len(line), np.float32)
    if len(at):
        span[at[0]:at[-1] + 1] = 1
    return span
