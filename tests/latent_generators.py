"""Generators whose images differ by latent, for tests of inversion and editing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from trainings import fresh_objective, smallest


def generator(family: str) -> nn.Module:
    """A generator whose images differ by latent: its normalisation has seen some features, and the last layer is loud."""
    model = fresh_objective(smallest(family, "model.conditioning=none")).model
    with torch.no_grad():
        if family == "gan":
            cast(Any, model).generator.last.weight.mul_(4.0)
            for seed in range(30):  # running statistics of batch normalisation
                latents = [torch.randn(64, *size, generator=torch.Generator().manual_seed(seed)) for size in cast(Any, model).latent_shapes]
                cast(Any, model.train()).decode_latents(latents, None)
    return model.eval()
