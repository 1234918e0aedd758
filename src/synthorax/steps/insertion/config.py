"""What is asked of `insert`, by field. Importing this file imports neither pydantic nor torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from synthorax.bounds import AtLeastOne, Fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertConfig:
    """How many lesions are inserted, which, and into which images. What is NaN or empty is drawn at random."""

    num: AtLeastOne | None = None
    """number of images to make; by default one of each image that can be used"""
    size: Fraction = math.nan
    """size of the lesion: twice the square root of the fraction of the image that it covers"""
    diameter_mm: Annotated[float, Ge(3), Le(300)] = math.nan
    """diameter of a nodule or mass in mm; by default drawn from 10 to 30 for nodules and from 30 to 60 for masses"""
    side: str = ""
    """side of the lesion, left or right of the patient"""
    severity: Fraction = math.nan
    """density of the lesion, from subtle to obvious; 0.5 is that which a nodule has by itself, and the middle for other findings"""
    mask: Path | None = None
    """PNG of the size of the images, white where the lesion goes; for a nodule or mass it says place and size"""
    layouts: Path | None = None
    """outlines to draw from: a dataset folder with lesion masks, or a run of the recipe layout-128; by default the model that ships"""
    spacing_mm: Annotated[float, Ge(0.01), Le(10)] = math.nan
    """side of a pixel in mm, where an image does not state it; by default estimated from the lungs"""
    assume_absent: bool = False
    """also use images that do not state whether they show the finding; you vouch that they do not"""
    tries: Annotated[int, Ge(1), Le(100)] = 4
    """attempts for one image before it is given up, each with its own seed"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.side not in ("", "left", "right"):
            yield "side", f"'{self.side}' is neither left nor right"
        stated = [name for name, given in (("size", not math.isnan(self.size)), ("diameter_mm", not math.isnan(self.diameter_mm)),
                                           ("mask", self.mask is not None)) if given]
        if len(stated) > 1:
            yield stated[1], f"{' and '.join(stated)} each say how large the lesion is; give one of them"
        if self.mask is not None and self.layouts is not None:
            yield "layouts", "the mask says where the lesion goes; leave out one of the two"
