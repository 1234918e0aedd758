"""The examples in the docstrings of evaluation, privacy and judges run."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import synthorax

SOURCE = Path(synthorax.__file__).parent
MODULES = [".".join(("synthorax", *path.relative_to(SOURCE).with_suffix("").parts))
           for room in ("evaluation", "privacy", "judges") for path in sorted((SOURCE / room).rglob("*.py"))
           if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", [*MODULES, "synthorax.metric_table", "synthorax.multiple_testing"])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name), extraglobs={"np": np, "torch": torch}).failed == 0
