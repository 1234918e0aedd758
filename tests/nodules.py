"""Made-up banks of lesions in CT, and a model of volumes that has learned nothing, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from synthorax.data.nodule_bank import CtLesion
from synthorax.families.denoising.volumes import VolumeDiffusionModel
from trainings import fresh_objective, smallest

LUNG_HU, TISSUE_HU = -850.0, 40.0


def ball(diameter_mm: float, *, hounsfield: float = TISSUE_HU, vessel: bool = False, scan: str = "scan", seed: int = 0) -> CtLesion:
    """A ball in noisy lung, voxels of 1 mm, 6 mm of lung around it; perhaps with a vessel beside it that is not in the mask."""
    side = int(diameter_mm) + 14
    grid = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij"))
    inside = np.sqrt((grid**2).sum(0)) < diameter_mm / 2
    units = np.where(inside, hounsfield, LUNG_HU) + np.random.default_rng(seed).normal(0, 10, inside.shape)
    if vessel:
        units[(np.abs(grid[1]) < 1.5) & (np.abs(grid[2]) < 1.5) & (grid[0] > diameter_mm / 2 + 1)] = TISSUE_HU
    return CtLesion(hounsfield=units.astype(np.float32), mask=inside, spacing_mm=(1.0, 1.0, 1.0), scan=scan,
                    name=f"ball of {diameter_mm:g}")


def bank_of(lesions: list[CtLesion]) -> dict[str, np.ndarray]:
    """The arrays of a bank in one file."""
    return {"hounsfield": np.concatenate([lesion.hounsfield.ravel() for lesion in lesions]).astype(np.int16),
            "mask": np.packbits(np.concatenate([lesion.mask.ravel() for lesion in lesions])),
            "shapes": np.array([lesion.mask.shape for lesion in lesions], dtype=np.int16),
            "scan": np.array([lesion.scan for lesion in lesions])}


def write_bank(path: Path, *, num: int = 12) -> Path:
    """A bank of balls of 5 to 16 mm, two a scan."""
    np.savez(path, **bank_of([ball(5.0 + number, scan=f"scan{number // 2}", hounsfield=TISSUE_HU - 300 * (number % 2), seed=number)
                              for number in range(num)]))
    return path


def untrained_volumes() -> VolumeDiffusionModel:
    """The smallest model of volumes, biased so that something is inside, because it has learned nothing."""
    model = fresh_objective(smallest("volume-diffusion")).model.eval()
    assert isinstance(model, VolumeDiffusionModel)
    torch.nn.init.constant_(model.network.last[2].bias, 0.3)  # type: ignore[arg-type]
    return model
