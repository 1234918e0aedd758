"""What is asked of `generate`: the images, and how they are drawn. Importing this file imports neither pydantic nor torch.

The docstring of a field is the help of its option on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from annotated_types import Le

from synthorax.bounds import AtLeastOne, Finite, Fraction, NotNegative, one_of

Box = tuple[float, float, float, float]
"""left, top, width and height, in fractions of the image's sides"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What every image of a generation is to show. What is empty or NaN is not asked for."""

    finding: Sequence[str] = ()
    """findings to show"""
    without: Sequence[str] = ()
    """findings to be absent"""
    uncertain: Sequence[str] = ()
    """findings of which a reader would not be sure"""
    view: str = ""
    sex: str = ""
    age: float = math.nan
    """in years"""
    site: str = ""
    text: str = ""
    mask: Sequence[tuple[str, str | Path]] = ()
    """class (organ or finding; empty for the one finding) and path of each mask"""
    box: Sequence[tuple[str, Box]] = ()
    """finding (empty for the one finding) and left, top, width, height of each box, in parts of the image"""
    side: str = ""
    """of the one finding: the patient's left or right"""
    size: float = math.nan
    """of the one finding, 0 to 1"""
    severity: float = math.nan
    """of the one finding, 0 to 1"""
    at: tuple[float, float] | None = None
    """centre of the one finding in parts of the image's width and height"""

    def stated(self) -> list[str]:
        """Names of the fields that ask for anything."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return [name for name, value in values.items()
                if value is not None and (not math.isnan(value) if isinstance(value, int | float) else len(value) > 0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How images are drawn from a model; families that have no sampler refuse another `sampler` than the default."""

    sampler: Annotated[str, one_of("synthorax.diffusion.samplers:SAMPLERS")] = "dpmpp-2m"
    """name in `diffusion.samplers.SAMPLERS`"""
    steps: Annotated[AtLeastOne, Le(1000)] = 24
    """noise levels visited"""
    schedule: Annotated[str, one_of("synthorax.diffusion.noise:SCHEDULES")] = "karras"
    """how the noise levels fall: a name in `diffusion.noise.SCHEDULES`"""
    eta: Fraction | None = None
    """fresh noise of samplers that can do with or without (ddim, euler-a), in parts of what the ancestral sampler adds; None: as usual"""
    guidance: Finite = 1.5
    """classifier-free guidance weight of every part that has none of its own; 1 is none"""
    part_guidance: Mapping[Annotated[str, one_of("synthorax.protocols:PARTS")], Finite] = field(default_factory=dict)
    """weights of single parts of the condition, by their names in `PARTS`"""
    guidance_from: NotNegative = 0.0
    """lowest noise level at which guidance acts"""
    guidance_to: NotNegative = 1e6
    """highest noise level at which guidance acts"""
    autoguidance: Finite = 1.0
    """weight of guidance away from the weaker model that is packed beside a cascade's first stage; 1 is none"""
    conditioning_noise: NotNegative | None = None
    """noise added to the image that the part image shows, which the network is told; None: as the model was made"""
    super_resolution_steps: Annotated[AtLeastOne, Le(1000)] | None = None
    """noise levels visited by every stage of a cascade after the first; None: as the cascade was packed"""
    clip: bool = False
    """hold what is expected at every noise level within the greys of an image, [-1, 1] (as the code of Ho et al. 2020 does); for diffusion
    in pixels, most of all where noise is predicted"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.guidance_from > self.guidance_to:
            yield "guidance_from", f"{self.guidance_from:g} is above guidance_to, {self.guidance_to:g}"
