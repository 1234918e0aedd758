"""What is asked of `generate`: the images, and how they are drawn. Importing this file imports neither pydantic nor torch.

The docstring of a field is the help of its option on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from synthorax.bounds import AtLeastOne, Finite, Form, Fraction, NotNegative, one_of

Box = tuple[float, float, float, float]
"""left, top, width and height, in fractions of the image's sides"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the images of a generation are to show. What is empty or NaN is not asked for."""

    num: AtLeastOne = 16
    """number of images"""
    finding: Sequence[str] = ()
    """finding to show"""
    without: Sequence[str] = ()
    """finding to be absent"""
    uncertain: Sequence[str] = ()
    """finding to state as uncertain"""
    view: str = ""
    """view: PA, AP or LATERAL"""
    sex: str = ""
    """sex: M or F"""
    age: Annotated[float, Ge(0), Le(120)] = math.nan
    """age in years"""
    site: str = ""
    """site whose images to imitate, if the model knows several"""
    text: str = ""
    """description in English; AND and NOT in capitals combine descriptions and exclude them"""
    mask: Annotated[Sequence[tuple[str, str | Path]], Form("[CLASS=]FILE", "lung=lung.png")] = ()
    """mask of an organ or a finding: its class and a PNG; without a class, of the only finding asked for"""
    box: Annotated[Sequence[tuple[str, Box]], Form("[FINDING=]x,y,w,h", "Mass=0.6,0.3,0.2,0.2")] = ()
    """box around a finding: its name, then left, top, width and height in fractions of the image; without a name, of the only finding"""
    side: str = ""
    """side of the finding, left or right of the patient; needs exactly one finding"""
    size: Fraction = math.nan
    """size of the finding; needs exactly one"""
    severity: Fraction = math.nan
    """conspicuity of the finding, from subtle to obvious; needs exactly one"""
    at: Annotated[tuple[float, float] | None, Form("x,y", "0.7,0.4")] = None
    """centre of the finding, in fractions of the image's width and height; needs exactly one"""
    image_size: AtLeastOne | None = None
    """side in pixels that the images must have; refused if the model makes others"""

    def stated(self) -> list[str]:
        """Names of the fields that ask for anything of an image, other than its size."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("num", "image_size")}
        return [name for name, value in values.items()
                if value is not None and (not math.isnan(value) if isinstance(value, int | float) else len(value) > 0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How images are drawn from a model; families that have no sampler refuse another `sampler` than the default."""

    sampler: Annotated[str, one_of("synthorax.diffusion.samplers:SAMPLERS")] = "dpmpp-2m"
    """sampler: ddpm, ddim, euler, euler-a, heun, dpmpp-2m, dpmpp-2m-sde or unipc"""
    steps: Annotated[AtLeastOne, Le(1000)] = 24
    """number of noise levels visited"""
    schedule: Annotated[str, one_of("synthorax.diffusion.noise:SCHEDULES")] = "karras"
    """noise schedule: karras, karras-few, exponential-few, linear, cosine, flow or exponential"""
    eta: Fraction | None = None
    """fresh noise of ddim and euler-a, as a fraction of what the ancestral sampler adds"""
    guidance: Finite = 1.5
    """classifier-free guidance weight; 1 is none"""
    part_guidance: Annotated[Mapping[Annotated[str, one_of("synthorax.protocols:PARTS")], Finite], Form("PART=W", "labels=2")] = field(
        default_factory=dict)
    """guidance weight of one part of the condition: attributes, labels, lesions, mask, text or image"""
    guidance_from: NotNegative = 0.0
    """lowest noise level at which guidance acts"""
    guidance_to: NotNegative = 1e6
    """highest noise level at which guidance acts"""
    autoguidance: Finite = 1.0
    """cascade: weight of guidance away from its weaker model; 1 is none"""
    conditioning_noise: NotNegative | None = None
    """cascade: noise added to the low-resolution image that super-resolution is conditioned on"""
    super_resolution_steps: Annotated[AtLeastOne, Le(1000)] | None = None
    """cascade: number of noise levels visited by each super-resolution stage"""
    clip: bool = False
    """clip the denoised image to [-1, 1] at every step, as Ho et al. 2020 do; for diffusion in pixels"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.guidance_from > self.guidance_to:
            yield "guidance_from", f"{self.guidance_from:g} is above guidance_to, {self.guidance_to:g}"
