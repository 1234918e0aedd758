"""Fixtures that several files need."""

from __future__ import annotations

import pytest
import torch

from synthorax.engine import Engine


@pytest.fixture
def engine() -> Engine:
    """One process on the CPU in float32, where results repeat to the bit."""
    return Engine(device=torch.device("cpu"), bf16=False)
