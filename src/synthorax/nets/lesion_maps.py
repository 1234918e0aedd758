"""Lesions given by numbers, drawn as soft spots: a network learns a place far sooner from a map than from an embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthorax.protocols import LESION_PROPERTIES

USUAL_SIZE, USUAL_SEVERITY = 0.3, 0.5  # stand in for what is not stated; the embedding says that it is not
RADIUS = 0.5 / math.sqrt(math.pi)  # of a disc of size 1, which covers a quarter of the image, in parts of the image's side
SIDE_SOFTNESS = 0.05  # of the image's width
BAND = 0.12  # of the image's height: about a third of the lungs
MAPS = 3


def lesion_maps(lesions: Tensor, sides: tuple[int, int]) -> Tensor:
    """Place, severity and size of each finding as maps: lesions [B, K, P] in [0, 1] or NaN, (H, W) -> [B, 3 K, H, W] in [0, 1].

    A stated centre is a Gaussian spot as wide as the stated size; a side alone is that half of the image, a height alone a band across it,
    and both where they meet; what has none of these is 0. The other maps of a finding are the first one times its severity, and times its
    size. Image coordinates: the patient's left is on the right.
    """
    left, size, severity, x, y = (lesions[:, :, LESION_PROPERTIES.index(name), None, None] for name in
                                  ("left", "size", "severity", "x", "y"))  # each [B, K, 1, 1]
    height, width = sides
    rows = (torch.arange(height, device=lesions.device) + 0.5)[:, None] / height
    columns = (torch.arange(width, device=lesions.device) + 0.5)[None, :] / width
    radius = (RADIUS * size.nan_to_num(USUAL_SIZE)).clamp(min=1 / min(sides))
    distance = (columns - x.nan_to_num(0.5)) ** 2 + (rows - y.nan_to_num(0.5)) ** 2
    spot = torch.exp(-0.5 * distance / radius**2)
    half = torch.sigmoid((columns - 0.5) * (2 * left.nan_to_num(0.5) - 1) / SIDE_SOFTNESS).expand_as(spot)
    band = torch.exp(-0.5 * ((rows - y.nan_to_num(0.5)) / BAND) ** 2).expand_as(spot)
    sided, level = ~left.isnan(), ~y.isnan()
    region = torch.where(sided, half, 1.0) * torch.where(level, band, 1.0)
    place = torch.where(level & ~x.isnan(), spot, torch.where(sided | level, region, 0.0))
    return torch.cat([place, place * severity.nan_to_num(USUAL_SEVERITY), place * size.nan_to_num(USUAL_SIZE)], dim=1)
