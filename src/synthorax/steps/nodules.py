"""Lesions from a model of volumes: each with the diameter that was asked for, one connected body, turned at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from synthorax.data.lesion_grid import RIM_MM
from synthorax.data.lesion_shape import main_body
from synthorax.data.lesion_units import DIAMETERS_MM, MEASUREMENTS, QUANTITIES, diameter_unit, from_unit_volume
from synthorax.errors import InputError, UsageError, nearest
from synthorax.physics.volumes import LesionVolume, random_rotation, resampled
from synthorax.progress import Progress, progress_line
from synthorax.protocols import Condition, Model, SampleSettings, as_model
from synthorax.rng import derive
from synthorax.steps.models.recipe import makes_volumes
from synthorax.steps.models.trained_model import ModelLike, open_model

MARGINS = {"smooth": 0.15, "lobulated": 0.35, "spiculated": 0.6}
"""names of margins: 0 is a sphere, 1 has twice the surface of the sphere of its volume"""
_AT_MM = (5.0, 9.0, 16.0, 25.0)
SOLIDITIES = {"ground-glass": (0.0, 0.0, 0.0, 0.0), "part-solid": (0.05, 0.11, 0.23, 0.28), "solid": (0.28, 0.39, 0.58, 0.69)}
"""names of densities: share of the volume above -160 HU at diameters of 5, 9, 16 and 25 mm. Partial volume leaves a small solid nodule few
voxels above it, so these are none, half of the median, and the upper quartile of the training nodules of that size."""
RIM = (0.576, 0.242, 0.087, 0.0)
"""most that partial volume leaves outside the surface, at `RIM_MM`, in parts of the median inside; measured on the shipped model's bank"""
FAINTEST = 0.01
BATCH = 8
Named = float | str | None


def sample_nodules(model: ModelLike | Model, *, diameters_mm: Sequence[float], seeds: Sequence[int],
                   solidity: Named | Sequence[Named] = None, margin: Named | Sequence[Named] = None,
                   settings: SampleSettings | None = None, progress: Progress | None = None) -> list[LesionVolume]:
    """One lesion a diameter and seed, from a model of the recipe `nodule-3d` or the shipped one of that name.

    The diameter is that of the sphere of the lesion's volume, and is met exactly. `solidity` is the share of the volume above -160 HU, or
    ground-glass, part-solid or solid; `margin` goes from 0, a sphere, to 1, or is smooth, lobulated or spiculated; each is one for all, one
    a lesion, or None, which leaves it to chance. They are requests: see the study of the model for how well they are met. Voxels are a
    sixteenth of the diameter. A lesion depends on its seed and on what is asked for; the seed also decides how it is
    turned. `progress` takes the place of a line of its own on stderr.

    Raises UsageError for numbers that cannot be, and InputError where the model makes nothing that is a lesion.

    >>> sample_nodules("nodule-3d", diameters_mm=[8, 25], margin="spiculated", seeds=[0, 1])  # doctest: +SKIP
    """
    if isinstance(model, nn.Module):
        network = as_model(model)
    else:
        opened = open_model(model)  # type: ignore[arg-type]
        network, settings = opened.network, settings or opened.settings
    _check_model(network)
    diameters, count = [_diameter(value) for value in diameters_mm], len(diameters_mm)
    if len(seeds) != count:
        raise UsageError(f"{count} diameters and {len(seeds)} seeds; give one seed a lesion")
    shares = [_solidity(value, diameter) for value, diameter in zip(_each(solidity, count, "solidity"), diameters, strict=True)]
    margins = [_named(value, MARGINS, "margin") for value in _each(margin, count, "margin")]
    asked = {"diameter": [diameter_unit(diameter) for diameter in diameters], "margin": margins, "solidity": shares}
    columns = torch.tensor([asked[name] for name in network.spec.config["measurements"]], dtype=torch.float32).reshape(-1, count).T
    made = []
    with progress_line("sample-nodules") if progress is None else nullcontext(progress) as progress:
        progress(0.0, f"{count} lesions")
        for start in range(0, count, BATCH):
            rows = slice(start, min(start + BATCH, count))
            nothing = Condition.unstated(len(columns[rows]), num_labels=len(network.spec.findings), num_sites=len(network.spec.sites))
            volumes = network.sample(replace(nothing, measurements=columns[rows]), list(seeds[rows]), settings).float().cpu().numpy()
            made += [_lesion(volume, diameter, seed) for volume, diameter, seed in zip(volumes, diameters[rows], seeds[rows], strict=True)]
            progress(len(made) / count, f"{len(made)} of {count} lesions")
        progress(1.0, f"{count} lesions")
    return made


def lesion_of(volume: np.ndarray[Any, np.dtype[np.float32]], *, diameter_mm: float) -> LesionVolume:
    """A volume [2, S, S, S] of a model as a lesion of this diameter, not turned: its largest connected body and the rim around that.

    Raises InputError where nothing of it is inside.
    """
    distance, water = from_unit_volume(volume)
    if not (distance > 0).any():
        raise InputError("the model made a volume without a lesion", remedy="train it for longer, or take another seed")
    body = main_body(distance > 0)
    spacing = diameter_mm / float(np.cbrt(6 * body.sum() / math.pi))
    allowed = np.interp(-distance * spacing, RIM_MM, RIM) * float(np.median(water[body]))
    beside = ndimage.binary_dilation(body, iterations=max(1, round(RIM_MM[-1] / spacing)))  # a part that was dropped goes with its rim
    kept = np.where(body, water, np.minimum(water, allowed)) * (beside & (water > FAINTEST))
    return LesionVolume(water=kept.astype(np.float32), mask=body, spacing_mm=spacing)


def _lesion(volume: np.ndarray[Any, np.dtype[np.float32]], diameter_mm: float, seed: int) -> LesionVolume:
    plain = lesion_of(volume, diameter_mm=diameter_mm)
    turned = resampled(plain, rotation=random_rotation(np.random.default_rng(derive(seed, "turn"))))
    body = main_body(turned.mask)
    spacing = diameter_mm / float(np.cbrt(6 * body.sum() / math.pi))  # turning moves single voxels over the edge
    return LesionVolume(water=turned.water, mask=body, spacing_mm=spacing)


def _check_model(network: Model) -> None:
    config = network.spec.config
    if not makes_volumes(network.spec) or tuple(config["quantities"]) != QUANTITIES or not set(config["measurements"]) <= set(MEASUREMENTS):
        raise UsageError(f"a model of family '{network.spec.family}' makes no lesions; take one of the recipe nodule-3d")


def _diameter(value: float) -> float:
    if not (math.isfinite(value) and DIAMETERS_MM[0] <= value <= DIAMETERS_MM[1]):
        raise UsageError(f"a diameter of {value:g} mm cannot be asked for; give {DIAMETERS_MM[0]:g} to {DIAMETERS_MM[1]:g} mm")
    return float(value)


def _each(value: Named | Sequence[Named], count: int, what: str) -> list[Named]:
    if value is None or isinstance(value, str | float | int):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{count} diameters and {len(value)} values of {what}; give one for all, or one a lesion")
    return list(value)


def _named(value: Named, names: dict[str, float], what: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        if value not in names:
            raise UsageError(f"unknown {what} '{value}'; {nearest(value, names)}")
        return names[value]
    if not 0 <= value <= 1:
        raise UsageError(f"{what} {value:g} is outside 0 to 1")
    return float(value)


def _solidity(value: Named, diameter_mm: float) -> float:
    return _named(value, {name: float(np.interp(diameter_mm, _AT_MM, shares)) for name, shares in SOLIDITIES.items()}, "solidity")
